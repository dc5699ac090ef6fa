"""Folders of pictures, here or at a URL."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path, PurePath

import pyarrow.fs as pafs

from dctransformer.data.sources.arrange import Arrangement, File, arrange, drop_hidden, is_left_out


class FileSource:
    """Pictures that are files; labels and splits as in `arrange`."""

    sequential = False

    def __init__(
        self, files: list[File], contents: Callable[[str], bytes], labels: str | None, notes: list[str], skip: int = 0
    ):
        found: Arrangement = arrange(files, contents, labels, skip)
        self.items, self.labels, self.labels_from = found.items, found.labels, found.labels_from
        self.notes = notes + found.notes

    def _check(self, index: int) -> None:
        if self.items[index].problem:
            raise ValueError(f"{self.items[index].key} can't be read ({self.items[index].problem})")


class FolderSource(FileSource):
    """Image files in a folder of this machine."""

    def __init__(self, root: PurePath, files: list[File], labels: str | None = None, notes: list[str] | None = None):
        self.root = root
        super().__init__(files, lambda path: Path(root, path).read_bytes(), labels, notes or [])

    def read(self, index: int) -> str:
        """Return the path of a picture."""
        self._check(index)
        return os.path.join(self.root, self.items[index].key)  # pathlib is slow enough to be felt here


class UrlSource(FileSource):
    """Image files in an object store or on another machine."""

    def __init__(
        self,
        root: PurePath,
        files: list[File],
        filesystem: pafs.FileSystem,
        labels: str | None = None,
        notes: list[str] | None = None,
    ):
        self.root = root
        self.filesystem = filesystem
        super().__init__(files, self._bytes, labels, notes or [])

    def _bytes(self, path: str) -> bytes:
        with self.filesystem.open_input_file((self.root / path).as_posix()) as file:
            return file.read()

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture; after a failure of the network it is tried again."""
        self._check(index)
        for patience in (1, 4, None):
            try:
                return self._bytes(self.items[index].key)
            except FileNotFoundError:
                raise
            except OSError:
                if patience is None:
                    raise
                time.sleep(patience)
        raise AssertionError


def walk(root: Path, exclude: Path | None) -> tuple[list[File], list[str]]:
    """Return all files, sorted, without hidden ones and rubbish; links are followed, but not in circles.

    Args:
        root: where to look.
        exclude: a folder to leave out.

    Returns:
        The files, and notes about links that lead out of the folder.
    """
    found: list[File] = []
    outside: list[str] = []
    seen: set[str] = set()
    top = os.path.realpath(root)
    left_out = None if exclude is None or os.path.realpath(exclude) == top else os.path.realpath(exclude)

    def leads_out(path: str) -> bool:
        real = os.path.realpath(path)
        return real != top and not real.startswith(top.rstrip(os.sep) + os.sep)

    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or real == left_out:
            folders.clear()
            continue
        seen.add(real)
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        # Rubbish is counted by `drop_hidden`, so only hidden folders are left out here.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        outside += [
            prefix + name
            for name in folders
            if os.path.islink(os.path.join(folder, name)) and leads_out(os.path.join(folder, name))
        ]
        if any(is_left_out(part) for part in prefix.split("/")[:-1]):
            found += [File(prefix + name) for name in names]
            continue
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                continue
            stamp, problem = _facts(path)
            found.append(File(prefix + name, stamp, problem))
            if os.path.islink(path) and not problem and leads_out(path):
                outside.append(prefix + name)
    notes = []
    if outside:
        names = ", ".join(outside[:3]) + (", …" if len(outside) > 3 else "")
        notes.append(f"{len(outside):,} links lead out of {root} ({names}); what they lead to is taken, too")
    files, more = drop_hidden(sorted(found))
    return files, notes + more


def _facts(path: str) -> tuple[str, str]:
    """Return the size and time of a file, and why it can't be read."""
    try:
        facts = os.stat(path)
    except OSError:
        return "", ""  # reading it gives the reason
    if not stat.S_ISREG(facts.st_mode):
        return "", "not a regular file"
    return f"{facts.st_size}:{facts.st_mtime_ns}", ""
