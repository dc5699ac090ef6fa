"""A palette of colours by k-means, and the nearest colour of every pixel (Image GPT, Chen et al. 2020, section 3.1).

Shapes: K colours; pixels and colours are uint8 ``[..., 3]``.
"""

from __future__ import annotations

import warnings

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

COLOURS = 512
"""Image GPT's palette: 9 bits per pixel."""

_SAMPLE, _ROWS = 65_536, 16_384
"""Number of pixels that k-means is fitted to, and rows of the distance matrix computed at a time."""


def fit_palette(pixels: Tensor, colours: int = COLOURS, seed: int = 0) -> Tensor:
    """Fit a colour palette by k-means to a sample of the pixels.

    Args:
        pixels: uint8 ``[..., 3]``.
        colours: number of colours K.
        seed: seed of the sample and of the initial centres.

    Returns:
        uint8 ``[K, 3]``, from dark to light; deterministic.

    Raises:
        ValueError: there are fewer pixels than colours.
    """
    flat = pixels.reshape(-1, 3)
    if len(flat) < colours:
        raise ValueError(f"a palette of {colours} colours needs as many pixels, not {len(flat)}; give more pictures")
    # Sampled with replacement: a permutation of all pixels would take longer than k-means.
    draw = torch.Generator().manual_seed(seed)
    if len(flat) > _SAMPLE:
        flat = flat[torch.randint(len(flat), (_SAMPLE,), generator=draw)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different pixels than colours
        means = KMeans(colours, max_iter=20, random_state=seed).fit(flat.double().numpy())
    centres = torch.from_numpy(means.cluster_centers_).round().clamp(0, 255)
    light = centres @ torch.tensor([0.299, 0.587, 0.114], dtype=centres.dtype)
    return centres[light.argsort(stable=True)].to(torch.uint8)


def nearest_colour(pixels: Tensor, palette: Tensor) -> Tensor:
    """Index of the nearest palette colour of every pixel (Euclidean distance in RGB; the first one in a tie).

    Args:
        pixels: uint8 ``[..., 3]``.
        palette: uint8 ``[K, 3]``.

    Returns:
        int64 ``[...]``.
    """
    x, colours = pixels.reshape(-1, 3).float(), palette.float()
    squares = colours.square().sum(1)  # exact in fp32: integers up to 3 · 255²
    nearest = [torch.addmm(squares, rows, colours.T, alpha=-2).argmin(1) for rows in x.split(_ROWS)]
    return torch.cat(nearest).view(pixels.shape[:-1])
