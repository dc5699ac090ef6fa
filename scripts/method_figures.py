"""Draw the figures of docs/method.md from samples of the shipped weights; no photographs are needed or shown.

All numbers shown are computed: blocks, coefficients and triples from samples, distributions by the models. A flower of
64 pixels has its whole structure in one chunk, so a larger picture shows what chunks are.

Example: python scripts/method_figures.py --out docs/images

With --run, learning.jpg of docs/train-your-own.md is drawn, too, from the sheets of the training on that page.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.colors import Normalize
from PIL import Image
from torch import Tensor

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.bits import surprise
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import fill, sample
from dctransformer.sampling.likelihood import triple_bits
from dctransformer.sampling.rows import Request, Samples
from dctransformer.sequence.chunks import Sequence, cut_chunks
from dctransformer.sequence.labels import draw_labels, label_name
from dctransformer.sheets import contact_sheet
from method.codec import block_figure, chunk_figure, triples_figure
from method.model import context_figure, decoders_figure, hazard_figure, most_uncertain, steps_of
from method.style import BITS, COUNT, DPI, TEXT, WIDTH, new_figure, scale, show, write
from method.texture import texture_figure

SHEET_COLUMNS = 4
"""Pictures in a row of the sheets that `train` draws."""

MARGIN = 4
"""Pixels between the pictures of a sheet."""


@dataclasses.dataclass
class Args:
    """Settings of the figures."""

    model: str = "flowers64"
    """Model with labels whose samples most figures show."""
    index: int = 3
    """Number of the sample that is shown in detail, one of the sixteen of the heat-map."""
    place: int = 26
    """Position whose local context is shown; away from the border."""
    larger: str = "cats128"
    """Model of larger pictures, for the figures of chunks and decoders."""
    larger_index: int = 7
    """Number of its sample."""
    chunk: int = 2
    """Number of the chunk that is shown."""
    seed: int = 1
    """Random seed of the samples."""
    out: Path = Path("docs/images")
    """Output folder."""
    run: Path | None = None
    """Run folder of a training with sample sheets; draws learning.jpg, too."""
    steps: tuple[int, ...] = (221, 867, 2286)
    """Steps of the run whose sheets are shown."""
    times: tuple[str, ...] = ("5 minutes", "20 minutes", "an hour")
    """How long the training had taken by those steps."""


def one_sample(model: DCTransformer, index: int, config: SampleConfig) -> tuple[Samples, Sequence]:
    """Generate picture ``index`` of a seed as `dctransformer sample` does, and list its coefficients."""
    grid = Grid.of_size(model.config.size, model.config.size)
    label = draw_labels(model.config, index + 1, config.seed)[index]
    samples = fill(model, [Request(index, label)], grid, config)
    return samples, Sequence.from_triples(samples.triples[0], grid, label)


def outcome_figure(samples: Samples, bits: Tensor, size: float) -> Any:
    """Draw the finished picture, the number of triples per place, and the bits per place.

    Args:
        samples: one picture.
        bits: by luma block, ``[1, h, w]``.
        size: exact code length of the picture in bytes.
    """
    figure = new_figure(2.75)
    box = 0.2, 0.2 * WIDTH / 2.75
    axes = [figure.add_axes((x, 0.06, *box)) for x in (0.06, 0.36, 0.7)]
    show(axes[0], samples.pixels()[0].numpy(), f"a sample: {len(samples.triples[0])} coefficients")
    counts = samples.places()[0].numpy()
    for axis, values, colours, title, label in (
        (axes[1], counts, COUNT, "how often each place was chosen", "coefficients"),
        (axes[2], bits[0].numpy(), BITS, f"what each place costs: {size:.0f} bytes in all", "bits"),
    ):
        norm = Normalize(0, values.max())
        show(axis, values, title, cmap=colours, norm=norm)
        right = axis.get_position().x1
        scale(figure, (right + 0.012, 0.06, 0.012, box[1]), colours, norm, label)
    return figure


def sheet_figure(sheet: np.ndarray, left: float, above: float, below: float) -> tuple[Any, tuple[float, float]]:
    """Return a figure that shows a sheet pixel by pixel, with margins in inches; and its size in inches."""
    height, width = sheet.shape[:2]
    size = left + width / DPI, above + height / DPI + below
    figure = new_figure(size[1])
    figure.set_figwidth(size[0])
    figure.figimage(sheet, round(left * DPI), round(below * DPI))
    return figure, size


def heat_map_figure(samples: Samples) -> Any:
    """Draw samples, each next to the number of coefficients per place, all on one scale."""
    pictures, counts = samples.pixels().numpy(), samples.places().numpy()
    norm = Normalize(0, counts.max())
    maps = (COUNT(norm(counts))[..., :3] * 255).round().astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    sheet = contact_sheet(np.concatenate([pictures, maps], axis=2), columns=4, scale=max(1, 128 // pictures.shape[1]))
    figure, (_, height) = sheet_figure(np.asarray(sheet), 0, 0, 0.5)
    scale(figure, (0.3, 0.33 / height, 0.4, 0.1 / height), COUNT, norm, "coefficients at a place, in all channels")
    return figure


def learning_figure(model: DCTransformer, run: Path, steps: tuple[int, ...], times: tuple[str, ...]) -> Any:
    """Draw samples of a training at some steps, and of a model with the same classes and the same noise."""
    count = 2 * SHEET_COLUMNS
    labels = [7 * i % model.config.num_labels for i in range(16)]  # as `train` draws its sheets
    side, scaled = model.config.size, max(1, 128 // model.config.size)
    cell = side * scaled + MARGIN
    rows = []
    for step in steps:
        sheet = np.asarray(Image.open(run / "samples" / f"step-{step:07d}.png").convert("RGB"))
        for i in range(count):
            y, x = MARGIN + i // SHEET_COLUMNS * cell, MARGIN + i % SHEET_COLUMNS * cell
            rows.append(sheet[y : y + side * scaled : scaled, x : x + side * scaled : scaled])
    shipped = sample(model, count, SampleConfig(seed=0), labels=labels[:count])
    pictures = np.concatenate([np.stack(rows), shipped.pixels().numpy()])
    sheet = np.asarray(contact_sheet(pictures, columns=count, scale=scaled))
    figure, (width, height) = sheet_figure(sheet, 0.95, 0.2, 0)
    names = [*(f"after\n{time}" for time in times), "flowers64,\nas shipped"]
    for i, name in enumerate(names):
        y = height - 0.2 - (MARGIN + (i + 0.5) * cell) / DPI
        figure.text(0.9 / width, y / height, name, ha="right", va="center", fontsize=8.5, color=TEXT)
    for i in range(count):
        x = 0.95 + (MARGIN / 2 + (i + 0.5) * cell) / DPI
        name = label_name(model.config, labels[i])
        figure.text(x / width, 1 - 0.1 / height, name, ha="center", va="center", fontsize=7.5, color=TEXT)
    return figure


def main(args: Args) -> None:
    """Draw all figures."""
    model = DCTransformer.from_pretrained(args.model)
    config = SampleConfig(seed=args.seed).for_show(by_label=True)
    samples, sequence = one_sample(model, args.index, config)
    structure = sequence.structure(model.config.texture_rank)
    size = float(triple_bits(model, sequence).sum()) / 8
    write(block_figure(samples), args.out / "method-block.png", palette=True)
    write(triples_figure(samples), args.out / "method-triples.png", palette=True)
    channel = int(order.RANK[order.LUMA + 3])
    write(context_figure(samples, structure, model, channel, args.place), args.out / "method-context.png")
    write(texture_figure(model, samples, sequence), args.out / "method-texture.png")
    write(outcome_figure(samples, surprise(model, [sequence]), size), args.out / "method-outcome.png")
    sheet = sample(model, 16, config, labels=draw_labels(model.config, 16, args.seed))
    write(heat_map_figure(sheet), args.out / "heat-map.jpg")

    larger = DCTransformer.from_pretrained(args.larger)
    settings = SampleConfig(seed=args.seed).for_show(by_label=False, by_guide=larger.guide is not None)
    samples, sequence = one_sample(larger, args.larger_index, settings)
    structure = sequence.structure(larger.config.texture_rank)
    if not 0 <= args.chunk < structure.chunks(larger.config.stride):
        raise SystemExit(
            f"the sample of {args.larger} has no chunk {args.chunk}; choose another --chunk or --larger-index"
        )
    batch = cut_chunks([structure], [args.chunk], larger.config.chunk, larger.config.overlap)
    step = most_uncertain(steps_of(larger, batch), samples.grid)
    write(chunk_figure(samples, batch, args.chunk, larger.config.stride), args.out / "method-chunk.png", palette=True)
    write(decoders_figure(larger, samples, batch, step), args.out / "method-decoders.png")
    write(hazard_figure(samples, step), args.out / "method-hazards.png")
    if args.run is not None:
        write(learning_figure(model, args.run, args.steps, args.times), args.out / "learning.jpg")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args, description=__doc__))
