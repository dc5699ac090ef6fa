"""Quantisation tables as libjpeg scales them (IJG / ITU T.81 Annex K)."""

from __future__ import annotations

import torch
from torch import Tensor

from dctransformer.codec import order

# Annex K, tables K.1 and K.2, row-major.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
)  # fmt: skip


def quant_tables(quality: int) -> tuple[Tensor, Tensor]:
    """Return the luma and chroma quantisation tables of a quality.

    Args:
        quality: 1 (coarse) to 100 (fine).

    Returns:
        Two int32 ``[64]`` tensors in zigzag order, entries 1..255 (libjpeg's ``force_baseline``).

    Raises:
        ValueError: the quality is not a whole number from 1 to 100.
    """
    order.check_quality(quality)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    zigzag = torch.from_numpy(order.ZIGZAG)
    luma, chroma = (
        ((torch.tensor(base, dtype=torch.int32) * scale + 50) // 100).clamp(1, 255)[zigzag] for base in (_LUMA, _CHROMA)
    )
    return luma, chroma


def value_limits(quality: int) -> Tensor:
    """Return the largest magnitude that a quantised coefficient of each channel can have.

    An 8-bit block has DC from −1,024 to 1,016 and smaller AC coefficients, which baseline files hold up to ±1,023.

    Args:
        quality: 1 to 100.

    Returns:
        int64 ``[192]`` by channel id.

    Raises:
        ValueError: the quality is not a whole number from 1 to 100.
    """
    luma, chroma = quant_tables(quality)
    table = torch.cat([luma, chroma, chroma]).long()
    limits = (1024 + table - 1) // table
    is_dc = torch.arange(order.NUM_CHANNELS) % 64 == 0
    return torch.where(is_dc, limits, limits.clamp(max=1023))
