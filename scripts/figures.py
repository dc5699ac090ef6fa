"""Draw the README's figures of the tasks, from the two photographs that come with the package, and of the bands.

Example: python scripts/figures.py --out docs/images
"""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.codec import Codec
from dctransformer.data.images import load_image
from dctransformer.files import atomic_write
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.sheets import captioned_rows
from dctransformer.tasks.edit import Edited, Options, colorize, continue_, inpaint, upscale

SIDE = 144
"""Longer side of the photographs, in pixels."""

BOX = (64, 32, 32, 32)
"""What is inpainted: x, y, width, height in pixels."""


@dataclasses.dataclass
class Args:
    """Settings of the figures."""

    model: str = "photos"
    """Model that performs the tasks."""
    flowers: str = "flowers64"
    """Model of the figure that shows the bands."""
    out: Path = Path("docs/images")
    """Output folder."""
    seed: int = 0
    """Random seed of the samples."""
    rows: int = 3
    """Number of flowers."""


def write(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as a JPEG file."""
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88, optimize=True)


def photographs() -> list[np.ndarray]:
    """Return the package's photographs: uint8 ``[96, 144, 3]`` each."""
    folder = files("dctransformer.app") / "examples" / "photographs"
    return [np.asarray(load_image((folder / name).read_bytes())) for name in ("cat.jpg", "coffee.jpg")]


def rows_of(edits: list[Edited], originals: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Rows of a figure: the input of the task, its results, and the original picture."""
    return [[e.before, *e.pixels(), o] for e, o in zip(edits, originals, strict=True)]


def resized(picture: np.ndarray, factor: float) -> np.ndarray:
    """Shrink or enlarge a picture by Lanczos."""
    height, width = picture.shape[:2]
    return np.asarray(
        Image.fromarray(picture).resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)
    )


def main(args: Args) -> None:
    """Draw all figures."""
    model = DCTransformer.from_pretrained(args.model)
    pictures = photographs()
    plain = SampleConfig(seed=args.seed)
    # What docs/evaluation.md recommends; upscaling decides on texture alone, which min-p leaves alone.
    cut = plain.for_show(by_label=False)
    captions = ["known", "sample 1", "sample 2", "sample 3", "original"]

    def draw(name: str, edits: list[Edited], columns: list[str] = captions) -> None:
        write(captioned_rows(rows_of(edits, pictures), columns, side=SIDE), args.out / f"{name}.jpg")

    small = [resized(p, 0.5) for p in pictures]
    draw("upscale", upscale(model, small, 2, Options(3, None, plain)))
    draw("colorize", colorize(model, pictures, Options(3, None, cut)))
    draw("inpaint", inpaint(model, pictures, box=BOX, options=Options(3, None, cut)))
    draw("continue", continue_(model, pictures, bands=2, options=Options(3, None, cut)))

    # Upscale twice, to show that a large picture has no seams.
    once = Options(1, None, plain)
    doubled = [edit.pixels()[0] for edit in upscale(model, pictures, 2, once)]
    quadrupled = [edit.pixels()[0] for edit in upscale(model, doubled, 2, once)]
    enlarged = [[p, resized(p, 4), q] for p, q in zip(pictures, quadrupled, strict=True)]
    sheet = captioned_rows(enlarged, [f"{SIDE} px wide", "Lanczos, 4 times", "twice upscaled by 2"], side=3 * SIDE)
    write(sheet, args.out / "large.jpg")

    flowers = DCTransformer.from_pretrained(args.flowers)
    labels = [
        int(np.random.default_rng([args.seed, i, 1]).integers(flowers.config.num_labels)) for i in range(args.rows)
    ]
    drawn = sample(flowers, args.rows, plain.for_show(by_label=True), labels=labels)
    codec = Codec(flowers.config.quality)
    stages = [codec.decode(dataclasses.replace(drawn, mcus=stage).dct()).numpy() for stage in drawn.by_band()]
    strip = [[stage[i] for stage in stages] for i in range(args.rows)]
    bands = ["DC", "and 1 to 3", "and 4 to 15", "and 16 to 63"]
    write(captioned_rows(strip, bands, side=2 * flowers.config.size), args.out / "bands.jpg")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
