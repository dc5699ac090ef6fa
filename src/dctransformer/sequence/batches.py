"""The batches of a training, each decided by the seed and the step's number alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.utils.data import Dataset

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import crop_triples, flip_triples
from dctransformer.data.store import TripleStore
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.conditions import Conditions
from dctransformer.sequence.sampler import ChunkSampler, Shuffle, Starts
from dctransformer.sequence.texture import TextureBatch, sample_texture


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
        texture_from: int = order.NUM_CHANNELS,
        texture: float = 0.5,
        texture_channels: int = 8,
        structure: bool = True,
        positions: int = 0,
    ):
        """Count the chunks.

        Args:
            store: the pictures.
            chunk: triples in a chunk, context included.
            overlap: triples of context.
            batch: chunks per step.
            seed: of the order, the windows, the flips, the dropped labels and the conditions.
            num_labels: number of the model's classes, that of the data if None; other labels become
                ``num_labels``, the null label.
            flip: mirror half of the pictures, exactly.
            label_dropout: part of the chunks that get the null label.
            conditions: what is known from the start; None for nothing.
            rows: those of each batch to build (a process's share); None for all.
            shuffle: see `ChunkSampler`.
            starts: see `ChunkSampler`.
            window: grid of the windows that are cut out of larger pictures; None for whole pictures.
            texture_from: rank of the first channel that the model decides as a whole; chunks hold no triples of it and
                of those after it (`order.NUM_CHANNELS`: there are none).
            texture: pictures whose texture a step trains, as a part of its chunks.
            texture_channels: most texture channels of each of them.
            structure: whether chunks are scored; if not, only textures are, those of all pictures.
            positions: MCUs along a side of the model's position tables, in which each step's pictures get a random
                offset, so that all rows and columns are trained; 0: pictures lie at the beginning.

        Raises:
            ValueError: as `ChunkSampler`, or there are fewer pictures with texture than processes.
        """
        self.store, self.chunk, self.overlap = store, chunk, overlap
        self.sampler = ChunkSampler(
            store, chunk - overlap, batch, seed=seed, rows=rows, shuffle=shuffle, starts=starts, window=window,
            texture=texture_from,
        )  # fmt: skip
        self.num_labels = len(store.info.labels) if num_labels is None else num_labels
        self.flip, self.label_dropout = flip, label_dropout
        self.texture_from, self.texture_channels, self.positions = texture_from, texture_channels, positions
        self.structure = structure
        texture = texture if structure else 1.0
        self.textures = max(1, round(batch * texture)) if texture_from < order.NUM_CHANNELS and texture else 0
        if self.textures and not self._texture_rows(self.sampler.rows):
            raise ValueError(
                f"{self.textures} of a batch's {batch} pictures have their texture trained, fewer than there are "
                "processes; give a larger --batch or --texture"
            )
        self.conditions = conditions or Conditions(none=1, low=0, luma=0, region=0)

    def __getitem__(self, step: int) -> ChunkBatch:
        """Return the batch of one step."""
        sampler, stride = self.sampler, self.chunk - self.overlap
        draw = np.random.default_rng([sampler.seed, 2, step]).random((sampler.batch, 2))
        spread = np.random.default_rng([sampler.seed, 6, step]).random(sampler.batch)
        noise = np.random.default_rng([sampler.seed, 3, step])
        grid = sampler.grid(step)
        # Drawn for all rows, so that no row depends on which others are built here.
        masks = [self.conditions.draw(grid, noise) for _ in range(sampler.batch)]
        sequences, index, weights = [], [], []
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
            sequence = Sequence.from_triples(triples, grid, label, **mask).structure(self.texture_from)
            sequences.append(sequence)
            weights.append(sampler.mean_chunks / seen.chunks)
            # A condition changes the number of chunks; a uniform draw of the old ones stays uniform over the new ones.
            count = sequence.chunks(stride)
            index.append(min(int((seen.chunk + spread[row]) * count / seen.chunks), count - 1))
        batch = cut_chunks(sequences, index, self.chunk, self.overlap)
        if self.textures:
            batch.texture = self._texture(step, sequences, weights)
        if not self.structure:
            batch.scored = False
        if self.positions:
            top, left = np.random.default_rng([sampler.seed, 14, step]).integers(
                (self.positions - grid.rows + 1, self.positions - grid.cols + 1)
            )
            batch.offset = int(top), int(left)
        return batch

    def _texture_rows(self, rows: range) -> list[int]:
        """Select the rows whose pictures' texture is trained: equally spaced in the batch."""
        batch = self.sampler.batch
        return [row for row in rows if row * self.textures // batch < (row + 1) * self.textures // batch]

    def _texture(self, step: int, sequences: list[Sequence], weights: list[float]) -> TextureBatch:
        """Return the textures of a step.

        A picture of K chunks comes K times as often as one of a single chunk, and so it counts 1 / K as much. With
        early starts it comes less than K times as often, so that pictures of few chunks count more.
        """
        rows = self._texture_rows(self.sampler.rows)
        places = [self.sampler.rows.index(row) for row in rows]
        uniform = np.random.default_rng([self.sampler.seed, 13, step]).random(self.sampler.batch)[rows]
        chosen = [sequences[place] for place in places]
        texture = sample_texture(chosen, torch.from_numpy(uniform), self.texture_channels, self.texture_from)
        weight = torch.tensor([weights[place] for place in places])
        return dataclasses.replace(
            texture, weight=texture.weight * weight[:, None], use_weight=weight, pictures=self.textures,
            first=self.texture_from,
        )  # fmt: skip
