"""Contact sheets and heat-maps."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

_MARGIN = 4

MOST = 1024
"""Most pictures on a sheet; those beyond it are left out."""

_INFERNO = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)
"""Five stops of matplotlib's ``inferno``; the web page draws with them, and works without matplotlib."""


def inferno(x: np.ndarray) -> np.ndarray:
    """Colour numbers from black (0) over violet and orange to pale yellow (1): uint8 ``[..., 3]``."""
    at = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(x, at, channel) for channel in _INFERNO.T], axis=-1).round().astype(np.uint8)


def black_body(x: np.ndarray) -> np.ndarray:
    """Colour numbers from black (0) over red and yellow to white (1): uint8 ``[..., 3]``."""
    rgb = np.stack([3 * x, 3 * x - 1, 3 * x - 2], axis=-1).clip(0, 1)
    return (rgb * 255).round().astype(np.uint8)


def contact_sheet(
    pictures: Tensor | np.ndarray,
    *,
    columns: int | None = None,
    captions: list[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Lay pictures out in a grid.

    Args:
        pictures: uint8 ``[n, H, W, 3]``; the first `MOST` are shown.
        columns: pictures in a row; None for a nearly square sheet.
        captions: a short text under each.
        scale: whole-number enlargement (nearest neighbour); None enlarges small pictures to about 128 pixels.

    Returns:
        An RGB picture.
    """
    array = np.asarray(pictures[:MOST])
    count, height, width, _ = array.shape
    columns = columns or math.ceil(math.sqrt(count))
    scale = scale or max(1, 128 // max(height, width))
    cell_w, cell_h = width * scale + _MARGIN, height * scale + _MARGIN + (14 if captions else 0)
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * cell_w + _MARGIN, rows * cell_h + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(array):
        x, y = _MARGIN + i % columns * cell_w, _MARGIN + i // columns * cell_h
        tile = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (x, y))
        if captions:
            fits = max(1, width * scale // 6)
            draw.text((x, y + height * scale + 1), captions[i][:fits], fill="black")
    return sheet


def heat_map(counts: Tensor) -> np.ndarray:
    """Colour counts from black over red and yellow to white.

    Args:
        counts: ``[n, h, w]``, not negative; each map is scaled to its own largest count.

    Returns:
        uint8 ``[n, h, w, 3]``.
    """
    x = counts.double()
    return black_body((x / x.amax((1, 2), keepdim=True).clamp(min=1)).numpy())


def heat_map_sheet(pictures: Tensor, counts: Tensor, *, columns: int = 4) -> Image.Image:
    """Lay out pictures, each next to the heat-map of its chosen places.

    Args:
        pictures: uint8 ``[n, H, W, 3]``.
        counts: ``[n, H / 8, W / 8]``, how often each position was chosen.
        columns: pairs in a row.

    Returns:
        An RGB picture.
    """
    pictures, counts = pictures[:MOST], counts[:MOST]
    maps = heat_map(counts).repeat(8, axis=1).repeat(8, axis=2)
    pairs = np.concatenate([np.asarray(pictures), maps], axis=2)
    return contact_sheet(pairs, columns=columns, scale=max(1, 128 // pictures.shape[1]))


def captioned_rows(rows: list[list[np.ndarray]], captions: list[str], *, side: int = 160) -> Image.Image:
    """Lay out pictures in one row per subject and one column per treatment, each fitted into the same square.

    Args:
        rows: pictures uint8 ``[H, W, 3]`` of any size, one per caption in each row; about `MOST` pictures are shown.
        captions: of the columns.
        side: of the squares, in pixels; a row is as high as its highest picture.

    Returns:
        An RGB picture.
    """
    captions = captions[:MOST]
    rows = [row[: len(captions)] for row in rows[: max(1, MOST // len(captions))]]
    fitted = [[_fitted(picture, side) for picture in row] for row in rows]
    heights = [max(image.height for image in row) + _MARGIN for row in fitted]
    cell = side + _MARGIN
    sheet = Image.new("RGB", (len(captions) * cell + _MARGIN, sum(heights) + _MARGIN + 14), "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        draw.text((_MARGIN + column * cell, 1), caption[: side // 6], fill="black")
    for row, images in enumerate(fitted):
        for column, image in enumerate(images):
            sheet.paste(image, (_MARGIN + column * cell, 14 + sum(heights[:row])))
    return sheet


def _fitted(picture: np.ndarray, side: int) -> Image.Image:
    """Scale a picture uint8 ``[H, W, 3]`` so that its longer side is ``side``; enlarged, its pixels stay squares."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((max(1, round(width * scale)), max(1, round(height * scale))), how)
