"""Code lengths of classical coders for the same coefficients.

Every coder gets a JPEG file that holds exactly the picture's coefficients. What it spends on a blank picture of the
same size and tables is subtracted, so that headers and quantisation tables don't count.

That flatters Huffman codes a little: they spend two bits per block even on a blank picture (24 bytes at 64 × 64
pixels), which are no header. The adaptive coders spend next to nothing there.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jpeglib
import torch
from PIL import Image

from dctransformer.codec.dct_image import DCTImage
from dctransformer.codec.jpeg import write_jpeg_bytes


@dataclasses.dataclass(frozen=True)
class Coder:
    """A lossless coder of coefficients.

    Attributes:
        name: for the table.
        size: bytes of a picture, its header included.
        missing: how to install it, "" if it is there.
    """

    name: str
    size: Callable[[DCTImage], int]
    missing: str = ""


def coders() -> list[Coder]:
    """Return all coders that are supported, those that are not installed included.

    libjpeg's optimised Huffman code makes tables for each picture, and these count, as they depend on its coefficients.
    Lepton and JPEG XL get files with JPEG's standard tables: they would store a picture's own tables as part of the
    file to be restored, which is no part of the coefficients.
    """
    found = [
        Coder("libjpeg, optimised Huffman", lambda dct: len(write_jpeg_bytes(dct))),
        Coder("libjpeg, arithmetic", lambda dct: len(rewritten(dct, ["+ARITH_CODE"]))),
    ]
    for name, recompress, module, package in (
        ("Lepton", lepton, "lepton_jpeg_python", "lepton_jpeg_python"),
        ("JPEG XL, lossless", jpeg_xl, "pillow_jxl", "pillow-jxl-plugin"),
    ):
        missing = "" if importlib.util.find_spec(module) else f"pip install 'dctransformer[eval]' ({package})"
        found.append(Coder(name, lambda dct, recompress=recompress: len(recompress(rewritten(dct))), missing))
    return found


def rewritten(dct: DCTImage, flags: list[str] | None = None) -> bytes:
    """Write one picture's coefficients as a file with JPEG's standard Huffman tables, or by other flags of libjpeg."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.jpg"), Path(folder, "b.jpg")
        source.write_bytes(write_jpeg_bytes(dct))
        picture = jpeglib.read_dct(str(source))
        picture.load()
        picture.write_dct(str(target), flags=flags or [])
        return target.read_bytes()


def lepton(jpeg: bytes) -> bytes:
    """Return a JPEG file recompressed without loss by Lepton (`lepton_jpeg_python` must be installed)."""
    module: Any = importlib.import_module("lepton_jpeg_python")
    return module.compress_bytes(jpeg, {})


def jpeg_xl(jpeg: bytes) -> bytes:
    """Return a JPEG file recompressed without loss by libjxl, at effort 9 (`pillow-jxl-plugin` must be installed)."""
    importlib.import_module("pillow_jxl")  # registers itself with Pillow
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.jpg"), Path(folder, "a.jxl")
        source.write_bytes(jpeg)
        with Image.open(source) as picture:
            picture.save(target, lossless_jpeg=True, effort=9, num_threads=1)
        return target.read_bytes()


def blank(dct: DCTImage) -> DCTImage:
    """Return a picture of the same size and tables without any non-zero coefficient."""
    luma, cb, cr = (None if part is None else torch.zeros_like(part) for part in (dct.luma, dct.cb, dct.cr))
    assert luma is not None
    return dataclasses.replace(dct, luma=luma, cb=cb, cr=cr)


def compare(pictures: Iterable[DCTImage], progress: Callable[[int], Any] | None = None) -> list[dict[str, Any]]:
    """Return the mean bytes per image by every coder.

    Args:
        pictures: one at a time (batch 1), of one quality.
        progress: called with the number of pictures done.

    Returns:
        A row per coder: ``coder``, ``bytes_per_image`` (None where it is not installed) and ``missing``.
    """
    known = coders()
    totals = [0] * len(known)
    blanks: dict[tuple[int, int], list[int]] = {}
    count = 0
    for dct in pictures:
        size = (dct.height, dct.width)
        if size not in blanks:
            blanks[size] = [0 if coder.missing else coder.size(blank(dct)) for coder in known]
        for i, coder in enumerate(known):
            if not coder.missing:
                totals[i] += coder.size(dct) - blanks[size][i]
        count += 1
        if progress is not None:
            progress(count)
    return [
        {
            "coder": coder.name,
            "bytes_per_image": None if coder.missing or not count else total / count,
            "missing": coder.missing,
        }
        for coder, total in zip(known, totals, strict=True)
    ]
