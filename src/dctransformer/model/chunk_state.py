"""What the decoders of a chunk read: the context settled before it, and the places as each channel run sees them.

Shapes: B batch, L triples, N MCUs, P positions, D width, T channel runs, W place width.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from dctransformer.codec.grid import Grid
from dctransformer.model.context import States
from dctransformer.model.ops import taken

POINTER = 64
"""Size of the pointer's queries and keys over encoder features."""

PLACE_POINTER = 8
"""Size of the pointer's queries and keys over place features, which change with every channel."""


@dataclasses.dataclass
class Context:
    """All that a chunk's decoders read of what was settled before it (made once a chunk)."""

    grid: Grid
    labels: Tensor
    """int64 ``[B]``."""
    encoded: Tensor
    """Encoder output, ``[B, N, D]``."""
    memory: list[list[tuple[Tensor, Tensor]]]
    """Cross-attention keys and values of the channel, position and value decoder, a layer each."""
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
    """The last of them a rank, int64 ``[B, 192]``."""
    states: States | None
    """Local-context states before the chunk (None without local context)."""
    encoded_places: Tensor | None
    """The encoder's share of the place features, ``[B, P, 2 W]``."""


@dataclasses.dataclass
class Places:
    """The places as the position and value decisions of some channel runs see them.

    Attributes:
        rank: int64 ``[T]``, the channel of each run.
        same: fp32 ``[T, P]``, the run's own channel, as far as it is settled.
        of_triple: int64 ``[B, L]``, the run of each decision.
        features: ``[T, P, W]``; None without local context.
        keys: of the features for the pointer, ``[T, P, PLACE_POINTER]``.
        base: scores by the features alone, ``[T, P]``.
        one_each: whether row b's only decision belongs to run b.
    """

    rank: Tensor
    same: Tensor
    of_triple: Tensor
    features: Tensor | None = None
    keys: Tensor | None = None
    base: Tensor | None = None
    one_each: bool = False

    def at(self, x: Tensor) -> Tensor:
        """What belongs to the run of each decision: ``[T, …]`` to ``[B, L, …]``."""
        return x[:, None] if self.one_each else x[self.of_triple]

    def same_at(self, position: Tensor) -> Tensor:
        """The same channel's values at positions of each decision, ``[B, L, …]``; anything outside the picture."""
        count = self.same.shape[1]
        run = self.of_triple.view(*self.of_triple.shape, *[1] * (position.ndim - 2))
        return taken(self.same, run * count + position.clamp(max=count - 1))
