"""Masks of given coefficients: low-frequency corners, luma, everything outside a hole.

Shapes: N MCUs; a mask is bool ``[N, 6, 64]``, blocks and zigzag frequencies as in `DCTImage.to_mcus`; a hole is bool
``[rows, cols]`` over the MCU grid, true where something is to be generated.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import Grid


def low(corner: int, grid: Grid) -> Tensor:
    """Return a mask of the low-frequency ``corner`` × ``corner`` of every block, luma and chroma.

    Raises:
        ValueError: the corner is not 1, 2 or 4.
    """
    if corner not in (1, 2, 4):
        raise ValueError(f"a low-frequency corner of {corner} is not known; choose 1, 2 or 4")
    raster = torch.from_numpy(order.ZIGZAG)
    inside = (raster // 8 < corner) & (raster % 8 < corner)
    return inside.expand(grid.mcus, order.BLOCKS_PER_MCU, 64).clone()


def luma(grid: Grid) -> Tensor:
    """Return a mask of all luma (Y) coefficients."""
    given = torch.zeros(grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.bool)
    given[:, :4] = True
    return given


def outside(hole: Tensor) -> Tensor:
    """Return every MCU outside a hole, as a mask."""
    return ~hole.flatten()[:, None, None].expand(-1, order.BLOCKS_PER_MCU, 64)


def centre_hole(grid: Grid) -> Tensor:
    """Return the hole of ``--given region``: the middle half of the rows and columns."""
    hole = torch.zeros(grid.rows, grid.cols, dtype=torch.bool)
    rows, cols = ((n // 4, max(n // 4 + 1, n - n // 4)) for n in (grid.rows, grid.cols))
    hole[slice(*rows), slice(*cols)] = True
    return hole


def random_hole(grid: Grid, noise: np.random.Generator) -> Tensor:
    """Draw a random box (at an edge it is a tile with finished neighbours); one time in four, scattered MCUs."""
    hole = torch.zeros(grid.rows, grid.cols, dtype=torch.bool)
    if noise.random() < 0.25:
        hole = torch.from_numpy(noise.random((grid.rows, grid.cols)) < noise.random())
    else:
        rows, cols = (_stretch(n, noise) for n in (grid.rows, grid.cols))
        hole[slice(*rows), slice(*cols)] = True
    if not hole.any():
        hole[int(noise.integers(grid.rows)), int(noise.integers(grid.cols))] = True
    return hole


def _stretch(n: int, noise: np.random.Generator) -> tuple[int, int]:
    length = int(noise.integers(1, n + 1))
    start = int(noise.integers(0, n - length + 1))
    return start, start + length
