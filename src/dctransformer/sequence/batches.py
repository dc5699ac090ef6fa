"""The batches of a training: what a step sees of its chunks, decided by the seed and the step's number alone."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from dctransformer.codec.grid import Grid, crop_triples, flip_triples
from dctransformer.data.store import TripleStore
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.conditions import Conditions
from dctransformer.sequence.sampler import ChunkSampler, Shuffle, Starts


class ChunkBatches(Dataset[ChunkBatch]):
    """The batches of a training, by step number: mirrored, labels dropped, conditions drawn; each of one grid.

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
        window: Grid | None = None,
    ):
        """Count the chunks.

        Args:
            store: the pictures.
            chunk: triples in a chunk, context included.
            overlap: triples of context.
            batch: chunks per step.
            seed: of the order, the windows, the flips, the dropped labels and the conditions.
            num_labels: classes that the model knows, those of the data if None; other labels become
                ``num_labels``, the null label.
            flip: mirror half of the pictures, exactly.
            label_dropout: part of the chunks that get the null label.
            conditions: what is known from the start; None for nothing.
            rows: those of each batch that are made (a process's share); None for all.
            shuffle: see `ChunkSampler`.
            starts: see there, too.
            window: grid of the windows that are cut out of larger pictures; None for whole pictures.

        Raises:
            ValueError: as `ChunkSampler`.
        """
        self.store, self.chunk, self.overlap = store, chunk, overlap
        self.sampler = ChunkSampler(
            store, chunk - overlap, batch, seed=seed, rows=rows, shuffle=shuffle, starts=starts, window=window
        )
        self.num_labels = len(store.info.labels) if num_labels is None else num_labels
        self.flip, self.label_dropout = flip, label_dropout
        self.conditions = conditions or Conditions(none=1, low=0, luma=0, region=0)

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
        grid = sampler.grid(step)
        # Drawn for all rows, so that no row depends on which others are made here.
        masks = [self.conditions.draw(grid, noise) for _ in range(sampler.batch)]
        sequences, index = [], []
        for row, seen in zip(sampler.rows, sampler.draws(step, sampler.rows), strict=True):
            (flip, drop), (given, first) = draw[row], masks[row]
            triples, picture = self.store.triples(seen.picture), self.store.grid(seen.picture)
            if grid != picture:
                triples = crop_triples(triples, picture, seen.top, seen.left, grid)
            if self.flip and flip < 0.5:
                triples = flip_triples(triples, grid)
            label = int(self.store.labels[seen.picture])
            if drop < self.label_dropout or not 0 <= label < self.num_labels:
                label = self.num_labels
            mask = {"hidden": ~given} if given is not None and first else {"given": given}
            sequence = Sequence.from_triples(triples, grid, label, **mask)
            sequences.append(sequence)
            # A condition changes the number of chunks; a uniform draw of the old ones stays uniform over the new ones.
            count = sequence.chunks(stride)
            index.append(min(int((seen.chunk + spread[row]) * count / seen.chunks), count - 1))
        return cut_chunks(sequences, index, self.chunk, self.overlap)
