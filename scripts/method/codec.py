"""Figures of the representation: a block, the list of triples, and a chunk of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from dctransformer.codec import Codec, order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.plots import STAGES
from dctransformer.sampling.rows import Samples
from dctransformer.sequence.chunks import ChunkBatch
from method.style import (
    COMPONENT_COLOURS,
    COMPONENT_NAMES,
    CORNER,
    DRAWN,
    SETTLED,
    TEXT,
    arrow,
    bare,
    channel_name,
    coefficients,
    legend_box,
    light,
    new_figure,
    numbers,
    show,
)

ZOOM = 8
"""Blocks along the side of the part of a picture that is shown coefficient by coefficient."""


def band_colours() -> np.ndarray:
    """Return the colours of the four bands: fp ``[4, 4]``."""
    return matplotlib.colormaps["YlGnBu"](np.linspace(0.15, 0.65, len(order.BANDS)))


def busiest(levels: torch.Tensor) -> tuple[int, int]:
    """Return row and column of the luma block with the most coefficients, away from the border."""
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
    dct_of_pixels = basis @ (pixels - 128) @ basis.T
    natural = levels[order.UNZIGZAG].reshape(8, 8).astype(float)

    figure = new_figure(2.8)
    axes = [figure.add_axes((x, 0.15, 0.17, 0.72)) for x in (0.01, 0.2125, 0.415, 0.6175, 0.82)]
    show(axes[0], picture, f"a picture, {picture.shape[1]} × {picture.shape[0]}")
    axes[0].add_patch(Rectangle((8 * column - 0.5, 8 * row - 0.5), 8, 8, fill=False, edgecolor="white", linewidth=1.8))
    shades = np.repeat(pixels[..., None] / 255, 3, axis=2)
    numbers(axes[1], pixels, shades, "a block of brightness, 8 × 8", pixels < 120)
    coefficients(axes[2], dct_of_pixels, "its DCT coefficients", largest=500)
    coefficients(axes[3], natural, "÷ quantisation steps, rounded", zero="·")
    zigzag(axes[4], levels)
    for left, right in itertools.pairwise(axes):
        arrow(figure, left, right)
    text = (
        f"{np.count_nonzero(levels)} of 64 numbers are left; the high frequencies, to the right and below, are mostly 0"
    )
    figure.text(0.415, 0.045, text, ha="center", fontsize=8.5, color=TEXT)
    for i, (colour, name) in enumerate(zip(band_colours(), order.BAND_TITLES, strict=True)):
        legend_box(figure, 0.8 + (0, 0.045, 0.09, 0.145)[i], 0.045, colour, name)
    return figure


def zigzag(axis: Any, levels: np.ndarray) -> None:
    """Show the zigzag order of frequencies in a block, the four bands, and which of its levels are not 0."""
    cells = np.zeros((8, 8, 4))
    for shade, (start, end) in zip(band_colours(), order.BANDS, strict=True):
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
    """Draw the list of triples: the picture after each band, and positions along the list."""
    triples = samples.triples[0].numpy()
    grid, codec = samples.grid, Codec(samples.quality)
    height, width = grid.rows * order.MCU, grid.cols * order.MCU
    ranks = order.RANK[triples[:, 0]]
    figure = new_figure(4.9)
    ends = []
    titles = ("DC of brightness", "DC of colour", "frequencies 1–3", "4–15", "16–63")
    for i, ((_, band, components), title) in enumerate(zip(STAGES, titles, strict=True)):
        last = max(int(order.RANK[c + order.BANDS[band][1] - 1]) for c in components)
        count = int((ranks <= last).sum())
        ends.append(count)
        axis = figure.add_axes((0.045 + 0.195 * i, 0.565, 0.165, 0.165 * 11 / 4.9))
        part = codec.decode(codec.from_triples(torch.from_numpy(triples[:count]), height, width))[0].numpy()
        show(axis, part, f"{title}: {count} triples" if i == 0 else f"+ {title}: {count}")
    axis = figure.add_axes((0.045, 0.11, 0.66, 0.32))
    component = triples[:, 0] // 64 * 64
    for which, colour in COMPONENT_COLOURS.items():
        chosen = component == which
        axis.scatter(
            np.flatnonzero(chosen), triples[chosen, 1], s=4, color=colour, linewidths=0, label=COMPONENT_NAMES[which]
        )
    for end in ends[1:-1]:
        axis.axvline(end, color="#bbbbbb", linewidth=0.8)
    axis.set(
        xlim=(-2, len(triples) + 2), ylim=(grid.positions, -1), xlabel="number in the list", ylabel="position (block)"
    )
    light(axis)
    axis.legend(
        frameon=False, fontsize=7.5, ncols=3, loc="upper left", bbox_to_anchor=(0.0, -0.1), handletextpad=0.1,
        columnspacing=1.0, markerscale=2,
    )  # fmt: skip
    for name, (start, end) in zip(order.BAND_TITLES, itertools.pairwise([0, *ends[1:]]), strict=True):
        axis.text((start + end) / 2, -2.5, name, ha="center", va="bottom", fontsize=7.5, color=TEXT)
    first = int((ranks < samples.texture).sum())
    for name, start, end in (("structure", 0, first), ("texture", first, len(triples))):
        axis.plot([start, end - 4], [-9.5, -9.5], color=TEXT, linewidth=0.8, clip_on=False)
        axis.text((start + end) / 2, -10, name, ha="center", va="bottom", fontsize=8, color=TEXT)
    listing = figure.add_axes((0.755, 0.04, 0.235, 0.45))
    bare(listing)
    listing.text(0.0, 0.97, "    #  channel  position  value", family="monospace", fontsize=7.5, weight="bold")
    shown = [*range(4), None, *range(ends[1], ends[1] + 3), None, *range(len(triples) - 2, len(triples))]
    for line, i in enumerate(shown):
        text = "    …"
        if i is not None:
            channel, position, value = (int(x) for x in triples[i])
            text = f"{i:5d}  {channel_name(channel):>7s}  {position:8d}  {value:5d}".replace("-", "−")
        listing.text(0.0, 0.88 - 0.079 * line, text, family="monospace", fontsize=7.5)
    listing.text(0.0, 0.88 - 0.079 * len(shown), f"{len(triples):5d}     stop", family="monospace", fontsize=7.5)
    return figure


# Chunks ---------------------------------------------------------------------------------------------------------------


def chunk_figure(samples: Samples, batch: ChunkBatch, index: int, stride: int) -> Any:
    """Draw the encoder's input before a chunk, the coefficients of the chunk, and the finished picture."""
    grid, codec = samples.grid, Codec(samples.quality)
    partial = codec.decode(dataclasses.replace(samples, mcus=batch.coefficients).dct())[0].numpy()
    settled = planes(batch.settled[0], grid)
    target = torch.zeros_like(batch.settled)
    n = int(batch.lengths[0])
    ranks, positions = batch.ranks[0, 1 : n + 1], batch.positions[0, 1 : n + 1]
    listed = ranks < order.NUM_CHANNELS
    target.view(-1)[grid.slot(ranks[listed], positions[listed])] = True
    nonzero = planes((batch.coefficients[0] != 0), grid)
    predicted = planes(target[0], grid)

    # Unknown: white; settled and 0: pale; settled and not 0: dark; predicted by this chunk: orange.
    tints = np.array([[255, 255, 255], [201, 216, 231], [49, 86, 128], [241, 163, 64]], dtype=np.uint8)
    kind = np.where(predicted, 3, np.where(nonzero, 2, np.where(settled, 1, 0)))
    blocks = min(ZOOM, grid.width, 2 * grid.rows)
    side, top, left = 8 * blocks, (2 * grid.rows - blocks) // 2 * 8, (grid.width - blocks) // 2 * 8
    kind = corners(kind[top : top + side, left : left + side])

    figure = new_figure(4.75)
    axes = [figure.add_axes((x, 0.275, 0.27, 0.27 * 11 / 4.75)) for x in (0.03, 0.365, 0.70)]
    show(axes[0], partial, f"the partial picture after {index * stride} triples")
    title = (
        f"{blocks} × {blocks} blocks of brightness in the frame:\nthe first {CORNER} × {CORNER} coefficients of each"
    )
    show(axes[1], tints[kind], title)
    for at in range(0, CORNER * blocks + 1, CORNER):
        axes[1].axhline(at - 0.5, color="#999999", linewidth=0.8, clip_on=False)
        axes[1].axvline(at - 0.5, color="#999999", linewidth=0.8, clip_on=False)
    show(axes[2], samples.pixels()[0].numpy(), "the finished picture")
    for axis in (axes[0], axes[2]):
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor="white", linewidth=1.4))
    for tint, text, x in zip(
        tints[[2, 1, 3, 0]],
        ("known, not 0", "known to be 0", f"listed by chunk {index}", "not known yet"), (0.28, 0.4, 0.53, 0.67),
        strict=True,
    ):  # fmt: skip
        legend_box(figure, x, 0.215, tint / 255, text)
    bar = figure.add_axes((0.03, 0.055, 0.94, 0.085))
    structure = int((order.RANK[samples.triples[0][:, 0].numpy()] < samples.texture).sum())
    channels = int(samples.decisions()[0]) - structure
    total = structure + 1
    end = total * 1.18 if channels else total
    for k in range(math.ceil(total / stride)):
        start, stop = k * stride, min((k + 1) * stride, total)
        colour = SETTLED if k < index else DRAWN if k == index else "#e6e6e6"
        bar.add_patch(Rectangle((start, 0), stop - start - total / 400, 1, facecolor=colour, linewidth=0))
        text = f"chunk {k}: {stop - start} triples" if stop < total else f"chunk {k}: {stop - start - 1} and the stop"
        colour = "white" if k < index else "black"
        bar.text((start + stop) / 2, 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    if channels:
        bar.add_patch(Rectangle((total, 0), end - total, 1, facecolor="#e8f1e4", linewidth=0))
        bar.text((total + end) / 2, 0.5, f"texture: {channels} channels", ha="center", va="center", fontsize=8)
    bar.set(xlim=(0, end), ylim=(0, 1))
    bare(bar)
    figure.text(0.03, 0.15, "in the encoder's partial DCT image", fontsize=8, color=SETTLED)
    figure.text(0.03 + 0.94 * index * stride / end, 0.15, "predicted now", fontsize=8, color="#a86206")
    return figure


def corners(frequencies: np.ndarray) -> np.ndarray:
    """Keep the low frequencies of 8×8 blocks: ``[8·h, 8·w]`` to ``[CORNER·h, CORNER·w]``."""
    height, width = (size // 8 * CORNER for size in frequencies.shape)
    blocks = frequencies.reshape(height // CORNER, 8, width // CORNER, 8)
    return blocks[:, :CORNER, :, :CORNER].reshape(height, width)


def planes(slots: torch.Tensor, grid: Grid) -> np.ndarray:
    """Arrange the luma slots of ``[N, 6, 64]`` as in the picture, 8×8 frequencies per block: ``[8·h, 8·w]``."""
    blocks = slots.flatten(0, 1)[grid.luma_block][:, torch.from_numpy(order.UNZIGZAG)]
    arranged = blocks.view(2 * grid.rows, grid.width, 8, 8).permute(0, 2, 1, 3)
    return arranged.reshape(16 * grid.rows, 8 * grid.width).numpy()
