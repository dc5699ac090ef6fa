"""libjpeg-turbo's coefficient interface, as the package `jpeglib` carries it.

Its functions write to whatever memory they get, through files. So buffers are sized by what this very library reports
of the very bytes it reads (`frame`), and its Python wrappers, which keep files in the shared temporary folder, are
passed by. Give it only files that `segments.JpegFile.plain` wrote and a strict decoder accepted: an error inside
the library prints a line to stderr, and one in a header would close a file that was never opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jpeglib
import numpy as np
from jpeglib import _bind

jpeglib.version.set("turbo210")  # Global to the process; every other version in the package is slower or laxer.
_library = _bind.CJpegLib.get()
_OPTIMIZE = _bind.CJpegLib.flags_to_mask(["+OPTIMIZE_CODING"])

_MAX_COMPONENTS = 10
"""libjpeg's own limit, for which the report's buffers are made."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """Libjpeg's report of a file.

    Attributes:
        height: pixels.
        width: pixels.
        factors: sampling factors (down, across) of each component.
        grids: blocks (down, across) of each component.
    """

    height: int
    width: int
    factors: list[tuple[int, int]]
    grids: list[tuple[int, int]]


@contextlib.contextmanager
def _scratch_file() -> Iterator[tuple[int, bytes]]:
    """Yield descriptor and path of an empty private file: in memory where the system can, else in a private folder."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        handle = os.memfd_create("picture.jpg")
        try:
            yield handle, b"/proc/self/fd/%d" % handle
        finally:
            os.close(handle)
        return
    with tempfile.TemporaryDirectory(prefix="dctransformer-") as folder:
        path = Path(folder, "picture.jpg")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            yield handle, os.fsencode(path)
        finally:
            os.close(handle)


def _fill(handle: int, data: bytes) -> None:
    """Replace the contents of a file by ``data``."""
    os.lseek(handle, 0, os.SEEK_SET)
    written = 0
    while written < len(data):
        written += os.write(handle, memoryview(data)[written:])
    if os.fstat(handle).st_size > written:
        os.ftruncate(handle, written)


def _buffer(*shape: int, dtype: type[np.generic]) -> np.ndarray:
    """Allocate memory for libjpeg to write to."""
    return np.zeros(shape, dtype)


def _pointers(*buffers: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(buffer.ctypes.data) for buffer in buffers]


def _frame(path: bytes) -> Frame:
    """Return libjpeg's report of a file; it decodes the whole file for that, so pass one whose scans are empty."""
    grids, factors = (_buffer(_MAX_COMPONENTS, 2, dtype=np.intc) for _ in range(2))
    size, counts, scans = (_buffer(length, dtype=np.intc) for length in (2, 3, 1))
    places = _pointers(grids, size, counts, factors)
    if not _library.read_jpeg_info(path, *places, None, None, None, None, None, *_pointers(scans), None):
        raise OSError("libjpeg can't read its header")
    height, width = size.tolist()
    pairs = ([(down, across) for down, across in part[: counts[0]].tolist()] for part in (factors, grids))
    return Frame(height, width, *pairs)


def read(blank: bytes, data: bytes, expected: Frame) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read quantised coefficients.

    Args:
        blank: a file that is the same as ``data`` up to the first scan, with empty scans (`segments.JpegFile.blank`).
        data: a file without metadata (`segments.JpegFile.plain`).
        expected: what the file is believed to hold; 1 to 4 components.

    Returns:
        For each component its int16 blocks ``[i, j, 64]`` and its uint16 quantisation table ``[64]``, both in natural
        (row by row) order.

    Raises:
        OSError: libjpeg can't read the file, or reports something else than ``expected``.
    """
    with _scratch_file() as (handle, path):
        _fill(handle, blank)
        frame = _frame(path)
        if frame != expected or not 1 <= len(frame.grids) <= 4:
            raise OSError("libjpeg finds another picture in it")
        blocks = [_buffer(*grid, 64, dtype=np.int16) for grid in frame.grids]
        tables, numbers = _buffer(4, 64, dtype=np.uint16), _buffer(4, dtype=np.int16)
        places = [*_pointers(*blocks), *[None] * (4 - len(blocks)), *_pointers(tables, numbers)]
        _fill(handle, data)
        if not _library.read_jpeg_dct(path, *places):
            raise OSError("libjpeg can't read its scans")
    return blocks, [tables[number] for number in numbers[: len(blocks)]]


def write(
    blocks: list[np.ndarray], tables: list[np.ndarray], height: int, width: int, factors: list[tuple[int, int]]
) -> bytes:
    """Write a baseline file with optimised Huffman tables; the components are numbered from 0.

    Args:
        blocks: int16 ``[i, j, 64]`` of one or three components, natural order, as many as the size needs.
        tables: uint16 ``[64]``, natural order: one, or luma's and chroma's, 1 to 255.
        height: pixels.
        width: pixels.
        factors: sampling factors (down, across) of each component.

    Raises:
        OSError: libjpeg can't write it.
    """
    blocks = [np.ascontiguousarray(part, np.int16) for part in blocks]
    steps = np.ascontiguousarray(np.stack(tables), np.uint16)
    places = [*_pointers(*blocks), *[None] * (4 - len(blocks))]
    grids = (ctypes.c_int * 8)(*(side for part in blocks for side in part.shape[:2]))
    space = jpeglib.Colorspace.JCS_GRAYSCALE if len(blocks) == 1 else jpeglib.Colorspace.JCS_YCbCr
    with _scratch_file() as (_, path):
        ok = _library.write_jpeg_dct(
            None, path, *places, (ctypes.c_int * 2)(height, width), grids,
            (ctypes.c_int * 8)(*(factor for pair in factors for factor in pair)), int(space), len(blocks),
            *_pointers(steps), -1, (ctypes.c_short * 4)(0, 1, 1, -1), 0, None, None, None,
            *_OPTIMIZE,
        )  # fmt: skip
        if not ok:
            raise OSError("libjpeg can't write these coefficients")
        return Path(os.fsdecode(path)).read_bytes()
