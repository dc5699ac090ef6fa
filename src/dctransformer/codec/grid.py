"""The geometry of a DCT image: the luma block grid, the MCUs over it, and the ranks of channels.

Shapes: N MCUs, P = 4 N positions (luma blocks in raster order).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from dctransformer.codec import order

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def outside_inference(make: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function whose result is cached make ordinary tensors: one made while sampling may be used in training."""

    @functools.wraps(make)
    def ordinary(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    return ordinary


def _constant(cached: Callable[_Arguments, Tensor], name: str) -> Callable[_Arguments, Tensor]:
    """Make what a function returns a constant of compiled code.

    `torch.compile` distinguishes such constants by the name of the function's code: two of one name in a graph fail.
    """
    cached.__code__ = cached.__code__.replace(co_name=name)  # type: ignore[attr-defined]
    return torch.compiler.assume_constant_result(cached)


def cached_on_device(make: Callable[[torch.device], Tensor]) -> Callable[[torch.device], Tensor]:
    """Cache the table that a function makes on a device; it is a constant of compiled code."""
    kept = functools.cache(outside_inference(make))

    @functools.wraps(make)
    def cached(device: torch.device) -> Tensor:
        return kept(device)

    return _constant(cached, make.__name__)  # type: ignore[attr-defined]


TABLE_BYTES = 1 << 28
"""Bytes of cached tables, per kind of table: a data set may have a hundred grids, and a photograph a large one."""


def cached_by_grid(make: Callable[_Arguments, Tensor]) -> Callable[_Arguments, Tensor]:
    """Cache the tables that a function makes of a grid, its first argument; the oldest go beyond `TABLE_BYTES`.

    They are constants of compiled code, which is then compiled for each grid.
    """
    tables: dict[tuple, Tensor] = {}

    @functools.wraps(make)
    def cached(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Tensor:
        grid, *rest = args
        assert isinstance(grid, Grid)
        key = (grid.rows, grid.cols, *rest, *kwargs.items())
        table = tables.get(key)
        if table is None:
            table = tables[key] = make(*args, **kwargs)
            while len(tables) > 1 and sum(t.nbytes for t in list(tables.values())) > TABLE_BYTES:
                tables.pop(list(tables)[0], None)  # noqa: RUF015 (another thread may change the tables meanwhile)
        return table

    return _constant(cached, make.__name__)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A picture of ``rows`` × ``cols`` MCUs."""

    rows: int
    cols: int

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def shared(rows: int, cols: int) -> Grid:
        """Return the grid of ``rows`` × ``cols`` MCUs, always the same object, so that its tables are computed once."""
        return Grid(rows, cols)

    def __reduce__(self) -> tuple:
        """Pickle the size alone, not the tables."""
        return Grid.shared, (self.rows, self.cols)

    @property
    def size(self) -> str:
        """Width and height in pixels, ``"96x64"``."""
        return f"{self.cols * order.MCU}x{self.rows * order.MCU}"

    def within(self, window: Grid | None) -> Grid:
        """Return the grid of this picture's windows: the window's, but no larger than the picture (None: all of it)."""
        if window is None:
            return self
        return Grid.shared(min(self.rows, window.rows), min(self.cols, window.cols))

    @property
    def mcus(self) -> int:
        """Number N of MCUs."""
        return self.rows * self.cols

    @property
    def width(self) -> int:
        """Luma blocks in a row."""
        return 2 * self.cols

    @property
    def positions(self) -> int:
        """Number P of positions."""
        return 4 * self.mcus

    @classmethod
    def of_size(cls, height: int, width: int) -> Grid:
        """Return the grid of a picture in pixels.

        Raises:
            ValueError: a side is not a positive multiple of 16.
        """
        if height < 1 or width < 1 or height % order.MCU or width % order.MCU:
            raise ValueError(
                f"a {width}×{height} picture does not divide into MCUs; crop or resize it to multiples of 16"
            )
        return cls(height // order.MCU, width // order.MCU)

    def centre(self, window: Grid) -> tuple[int, int]:
        """Return the MCU row and column where a window at the centre begins.

        Where there is no centre it lies half an MCU up and left of it.
        """
        return (self.rows - window.rows) // 2, (self.cols - window.cols) // 2

    @functools.cached_property
    @outside_inference
    def row(self) -> Tensor:
        """Luma block row of each position: int64 ``[P]``."""
        return torch.arange(self.positions) // self.width

    @functools.cached_property
    @outside_inference
    def col(self) -> Tensor:
        """Luma block column of each position: int64 ``[P]``."""
        return torch.arange(self.positions) % self.width

    @functools.cached_property
    @outside_inference
    def mcu(self) -> Tensor:
        """MCU of each position: int64 ``[P]``."""
        return (self.row // 2) * self.cols + self.col // 2

    @functools.cached_property
    @outside_inference
    def luma_of_mcus(self) -> Tensor:
        """Index into the ``N·4`` luma blocks of the one at each position: int64 ``[P]``."""
        return self.mcu * 4 + (self.row % 2) * 2 + self.col % 2

    def table(self, name: str, device: torch.device) -> Tensor:
        """Return one of the tables above on a device, copied there only once: a copy makes the host wait."""
        return _TABLES[name](self, device)

    def mcu_at(self, position: Tensor) -> Tensor:
        """Return the MCU of positions on any device: int64, any shape."""
        return position // (2 * self.width) * self.cols + position % self.width // 2

    @functools.cached_property
    @outside_inference
    def luma_block(self) -> Tensor:
        """Index into the ``N·6`` blocks of the luma block at each position: int64 ``[P]``."""
        return self.mcu * order.BLOCKS_PER_MCU + (self.row % 2) * 2 + self.col % 2

    @functools.cached_property
    @outside_inference
    def is_chroma_place(self) -> Tensor:
        """Whether a position is the top-left of its MCU, where chroma coefficients live: bool ``[P]``."""
        return (self.row % 2 == 0) & (self.col % 2 == 0)

    @functools.cached_property
    @outside_inference
    def chroma_position(self) -> Tensor:
        """Position of each MCU's chroma coefficients: int64 ``[N]``."""
        return self.is_chroma_place.nonzero()[:, 0]

    @functools.cached_property
    @outside_inference
    def block_position(self) -> Tensor:
        """Position of each block: int64 ``[N, 6]`` (chroma blocks lie at their MCU's top-left)."""
        positions = torch.empty(self.mcus * order.BLOCKS_PER_MCU, dtype=torch.int64)
        positions[self.luma_block] = torch.arange(self.positions)
        positions = positions.view(self.mcus, order.BLOCKS_PER_MCU)
        positions[:, 4] = positions[:, 5] = self.chroma_position
        return positions

    def slot(self, rank: Tensor, position: Tensor) -> Tensor:
        """Return the flat index into ``[N, 6, 64]`` of coefficients given as ranks and positions (int64, any shape)."""
        channel = CHANNEL_OF_RANK[rank]
        block = torch.where(
            channel < order.CB, self.luma_block[position], self.mcu[position] * order.BLOCKS_PER_MCU + 3 + channel // 64
        )
        return block * 64 + channel % 64

    def mirrored(self, position: Tensor, channel: Tensor) -> Tensor:
        """Return the positions after a horizontal flip of the picture (int64, any shape)."""
        row, col = position // self.width, position % self.width
        # A chroma coefficient lies at the *left* luma column of its MCU, before and after.
        last = torch.where(channel < order.CB, self.width - 1, self.width - 2)
        return row * self.width + last - col


@cached_by_grid
@outside_inference
def rank_slots(grid: Grid, device: torch.device) -> Tensor:
    """Return the flat index into ``[N, 6, 64]`` of every rank at every position: int64 ``[192, P]``.

    Where a chroma channel has no coefficient it is ``N · 6 · 64``, one beyond the last.
    """
    slots = grid.slot(torch.arange(order.NUM_CHANNELS)[:, None], torch.arange(grid.positions))
    exists = ~IS_CHROMA_RANK[:, None] | grid.is_chroma_place
    return torch.where(exists, slots, grid.mcus * order.BLOCKS_PER_MCU * 64).to(device)


def _on_device(name: str) -> Callable[[Grid, torch.device], Tensor]:
    """Return the function that returns one of a grid's tables on a device."""

    @outside_inference
    def table(grid: Grid, device: torch.device) -> Tensor:
        return getattr(grid, name).to(device)

    table.__name__ = name
    return cached_by_grid(table)


_TABLES = {name: _on_device(name) for name in ("luma_of_mcus", "luma_block", "chroma_position", "is_chroma_place")}


CHANNEL_OF_RANK = torch.from_numpy(order.GENERATION_ORDER)
"""Channel id of each rank: int64 ``[192]``."""

RANK_OF_CHANNEL = torch.from_numpy(order.RANK)
"""Rank of each channel id: int64 ``[192]``."""

RANK_OF_SLOT = RANK_OF_CHANNEL[torch.tensor([order.LUMA] * 4 + [order.CB, order.CR])[:, None] + torch.arange(64)]
"""Rank of each slot of an MCU: int64 ``[6, 64]``."""

IS_CHROMA_RANK = order.CB <= CHANNEL_OF_RANK
"""Whether a rank's channel is chroma: bool ``[192]``."""


@cached_on_device
def rank_of_slot(device: torch.device) -> Tensor:
    """Return `RANK_OF_SLOT` on a device, copied there only once: a copy makes the host wait."""
    return RANK_OF_SLOT.to(device)


@cached_on_device
def is_chroma_rank(device: torch.device) -> Tensor:
    """Return `IS_CHROMA_RANK` on a device, copied there only once."""
    return IS_CHROMA_RANK.to(device)


BAND_OF_RANK = torch.tensor([*order.BAND_OF_CHANNEL[order.GENERATION_ORDER], len(order.BANDS)])
"""Index into `order.BANDS` of each rank, and their number for the stop: int64 ``[193]``."""
