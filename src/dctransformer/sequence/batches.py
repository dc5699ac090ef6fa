"""Which chunks a training step sees, and what it sees of them: decided by the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
from torch.utils.data import Dataset, Sampler

from dctransformer.codec.grid import Grid, flip_triples
from dctransformer.data.store import TripleStore
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.conditions import Conditions

Shuffle = Literal["all", "stretches"]
Starts = Literal["uniform", "early"]

FLOOR = 0.1
"""Least weight of a late chunk with early starts (second-hand from the paper's supplement)."""


class Visits:
    """Which items a step sees: each epoch visits every one once, shuffled by a key and the epoch's number."""

    def __init__(self, count: int, batch: int, *key: int):
        """Args: count: of items; batch: items a step; key: a seed and what tells this order from others."""
        self.count, self.batch, self.key = count, batch, key
        self._epoch: int | None = None

    def __call__(self, step: int, rows: range | None = None) -> np.ndarray:
        """Numbers of the items that some rows (None for all) of a step see, int64 ``[rows]``."""
        rows = range(self.batch) if rows is None else rows
        epochs, places = np.divmod(step * self.batch + np.array(rows, np.int64), self.count)
        return np.array([self._shuffled(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self.key, epoch]).permutation(self.count)
        return self._order


class ChunkSampler(Sampler[list[tuple[int, int]]]):
    """The (picture, chunk) pairs of every step, endlessly: each epoch visits every chunk once, shuffled.

    With ``starts="early"`` they are drawn instead, chunk k of K with a weight of max(0.1, (1 − k / K)³), as in the
    paper.

    With ``shuffle="all"`` a step's chunks come from anywhere. With ``"stretches"`` every row of the batch has a stretch
    of the data set to itself, as long as the others', and shuffles that: whoever makes some of the rows reads only
    their stretches, and what a step sees still does not depend on who makes which rows.
    """

    def __init__(
        self,
        store: TripleStore,
        stride: int,
        batch: int = 16,
        *,
        seed: int = 0,
        rows: range | None = None,
        shuffle: Shuffle = "all",
        starts: Starts = "uniform",
    ):
        """Count the chunks.

        Args:
            store: the pictures.
            stride: triples that a chunk predicts.
            batch: chunks a step.
            seed: decides the order.
            rows: those of each batch that iterating yields (a process's share); None for all.
            shuffle: over the whole set, or in a stretch for each row.
            starts: every chunk as often, or early ones more often (over the whole set).

        Raises:
            ValueError: there are fewer chunks than stretches, or no such shuffle or starts.
        """
        if starts not in ("uniform", "early") or (starts == "early" and shuffle != "all"):
            raise ValueError(f"starts {starts!r} must be uniform, or early with shuffle all")
        self.starts = starts
        if shuffle not in ("all", "stretches"):
            raise ValueError(f"shuffle {shuffle!r} must be all or stretches")
        self.batch, self.seed, self.shuffle = batch, seed, shuffle
        self.rows = range(batch) if rows is None else rows
        self.chunks = -(-(np.diff(store.offsets) + 1) // stride)
        """int64 ``[n]``: chunks of each picture, the one with the stop included."""
        self._ends = np.cumsum(self.chunks)
        if starts == "early":
            picture, chunk = self.items.T
            self._weights = np.cumsum(np.maximum(FLOOR, (1 - chunk / self.chunks[picture]) ** 3))
        if shuffle == "stretches" and self.total < batch:
            raise ValueError(f"{self.total} chunks make no {batch} stretches; give a smaller batch, or shuffle all")
        if shuffle == "all":
            self._visits = [Visits(self.total, batch, seed, 1)]
        else:
            bounds = [self.total * row // batch for row in range(batch + 1)]
            self._firsts = bounds[:-1]
            self._visits = [Visits(end - first, 1, seed, 4, row) for row, (first, end) in enumerate(pairwise(bounds))]

    @property
    def total(self) -> int:
        """Chunks of the data set."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def items(self) -> np.ndarray:
        """All (picture, chunk) pairs, int64 ``[total, 2]``."""
        return self._pairs(np.arange(self.total))

    def chosen(self, step: int, rows: range | None = None) -> np.ndarray:
        """The (picture, chunk) pairs of some rows (None for all) of a step: int64 ``[rows, 2]``."""
        rows = range(self.batch) if rows is None else rows
        if self.starts == "early":
            drawn = np.random.default_rng([self.seed, 5, step]).random(self.batch)[rows.start : rows.stop : rows.step]
            return self._pairs(np.searchsorted(self._weights, drawn * self._weights[-1], side="right"))
        if self.shuffle == "all":
            return self._pairs(self._visits[0](step, rows))
        return self._pairs(np.array([self._firsts[row] + self._visits[row](step)[0] for row in rows]))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Step after step, the own rows' pairs."""
        step = 0
        while True:
            yield [(int(picture), int(chunk)) for picture, chunk in self.chosen(step, self.rows)]
            step += 1

    def _pairs(self, places: np.ndarray) -> np.ndarray:
        """(picture, chunk) at places of the list of all chunks."""
        picture = np.searchsorted(self._ends, places, side="right")
        return np.stack([picture, places - self._ends[picture] + self.chunks[picture]], axis=1)


class ChunkBatches(Dataset[ChunkBatch]):
    """The batches of a training, by step number: mirrored, labels dropped, conditions drawn.

    Example:
        >>> batches = ChunkBatches(TripleStore.open("data"), chunk=128)  # doctest: +SKIP
        >>> loader = DataLoader(batches, batch_size=None, sampler=range(1000), num_workers=2)  # doctest: +SKIP
    """

    def __init__(
        self,
        store: TripleStore,
        chunk: int,
        overlap: int = 0,
        batch: int = 16,
        *,
        seed: int = 0,
        num_labels: int | None = None,
        flip: bool = True,
        label_dropout: float = 0.1,
        conditions: Conditions | None = None,
        rows: range | None = None,
        shuffle: Shuffle = "all",
        starts: Starts = "uniform",
    ):
        """Set the table.

        Args:
            store: the pictures.
            chunk: triples in a chunk, context included.
            overlap: triples of context.
            batch: chunks a step.
            seed: of the order, the flips, the dropped labels and the conditions.
            num_labels: classes that the model knows, those of the data if None; other labels become
                ``num_labels``, the null label.
            flip: mirror half of the pictures, exactly.
            label_dropout: part of the chunks that get the null label.
            conditions: what is known from the start; None for nothing.
            rows: those of each batch that are made (a process's share); None for all.
            shuffle: see `ChunkSampler`.
            starts: see there, too.
        """
        self.store, self.chunk, self.overlap = store, chunk, overlap
        self.sampler = ChunkSampler(store, chunk - overlap, batch, seed=seed, rows=rows, shuffle=shuffle, starts=starts)
        self.num_labels = len(store.info.labels) if num_labels is None else num_labels
        self.flip, self.label_dropout = flip, label_dropout
        self.conditions = conditions or Conditions(none=1, low=0, luma=0, region=0)
        self.grid = Grid.of_size(store.info.size, store.info.size)

    @property
    def items(self) -> np.ndarray:
        """All (picture, chunk) pairs, int64 ``[total, 2]``."""
        return self.sampler.items

    def chosen(self, step: int) -> np.ndarray:
        """(picture, chunk) pairs of a step, int64 ``[batch, 2]``."""
        return self.sampler.chosen(step)

    def __getitem__(self, step: int) -> ChunkBatch:
        """The batch of one step."""
        sampler, stride = self.sampler, self.chunk - self.overlap
        draw = np.random.default_rng([sampler.seed, 2, step]).random((sampler.batch, 2))
        spread = np.random.default_rng([sampler.seed, 6, step]).random(sampler.batch)
        noise = np.random.default_rng([sampler.seed, 3, step])
        # Drawn for all rows, so that no row depends on which others are made here.
        masks = [self.conditions.draw(self.grid, noise) for _ in range(sampler.batch)]
        sequences, index = [], []
        for row, (picture, chunk) in zip(sampler.rows, sampler.chosen(step, sampler.rows), strict=True):
            (flip, drop), (given, first) = draw[row], masks[row]
            triples = self.store.triples(int(picture))
            if self.flip and flip < 0.5:
                triples = flip_triples(triples, self.grid)
            label = int(self.store.labels[picture])
            if drop < self.label_dropout or not 0 <= label < self.num_labels:
                label = self.num_labels
            mask = {"hidden": ~given} if given is not None and first else {"given": given}
            sequence = Sequence.from_triples(triples, self.grid, label, **mask)
            sequences.append(sequence)
            # A condition changes the number of chunks; a uniform draw of the old ones stays uniform over the new ones.
            count = sequence.chunks(stride)
            index.append(min(int((int(chunk) + spread[row]) * count / int(sampler.chunks[picture])), count - 1))
        return cut_chunks(sequences, index, self.chunk, self.overlap)
