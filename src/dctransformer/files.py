"""Atomic writes, exclusive temporary files and folder locks: nothing is ever half-written or written twice at once.

It also makes file names and other untrusted text safe to print.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import stat
import time
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = re.compile(r"\.dctransformer-[0-9a-f]{16}\.part")
"""Names of temporary files and folders; nothing else is ever removed as litter."""

LITTER_SECONDS = 3600
"""Age at which a temporary file counts as left behind by a job that was killed."""

_LOCK = ".dctransformer.lock"


def temporary_name() -> str:
    """Return a random name for a temporary file or folder, which matches `TEMPORARY`.

    It holds no process id, because processes in different containers that share a folder can have the same one.
    """
    return f".dctransformer-{secrets.token_hex(8)}.part"


@contextlib.contextmanager
def atomic_write(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of an empty temporary file in the same folder; it replaces ``path`` when the block ends well.

    Args:
        path: of the file to write; missing folders are made. A link at this place is replaced, not followed.
        durable: wait until the disk holds the file, so that it also survives a power cut.

    Raises:
        ValueError: the disk is full or the folder can't be written; ``path`` is as it was before.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(temporary_name())
        # Unlike tempfile's, the file gets the permissions that the umask allows.
        os.close(_create(temporary))
    except OSError as error:
        raise write_error(error, path) from error
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # some libraries make their own file at this path, which only its owner can read
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _create(path: Path) -> int:
    """Create a file that must not exist yet, not even as a link."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(error: OSError, path: Path) -> ValueError:
    """Return the error for a file that can't be written, as a sentence for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ValueError(f"the disk is full: {path} was not written; free some space and run the command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ValueError(f"{path} can't be written (no permission); choose another folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return ValueError(f"{path} can't be written: a file is in the way; choose another folder")
    if error.errno == errno.ENAMETOOLONG:
        return ValueError(f"{path} can't be written: the name is too long; choose a shorter one")
    return ValueError(f"{path} can't be written: {error.strerror or error}; choose another folder")


def check_regular(path: str | Path) -> None:
    """Raise ValueError for named pipes, devices and sockets, which may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # opening it gives the reason
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is not a regular file; replace or remove it")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        ValueError: the disk is full or the folder can't be written; the file is as it was before.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        ValueError: the disk is full or the folder can't be written; the file is as it was before.
    """
    import safetensors
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:
            # The library keeps the system's error number in its text only.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def check_place(path: str | Path) -> None:
    """Check that a file can be written, before the work whose result it is to hold; no file is left behind.

    Raises:
        ValueError: the file can't be written.
    """
    path = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(path).st_mode):
                raise ValueError(f"{path} is a folder; give the name of a file")
        folder = path.resolve().parent
        while not folder.exists():
            folder = folder.parent
        probe = folder / temporary_name()
        os.close(_create(probe))
        probe.unlink()
    except OSError as error:
        raise write_error(error, path) from error


def make_folder(path: str | Path, names: Iterable[str] = ()) -> Path:
    """Make a folder and check that it can be written, before the work whose results it is to hold.

    Temporary files that a killed job left there more than an hour ago are removed.

    Args:
        path: of the folder.
        names: of files that are to be written there; their length is checked.

    Raises:
        ValueError: the folder can't be made or written, or a name is too long.
    """
    path = Path(path)
    probe = path / temporary_name()
    try:
        path.mkdir(parents=True, exist_ok=True)
        os.close(_create(probe))
        probe.unlink()
    except OSError as error:
        raise write_error(error, path) from error
    for name in names:
        try:
            os.lstat(path / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise write_error(error, path / name) from error
    sweep(path)
    return path


def sweep(folder: str | Path, older_than: float = LITTER_SECONDS) -> None:
    """Remove temporary files that killed jobs of this user left in a folder.

    Only regular files whose names match `TEMPORARY` are removed; links and the files of others stay.

    Args:
        folder: where to look; folders inside are not searched.
        older_than: seconds since the last write to a file.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                facts = entry.stat(follow_symlinks=False)
                old = time.time() - facts.st_mtime > older_than
                if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.getuid() and old:
                    os.unlink(entry.path)


@contextlib.contextmanager
def locked_folder(path: str | Path) -> Iterator[Path]:
    """Hold the exclusive lock of a folder that one process at a time may write, such as a run folder or a data set.

    The lock is a `flock` on a file in the folder, so that it ends with its process however that ends. Where the file
    system has no locks, a warning is issued and the block runs without one. Litter of killed jobs is removed.

    Args:
        path: of the folder; it is made if needed, and removed again if the block leaves nothing in it.

    Yields:
        The folder.

    Raises:
        ValueError: another process holds the lock (the sentence names its id, its host and since when), or the folder
            can't be written.
    """
    folder = Path(path)
    lock = folder / _LOCK
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(lock)
    except BlockingIOError:
        raise ValueError(
            f"{folder} is in use by {_holder(lock)}; wait for it to end, or choose another folder"
        ) from None
    except OSError as error:
        raise write_error(error, lock) from error
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(facts).encode(), 0)
        sweep(folder, older_than=60)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # forked workers may still have the file open
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for place in missing:
                place.rmdir()  # only if it is empty


def _open_locked(lock: Path) -> int:
    """Open a lock file and lock it; raises BlockingIOError if another process holds the lock."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between the two calls.
            if os.path.samestat(os.fstat(descriptor), os.lstat(lock)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except FileNotFoundError:
            pass
        except OSError as error:
            warnings.warn(f"{lock.parent} can't be locked ({error.strerror}); run one command at a time", stacklevel=4)
            return descriptor
        os.close(descriptor)


def _holder(lock: Path) -> str:
    """Describe who holds a lock."""
    try:
        holder = json.loads(lock.read_bytes()[:1000])
        host = re.sub(r"[^\w.-]", "?", str(holder["host"]))
        return f"process {int(holder['pid'])} on {host} since {re.sub(r'[^0-9:+ -]', '?', str(holder['since']))}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def cache_folder() -> Path | None:
    """Return the folder of files that can be computed again: ``$DCTRANSFORMER_CACHE``, or the user's; None without."""
    chosen = os.environ.get("DCTRANSFORMER_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dctransformer")
    except RuntimeError:
        return None


def printable(text: object) -> str:
    """Escape everything that could control a terminal or can't be encoded, such as in names that others chose.

    Control characters, line ends, marks that change the direction of text and undecodable bytes become escapes.
    """
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, without a full stop; the kind of error if it is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def printable_lines(text: str) -> str:
    """Escape each line of a text, such as a traceback, as `printable` does; the line ends stay."""
    return "\n".join(map(printable, text.split("\n")))
