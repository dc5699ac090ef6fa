"""DCT images for other training loops: a `torch.utils.data.Dataset`, and a transform from pictures to triples.

Shapes: B pictures, L triples of a picture, N MCUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from dctransformer.codec.codec import Codec
from dctransformer.codec.triples import ranked, scatter
from dctransformer.data.images import as_rgb, check_quality, crop_resize
from dctransformer.data.info import INFO, DatasetInfo
from dctransformer.data.shapes import Shape
from dctransformer.data.store import TripleStore
from dctransformer.sequence.chunks import Sequence


class Example(TypedDict):
    """A picture of a `DCTImageDataset`."""

    coefficients: Tensor
    """int16 ``[N, 6, 64]``, the DCT image (`DCTImage.from_mcus` reads it)."""
    triples: Tensor
    """int32 ``[L, 3]`` (channel, position, value), in generation order."""
    label: int
    """Class number; -1 where there is none."""
    grid: tuple[int, int]
    """Rows and columns of MCUs; N is their product."""


class Examples(TypedDict):
    """A batch of pictures of a `DCTImageDataset`."""

    coefficients: Tensor
    """int16 ``[B, N, 6, 64]``."""
    triples: Tensor
    """int32 ``[B, L, 3]``, padded with zeros to the longest."""
    lengths: Tensor
    """int64 ``[B]``, triples of each before padding."""
    label: Tensor
    """int64 ``[B]``."""
    grid: tuple[int, int]
    """Rows and columns of MCUs, those of every picture."""


class DCTImageDataset(Dataset[Example]):
    """Pictures as DCT images and triples, map-style.

    Example:
        >>> data = DCTImageDataset("data", "train")  # doctest: +SKIP
        >>> loader = DataLoader(data, batch_size=32, shuffle=True, collate_fn=collate)  # doctest: +SKIP

    Attributes:
        store: the triples, as `ChunkSampler` and `ChunkBatches` take them.
    """

    def __init__(
        self,
        source: str | Path,
        split: str = "train",
        *,
        size: int | str | tuple[int, int] | Shape | None = None,
        quality: int | None = None,
    ):
        """Open a prepared data set, or encode pictures into memory.

        Args:
            source: a folder made by `dctransformer.data.prepare` (its triples are mapped from disk), or anything that
                `prepare` takes, say a folder of pictures (encoded now, kept in memory; 7 bytes per triple).
            split: ``train`` or ``validation`` of a prepared data set; pictures that are not prepared are one whole.
            size: side of squares in pixels, ``"192x128"``, (width, height) or another `Shape`, 64 if not given; a
                prepared data set has its own.
            quality: JPEG quality, 20 if not given; a prepared data set has its own.

        Raises:
            ValueError: there are no pictures, or a prepared data set has another size or quality.
        """
        if (Path(source) / INFO).is_file():
            info = DatasetInfo.load(source)
            shape = None if size is None else Shape.of(size)
            shape = shape if shape is None or shape.square is None else shape.square
            for name, wanted, actual in (
                ("size", shape, info.size or info.target), ("quality", quality, info.quality),
            ):  # fmt: skip
                if wanted not in (None, actual):
                    raise ValueError(
                        f"{source} was prepared with {name} {actual}, not {wanted}; leave it out or prepare it anew"
                    )
            self.store = TripleStore.open(source, split, progress=False)
        else:
            self.store = TripleStore.from_images(source, Shape.of(size), quality or 20)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.store)

    def __getitem__(self, index: int) -> Example:
        """Return one picture.

        Raises:
            IndexError: there are fewer.
        """
        triples, grid = self.store.triples(index), self.store.grid(index)
        return {
            "coefficients": scatter(*ranked(triples), grid),
            "triples": triples,
            "label": int(self.store.labels[index]),
            "grid": (grid.rows, grid.cols),
        }

    def sequence(self, index: int) -> Sequence:
        """Return one picture as a sequence for `cut_chunks`; without a label it gets the number of classes."""
        label = int(self.store.labels[index])
        return Sequence.from_triples(
            self.store.triples(index), self.store.grid(index), label if label >= 0 else len(self.store.info.labels)
        )


def collate(examples: list[Example]) -> Examples:
    """Batch pictures of one size.

    Raises:
        ValueError: they are of several sizes.
    """
    triples = [example["triples"] for example in examples]
    grids = {example["grid"] for example in examples}
    if len(grids) > 1:
        raise ValueError(
            "pictures of several sizes don't fit into one batch; give the DataLoader batch_sampler=by_grid(…)"
        )
    return {
        "coefficients": torch.stack([example["coefficients"] for example in examples]),
        "triples": pad_sequence(triples, batch_first=True),
        "lengths": torch.tensor([len(t) for t in triples]),
        "label": torch.tensor([example["label"] for example in examples]),
        "grid": grids.pop(),
    }


def by_grid(store: TripleStore, batch: int, seed: int = 0) -> list[list[int]]:
    """Return shuffled batches of pictures of one size, each picture once, for a DataLoader's ``batch_sampler``.

    Args:
        store: the pictures.
        batch: pictures in a batch; the last batch of a size may hold fewer.
        seed: decides the order.
    """
    noise = np.random.default_rng(seed)
    batches: list[list[int]] = []
    for grid in store.grids:
        members = noise.permutation(store.members(grid))
        batches += [members[start : start + batch].tolist() for start in range(0, len(members), batch)]
    return [batches[i] for i in noise.permutation(len(batches))]


class ToTriples:
    """A transform for any data set: from a Pillow image, or a uint8 array ``[H, W, 3]``, to its triples.

    Example:
        >>> ToTriples(quality=20)(np.zeros((32, 48, 3), np.uint8)).shape  # black: the DC of 24 luma blocks
        torch.Size([24, 3])
    """

    def __init__(self, quality: int = 20, size: int | str | tuple[int, int] | Shape | None = None):
        """Choose the codec.

        Args:
            quality: JPEG quality, 1 to 100.
            size: crop to a square and resize to so many pixels per side first (or to another `Shape`), exactly as
                `prepare` does; None leaves pictures as they are.

        Raises:
            ValueError: quality or size are out of range.
        """
        check_quality(quality)
        self.quality, self.size = quality, size
        self.shape = None if size is None else Shape.of(size)
        self.codec = Codec(quality)

    def __repr__(self) -> str:
        """Return ``ToTriples(quality=20, size=64)`` and the like."""
        return f"ToTriples(quality={self.quality}, size={self.size})"

    def __call__(self, picture: Image.Image | np.ndarray | Tensor) -> Tensor:
        """Return the triples of a picture's JPEG file: int32 ``[L, 3]`` (channel, position, value) in generation order.

        Raises:
            ValueError: it is no picture, or no uint8 array of one.
        """
        if not isinstance(picture, Image.Image):
            shape = tuple(getattr(picture, "shape", ()))
            if len(shape) != 3 or shape[2] != 3 or picture.dtype not in (torch.uint8, np.uint8):
                raise ValueError("a picture is a Pillow image or a uint8 array [H, W, 3]; convert yours")
            if self.size is None:
                return self.codec.encode(picture).to_triples()[0]
            picture = Image.fromarray(np.asarray(picture))
        picture = as_rgb(picture)
        if self.shape is not None:
            picture = crop_resize(picture, self.shape)
        return self.codec.encode(np.asarray(picture)).to_triples()[0]
