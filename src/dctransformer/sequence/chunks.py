"""Chunks: a sequence of triples is cut into partial DCT images and the triples to predict next.

Shapes: B chunks, L triples of a chunk, N MCUs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.codec.triples import ranked, scatter
from dctransformer.sequence.runs import Runs, round_up

if TYPE_CHECKING:
    from dctransformer.sequence.texture import TextureBatch

START = order.NUM_CHANNELS + 1
"""Rank of the previous triple where there is none yet."""


@dataclasses.dataclass
class Sequence:
    """The triples of one picture that are to be generated, in rank space and with the final stop.

    Attributes:
        ranks: int64 ``[L]``, channels as ranks; the last is `order.STOP`.
        positions: int64 ``[L]``; 0 for the stop.
        values: int64 ``[L]``; 0 for the stop.
        given: bool ``[N, 6, 64]``, coefficients that are settled from the start, or None for none.
        known: int16 ``[N, 6, 64]``, their values (0 elsewhere), or None for none.
        hidden: bool ``[N, 6, 64]``, coefficients that are neither known nor to be listed, or None for none.
        label: class number.
        grid: where the positions lie.
        coefficients: int16 ``[N, 6, 64]``, the whole picture, texture too, but for what is hidden; None if it is not
            known (a picture being generated).
    """

    ranks: Tensor
    positions: Tensor
    values: Tensor
    given: Tensor | None
    known: Tensor | None
    label: int
    grid: Grid
    hidden: Tensor | None = None
    coefficients: Tensor | None = None

    @classmethod
    def from_triples(
        cls, triples: Tensor, grid: Grid, label: int, given: Tensor | None = None, hidden: Tensor | None = None
    ) -> Sequence:
        """List what ``given`` and ``hidden`` leave open of a picture's triples.

        Args:
            triples: int ``[L, 3]`` (channel, position, value) in generation order.
            grid: where the positions lie.
            label: class number.
            given: bool ``[N, 6, 64]``, coefficients that are settled from the start; None for none.
            hidden: bool ``[N, 6, 64]``, coefficients that are neither known nor to be listed; None for none.
        """
        rank, position, value = ranked(triples)
        coefficients = scatter(rank, position, value, grid)
        if hidden is not None:
            coefficients[hidden] = 0
        known = None if given is None else torch.where(given, coefficients, 0)
        for mask in (given, hidden):
            if mask is not None:
                listed = ~mask.flatten()[grid.slot(rank, position)]
                rank, position, value = rank[listed], position[listed], value[listed]
        stop, zero = torch.tensor([order.STOP]), torch.tensor([0])
        return cls(
            torch.cat([rank, stop]),
            torch.cat([position, zero]),
            torch.cat([value, zero]),
            given,
            known,
            label,
            grid,
            hidden,
            coefficients,
        )

    def structure(self, texture: int) -> Sequence:
        """Keep the triples that are listed by a model that decides on whole channels from the rank ``texture`` on."""
        listed = (self.ranks < texture) | (self.ranks == order.STOP)
        if bool(listed.all()):
            return self
        ranks, positions, values = (x[listed] for x in (self.ranks, self.positions, self.values))
        return dataclasses.replace(self, ranks=ranks, positions=positions, values=values)

    @property
    def closed(self) -> Tensor:
        """Coefficients that are never to be listed: bool ``[N, 6, 64]``."""
        closed = torch.zeros(self.grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.bool)
        for mask in (self.given, self.hidden):
            if mask is not None:
                closed |= mask
        return closed

    def __len__(self) -> int:
        """Return the number of triples, the stop included."""
        return len(self.ranks)

    def chunks(self, stride: int) -> int:
        """Return the number of chunks that predict it, ``stride`` triples each."""
        return math.ceil(len(self) / stride)


@dataclasses.dataclass
class ChunkBatch:
    """The model's input for B chunks.

    Attributes:
        coefficients: int16 ``[B, N, 6, 64]``, the partial DCT image: all that comes before the first predicted triple.
        settled: bool ``[B, N, 6, 64]``, coefficients whose value (zero too) is known by then.
        closed: bool ``[B, N, 6, 64]``, coefficients that are never listed: given from the start, or hidden.
        ranks: int64 ``[B, L + 1]``; index 0 is the triple before the chunk (`START` if there is none), the others
            are the chunk's.
        positions: int64 ``[B, L + 1]``.
        values: int64 ``[B, L + 1]``.
        context: int64 ``[B]``, triples of the chunk that are overlap: seen, but not predicted.
        lengths: int64 ``[B]``, triples of the chunk before padding.
        labels: int64 ``[B]``.
        grid: the MCU grid, one for all.
        texture: textures that are trained in the same step, of some of the pictures; None for none.
        offset: the row and the column of MCUs in the model's position tables where the pictures lie.
        runs: the chunks' channel runs; None where they are not known yet.
        scored: whether the model scores the chunks, or only the textures.
    """

    coefficients: Tensor
    settled: Tensor
    closed: Tensor
    ranks: Tensor
    positions: Tensor
    values: Tensor
    context: Tensor
    lengths: Tensor
    labels: Tensor
    grid: Grid
    texture: TextureBatch | None = None
    offset: tuple[int, int] = (0, 0)
    runs: Runs | None = None
    scored: bool = True

    @property
    def predicted(self) -> Tensor:
        """Which triples count: bool ``[B, L]``."""
        index = torch.arange(self.ranks.shape[1] - 1, device=self.ranks.device)
        return (index >= self.context[:, None]) & (index < self.lengths[:, None])

    def to(self, device: torch.device | str) -> ChunkBatch:
        """Move the batch to a device, and with it the channel runs, which a GPU would make the host wait for."""
        texture = None if self.texture is None else self.texture.to(device)
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True), texture)
        runs = self.runs
        if runs is None and self.ranks.device.type == "cpu" != torch.device(device).type and self.ranks.shape[1] > 1:
            runs = Runs.find(self.ranks[:, 1:]).padded()
        return dataclasses.replace(moved, runs=None if runs is None else runs.to(device))

    def rows(self, index: Tensor | slice) -> ChunkBatch:
        """Select some of the chunks; a slice also gets its part of the textures (all slices together get all)."""
        texture = None
        if self.texture is not None and isinstance(index, slice):
            start, stop, _ = index.indices(len(self.labels))
            count = len(self.texture.labels)
            texture = self.texture.rows(slice(start * count // len(self.labels), stop * count // len(self.labels)))
        return self._each(lambda tensor: tensor[index], texture)

    def trimmed(self) -> ChunkBatch:
        """Drop padding beyond the longest chunk."""
        end = int(self.lengths.max()) + 1
        ranks, positions, values = (x[:, :end] for x in (self.ranks, self.positions, self.values))
        return dataclasses.replace(self, ranks=ranks, positions=positions, values=values, runs=None)

    def padded(self, chunk: int) -> ChunkBatch:
        """Find the runs, and pad chunks to one of few lengths, but to no more than ``chunk`` triples."""
        length = self.ranks.shape[1] - 1
        spare = max(0, min(round_up(length, least=64), chunk) - length)
        ranks, positions, values = (
            F.pad(x, (0, spare), value=fill)
            for x, fill in ((self.ranks, order.STOP), (self.positions, 0), (self.values, 0))
        )
        runs = Runs.find(ranks[:, 1:]).padded()
        return dataclasses.replace(self, ranks=ranks, positions=positions, values=values, runs=runs)

    def _each(self, change: Callable[[Tensor], Tensor], texture: TextureBatch | None) -> ChunkBatch:
        others = ("grid", "texture", "offset", "runs", "scored")
        names = [f.name for f in dataclasses.fields(self) if f.name not in others]
        return dataclasses.replace(self, **{n: change(getattr(self, n)) for n in names}, texture=texture, runs=None)


def settled_before(rank: int, position: int, grid: Grid) -> Tensor:
    """Return the slots that come at or before the triple (rank, position) in the order: bool ``[N, 6, 64]``."""
    same = (rank == RANK_OF_SLOT) & (grid.block_position[:, :, None] <= position)
    return (rank > RANK_OF_SLOT) | same


def partial_image(sequence: Sequence, start: int) -> tuple[Tensor, Tensor]:
    """Return what is known before triple ``start``: coefficients int16 and settled bool, ``[N, 6, 64]`` each."""
    grid = sequence.grid
    shape = (grid.mcus, order.BLOCKS_PER_MCU, 64)
    coefficients = torch.zeros(shape, dtype=torch.int16) if sequence.known is None else sequence.known.clone()
    settled = torch.zeros(shape, dtype=torch.bool) if sequence.given is None else sequence.given.clone()
    if start:
        ranks, positions = sequence.ranks[:start], sequence.positions[:start]
        scatter(ranks, positions, sequence.values[:start], grid, into=coefficients)
        settled |= settled_before(int(ranks[-1]), int(positions[-1]), grid)
    if sequence.hidden is not None:
        settled &= ~sequence.hidden
    return coefficients, settled


def cut_chunks(sequences: list[Sequence], index: list[int], chunk: int, overlap: int) -> ChunkBatch:
    """Cut chunk ``index[b]`` out of ``sequences[b]`` and batch the chunks (paper, section 4.1).

    Chunk k predicts the triples ``k·stride … (k + 1)·stride − 1``, with ``stride = chunk − overlap``; it is preceded
    by up to ``overlap`` triples of context, which the partial DCT image holds too, so that they must not be predicted.

    Args:
        sequences: B sequences on one grid.
        index: which chunk of each.
        chunk: triples in a chunk, context included.
        overlap: triples of context.

    Returns:
        The batch, padded to its longest chunk.
    """
    stride = chunk - overlap
    first = [k * stride for k in index]
    begin = [max(0, f - overlap) for f in first]
    end = [min(len(s), f + stride) for s, f in zip(sequences, first, strict=True)]
    lengths = torch.tensor([e - b for b, e in zip(begin, end, strict=True)])
    longest = int(lengths.max())
    shape = (len(sequences), longest + 1)
    ranks = torch.full(shape, order.STOP)
    positions, values = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    partial = []
    for row, (s, f, b, e) in enumerate(zip(sequences, first, begin, end, strict=True)):
        partial.append(partial_image(s, f))
        if b:
            b -= 1  # the triple before the chunk
            offset = 0
        else:
            ranks[row, 0] = START
            offset = 1
        span = slice(offset, offset + e - b)
        ranks[row, span], positions[row, span], values[row, span] = s.ranks[b:e], s.positions[b:e], s.values[b:e]
    coefficients, settled = (torch.stack(part) for part in zip(*partial, strict=True))
    return ChunkBatch(
        coefficients=coefficients,
        settled=settled,
        closed=torch.stack([s.closed for s in sequences]),
        ranks=ranks,
        positions=positions,
        values=values,
        context=torch.tensor([f - b for f, b in zip(first, begin, strict=True)]),
        lengths=lengths,
        labels=torch.tensor([s.label for s in sequences]),
        grid=sequences[0].grid,
    )
