"""Results as HTML: pictures are data URIs, so nothing is written to a disk to be shown or downloaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from dctransformer.codec import DCTImage, order, write_jpeg_bytes


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


def message(text: str, kind: str = "error") -> str:
    """Show a sentence that stays in the page; ``kind`` is error or note."""
    text = text[:1].upper() + text[1:]
    return f'<div class="dct-message dct-{kind}" role="{"alert" if kind == "error" else "status"}">{escape(text)}</div>'


def notes(texts: Iterable[str]) -> str:
    """Show sentences about an upload."""
    return "".join(message(text, "note") for text in texts)


def figure(uri: str, caption: str, *, alt: str, download: str | None = None, note: str = "") -> str:
    """Show a picture, enlarged without smoothing, with a caption and perhaps a link to the file itself."""
    link = f'<a class="dct-download" href="{uri}" download="{escape(download)}">⤓ Download JPEG</a>' if download else ""
    small = f'<span class="dct-small">{escape(note)}</span>' if note else ""
    return (
        f'<figure><img src="{uri}" alt="{escape(alt)}">'
        f"<figcaption><span>{escape(caption)}</span>{link}{small}</figcaption></figure>"
    )


def row(figures: Sequence[str], size: str = "large") -> str:
    """Show figures side by side; ``size`` is large or small."""
    return f'<div class="dct-row dct-{size}">{"".join(figures)}</div>'


def progress(done: float, text: str) -> str:
    """Show how far work is, 0 to 1, as a bar with a text."""
    percent = round(100 * min(max(done, 0), 1))
    return f'<div class="dct-progress"><progress max="100" value="{percent}"></progress> {escape(text)}</div>'


def command(text: str) -> str:
    """Show the command line that does the same."""
    return f'<p class="dct-same">The same on the command line: <code>{escape(text)}</code></p>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Show a table; the first column is text, the others are figures."""

    def cells(values: Sequence[Any], tag: str) -> str:
        return "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells(values, 'td')}</tr>" for values in rows)
    return f'<table class="dct-table"><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table>'


def canvas(pixels: np.ndarray) -> str:
    """Show a picture under a canvas of as many dots, on which ``page.js`` paints, with its 16 × 16 squares."""
    height, width = pixels.shape[:2]
    square = order.MCU
    return (
        f'<div class="dct-paint" style="aspect-ratio: {width} / {height}; '
        f'--square-x: {100 * square / width:.4f}cqw; --square-y: {100 * square / height:.4f}cqh">'
        f'<img src="{png_uri(pixels)}" alt="picture to paint on" draggable="false">'
        f'<div class="dct-squares"></div><canvas class="dct-brush" width="{width}" height="{height}"></canvas></div>'
    )
