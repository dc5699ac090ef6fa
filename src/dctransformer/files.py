"""Writing files so that nothing is ever half-written: beside, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that becomes ``path`` when the block ends well.

    Raises:
        ValueError: the disk is full or the folder can't be written; ``path`` is as it was before.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def explained(error: OSError, path: Path) -> ValueError:
    """The sentence a user needs when a file can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ValueError(f"the disk is full: {path} was not written; free some space and run the command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ValueError(f"{path} can't be written (no permission); choose another folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return ValueError(f"{path} can't be written: a file is in the way; choose another folder")
    return ValueError(f"{path} can't be written: {error.strerror or error}; choose another folder")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text beside and rename."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside and rename.

    Raises:
        ValueError: the disk is full or the folder can't be written; the file is as it was before.
    """
    umask = os.umask(0)
    os.umask(umask)
    with written_beside(path) as beside:
        try:
            save_file(tensors, beside, metadata=metadata)
            beside.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read
        except safetensors.SafetensorError as error:
            # The library keeps the system's error number in its text only.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def make_folder(path: str | Path) -> Path:
    """Make a folder and see that it can be written, before the work whose results it is to hold.

    Raises:
        ValueError: it can't be made or written.
    """
    path = Path(path)
    probe = path / f".{os.getpid()}.part"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise explained(error, path) from error
    return path
