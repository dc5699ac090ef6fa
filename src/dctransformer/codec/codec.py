"""`Codec`: pictures in, DCT images out, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import tables, transform
from dctransformer.codec.dct_image import DCTImage


class Codec:
    """JPEG's lossy half at one quality, bit for bit equal to libjpeg's accurate integer path (4:2:0 or grey).

    Example:
        >>> codec = Codec(quality=75)
        >>> dct = codec.encode(torch.zeros(1, 64, 48, 3, dtype=torch.uint8))
        >>> dct.luma.shape, dct.cb.shape
        (torch.Size([1, 8, 6, 64]), torch.Size([1, 4, 3, 64]))
        >>> codec.decode(dct).shape
        torch.Size([1, 64, 48, 3])

    Attributes:
        quality: 1 (coarse) to 100 (fine).
        luma_table: int32 ``[64]`` quantisation steps, zigzag order.
        chroma_table: int32 ``[64]``.
    """

    def __init__(self, quality: int = 75):
        """Set the quality; raises ValueError unless it is a whole number from 1 to 100."""
        self.luma_table, self.chroma_table = tables.quant_tables(quality)
        self.quality = quality

    def __repr__(self) -> str:
        """Return ``Codec(quality=75)`` and the like."""
        return f"Codec(quality={self.quality})"

    def encode(self, images: Tensor | np.ndarray) -> DCTImage:
        """Return the quantised DCT coefficients of pictures.

        Args:
            images: uint8, torch or numpy: RGB ``[B, H, W, 3]`` or ``[H, W, 3]``, or grey ``[B, H, W, 1]``,
                ``[H, W, 1]`` or ``[H, W]``. Any size.

        Returns:
            A `DCTImage` on the same device: 4:2:0, or grey for grey pictures.

        Raises:
            ValueError: the pictures have another type or shape.
        """
        if images.dtype not in (torch.uint8, np.uint8):
            raise ValueError("pictures are uint8 (0 to 255); convert yours, e.g. (x * 255).round().to(torch.uint8)")
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images.copy())  # The array may be read-only or run backwards.
        shape = list(images.shape)
        if images.ndim == 2:
            images = images[..., None]
        if images.ndim == 3:
            images = images[None]
        if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:3]:
            raise ValueError(f"pictures are [B, H, W, 3], [H, W, 3], or grey [B, H, W, 1], [H, W], not {shape}")
        height, width = images.shape[1:3]
        if images.shape[3] == 1:
            luma = transform.encode_grey(images[..., 0], self.luma_table)
            return DCTImage(luma, None, None, self.luma_table, None, height, width)
        luma, cb, cr = transform.encode_rgb(images, self.luma_table, self.chroma_table)
        return DCTImage(luma, cb, cr, self.luma_table, self.chroma_table, height, width)

    def decode(self, dct: DCTImage) -> Tensor:
        """Return the pixels of a DCT image, by the image's own tables: those Pillow gets from its JPEG file.

        Returns:
            uint8 ``[B, H, W, 3]``; grey pictures have three equal components.
        """
        return transform.decode(
            dct.luma, dct.cb, dct.cr, dct.luma_table, dct.chroma_table, dct.height, dct.width, dct.chroma_step
        )

    def to_triples(self, dct: DCTImage) -> list[Tensor]:
        """Return the triples of each picture: see `DCTImage.to_triples`."""
        return dct.to_triples()

    def from_triples(self, triples: Tensor | Sequence[Tensor], height: int, width: int, grey: bool = False) -> DCTImage:
        """Build a DCT image from triples, with this codec's tables, 4:2:0 or grey: see `DCTImage.from_triples`."""
        chroma_table = None if grey else self.chroma_table
        return DCTImage.from_triples(triples, height, width, self.luma_table, chroma_table)

    def value_limits(self) -> Tensor:
        """Return the largest magnitude that an encoder can produce per channel: int64 ``[192]`` by channel id."""
        return tables.value_limits(self.quality)
