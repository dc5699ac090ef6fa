"""Recognise what a user names as a source: a folder, a file, a URL, a data set of the hub."""

from __future__ import annotations

import re
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from dctransformer.data.sources.archives import ArchiveSource, is_archive
from dctransformer.data.sources.arrange import File, drop_hidden, is_picture
from dctransformer.data.sources.base import Source, count_noun
from dctransformer.data.sources.folders import FolderSource, UrlSource, walk
from dctransformer.data.sources.hub import hub_source, loaded_source, saved_source
from dctransformer.data.sources.parquet import NoPictures, ParquetSource
from dctransformer.files import first_line

_METADATA_TABLE = "metadata.parquet"
"""A table about pictures in a folder, not of pictures."""


def open_source(source: Any, exclude: Path | None = None, labels: str | None = None) -> Source:
    """Recognise a source.

    Args:
        source: a folder of pictures, a Parquet file or a folder of them (each may be a URL: ``s3://…``, ``gs://…``,
            ``hf://…``), a zip or tar file or a folder of them, a folder written by ``save_to_disk``, the id of a data
            set on the Hugging Face hub (``name``, ``owner/name`` or ``owner/name:config``), or what the `datasets`
            library has loaded.
        exclude: a folder to leave out of the listing (where the output goes).
        labels: ``none``, ``folders``, a table of labels, or a column; None to recognise them.

    Raises:
        ValueError: there is no such thing, no picture in it, or no such labels.
    """
    if not isinstance(source, (str, Path)):
        return loaded_source(source, labels)
    if is_url(source):
        inside = re.fullmatch(r"(?:zip|tar)://::(?:file://)?([^:]+)", str(source))
        if inside is None:
            return _url_source(str(source), labels)
        source = inside[1]
    if not str(source).strip():
        raise ValueError("nothing is named as the source; give a folder of pictures")
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".parquet":
            return ParquetSource([path], path.parent, labels=labels)
        if is_archive(path):
            return _with_pictures(ArchiveSource([path], path.parent, labels), path)
        raise ValueError(
            f"{source} is a file; give a folder of pictures, a .parquet, .zip or .tar file, or a `datasets` id"
        )
    if not path.is_dir():
        if path.exists():
            raise ValueError(f"{source} is not a regular file or a folder; give a folder of pictures")
        if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", str(source)):
            return hub_source(str(source), labels)
        raise ValueError(f"there is no folder or file {source}; check the path")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return saved_source(path, labels)
    files, notes = walk(path, exclude)
    return _source_of(path, files, notes, str(source), None, labels)


def _source_of(
    root: PurePath,
    files: list[File],
    notes: list[str],
    source: str,
    filesystem: pafs.FileSystem | None,
    labels: str | None,
) -> Source:
    """Open a folder of files as Parquet, pictures, or archives."""
    pictures = sum(is_picture(file.path) for file in files)
    tables = [f.path for f in files if f.path.endswith(".parquet") and not f.problem]
    tables = [path for path in tables if PurePath(path).name != _METADATA_TABLE]
    archives = [f.path for f in files if is_archive(f.path) and not f.problem]
    if tables:
        try:
            found = ParquetSource([root / p for p in tables], root, filesystem, labels)
            if pictures:
                notes.append(
                    f"the Parquet files are taken, not the {count_noun(pictures, 'picture file')} next to them"
                )
            found.notes[:0] = notes
            return found
        except NoPictures:
            if not pictures:
                raise
            notes.append("the Parquet files are not taken: they have no column of pictures")
    if pictures:
        if archives:
            notes.append(f"{len(archives)} archives next to the pictures are not taken; unpack them first")
        if filesystem is None:
            return FolderSource(root, files, labels, notes)
        return UrlSource(root, files, filesystem, labels, notes)
    if archives and filesystem is None:
        return _with_pictures(ArchiveSource([Path(root, p) for p in archives], Path(root), labels), source)
    if archives:
        raise ValueError(f"{source} holds archives, which are read from this machine only; download them first")
    raise ValueError(
        f"{source} holds no pictures; give a folder of image files (sub-folders are labels) or of .parquet files"
        if files
        else f"the folder {source} is empty; give a folder that holds pictures"
    )


def _with_pictures(source: ArchiveSource, path: str | Path) -> ArchiveSource:
    if not source.items:
        raise ValueError(f"{path} holds no pictures; give an archive of image files")
    return source


def is_url(source: str | Path) -> bool:
    """Return whether a source is the address of an object store or of another machine's files."""
    return isinstance(source, str) and re.match(r"[A-Za-z][\w+.-]+://", source) is not None


def is_single_picture(path: str | Path) -> bool:
    """Return whether a path is a file that is neither a table nor an archive."""
    return Path(path).is_file() and Path(path).suffix != ".parquet" and not is_archive(path)


def _url_source(url: str, labels: str | None) -> Source:
    """Return the pictures or Parquet files at a URL, through pyarrow's file systems or else those of `fsspec`.

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
        is_file = filesystem.get_file_info(root.as_posix()).type == pafs.FileType.File
        if not (is_file and root.suffix == ".parquet"):
            found = filesystem.get_file_info(pafs.FileSelector(root.as_posix(), recursive=True))
    # Each store's library has exceptions of its own.
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"{url} can't be listed ({reason}); check the address and your access to it") from error
    if is_file and root.suffix == ".parquet":
        return ParquetSource([root], root.parent, filesystem, labels)
    files = [
        File(PurePosixPath(f.path).relative_to(root).as_posix(), f"{f.size}:{f.mtime_ns or 0}")
        for f in found
        if f.type == pafs.FileType.File
    ]
    kept, notes = drop_hidden(sorted(files))
    return _source_of(root, kept, notes, url, filesystem, labels)
