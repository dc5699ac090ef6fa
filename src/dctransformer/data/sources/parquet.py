"""Rows of Parquet files, in Hugging Face's image convention or with columns of bytes or of paths."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dctransformer.data.formats import LFS_POINTER, NEEDS_LFS
from dctransformer.data.sources.base import LABEL_COLUMNS, Item, column_labels, split_of
from dctransformer.files import check_regular

_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "content")
"""Columns that are taken for the pictures where several hold bytes, the likeliest first."""

_PATH_COLUMNS = ("image", "img", "file_name", "path", "image_path", "filepath", "file")


class NoPictures(ValueError):
    """A table without a column of pictures."""


class ParquetSource:
    """Rows of Parquet files."""

    sequential = True

    def __init__(
        self, paths: list[Any], root: PurePath, filesystem: pafs.FileSystem | None = None, labels: str | None = None
    ):
        self.paths: list[PurePath] = sorted(paths)
        self.root = root
        self.filesystem = filesystem
        self.items: list[Item] = []
        self.notes: list[str] = []
        self._places: list[tuple[int, int, int]] = []  # file, row group, row in it
        self._open: tuple[int, pq.ParquetFile] | None = None
        self._group: tuple[tuple[int, int], Any] | None = None  # (file, row group), its pictures
        splits = [_split_of_path(p.relative_to(root)) for p in self.paths]
        if "train" not in splits:
            splits = [None] * len(splits)
        values: list[Any] = []
        metadata: list[pq.FileMetaData] = []
        names: list[str] = []
        for path in self.paths:
            try:
                with self._file(path) as file:
                    columns = _columns(file.schema_arrow, path, labels)
                    if path == self.paths[0]:
                        self.image, self.label, names, unused = columns
                        self.notes += unused
                    elif columns[:3] != (self.image, self.label, names):
                        raise ValueError(f"{path} has other columns or labels than {self.paths[0]}; prepare them apart")
                    metadata.append(file.metadata)
                    if self.label is not None:
                        values += file.read([self.label])[self.label].to_pylist()
            except (pa.ArrowException, OSError) as error:
                why = NEEDS_LFS if self._is_pointer(path) else str(error)
                raise ValueError(f"{path} is not a readable Parquet file ({why}); remove or replace it") from error
        rows = sum(m.num_rows for m in metadata)
        self.labels, numbers, self.labels_from = column_labels(
            values, names, self.label, rows, labels is not None, self.notes
        )
        place = 0
        for i, (path, split) in enumerate(zip(self.paths, splits, strict=True)):
            name, stamp = path.relative_to(root).as_posix(), self._stamp(path)
            row = 0
            for group in range(metadata[i].num_row_groups):
                for within in range(metadata[i].row_group(group).num_rows):
                    self.items.append(Item(f"{name}#{row}", numbers[place], split, stamp))
                    self._places.append((i, group, within))
                    row += 1
                    place += 1
        if not self.items:
            raise ValueError(f"{root} holds Parquet files without rows; give files that hold pictures")

    def _file(self, path: PurePath) -> pq.ParquetFile:
        if self.filesystem is None:
            check_regular(path.as_posix())
        return pq.ParquetFile(path.as_posix(), filesystem=self.filesystem)

    def _is_pointer(self, path: PurePath) -> bool:
        filesystem = self.filesystem or pafs.LocalFileSystem()
        with contextlib.suppress(OSError), filesystem.open_input_file(path.as_posix()) as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
        return False

    def _stamp(self, path: PurePath) -> str:
        filesystem = self.filesystem or pafs.LocalFileSystem()
        facts = filesystem.get_file_info(path.as_posix())
        return f"{facts.size}:{facts.mtime_ns or 0}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when the source is sent to another process."""
        return {**self.__dict__, "_open": None, "_group": None}

    def read(self, index: int) -> str | Path | bytes:
        """Return the bytes of a picture; its row group stays in memory for its neighbours."""
        file, group, row = self._places[index]
        if self._group is None or self._group[0] != (file, group):
            if self._open is None or self._open[0] != file:
                self._open = (file, self._file(self.paths[file]))
            table = self._open[1].read_row_group(group, columns=[self.image], use_threads=False)
            self._group = ((file, group), table[self.image].combine_chunks())
        cell = self._group[1][row].as_py()
        if self.filesystem is None:
            return picture_of(cell, self.paths[file].parent, self.root)
        picture = picture_of(cell, None, None)
        if isinstance(picture, bytes):
            return picture
        place = PurePosixPath(os.path.normpath((self.paths[file].parent / picture).as_posix()))
        if not place.is_relative_to(self.root):
            raise ValueError(f"the path {picture} leads out of the data set")
        with self.filesystem.open_input_file(place.as_posix()) as opened:
            return opened.read()


def picture_of(cell: Any, folder: PurePath | None, root: PurePath | None) -> str | bytes:
    """Return the picture in a cell of the picture column: its bytes, or the path of its file.

    Args:
        cell: bytes, a path, or both in a struct.
        folder: what paths are relative to; None to leave them as they are.
        root: the folder that a path must not lead out of, not even by a link; None for any path.

    Raises:
        ValueError: there is no picture, or its path leads out of the root.
    """
    path = cell
    if isinstance(cell, dict):
        if cell.get("bytes"):
            return cell["bytes"]
        path = cell.get("path")
    if isinstance(path, bytes) and path:
        return path
    if not isinstance(path, str) or not path:
        raise ValueError("there is no picture in this row")
    if folder is None:
        return path
    place = os.path.join(folder, path)
    if root is not None:
        real, top = os.path.realpath(place), os.path.realpath(root)
        if os.path.commonpath([real, top]) != top:
            raise ValueError(f"the path {path} leads out of the data set")
    return place


def _split_of_path(path: PurePath) -> str | None:
    return next((split for split in map(split_of, path.parts) if split), None)


def _columns(schema: pa.Schema, path: PurePath, labels: str | None) -> tuple[str, str | None, list[str], list[str]]:
    """Return the names of the picture and the label column and of the classes, and notes."""
    features: dict[str, Any] = {}
    with contextlib.suppress(KeyError, TypeError, json.JSONDecodeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    notes: list[str] = []
    images = [n for n in schema.names if _feature(features, n).get("_type") == "Image"]
    images = images or [n for n in schema.names if _holds_bytes(schema.field(n).type)]
    images = images or [n for n in _PATH_COLUMNS if n in schema.names and _is_string(schema.field(n).type)][:1]
    if not images:
        raise NoPictures(f"{path} has no column of pictures; give one of bytes, or of bytes and path")
    image = next((n for n in _IMAGE_COLUMNS if n in images), images[0])
    if len(images) > 1:
        notes.append(f"the column {image} is taken for the pictures, not {', '.join(n for n in images if n != image)}")
    if labels == "none":
        return image, None, [], notes
    if labels is not None:
        label = labels
        if label not in schema.names:
            raise ValueError(
                f"{path} has no column {label} (there are: {', '.join(schema.names)}); --labels takes a column or none"
            )
        if not _is_label(schema.field(label).type):
            raise ValueError(f"the column {label} of {path} holds {schema.field(label).type}, which can't be labels")
    else:
        classes = [n for n in schema.names if _feature(features, n).get("_type") == "ClassLabel"]
        label = next((n for n in (*classes, *LABEL_COLUMNS) if n in schema.names and n != image), None)
        if label is not None and not _is_label(schema.field(label).type):
            notes.append(f"the column {label} holds {schema.field(label).type}: not used as labels")
            label = None
    names = _feature(features, label).get("names") if _feature(features, label).get("_type") == "ClassLabel" else None
    return image, label, [str(name) for name in names] if isinstance(names, list) else [], notes


def _feature(features: Any, name: str | None) -> Mapping[str, Any]:
    feature = features.get(name or "") if isinstance(features, dict) else None
    return feature if isinstance(feature, dict) else {}


def _is_any(kind: pa.DataType, *names: str) -> bool:
    """Return whether a type is one of those called so by pyarrow, as far as this version knows them."""
    return any(getattr(pa.types, f"is_{name}", lambda _: False)(kind) for name in names)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return _is_any(kind, "binary", "large_binary", "binary_view")


def _is_string(kind: pa.DataType) -> bool:
    return _is_any(kind, "string", "large_string", "string_view")


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_string(kind) or _is_any(kind, "integer", "floating", "boolean")
