"""State of the texture decisions: pictures as far as they are settled, and the channels that are being decided.

Shapes: B pictures, T channel decisions (of any of the pictures), N MCUs, P positions, H = P / 2 places of one colour,
C = 192 ranks, W place width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from dctransformer.codec.grid import Grid, cached_by_grid, outside_inference
from dctransformer.codec.triples import gather
from dctransformer.model.legality import open_places
from dctransformer.sequence.texture import TextureBatch

Occupancy = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Decides on the occupancy of one colour: see `Texture.decide`."""

Values = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Decides on the values of one colour: see `Texture.decide`."""


@dataclasses.dataclass
class TextureState:
    """B pictures during the decisions about their texture: what is settled, and what is open.

    Attributes:
        coefficients: int16 ``[B, N, 6, 64]``; may hold coefficients that a decision must not see: each decision sees
            the given ones and those of lower ranks.
        given: bool ``[B, N, 6, 64]``, settled from the start, zeros too.
        hidden: bool ``[B, N, 6, 64]``, neither known nor to be generated (their coefficients are 0).
        labels: int64 ``[B]``.
        grid: the MCU grid.
        opened: bool ``[B, C, P]``, places that may hold a coefficient to be generated.
        planes: int16 ``[B, C, P]``, the coefficients by rank.
        given_planes: bool ``[B, C, P]``, the given ones, zeros included.
    """

    coefficients: Tensor
    given: Tensor
    hidden: Tensor
    labels: Tensor
    grid: Grid
    opened: Tensor = dataclasses.field(init=False)
    planes: Tensor = dataclasses.field(init=False)
    given_planes: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """List the coefficients by rank and position."""
        self.opened = open_places(gather(self.given | self.hidden, self.grid), self.grid)
        self.planes = gather(self.coefficients, self.grid)
        self.given_planes = gather(self.given, self.grid)

    @classmethod
    def of(cls, batch: TextureBatch) -> TextureState:
        """Return the pictures of a batch."""
        return cls(batch.coefficients, batch.given, batch.hidden, batch.labels, batch.grid)

    @property
    def used(self) -> Tensor:
        """Channels with a coefficient at an open place: bool ``[B, C]``."""
        return (self.opened & (self.planes != 0)).any(-1)


@dataclasses.dataclass
class Channels:
    """T channels that are being decided: their place features, and what is settled of the channels themselves.

    Attributes:
        rank: int64 ``[T]``.
        features: ``[T, P, W]``.
        opened: bool ``[T, P]``, places to be decided.
        settled: bool ``[T, P]``, places whose occupancy is known; it grows from pass to pass.
        values: fp32 ``[T, P]``, known values; 0 where a place is empty or its value is not known.
        occupied: bool ``[T, P]``, places known to hold a coefficient.
        kind: 0 if all channels are known to be luma, 1 if all are chroma: then ``features`` has the N places of chroma
            alone, and H is half of them.
        whole: everything is computed at all places, so that no channel's numbers depend on the others' to the last bit.
    """

    rank: Tensor
    features: Tensor
    opened: Tensor
    settled: Tensor
    values: Tensor
    occupied: Tensor
    kind: int | None = None
    whole: bool = False


def settle(
    channels: Channels, where: Tensor, chosen: Tensor, *, occupied: Tensor | None = None, values: Tensor | None = None
) -> Channels:
    """Record the occupancy or the values of one colour as known.

    Args:
        channels: what is known so far.
        where: int64 ``[T, H]``, positions.
        chosen: bool ``[T, H]``, which of them become known.
        occupied: bool ``[T, H]``, whether they hold a coefficient.
        values: fp32 ``[T, H]``, their values.
    """

    def put(into: Tensor, what: Tensor) -> Tensor:
        old = into.gather(1, where)
        return into.scatter(1, where, torch.where(chosen, what.to(into.dtype), old))

    if occupied is not None:
        return dataclasses.replace(
            channels, settled=put(channels.settled, torch.ones_like(chosen)), occupied=put(channels.occupied, occupied)
        )
    assert values is not None
    return dataclasses.replace(channels, values=put(channels.values, values))


@cached_by_grid
@outside_inference
def checkerboard(grid: Grid, device: torch.device) -> Tensor:
    """Return the positions of both colours for luma and chroma: int64 ``[2 (luma, chroma), 2 (colour), H]``.

    Chroma has a quarter of the places. Other positions, where chroma never has a coefficient, fill up the rest, so
    that no position occurs twice.
    """
    half = grid.positions // 2
    luma = (grid.row + grid.col) % 2
    chroma = torch.where(grid.is_chroma_place, (grid.row // 2 + grid.col // 2) % 2, -1)
    filling = (chroma < 0).nonzero()[:, 0]
    index = torch.empty(2, 2, half, dtype=torch.int64)
    for kind, colour_of_place in enumerate((luma, chroma)):
        for colour in (0, 1):
            places = (colour_of_place == colour).nonzero()[:, 0]
            index[kind, colour] = torch.cat([places, filling])[:half] if kind else places
    return index.to(device)


def chroma_half(grid: Grid, colour: int) -> int:
    """Return the number of chroma places of one colour of the checkerboard; at least 1, as no tensor may be empty."""
    return max(1, (grid.mcus + grid.mcus % 2 * (1 - 2 * colour)) // 2)
