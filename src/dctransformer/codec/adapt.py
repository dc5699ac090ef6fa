"""Coefficients of any JPEG file in a model's tables and whole MCUs, and back: read, requantise, pad, crop, merge.

Shapes: N MCUs; coefficients and masks are ``[N, 6, 64]``.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.codec import Codec
from dctransformer.codec.dct_image import DCTImage
from dctransformer.codec.grid import Grid
from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.codec.metadata import orientation


def read_own_coefficients(image: str | Path | bytes) -> DCTImage | None:
    """Return a JPEG file's coefficients; None if its pixels must do (another format or sampling, rotated, damaged)."""
    try:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        if data[:2] != b"\xff\xd8":
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes
            with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as opened:
                turned = orientation(opened) != 1
        if turned:
            return None
        dct = read_jpeg_bytes(data)
    # Pillow's parsers answer damage with almost any exception (SyntaxError, IndexError, struct.error, …).
    except Exception:
        return None
    return dct if dct.sampling == "4:2:0" else None


def requantise(dct: DCTImage, codec: Codec) -> DCTImage:
    """Return a DCT image in another quality's tables (unchanged if they are the same)."""
    if torch.equal(dct.luma_table, codec.luma_table) and torch.equal(dct.tables[-1], codec.chroma_table):
        return dct
    assert dct.cb is not None and dct.cr is not None and dct.chroma_table is not None
    chroma = (dct.chroma_table, codec.chroma_table)
    tables, limits = ((dct.luma_table, codec.luma_table), chroma, chroma), codec.value_limits().view(3, 64)
    luma, cb, cr = (
        (part.double() * old / new).round().clamp(-limit, limit.clamp(max=1023)).to(torch.int16)
        for part, (old, new), limit in zip(dct.components, tables, limits, strict=True)
    )
    return dataclasses.replace(
        dct, luma=luma, cb=cb, cr=cr, luma_table=codec.luma_table, chroma_table=codec.chroma_table
    )


def mcu_grid(dct: DCTImage) -> Grid:
    """Return the grid of a picture's MCUs, the last of which may reach beyond its edges."""
    return Grid(-(-dct.height // order.MCU), -(-dct.width // order.MCU))


def pad_to_mcus(dct: DCTImage) -> Tensor:
    """Return the coefficients of a picture's whole MCUs, int16 ``[N, 6, 64]``.

    Luma blocks beyond the picture's last are flat and as bright as their neighbours.
    """
    grid = mcu_grid(dct)
    rows, cols = 2 * grid.rows, 2 * grid.cols
    down, right = rows - dct.luma.shape[1], cols - dct.luma.shape[2]
    flat = torch.zeros_like(dct.luma)
    flat[..., 0] = dct.luma[..., 0]
    padded = F.pad(flat.permute(0, 3, 1, 2).float(), (0, right, 0, down), mode="replicate").permute(0, 2, 3, 1)
    luma = padded.to(torch.int16)
    luma[:, : dct.luma.shape[1], : dct.luma.shape[2]] = dct.luma
    whole = dataclasses.replace(dct, luma=luma, height=rows * 8, width=cols * 8)
    return whole.to_mcus()[0]


def crop(mcus: Tensor, grid: Grid, height: int, width: int, codec: Codec) -> DCTImage:
    """Make a DCT image of MCUs, without the luma blocks beyond its size: the inverse of `pad_to_mcus`.

    Args:
        mcus: int16 ``[N, 6, 64]`` in the codec's tables.
        grid: of the MCUs.
        height: in pixels.
        width: in pixels.
        codec: whose tables the image gets.
    """
    whole = DCTImage.from_mcus(mcus[None], grid.rows, grid.cols, codec.luma_table, codec.chroma_table)
    luma = whole.luma[:, : -(-height // order.BLOCK), : -(-width // order.BLOCK)].contiguous()
    return dataclasses.replace(whole, luma=luma, height=height, width=width)


def merge(file: DCTImage, new: DCTImage, keep: DCTImage) -> DCTImage:
    """Put new coefficients into a JPEG file's own.

    Args:
        file: the file's coefficients, which stay as they are, in its own tables.
        new: coefficients of a picture of the same size, in any tables; they are requantised.
        keep: 1 where the file's coefficient stays, 0 where the new one is taken.
    """
    assert file.chroma_table is not None and new.chroma_table is not None
    parts = []
    tables = (
        (file.luma_table, new.luma_table), (file.chroma_table, new.chroma_table), (file.chroma_table, new.chroma_table)
    )  # fmt: skip
    for old, other, mask, (to, by) in zip(file.components, new.components, keep.components, tables, strict=True):
        levels = (other.double() * by / to).round().clamp(-1023, 1023).to(torch.int16)
        parts.append(torch.where(mask.bool(), old, levels))
    return dataclasses.replace(file, luma=parts[0], cb=parts[1], cr=parts[2])
