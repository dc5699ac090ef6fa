"""Pictures for tests: synthetic, or real photographs if the machine has any."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A synthetic picture with soft light, coloured edges, texture and sensor noise.

    Returns:
        uint8 ``[height, width, 3]``; deterministic.
    """
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width] / max(height, width, 16)
    picture = np.empty((height, width, 3))
    light = rng.uniform(-1, 1, 2)
    for c in range(3):
        tint = rng.uniform(-0.5, 0.5, 2)
        picture[..., c] = rng.uniform(60, 190) + 70 * ((light + tint) * np.stack([y, x], -1)).sum(-1)
    for _ in range(rng.integers(3, 9)):
        # An ellipse of one colour, with stripes.
        cy, cx, ry, rx = rng.uniform([0, 0, 0.05, 0.05], [1, 1, 0.5, 0.5])
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(5, 150)
        stripes = rng.uniform(0, 25) * np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y))
        colour = rng.uniform(0, 255, 3) + stripes[..., None]
        picture = np.where(inside[..., None], colour, picture)
    picture += rng.normal(0, rng.uniform(0, 6), picture.shape)
    return picture.clip(0, 255).round().astype(np.uint8)


def photo_folder(folder: Path, count: int, labels: tuple[str, ...], suffix: str = ".png") -> Path:
    """Fill a folder with small pictures, alternating between one sub-folder per label, and return it."""
    for i in range(count):
        path = folder / labels[i % len(labels)] / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(40, 50, i)).save(path)
    return folder


def pillow_jpeg(picture: np.ndarray, quality: int, **options) -> bytes:
    """A JPEG file written by Pillow: accurate integer DCT, 4:2:0, or greyscale for ``[H, W]``."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def pillow_pixels(jpeg: bytes) -> np.ndarray:
    """Pixels of a file as decoded by Pillow: uint8 ``[H, W, 3]``."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def real_photographs(number: int) -> list[Path]:
    """Paths of real photographs, always the same; skips the test if there are none.

    They are searched in ``$DCTRANSFORMER_DATA``, or in ``../shared/data`` next to the checkout.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DCTRANSFORMER_DATA", default))
    paths = sorted(folder.rglob("*.jpg")) if folder.is_dir() else []
    if not paths:
        pytest.skip(f"no photographs in {folder}; set DCTRANSFORMER_DATA to a folder of some")
    return random.Random(0).sample(paths, min(number, len(paths)))
