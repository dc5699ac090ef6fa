"""Plots of a model's results, as matplotlib figures and as pictures.

Needs matplotlib (``pip install 'dctransformer[eval]'``) for the figures; nothing opens a window.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dctransformer.codec import Codec, order
from dctransformer.codec.triples import ranked
from dctransformer.hub.curves import OF_HUFFMAN, Curve, validation_score
from dctransformer.sheets import contact_sheet, inferno

FIELD_COLOURS = {"channel": "#7f7f7f", "position": "#e08214", "value": "#2166ac"}
BAND_COLOURS = {"dc": "#542788", "1-3": "#2166ac", "4-15": "#5aae61", "16-63": "#bf812d"}
"""Colours of the bands in `order.BAND_NAMES`."""
REAL, GENERATED = "#555555", "#d6604d"

STAGES = (
    ("grey at 1/8", 0, (order.LUMA,)),
    *((name, band, order.COMPONENT_ORDER) for band, name in enumerate(("DC", *order.BAND_NAMES[1:-1], "all"))),
)
"""Steps of a progressive decoding: a name, the last band, and that band's components."""


def require_matplotlib() -> None:
    """Raise ValueError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib; install it with: pip install 'dctransformer[eval]'")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes, without the global state of pyplot."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(name: str) -> str:
    """Escape a name so that matplotlib prints dollar signs instead of reading mathematics between them."""
    return name.replace("$", r"\$")


def svg(figure: Any) -> str:
    """Return a figure as an SVG element for an HTML page; the same text for the same figure."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dctransformer", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def bits_by_band_and_field(bits: dict[str, Any]) -> Any:
    """Draw two charts: bits per image of each band by field, and bytes per image of each coder."""
    figure, (left, right) = _figure(9, 3.2, 2)
    bands = [band for band in bits["bits_per_image_by_band_and_field"] if band != "stop"]
    below = np.zeros(len(bands))
    for field, colour in FIELD_COLOURS.items():
        height = np.array([bits["bits_per_image_by_band_and_field"][band][field] for band in bands])
        left.bar(bands, height, bottom=below, color=colour, label=field, width=0.7)
        below += height
    left.set(xlabel="zigzag band", ylabel="bits per image", title="where the bits go")
    left.legend(frameon=False)
    rows = [row for row in bits["table"] if row["bytes_per_image"] is not None][::-1]
    colours = [REAL] * (len(rows) - 1) + [FIELD_COLOURS["value"]]
    bars = right.barh([_label(row["coder"]) for row in rows], [row["bytes_per_image"] for row in rows], color=colours)
    right.bar_label(bars, fmt="%.0f", padding=3)
    right.set(xlabel="bytes per image, headers subtracted", title="the same coefficients by every coder")
    right.margins(x=0.15)
    return figure


def loss_curves(lines: list[dict[str, Any]], others: Sequence[Curve] = ()) -> Any:
    """Draw charts over triples seen: training bits per triple by field and by band, and the bytes of validations.

    These are relative to the bytes of libjpeg's optimised Huffman code for the same pictures, which makes trainings on
    other pictures comparable.

    Args:
        lines: of the run's metrics. Runs whose metrics have no bands (older ones) have no chart by band; those without
            Huffman bytes have absolute bytes, without other curves.
        others: curves of other trainings, of the same size and quality, behind the validation's.
    """
    by_band = any(f"train/{band}" in line for line in lines for band in BAND_COLOURS)
    figure, (left, *middle, right) = _figure(13 if by_band else 9, 3.2, 3 if by_band else 2)
    for axis, colours, title in zip(
        (left, *middle), (FIELD_COLOURS, BAND_COLOURS), ("training, by field", "training, by band"), strict=False
    ):
        for name, colour in colours.items():
            points = [(line["triples"] / 1e6, line[f"train/{name}"]) for line in lines if f"train/{name}" in line]
            if points:
                x, y = np.array(points).T
                axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(x, _smooth(y), color=colour, label=_label(name))
        axis.set(xlabel="million triples", ylabel="bits per triple", title=title)
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
    validations = [line for line in lines if "validation/bytes_per_image" in line]
    relative = all(validation_score(line, OF_HUFFMAN) is not None for line in validations)
    for curve in others if relative else ():
        x, y = np.array([(v["triples"] / 1e6, validation_score(v, OF_HUFFMAN)) for v in curve.validations()]).T
        right.plot(x, 100 * y, "--", color=REAL, linewidth=1)
        right.annotate(_label(curve.name), (x[-1], 100 * y[-1]), textcoords="offset points", xytext=(0, 4), ha="right")
    if validations:
        bytes_per_image = [line["validation/bytes_per_image"] for line in validations]
        y = [100 * (validation_score(line, OF_HUFFMAN) or 0) for line in validations] if relative else bytes_per_image
        x = [line["triples"] / 1e6 for line in validations]
        right.plot(x, y, "o-", color=FIELD_COLOURS["value"], markersize=3)
        last = f"last: {bytes_per_image[-1]:.1f} bytes per image" + (f", {y[-1]:.1f} %" if relative else "")
        right.annotate(last, (1, 0.97), xycoords="axes fraction", ha="right", va="top")
        unit = "% of Huffman's bytes" if relative else "bytes per image"
        right.set(xlabel="million triples", ylabel=unit, title="validation")
    else:
        right.set_axis_off()
        right.set_title("no validation yet")
    return figure


def _smooth(y: np.ndarray) -> np.ndarray:
    """Return the running mean over about a thirtieth of the points."""
    width = max(1, len(y) // 30)
    total = np.convolve(y, np.ones(width), "same")
    return total / np.convolve(np.ones_like(y), np.ones(width), "same")


def value_histograms(real: list[Tensor], generated: list[Tensor]) -> Any:
    """Draw five charts, real against generated: triples per image, and the values of each band.

    Args:
        real: triples of real pictures, int ``[L, 3]`` each.
        generated: the same of generated ones.
    """
    figure, axes = _figure(12, 2.8, 1 + len(order.BANDS))
    both = {"real": (real, REAL), "generated": (generated, GENERATED)}
    longest = max(len(t) for t in real + generated)
    everything = torch.cat(real + generated).long()
    of_band = torch.from_numpy(order.BAND_OF_CHANNEL)[everything[:, 0]]
    ranges = [_reach(everything[of_band == i, 2]) for i in range(len(order.BANDS))]
    for name, (pictures, colour) in both.items():
        lengths = [len(t) for t in pictures]
        axes[0].hist(
            lengths, np.linspace(0, longest + 1, 18), density=True, histtype="step", color=colour, label=_label(name)
        )
        joined = torch.cat(pictures).long()
        band = torch.from_numpy(order.BAND_OF_CHANNEL)[joined[:, 0]]
        for i, (axis, title) in enumerate(zip(axes[1:], order.BAND_NAMES, strict=True)):
            values = joined[band == i, 2].numpy()
            largest = ranges[i]
            edges = np.arange(-largest - 0.5, largest + 1, max(1, largest // 20))
            weights = np.full(len(values), 1 / len(pictures))
            axis.hist(values.clip(-largest, largest), edges, weights=weights, histtype="step", color=colour)
            axis.set_yscale("log")
            axis.set(title=f"values, {title}", xlabel="value")
    axes[0].set(title="triples per image", xlabel="triples")
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    axes[1].set_ylabel("values per image")
    return figure


def _reach(values: Tensor) -> int:
    """Return a magnitude that hardly any value exceeds."""
    if not len(values):
        return 1
    return int(np.quantile(values.abs().numpy(), 0.9995)) + 1


def nearness(generated: Tensor, held_out: Tensor) -> Any:
    """Draw one chart: distances of generated and held-out pictures to the training pictures.

    Args:
        generated: distances ``[n]`` to the nearest training picture.
        held_out: the same of real pictures that were not trained on.
    """
    figure, axis = _figure(6, 2.8)
    edges = np.linspace(0, max(float(generated.max()), float(held_out.max())) * 1.02, 30).tolist()
    for name, values, colour in (("held out", held_out, REAL), ("generated", generated, GENERATED)):
        axis.hist(values.numpy(), edges, density=True, histtype="step", color=colour, label=_label(name), linewidth=1.5)
    axis.set(xlabel="distance to the nearest training picture", yticks=[])
    axis.legend(frameon=False)
    return figure


# Pictures -------------------------------------------------------------------------------------------------------------


def heat(maps: Tensor, largest: float) -> np.ndarray:
    """Colour bits by place, from black (none) over violet and orange to pale yellow (``largest``).

    Args:
        maps: ``[n, h, w]``, not negative.
        largest: what the brightest colour stands for, one scale for all.

    Returns:
        uint8 ``[n, 8h, 8w, 3]``.
    """
    coloured = inferno((maps.double().numpy() / max(largest, 1e-9)).clip(0, 1))
    return coloured.repeat(8, axis=1).repeat(8, axis=2)


def surprise_sheet(pictures: Tensor, maps: Tensor, *, columns: int = 4) -> Image.Image:
    """Lay out pictures, each next to the heat-map of its bits, all on one scale.

    Args:
        pictures: uint8 ``[n, H, W, 3]``.
        maps: bits by luma block, ``[n, H / 8, W / 8]``.
        columns: pictures in a row.
    """
    coloured = heat(maps, float(maps.quantile(0.99)))
    pairs = np.concatenate([pictures.numpy(), coloured], axis=2)
    captions = [f"{bits / 8:.0f} bytes" for bits in maps.sum((1, 2)).tolist()]
    return contact_sheet(pairs, columns=columns, captions=captions, scale=max(1, 128 // pictures.shape[1]))


def progressive_strip(triples: list[Tensor], height: int, width: int, quality: int) -> Image.Image:
    """Show how pictures sharpen while they are generated: a row per picture, a column per stage.

    Args:
        triples: int ``[L, 3]`` of each picture, in generation order.
        height: pixels.
        width: pixels.
        quality: of the codec.
    """
    codec = Codec(quality)
    tiles, captions = [], []
    for listed in triples:
        ranks = ranked(listed)[0]
        for name, band, components in STAGES:
            last = max(int(order.RANK[c + order.BANDS[band][1] - 1]) for c in components)
            part = listed[ranks <= last]
            tiles.append(codec.decode(codec.from_triples(part, height, width))[0])
            captions.append(f"{name}: {len(part)}")
    return contact_sheet(torch.stack(tiles), columns=len(STAGES), captions=captions)


def neighbours_sheet(pictures: Tensor, neighbours: Tensor, distance: Tensor) -> Image.Image:
    """Lay out generated pictures, each at the start of a row of its nearest training pictures.

    Args:
        pictures: uint8 ``[n, H, W, 3]``.
        neighbours: uint8 ``[n, k, H, W, 3]``.
        distance: ``[n, k]``.
    """
    rows = torch.cat([pictures[:, None], neighbours], dim=1).flatten(0, 1)
    captions = [text for row in distance.tolist() for text in ("generated", *(f"{d:.2f}" for d in row))]
    per_row = 1 + neighbours.shape[1]
    pairs = 2 if len(pictures) > 4 else 1
    return contact_sheet(rows, columns=pairs * per_row, captions=captions)
