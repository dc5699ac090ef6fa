"""For anyone's own loop: DCT images as a `torch.utils.data.Dataset`, and a transform from pictures to triples.

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

from dctransformer.codec import order
from dctransformer.codec.codec import Codec
from dctransformer.codec.grid import Grid
from dctransformer.data.images import as_rgb, check_quality, check_size, crop_resize
from dctransformer.data.info import INFO, DatasetInfo
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


class Examples(TypedDict):
    """Several of them."""

    coefficients: Tensor
    """int16 ``[B, N, 6, 64]``."""
    triples: Tensor
    """int32 ``[B, L, 3]``, padded with zeros to the longest."""
    lengths: Tensor
    """int64 ``[B]``, triples of each before padding."""
    label: Tensor
    """int64 ``[B]``."""


class DCTImageDataset(Dataset[Example]):
    """Pictures as DCT images and triples, map-style.

    Example:
        >>> data = DCTImageDataset("data", "train")  # doctest: +SKIP
        >>> loader = DataLoader(data, batch_size=32, shuffle=True, collate_fn=collate)  # doctest: +SKIP

    Attributes:
        store: the triples, as `ChunkSampler` and `ChunkBatches` take them.
        grid: where positions lie.
    """

    def __init__(
        self, source: str | Path, split: str = "train", *, size: int | None = None, quality: int | None = None
    ):
        """Open a prepared data set, or encode pictures into memory.

        Args:
            source: a folder made by `dctransformer.data.prepare` (its triples are mapped from disk), or anything that
                `prepare` takes, say a folder of pictures (encoded now, kept in memory; 7 bytes a triple).
            split: ``train`` or ``validation`` of a prepared data set; pictures that are not prepared are one whole.
            size: side in pixels, 64 if not given; a prepared data set has its own.
            quality: JPEG quality, 20 if not given; a prepared data set has its own.

        Raises:
            ValueError: there are no pictures, or a prepared data set has another size or quality.
        """
        if (Path(source) / INFO).is_file():
            info = DatasetInfo.load(source)
            for name, wanted, there in (("size", size, info.size), ("quality", quality, info.quality)):
                if wanted not in (None, there):
                    raise ValueError(
                        f"{source} was prepared with {name} {there}, not {wanted}; leave it out or prepare it anew"
                    )
            self.store = TripleStore.open(source, split, progress=False)
        else:
            self.store = TripleStore.from_images(source, size or 64, quality or 20)
        self.grid = Grid.of_size(self.store.info.size, self.store.info.size)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.store)

    def __getitem__(self, index: int) -> Example:
        """One picture.

        Raises:
            IndexError: there are fewer.
        """
        triples = self.store.triples(index)
        channel, position, value = triples.long().unbind(1)
        coefficients = torch.zeros(self.grid.mcus * order.BLOCKS_PER_MCU * 64, dtype=torch.int16)
        coefficients[self.grid.slot(channel, position)] = value.to(torch.int16)
        return {
            "coefficients": coefficients.view(self.grid.mcus, order.BLOCKS_PER_MCU, 64),
            "triples": triples,
            "label": int(self.store.labels[index]),
        }

    def sequence(self, index: int) -> Sequence:
        """One picture as `cut_chunks` takes it; without a label it has the null label, the number of classes."""
        label = int(self.store.labels[index])
        return Sequence.from_triples(
            self.store.triples(index), self.grid, label if label >= 0 else len(self.store.info.labels)
        )


def collate(examples: list[Example]) -> Examples:
    """Batch pictures of one size."""
    triples = [example["triples"] for example in examples]
    return {
        "coefficients": torch.stack([example["coefficients"] for example in examples]),
        "triples": pad_sequence(triples, batch_first=True),
        "lengths": torch.tensor([len(t) for t in triples]),
        "label": torch.tensor([example["label"] for example in examples]),
    }


class ToTriples:
    """A transform for anyone's data set: a Pillow image, or a uint8 array ``[H, W, 3]``, to its triples.

    Example:
        >>> ToTriples(quality=20)(np.zeros((32, 48, 3), np.uint8)).shape  # black: the DC of 24 luma blocks
        torch.Size([24, 3])
    """

    def __init__(self, quality: int = 20, size: int | None = None):
        """Choose the codec.

        Args:
            quality: JPEG quality, 1 to 100.
            size: crop to a square and resize to so many pixels a side first, exactly as `prepare` does; None leaves
                pictures as they are.

        Raises:
            ValueError: quality or size are out of range.
        """
        check_quality(quality)
        if size is not None:
            check_size(size)
        self.quality, self.size = quality, size
        self.codec = Codec(quality)

    def __repr__(self) -> str:
        """``ToTriples(quality=20, size=64)``."""
        return f"ToTriples(quality={self.quality}, size={self.size})"

    def __call__(self, picture: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The triples: int32 ``[L, 3]`` (channel, position, value) in generation order, those of its JPEG file.

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
        if self.size is not None:
            picture = crop_resize(picture, self.size)
        return self.codec.encode(np.asarray(picture)).to_triples()[0]
