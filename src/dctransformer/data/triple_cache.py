"""The cache of a split's triples: an Arrow file that is used only if this user derived it or it was checked.

The file lies in the hidden folder ``.cache`` of the data set, or in the user's cache folder where the data set can't
be written or is another user's. A receipt in the user's cache folder holds the hash of the file that was derived from
shards of this content. A file with another hash is never read. One without a receipt (a cache that came with a data
set) is derived again and compared.

The file is in Arrow's IPC format, a row per picture, all in one record batch: only so is a column one array, which is
mapped into memory without a copy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from dctransformer.files import LITTER_SECONDS, TEMPORARY, atomic_write, cache_folder, sweep, write_text

CACHE = ".cache"

PER_TRIPLE = {"channels": np.uint8, "positions": np.int32, "values": np.int16}
PER_PICTURE = {"labels": np.int64, "huffman_bytes": np.int32, "heights": np.int32, "widths": np.int32}
DTYPES = {**PER_TRIPLE, **PER_PICTURE, "lengths": np.int64}
"""Columns of pictures; ``lengths`` are their numbers of triples."""

_OLD_FILES = {f"{name}.npy" for name in (*PER_TRIPLE, *PER_PICTURE, "offsets")}
"""Files in the folders that earlier versions wrote."""

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

Batches = Iterable[dict[str, np.ndarray]]


def content_key(facts: Any, shards: list[Path]) -> str:
    """Return a hash of settings (as JSON) and of every byte of the shards: 32 hexadecimal digits.

    Raises:
        ValueError: a shard can't be read.
    """
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    for shard in shards:
        try:
            with shard.open("rb") as file:
                digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        except OSError as error:
            raise ValueError(f"{shard} can't be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def cached_arrays(folder: Path, split: str, key: str, batches: Callable[[str], Batches]) -> dict[str, np.ndarray]:
    """Map the arrays of a split from its cache, which is derived if needed.

    Args:
        folder: the data set.
        split: ``train`` or ``validation``.
        key: see `content_key`.
        batches: returns the columns (`DTYPES`) of all pictures in order; its argument describes the work.

    Returns:
        One-dimensional arrays, those of `PER_TRIPLE` and `PER_PICTURE` and ``offsets`` (int64 ``[n + 1]``), mapped
        read-only or, where no folder can be written, in memory.

    Raises:
        ValueError: the disk is full, or a shard is damaged.
    """
    name = f"{split}-{key}.arrow"
    cache = folder / CACHE
    places = [] if os.path.lexists(cache) and not _is_own(cache, stat.S_ISDIR) else [cache]
    paths = [place / name for place in (*places, _user_folder()) if place is not None]
    known = _read_receipt(name)
    for path in paths:
        if known is not None and _hash(path) == known:
            return _mapped(path)
    for path in paths:
        found = _hash(path)
        if found is None and os.path.lexists(path):  # a link or another user's
            continue
        is_unknown = found is not None and known is None
        work = "triples, to check the cache that came with them" if is_unknown else "triples"
        try:
            digest = _derive(path, batches(work), found)
        except ValueError as error:
            # The user's cache folder is only the second choice: whatever is wrong with it, memory will do.
            if path.parent == cache and getattr(error.__cause__, "errno", None) not in _READ_ONLY:
                raise
            continue
        if found not in (None, digest):
            warnings.warn(f"{path} does not hold what the shards give; the triples are derived anew", stacklevel=3)
        _write_receipt(name, digest)
        if path.parent == cache:
            _remove_stale(cache, split, name)
        else:
            warnings.warn(f"{cache} can't be used, so the triples are kept in {path}", stacklevel=3)
        return _mapped(path)
    warnings.warn(f"{cache} can't be written, so the triples are kept in memory", stacklevel=3)
    return in_memory(batches("triples"))


def in_memory(batches: Batches) -> dict[str, np.ndarray]:
    """Collect the arrays of `cached_arrays` in memory, without files."""
    parts = {name: [np.empty(0, dtype)] for name, dtype in DTYPES.items()}
    for batch in batches:
        for name, column in batch.items():
            parts[name].append(column)
    arrays = {name: np.concatenate(columns) for name, columns in parts.items()}
    arrays["offsets"] = _offsets(arrays.pop("lengths"))
    return arrays


# Places and trust -----------------------------------------------------------------------------------------------------


def _user_folder() -> Path | None:
    cache = cache_folder()
    return None if cache is None else cache / "triples"


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Return whether a path is this user's and of a kind (such as `stat.S_ISREG`); links are not followed."""
    with contextlib.suppress(OSError):
        facts = path.lstat()
        return is_kind(facts.st_mode) and facts.st_uid == os.geteuid()
    return False


def _hash(path: Path) -> str | None:
    """Return a hash of a file; None if it can't be read, is a link or is another user's."""
    if _is_own(path, stat.S_ISREG):
        with contextlib.suppress(OSError), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _receipt(name: str) -> Path | None:
    folder = _user_folder()
    return None if folder is None else folder / f"{name}.json"


def _read_receipt(name: str) -> str | None:
    path = _receipt(name)
    if path is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(path.read_text(encoding="utf-8"))["digest"])
    return None


def _write_receipt(name: str, digest: str) -> None:
    path = _receipt(name)
    try:
        if path is not None:
            write_text(path, json.dumps({"digest": digest}))
            return
        reason = "there is no home folder"
    except ValueError as error:
        reason = str(error).removesuffix("; choose another folder")
    warnings.warn(
        f"{reason}, so the triples will be derived again next time; "
        "set DCTRANSFORMER_CACHE to a folder that can be written",
        stacklevel=4,
    )


def _remove_stale(cache: Path, split: str, current: str) -> None:
    """Remove what this user derived from other shards or with earlier versions, and litter of killed jobs."""
    sweep(cache)
    with contextlib.suppress(OSError):
        for path in cache.iterdir():
            if re.fullmatch(rf"{split}-[0-9a-f]{{32}}\.arrow", path.name):
                if path.name != current and _is_own(path, stat.S_ISREG):
                    path.unlink()
            # Folders of earlier versions, finished or not; 16 digits: before the key covered the shards' contents.
            elif re.fullmatch(rf"{split}-([0-9a-f]{{16}}|[0-9a-f]{{32}})", path.name) or (
                TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > LITTER_SECONDS
            ):
                _remove_old(path)


def _remove_old(path: Path) -> None:
    """Remove a folder of arrays; one that is a link, another user's or holds anything else stays as it is."""
    with contextlib.suppress(OSError):
        if not _is_own(path, stat.S_ISDIR):
            return
        entries = list(os.scandir(path))
        if all(entry.name in _OLD_FILES and entry.is_file(follow_symlinks=False) for entry in entries):
            for entry in entries:
                os.unlink(entry.path)
            path.rmdir()


# The file -------------------------------------------------------------------------------------------------------------


class _Unchanged(Exception):
    """Raised when the file already holds what would be written."""


def _derive(path: Path, batches: Batches, found: str | None) -> str:
    """Write the file, unless the one that is there has the same bytes, and return its hash.

    Memory stays bounded, because the columns grow in temporary files.

    Args:
        path: of the file.
        batches: see `cached_arrays`.
        found: hash of the file that is there; None if there is none.

    Raises:
        ValueError: the folder can't be written (its cause is the OSError), or a shard is damaged.
    """
    digest = found
    with (
        contextlib.suppress(_Unchanged), atomic_write(path, durable=True) as temporary, contextlib.ExitStack() as stack
    ):  # fmt: skip
        files = {name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in DTYPES}
        for batch in batches:
            for name, column in batch.items():
                files[name].write(column.data)
        columns = {name: pa.array(_column(file, DTYPES[name])) for name, file in files.items()}
        triples = pa.StructArray.from_arrays([columns[name] for name in PER_TRIPLE], list(PER_TRIPLE))
        lists = pa.LargeListArray.from_arrays(_offsets(columns["lengths"]), triples)
        batch = pa.record_batch({"triples": lists, **{name: columns[name] for name in PER_PICTURE}})
        with temporary.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == found:
            raise _Unchanged
    assert digest is not None
    return digest


def _column(file: BinaryIO, dtype: Any) -> np.ndarray:
    """Map a file's contents into memory (an empty file can't be mapped)."""
    file.flush()
    return np.memmap(file, dtype, "r") if file.tell() else np.empty(0, dtype)


def _offsets(lengths: Any) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a file that `_derive` wrote."""
    batch = pa.ipc.open_file(pa.py_buffer(np.memmap(path, mode="r"))).get_batch(0)
    lists = batch["triples"]
    arrays = {name: lists.values.field(name) for name in PER_TRIPLE} | {name: batch[name] for name in PER_PICTURE}
    return {name: array.to_numpy() for name, array in {**arrays, "offsets": lists.offsets}.items()}
