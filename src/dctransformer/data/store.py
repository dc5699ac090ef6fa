"""The triples of a prepared data set: derived once from its JPEG files, then memory-mapped.

The arrays lie in the hidden folder ``.cache`` of the data set, under a name that changes with the shards; deleting it
costs nothing but the time to derive them again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dctransformer.codec.dct_image import DCTImage
from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.codec.tables import quant_tables
from dctransformer.data.images import check_quality, check_size, encode_jpeg, prepare_image
from dctransformer.data.info import FORMAT, SPLITS, DatasetInfo, shard_paths
from dctransformer.data.sources import open_source
from dctransformer.data.workers import cores, in_parallel
from dctransformer.files import explained, temporary_name

CACHE = ".cache"

_BATCH = 32
"""Pictures whose coefficients are listed at a time."""

_DTYPES = {
    "channels": np.uint8,
    "positions": np.int32,
    "values": np.int16,
    "offsets": np.int64,
    "labels": np.int64,
    "huffman_bytes": np.int32,
}


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
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """(picture, reason) of those that `from_images` could not read."""

    def __len__(self) -> int:
        """Number n of pictures."""
        return len(self.labels)

    def triples(self, index: int) -> Tensor:
        """One picture's triples in generation order: int32 ``[L, 3]`` (channel id, position, value)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        index %= len(self)
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        columns = (self.channels[span], self.positions[span], self.values[span])
        return torch.from_numpy(np.stack(columns, axis=1, dtype=np.int32, casting="safe"))

    @classmethod
    def _of(
        cls, info: DatasetInfo, arrays: dict[str, np.ndarray], skipped: list[tuple[str, str]] | None = None
    ) -> TripleStore:
        columns = {name: arrays[name] for name in _DTYPES}
        return cls(info, **columns, skipped=skipped or [])  # pyright: ignore[reportArgumentType]

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
        name = f"{split}-{_key(info, shards)}"
        path = Path(folder) / CACHE / name
        if path.is_dir():
            return cls._of(info, _load(path))
        groups = _Groups(info, shards)
        if groups.rows != info.splits.get(split, 0):
            raise ValueError(
                f"the {split} shards in {folder} hold {groups.rows} pictures, not {info.splits.get(split, 0)}; "
                "restore the missing files or prepare the data again into a new folder"
            )
        batches = tqdm(
            groups.batches(),
            total=len(groups),
            desc=f"{split} triples",
            unit="group",
            disable=not progress or not shards,
        )
        try:
            _derive(path, batches)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise explained(error, path) from error
            warnings.warn(f"{path} can't be written, so the triples are kept in memory", stacklevel=2)
            return cls._of(info, _in_memory(groups.batches()))
        for old in path.parent.glob(f"{split}-*"):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)
        return cls._of(info, _load(path))

    @classmethod
    def from_images(
        cls, paths: str | Path | Sequence[str | Path], size: int, quality: int, progress: bool = False
    ) -> TripleStore:
        """The triples of any pictures, cropped, resized and encoded as `dctransformer.data.prepare` does it.

        Args:
            paths: a folder (sub-folders are labels) or anything else that `prepare` takes, one picture, or a list
                of pictures.
            size: side in pixels, a multiple of 16.
            quality: JPEG quality, 1 to 100.
            progress: whether to show a bar.

        Returns:
            A store in memory; ``skipped`` lists the pictures that could not be read.

        Raises:
            ValueError: size or quality are out of range, or there are no pictures that can be read.
        """
        check_size(size)
        check_quality(quality)
        sources: Iterable[tuple[str, int, str | Path | bytes | ValueError]]
        labels: list[str] = []
        if isinstance(paths, (str, Path)) and not (Path(paths).is_file() and Path(paths).suffix != ".parquet"):
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
                    yield prepare_image(source, size, quality), label
                except ValueError as error:
                    skipped.append((key, str(error)))

        info = DatasetInfo(size=size, quality=quality, splits={}, labels=labels, source=str(paths))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd metadata, large pictures: of no concern here
            arrays = _in_memory(_columns(pairs, info) for pairs in _grouped(encoded(), 1024))
        count = len(arrays["labels"])
        if not count:
            why = f"; the first: {skipped[0][1]}" if skipped else ""
            raise ValueError(f"there are no pictures that can be read{why}")
        info = dataclasses.replace(info, splits={"all": count}, skipped=len(skipped))
        return cls._of(info, arrays, skipped)


def _read(read: Callable[[int], str | Path | bytes], index: int) -> str | Path | bytes | ValueError:
    """What a source holds at a place, or why it holds nothing."""
    try:
        return read(index)
    except (ValueError, OSError, pa.ArrowException) as error:
        return ValueError(str(error))


def _grouped(pairs: Iterator[tuple[bytes, int]], length: int) -> Iterator[list[tuple[bytes, int]]]:
    group: list[tuple[bytes, int]] = []
    for pair in pairs:
        group.append(pair)
        if len(group) == length:
            yield group
            group = []
    if group:
        yield group


# From JPEG bytes to columns -------------------------------------------------------------------------------------------


def _columns(pairs: list[tuple[bytes, int]], info: DatasetInfo) -> dict[str, np.ndarray]:
    """The columns of some pictures, given as JPEG bytes and label; ``lengths`` stand for the offsets."""
    luma_table, chroma_table = quant_tables(info.quality)
    triples: list[Tensor] = []
    for start in range(0, len(pairs), _BATCH):
        images = [read_jpeg_bytes(data, name="a picture of the data set") for data, _ in pairs[start : start + _BATCH]]
        for image in images:
            if (image.height, image.width, image.sampling) != (info.size, info.size, info.subsampling) or not (
                torch.equal(image.luma_table, luma_table)
                and image.chroma_table is not None
                and torch.equal(image.chroma_table, chroma_table)
            ):
                raise ValueError(
                    f"a picture of the data set is not {info.size}×{info.size}, {info.subsampling}, quality "
                    f"{info.quality}; prepare the data again into a new folder"
                )
        triples += DCTImage.cat(images).to_triples()
    # `encode_jpeg` writes what libjpeg's optimised Huffman code gives; what is not header is left.
    blank = len(encode_jpeg(Image.new("RGB", (info.size, info.size), (128, 128, 128)), info.quality))
    joined = torch.cat(triples).numpy() if triples else np.empty((0, 3), np.int32)
    return {
        "channels": joined[:, 0].astype(np.uint8),
        "positions": joined[:, 1].astype(np.int32),
        "values": joined[:, 2].astype(np.int16),
        "lengths": np.array([len(t) for t in triples], np.int64),
        "labels": np.array([label for _, label in pairs], np.int64),
        "huffman_bytes": np.array([len(data) - blank for data, _ in pairs], np.int32),
    }


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
        """All groups in order, made by several processes where there are many."""
        for _, columns in in_parallel(self, self.places, min(cores(), len(self) // 2)):
            yield columns


def _damaged(shard: Path, error: Exception) -> str:
    return f"{shard} is damaged ({error}); restore it or prepare the data again into a new folder"


# Arrays on disk -------------------------------------------------------------------------------------------------------


def _key(info: DatasetInfo, shards: list[Path]) -> str:
    """Changes with whatever the arrays depend on."""
    facts = [FORMAT, info.size, info.quality, bool(info.labels), [(p.name, p.stat().st_size) for p in shards]]
    return hashlib.blake2b(json.dumps([info.fingerprint, *facts]).encode(), digest_size=8).hexdigest()


def _derive(path: Path, batches: Iterable[dict[str, np.ndarray]]) -> None:
    """Write the arrays as .npy files into a folder that appears only when they are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(temporary_name())
    beside.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((beside / f"{name}.npy").open("wb")) for name in _DTYPES}
            columns = {name: _Column(files[name], np.dtype(dtype)) for name, dtype in _DTYPES.items()}
            total = 0
            columns["offsets"].append(np.zeros(1))
            for batch in batches:
                columns["offsets"].append(total + np.cumsum(batch.pop("lengths")))
                total += len(batch["channels"])
                for name, array in batch.items():
                    columns[name].append(array)
            for column in columns.values():
                column.finish()
        try:
            beside.rename(path)
        except OSError:
            if not path.is_dir():  # unless another process was faster
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class _Column:
    """A one-dimensional .npy file that grows."""

    def __init__(self, file: io.BufferedWriter, dtype: np.dtype):
        self.file, self.dtype, self.length = file, dtype, 0
        self.file.write(self.header(self.dtype, 0))

    @staticmethod
    def header(dtype: np.dtype, length: int) -> bytes:
        """The start of the file; numpy pads it so that its size does not depend on the length."""
        out = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(out, description)
        return out.getvalue()

    def append(self, array: np.ndarray) -> None:
        """Add values at the end."""
        self.file.write(array.astype(self.dtype, copy=False).tobytes())
        self.length += len(array)

    def finish(self) -> None:
        """Put the final length into the header."""
        self.file.seek(0)
        self.file.write(self.header(self.dtype, self.length))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = {}
        for name, dtype in _DTYPES.items():
            file = path / f"{name}.npy"
            # An empty array is a header alone, which can't be mapped.
            is_empty = file.stat().st_size <= len(_Column.header(np.dtype(dtype), 0))
            array = np.load(file, mmap_mode=None if is_empty else "r", allow_pickle=False)
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError("unexpected contents")
            arrays[name] = array
        if int(arrays["offsets"][-1]) != len(arrays["values"]):
            raise ValueError("unexpected lengths")
        return arrays
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete that folder, it is made anew") from error


def _in_memory(batches: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `_derive`, kept in memory."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*_DTYPES, "lengths") if name != "offsets"}
    for batch in batches:
        for name, array in batch.items():
            parts[name].append(array)
    nothing = np.empty(0, np.uint8)  # so that an empty list joins too; uint8 widens to any of the types
    arrays = {name: np.concatenate([nothing, *arrays]) for name, arrays in parts.items()}
    arrays["offsets"] = np.concatenate([[0], np.cumsum(arrays.pop("lengths"))])
    return {name: arrays[name].astype(dtype, copy=False) for name, dtype in _DTYPES.items()}
