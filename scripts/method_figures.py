"""Draw the figures of docs/method.md from one sample of a model; no photographs are needed or shown.

All numbers shown are computed: blocks, coefficients and triples from the sample, distributions by the model.

The figures show the complete list of triples, so the model must decide everything triple by triple. The figures in docs
are from the weights `flowers64` of commit 7bbb71c:

    git worktree add before 7bbb71c
    python scripts/method_figures.py before/src/dctransformer/weights/flowers64 --out docs/images
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.codec import Codec, order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.bits import surprise
from dctransformer.evaluate.plots import FIELD_COLOURS, STAGES
from dctransformer.files import atomic_write
from dctransformer.model.chunk_state import Context, Places
from dctransformer.model.legality import NEVER
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import fill
from dctransformer.sampling.rows import Request, Samples
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks

COMPONENT_COLOURS = {order.LUMA: "#4d4d4d", order.CR: "#d6604d", order.CB: "#4393c3"}
COMPONENT_NAMES = {order.LUMA: "Y", order.CR: "Cr", order.CB: "Cb"}
MARK = "#f1a340"


@dataclasses.dataclass
class Args:
    """Settings of the figures."""

    model: tyro.conf.Positional[Path]
    """Folder of a model without texture (`texture_from = 4`)."""
    out: Path = Path("docs/images")
    """Output folder."""
    seed: int = 1
    """Random seed of the sample."""
    index: int = 3
    """Index of the sample."""
    chunk: int = 3
    """Index of the chunk that is shown."""


def write(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, facecolor="white")
    with atomic_write(path) as temporary:
        Image.open(out).convert("RGB").save(temporary, format="PNG", optimize=True)


def bare(axis: Any, title: str = "") -> None:
    """Remove ticks and frame, and set the title."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)


def show(axis: Any, picture: Any, title: str = "", **options: Any) -> None:
    """Show a picture without interpolation."""
    axis.imshow(picture, interpolation="nearest", **options)
    bare(axis, title)


def numbers(axis: Any, table: np.ndarray, colours: Any, title: str, dark: np.ndarray, zero: str = "0") -> None:
    """Show an 8×8 table of numbers on coloured cells."""
    axis.imshow(colours, interpolation="nearest")
    for (row, column), value in np.ndenumerate(table):
        text = zero if value == 0 else f"{value:.0f}"
        colour = "white" if dark[row, column] else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=6.2, color=colour)
    bare(axis, title)


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


# Block -> DCT -> quantised -> zigzag ----------------------------------------------------------------------------------


def busiest(levels: torch.Tensor) -> tuple[int, int]:
    """Row and column of the luma block with the most coefficients, away from the border."""
    count = (levels != 0).sum(-1)[1:-1, 1:-1]
    best = int(count.flatten().argmax())
    return 1 + best // count.shape[1], 1 + best % count.shape[1]


def block_figure(samples: Samples) -> Any:
    """Draw a block as pixels, as DCT coefficients, quantised, and along the zigzag."""
    dct = samples.dct()
    picture = samples.pixels()[0].numpy()
    row, column = busiest(dct.luma[0])
    levels = dct.luma[0, row, column].numpy()
    # The pixels before quantisation are unknown: these are the pixels of the decoded file.
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=float)
    pixels = grey[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    k = np.arange(8)
    basis = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.where(k[:, None], 0.5, math.sqrt(1 / 8))
    coefficients = basis @ (pixels - 128) @ basis.T
    natural = levels[order.UNZIGZAG].reshape(8, 8)

    figure = Figure(figsize=(11, 2.75))
    axes = [figure.add_axes((x, 0.13, 0.17, 0.74)) for x in (0.01, 0.2125, 0.415, 0.6175, 0.82)]
    show(axes[0], picture, f"a picture, {picture.shape[1]} × {picture.shape[0]}")
    axes[0].add_patch(Rectangle((8 * column - 0.5, 8 * row - 0.5), 8, 8, fill=False, edgecolor="white", linewidth=1.8))
    shades = np.repeat(pixels[..., None] / 255, 3, axis=2)
    numbers(axes[1], pixels, shades, "a block of luma, 8 × 8", pixels < 120)
    reach = np.abs(coefficients).max()
    show_signed(axes[2], coefficients, reach, "DCT coefficients")
    show_signed(axes[3], natural, np.abs(natural).max(), "÷ quantisation steps, rounded", zero="·")
    zigzag(axes[4], levels)
    for left, right in itertools.pairwise(axes):
        arrow(figure, left, right)
    figure.text(0.5, 0.02, f"{np.count_nonzero(levels)} of 64 numbers are left; the high frequencies, to the right and "
                "below, are nearly all 0", ha="center", fontsize=8.5, color="#333333")  # fmt: skip
    return figure


def show_signed(axis: Any, table: np.ndarray, reach: float, title: str, zero: str = "0") -> None:
    """Show numbers on a colour map from blue (negative) to red (positive)."""
    import matplotlib

    x = np.sign(table) * np.sqrt(np.abs(table) / max(reach, 1e-9))
    colours = matplotlib.colormaps["RdBu_r"](0.5 + 0.42 * x)
    numbers(axis, table.round(), colours, title, np.abs(x) > 0.75, zero)


def zigzag(axis: Any, levels: np.ndarray) -> None:
    """Show the zigzag order of frequencies in a block, and the four bands."""
    import matplotlib

    shades = matplotlib.colormaps["YlGnBu"](np.linspace(0.15, 0.65, len(order.BANDS)))
    cells = np.zeros((8, 8, 4))
    for shade, (start, end) in zip(shades, order.BANDS, strict=True):
        for place in order.ZIGZAG[start:end]:
            cells[place // 8, place % 8] = shade
    axis.imshow(cells)
    rows, columns = order.ZIGZAG // 8, order.ZIGZAG % 8
    axis.plot(columns, rows, color="white", linewidth=1.0)
    nonzero = levels != 0
    axis.scatter(columns[nonzero], rows[nonzero], s=22, color="#b2182b", zorder=3, linewidths=0)
    bare(axis, "the zigzag and its four bands")


# Triples --------------------------------------------------------------------------------------------------------------


def triples_figure(samples: Samples) -> Any:
    """Draw the list of triples: the picture after each band, and positions along the sequence."""
    triples = samples.triples[0].numpy()
    grid, codec = samples.grid, Codec(samples.quality)
    height, width = grid.rows * order.MCU, grid.cols * order.MCU
    ranks = order.RANK[triples[:, 0]]
    figure = Figure(figsize=(11, 5.0))
    ends = []
    for i, (name, band, components) in enumerate(STAGES):
        last = max(int(order.RANK[c + order.BANDS[band][1] - 1]) for c in components)
        count = int((ranks <= last).sum())
        ends.append(count)
        axis = figure.add_axes((0.045 + 0.19 * i, 0.55, 0.165, 0.365))
        part = codec.decode(codec.from_triples(torch.from_numpy(triples[:count]), height, width))[0].numpy()
        show(axis, part, f"{name.replace('-', '–')}: {count} triples")
    axis = figure.add_axes((0.045, 0.11, 0.66, 0.34))
    component = triples[:, 0] // 64 * 64
    for which, colour in COMPONENT_COLOURS.items():
        chosen = component == which
        axis.scatter(
            np.flatnonzero(chosen), triples[chosen, 1], s=4, color=colour, linewidths=0, label=COMPONENT_NAMES[which]
        )
    for end in ends[1:-1]:
        axis.axvline(end, color="#bbbbbb", linewidth=0.8)
    axis.set(
        xlim=(-2, len(triples) + 2),
        ylim=(grid.positions, -1),
        xlabel="place in the sequence",
        ylabel="position (block)",
    )
    axis.xaxis.label.set_fontsize(8)
    axis.yaxis.label.set_fontsize(8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        frameon=False,
        fontsize=7,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        handletextpad=0.1,
        markerscale=2,
    )
    listing = figure.add_axes((0.735, 0.06, 0.255, 0.42))
    bare(listing)
    listing.text(0.0, 0.97, "    #  channel  position  value", family="monospace", fontsize=7.5, weight="bold")
    shown = [*range(4), None, *range(ends[1], ends[1] + 3), None, *range(len(triples) - 2, len(triples))]
    for line, i in enumerate(shown):
        text = "    …"
        if i is not None:
            channel, position, value = (int(x) for x in triples[i])
            name = f"{COMPONENT_NAMES[channel // 64 * 64]} {channel % 64}"
            text = f"{i:5d}  {name:>7s}  {position:8d}  {value:5d}"
        listing.text(0.0, 0.88 - 0.079 * line, text, family="monospace", fontsize=7.5)
    listing.text(0.0, 0.88 - 0.079 * len(shown), f"{len(triples):5d}     stop", family="monospace", fontsize=7.5)
    return figure


# Chunks ---------------------------------------------------------------------------------------------------------------


def chunk_figure(samples: Samples, batch: ChunkBatch, index: int, stride: int) -> Any:
    """Draw the encoder's input before a chunk, and the coefficients of the chunk."""
    grid, codec = samples.grid, Codec(samples.quality)
    partial = dataclasses.replace(samples, mcus=batch.coefficients)
    settled = planes(batch.settled[0], grid)
    target = torch.zeros_like(batch.settled)
    n = int(batch.lengths[0])
    ranks, positions = batch.ranks[0, 1 : n + 1], batch.positions[0, 1 : n + 1]
    listed = ranks < order.NUM_CHANNELS
    target.view(-1)[grid.slot(ranks[listed], positions[listed])] = True
    nonzero = planes((batch.coefficients[0] != 0), grid)
    predicted = planes(target[0], grid)

    # Unknown: white; settled and 0: pale; settled and not 0: dark; predicted by this chunk: orange.
    tints = np.array([[255, 255, 255], [214, 226, 236], [49, 86, 128], [241, 163, 64]], dtype=np.uint8)
    kind = np.where(predicted, 3, np.where(nonzero, 2, np.where(settled, 1, 0)))

    figure = Figure(figsize=(11, 4.5))
    axes = [figure.add_axes((x, 0.3, 0.27, 0.6)) for x in (0.02, 0.345, 0.70)]
    show(axes[0], codec.decode(partial.dct())[0].numpy(), f"the partial picture after {index * stride} triples")
    show(axes[1], tints[kind], "every luma coefficient, block by block")
    side = 8 * grid.width
    for at in range(0, side + 1, 8):
        axes[1].axhline(at - 0.5, color="#cccccc", linewidth=0.5)
        axes[1].axvline(at - 0.5, color="#cccccc", linewidth=0.5)
    show(axes[2], codec.decode(samples.dct())[0].numpy(), "the finished picture")
    for tint, text, x in zip(
        tints[[2, 1, 3, 0]],
        ("settled, not 0", "settled: it is 0", f"listed by chunk {index}", "still unknown"),
        (0.29, 0.43, 0.58, 0.735), strict=True,
    ):  # fmt: skip
        figure.add_artist(
            Rectangle(
                (x, 0.225),
                0.012,
                0.03,
                transform=figure.transFigure,
                facecolor=tint / 255,
                edgecolor="#888888",
                linewidth=0.6,
            )
        )
        figure.text(x + 0.017, 0.24, text, va="center", fontsize=8)
    bar = figure.add_axes((0.03, 0.06, 0.94, 0.09))
    total = len(samples.triples[0]) + 1
    for k in range(math.ceil(total / stride)):
        start, end = k * stride, min((k + 1) * stride, total)
        colour = "#31567f" if k < index else MARK if k == index else "#e6e6e6"
        bar.add_patch(Rectangle((start, 0), end - start - 1, 1, facecolor=colour, linewidth=0))
        name = f"chunk {k}" if end - start > stride / 2 else str(k)
        bar.text(
            (start + end) / 2, 0.5, name, ha="center", va="center", fontsize=8, color="white" if k < index else "black"
        )
    bar.set(xlim=(0, total), ylim=(0, 1))
    bare(bar)
    figure.text(0.03, 0.165, "in the encoder's partial DCT image", fontsize=8, color="#31567f")
    figure.text(0.03 + 0.94 * index * stride / total, 0.165, "predicted now", fontsize=8, color="#a86206")
    return figure


def planes(slots: torch.Tensor, grid: Grid) -> np.ndarray:
    """Arrange the luma slots of ``[N, 6, 64]`` as in the picture, 8×8 frequencies per block: ``[8·h, 8·w]``."""
    blocks = slots.flatten(0, 1)[grid.luma_block][:, torch.from_numpy(order.UNZIGZAG)]
    arranged = blocks.view(2 * grid.rows, grid.width, 8, 8).permute(0, 2, 1, 3)
    return arranged.reshape(16 * grid.rows, 8 * grid.width).numpy()


# Decoders -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """A decoding step of a chunk: the three distributions and the drawn triple."""

    channel: np.ndarray
    position: np.ndarray
    """Logits over positions, as `PositionHead` gives them."""
    value: np.ndarray
    rank: int
    place: int
    level: int


@torch.inference_mode()
def steps_of(model: DCTransformer, batch: ChunkBatch) -> tuple[list[Step], Context, Places]:
    """Compute the distributions of every step of a chunk."""
    context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)
    places = model.places_of_chunk(batch, context)
    streams = model.streams(batch, context, places)
    before = batch.ranks[:, :-1], batch.positions[:, :-1]
    rank = batch.ranks[:, 1:].clamp(max=order.NUM_CHANNELS - 1)
    cursor = torch.where(before[0] == rank, before[1], -1)
    channel = model.channel_head(streams[0], *before, context).softmax(-1)[0]
    position = model.position_head(streams[1], rank, cursor, places, context)[0]
    value = model.value_head(streams[2], rank).softmax(-1)[0]
    steps = [
        Step(c.numpy(), p.double().numpy(), v.numpy(), int(r), int(at), int(level))
        for c, p, v, r, at, level in zip(
            channel, position, value, batch.ranks[0, 1:], batch.positions[0, 1:], batch.values[0, 1:], strict=True
        )
    ]
    return steps, context, places


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits."""
    x = np.exp(logits - logits.max())
    return x / x.sum()


def decoders_figure(model: DCTransformer, samples: Samples, batch: ChunkBatch, step: Step) -> Any:
    """Draw the model as boxes, with the distribution of each head at one step."""
    grid, codec = samples.grid, Codec(samples.quality)
    figure = Figure(figsize=(11, 5.2))
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 11), ylim=(0, 5.2))
    bare(canvas)

    def box(x: float, y: float, text: str, colour: str, width: float = 2.0, height: float = 0.62) -> None:
        canvas.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="#555555", linewidth=0.8))
        canvas.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def line(x0: float, y0: float, x1: float, y1: float, text: str = "", at: tuple[float, float] = (0, 0)) -> None:
        canvas.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.1})
        canvas.text(
            (x0 + x1) / 2 + at[0], (y0 + y1) / 2 + at[1], text, ha="center", va="center", fontsize=7.5, color="#333333"
        )

    picture = figure.add_axes((0.02, 0.585, 0.15, 0.317))
    show(
        picture,
        codec.decode(dataclasses.replace(samples, mcus=batch.coefficients).dct())[0].numpy(),
        "partial DCT image + settled",
    )
    box(0.34, 1.55, "encoder over\nthe MCUs", "#dfe8f1", 1.4, 0.8)
    line(1.05, 3.1, 1.05, 2.37)
    columns = (3.0, 5.85, 8.7)
    names = ("channel", "position", "value")
    for x, name in zip(columns, names, strict=True):
        box(x, 1.64, f"{name} decoder", "#f6efe3")
    canvas.plot([1.05, 1.05, 9.7], [1.53, 1.12, 1.12], color="#555555", linewidth=1.1)
    for x in columns:
        line(x + 1.0, 1.12, x + 1.0, 1.62)
    canvas.text(2.2, 0.98, "every decoder attends to it", fontsize=7.5, color="#333333", ha="center", va="top")
    line(2.2, 1.95, 2.98, 1.95)
    canvas.text(2.45, 2.12, "triples\nbefore", fontsize=7.5, color="#333333", ha="center", va="bottom")
    line(5.02, 1.95, 5.83, 1.95)
    line(7.87, 1.95, 8.68, 1.95)
    chosen = order.GENERATION_ORDER[step.rank]
    component = COMPONENT_NAMES[int(chosen) // 64 * 64]
    canvas.text(
        5.43,
        2.03,
        f"+ channel\n{component} {chosen % 64}",
        fontsize=7.5,
        ha="center",
        va="bottom",
        color=FIELD_COLOURS["channel"],
    )
    canvas.text(
        8.28, 2.03, f"+ position\n{step.place}", fontsize=7.5, ha="center", va="bottom", color=FIELD_COLOURS["position"]
    )
    for x in columns:
        line(x + 1.0, 2.28, x + 1.0, 2.75)
    for x, y, text in (
        (6.85, 0.42, "local context: sums over what is settled at and\naround each place, refreshed once per channel"),
    ):
        box(x - 0.9, y - 0.24, text, "#e8f1e4", 4.75, 0.55)
    line(6.6, 0.73, 6.6, 1.62)
    line(9.45, 0.73, 9.45, 1.62)

    left = figure.add_axes((3.0 / 11, 0.635, 2.0 / 11, 0.25))
    around = range(max(0, step.rank - 4), min(len(step.channel), step.rank + 9))
    labels = [
        "stop"
        if r == order.STOP
        else f"{COMPONENT_NAMES[int(order.GENERATION_ORDER[r]) // 64 * 64]} {order.GENERATION_ORDER[r] % 64}"
        for r in around
    ]
    left.bar(
        range(len(around)),
        step.channel[list(around)],
        color=[MARK if r == step.rank else FIELD_COLOURS["channel"] for r in around],
    )
    left.set_xticks(range(len(around)), labels, rotation=90, fontsize=6)
    left.set_title("which channel?", fontsize=9)
    middle = figure.add_axes((5.98 / 11, 0.565, 1.74 / 11, 0.335))
    p = probabilities(step.position).reshape(2 * grid.rows, grid.width)
    middle.imshow(p, cmap="Oranges", vmin=0)
    for (r, c), logit in np.ndenumerate(step.position.reshape(p.shape)):
        if logit <= NEVER / 2:
            middle.text(c, r, "×", ha="center", va="center", fontsize=6, color="#999999")
    middle.add_patch(
        Rectangle(
            (step.place % grid.width - 0.5, step.place // grid.width - 0.5),
            1,
            1,
            fill=False,
            edgecolor="#7f3b08",
            linewidth=1.6,
        )
    )
    bare(middle, "at which position?")
    right = figure.add_axes((8.7 / 11, 0.635, 2.0 / 11, 0.25))
    levels = np.arange(-12, 13)
    encoded = model.alphabet.encode(torch.from_numpy(levels)).numpy()
    heights = np.where(levels == 0, 0, step.value[encoded])
    right.bar(levels, heights, color=[MARK if v == step.level else FIELD_COLOURS["value"] for v in levels], width=0.85)
    right.set_title("with which value?", fontsize=9)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", labelsize=6)
    right.tick_params(axis="x", labelsize=6)
    figure.text(
        0.5,
        0.97,
        f"one real step: ({component} {chosen % 64}, {step.place}, {step.level}); "
        "what was drawn is orange or framed, × is impossible",
        ha="center",
        fontsize=9,
        color="#333333",
    )
    return figure


# The position head ----------------------------------------------------------------------------------------------------


def survival_figure(samples: Samples, step: Step) -> Any:
    """Draw how hazards of the open positions give the probability of the next position."""
    grid = samples.grid
    legal = np.flatnonzero(step.position > NEVER / 2)
    unnormalised = np.exp(step.position[legal])
    before = np.concatenate([[0.0], unnormalised.cumsum()[:-1]])
    hazard = unnormalised / (1 - before)
    p = probabilities(step.position)[legal]
    figure = Figure(figsize=(11, 3.3))
    shape = (2 * grid.rows, grid.width)
    drawn = (step.place % grid.width - 0.5, step.place // grid.width - 0.5)
    for x, values, title in (
        (0.01, hazard, "taken, if it is reached?"),
        (0.79, p, "probability of being the next"),
    ):
        axis = figure.add_axes((x, 0.1, 0.2, 0.73))
        full = np.full(grid.positions, np.nan)
        full[legal] = values
        axis.imshow(full.reshape(shape), cmap="Oranges", vmin=0, vmax=max(values.max(), 0.05))
        for place in set(range(grid.positions)) - set(legal.tolist()):
            axis.text(
                place % grid.width, place // grid.width, "×", ha="center", va="center", fontsize=6, color="#999999"
            )
        axis.add_patch(Rectangle(drawn, 1, 1, fill=False, edgecolor="#7f3b08", linewidth=1.6))
        bare(axis, title)
    axis = figure.add_axes((0.265, 0.2, 0.475, 0.63))
    upto = min(len(legal), int(np.searchsorted(p.cumsum(), 0.99)) + 2)
    x = np.arange(upto)
    axis.bar(x, hazard[:upto], color="#fdd0a2", label="taken, if reached: σ(score)", width=0.85)
    axis.step(
        np.append(x - 0.5, upto - 0.5),
        np.append((1 - before)[:upto], (1 - before)[upto - 1]),
        where="post",
        color="#555555",
        label="still passing: ∏ (1 − σ(score)) of those before",
        linewidth=1.2,
    )
    colours = ["#7f3b08" if legal[i] == step.place else FIELD_COLOURS["position"] for i in x]
    axis.bar(x, p[:upto], color=colours, label="the product: next", width=0.45)
    axis.set_xticks(x[:: max(1, upto // 16)], [str(legal[i]) for i in x[:: max(1, upto // 16)]], fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.set(xlabel="open positions, in raster order", ylim=(0, 1.05))
    axis.xaxis.label.set_fontsize(8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7.5, loc="upper right", bbox_to_anchor=(1.0, 1.0))
    return figure


def context_figure(samples: Samples, batch: ChunkBatch, model: DCTransformer, place: int) -> Any:
    """Draw the local context of a place: the settled coefficients around it and their running sums."""
    grid = samples.grid
    row, column = place // grid.width, place % grid.width
    figure = Figure(figsize=(11, 3.0))
    coefficients = planes(batch.coefficients[0], grid).astype(float)
    settled = planes(batch.settled[0], grid)
    axis = figure.add_axes((0.02, 0.08, 0.22, 0.8))
    codec = Codec(samples.quality)
    show(
        axis,
        codec.decode(dataclasses.replace(samples, mcus=batch.coefficients).dct())[0].numpy(),
        "a place and its neighbours",
    )
    axis.add_patch(Rectangle((8 * column - 8.5, 8 * row - 8.5), 24, 24, fill=False, edgecolor="white", linewidth=1.2))
    axis.add_patch(Rectangle((8 * column - 0.5, 8 * row - 0.5), 8, 8, fill=False, edgecolor="#b2182b", linewidth=2.2))
    middle = figure.add_axes((0.29, 0.08, 0.22, 0.8))
    window = (slice(8 * row - 8, 8 * row + 16), slice(8 * column - 8, 8 * column + 16))
    size = np.sign(coefficients[window]) * np.log1p(np.abs(coefficients[window]))
    middle.imshow(np.where(settled[window], size, np.nan), cmap="RdBu_r", vmin=-3.5, vmax=3.5)
    for at in (7.5, 15.5):
        middle.axhline(at, color="#777777", linewidth=0.8)
        middle.axvline(at, color="#777777", linewidth=0.8)
    middle.add_patch(Rectangle((7.5, 7.5), 8, 8, fill=False, edgecolor="#b2182b", linewidth=2.2))
    bare(middle, "their settled coefficients: sign · log(1 + |x|)")
    with torch.inference_mode():
        context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, grid)
    assert context.states is not None
    sums = context.states.luma[0].view(2 * grid.rows, grid.width, -1)
    right = figure.add_axes((0.56, 0.08, 0.22, 0.8))
    strongest = int(sums.var((0, 1)).argmax())
    right.imshow(sums[..., strongest].numpy(), cmap="PuOr")
    right.add_patch(Rectangle((column - 1.5, row - 1.5), 3, 3, fill=False, edgecolor="#333333", linewidth=1.4))
    bare(right, f"one of {sums.shape[-1]} running sums")
    last = figure.add_axes((0.82, 0.08, 0.17, 0.8))
    bare(last)
    last.text(
        0.5,
        0.5,
        "3 × 3 convolution\nover the sums,\n+ the encoder's feature,\n+ the channel\n\n"
        "→ the place's features,\nonce per channel",
        ha="center",
        va="center",
        fontsize=9,
    )
    for left, after in ((axis, middle), (middle, right), (right, last)):
        arrow(figure, left, after)
    return figure


def outcome_figure(samples: Samples, bits: torch.Tensor) -> Any:
    """Draw the finished picture, the number of triples and the bits per place."""
    figure = Figure(figsize=(11, 3.1))
    axes = [figure.add_axes((x, 0.06, 0.22, 0.8)) for x in (0.13, 0.40, 0.67)]
    show(axes[0], samples.pixels()[0].numpy(), f"a sample: {len(samples.triples[0])} triples")
    axes[1].imshow(samples.places()[0].numpy(), cmap="inferno")
    bare(axes[1], "how often each place was chosen")
    axes[2].imshow(bits[0].numpy(), cmap="inferno")
    bare(axes[2], f"what each place cost: {float(bits.sum()) / 8:.0f} bytes in all")
    return figure


def most_uncertain(steps: list[Step]) -> int:
    """Index of the step, in the middle of a luma channel, with the highest entropy."""

    def entropy(p: np.ndarray) -> float:
        return float(-(p * np.log(p.clip(1e-12))).sum())

    def uncertainty(i: int) -> float:
        step = steps[i]
        closed = (step.position <= NEVER / 2).sum()
        if order.GENERATION_ORDER[min(step.rank, order.STOP - 1)] >= order.CB or not 4 <= closed <= 32:
            return -1.0
        return entropy(step.channel) + entropy(probabilities(step.position)) + entropy(step.value)

    return max(range(len(steps)), key=uncertainty)


def main(args: Args) -> None:
    """Draw all figures."""
    model = DCTransformer.from_pretrained(args.model)
    config = model.config
    if config.texture_from < len(order.BANDS):
        raise SystemExit(f"{args.model} decides texture by channel; give a model with texture_from = 4")
    grid = Grid.of_size(config.size, config.size)
    label = int(np.random.default_rng([args.seed, args.index, 1]).integers(config.num_labels))
    samples = fill(model, [Request(args.index, label)], grid, SampleConfig(seed=args.seed, top_p=0.9))
    sequence = Sequence.from_triples(samples.triples[0], grid, label)
    batch = cut_chunks([sequence], [args.chunk], config.chunk, config.overlap)
    steps, *_ = steps_of(model, batch)
    first = most_uncertain(steps)
    write(block_figure(samples), args.out / "method-block.png")
    write(triples_figure(samples), args.out / "method-triples.png")
    write(chunk_figure(samples, batch, args.chunk, config.stride), args.out / "method-chunk.png")
    write(decoders_figure(model, samples, batch, steps[first]), args.out / "method-decoders.png")
    write(survival_figure(samples, steps[first]), args.out / "method-survival.png")
    write(context_figure(samples, batch, model, 3 * grid.width + 3), args.out / "method-context.png")
    write(outcome_figure(samples, surprise(model, [sequence])), args.out / "method-outcome.png")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
