"""Writing files so that nothing is ever half-written: beside, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
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
