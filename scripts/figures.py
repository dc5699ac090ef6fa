"""Draw the README's pictures of the tasks, from samples of a model alone (no photograph is needed or shown).

Example: python scripts/figures.py --out docs/images
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.codec import Codec
from dctransformer.files import atomic_write
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.sheets import captioned_rows
from dctransformer.tasks.edit import Edited, Options, colorize, continue_, inpaint, upscale


@dataclasses.dataclass
class Args:
    """Figures of every task."""

    model: str = "flowers64"
    """Model."""
    out: Path = Path("docs/images")
    """Folder."""
    seed: int = 1
    """Of the pictures that the tasks start from."""
    rows: int = 4
    """Pictures a figure."""


def write(sheet: Image.Image, path: Path) -> None:
    """Write a PNG file."""
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def rows_of(edits: list[Edited], originals: list[np.ndarray]) -> list[list[np.ndarray]]:
    """What was known, the alternatives, and where the known part came from."""
    return [[e.before, *e.pixels(), o] for e, o in zip(edits, originals, strict=True)]


def main(args: Args) -> None:
    """Draw."""
    model = DCTransformer.from_pretrained(args.model)
    config, quality = model.config, model.config.quality
    calm = SampleConfig(seed=args.seed, top_p=0.9)
    labels = [int(np.random.default_rng([args.seed, i, 1]).integers(config.num_labels)) for i in range(args.rows)]
    made = sample(model, args.rows, calm, labels=labels)
    pictures = [p.numpy() for p in made.pixels()]
    side = pictures[0].shape[0]
    options = Options(3, None, calm)

    small = [np.asarray(Image.fromarray(p).resize((side // 2, side // 2), Image.Resampling.LANCZOS)) for p in pictures]
    captions = ["known", "0", "1", "2", "from"]
    write(captioned_rows(rows_of(upscale(args.model, small, 2, options), pictures), captions), args.out / "upscale.png")
    write(
        captioned_rows(rows_of(colorize(args.model, pictures, options), pictures), captions), args.out / "colorize.png"
    )
    box = (side // 4, side // 4, side // 2, side // 2)
    filled = inpaint(args.model, pictures, box=box, options=options)
    write(captioned_rows(rows_of(filled, pictures), captions), args.out / "inpaint.png")
    begun = continue_(args.model, pictures, bands=2, options=options)
    write(captioned_rows(rows_of(begun, pictures), captions), args.out / "continue.png")

    # A picture four times the model's size, upscaled twice: tile after tile, no seams.
    once = upscale(args.model, pictures[:1], 2, Options(1, None, calm))[0].pixels()[0]
    twice = upscale(args.model, [once], 2, Options(1, None, calm))[0].pixels()[0]
    bicubic = np.asarray(Image.fromarray(pictures[0]).resize((4 * side, 4 * side), Image.Resampling.BICUBIC))
    large = captioned_rows([[pictures[0], bicubic, twice]], [f"{side} px", "bicubic", "two times x2"], side=4 * side)
    write(large, args.out / "tiles.png")

    stages = [Codec(quality).decode(_whole(made, stage)).numpy() for stage in made.by_band()]
    strip = [[stage[i] for stage in stages] for i in range(args.rows)]
    write(captioned_rows(strip, ["band 0", "1-3", "4-15", "16-63"]), args.out / "bands.png")


def _whole(made, stage):
    return dataclasses.replace(made, mcus=stage).dct()


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
