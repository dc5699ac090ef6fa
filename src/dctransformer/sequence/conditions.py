"""Conditions: which coefficients of a picture are settled from the start, and how training draws them.

One mask of *given* coefficients carries every task: nothing is given (generate), the low-frequency corner of each
block (upscale), all of luma (colorize), every MCU outside a hole (inpaint). The order, the code and the weights are
the same for all; only what is left to list differs.

Shapes: N MCUs; a mask is bool ``[N, 6, 64]``, blocks and zigzag frequencies as in `DCTImage.to_mcus`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import Grid

CORNERS = {2: 4, 4: 2, 8: 1}
"""Upscaling factor to the side of the low-frequency corner that the small picture holds of each 8×8 block."""

NAMES = ("none", "low1", "low2", "low4", "luma", "region")
"""Conditions by name; ``lowK`` gives the K×K corner of every block."""


def low(corner: int, grid: Grid) -> Tensor:
    """The low-frequency ``corner`` × ``corner`` of every block, luma and chroma.

    Raises:
        ValueError: the corner is not 1, 2 or 4.
    """
    if corner not in CORNERS.values():
        raise ValueError(f"a low-frequency corner of {corner} is not known; choose 1, 2 or 4")
    raster = torch.from_numpy(order.ZIGZAG)
    inside = (raster // 8 < corner) & (raster % 8 < corner)
    return inside.expand(grid.mcus, order.BLOCKS_PER_MCU, 64).clone()


def luma(grid: Grid) -> Tensor:
    """All of Y."""
    given = torch.zeros(grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.bool)
    given[:, :4] = True
    return given


def outside(hole: Tensor) -> Tensor:
    """Every MCU outside a hole: bool ``[rows, cols]`` (true where something is to be generated) to a mask."""
    return ~hole.flatten()[:, None, None].expand(-1, order.BLOCKS_PER_MCU, 64)


def centre_hole(grid: Grid) -> Tensor:
    """The hole that ``--given region`` means: the middle half of the rows and columns, bool ``[rows, cols]``."""
    hole = torch.zeros(grid.rows, grid.cols, dtype=torch.bool)
    rows, cols = ((n // 4, max(n // 4 + 1, n - n // 4)) for n in (grid.rows, grid.cols))
    hole[slice(*rows), slice(*cols)] = True
    return hole


def named(name: str, grid: Grid) -> Tensor | None:
    """The mask of a condition by name; None for ``none``.

    Raises:
        ValueError: there is no such condition.
    """
    if name not in NAMES:
        raise ValueError(f"there is no condition {name!r}; choose one of {', '.join(NAMES)}")
    if name == "none":
        return None
    if name == "luma":
        return luma(grid)
    if name == "region":
        return outside(centre_hole(grid))
    return low(int(name[3:]), grid)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How often training draws each condition; the shares are relative to their sum. The default is for all tasks."""

    none: float = 0.45
    """Nothing is given: generate."""
    low: float = 0.2
    """The low-frequency corner of each block is given: upscale. Each factor gets an equal part."""
    luma: float = 0.1
    """All of luma is given: colorize."""
    region: float = 0.25
    """All outside a random hole is given: inpaint."""
    factors: tuple[int, ...] = (2, 4, 8)
    """Upscaling factors that ``low`` stands for."""
    tiled: float = 0.3
    """Part of the ``low`` and ``luma`` chunks that know some finished neighbours, too, as large pictures need it."""
    first: float = 0.05
    """Part of the conditioned chunks that list what would be given while the rest stays unknown, so that the two code
    lengths add up to that of the picture."""

    def check(self) -> None:
        """Check what no type can say.

        Raises:
            ValueError: a share can't be what it is.
        """
        shares = (self.none, self.low, self.luma, self.region)
        if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise ValueError("the conditions' shares must be 0 or more, and one of them greater")
        if not 0 <= self.tiled <= 1 or not 0 <= self.first <= 1:
            raise ValueError("the conditions' tiled and first must be from 0 to 1")
        if not set(self.factors) <= set(CORNERS) or (self.low and not self.factors):
            raise ValueError(f"the conditions' factors must be among {', '.join(map(str, CORNERS))}")

    def names(self) -> tuple[str, ...]:
        """The conditions that are drawn at all, as in `NAMES`."""
        drawn = {"none"} if self.none else set()
        drawn |= {f"low{CORNERS[f]}" for f in self.factors} if self.low else set()
        drawn |= {name for name in ("luma", "region") if getattr(self, name)}
        return tuple(name for name in NAMES if name in drawn)

    def draw(self, grid: Grid, noise: np.random.Generator) -> tuple[Tensor | None, bool]:
        """Draw a condition.

        Args:
            grid: of the picture.
            noise: decides.

        Returns:
            The mask (None for nothing), and whether it is the given part that is to be listed, the rest unknown.
        """
        shares = np.array([self.none, self.low, self.luma, self.region])
        kind = ("none", "low", "luma", "region")[int(noise.choice(4, p=shares / shares.sum()))]
        if kind == "none":
            return None, False
        if kind == "region":
            given = outside(_hole(grid, noise))
        else:
            given = luma(grid) if kind == "luma" else low(CORNERS[int(noise.choice(self.factors))], grid)
            if noise.random() < self.tiled:
                given |= outside(_hole(grid, noise))
        return given, bool(noise.random() < self.first)


def _hole(grid: Grid, noise: np.random.Generator) -> Tensor:
    """A box anywhere (at an edge it is a tile with finished neighbours), now and then scattered MCUs: bool."""
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
