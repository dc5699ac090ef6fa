"""Draw the README's figures of the tasks from samples of models; no photographs are needed or shown.

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
    """Settings of the figures."""

    model: str = "photos"
    """Model that performs the tasks."""
    pictures: str = "cats128"
    """Model whose samples are the input of the tasks."""
    flowers: str = "flowers64"
    """Model of the figure that shows the bands."""
    out: Path = Path("docs/images")
    """Output folder."""
    seed: int = 0
    """Random seed of the samples."""
    rows: int = 3
    """Number of pictures per figure."""


def write(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as a JPEG file."""
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88, optimize=True)


def rows_of(edits: list[Edited], originals: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Rows of a figure: the input of the task, its results, and the original picture."""
    return [[e.before, *e.pixels(), o] for e, o in zip(edits, originals, strict=True)]


def main(args: Args) -> None:
    """Draw all figures."""
    model = DCTransformer.from_pretrained(args.model)
    originals = sample(DCTransformer.from_pretrained(args.pictures), args.rows, SampleConfig(seed=args.seed))
    pictures = [p.numpy() for p in originals.pixels()]
    side = pictures[0].shape[0]
    calm = SampleConfig(seed=args.seed, top_p=0.9)
    options = Options(3, None, calm)
    captions = ["known", "0", "1", "2", "from"]

    def draw(name: str, edits: list[Edited]) -> None:
        write(captioned_rows(rows_of(edits, pictures), captions, side=side), args.out / f"{name}.jpg")

    small = [np.asarray(Image.fromarray(p).resize((side // 2, side // 2), Image.Resampling.LANCZOS)) for p in pictures]
    draw("upscale", upscale(model, small, 2, options))
    draw("colorize", colorize(model, pictures, options))
    draw("inpaint", inpaint(model, pictures, box=(side // 2, side // 4, side // 4, side // 4), options=options))
    draw("continue", continue_(model, pictures, bands=2, options=options))

    # Upscale twice, to show that a large picture has no seams.
    doubled = upscale(model, pictures[:1], 2, Options(1, None, calm))[0].pixels()[0]
    quadrupled = upscale(model, [doubled], 2, Options(1, None, calm))[0].pixels()[0]
    lanczos = np.asarray(Image.fromarray(pictures[0]).resize((4 * side, 4 * side), Image.Resampling.LANCZOS))
    enlarged = [[pictures[0], lanczos, quadrupled]]
    sheet = captioned_rows(enlarged, [f"{side} px", "Lanczos x4", "two times x2"], side=3 * side)
    write(sheet, args.out / "large.jpg")

    flowers = DCTransformer.from_pretrained(args.flowers)
    labels = [
        int(np.random.default_rng([args.seed, i, 1]).integers(flowers.config.num_labels)) for i in range(args.rows)
    ]
    drawn = sample(flowers, args.rows, calm, labels=labels)
    codec = Codec(flowers.config.quality)
    stages = [codec.decode(dataclasses.replace(drawn, mcus=stage).dct()).numpy() for stage in drawn.by_band()]
    strip = [[stage[i] for stage in stages] for i in range(args.rows)]
    write(
        captioned_rows(strip, ["band 0", "1-3", "4-15", "16-63"], side=2 * flowers.config.size), args.out / "bands.jpg"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
