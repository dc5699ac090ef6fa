"""The triples of a prepared data set: derived once from its JPEG files, then memory-mapped.

`dctransformer.data.triple_cache` decides where the arrays are stored; deleting them costs only the time to derive them
again.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dctransformer.codec import order
from dctransformer.codec.dct_image import DCTImage
from dctransformer.codec.grid import Grid
from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.codec.tables import quant_tables
from dctransformer.data.images import check_quality, encode_jpeg, prepare_image
from dctransformer.data.info import FORMAT, SPLITS, DatasetInfo, shard_paths
from dctransformer.data.shapes import Shape
from dctransformer.data.sources import is_single_picture, open_source
from dctransformer.data.triple_cache import DTYPES, cached_arrays, content_key, in_memory
from dctransformer.processes import cores, in_parallel

_BATCH = 32
"""Pictures whose coefficients are listed at a time."""


@dataclasses.dataclass
class TripleStore:
    """The triples of n pictures, T in all, one after another; usually arrays mapped from disk."""

    info: DatasetInfo
    """Size, quality and label names."""
    channels: np.ndarray
    """uint8 ``[T]``, channel ids."""
    positions: np.ndarray
    """int32 ``[T]``, indices into the luma block grid."""
    values: np.ndarray
    """int16 ``[T]``, never 0."""
    offsets: np.ndarray
    """int64 ``[n + 1]``: picture i has the triples ``offsets[i]`` to ``offsets[i + 1]``."""
    labels: np.ndarray
    """int64 ``[n]``, class numbers; -1 where there is none."""
    huffman_bytes: np.ndarray
    """int32 ``[n]``, bytes of each picture in libjpeg's optimised Huffman code, less a blank picture's file."""
    heights: np.ndarray
    """int32 ``[n]``, each picture's height in pixels, a multiple of 16."""
    widths: np.ndarray
    """int32 ``[n]``, its width."""
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """(picture, reason) of those that `from_images` could not read."""

    def __len__(self) -> int:
        """Return the number n of pictures."""
        return len(self.labels)

    def triples(self, index: int) -> Tensor:
        """Return one picture's triples in generation order: int32 ``[L, 3]`` (channel id, position, value)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        index %= len(self)
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        columns = (self.channels[span], self.positions[span], self.values[span])
        return torch.from_numpy(np.stack(columns, axis=1, dtype=np.int32, casting="safe"))

    def listed(self, texture: int) -> np.ndarray:
        """Return the triples of ranks below ``texture``, which every picture's list begins with: int64 ``[n]``."""
        counts = np.diff(self.offsets)
        if texture < order.NUM_CHANNELS:
            below = texture > order.RANK
            for i, (start, stop) in enumerate(pairwise(self.offsets.tolist())):
                counts[i] = np.count_nonzero(below[self.channels[start:stop]])
        return counts

    def grid(self, index: int) -> Grid:
        """Return the MCU grid of one picture."""
        return Grid.shared(int(self.heights[index]) // order.MCU, int(self.widths[index]) // order.MCU)

    @property
    def grids(self) -> dict[Grid, int]:
        """Number of pictures of each grid, the commonest first."""
        sides = np.stack([self.heights, self.widths], axis=1) // order.MCU
        sides, counts = np.unique(sides, axis=0, return_counts=True)
        common = np.argsort(-counts, kind="stable")
        return {Grid.shared(int(sides[i, 0]), int(sides[i, 1])): int(counts[i]) for i in common}

    def members(self, grid: Grid) -> np.ndarray:
        """Return the numbers of the pictures of a grid: int64, ascending."""
        return np.flatnonzero((self.heights == order.MCU * grid.rows) & (self.widths == order.MCU * grid.cols))

    @classmethod
    def open(cls, folder: str | Path, split: str = "train", progress: bool = True) -> TripleStore:
        """Map the triples of a prepared data set, deriving them if that was not done before.

        Args:
            folder: made by `dctransformer.data.prepare`.
            split: ``train`` or ``validation``.
            progress: whether to show a bar while deriving.

        Raises:
            ValueError: the folder is no prepared data set, a shard is missing or damaged, or the disk is full.
        """
        if split not in SPLITS:
            raise ValueError(f"there is no split {split}; choose train or validation")
        info = DatasetInfo.load(folder)
        shards = shard_paths(folder, split)

        def batches(work: str) -> Iterable[dict[str, np.ndarray]]:
            groups = _Groups(info, shards)
            if groups.rows != info.splits.get(split, 0):
                raise ValueError(
                    f"the {split} shards in {folder} hold {groups.rows} pictures, not {info.splits.get(split, 0)}; "
                    "restore the missing files or prepare the data again into a new folder"
                )
            hide = not progress or not shards
            return tqdm(groups.batches(), total=len(groups), desc=f"{split} {work}", unit="group", disable=hide)

        key = content_key([FORMAT, info.size, info.quality, bool(info.labels)], shards)
        return cls(info, **cached_arrays(Path(folder), split, key, batches), skipped=[])

    @classmethod
    def from_images(
        cls, paths: str | Path | Sequence[str | Path], size: int | Shape, quality: int, progress: bool = False
    ) -> TripleStore:
        """Return the triples of any pictures, cropped, resized and encoded as `dctransformer.data.prepare` does it.

        Args:
            paths: a folder (sub-folders are labels) or anything else that `prepare` takes, one picture, or a list
                of pictures.
            size: side of squares in pixels, a multiple of 16, or another shape.
            quality: JPEG quality, 1 to 100.
            progress: whether to show a bar.

        Returns:
            A store in memory; ``skipped`` lists the pictures that could not be read.

        Raises:
            ValueError: size or quality are out of range, or there are no pictures that can be read.
        """
        shape = Shape.of(size)
        check_quality(quality)
        sources: Iterable[tuple[str, int, str | Path | bytes | ValueError]]
        labels: list[str] = []
        if isinstance(paths, (str, Path)) and not is_single_picture(paths):
            listing = open_source(paths)
            labels, total = listing.labels, len(listing.items)
            sources = (
                (item.key, -1 if item.label is None else item.label, _read(listing.read, i))
                for i, item in enumerate(listing.items)
            )
        else:
            paths = [paths] if isinstance(paths, (str, Path)) else paths
            total = len(paths)
            sources = ((str(path), -1, path) for path in paths)

        skipped: list[tuple[str, str]] = []

        def encoded() -> Iterator[tuple[bytes, int]]:
            for key, label, source in tqdm(sources, total=total, desc="pictures", unit="img", disable=not progress):
                try:
                    if isinstance(source, ValueError):
                        raise source
                    yield prepare_image(source, shape, quality), label
                except ValueError as error:
                    skipped.append((key, str(error)))

        info = DatasetInfo.of_shape(shape, quality=quality, splits={}, labels=labels, source=str(paths))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd metadata, large pictures: of no concern here
            pairs = encoded()
            arrays = in_memory(_columns(group, info) for group in iter(lambda: list(islice(pairs, 1024)), []))
        count = len(arrays["labels"])
        if not count:
            why = f"; the first: {skipped[0][1]}" if skipped else ""
            raise ValueError(f"there are no pictures that can be read{why}")
        info = dataclasses.replace(info, splits={"all": count}, skipped=len(skipped))
        return cls(info, **arrays, skipped=skipped)


def _read(read: Callable[[int], str | Path | bytes], index: int) -> str | Path | bytes | ValueError:
    """Read a picture of a source; an error is returned instead of raised."""
    try:
        return read(index)
    except (ValueError, OSError, pa.ArrowException) as error:
        return ValueError(str(error))


# From JPEG bytes to columns -------------------------------------------------------------------------------------------


def _columns(pairs: list[tuple[bytes, int]], info: DatasetInfo) -> dict[str, np.ndarray]:
    """Return the columns of some pictures, given as JPEG bytes and label; ``lengths`` stand for the offsets."""
    luma_table, chroma_table = quant_tables(info.quality)
    shape = info.target
    triples: list[Tensor] = []
    sides: list[tuple[int, int]] = []
    for start in range(0, len(pairs), _BATCH):
        images = [read_jpeg_bytes(data, name="a picture of the data set") for data, _ in pairs[start : start + _BATCH]]
        for image in images:
            if not (
                shape.holds(image.width, image.height)
                and image.sampling == info.subsampling
                and torch.equal(image.luma_table, luma_table)
                and image.chroma_table is not None
                and torch.equal(image.chroma_table, chroma_table)
            ):
                raise ValueError(
                    f"a picture of the data set is not {shape}, {info.subsampling}, quality "
                    f"{info.quality}; prepare the data again into a new folder"
                )
        sides += [(image.height, image.width) for image in images]
        triples += _listed(images)
    joined = torch.cat(triples).numpy() if triples else np.empty((0, 3), np.int32)
    columns = {
        "channels": joined[:, 0],
        "positions": joined[:, 1],
        "values": joined[:, 2],
        "lengths": [len(t) for t in triples],
        "labels": [label for _, label in pairs],
        "huffman_bytes": [
            len(data) - _blank(*side, info.quality) for (data, _), side in zip(pairs, sides, strict=True)
        ],
        "heights": [height for height, _ in sides],
        "widths": [width for _, width in sides],
    }
    return {name: np.array(columns[name], dtype) for name, dtype in DTYPES.items()}


def _listed(images: list[DCTImage]) -> list[Tensor]:
    """Return the triples of some pictures, in their order; those of one size are listed together."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault((image.height, image.width), []).append(i)
    triples: list[Tensor] = [torch.empty(0)] * len(images)
    for places in by_size.values():
        for i, listed in zip(places, DCTImage.cat([images[i] for i in places]).to_triples(), strict=True):
            triples[i] = listed
    return triples


@functools.lru_cache(maxsize=4096)
def _blank(height: int, width: int, quality: int) -> int:
    """Return the size in bytes of a blank picture's file, as `encode_jpeg` writes it."""
    return len(encode_jpeg(Image.new("RGB", (width, height), (128, 128, 128)), quality))


class _Groups:
    """The row groups of a split's shards, each as columns."""

    def __init__(self, info: DatasetInfo, shards: list[Path]):
        """List the row groups.

        Raises:
            ValueError: a shard is damaged.
        """
        self.info = info
        self.rows = 0
        self.places: list[tuple[Path, int]] = []
        for shard in shards:
            try:
                metadata = pq.read_metadata(shard)
            except (OSError, pa.ArrowException) as error:
                raise ValueError(_damaged(shard, error)) from error
            self.rows += metadata.num_rows
            self.places += [(shard, group) for group in range(metadata.num_row_groups)]

    def __len__(self) -> int:
        return len(self.places)

    def __call__(self, place: tuple[Path, int]) -> dict[str, np.ndarray]:
        path, group = place
        try:
            columns = ["image", "label"] if self.info.labels else ["image"]
            table = pq.ParquetFile(path).read_row_group(group, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(_damaged(path, error)) from error
        images = table["image"].to_pylist()
        labels = table["label"].to_pylist() if self.info.labels else [None] * len(images)
        pairs = [(image["bytes"], -1 if label is None else label) for image, label in zip(images, labels, strict=True)]
        try:
            return _columns(pairs, self.info)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield all groups in order, made by several processes where there are many."""
        for _, columns in in_parallel(self, self.places, min(cores(), len(self) // 2)):
            yield columns


def _damaged(shard: Path, error: Exception) -> str:
    return f"{shard} is damaged ({error}); restore it or prepare the data again into a new folder"
