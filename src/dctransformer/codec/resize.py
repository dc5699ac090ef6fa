"""Resizing in the DCT domain: a picture's low frequencies are a smaller picture, exactly so block by block.

The K × K low-frequency corner of an 8 × 8 block is, up to a factor of 8 / K, the DCT of a K × K block of the picture
at K / 8 of its size. So a small picture *is* a corner of every block of the large one, and the other way round, but for
what the filter that made it has attenuated (`corner_gains`).

Shapes: B pictures, K the corner's side, N MCUs.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.codec import Codec
from dctransformer.codec.dct_image import DCTImage

FACTORS = (2, 4, 8)
"""Factors by which a picture can grow or shrink: whole corners of 4, 2 and 1."""

DownsampledBy = Literal["lanczos", "box", "dct"]
"""How a small picture was made: by a filter, or by `shrink`."""

_LOBES = 3
"""Lobes of Pillow's Lanczos kernel on either side."""


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II: fp64 ``[size, size]`` (frequency, sample)."""
    k, x = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * k * (2 * x + 1) / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix


def check_factor(factor: int) -> int:
    """Return the side of the low-frequency corner that belongs to an upscaling factor.

    Raises:
        ValueError: the factor is not 2, 4 or 8.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor {factor} is not known; choose one of {', '.join(map(str, FACTORS))}")
    return order.BLOCK // factor


def frequency_response(frequency: float, factor: int, downsampled_by: DownsampledBy) -> float:
    """Return how much of a frequency is left in a picture that was shrunk.

    Args:
        frequency: cycles per pixel of the large picture.
        factor: by which it was shrunk, even.
        downsampled_by: the filter; of Lanczos and box, those of Pillow.
    """
    if downsampled_by == "dct":
        return 1.0
    reach = _LOBES * factor if downsampled_by == "lanczos" else factor / 2
    offset = np.arange(-reach + 0.5, reach)  # of the large picture's pixels, from the middle of a small one
    weight = np.ones_like(offset)
    if downsampled_by == "lanczos":
        weight = np.sinc(offset / factor) * np.sinc(offset / reach)
    return float((weight * np.cos(2 * np.pi * frequency * offset)).sum() / weight.sum())


def corner_gains(factor: int, downsampled_by: DownsampledBy) -> tuple[Tensor, Tensor]:
    """Return by what the frequencies of a small picture's blocks differ from those of the large picture.

    Frequency k of 8 samples is k / 16 cycles per sample. A filter attenuates the highest frequencies that it keeps. And
    chroma, whose samples are means of 2 × 2 pixels, loses more in the small picture, where pixels are ``factor`` times
    as far apart: the mean of two pixels at a distance of d has the response cos(π f d).

    Args:
        factor: 2, 4 or 8.
        downsampled_by: how the small picture was made.

    Returns:
        fp64 ``[K]`` each, for luma and chroma: what undoes this, along one axis.

    Raises:
        ValueError: the factor or the filter is another.
    """
    corner = check_factor(factor)
    if downsampled_by not in get_args(DownsampledBy):
        known = ", ".join(get_args(DownsampledBy))
        raise ValueError(f"downsampled_by {downsampled_by!r} is not known; choose one of {known}")
    gains = []
    for pixels in (1, 2):  # along a side of a sample
        frequencies = [k / (2 * order.BLOCK * pixels) for k in range(corner)]
        kept = torch.tensor([frequency_response(f, factor, downsampled_by) for f in frequencies], dtype=torch.float64)
        if pixels == 2:
            averages = [[frequency_response(f * d, 2, "box") for f in frequencies] for d in (factor, 1)]
            small, large = torch.tensor(averages, dtype=torch.float64)
            kept = kept * small / large
        gains.append(1 / kept)
    return gains[0], gains[1]


def _corner_levels(plane: Tensor, gain: Tensor, table: Tensor) -> Tensor:
    """Quantise the corners of a plane's ``K × K`` blocks: fp64 ``[B, h K, w K]`` to int16 ``[B, h, w, 64]`` zigzag."""
    corner = len(gain)
    batch, height, width = plane.shape
    blocks = (plane - 128).view(batch, height // corner, corner, width // corner, corner).transpose(2, 3)
    matrix = dct_matrix(corner)
    spectrum = matrix @ blocks @ matrix.T * (order.BLOCK / corner) * gain[:, None] * gain
    whole = F.pad(spectrum, (0, order.BLOCK - corner, 0, order.BLOCK - corner)).flatten(-2)
    zigzag = whole[..., torch.from_numpy(order.ZIGZAG)]
    return (zigzag / table.double()).round().to(torch.int16)


def enlarged_corners(small: Tensor, factor: int, codec: Codec, downsampled_by: DownsampledBy = "lanczos") -> DCTImage:
    """Return the low frequencies of the picture ``factor`` times as large; all others are 0.

    Args:
        small: uint8 RGB ``[B, h, w, 3]``.
        factor: 2, 4 or 8.
        codec: whose tables quantise.
        downsampled_by: how the small picture was made; what this has attenuated is amplified by `corner_gains`.

    Returns:
        A 4:2:0 `DCTImage` of ``factor · h`` × ``factor · w`` pixels, padded to whole MCUs by the edge pixels.

    Raises:
        ValueError: the factor or the filter is another.
    """
    luma_gain, chroma_gain = corner_gains(factor, downsampled_by)
    mcu = order.MCU // factor
    height, width = small.shape[1:3]
    rgb = small.permute(0, 3, 1, 2).double()
    rgb = F.pad(rgb, (0, -width % mcu, 0, -height % mcu), mode="replicate")
    r, g, b = rgb.unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b  # JFIF, full range
    chroma = torch.stack([128 + (b - luma) / 1.772, 128 + (r - luma) / 1.402])
    chroma = F.avg_pool2d(chroma, 2)
    cb, cr = (_within(_corner_levels(plane, chroma_gain, codec.chroma_table), codec, order.CB) for plane in chroma)
    return DCTImage(
        luma=_within(_corner_levels(luma, luma_gain, codec.luma_table), codec, order.LUMA), cb=cb, cr=cr,
        luma_table=codec.luma_table, chroma_table=codec.chroma_table,
        height=rgb.shape[2] * factor, width=rgb.shape[3] * factor,
    )  # fmt: skip


def _within(levels: Tensor, codec: Codec, first: int) -> Tensor:
    limits = codec.value_limits()[first : first + 64].to(torch.int16)
    return levels.clamp(-limits, torch.minimum(limits, torch.tensor(1023, dtype=torch.int16)))


def shrink(pictures: Tensor, factor: int) -> Tensor:
    """Shrink pictures by keeping the low-frequency corner of every 8 × 8 block.

    Args:
        pictures: uint8 ``[B, H, W, 3]``, sides a multiple of 8.
        factor: 2, 4 or 8.

    Returns:
        uint8 ``[B, H / factor, W / factor, 3]``.

    Raises:
        ValueError: the factor or the size doesn't fit.
    """
    corner = check_factor(factor)
    batch, height, width, _ = pictures.shape
    if height % order.BLOCK or width % order.BLOCK:
        raise ValueError(f"a {width}×{height} picture is not made of whole 8 × 8 blocks; crop it to a multiple of 8")
    planes = pictures.permute(0, 3, 1, 2).double() - 128
    blocks = planes.view(batch, 3, height // 8, 8, width // 8, 8).transpose(3, 4)
    down = dct_matrix(corner).T @ dct_matrix(order.BLOCK)[:corner] / math.sqrt(factor)
    small = (down @ blocks @ down.T).transpose(3, 4).reshape(batch, 3, height // factor, width // factor)
    return (small + 128).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
