"""What the method is compared with, on the same data, loop, optimiser, precision and metrics.

* `pictures`: the pictures of a prepared data set as pixels, and batches of them.
* `palette`: a colour palette by k-means.
* `raster`: a causal Transformer over a square of tokens, built of `dctransformer.model`'s layers; its sampling.
* `image_gpt`: Image GPT, that Transformer over palette colours.
* `vqvae`: VQ-VAE, whose codes the same Transformer models.
* `systems`: these and DCTransformer behind one interface: what is trained, sampled, reconstructed, counted.
* `loop`: trains any of them for so many minutes, and finds their learning rates.

Arrows: systems → image_gpt, vqvae → raster, palette, pictures. The training step is that
of `dctransformer.training.trainer`.
"""
