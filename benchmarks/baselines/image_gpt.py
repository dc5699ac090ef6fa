"""Image GPT (Chen et al. 2020): pixels in raster order, each one of a palette's colours."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.palette import nearest_colour
from baselines.pictures import enlarge, shrink
from baselines.raster import RasterConfig, RasterTransformer


class ImageGPT(RasterTransformer):
    """The Transformer, and the palette it reads pictures with."""

    palette: Tensor
    """uint8 ``[K, 3]``; saved with the weights."""

    def __init__(self, config: RasterConfig, palette: Tensor | None = None):
        """Args: config; palette: uint8 ``[K, 3]``; None where it is to be loaded with the weights."""
        super().__init__(config)
        palette = torch.zeros(config.kinds, 3, dtype=torch.uint8) if palette is None else palette
        if palette.shape != (config.kinds, 3):
            raise ValueError(f"a palette of {len(palette)} colours does not fit {config.kinds} kinds of tokens")
        self.register_buffer("palette", palette)

    def tokens(self, pictures: Tensor) -> Tensor:
        """Colour numbers, int64 ``[B, L]``, of uint8 ``[B, S, S, 3]`` (shrunk by box means to ``side``, if larger)."""
        return nearest_colour(shrink(pictures, self.config.side), self.palette).flatten(1)

    def pictures(self, tokens: Tensor, size: int) -> Tensor:
        """Pictures uint8 ``[B, size, size, 3]`` (bicubically enlarged, if need be) of int64 ``[B, L]``."""
        side = self.config.side
        return enlarge(self.palette[tokens].view(-1, side, side, 3), size)
