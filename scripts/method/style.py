"""Colours, scales and layout that the figures of docs/method.md share: one colour map per quantity."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from dctransformer.codec import order
from dctransformer.files import atomic_write
from dctransformer.sheets import black_body, inferno

DPI = 120
WIDTH = 11.0
"""Inches; a figure fills the width of the page."""

COMPONENT_COLOURS = {order.LUMA: "#4d4d4d", order.CR: "#d6604d", order.CB: "#4393c3"}
COMPONENT_NAMES = {order.LUMA: "Y", order.CR: "Cr", order.CB: "Cb"}
DRAWN = "#f1a340"
"""Orange: the outcome that was drawn."""
FRAME = "#7f3b08"
"""Dark brown: the frame around the place that was drawn."""
SETTLED = "#31567f"
"""Dark blue: what is settled."""
IMPOSSIBLE = "#e3e3e3"
TEXT = "#333333"

PROBABILITY = matplotlib.colormaps["Oranges"].with_extremes(bad=IMPOSSIBLE)
PROBABILITY_SCALE = PowerNorm(0.5, 0, 1)
PROBABILITY_TICKS = (0, 0.1, 0.3, 0.6, 1)
COUNT = ListedColormap(black_body(np.linspace(0, 1, 256)) / 255)
BITS = ListedColormap(inferno(np.linspace(0, 1, 256)) / 255)
COEFFICIENT = matplotlib.colormaps["RdBu_r"].with_extremes(bad="white")
LARGEST = 60
"""Coefficients beyond are as dark as this one."""
CORNER = 3
"""Frequencies along the side of a block that figures of the structure show: the others are texture."""


def channel_name(channel: int) -> str:
    """Return a channel's component and frequency, such as "Cr 4"."""
    return f"{COMPONENT_NAMES[channel // 64 * 64]} {channel % 64}"


def rank_name(rank: int) -> str:
    """Return the name of the channel with a rank, or "stop"."""
    return "stop" if rank == order.STOP else channel_name(int(order.GENERATION_ORDER[rank]))


def signed_log(x: np.ndarray, largest: float = LARGEST) -> np.ndarray:
    """Map numbers to −1 … 1 by sign · log(1 + |x|), for the colours of coefficients."""
    return (np.sign(x) * np.log1p(np.abs(x)) / np.log1p(largest)).clip(-1, 1)


def write(figure: Any, path: Path, *, palette: bool = False) -> None:
    """Write a figure as a PNG or a JPEG file, by the name.

    Args:
        figure: what is written.
        path: the file.
        palette: reduce the colours to 256, which halves a PNG file but makes colour scales coarse.
    """
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor="white")
    picture = Image.open(out).convert("RGB")
    if palette:
        picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    with atomic_write(path) as temporary:
        if path.suffix == ".jpg":
            picture.save(temporary, format="JPEG", quality=80, optimize=True)
        else:
            picture.save(temporary, format="PNG", optimize=True)


def bare(axis: Any, title: str = "") -> None:
    """Remove ticks and frame, and set the title."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)


def light(axis: Any, size: float = 7) -> None:
    """Remove the upper and right edge of a chart, and make its tick labels small."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=size)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_fontsize(size + 1)


def show(axis: Any, picture: Any, title: str = "", **options: Any) -> None:
    """Show a picture without interpolation."""
    axis.imshow(picture, interpolation="nearest", **options)
    bare(axis, title)


def numbers(axis: Any, table: np.ndarray, colours: Any, title: str, dark: np.ndarray, zero: str = "0") -> None:
    """Show a table of numbers on coloured cells."""
    axis.imshow(colours, interpolation="nearest")
    for (row, column), value in np.ndenumerate(table):
        if np.isnan(value):
            continue
        text = zero if value == 0 else f"{value:.0f}".replace("-", "−")
        colour = "white" if dark[row, column] else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=6.2, color=colour)
    bare(axis, title)


def coefficients(axis: Any, table: np.ndarray, title: str, *, largest: float = LARGEST, zero: str = "0") -> None:
    """Show coefficients as numbers on colours from blue (negative) to red (positive); white where there is NaN."""
    x = signed_log(table, largest)
    numbers(axis, table.round(), COEFFICIENT(Normalize(-1.15, 1.15)(x)), title, np.abs(x) > 0.75, zero)


def frame_cell(axis: Any, place: int, width: int, colour: str = FRAME, linewidth: float = 1.8) -> None:
    """Draw a frame around a place of a map."""
    corner = (place % width - 0.5, place // width - 0.5)
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=linewidth, zorder=5))


def probability_map(axis: Any, values: np.ndarray, title: str) -> None:
    """Show probabilities by place, fp ``[h, w]``; grey where there is NaN, which stands for impossible."""
    axis.imshow(values, cmap=PROBABILITY, norm=PROBABILITY_SCALE, interpolation="nearest")
    bare(axis, title)


def scale(
    figure: Any, box: tuple[float, float, float, float], cmap: Any, norm: Any, label: str, ticks: Any = None
) -> None:
    """Draw a colour scale.

    Args:
        figure: where.
        box: left, bottom, width and height in parts of the figure; an upright box gives an upright scale.
        cmap: the colour map.
        norm: the normalisation.
        label: what the numbers are.
        ticks: the numbers shown; None for matplotlib's choice.
    """
    axis = figure.add_axes(box)
    width, height = box[2] * figure.get_figwidth(), box[3] * figure.get_figheight()
    upright = height > width
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), cax=axis, orientation="vertical" if upright else "horizontal", ticks=ticks
    )
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=7.5, color=TEXT)
    if ticks is not None:
        bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "−") for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, length=2)


def probability_scale(figure: Any, box: tuple[float, float, float, float], label: str = "probability") -> None:
    """Draw the scale of all maps of probabilities."""
    scale(figure, box, PROBABILITY, PROBABILITY_SCALE, label, PROBABILITY_TICKS)


def arrow(figure: Any, left: Any, right: Any, text: str = "") -> None:
    """Draw an arrow from one axis to the next."""
    a, b = left.get_position(), right.get_position()
    y = (a.y0 + a.y1) / 2
    figure.add_artist(
        FancyArrowPatch(
            (a.x1 + 0.004, y), (b.x0 - 0.004, y), transform=figure.transFigure, arrowstyle="-|>", mutation_scale=12,
            color="#555555", linewidth=1.2,
        )
    )  # fmt: skip
    figure.text((a.x1 + b.x0) / 2, y + 0.03, text, ha="center", va="bottom", fontsize=7.5, color="#555555")


def legend_box(figure: Any, x: float, y: float, colour: Any, text: str) -> None:
    """Draw a small coloured square and what it stands for, at a place in parts of the figure."""
    height = 0.115 / figure.get_figheight()
    figure.add_artist(
        Rectangle(
            (x, y), 0.115 / figure.get_figwidth(), height, transform=figure.transFigure, facecolor=colour,
            edgecolor="#888888", linewidth=0.6,
        )
    )  # fmt: skip
    figure.text(x + 0.0165, y + height / 2, text, va="center_baseline", fontsize=8, color=TEXT)


def new_figure(height: float) -> Any:
    """Return an empty figure of the page's width; height in inches."""
    return Figure(figsize=(WIDTH, height))
