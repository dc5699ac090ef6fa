"""Scattering coefficients (Bruna and Mallat, 2013): fixed features of pictures, without any training.

A picture is filtered by Morlet wavelets of several scales and orientations; the magnitudes of the results, and those of
their own wavelet transforms, are averaged over a few places. Unlike a spectrum, these averages distinguish smooth areas
with sharp contours from noise of the same energy. Every coefficient is averaged with that of the mirrored picture, so
a classifier of them sees no difference between the two.

Shapes: B pictures, C planes, H × W places, J scales, L orientations.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

ORIENTATIONS = 4
"""Orientations of the wavelets, L."""

_MIRRORED = [-i % ORIENTATIONS for i in range(ORIENTATIONS)]

CELLS = 4
"""Rows and columns of the cells that planes and magnitudes of first order are averaged over."""

SECOND = 2
"""Rows and columns of the cells of second order."""


def scattering(planes: Tensor, *, cells: int = CELLS, second: int | None = None) -> Tensor:
    """Return the scattering coefficients.

    Args:
        planes: float ``[B, C, H, W]``, at least 2 × 2.
        cells: rows and columns of the cells that planes and first order are averaged over.
        second: the number of planes, the first, that get a second order; None for all.

    Returns:
        fp32 ``[B, D]``: averages of the planes, then of magnitudes of first and second order.
    """
    scales = min(4, max(2, int(math.log2(min(planes.shape[2:]))) - 2))
    found = [_averages(planes, cells)]
    for j, orientations in enumerate(_magnitudes(planes, scales)):
        found.append(_first(orientations, cells))
        if second == 0 or j + 1 == scales or min(planes.shape[2:]) < 4 * 2 ** (j + 1):
            continue
        # A magnitude of scale j varies at coarser scales alone.
        inner = F.avg_pool2d(orientations[:, :, :second].flatten(0, 2), 2 ** (j + 1))
        found += [_second(part, len(planes)) for part in _magnitudes(inner[:, None], scales - 1 - j)]
    return torch.cat(found, 1)


def _magnitudes(planes: Tensor, scales: int) -> list[Tensor]:
    """Return the magnitudes of the wavelet transform, by scale: fp32 ``[B, L, C, H, W]``."""
    spectrum = torch.fft.fft2(planes)[:, None]
    bank = _wavelets(planes.shape[2], planes.shape[3], scales)
    return [torch.fft.ifft2(spectrum * filters[:, None]).abs() for filters in bank]


def _averages(planes: Tensor, cells: int) -> Tensor:
    """Return the averages of the planes and of the mirrored planes over cells: ``[B, D]``."""
    pooled = F.adaptive_avg_pool2d(planes, cells)
    return ((pooled + pooled.flip(3)) / 2).flatten(1)


def _first(magnitudes: Tensor, cells: int) -> Tensor:
    """Return the averages of first-order magnitudes over cells: a mirrored picture's have the mirrored orientation."""
    pooled = F.adaptive_avg_pool2d(magnitudes.flatten(1, 2), cells).view(*magnitudes.shape[:3], cells, cells)
    return ((pooled + pooled[:, _MIRRORED].flip(4)) / 2).flatten(1)


def _second(magnitudes: Tensor, batch: int) -> Tensor:
    """Average second-order magnitudes, ``[B·L·C, L, 1, H, W]``, over cells, with both orientations mirrored."""
    pooled = F.adaptive_avg_pool2d(magnitudes[:, :, 0], SECOND)
    pooled = pooled.view(batch, ORIENTATIONS, -1, ORIENTATIONS, SECOND, SECOND)
    return ((pooled + pooled[:, _MIRRORED][:, :, :, _MIRRORED].flip(5)) / 2).flatten(1)


@functools.lru_cache(maxsize=64)
def _wavelets(height: int, width: int, scales: int) -> tuple[Tensor, ...]:
    """Return the Morlet wavelets in the frequency domain, by scale: fp32 ``[L, H, W]``, of zero mean.

    Scale j has the frequency 3π/4 · 2⁻ʲ and a Gaussian envelope of 0.8 · 2ʲ samples (elongated along the wave's crest).
    """
    down = torch.fft.fftfreq(height).double()[:, None] * 2 * math.pi
    across = torch.fft.fftfreq(width).double()[None] * 2 * math.pi
    slant = 4 / ORIENTATIONS
    bank = []
    for j in range(scales):
        centre, extent = 0.75 * math.pi / 2**j, 0.8 * 2**j
        offset = math.exp(-((centre * extent) ** 2) / 2)
        filters = []
        for orientation in range(ORIENTATIONS):
            cos, sin = (f(math.pi * orientation / ORIENTATIONS) for f in (math.cos, math.sin))
            response = torch.zeros(height, width, dtype=torch.float64)
            for alias in range(9):  # spectra of samples are periodic
                x, y = across + 2 * math.pi * (alias % 3 - 1), down + 2 * math.pi * (alias // 3 - 1)
                along, crest = x * cos + y * sin, (y * cos - x * sin) / slant
                wave = torch.exp(-((along - centre) ** 2 + crest**2) * extent**2 / 2)
                response += wave - offset * torch.exp(-(along**2 + crest**2) * extent**2 / 2)
            filters.append(response)
        bank.append(torch.stack(filters).float())
    return tuple(bank)
