"""Where pictures come from: image files or Parquet in Hugging Face's convention, here or at a URL, or `datasets`.

A source lists its pictures first (`Source.items`, cheap, in a fixed order) and reads them later, one at a time and in
any process (`Source.read`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, Protocol

import huggingface_hub
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

# Pictures that Pillow may not read: listed as skipped rather than passed over in silence.
_OTHER_PICTURES = {".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".svg", ".raw"}


class Item(NamedTuple):
    """One picture of a source."""

    key: str
    """Its name within the source: a relative path, or a place such as ``data.parquet#17``."""
    label: int | None
    split: str | None
    """``train``, ``validation`` or ``test`` if the source says so."""

    @property
    def rank(self) -> int:
        """A 64-bit hash of the key: decides split and order, wherever and whenever the source is read."""
        return int.from_bytes(hashlib.blake2b(_text(self.key).encode(), digest_size=8).digest(), "big")


class Source(Protocol):
    """A list of pictures that can be read; it can be sent to other processes."""

    labels: list[str]
    """Names of the classes; empty if there are none."""
    items: list[Item]
    sequential: bool
    """Whether neighbours should be read together (files of rows) rather than in any order (files of pictures)."""

    def read(self, index: int) -> str | Path | bytes:
        """The file of ``items[index]``, or its bytes.

        Raises:
            ValueError: there is no picture in that row.
        """
        ...


def open_source(source: Any, exclude: Path | None = None) -> Source:
    """Recognise a source.

    Args:
        source: a folder of pictures, a Parquet file or a folder of them (each may be a URL: ``s3://…``, ``gs://…``,
            ``hf://…``), a folder written by ``save_to_disk``, the id of a data set on the Hugging Face hub (``name``,
            ``owner/name`` or ``owner/name:config``), or what the `datasets` library has loaded.
        exclude: a folder to leave out of the listing (where the output goes).

    Raises:
        ValueError: there is no such thing, or no picture in it.
    """
    if not isinstance(source, (str, Path)):
        return loaded_source(source)
    if is_url(source):
        return url_source(str(source))
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".parquet":
            return ParquetSource([path], path.parent)
        raise ValueError(f"{source} is a file; give a folder of pictures, a .parquet file or a `datasets` id")
    if not path.is_dir():
        if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", str(source)):
            return hub_source(str(source))
        raise ValueError(f"there is no folder or file {source}; check the path")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return saved_source(path)
    return _source_of(path, _walk(path, exclude), str(source), None)


def _source_of(root: PurePath, paths: list[str], source: str, filesystem: pafs.FileSystem | None) -> Source:
    """What a folder of files is: pictures, or Parquet."""
    pictures = [p for p in paths if PurePath(p).suffix.lower() in _picture_suffixes()]
    if pictures:
        return FolderSource(root, pictures) if filesystem is None else UrlSource(root, pictures, filesystem)
    parquet = [root / p for p in paths if p.endswith(".parquet")]
    if parquet:
        return ParquetSource(parquet, root, filesystem)
    raise ValueError(
        f"{source} holds no pictures; give a folder of image files (sub-folders are labels) or of .parquet files"
        if paths
        else f"the folder {source} is empty; give a folder that holds pictures"
    )


@functools.cache
def _picture_suffixes() -> set[str]:
    Image.preinit()  # Pillow tries formats in the order in which they are loaded: the common ones first
    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN} | _OTHER_PICTURES


def _walk(root: Path, exclude: Path | None) -> list[str]:
    """Relative paths of all files, sorted, hidden ones left out; links are followed, but not in circles."""
    found: list[str] = []
    seen: set[str] = set()
    exclude = exclude.resolve() if exclude is not None else None
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or (exclude is not None and Path(real) == exclude and Path(real) != root.resolve()):
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _text(key: str) -> str:
    """The key as valid Unicode (file names may hold any bytes)."""
    return os.fsencode(key).decode("utf-8", "replace")


class FolderSource:
    """Image files; the first level of sub-folders names the classes.

    If the first level is ``train`` with ``val``, ``validation`` or ``test``, these are taken for splits, and the level
    below for classes.
    """

    sequential = False

    def __init__(self, root: PurePath, pictures: list[str]):
        self.root = root
        parts = [picture.split("/") for picture in pictures]
        top = {p[0] if len(p) > 1 else "" for p in parts}
        has_splits = len(top) > 1 and top <= _SPLIT_NAMES.keys() and "train" in {_SPLIT_NAMES[t] for t in top}
        level = 1 if has_splits else 0
        names = [p[level] if len(p) > level + 1 else None for p in parts]
        self.labels = sorted({name for name in names if name is not None})
        number = {name: i for i, name in enumerate(self.labels)}
        self.labels = [_text(name) for name in self.labels]
        self.items = [
            Item(
                picture,
                None if name is None else number[name],
                _SPLIT_NAMES[p[0]] if has_splits else None,
            )
            for picture, p, name in zip(pictures, parts, names, strict=True)
        ]

    def read(self, index: int) -> str | bytes:
        """Path of a picture."""
        return os.path.join(self.root, self.items[index].key)  # pathlib is slow enough to be felt here


class UrlSource(FolderSource):
    """The same in an object store or on another machine."""

    def __init__(self, root: PurePath, pictures: list[str], filesystem: pafs.FileSystem):
        super().__init__(root, pictures)
        self.filesystem = filesystem

    def read(self, index: int) -> bytes:
        """Bytes of a picture; a network that fails for a moment is asked again."""
        path = (self.root / self.items[index].key).as_posix()
        for patience in (1, 4, None):
            try:
                with self.filesystem.open_input_file(path) as file:
                    return file.read()
            except FileNotFoundError:
                raise
            except OSError:
                if patience is None:
                    raise
                time.sleep(patience)
        raise AssertionError


def is_url(source: str | Path) -> bool:
    """Whether it is the address of an object store or of another machine's files."""
    return isinstance(source, str) and re.match(r"[A-Za-z][\w+.-]+://", source) is not None


def url_source(url: str) -> Source:
    """Pictures or Parquet files at a URL, through pyarrow's file systems or else those of `fsspec`.

    Raises:
        ValueError: it can't be reached, or there are no pictures.
    """
    import fsspec

    try:
        try:
            filesystem, root = pafs.FileSystem.from_uri(url)
        except pa.ArrowInvalid:  # a scheme that pyarrow does not know
            other, root = fsspec.core.url_to_fs(url)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(other))
        root = PurePosixPath(root)
        if filesystem.get_file_info(root.as_posix()).type == pafs.FileType.File and root.suffix == ".parquet":
            return ParquetSource([root], root.parent, filesystem)
        found = filesystem.get_file_info(pafs.FileSelector(root.as_posix(), recursive=True))
    # Each store's library has exceptions of its own.
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"{url} can't be listed ({reason}); check the address and your access to it") from error
    paths = [PurePosixPath(f.path).relative_to(root) for f in found if f.type == pafs.FileType.File]
    shown = sorted(p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
    return _source_of(root, shown, url, filesystem)


class ParquetSource:
    """Rows of Parquet files, in Hugging Face's image convention or with a column of plain bytes."""

    sequential = True

    def __init__(self, paths: list[Any], root: PurePath, filesystem: pafs.FileSystem | None = None):
        self.paths: list[PurePath] = sorted(paths)
        self.filesystem = filesystem
        self.labels = []
        self.items = []
        self._places: list[tuple[int, int, int]] = []  # file, row group, row in it
        self._open: tuple[int, pq.ParquetFile] | None = None
        self._group: tuple[tuple[int, int], Any] | None = None  # (file, row group), its pictures
        splits = [_split_of(p.relative_to(root)) for p in self.paths]
        if "train" not in splits:
            splits = [None] * len(splits)
        numbers: list[list[Any]] = []
        metadata: list[pq.FileMetaData] = []
        for path in self.paths:
            try:
                with self._file(path) as file:
                    image, label, names = _columns(file.schema_arrow, path)
                    numbers.append(file.read([label])[label].to_pylist() if label is not None else [])
                    metadata.append(file.metadata)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is not a readable Parquet file ({error}); remove or replace it") from error
            if path == self.paths[0]:
                self.image, self.label, self.labels = image, label, names
            elif (image, label, names) != (self.image, self.label, self.labels):
                raise ValueError(f"{path} has other columns or labels than {self.paths[0]}; prepare them apart")
        decode = self._number_labels(numbers)
        for i, (path, split) in enumerate(zip(self.paths, splits, strict=True)):
            name = path.relative_to(root).as_posix()
            row = 0
            for group in range(metadata[i].num_row_groups):
                for within in range(metadata[i].row_group(group).num_rows):
                    label = decode(numbers[i][row]) if self.label is not None else None
                    self.items.append(Item(f"{name}#{row}", label, split))
                    self._places.append((i, group, within))
                    row += 1
        if not self.items:
            raise ValueError(f"{root} holds Parquet files without rows; give files that hold pictures")

    def _file(self, path: PurePath) -> pq.ParquetFile:
        return pq.ParquetFile(path.as_posix(), filesystem=self.filesystem)

    def _number_labels(self, numbers: list[list[Any]]):
        """How a label column's values become class numbers; names the classes if the file does not."""
        values = {v for column in numbers for v in column if v is not None}
        if self.labels:
            return lambda v: int(v) if v is not None and 0 <= v < len(self.labels) else None
        if values and all(isinstance(v, int) and v >= 0 for v in values):
            self.labels = [str(i) for i in range(max(values) + 1)]
            return lambda v: v
        self.labels = sorted(str(v) for v in values)
        index = {name: i for i, name in enumerate(self.labels)}
        return lambda v: None if v is None else index[str(v)]

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind when the source goes to another process."""
        return {**self.__dict__, "_open": None, "_group": None}

    def read(self, index: int) -> str | Path | bytes:
        """Bytes of a picture; its row group stays in memory for its neighbours."""
        file, group, row = self._places[index]
        if self._group is None or self._group[0] != (file, group):
            if self._open is None or self._open[0] != file:
                self._open = (file, self._file(self.paths[file]))
            table = self._open[1].read_row_group(group, columns=[self.image], use_threads=False)
            self._group = ((file, group), table[self.image].combine_chunks())
        picture = _picture(self._group[1][row].as_py(), self.paths[file].parent)
        if self.filesystem is None or isinstance(picture, bytes):
            return picture
        with self.filesystem.open_input_file(str(picture)) as place:
            return place.read()


def _split_of(path: PurePath) -> str | None:
    """The split that a path names, as ``train-00000-of-00002.parquet`` or ``train/0.parquet`` do."""
    for part in path.parts:
        first = re.split(r"[-._ ]", part)[0].lower()
        if first in _SPLIT_NAMES:
            return _SPLIT_NAMES[first]
    return None


def _columns(schema: pa.Schema, path: PurePath) -> tuple[str, str | None, list[str]]:
    """Names of the picture and the label column, and of the classes."""
    features: dict[str, Any] = {}
    with contextlib.suppress(KeyError, TypeError, json.JSONDecodeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    images = [n for n in schema.names if _feature(features, n).get("_type") == "Image"]
    images = images or [n for n in schema.names if _holds_bytes(schema.field(n).type)]
    if not images:
        raise ValueError(f"{path} has no column of pictures; give one of bytes, or of bytes and path")
    image = next((n for n in images if n in ("image", "img")), images[0])
    classes = [n for n in schema.names if _feature(features, n).get("_type") == "ClassLabel"]
    label = next((n for n in (*classes, "label", "labels", "class") if n in schema.names), None)
    if label is not None and not _is_label(schema.field(label).type):
        label = None
    return image, label, list(_feature(features, label).get("names") or []) if label in classes else []


def _feature(features: dict[str, Any], name: str | None) -> dict[str, Any]:
    feature = features.get(name or "")
    return feature if isinstance(feature, dict) else {}


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _picture(cell: Any, folder: PurePath) -> str | Path | bytes:
    """What a cell of the picture column holds: bytes, or where the file is."""
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, dict) and cell.get("bytes"):
        return cell["bytes"]
    if isinstance(cell, dict) and cell.get("path"):
        return str(folder / cell["path"])
    raise ValueError("there is no picture in this row")


class DatasetsSource:
    """The splits of a data set that the `datasets` library has loaded."""

    sequential = True

    def __init__(self, splits: dict[str, Any], name: str):
        import datasets

        self.labels = []
        self.items = []
        self._places: list[tuple[str, int]] = []
        self._data: dict[str, Any] = {}
        known = {s: _SPLIT_NAMES.get(s.split("_")[0].lower()) for s in splits}
        for split, data in splits.items():
            images = [n for n, f in data.features.items() if isinstance(f, datasets.Image)]
            if not images:
                raise ValueError(f"the data set {name} has no column of pictures; choose another")
            image = next((n for n in images if n in ("image", "img")), images[0])
            classes = [n for n, f in data.features.items() if isinstance(f, datasets.ClassLabel)]
            label = next((n for n in classes if n in ("label", "labels")), classes[0] if classes else None)
            if label is not None:
                self.labels = list(data.features[label].names)
            numbers = data[label] if label is not None else [None] * len(data)
            for row, number in enumerate(numbers):
                number = None if number is None or number < 0 else int(number)
                self.items.append(Item(f"{split}#{row}", number, known[split] if "train" in known.values() else None))
                self._places.append((split, row))
            self._data[split] = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        if not self.items:
            raise ValueError(f"the data set {name} holds no rows; choose another")

    def read(self, index: int) -> str | Path | bytes:
        """Bytes (or path) of a picture."""
        split, row = self._places[index]
        (cell,) = self._data[split][row].values()
        return _picture(cell, Path())


def loaded_source(data: Any) -> DatasetsSource:
    """What the `datasets` library has loaded: a ``Dataset`` or a ``DatasetDict``.

    Raises:
        ValueError: it is neither, or has no pictures.
    """
    library = _import_datasets()
    splits = data if isinstance(data, dict) else {"all": data}
    if not splits or not all(isinstance(part, library.Dataset) for part in splits.values()):
        raise ValueError(
            f"a {type(data).__name__} is no source; give a path, a URL, or a data set that was loaded without streaming"
        )
    return DatasetsSource(dict(splits), "given")


def _import_datasets(what: str = "this source") -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{what} needs the `datasets` library; install it with: pip install 'dctransformer[train]'"
        ) from error
    return datasets


def saved_source(path: Path) -> DatasetsSource:
    """A folder that `datasets` wrote with ``save_to_disk``.

    Raises:
        ValueError: it can't be read, or has no pictures.
    """
    library = _import_datasets()
    try:
        data = library.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be loaded by `datasets` ({error}); save it again") from error
    return DatasetsSource(data if isinstance(data, dict) else {"all": data}, str(path))


def hub_source(name: str) -> DatasetsSource:
    """A data set by its id, downloaded by the `datasets` library (into that library's own cache).

    Args:
        name: ``name``, ``owner/name`` or ``owner/name:config``.

    Raises:
        ValueError: the library can't load it, or it has no pictures.
    """
    library = _import_datasets(f"there is no file or folder {name}; as a data set of the hub, it")
    identifier, _, config = name.partition(":")
    try:
        # The library tries an unreachable hub for half a minute; a misspelt path should not wait for that.
        if not Path(library.config.HF_DATASETS_CACHE, identifier.replace("/", "___")).is_dir():
            huggingface_hub.HfApi().dataset_info(identifier, timeout=10)
        data = library.load_dataset(identifier, config or None)
    # An unknown id, a missing network or a bad file each come as exceptions of several libraries.
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name} is neither a folder here nor a data set that `datasets` can load ({reason}); check the name"
        ) from error
    return DatasetsSource(dict(data) if isinstance(data, dict) else {"all": data}, name)
