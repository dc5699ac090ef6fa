"""Pictures in zip and tar files, read without unpacking them; samples of WebDataset with their ``.cls`` files."""

from __future__ import annotations

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dctransformer.data.sources.arrange import File, drop_hidden
from dctransformer.data.sources.base import split_of
from dctransformer.data.sources.folders import FileSource

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

MAX_FILE = 2**30
"""Largest file in bytes that is unpacked."""

_DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)


def is_archive(path: str | Path) -> bool:
    """Return whether a file is taken for an archive, by its name."""
    return str(path).lower().endswith(SUFFIXES)


class ArchiveSource(FileSource):
    """Pictures in one archive, or in several of a folder; folders inside are labels and splits as anywhere.

    Members are read in place: nothing is written, so names such as ``../x`` and links lead nowhere.
    """

    def __init__(self, paths: list[Path], root: Path, labels: str | None = None):
        self.paths = sorted(paths)
        self._members: list[tuple[int, Any, int]] = []  # archive; name in a zip file, or place in a tar file; size
        self._open: tuple[int, int, Any] | None = None  # process, archive, what reads it
        files: list[File] = []
        several = len(self.paths) > 1
        stems = [_stem(path) for path in self.paths]
        splits = [split_of(stem) for stem in stems]
        # Numbered pieces of one set are no classes; cat.zip and dog.zip are.
        numbered = all(re.search(r"\d", stem) for stem in stems) or all(splits)
        where: dict[str, int] = {}
        for number, path in enumerate(self.paths):
            prefix = path.relative_to(root).with_name(stems[number]).as_posix() + "/" if several else ""
            for file in self._list(number, path):
                place = len(self._members) - 1
                split = splits[number] if several and "train" in splits else None
                name = prefix + file.path
                if name not in where:  # of members with one name, the first
                    where[name] = place
                    files.append(file._replace(path=name, split=split))
        self.sequential = any(_is_compressed(path) for path in self.paths)
        kept, notes = drop_hidden(files if self.sequential else sorted(files))
        if several and numbered:
            notes.append(f"{len(self.paths)} archives are taken as pieces of one set")
        self._places = where
        super().__init__(
            kept, lambda name: self._bytes(where[name]), labels, notes, skip=1 if several and numbered else 0
        )
        self._places = {item.key: where[item.key] for item in self.items}

    def _list(self, number: int, path: Path):
        """Yield an archive's files; while it is yielded, each is the last of ``_members``."""
        stamp = f"{path.stat().st_size}:{path.stat().st_mtime_ns}"
        try:
            if path.suffix.lower() == ".zip":
                with zipfile.ZipFile(path) as archive:
                    for member in archive.infolist():
                        if not member.is_dir():
                            self._members.append((number, member.filename, member.file_size))
                            yield File(
                                _clean(member.filename), f"{member.CRC:08x}:{member.file_size}", _problem(member)
                            )
                return
            with tarfile.open(path) as archive:
                labels: dict[str, bytes] = {}
                listed = []
                for member in archive:
                    name = _clean(member.name)
                    if name.endswith(".cls") and member.isreg() and member.size < 256:
                        labels[_sample(name)] = archive.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
                    elif not member.isdir():
                        listed.append((name, member.offset_data, member.size, member.isreg(), member.mtime))
                for name, offset, size, regular, changed in listed:
                    self._members.append((number, offset, size))
                    problem = "" if regular else "not a regular file"
                    label = labels.get(_sample(name), b"").decode("utf-8", "replace").strip() or None
                    yield File(name, f"{size}:{changed}:{stamp}", problem or _too_large(size), label=label)
        except _DAMAGE as error:
            raise ValueError(f"{path} is not a readable archive ({error}); fetch it again or unpack it") from error

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when the source is sent to another process."""
        return {**self.__dict__, "_open": None}

    def _bytes(self, place: int) -> bytes:
        number, member, size = self._members[place]
        if self._open is None or self._open[:2] != (os.getpid(), number):
            self._open = (os.getpid(), number, _reader(self.paths[number]))
        archive = self._open[2]
        try:
            if isinstance(archive, zipfile.ZipFile):
                with archive.open(member) as file:
                    data = file.read(MAX_FILE + 1)
            else:
                archive.seek(member)
                data = archive.read(size)
        except _DAMAGE as error:
            self._open = None
            raise ValueError(f"{self.paths[number]} is damaged ({error}); fetch it again") from error
        if len(data) != size:
            raise ValueError(f"{self.paths[number]} is cut off; fetch it again")
        return data

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture."""
        self._check(index)
        return self._bytes(self._places[self.items[index].key])


def _reader(path: Path) -> zipfile.ZipFile | IO[bytes]:
    """Return a zip file, or the unpacked stream of a tar file."""
    if path.suffix.lower() == ".zip":
        return zipfile.ZipFile(path)
    fileobj = tarfile.open(path).fileobj  # noqa: SIM115 (kept open)
    assert fileobj is not None
    return fileobj  # pyright: ignore[reportReturnType]


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() not in (".zip", ".tar")


def _stem(path: Path) -> str:
    suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s))
    return path.name[: -len(suffix)]


def _clean(name: str) -> str:
    """Return a member's name as a relative path."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _sample(name: str) -> str:
    """Return the common name of a sample's members: the name up to its first dot."""
    path = PurePosixPath(name)
    return (path.parent / path.name.split(".")[0]).as_posix()


def _problem(member: zipfile.ZipInfo) -> str:
    if member.flag_bits & 1:
        return "it is encrypted; unpack the archive first"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "not a regular file"
    return _too_large(member.file_size)


def _too_large(size: int) -> str:
    return f"it has more than {MAX_FILE >> 20} MiB" if size > MAX_FILE else ""
