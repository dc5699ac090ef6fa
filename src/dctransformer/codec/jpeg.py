"""Reading and writing the coefficients of real JPEG files, without going through pixels.

libjpeg-turbo does the entropy coding. It reads most damaged files without complaint, so a file's segments are checked
first (`segments`), and its scans by a strict decoder.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from dctransformer import files
from dctransformer.codec import libjpeg, order
from dctransformer.codec.dct_image import DCTImage, grid_sizes
from dctransformer.codec.metadata import Metadata
from dctransformer.codec.segments import (
    CUT,
    DQT,
    FRAMES,
    MAX_PIXELS,
    MAX_SIDE,
    SOS,
    JpegFile,
    Unreadable,
    read_picture,
    segments,
)

# Files ----------------------------------------------------------------------------------------------------------------


def read_jpeg(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> DCTImage:
    """Read a JPEG file's quantised coefficients, exactly.

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


def write_jpeg(dct: DCTImage, path: str | os.PathLike[str], metadata: Metadata | None = None) -> None:
    """Write a JPEG file from which every reader gets the same coefficients.

    The file is baseline with optimised Huffman tables. It is written to a temporary file and renamed, so that an
    interruption leaves no half-written file.

    Args:
        dct: one picture (batch 1).
        path: where to; an existing file is replaced, missing folders are made.
        metadata: EXIF and a colour profile to write, too.

    Raises:
        ValueError: the batch is not 1, baseline JPEG can't hold a coefficient, or the file can't be written.
    """
    data = write_jpeg_bytes(dct)
    if metadata is not None:
        data = metadata.put_into(data)
    with files.atomic_write(Path(path)) as temporary:
        temporary.write_bytes(data)


def read_jpeg_bytes(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "the JPEG data") -> DCTImage:
    """Read a JPEG file from memory, as `read_jpeg` does; error messages call it ``name``."""
    try:
        picture = read_picture(data)
        if picture.height * picture.width > max_pixels:
            raise Unreadable(
                f"claims {picture.width}×{picture.height} pixels, more than the limit of {max_pixels}; "
                "shrink it, or raise max_pixels if you trust the file"
            )
        step = _chroma_step(picture)
        return _read_coefficients(picture, _whole(picture), step)
    except Unreadable as problem:
        raise ValueError(f"{name} {problem}") from problem.__cause__


def write_jpeg_bytes(dct: DCTImage) -> bytes:
    """Write a JPEG file to memory, as `write_jpeg` does."""
    if len(dct) != 1:
        raise ValueError(f"a JPEG file holds one picture, not {len(dct)}; write dct[i] for each i")
    if max(dct.height, dct.width) > MAX_SIDE:
        raise ValueError(
            f"a {dct.width}×{dct.height} picture is too large for a JPEG file; no side may exceed {MAX_SIDE}"
        )
    down, across = dct.chroma_step
    if not dct.is_grey and (down > 4 or across > 4 or down * across > 8):
        raise ValueError(
            f"{dct.sampling} is too coarse for a baseline JPEG file; encode the picture's pixels again with Codec"
        )
    components = [_natural_order(part) for part in dct.components]
    tables = [_natural_order(table[None, None, None])[0, 0] for table in dct.tables]
    _require_baseline(components, tables)
    # The grids alone would leave open which factors a picture of one MCU has.
    factors = [(1, 1)] if dct.is_grey else [dct.chroma_step, (1, 1), (1, 1)]
    # libjpeg prints a warning about steps beyond 8 bits, so these are put in afterwards.
    low = [np.minimum(table, 255) for table in tables]
    try:
        data = libjpeg.write(components, low, dct.height, dct.width, factors)
    except OSError as error:
        raise ValueError(f"libjpeg could not write these coefficients ({error})") from error
    return _finished(data, dct.tables)


@functools.lru_cache(maxsize=256)
def _blank_bytes(height: int, width: int, step: tuple[int, int], tables: tuple[tuple[int, ...], ...]) -> int:
    """Return the size of the file of a picture without any non-zero coefficient."""
    quant = [torch.tensor(table, dtype=torch.int32) for table in tables]
    nothing = torch.empty(0, 3, dtype=torch.int32)
    blank = DCTImage.from_triples(nothing, height, width, quant[0], quant[1] if quant[1:] else None, step)
    return len(write_jpeg_bytes(blank))


def huffman_bytes(dct: DCTImage) -> int:
    """Return the bytes that libjpeg's optimised Huffman code needs for a picture's coefficients.

    Args:
        dct: one picture (batch 1).

    Returns:
        Bytes of the baseline file with optimised tables, less those of a blank picture of the same kind: headers and
        quantisation tables don't count, Huffman tables do.
    """
    tables = tuple(tuple(table.tolist()) for table in dct.tables)
    return len(write_jpeg_bytes(dct)) - _blank_bytes(dct.height, dct.width, dct.chroma_step, tables)


# Coefficients ---------------------------------------------------------------------------------------------------------


def _chroma_step(picture: JpegFile) -> tuple[int, int]:
    """Return the luma samples per chroma sample, down and across."""
    components = picture.components
    if len(components) not in (1, 3):
        raise Unreadable(f"has {len(components)} colour components (CMYK?); convert it to an RGB or grey JPEG file")
    if picture.is_rgb:
        raise Unreadable("stores RGB, not YCbCr; re-encode it as an ordinary JPEG file")
    if not all(1 <= c.across <= 4 and 1 <= c.down <= 4 for c in components):
        raise Unreadable(CUT)
    if len(components) == 1:
        return 2, 2
    luma, cb, cr = components
    if (cb.across, cb.down) != (cr.across, cr.down) or luma.across % cb.across or luma.down % cb.down:
        raise Unreadable(f"subsamples its colours unevenly ({_factor_names(picture)}); re-encode it at 4:2:0 or 4:4:4")
    return luma.down // cb.down, luma.across // cb.across


def _whole(picture: JpegFile) -> bytes:
    """Return the picture as a file without metadata, whose scans a strict decoder could read to their end."""
    try:
        return _decode_strictly(picture)
    except Unreadable as problem:
        # Some cameras fill up the file with zeros before its end; nothing of the picture is missing then.
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(problem))
        shorter = picture.without_padding(int(extra[1])) if extra else None
        if shorter is None:
            raise
        return _decode_strictly(shorter)


def _decode_strictly(picture: JpegFile) -> bytes:
    """Return the picture as a file without metadata, unless its scans end early or hold impossible codes."""
    data = picture.plain()
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True, min_factor=8, strict=True)
        return data
    except KeyError:
        pass  # A subsampling that simplejpeg has no name for.
    except ValueError as error:
        if "subsampling" not in str(error):
            raise Unreadable(f"{CUT} ({str(error).strip()})") from error
    raise Unreadable(f"subsamples its colours unusually ({_factor_names(picture)}); re-encode it at 4:2:0 or 4:4:4")


def _factor_names(picture: JpegFile) -> str:
    return "factors " + ", ".join(f"{c.across}×{c.down}" for c in picture.components)


def _read_coefficients(picture: JpegFile, data: bytes, step: tuple[int, int]) -> DCTImage:
    """Return the coefficients of a file that passed the checks."""
    grey = len(picture.components) == 1
    luma_grid, chroma_grid = grid_sizes(picture.height, picture.width, step)
    grids = [luma_grid] if grey else [luma_grid, chroma_grid, chroma_grid]
    expected = libjpeg.Frame(picture.height, picture.width, picture.factors, grids)
    try:
        blocks, steps = libjpeg.read(picture.blank(grids), data, expected)
    except OSError as error:
        raise Unreadable(f"{CUT} ({error})") from error
    tables = [_zigzag(table.astype(np.int32)) for table in steps]
    if not all(bool((table > 0).all()) for table in tables):
        raise Unreadable(CUT)
    if not grey and not torch.equal(tables[1], tables[2]):
        raise Unreadable("quantises Cb and Cr differently; re-encode it as an ordinary JPEG file")
    parts = [_zigzag(part)[None] for part in blocks]
    return DCTImage(
        luma=parts[0],
        cb=None if grey else parts[1],
        cr=None if grey else parts[2],
        luma_table=tables[0],
        chroma_table=None if grey else tables[1],
        height=picture.height,
        width=picture.width,
        chroma_step=step,
    )


def _zigzag(blocks: np.ndarray) -> Tensor:
    """Reorder coefficients from natural (row by row) to zigzag order, ``[..., 64]``."""
    return torch.from_numpy(blocks[..., order.ZIGZAG])


def _natural_order(blocks: Tensor) -> np.ndarray:
    """Reorder coefficients from zigzag ``[1, i, j, 64]`` to natural order ``[i, j, 64]``."""
    return blocks[0].cpu().numpy()[..., order.UNZIGZAG]


def _require_baseline(components: list[np.ndarray], tables: list[np.ndarray]) -> None:
    """Refuse coefficients and tables that baseline Huffman codes can't express."""
    for blocks in components:
        dc = blocks[..., 0].astype(np.int32)
        ac = blocks.reshape(-1, 64)[:, 1:]
        # The first DC is a difference to 0; a difference has at most 11 bits, an AC coefficient 10.
        spread = max(int(dc.max()), 0) - min(int(dc.min()), 0)
        if spread > 2047 or int(ac.max()) > 1023 or int(ac.min()) < -1023:
            raise ValueError(
                "a coefficient is too large for a JPEG file; keep AC within ±1023 and DC within a range of 2047"
            )
    if any(int(table.min()) < 1 or int(table.max()) > 65535 for table in tables):
        raise ValueError("a quantisation step is not from 1 to 65535; use tables of Codec or of a JPEG file")


def _finished(data: bytes, tables: Sequence[Tensor]) -> bytes:
    """Finish a file of `libjpeg.write`: its tables, and components 1, 2, 3 as in JFIF (some readers refuse 0, 1, 2).

    Tables with steps above 255 are written with 16 bits per step, which makes the frame an extended one.
    """
    changed = bytearray(data)
    wide = [int(table.max()) > 255 for table in tables]
    insertions = []
    for segment in segments(data):
        at, body = segment.start, segment.body
        if segment.marker in FRAMES:
            for place in range(at + 6, at + len(body), 3):
                changed[place] += 1
            if any(wide):
                changed[at - 3] = 0xC1
        elif segment.marker == SOS:
            for place in range(at + 1, at + 1 + 2 * body[0], 2):
                changed[place] += 1
        elif segment.marker == DQT and wide[body[0]]:
            insertions.append((at, len(body), body[0]))
    for at, length, number in reversed(insertions):
        steps = struct.pack(">64H", *tables[number].tolist())
        changed[at - 2 : at + length] = struct.pack(">HB", 3 + len(steps), 0x10 | number) + steps
    return bytes(changed)
