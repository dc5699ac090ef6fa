"""Uploaded pictures: checked, read, shrunk where needed, and kept in memory only."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dctransformer.app.limits import Limits
from dctransformer.codec import read_jpeg_bytes
from dctransformer.codec.adapt import read_own_coefficients
from dctransformer.codec.metadata import read_metadata
from dctransformer.data.images import crop_resize, encode_jpeg, load_image
from dctransformer.data.rgb import is_srgb
from dctransformer.data.shapes import Shape
from dctransformer.tasks.info import describe_coefficients

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of what is read. Not among them: what Pillow reads by starting other programs (EPS).
Phones' MPO files are JPEG files with more than one picture."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """A picture to work on.

    Attributes:
        source: of a 4:2:0 JPEG that is small enough the file's bytes, so that its own coefficients are used; else
            pixels, uint8 RGB ``[H, W, 3]``.
        pixels: as seen, uint8 RGB ``[H, W, 3]``.
        notes: what happened to it on the way, sentences for its owner.
    """

    source: bytes | np.ndarray
    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def read_upload(data: bytes, limits: Limits, side: int | None = None) -> Upload:
    """Read a file that somebody uploaded.

    Args:
        data: its bytes.
        limits: on bytes and pixels.
        side: the longest side to work on in pixels; ``limits.max_side`` if not given.

    Raises:
        ValueError: it is too large, damaged, or not a picture.
    """
    side = side or limits.max_side
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no concern of the user's; sizes are checked below
        _, size, animated = _check(data, limits)
        picture = load_image(data, enough=side, formats=FORMATS)
    notes = ["It is an animation: its first frame is used."] if animated else []
    fitted = picture.copy()
    if max(size) > side:
        fitted.thumbnail((side, side), Image.Resampling.LANCZOS)
        notes.append(
            f"{size[0]} × {size[1]} pixels are more than is worked on here: it was shrunk to "
            f"{fitted.width} × {fitted.height}."
        )
        return Upload(np.asarray(fitted), np.asarray(fitted), tuple(notes))
    pixels = np.asarray(picture)
    # The page shows results without a profile, so only coefficients that need none can be used as they are.
    if read_own_coefficients(data) is not None and is_srgb(read_metadata(data).profile):
        notes.append("A 4:2:0 JPEG file: its own coefficients are used.")
        return Upload(data, pixels, tuple(notes))
    return Upload(pixels, pixels, tuple(notes))


def _check(data: bytes, limits: Limits) -> tuple[str | None, tuple[int, int], bool]:
    """Look at the header before anything is decoded: the format, width and height as stored, whether it is animated."""
    if not data:
        raise ValueError("the file is empty; choose a picture")
    if len(data) > limits.max_megabytes * 1e6:
        raise ValueError(
            f"the file has {len(data) / 1e6:.1f} MB, and {limits.max_megabytes:g} MB is the limit here; "
            "shrink the picture first"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind, (width, height) = image.format, image.size
            fits = width * height <= limits.max_megapixels * 1e6
            animated = fits and image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Image.DecompressionBombError:
        raise ValueError(_too_many("far too many", limits)) from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            "this is not a picture that can be read here; choose a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    # Pillow's plugins answer damaged files with almost any exception (SyntaxError, IndexError, struct.error, …).
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ValueError(f"the picture can't be read ({what}); choose another file") from error
    if not fits:
        raise ValueError(_too_many(f"{width} × {height}", limits))
    return kind, (width, height), animated


def _too_many(size: str, limits: Limits) -> str:
    return f"the picture has {size} pixels, and {limits.max_megapixels:g} million is the limit here; shrink it first"


@dataclasses.dataclass(frozen=True)
class Inspected:
    """An inspected picture.

    Attributes:
        jpeg: what the model is shown: a JPEG file of its own shape and quality.
        own: it is the file itself, not a version of it.
        facts: of the file as it was uploaded: ``format``, ``width``, ``height``, and of a JPEG file see
            `dctransformer.tasks.info.describe_coefficients`.
        notes: sentences for its owner.
    """

    jpeg: bytes
    own: bool
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_for_inspection(data: bytes, limits: Limits, shape: tuple[int, int], quality: int) -> Inspected:
    """Read a file whose coefficients are to be shown.

    Args:
        data: its bytes.
        limits: on bytes and pixels.
        shape: height and width of the model's pictures in pixels, for which a version is made.
        quality: JPEG quality of the model's pictures.

    Raises:
        ValueError: it is too large, damaged, or not a picture.
    """
    size = Shape(width=shape[1], height=shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind, (width, height), animated = _check(data, limits)
        picture = load_image(data, enough=size, formats=FORMATS)
    facts: dict[str, Any] = {"format": kind, "width": width, "height": height, "bytes": len(data)}
    notes = ["It is an animation: its first frame is used."] if animated else []
    if data[:2] == b"\xff\xd8":
        try:
            facts |= describe_coefficients(read_jpeg_bytes(data, name="the file"))
        except ValueError as error:  # CMYK, lossless, …: Pillow reads more kinds than have such coefficients
            notes.append(f"Its coefficients can't be shown: {error}.")
    own = read_own_coefficients(data) is not None and (height, width) == shape
    seen = data if own else encode_jpeg(crop_resize(picture, size), quality)
    return Inspected(seen, own, facts, tuple(notes))


EXAMPLES = Path(__file__).parent / "examples"
"""JPEG files: samples of the shipped weights, and photographs."""

MOST_EXAMPLES = 5
"""As many buttons fit into a row of the page."""


def examples() -> dict[str, bytes]:
    """Return the pictures that come with the page, photographs first: names, and the bytes of JPEG files."""
    paths = sorted(EXAMPLES.glob("photographs/*.jpg")) + sorted(EXAMPLES.glob("*.jpg"))
    return {path.stem.replace("-", " ").capitalize(): path.read_bytes() for path in paths}


def fitting_examples(*, classes: bool) -> dict[str, int]:
    """Return the examples that the page of a model offers: numbers in the order of `examples`, by name.

    Args:
        classes: whether the model has classes. One that has knows their pictures best and gets samples alone, as many
            as fit; others get the photographs, too.
    """
    photographs = len(list(EXAMPLES.glob("photographs/*.jpg")))
    numbers = {name: number for number, name in enumerate(examples())}
    return dict(list(numbers.items())[photographs if classes else 0 :][:MOST_EXAMPLES])


def halve(data: bytes) -> bytes:
    """Return a picture at half its size, as the bytes of a PNG file."""
    picture = load_image(data, formats=FORMATS)
    out = io.BytesIO()
    picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS).save(out, "PNG")
    return out.getvalue()
