"""Results as HTML: pictures are data URIs, so nothing is written to a disk to be shown or downloaded."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from dctransformer.codec import DCTImage, order, write_jpeg_bytes

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)

parts: Any = _TEMPLATES.get_template("parts.html").module
"""The parts of the page, one function each, which escape every text and return `markupsafe.Markup`."""


def jpeg_uri(dct: DCTImage) -> str:
    """Write a DCT image of batch 1 as a real JPEG file in a data URI."""
    return _uri(write_jpeg_bytes(dct), "jpeg")


def png_uri(pixels: np.ndarray) -> str:
    """Write pixels, uint8 ``[H, W, 3]``, as a PNG file in a data URI."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return _uri(out.getvalue(), "png")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def canvas(pixels: np.ndarray) -> str:
    """Render a picture under a canvas of the same size, on which ``page.js`` paints, with its 16 × 16 squares."""
    height, width = pixels.shape[:2]
    return parts.canvas(png_uri(pixels), width, height, order.MCU)
