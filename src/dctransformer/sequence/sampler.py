"""Which pictures, windows and chunks a training step sees: decided by the seed and the step's number alone.

A step's chunks are of one grid, so that nothing needs to be padded: pictures (or their windows) of one grid make a
*bucket*. Every chunk of every window has the same share of the training:

* *Whole pictures.* A bucket of n chunks gets n / batch steps of an epoch. As that is seldom a whole number, it has had
  ⌊e · n / batch⌋ steps when e epochs are over; their order within an epoch is shuffled. In its own steps a bucket goes
  through its chunks epoch by epoch, so that none is left out, even if they are fewer than a batch.
* *Windows.* Picture i has W windows, window w of it K(w) chunks, which is not known before the picture is read. A
  candidate is drawn from all pictures with the weight M(i), an upper bound on the mean K̄(i) = Σ K(w) / W that follows
  from the picture's number of triples alone; it is accepted with probability K̄(i) / M(i), or else another is drawn.
  Then one of the Σ K(w) chunks in the picture's windows is drawn uniformly. So a chunk of a window of picture i has
  the weight M(i) · K̄(i) / M(i) · 1 / Σ K(w) = 1 / W: in expectation a step's loss is the mean over pictures and their
  windows, drawn uniformly, of the windows' bits, up to a constant factor. The first candidate of a row comes from an
  epoch as above; where there are several buckets, a step's bucket is found in the same way, by a picture that is
  accepted.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.data.store import TripleStore
from dctransformer.sequence.windows import chunks_by_window, most_chunks, window_grids

Shuffle = Literal["all", "stretches"]
Starts = Literal["uniform", "early"]

FLOOR = 0.1
"""Least weight of a late chunk with early starts (second-hand from the paper's supplement)."""


ESTIMATE_PICTURES = 512
"""Pictures from which the mean number of chunks in a window is estimated."""


class Visits:
    """The order of items over the steps: each epoch visits every item once, shuffled by a key and its number."""

    def __init__(self, count: int, batch: int, *key: int):
        """Set the order.

        Args:
            count: number of items.
            batch: items per step.
            key: a seed, and numbers that distinguish this order from others.
        """
        self.count, self.batch, self.key = count, batch, key
        self._epoch: int | None = None

    def __call__(self, step: int, rows: range | None = None) -> np.ndarray:
        """Return the numbers of the items that some rows (None for all) of a step see, int64 ``[rows]``."""
        rows = range(self.batch) if rows is None else rows
        epochs, places = np.divmod(step * self.batch + np.array(rows, np.int64), self.count)
        return np.array([self._shuffled(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self.key, epoch]).permutation(self.count)
        return self._order


@dataclasses.dataclass(frozen=True)
class Draw:
    """The chunk that a row of a batch gets.

    Attributes:
        picture: its number in the store.
        chunk: which of the window's chunks.
        chunks: number of the window's chunks.
        grid: of the window.
        top: the window's first row of MCUs in the picture.
        left: its first column.
    """

    picture: int
    chunk: int
    chunks: int
    grid: Grid
    top: int = 0
    left: int = 0


class _Bucket:
    """Pictures whose windows have one grid, their chunks one after another, and the order in which these come."""

    def __init__(self, number: int, grid: Grid, pictures: np.ndarray, chunks: np.ndarray, sampler: ChunkSampler):
        """Lay out the chunks.

        Args:
            number: of the bucket.
            grid: of its windows.
            pictures: int64 ``[n]``, numbers in the store.
            chunks: int64 ``[n]``, of each picture.
            sampler: whose batch, seed, shuffle and starts are used.
        """
        self.grid, self.pictures, self.chunks = grid, pictures, chunks
        self.ends = np.cumsum(chunks)
        self.total = int(self.ends[-1])
        batch, seed = sampler.batch, sampler.seed
        if sampler.shuffle == "all":
            self._visits = [Visits(self.total, batch, *((seed, 9, number) if number else (seed, 1)))]
            self._stretches = [(0, self.total)] * batch
        else:
            bounds = [self.total * row // batch for row in range(batch + 1)]
            # A bucket with fewer chunks than rows has its chunks in several rows.
            self._stretches = [(first, max(end, first + 1)) for first, end in pairwise(bounds)]
            self._visits = [
                Visits(end - first, 1, *((seed, 10, number, row) if number else (seed, 4, row)))
                for row, (first, end) in enumerate(self._stretches)
            ]
        if sampler.starts == "early":
            chunk = self.pairs(np.arange(self.total))[:, 1]
            counts = np.repeat(chunks, chunks)
            self.weights = np.cumsum(np.maximum(FLOOR, (1 - chunk / counts) ** 3))

    def pairs(self, places: np.ndarray) -> np.ndarray:
        """Return the (picture, chunk) pairs at places in the list of the bucket's chunks: int64 ``[n, 2]``."""
        member = np.searchsorted(self.ends, places, side="right")
        return np.stack([self.pictures[member], places - self.ends[member] + self.chunks[member]], axis=1)

    def visited(self, step: int, rows: range) -> np.ndarray:
        """Return the places that some rows of the bucket's step of this number see, int64 ``[rows]``."""
        if len(self._visits) == 1:
            return self._visits[0](step, rows)
        return np.array([self._stretches[row][0] + self._visits[row](step)[0] for row in rows])

    def any_place(self, row: int, noise: np.random.Generator) -> int:
        """Return a place that a row may see, drawn independently of all others."""
        return int(noise.integers(*self._stretches[row]))


class ChunkSampler(Sampler[list[tuple[int, int]]]):
    """The chunks of every step, endlessly: of whole pictures each epoch visits every chunk once, shuffled.

    With ``starts="early"`` they are drawn instead, chunk k of K with a weight of max(0.1, (1 − k / K)³), as in the
    paper.

    With ``shuffle="all"`` a step's chunks come from anywhere. With ``"stretches"`` every row of the batch has a stretch
    of the data set to itself, as long as the others', and shuffles that: a process that makes some of the rows reads
    only their stretches, and a step's chunks still do not depend on which process makes which rows.
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
        window: Grid | None = None,
        texture: int = order.NUM_CHANNELS,
    ):
        """Count the chunks.

        Args:
            store: the pictures.
            stride: triples that a chunk predicts.
            batch: chunks per step.
            seed: decides the order.
            rows: those of each batch that iterating yields (a process's share); None for all.
            shuffle: over the whole set, or in a stretch for each row.
            starts: every chunk as often, or early ones more often (of whole pictures, over the whole set).
            window: grid of the windows that are cut out of larger pictures; None for whole pictures.
            texture: first rank that is not listed as triples.

        Raises:
            ValueError: there are fewer chunks than stretches, the window is larger than every picture, or there is no
                such shuffle or starts.
        """
        if starts not in ("uniform", "early") or (starts == "early" and shuffle != "all"):
            raise ValueError(f"starts {starts!r} must be uniform, or early with shuffle all")
        if starts == "early" and window is not None:
            raise ValueError("early starts are for whole pictures; leave window out, or starts at uniform")
        if shuffle not in ("all", "stretches"):
            raise ValueError(f"shuffle {shuffle!r} must be all or stretches")
        self.store, self.stride, self.batch, self.seed = store, stride, batch, seed
        self.shuffle, self.starts = shuffle, starts
        self.rows = range(batch) if rows is None else rows
        pictures, grids = window_grids(store, None), window_grids(store, window)
        self._listed = store.listed(texture)
        self.chunks = most_chunks(self._listed, pictures, grids, stride)
        """int64 ``[n]``: chunks of each picture, the one with the stop included; with windows the bound M."""
        self.windowed = bool((grids != pictures).any())
        """Whether some pictures are larger than their windows."""
        sides, bucket, counts = np.unique(grids, axis=0, return_inverse=True, return_counts=True)
        self.buckets = [
            _Bucket(number, Grid.shared(*sides[b].tolist()), np.flatnonzero(bucket.ravel() == b),
                    self.chunks[bucket.ravel() == b], self)
            for number, b in enumerate(np.argsort(-counts, kind="stable"))
        ]  # fmt: skip
        if shuffle == "stretches" and self.total < batch:
            raise ValueError(f"{self.total} chunks make no {batch} stretches; give a smaller batch, or shuffle all")
        self.mean_chunks = self._mean_chunks(grids)
        """Chunks of a picture on average; with windows, of a window (estimated from some of the pictures)."""
        self._sizes = np.array([bucket.total for bucket in self.buckets], np.int64)
        self._epoch: int | None = None

    @property
    def total(self) -> int:
        """Chunks of the data set."""
        return sum(bucket.total for bucket in self.buckets)

    @property
    def items(self) -> np.ndarray:
        """All (picture, chunk) pairs, bucket by bucket, int64 ``[total, 2]``."""
        pairs = [bucket.pairs(np.arange(bucket.total)) for bucket in self.buckets]
        return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)

    def chosen(self, step: int, rows: range | None = None) -> np.ndarray:
        """Return the (picture, chunk) pairs of some rows (None for all) of a step: int64 ``[rows, 2]``."""
        return np.array([(draw.picture, draw.chunk) for draw in self.draws(step, rows)], np.int64)

    def draws(self, step: int, rows: range | None = None) -> list[Draw]:
        """Return the chunks of some rows (None for all) of a step; they have one grid."""
        rows = range(self.batch) if rows is None else rows
        number, turn = self._bucket_of(step)
        bucket = self.buckets[number]
        if self.starts == "early":
            drawn = np.random.default_rng([self.seed, 5, step]).random(self.batch)[rows.start : rows.stop : rows.step]
            places = np.searchsorted(bucket.weights, drawn * bucket.weights[-1], side="right")
        else:
            places = bucket.visited(turn, rows)
        pairs = bucket.pairs(places)
        if self.windowed:
            return [self._window(bucket, step, row, int(p), int(c)) for row, (p, c) in zip(rows, pairs, strict=True)]
        return [Draw(int(p), int(c), int(self.chunks[p]), bucket.grid) for p, c in pairs]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the (picture, chunk) pairs of the sampler's rows, step after step."""
        step = 0
        while True:
            yield [(int(picture), int(chunk)) for picture, chunk in self.chosen(step, self.rows)]
            step += 1

    # Windows ----------------------------------------------------------------------------------------------------------

    def _chunks_by_window(self, picture: int, grid: Grid) -> np.ndarray:
        start = int(self.store.offsets[picture])
        span = slice(start, start + int(self._listed[picture]))
        return chunks_by_window(self.store.positions[span], self.store.grid(picture), grid, self.stride)

    def _mean_chunks(self, grids: np.ndarray) -> float:
        if not self.windowed:
            return self.total / max(len(self.chunks), 1)
        chosen = np.random.default_rng([self.seed, 14]).permutation(len(self.chunks))[:ESTIMATE_PICTURES]
        means = [self._chunks_by_window(int(i), Grid.shared(*grids[i].tolist())).mean() for i in chosen]
        return float(np.mean(means))

    def _accepts(self, picture: int, chunks: np.ndarray, noise: np.random.Generator) -> bool:
        """Return whether a candidate stays: with probability K̄ / M."""
        return noise.random() * chunks.size * int(self.chunks[picture]) < int(chunks.sum())

    def _window(self, bucket: _Bucket, step: int, row: int, picture: int, chunk: int) -> Draw:
        """Draw one of the chunks in the windows of the first candidate that is accepted."""
        noise = np.random.default_rng([self.seed, 11, step, row])
        while True:
            if self.store.grid(picture) == bucket.grid:
                return Draw(picture, chunk, int(self.chunks[picture]), bucket.grid)
            chunks = self._chunks_by_window(picture, bucket.grid)
            if self._accepts(picture, chunks, noise):
                break
            ((picture, chunk),) = bucket.pairs(np.array([bucket.any_place(row, noise)])).tolist()
        ends = chunks.ravel().cumsum()
        place = int(noise.integers(ends[-1]))
        window = int(np.searchsorted(ends, place, side="right"))
        count = int(chunks.flat[window])
        top, left = divmod(window, chunks.shape[1])
        return Draw(picture, place - int(ends[window]) + count, count, bucket.grid, top, left)

    # Buckets ----------------------------------------------------------------------------------------------------------

    def grid(self, step: int) -> Grid:
        """Return the grid of a step's chunks."""
        return self.buckets[self._bucket_of(step)[0]].grid

    def _bucket_of(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many of its steps came before (the step itself if draws are random)."""
        if len(self.buckets) == 1:
            return 0, step
        if self.starts == "early":
            ends = np.cumsum([bucket.weights[-1] for bucket in self.buckets])
            drawn = np.random.default_rng([self.seed, 7, step]).random()
            return int(np.searchsorted(ends, drawn * ends[-1], side="right")), step
        if self.windowed:
            return self._accepted_bucket(np.random.default_rng([self.seed, 8, step])), step
        # The last epoch that begins at or before the step; its beginning is counted in whole numbers.
        epoch = bisect.bisect_right(range(step * self.batch // self.total + len(self.buckets) * self.batch + 2), step,
                                    key=lambda e: int(self._begun(e).sum())) - 1  # fmt: skip
        begun = self._begun(epoch)
        if self._epoch != epoch:
            steps = np.repeat(np.arange(len(begun)), self._begun(epoch + 1) - begun)
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, 12, epoch]).permutation(steps)
            self._turns = np.empty_like(steps)
            # Steps of one bucket are neighbours in ``steps``, and so after a stable sort of their order.
            self._turns[self._order.argsort(kind="stable")] = np.arange(len(steps)) - np.searchsorted(steps, steps)
        place = step - int(begun.sum())
        number = int(self._order[place])
        return number, int(begun[number] + self._turns[place])

    def _begun(self, epoch: int) -> np.ndarray:
        """Return the steps that each bucket has had before an epoch, int64 ``[buckets]``."""
        return epoch * self._sizes // self.batch

    def _accepted_bucket(self, noise: np.random.Generator) -> int:
        """Return the bucket of the first picture that is accepted."""
        ends = np.cumsum(self._sizes)
        while True:
            place = int(noise.integers(ends[-1]))
            number = int(np.searchsorted(ends, place, side="right"))
            bucket = self.buckets[number]
            picture = int(bucket.pairs(np.array([place - ends[number] + bucket.total]))[0, 0])
            if self.store.grid(picture) == bucket.grid:
                return number
            if self._accepts(picture, self._chunks_by_window(picture, bucket.grid), noise):
                return number
