"""Coefficients from and to real JPEG files, without going through pixels.

libjpeg-turbo does the entropy coding (through `jpeglib`). It reads most damaged files without complaint, so a file's
header is checked here first, and its scans by a strict decoder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import struct
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jpeglib
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from dctransformer import files
from dctransformer.codec import order
from dctransformer.codec.dct_image import DCTImage, grid_sizes

MAX_PIXELS = 178_956_970
"""Largest picture that is read unless asked otherwise (Pillow's own limit for untrusted files)."""

MAX_SIDE = 65_500
"""Largest side that libjpeg writes."""

jpeglib.version.set("turbo210")  # Global to the process; every other version in the package is slower or laxer.


# Files ----------------------------------------------------------------------------------------------------------------


def read_jpeg(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> DCTImage:
    """Reads a JPEG file's quantised coefficients, exactly.

    Args:
        path: a baseline, progressive or arithmetic-coded file, YCbCr of any subsampling or grey.
        max_pixels: larger pictures are refused before any memory is taken for them.

    Returns:
        A `DCTImage` of batch 1.

    Raises:
        ValueError: there is no such file, or it is not a whole, undamaged JPEG of one of those kinds.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return read_jpeg_bytes(data, max_pixels, name=str(path))


def write_jpeg(dct: DCTImage, path: str | os.PathLike[str]) -> None:
    """Writes a JPEG file from which every reader gets the same coefficients.

    The file is baseline with optimised Huffman tables. It is written beside ``path`` and renamed, so that an
    interruption leaves no half-written file.

    Args:
        dct: one picture (batch 1).
        path: where to; an existing file is replaced, missing folders are made.

    Raises:
        ValueError: the batch is not 1, baseline JPEG can't hold a coefficient, or the file can't be written.
    """
    data = write_jpeg_bytes(dct)
    with files.atomic_write(Path(path)) as beside:
        beside.write_bytes(data)


def read_jpeg_bytes(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "the JPEG data") -> DCTImage:
    """`read_jpeg` from memory; ``name`` is what error messages call the data."""
    try:
        header = _read_header(data)
        if header.height * header.width > max_pixels:
            raise _Unreadable(
                f"claims {header.width}×{header.height} pixels, more than the limit of {max_pixels}; "
                "shrink it, or raise max_pixels if you trust the file"
            )
        step = _chroma_step(header)
        _decode_strictly(data)
        return _read_coefficients(data, header, step)
    except _Unreadable as problem:
        raise ValueError(f"{name} {problem}") from problem.__cause__


def write_jpeg_bytes(dct: DCTImage) -> bytes:
    """`write_jpeg` to memory."""
    if len(dct) != 1:
        raise ValueError(f"a JPEG file holds one picture, not {len(dct)}; write dct[i] for each i")
    if max(dct.height, dct.width) > MAX_SIDE:
        raise ValueError(
            f"a {dct.width}×{dct.height} picture is too large for a JPEG file; no side may exceed {MAX_SIDE}"
        )
    components = [_natural_order(part) for part in dct.components]
    tables = [_natural_order(table[None, None, None]) for table in dct.tables]
    _require_baseline(components, tables)

    picture = jpeglib.from_dct(*components, qt=np.stack([table[0, 0] for table in tables]).astype(np.uint16))
    picture.height, picture.width = dct.height, dct.width
    # jpeglib would guess the factors from the grids, which say nothing for a picture of one MCU.
    factors = [(1, 1)] if dct.is_grey else [dct.chroma_step, (1, 1), (1, 1)]
    picture.samp_factor = np.array(factors, dtype=np.int32)
    try:
        with _scratch_file() as scratch:
            picture.write_dct(scratch, flags=["+OPTIMIZE_CODING"])
            data = Path(scratch).read_bytes()
    except OSError as error:
        raise ValueError(f"libjpeg could not write these coefficients ({error})") from error
    return _usual_component_ids(data)


@contextlib.contextmanager
def _scratch_file() -> Iterator[str]:
    """Path of an empty file to write to (libjpeg asks for one): in memory where the system can, else on disk."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        handle = os.memfd_create("picture.jpg")
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        handle, path = tempfile.mkstemp(suffix=".jpg")
        os.close(handle)
        try:
            yield path
        finally:
            os.unlink(path)


@functools.lru_cache(maxsize=256)
def _blank_bytes(height: int, width: int, step: tuple[int, int], tables: tuple[tuple[int, ...], ...]) -> int:
    """Size of the file of a picture without any non-zero coefficient."""
    quant = [torch.tensor(table, dtype=torch.int32) for table in tables]
    nothing = torch.empty(0, 3, dtype=torch.int32)
    blank = DCTImage.from_triples(nothing, height, width, quant[0], quant[1] if quant[1:] else None, step)
    return len(write_jpeg_bytes(blank))


def huffman_bytes(dct: DCTImage) -> int:
    """What libjpeg's optimised Huffman code spends on a picture's coefficients.

    Args:
        dct: one picture (batch 1).

    Returns:
        Bytes of the baseline file with optimised tables, less those of a blank picture of the same kind: headers and
        quantisation tables don't count, Huffman tables do.
    """
    tables = tuple(tuple(table.tolist()) for table in dct.tables)
    return len(write_jpeg_bytes(dct)) - _blank_bytes(dct.height, dct.width, dct.chroma_step, tables)


# Header ---------------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """What is wrong with a file, as the end of a sentence that starts with its name."""


@dataclasses.dataclass
class _Component:
    identifier: int
    across: int
    down: int


@dataclasses.dataclass
class _Header:
    height: int
    width: int
    components: list[_Component]
    is_rgb: bool


_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAMES_READ = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_EOI, _SOS, _APP0, _APP14 = 0xD9, 0xDA, 0xE0, 0xEE

_CUT = "is cut off or damaged; fetch or export it again"


def _segments(data: bytes):
    """Yields (marker, offset of its contents, contents) of each segment up to the first scan's header."""
    if data[:2] != b"\xff\xd8":
        raise _Unreadable("is not a JPEG file; convert it, or encode its pixels with Codec")
    at = 2
    while True:
        start = at
        while data[at : at + 1] == b"\xff":
            at += 1
        if at == start or at >= len(data):
            raise _Unreadable(_CUT)
        marker = data[at]
        at += 1
        if marker in _STANDALONE:
            continue
        if marker == _EOI or at + 2 > len(data):
            raise _Unreadable(_CUT)
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2 or at + length > len(data):
            raise _Unreadable(_CUT)
        yield marker, at + 2, data[at + 2 : at + length]
        if marker == _SOS:
            return
        at += length


def _read_header(data: bytes) -> _Header:
    """Size and components, from the segments before the first scan."""
    frame: bytes | None = None
    jfif, adobe_transform = False, None
    for marker, _, body in _segments(data):
        if marker == _APP0 and body[:5] == b"JFIF\0":
            jfif = True
        elif marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
            adobe_transform = body[11]
        elif marker in _FRAMES:
            if marker not in _FRAMES_READ or body[:1] != b"\x08":
                raise _Unreadable("is lossless, hierarchical or not 8-bit; convert it to an ordinary JPEG file")
            frame = body
    if frame is None or len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        raise _Unreadable(_CUT)
    height, width = struct.unpack_from(">HH", frame, 1)
    if not height or not width:
        raise _Unreadable("has no height or width in its header; re-encode it as an ordinary JPEG file")
    components = [_Component(frame[k], frame[k + 1] >> 4, frame[k + 1] & 15) for k in range(6, len(frame), 3)]
    # libjpeg's rule for three components (jdapimin.c).
    is_rgb = not jfif and len(components) == 3 and (
        adobe_transform == 0 if adobe_transform is not None
        else bytes(c.identifier for c in components) == b"RGB"
    )  # fmt: skip
    return _Header(height, width, components, is_rgb)


def _chroma_step(header: _Header) -> tuple[int, int]:
    """Luma samples to a chroma sample, down and across."""
    components = header.components
    if len(components) not in (1, 3):
        raise _Unreadable(f"has {len(components)} colour components (CMYK?); convert it to an RGB or grey JPEG file")
    if header.is_rgb:
        raise _Unreadable("stores RGB, not YCbCr; re-encode it as an ordinary JPEG file")
    if not all(1 <= c.across <= 4 and 1 <= c.down <= 4 for c in components):
        raise _Unreadable(_CUT)
    if len(components) == 1:
        return 2, 2
    luma, cb, cr = components
    if (cb.across, cb.down) != (cr.across, cr.down) or luma.across % cb.across or luma.down % cb.down:
        raise _Unreadable("subsamples its colours unevenly; re-encode it at 4:2:0 or 4:4:4")
    return luma.down // cb.down, luma.across // cb.across


# Coefficients ---------------------------------------------------------------------------------------------------------


def _decode_strictly(data: bytes) -> None:
    """Refuses files whose scans end early or hold impossible codes."""
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True, min_factor=8, strict=True)
        return
    except KeyError:
        pass  # A subsampling that simplejpeg has no name for.
    except ValueError as error:
        if "subsampling" not in str(error):
            raise _Unreadable(f"{_CUT} ({str(error).strip()})") from error
    # TurboJPEG does not do this subsampling. Pillow does; it notices files that are cut off.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data)).load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise _Unreadable(f"{_CUT} ({error})") from error


def _read_coefficients(data: bytes, header: _Header, step: tuple[int, int]) -> DCTImage:
    """The coefficients of a file that passed the checks."""
    grey = len(header.components) == 1
    luma_grid, chroma_grid = grid_sizes(header.height, header.width, step)
    unread: dict[str, Any] = dict.fromkeys(("Y", "Cb", "Cr", "K", "qt", "quant_tbl_no"))
    picture = jpeglib.DCTJPEG(
        path="", content=data, height=header.height, width=header.width,
        block_dims=np.array([luma_grid] if grey else [luma_grid, chroma_grid, chroma_grid]),
        samp_factor=np.array([(c.down, c.across) for c in header.components]),
        jpeg_color_space=jpeglib.Colorspace.JCS_GRAYSCALE if grey else jpeglib.Colorspace.JCS_YCbCr,
        markers=[], huffmans=[], progressive_mode=False, num_scans=1,
        **unread,
    )  # fmt: skip
    try:
        picture.load()
    except OSError as error:
        raise _Unreadable(_CUT) from error
    tables = [_zigzag(np.asarray(picture.get_component_qt(k), dtype=np.int32)) for k in range(len(header.components))]
    if not all(bool((table > 0).all()) for table in tables):
        raise _Unreadable(_CUT)
    if not grey and not torch.equal(tables[1], tables[2]):
        raise _Unreadable("quantises Cb and Cr differently; re-encode it as an ordinary JPEG file")
    parts = [_zigzag(np.asarray(part))[None] for part in (picture.Y, picture.Cb, picture.Cr) if part is not None]
    return DCTImage(
        luma=parts[0],
        cb=None if grey else parts[1],
        cr=None if grey else parts[2],
        luma_table=tables[0],
        chroma_table=None if grey else tables[1],
        height=header.height,
        width=header.width,
        chroma_step=step,
    )


def _zigzag(blocks: np.ndarray) -> Tensor:
    """Natural ``[..., 8, 8]`` to zigzag ``[..., 64]``."""
    return torch.from_numpy(np.ascontiguousarray(blocks.reshape(*blocks.shape[:-2], 64)[..., order.ZIGZAG]))


def _natural_order(blocks: Tensor) -> np.ndarray:
    """Zigzag ``[1, i, j, 64]`` to natural ``[i, j, 8, 8]``."""
    natural = blocks[0].cpu().numpy()[..., order.UNZIGZAG]
    return np.ascontiguousarray(natural.reshape(*natural.shape[:-1], 8, 8))


def _require_baseline(components: list[np.ndarray], tables: list[np.ndarray]) -> None:
    """Refuses coefficients and tables that baseline Huffman codes can't express."""
    for blocks in components:
        dc = blocks[..., 0, 0].astype(np.int32)
        ac = blocks.reshape(-1, 64)[:, 1:]
        # The first DC is a difference to 0; a difference has at most 11 bits, an AC coefficient 10.
        spread = max(int(dc.max()), 0) - min(int(dc.min()), 0)
        if spread > 2047 or int(ac.max()) > 1023 or int(ac.min()) < -1023:
            raise ValueError(
                "a coefficient is too large for a JPEG file; keep AC within ±1023 and DC within a range of 2047"
            )
    if any(int(table.min()) < 1 or int(table.max()) > 65535 for table in tables):
        raise ValueError("a quantisation step is not from 1 to 65535; use tables of Codec or of a JPEG file")


def _usual_component_ids(data: bytes) -> bytes:
    """Numbers the components 1, 2, 3 as JFIF says (jpeglib writes 0, 1, 2, which some readers refuse)."""
    changed = bytearray(data)
    for marker, at, body in _segments(data):
        if marker in _FRAMES:
            places = range(at + 6, at + len(body), 3)
        elif marker == _SOS:
            places = range(at + 1, at + 1 + 2 * body[0], 2)
        else:
            continue
        for place in places:
            changed[place] += 1
    return bytes(changed)
