"""The inputs of a chunk's decoders: the context settled before it, and the place features of each channel run.

Shapes: B batch, L triples, N MCUs, P positions, D width, T channel runs, W place width.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from dctransformer.codec.grid import Grid
from dctransformer.model.context import States
from dctransformer.model.ops import take

POINTER = 64
"""Size of the pointer's queries and keys over encoder features."""

PLACE_POINTER = 8
"""Size of the pointer's queries and keys over place features, which change with every channel."""


@dataclasses.dataclass
class Context:
    """The encoder's output and everything else that was settled before a chunk, computed once per chunk."""

    grid: Grid
    labels: Tensor
    """int64 ``[B]``."""
    encoded: Tensor
    """Encoder output, ``[B, N, D]``."""
    memory: list[list[tuple[Tensor, Tensor]]]
    """Cross-attention keys and values of the channel, position and value decoder, one pair per layer."""
    at_place: Tensor
    """The encoder's share of the value decoder's input, ``[B, N, D]``."""
    place_keys: Tensor
    """Pointer keys, ``[B, P, POINTER]``."""
    previous_place: Tensor
    """Embedding of each position where the triple before is read, ``[P, D]``."""
    chosen_place: Tensor
    """Embedding of each position where the chosen one is read, ``[P, D]``."""
    neighbours: Tensor
    """Positions around each, from `dctransformer.model.context.neighbour_table`, int64 ``[2, 8, P]``."""
    planes: Tensor
    """Coefficients of the partial DCT image by rank, int16 ``[B, 192, P]``."""
    given: Tensor
    """Places whose coefficients, zeros too, are settled from the start, bool ``[B, 192, P]``."""
    opened: Tensor
    """Places that may be chosen at all, bool ``[B, 192, P]``."""
    last_open: Tensor
    """The last open place of each rank, −1 for none, int64 ``[B, 192]``."""
    states: States | None
    """Local-context states before the chunk (None without local context)."""
    encoded_places: Tensor | None
    """The encoder's share of the place features, ``[B, P, 2 W]``."""


@dataclasses.dataclass
class Places:
    """The place features and scores that the position and value decisions of some channel runs read.

    Attributes:
        rank: int64 ``[T]``, the channel of each run.
        same: fp32 ``[T, P]``, the run's own channel, as far as it is settled.
        of_triple: int64 ``[B, L]``, the run of each decision.
        features: ``[T, P, W]``; None without local context.
        keys: of the features for the pointer, ``[T, P, PLACE_POINTER]``.
        base: scores by the features alone, ``[T, P]``.
        one_each: whether each row has one decision and one run, in the same order.
    """

    rank: Tensor
    same: Tensor
    of_triple: Tensor
    features: Tensor | None = None
    keys: Tensor | None = None
    base: Tensor | None = None
    one_each: bool = False

    def at(self, x: Tensor) -> Tensor:
        """Select the entries of each decision's run: ``[T, …]`` to ``[B, L, …]``."""
        return x[:, None] if self.one_each else x[self.of_triple]

    def same_at(self, position: Tensor) -> Tensor:
        """Return the same channel's values at each decision's positions, ``[B, L, …]``; outside the picture, any."""
        count = self.same.shape[1]
        run = self.of_triple.view(*self.of_triple.shape, *[1] * (position.ndim - 2))
        return take(self.same, run * count + position.clamp(max=count - 1))
