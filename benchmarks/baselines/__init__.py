"""Baselines for DCTransformer, trained and scored with the same data, loop, optimiser, precision and metrics.

* `pictures`: loads the pictures of a prepared data set as pixels, and batches them.
* `palette`: a colour palette by k-means.
* `raster`: a causal Transformer over a square grid of tokens, built from the package's layers, and its sampler.
* `image_gpt`: Image GPT, this Transformer over palette colours.
* `vqvae`: VQ-VAE; the same Transformer is the prior over its codes.
* `systems`: one interface to train, sample, reconstruct and measure DCTransformer and the baselines.
* `loop`: trains any of them for a number of minutes, and tunes their learning rates.

* `judge`: scores generated pictures.

Imports: judge → systems → image_gpt, vqvae → raster, palette, pictures. The training step is that of
`dctransformer.training.trainer`.
"""
