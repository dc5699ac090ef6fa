"""The cache of a split's triples: ``.npy`` files that are used only if this user derived them or they were checked.

The arrays lie in the hidden folder ``.cache`` of the data set, or in the user's cache folder where the data set can't
be written or is another user's. A receipt in the user's cache folder holds the digest of what was derived from shards
of this content. Arrays without a receipt (a cache that came with a data set) are compared with what the shards give
before anything reads them. Nothing is removed but folders that hold exactly the files written here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dctransformer.files import LITTER_SECONDS, TEMPORARY, cache_folder, explained, temporary_name, write_text

CACHE = ".cache"

_NAME = re.compile(r"(train|validation)-([0-9a-f]{16}|[0-9a-f]{32})")
"""Names of the folders of arrays (16 digits: before the key covered the contents of the shards)."""

_OF_TRIPLES = ("channels", "positions", "values")
"""Arrays with an entry per triple; the others have one per picture."""

_ARRAYS = (*_OF_TRIPLES, "offsets", "labels", "huffman_bytes", "heights", "widths")
"""Names of the arrays of this and of other versions."""

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

Batches = Iterable[dict[str, np.ndarray]]


def content_key(facts: Any, shards: list[Path]) -> str:
    """Hash of settings (as JSON) and of every byte of the shards: 32 hexadecimal digits.

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


def cached_arrays(
    folder: Path, split: str, key: str, dtypes: Mapping[str, Any], batches: Callable[[str], Batches]
) -> dict[str, np.ndarray]:
    """Map the arrays of a split from its cache, which is made if needed.

    Args:
        folder: the data set.
        split: ``train`` or ``validation``.
        key: see `content_key`.
        dtypes: names and types of the arrays; ``offsets`` is among them.
        batches: gives all pictures' columns in order, ``lengths`` for ``offsets``; its argument describes the work.

    Returns:
        One-dimensional arrays, mapped read-only or, where no folder can be written, in memory.

    Raises:
        ValueError: the disk is full, or a shard is damaged.
    """
    name = f"{split}-{key}"
    places = [place for place in (_cache_of(folder), _user_folder()) if place is not None]
    for place in places:
        arrays = _checked(place / name, dtypes, batches)
        if arrays is not None:
            return arrays
    for place in places:
        path = place / name
        if os.path.lexists(path):  # a link, another user's, or with other files in it
            continue
        try:
            digest = _derive(path, dtypes, batches("triples"))
        except OSError as error:
            # The user's cache folder is only the second choice: whatever is wrong with it, memory will do.
            if place == folder / CACHE and error.errno not in _READ_ONLY:
                raise explained(error, path) from error
            continue
        _write_receipt(name, digest)
        if place == folder / CACHE:
            _remove_stale(place, split, name)
        else:
            warnings.warn(f"{folder / CACHE} can't be used, so the triples are kept in {path}", stacklevel=3)
        return _load(path, dtypes)
    warnings.warn(f"{folder / CACHE} can't be written, so the triples are kept in memory", stacklevel=3)
    return in_memory(dtypes, batches("triples"))


def in_memory(dtypes: Mapping[str, Any], batches: Batches) -> dict[str, np.ndarray]:
    """The same arrays without files."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*dtypes, "lengths") if name != "offsets"}
    for batch in batches:
        for name, array in batch.items():
            parts[name].append(array)
    nothing = np.empty(0, np.uint8)  # so that an empty list joins too; uint8 widens to any of the types
    arrays = {name: np.concatenate([nothing, *arrays]) for name, arrays in parts.items()}
    arrays["offsets"] = np.concatenate([[0], np.cumsum(arrays.pop("lengths"))])
    return {name: arrays[name].astype(dtype, copy=False) for name, dtype in dtypes.items()}


# Places and trust -----------------------------------------------------------------------------------------------------


def _cache_of(folder: Path) -> Path | None:
    """The data set's cache folder; None if it is a link or another user's."""
    cache = folder / CACHE
    return cache if _is_own_folder(cache) or not os.path.lexists(cache) else None


def _user_folder() -> Path | None:
    cache = cache_folder()
    return None if cache is None else cache / "triples"


def _is_own_folder(path: Path) -> bool:
    """Whether it is a real folder (no link) of this user."""
    with contextlib.suppress(OSError):
        facts = path.lstat()
        return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
    return False


def _checked(path: Path, dtypes: Mapping[str, Any], batches: Callable[[str], Batches]) -> dict[str, np.ndarray] | None:
    """The arrays of a folder if they are those of the shards; otherwise the folder is removed."""
    if not _is_own_folder(path):
        return None
    try:
        arrays = _load(path, dtypes)
    except ValueError as error:
        warnings.warn(f"{error}; the triples are derived anew", stacklevel=4)
        _remove(path)
        return None
    known = _read_receipt(path.name)
    if known is None:
        known = _derive(None, dtypes, batches("triples, to check the cache that came with them"))
        _write_receipt(path.name, known)
    if known == _digest_of(arrays):
        return arrays
    warnings.warn(f"{path} does not hold what the shards give; the triples are derived anew", stacklevel=4)
    _remove(path)
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
        stacklevel=5,
    )


def _remove_stale(cache: Path, split: str, current: str) -> None:
    """Remove what this user derived from other shards, and litter of killed jobs."""
    with contextlib.suppress(OSError):
        for path in cache.iterdir():
            is_stale = _NAME.fullmatch(path.name) and path.name.startswith(f"{split}-") and path.name != current
            if is_stale or (TEMPORARY.fullmatch(path.name) and _age(path) > LITTER_SECONDS):
                _remove(path)


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


def _remove(path: Path) -> None:
    """Remove a folder of arrays; one that is a link, another user's or holds anything else stays as it is."""
    names = {f"{name}.npy" for name in _ARRAYS}
    with contextlib.suppress(OSError):
        if not _is_own_folder(path):
            return
        entries = list(os.scandir(path))
        if all(entry.name in names and entry.is_file(follow_symlinks=False) for entry in entries):
            for entry in entries:
                os.unlink(entry.path)
            path.rmdir()


# Files ----------------------------------------------------------------------------------------------------------------


class _Digest:
    """A hash of several arrays that grow."""

    def __init__(self, names: Iterable[str]):
        self.parts = {name: hashlib.blake2b(digest_size=16) for name in sorted(names)}

    def update(self, name: str, array: np.ndarray) -> None:
        if array.size:
            self.parts[name].update(np.ascontiguousarray(array).data.cast("B"))

    def hexdigest(self) -> str:
        text = " ".join(f"{name}:{part.hexdigest()}" for name, part in self.parts.items())
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest_of(arrays: dict[str, np.ndarray]) -> str:
    digest = _Digest(arrays)
    for name, array in arrays.items():
        digest.update(name, array)
    return digest.hexdigest()


def _derive(path: Path | None, dtypes: Mapping[str, Any], batches: Batches) -> str:
    """Write the arrays into a folder that appears only when they are complete and on the disk.

    Args:
        path: of the folder; None to compute the digest alone.
        dtypes: names and types of the arrays.
        batches: see `cached_arrays`.

    Returns:
        The digest of the arrays.
    """
    digest = _Digest(dtypes)
    if path is None:
        _append(batches, {name: _Column(None, dtype) for name, dtype in dtypes.items()}, digest)
        return digest.hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name())
    temporary.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((temporary / f"{name}.npy").open("wb")) for name in dtypes}
            columns = {name: _Column(files[name], dtype) for name, dtype in dtypes.items()}
            _append(batches, columns, digest)
            for column in columns.values():
                column.finish()
        _sync(temporary)
        try:
            temporary.rename(path)
        except OSError:
            # Unless another process was faster, whose arrays are the same.
            if not _is_own_folder(path) or _digest_of(_load(path, dtypes)) != digest.hexdigest():
                raise
        _sync(path.parent)
    finally:
        _remove(temporary)
    return digest.hexdigest()


def _append(batches: Batches, columns: dict[str, _Column], digest: _Digest) -> None:
    total = 0

    def add(name: str, array: np.ndarray) -> None:
        array = array.astype(columns[name].dtype, copy=False)
        columns[name].append(array)
        digest.update(name, array)

    add("offsets", np.zeros(1))
    for batch in batches:
        add("offsets", total + np.cumsum(batch["lengths"]))
        total += int(batch["lengths"].sum())
        for name, array in batch.items():
            if name != "lengths":
                add(name, array)


def _sync(folder: Path) -> None:
    """Wait until the disk holds a folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Column:
    """A one-dimensional .npy file that grows, or none at all."""

    def __init__(self, file: BinaryIO | None, dtype: Any):
        self.file, self.dtype, self.length = file, np.dtype(dtype), 0
        if file is not None:
            file.write(self.header(self.dtype, 0))

    @staticmethod
    def header(dtype: np.dtype, length: int) -> bytes:
        """The start of the file; numpy pads it so that its size does not depend on the length."""
        out = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(out, description)
        return out.getvalue()

    def append(self, array: np.ndarray) -> None:
        """Add values at the end."""
        if self.file is not None:
            self.file.write(array.tobytes())
        self.length += len(array)

    def finish(self) -> None:
        """Put the final length into the header and wait until the disk holds the file."""
        assert self.file is not None
        self.file.seek(0)
        self.file.write(self.header(self.dtype, self.length))
        self.file.flush()
        os.fsync(self.file.fileno())


def _load(path: Path, dtypes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Map the arrays.

    Raises:
        ValueError: a file is missing, a link or damaged, or the offsets don't fit the other arrays.
    """
    try:
        arrays = {}
        for name, dtype in dtypes.items():
            file = path / f"{name}.npy"
            facts = file.lstat()
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError(f"{file.name} is not a regular file")
            # An empty array is a header alone, which can't be mapped.
            is_empty = facts.st_size <= len(_Column.header(np.dtype(dtype), 0))
            array = np.load(file, mmap_mode=None if is_empty else "r", allow_pickle=False)
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError("unexpected contents")
            arrays[name] = array
        offsets = arrays["offsets"]
        if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError("offsets that are not sorted")
        lengths = {len(arrays[name]) for name in _OF_TRIPLES}
        pictures = {len(array) for name, array in arrays.items() if name not in (*_OF_TRIPLES, "offsets")}
        if lengths != {int(offsets[-1])} or pictures != {len(offsets) - 1}:
            raise ValueError("unexpected lengths")
        return arrays
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
