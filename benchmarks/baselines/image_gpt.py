"""Image GPT (Chen et al. 2020): an autoregressive model of pixels in raster order, quantised to a colour palette."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.palette import nearest_colour
from baselines.pictures import enlarge, shrink
from baselines.raster import RasterConfig, RasterTransformer


class ImageGPT(RasterTransformer):
    """The Transformer together with the palette that maps pictures to tokens."""

    palette: Tensor
    """uint8 ``[K, 3]``; saved with the weights."""

    def __init__(self, config: RasterConfig, palette: Tensor | None = None):
        """Create an untrained network.

        Args:
            config: shape of the Transformer.
            palette: uint8 ``[K, 3]``; None if it will be loaded with the weights.

        Raises:
            ValueError: the palette does not have ``config.kinds`` colours.
        """
        super().__init__(config)
        palette = torch.zeros(config.kinds, 3, dtype=torch.uint8) if palette is None else palette
        if palette.shape != (config.kinds, 3):
            raise ValueError(f"a palette of {len(palette)} colours does not fit {config.kinds} kinds of tokens")
        self.register_buffer("palette", palette)

    def tokens(self, pictures: Tensor) -> Tensor:
        """Convert pictures to tokens.

        Args:
            pictures: uint8 ``[B, S, S, 3]``; shrunk to ``side`` by box averaging if they are larger.

        Returns:
            Palette indices, int64 ``[B, L]``.
        """
        return nearest_colour(shrink(pictures, self.config.side), self.palette).flatten(1)

    def pictures(self, tokens: Tensor, size: int) -> Tensor:
        """Convert tokens int64 ``[B, L]`` to pictures uint8 ``[B, size, size, 3]``, enlarged bicubically if needed."""
        side = self.config.side
        return enlarge(self.palette[tokens].view(-1, side, side, 3), size)
