"""A palette of colours by k-means, and the nearest colour of every pixel (Image GPT, Chen et al. 2020, section 3.1).

Shapes: K colours; pixels and colours are uint8 ``[..., 3]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLOURS = 512
"""Image GPT's palette: 9 bits per pixel."""

_SAMPLE, _ROUNDS, _ROWS = 65_536, 20, 16_384
"""Pixels that k-means looks at, its rounds, and rows of a distance matrix held at a time."""


def fit_palette(pixels: Tensor, colours: int = COLOURS, seed: int = 0) -> Tensor:
    """k-means over colours (Lloyd's rounds from random pixels), on a sample of the pixels.

    A colour that no pixel is nearest to moves to the pixel that is farthest from its own.

    Args:
        pixels: uint8 ``[..., 3]``.
        colours: K.
        seed: of the sample and the start.

    Returns:
        uint8 ``[K, 3]``, dark to light; the same for the same arguments.

    Raises:
        ValueError: there are fewer pixels than colours.
    """
    flat = pixels.reshape(-1, 3)
    if len(flat) < colours:
        raise ValueError(f"a palette of {colours} colours needs as many pixels, not {len(flat)}; give more pictures")
    draw = torch.Generator().manual_seed(seed)
    # With replacement where there are many, for a permutation of all would take longer than k-means.
    few = len(flat) <= _SAMPLE
    chosen = torch.randperm(len(flat), generator=draw) if few else torch.randint(len(flat), (_SAMPLE,), generator=draw)
    x = flat[chosen].float()
    centres = x[torch.randperm(len(x), generator=draw)[:colours]].clone()
    for _ in range(_ROUNDS):
        index, distance = _nearest(x, centres)
        counts = torch.bincount(index, minlength=colours)
        sums = torch.zeros_like(centres).index_add_(0, index, x)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centres[empty] = x[distance.topk(len(empty)).indices]
    centres = centres.round().clamp(0, 255)
    light = centres @ torch.tensor([0.299, 0.587, 0.114])
    return centres[light.argsort(stable=True)].to(torch.uint8)


def nearest_colour(pixels: Tensor, palette: Tensor) -> Tensor:
    """Number of the nearest colour (Euclidean, in RGB; the first of equally near ones).

    Args:
        pixels: uint8 ``[..., 3]``.
        palette: uint8 ``[K, 3]``.

    Returns:
        int64 ``[...]``.
    """
    index, _ = _nearest(pixels.reshape(-1, 3).float(), palette.float())
    return index.view(pixels.shape[:-1])


def _nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest centre of each row, and the squared distance; whole numbers up to 255 give exact ones."""
    squares = centres.square().sum(1)
    found = [torch.addmm(squares, rows, centres.T, alpha=-2).min(1) for rows in x.split(_ROWS)]
    distance = torch.cat([part.values for part in found]) + x.square().sum(1)
    return torch.cat([part.indices for part in found]), distance
