"""Figures of the structure's model: encoder and decoders, hazards, and local context."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import matplotlib
import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from dctransformer import DCTransformer
from dctransformer.codec import Codec, order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.evaluate.plots import FIELD_COLOURS
from dctransformer.model import heads
from dctransformer.model.heads import hazard_logits
from dctransformer.model.legality import NEVER
from dctransformer.sampling.rows import Samples
from dctransformer.sequence.chunks import ChunkBatch, Sequence, partial_image
from method.codec import corners, planes
from method.style import (
    CORNER,
    DRAWN,
    FRAME,
    TEXT,
    arrow,
    bare,
    coefficients,
    frame_cell,
    light,
    new_figure,
    probability_map,
    probability_scale,
    rank_name,
    scale,
    show,
)

HAZARD = "#fdd0a2"


@dataclasses.dataclass
class Step:
    """A decoding step of a chunk: the three distributions and the drawn triple.

    Attributes:
        channel: probabilities over ranks and the stop, ``[193]``.
        score: log-odds of the hazard of each position, ``[P]``.
        possible: positions that may be drawn, in raster order.
        value: probabilities over the alphabet, ``[V]``.
        rank: of the drawn channel.
        place: the drawn position.
        level: the drawn value.
    """

    channel: np.ndarray
    score: np.ndarray
    possible: np.ndarray
    value: np.ndarray
    rank: int
    place: int
    level: int

    @property
    def hazard(self) -> np.ndarray:
        """Probability of each possible position to be chosen, given that none before it is."""
        return 1 / (1 + np.exp(-self.score[self.possible]))

    @property
    def reached(self) -> np.ndarray:
        """Probability of each possible position that none before it is chosen."""
        passed = np.logaddexp(0, self.score[self.possible])
        return np.exp(passed - passed.cumsum())

    @property
    def next(self) -> np.ndarray:
        """Probability of each possible position to be the next one."""
        chance = self.hazard * self.reached
        return chance / chance.sum()


@torch.inference_mode()
def steps_of(model: DCTransformer, batch: ChunkBatch) -> list[Step]:
    """Compute the distributions of every step of a chunk."""
    context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)
    places = model.places_of_chunk(batch, context)
    streams = model.streams(batch, context, places)
    before = batch.ranks[:, :-1], batch.positions[:, :-1]
    rank = batch.ranks[:, 1:].clamp(max=order.NUM_CHANNELS - 1)
    cursor = torch.where(before[0] == rank, before[1], -1)
    channel = model.channel_head(streams[0], *before, context).softmax(-1)[0]
    scores: list[torch.Tensor] = []

    def recorded(score: torch.Tensor, legal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores.append(score[0].double())
        return hazard_logits(score, legal)

    with mock.patch.object(heads, "hazard_logits", recorded):  # its result is too coarse for places far down
        position = model.position_head(streams[1], rank, cursor, places, context)[0]
    value = model.value_head(streams[2], rank).softmax(-1)[0]
    drawn = batch.ranks[0, 1:], batch.positions[0, 1:], batch.values[0, 1:]
    return [
        Step(c.numpy(), s.numpy(), np.flatnonzero(p.numpy() > NEVER / 2), v.numpy(), int(r), int(at), int(level))
        for c, s, p, v, r, at, level in zip(channel, scores[0], position, value, *drawn, strict=True)
    ]


def most_uncertain(steps: list[Step], grid: Grid) -> Step:
    """Return the step inside a luma channel whose position has the highest entropy."""

    def uncertainty(step: Step) -> float:
        luma = step.rank < order.STOP and order.GENERATION_ORDER[step.rank] < order.CB
        if not luma or not grid.width // 2 <= step.possible[0] < grid.positions // 2:
            return -1.0
        return float(-(step.next * np.log(step.next.clip(1e-12))).sum())

    step = max(steps, key=uncertainty)
    if uncertainty(step) < 0:
        raise SystemExit(
            "the chunk has no step inside a channel of brightness; choose another --chunk or --larger-index"
        )
    return step


def by_place(values: np.ndarray, step: Step, grid: Grid) -> np.ndarray:
    """Arrange what belongs to the possible positions as a map, NaN elsewhere."""
    full = np.full(grid.positions, np.nan)
    full[step.possible] = values
    return full.reshape(2 * grid.rows, grid.width)


# Decoders -------------------------------------------------------------------------------------------------------------


def decoders_figure(model: DCTransformer, samples: Samples, batch: ChunkBatch, step: Step) -> Any:
    """Draw the model as boxes, with the distribution of each head at one step."""
    grid, codec, name = samples.grid, Codec(samples.quality), rank_name(step.rank)
    height = 5.5
    figure = new_figure(height)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 11), ylim=(0, height))
    bare(canvas)

    def box(x: float, y: float, text: str, colour: str, width: float = 2.0, height: float = 0.62) -> None:
        canvas.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="#555555", linewidth=0.8))
        canvas.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def line(x0: float, y0: float, x1: float, y1: float) -> None:
        canvas.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.1})

    def note(x: float, y: float, text: str, colour: str = TEXT) -> None:
        canvas.text(x, y, text, fontsize=8, ha="center", va="bottom", color=colour)

    def place(x: float, y: float, width: float, tall: float) -> Any:
        return figure.add_axes((x / 11, y / height, width / 11, tall / height))

    partial = codec.decode(dataclasses.replace(samples, mcus=batch.coefficients).dct())[0].numpy()
    show(place(0.2, 3.1, 1.7, 1.7), partial, "partial DCT image,\nand what of it is known")
    box(0.35, 1.55, "encoder over\nthe MCUs", "#dfe8f1", 1.4, 0.8)
    line(1.05, 3.05, 1.05, 2.37)
    columns = (3.0, 5.85, 8.7)
    for x, which in zip(columns, ("channel", "position", "value"), strict=True):
        box(x, 1.64, f"{which} decoder", "#f6efe3")
        line(x + 1.0, 1.12, x + 1.0, 1.62)
        line(x + 1.0, 2.28, x + 1.0, 2.72)
    canvas.plot([1.05, 1.05, 9.7], [1.53, 1.12, 1.12], color="#555555", linewidth=1.1)
    note(2.3, 0.86, "every decoder attends to it")
    line(2.1, 1.95, 2.98, 1.95)
    note(2.5, 2.05, "triples\nso far")
    line(5.02, 1.95, 5.83, 1.95)
    line(7.87, 1.95, 8.68, 1.95)
    note(5.43, 2.03, f"+ channel\n{name}", FIELD_COLOURS["channel"])
    note(8.28, 2.03, f"+ position\n{step.place}", FIELD_COLOURS["position"])
    box(5.95, 0.15, "local context: sums over what is known at and\naround each place, refreshed when a channel begins",
        "#e8f1e4", 4.75, 0.6)  # fmt: skip
    line(6.6, 0.75, 6.6, 1.62)
    line(9.45, 0.75, 9.45, 1.62)

    left = place(3.1, 3.3, 1.85, 1.5)
    around = range(max(0, step.rank - 4), min(len(step.channel), step.rank + 6))
    colours = [DRAWN if r == step.rank else FIELD_COLOURS["channel"] for r in around]
    left.bar(range(len(around)), step.channel[list(around)], color=colours)
    left.set_xticks(range(len(around)), [rank_name(r) for r in around], rotation=90)
    left.set_title("which channel?", fontsize=9)
    left.set_ylim(0, 1)
    middle = place(5.9, 2.95, 1.85, 1.85)
    probability_map(middle, by_place(step.next, step, grid), "at which position?")
    frame_cell(middle, step.place, grid.width)
    probability_scale(figure, (7.86 / 11, 3.1 / height, 0.08 / 11, 1.55 / height), "")
    right = place(8.75, 3.3, 1.95, 1.5)
    reach = max(8, min(14, abs(step.level) + 4))
    levels = np.arange(-reach, reach + 1)
    encoded = model.alphabet.encode(torch.from_numpy(levels)).numpy()
    heights = np.where(levels == 0, 0, step.value[encoded])
    right.bar(levels, heights, color=[DRAWN if v == step.level else FIELD_COLOURS["value"] for v in levels], width=0.85)
    right.set_title("with which value?", fontsize=9)
    for axis in (left, right):
        light(axis, 6.5)
    text = (
        f"A step of a sample: channel {name}, position {step.place}, value {step.level}. What was drawn is orange or "
        "framed, what is impossible is grey."
    ).replace("-", "−")
    figure.text(0.5, 0.965, text, ha="center", fontsize=9, color=TEXT)
    return figure


# Hazards --------------------------------------------------------------------------------------------------------------


def hazard_figure(samples: Samples, step: Step) -> Any:
    """Draw how hazards of the possible positions give the probability of the next position."""
    grid, hazard, reached, following = samples.grid, step.hazard, step.reached, step.next
    tall = 3.25
    figure = new_figure(tall)
    box = 0.19, 0.19 * 11 / tall
    left, right = (figure.add_axes((x, 0.19, *box)) for x in (0.02, 0.735))
    title = "1  Hazard: the chance that a place\nis chosen if no earlier one is"
    probability_map(left, by_place(hazard, step, grid), title)
    probability_map(right, by_place(following, step, grid), "3  Product: the chance\nthat a place is the next")
    for axis in (left, right):
        frame_cell(axis, step.place, grid.width)
    probability_scale(figure, (0.94, 0.19, 0.009, box[1]))
    axis = figure.add_axes((0.265, 0.19, 0.435, box[1]))
    count = min(len(following), int(np.searchsorted(following.cumsum(), 0.985)) + 2)
    x = np.arange(count)
    axis.bar(x, hazard[:count], color=HAZARD, width=0.85, label="1  hazard = σ(score)")
    axis.step(
        np.append(x - 0.5, count - 0.5), np.append(reached[:count], reached[count - 1]), where="post", color="#555555",
        linewidth=1.3, label="2  no earlier place is chosen: ∏ (1 − hazard)",
    )  # fmt: skip
    drawn = step.possible[:count] == step.place
    axis.bar(x, following[:count], color=FIELD_COLOURS["position"], width=0.45, label="3  product")
    axis.bar(x[drawn], following[:count][drawn], color=FRAME, width=0.45, label="the place drawn")
    every = max(1, count // 16)
    axis.set_xticks(x[::every], [str(place) for place in step.possible[:count:every]])
    axis.set(xlabel="place", ylim=(0, 1.42), xlim=(-0.7, count - 0.3), yticks=np.arange(0, 1.1, 0.2))
    light(axis)
    axis.set_title("Place by place, in raster order", fontsize=9)
    axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
    text = (
        f"A step in channel {rank_name(step.rank)}, whose last coefficient was at place {step.possible[0] - 1}. "
        "Grey: impossible, since positions rise inside a channel."
    )
    figure.text(0.5, 0.025, text, ha="center", fontsize=8.5, color=TEXT)
    return figure


# Local context --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def context_figure(samples: Samples, sequence: Sequence, model: DCTransformer, rank: int, place: int) -> Any:
    """Draw the local context of a place when a channel begins: what is known around it, and the running sums.

    Args:
        samples: the picture.
        sequence: its structure.
        model: with local context.
        rank: of the channel.
        place: a position away from the border.
    """
    grid, codec = samples.grid, Codec(samples.quality)
    row, column = place // grid.width, place % grid.width
    start = int((sequence.ranks < rank).sum())
    known, _ = partial_image(sequence, start)
    settled = (rank > RANK_OF_SLOT).expand_as(known)
    figure = new_figure(2.95)
    top, tall = 0.125, 0.21 * 11 / 2.95
    axis = figure.add_axes((0.01, top, 0.21, tall))
    show(
        axis,
        codec.decode(dataclasses.replace(samples, mcus=known[None]).dct())[0].numpy(),
        "a place and its neighbours",
    )
    axis.add_patch(Rectangle((8 * column - 8.5, 8 * row - 8.5), 24, 24, fill=False, edgecolor="white", linewidth=1.4))
    axis.add_patch(Rectangle((8 * column - 0.5, 8 * row - 0.5), 8, 8, fill=False, edgecolor="#b2182b", linewidth=2.2))

    middle = figure.add_axes((0.275, top, 0.21, tall))
    values = np.where(planes(settled, grid), planes(known, grid).astype(float), np.nan)
    window = corners(values[8 * row - 8 : 8 * row + 16, 8 * column - 8 : 8 * column + 16])
    coefficients(middle, window, f"their first {CORNER} × {CORNER} coefficients")
    for at in (CORNER - 0.5, 2 * CORNER - 0.5):
        middle.axhline(at, color="#777777", linewidth=0.8)
        middle.axvline(at, color="#777777", linewidth=0.8)
    middle.add_patch(
        Rectangle((CORNER - 0.5, CORNER - 0.5), CORNER, CORNER, fill=False, edgecolor="#b2182b", linewidth=2.2)
    )
    figure.text(0.38, 0.05, f"white: not known yet; {rank_name(rank)} is next", ha="center", fontsize=8, color=TEXT)

    states = model.local.start(known[None], settled[None], torch.zeros_like(settled)[None], grid)
    sums = states.luma[0].view(2 * grid.rows, grid.width, -1)
    strongest = sums[..., int(sums.var((0, 1)).argmax())].numpy()
    right = figure.add_axes((0.54, top, 0.21, tall))
    norm, colours = Normalize(-np.abs(strongest).max(), np.abs(strongest).max()), matplotlib.colormaps["PRGn"]
    right.imshow(strongest, cmap=colours, norm=norm)
    right.add_patch(Rectangle((column - 1.5, row - 1.5), 3, 3, fill=False, edgecolor=TEXT, linewidth=1.4))
    bare(right, f"one of {sums.shape[-1]} running sums, at every place")
    scale(figure, (0.56, 0.085, 0.17, 0.022), colours, norm, "", (-5, 0, 5))
    last = figure.add_axes((0.81, top, 0.18, tall))
    bare(last)
    text = (
        "3 × 3 convolution\nover the sums,\n+ the encoder's feature,\n+ the channel\n\n→ features of the place,\n"
        "computed once when\nthe channel begins"
    )
    last.text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    for before, after in ((axis, middle), (middle, right), (right, last)):
        arrow(figure, before, after)
    return figure
