"""The figure of texture: which channels are in use, which places of one are occupied, and their values."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dctransformer import DCTransformer
from dctransformer.codec import Codec, order
from dctransformer.codec.grid import BAND_OF_RANK, IS_CHROMA_RANK, RANK_OF_SLOT
from dctransformer.evaluate.plots import FIELD_COLOURS
from dctransformer.model.texture_state import TextureState
from dctransformer.model.texture_values import value_logits
from dctransformer.sampling.rows import Samples
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.texture import channels_in_use, texture_batch
from method.style import (
    COMPONENT_NAMES,
    DRAWN,
    FRAME,
    TEXT,
    arrow,
    coefficients,
    frame_cell,
    light,
    new_figure,
    probability_map,
    probability_scale,
    rank_name,
    show,
)

NEGLIGIBLE = 0.005
"""Probability below which the last channels are not shown."""


@dataclasses.dataclass
class Decided:
    """A texture channel of a picture, with the distributions by which it is decided.

    Attributes:
        rank: of the channel.
        occupancy: probability of each place to hold a coefficient, given what its pass sees: fp ``[P]``.
        second: places of the second pass: bool ``[P]``.
        level: the drawn values, 0 where there is none: int ``[P]``.
        value: distribution over the alphabet at each occupied place: fp ``[P, V]``.
    """

    rank: int
    occupancy: np.ndarray
    second: np.ndarray
    level: np.ndarray
    value: np.ndarray


@torch.inference_mode()
def decide(model: DCTransformer, picture: TextureState, rank: int) -> Decided:
    """Compute the distributions of a channel in use, given what is drawn."""
    grid, which = picture.grid, torch.tensor([rank])
    channels = model.texture.begin(picture, torch.zeros_like(which), which)
    truth = picture.planes[0, rank]
    occupancy = torch.full((grid.positions,), torch.nan)
    second = torch.zeros(grid.positions, dtype=torch.bool)
    value = torch.zeros(grid.positions, len(model.alphabet))
    passes = itertools.count()

    def occupied(logits: Tensor, where: Tensor, opened: Tensor, must: Tensor) -> Tensor:
        places = where[opened]
        occupancy[places] = logits[opened].sigmoid()
        second[places] = next(passes) == 1
        return truth[where] != 0

    def valued(scores: Tensor, where: Tensor, due: Tensor) -> Tensor:
        limit = model.limits[rank].expand_as(where)
        value[where[due]] = value_logits(scores[due], limit[due], model.alphabet).softmax(-1)
        return truth[where].float()

    model.texture.decide(channels, grid, occupied, valued)
    return Decided(rank, occupancy.numpy(), second.numpy(), truth.numpy(), value.numpy())


def a_third_full(used: Tensor, planes: Tensor) -> int:
    """Return the luma channel in use that is closest to holding a coefficient in a third of the places."""
    luma = used[~IS_CHROMA_RANK[used]]
    share = (planes[luma] != 0).double().mean(-1)
    return int(luma[(share - 1 / 3).abs().argmin()])


def texture_figure(model: DCTransformer, samples: Samples, sequence: Sequence) -> Any:
    """Draw how texture is decided: the use of all channels, and occupancy and values of one of them."""
    grid, first = samples.grid, model.config.texture_rank
    used = channels_in_use(sequence, first)
    picture = TextureState.of(texture_batch([sequence], [used], [torch.ones(len(used))]))
    with torch.inference_mode():
        rates = model.texture.use_rates(picture)[0]
    decided = decide(model, picture, a_third_full(used, picture.planes[0]))
    shape, name = (2 * grid.rows, grid.width), rank_name(decided.rank)
    height = 5.45
    figure = new_figure(height)

    def place(x: float, y: float, width: float, tall: float) -> Any:
        return figure.add_axes((x / 11, y / height, width / 11, tall / height))

    def stage(last: int) -> np.ndarray:
        """Return the picture with the channels before the rank ``last``: uint8 ``[H, W, 3]``."""
        mcus = torch.where(last > RANK_OF_SLOT, samples.mcus, 0)
        return Codec(samples.quality).decode(dataclasses.replace(samples, mcus=mcus).dct())[0].numpy()

    show(place(0.3, 3.2, 1.75, 1.75), stage(first), "structure alone")
    use_chart(place(2.65, 3.4, 8.15, 1.5), 1 - np.exp(-rates.numpy()), set(used.tolist()), first, decided.rank)

    side, below = 1.75, 0.68
    xs = (0.3, 2.5, 4.75, 7.05, 9.1)
    axes = [place(x, below, side, side) for x in xs]
    occupancy, held = decided.occupancy.reshape(shape), (decided.level != 0).reshape(shape)
    second = decided.second.reshape(shape)
    for axis, now, title in (
        (axes[0], ~second, "2  Which places are occupied?\nFirst pass: half of a checkerboard"),
        (axes[1], second, "Second pass: the other half,\nwhich sees the first"),
    ):
        probability_map(axis, np.where(now, occupancy, np.nan), title)
        known = held if now is second else held & now
        rows, columns = np.nonzero(known)
        colours = ["black" if now[r, c] else "#8a8a8a" for r, c in zip(rows, columns, strict=True)]
        axis.scatter(columns, rows, s=32, color=colours, edgecolors="white", linewidths=0.9)
    label = "probability that a place is occupied; dot: it is (drawn)"
    probability_scale(figure, (0.55 / 11, 0.42 / height, 3.45 / 11, 0.09 / height), label)
    levels = decided.level.reshape(shape).astype(float)
    title = "3  Which values? Two passes again,\nwhich both see all dots"
    coefficients(axes[2], np.where(held, levels, np.nan), title)
    for axis in axes[:3]:
        axis.set_xticks(np.arange(0.5, shape[1] - 1), minor=True)
        axis.set_yticks(np.arange(0.5, shape[0] - 1), minor=True)
        axis.grid(which="minor", color="white" if axis is not axes[2] else "#dddddd", linewidth=0.6)
        axis.tick_params(which="minor", length=0)
    entropy = -(decided.value * np.log(decided.value.clip(1e-12))).sum(-1)
    chosen = int(entropy.argmax())
    frame_cell(axes[2], chosen, grid.width)
    value_chart(axes[3], model, decided, chosen)
    show(axes[4], stage(order.NUM_CHANNELS), f"all {len(used)} channels drawn:\nthe finished picture")
    arrow(figure, axes[0], axes[1])
    arrow(figure, axes[1], axes[2])
    text = f"A sample: structure by triples, then texture by channels. 2 and 3 show one of the channels, {name}."
    figure.text(0.5, 0.962, text, ha="center", fontsize=9, color=TEXT)
    return figure


def use_chart(axis: Any, probability: np.ndarray, used: set[int], first: int, shown: int) -> None:
    """Draw the probability of every texture channel to be in use, and which of them are."""
    last = int(np.flatnonzero(probability > NEGLIGIBLE)[-1]) + 1
    ranks = np.arange(first, last)
    axis.bar(ranks, probability[first:last], color=[DRAWN if rank in used else "#8a8a8a" for rank in ranks], width=0.85)
    axis.set(xlim=(first - 0.8, last + 9), ylim=(0, 1.02), ylabel="probability")
    light(axis)
    band, component = BAND_OF_RANK.numpy(), order.GENERATION_ORDER // 64 * 64
    for which in range(int(band[first]), len(order.BANDS)):
        for part in order.COMPONENT_ORDER:
            group = np.flatnonzero((band[:-1] == which) & (component == part))
            group = group[group < last]
            if len(group):
                axis.axvline(group[0] - 0.5, color="#bbbbbb", linewidth=0.8, ymin=-0.2, clip_on=False)
                name = f"{COMPONENT_NAMES[part]} {order.BAND_TITLES[which]}"
                axis.text(group.mean(), -0.16, name, ha="center", va="top", fontsize=8, color=TEXT)
    axis.set_xticks(ranks, [str(order.GENERATION_ORDER[rank] % 64) for rank in ranks])
    axis.tick_params(axis="x", length=0, pad=1, labelsize=5)
    axis.set_title("1  Which channels are in use? One after the other, each given all before it", fontsize=9)
    axis.bar(shown, probability[shown], color="none", edgecolor=FRAME, linewidth=1.8, width=0.85)
    axis.text(shown, 1.05, rank_name(shown), ha="center", fontsize=8, color=FRAME)
    text = (
        f"orange: in use,\n{len(used)} of {order.NUM_CHANNELS - first}\ngrey: not in use\n\n"
        f"all others:\nbelow {100 * NEGLIGIBLE:g} %"
    )
    axis.text(1.0, 0.95, text, transform=axis.transAxes, ha="right", va="top", fontsize=8, color=TEXT)


def value_chart(axis: Any, model: DCTransformer, decided: Decided, place: int) -> None:
    """Draw the distribution of the value at an occupied place."""
    level = int(decided.level[place])
    reach = max(5, abs(level) + 1)
    levels = np.array([x for x in range(-reach, reach + 1) if x])
    p = decided.value[place][model.alphabet.encode(torch.from_numpy(levels)).numpy()]
    axis.bar(levels, p, color=[DRAWN if x == level else FIELD_COLOURS["value"] for x in levels], width=0.8)
    axis.set_xticks(levels[levels % 2 == 1])
    light(axis)
    axis.set(xlabel="value")
    axis.set_title("Chances of the value\nin the frame; orange: drawn", fontsize=9)
