"""Losses by band: structure (DC and 1–3) and texture (4–15 and 16–63) are reported apart, not only their sum.

Shapes: B batch, L triples, F fields, K = 5 bands, the stop last.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import BAND_OF_RANK, RANK_OF_SLOT

BANDS = (*order.BAND_NAMES, "stop")
PARTS = {"structure": slice(0, 2), "texture": slice(2, 4)}
"""Bands that are reported together."""


@functools.cache
def _band_of_rank(device: torch.device) -> Tensor:
    """Return the band of each rank and of the stop, int64 ``[193]``, copied to the device once: a copy waits for it."""
    return BAND_OF_RANK.to(device)


def nats_by_band(nats: Tensor, batch: Any) -> Tensor:
    """Sum negative log-likelihoods by band and field, without reading from the device.

    Args:
        nats: ``[B, L, F]``, 0 where nothing is predicted.
        batch: what the nats are of; one without ``ranks`` has no bands, and everything counts as the first.

    Returns:
        fp32 ``[K, F]`` on the device of ``nats``.
    """
    ranks = getattr(batch, "ranks", None)
    if ranks is None:
        return F.pad(nats.sum((0, 1))[None], (0, 0, 0, len(BANDS) - 1))
    band = (_bands(ranks)[..., None] == torch.arange(len(BANDS), device=ranks.device)).to(nats.dtype)
    return torch.einsum("blk,blf->kf", band, nats)


def count_by_band(batch: Any) -> list[float]:
    """Count by band the triples, coefficients and stops covered by a batch's nats.

    Args:
        batch: on the CPU, since it is read; one without ``ranks`` has no bands, and everything counts as the first.

    Returns:
        K numbers; a texture's coefficients count as often as its picture does.
    """
    ranks = getattr(batch, "ranks", None)
    if ranks is None:
        return [float(batch.predicted.sum())] + [0.0] * (len(BANDS) - 1)
    counted = batch.predicted & batch.scored
    counts = torch.bincount(_bands(ranks)[counted], minlength=len(BANDS)).double()
    texture = batch.texture
    if texture is not None:
        open_ = (texture.coefficients != 0) & ~texture.given & ~texture.hidden & (texture.first <= RANK_OF_SLOT)
        row, *slot = open_.nonzero(as_tuple=True)
        band = _band_of_rank(row.device)[RANK_OF_SLOT.expand(open_.shape[1:])[tuple(slot)]]
        counts += torch.bincount(band, texture.use_weight[row].double(), minlength=len(BANDS))
    return counts.tolist()


def _bands(ranks: Tensor) -> Tensor:
    return _band_of_rank(ranks.device)[ranks[:, 1:]]


def bits_per_triple(bits: Tensor, counts: list[float]) -> dict[str, float]:
    """Return mean bits per triple of each band and of structure and texture; bands without triples are absent.

    Args:
        bits: ``[K, F]``, sums.
        counts: of triples, K numbers.
    """
    total = bits.sum(1)
    groups = {**{name: slice(i, i + 1) for i, name in enumerate(order.BAND_NAMES)}, **PARTS}
    return {name: float(total[part].sum()) / sum(counts[part]) for name, part in groups.items() if sum(counts[part])}
