"""Channel runs: maximal stretches of a chunk's triples that are of one channel.

Shapes: B chunks, L triples, T runs of all chunks together.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order


@dataclasses.dataclass
class Runs:
    """Channel runs of a batch of chunks.

    Attributes:
        of_triple: int64 ``[B, L]``, the run of each triple.
        row: int64 ``[T]``, the chunk of each run.
        index: int64 ``[T]``, which run of its chunk it is.
        rank: int64 ``[T]``, less than 192 (stops and padding get the last rank: their features are never used).
        most: runs of the chunk that has most of them, or more than that.
    """

    of_triple: Tensor
    row: Tensor
    index: Tensor
    rank: Tensor
    most: int

    @classmethod
    def find(cls, ranks: Tensor) -> Runs:
        """Find the runs in the triples' ranks, int64 ``[B, L]``; the host reads how many there are."""
        fresh = torch.ones_like(ranks, dtype=torch.bool)
        fresh[:, 1:] = ranks[:, 1:] != ranks[:, :-1]
        of_triple = fresh.flatten().cumsum(0).view_as(ranks) - 1
        row, column = fresh.nonzero().unbind(1)
        index = (fresh.cumsum(1) - 1)[row, column]
        rank = ranks[row, column].clamp(max=order.NUM_CHANNELS - 1)
        return cls(of_triple, row, index, rank, int(index.max()) + 1)

    def padded(self) -> Runs:
        """Add runs of no triples, so that shapes take few values and kernels can be captured."""
        spare = round_up(len(self.row), least=64) - len(self.row)
        row, index, rank = (F.pad(x, (0, spare)) for x in (self.row, self.index, self.rank))
        return Runs(self.of_triple, row, index, rank, round_up(self.most, least=8))

    def to(self, device: torch.device | str) -> Runs:
        """Return the runs on another device."""
        tensors = (self.of_triple, self.row, self.index, self.rank)
        of_triple, row, index, rank = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Runs(of_triple, row, index, rank, self.most)


def round_up(count: int, least: int) -> int:
    """Round up by at most an eighth, to one of eight numbers per power of 2; small ones to ``least``, a power of 2."""
    step = max(least, 1 << max(0, (count - 1).bit_length() - 4)) if count > least else least
    return -(-count // step) * step
