"""Conversion of pictures of any mode to 8-bit sRGB, strip by strip: memory stays at a few bytes per pixel."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from dctransformer.codec.metadata import orientation

_STRIP = 2**21
"""Pixels that are converted at a time."""

_MAX_PROFILE = 2**22
"""Longest colour profile in bytes; longer ones are ignored."""

_SAME = 2
"""A profile that changes no colour by more than this many of 255 levels counts as sRGB, so pixels stay as they are."""


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a Pillow image as a person sees it: upright, 8 bits per channel, sRGB.

    EXIF rotation is applied; colours are converted by an embedded profile, if it can be read; 16-bit, integer and float
    grey are scaled to 8 bits; palettes and grey become RGB; transparent places become white.

    Returns:
        An image in mode RGB (``image`` itself if there is nothing to do).

    Raises:
        ValueError: a float picture holds NaN or infinity.
    """
    return upright(to_rgb(image), orientation(image))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate or mirror a picture stored with an EXIF orientation (1 to 8)."""
    if orientation == 1:
        return image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    plain = image.copy()
    plain.info = {"exif": exif.tobytes()}
    turned = ImageOps.exif_transpose(plain)
    turned.info = {}
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image as `as_rgb` does, but without rotation."""
    profile = image.info.get("icc_profile")
    profile = profile if isinstance(profile, bytes) and 0 < len(profile) <= _MAX_PROFILE else None
    if image.mode == "RGB" and not image.has_transparency_data and _transform(profile, "RGB") is None:
        return image
    reduce = None
    if image.mode == "F" or image.mode.startswith("I"):
        reduce = _scaling(image)
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        strip.info = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
        if reduce is not None:
            strip = Image.fromarray(np.rint(reduce(np.asarray(strip).astype(np.float64))).astype(np.uint8))
        result.paste(_strip_to_rgb(strip, profile), (0, top))
    return result


def is_srgb(profile: bytes) -> bool:
    """Return whether RGB pixels stay as they are: their profile is missing, can't be read, or is sRGB's."""
    return not 0 < len(profile) <= _MAX_PROFILE or _transform(profile, "RGB") is None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield stretches of whole rows, each with the number of its first row."""
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _strip_to_rgb(strip: Image.Image, profile: bytes | None) -> Image.Image:
    if not strip.has_transparency_data:
        return _to_srgb(strip, profile)
    grey = strip.mode in ("1", "L", "LA", "La")
    strip = strip.convert("LA" if grey else "RGBA")
    picture = _to_srgb(strip.convert("L" if grey else "RGB"), profile)
    picture.putalpha(strip.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), picture).convert("RGB")


def _to_srgb(strip: Image.Image, profile: bytes | None) -> Image.Image:
    if strip.mode not in ("L", "RGB", "CMYK"):
        strip = strip.convert("L" if strip.mode == "1" else "RGB")
    transform = _transform(profile, strip.mode)
    if transform is None:
        return strip.convert("RGB")
    return ImageCms.applyTransform(strip, transform) or strip.convert("RGB")


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion from a profile to sRGB; None if no profile fits the mode, or if it changes nothing."""
    if profile is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        colours = _test_colours(mode)
        converted = ImageCms.applyTransform(colours, transform)
    # A damaged profile carries no information on the pixels, and littleCMS can fail on it in several ways.
    except Exception:
        return None
    if converted is None:
        return None
    difference = np.asarray(converted).astype(int) - np.asarray(colours.convert("RGB"))
    return transform if np.abs(difference).max() > _SAME else None


def _test_colours(mode: str) -> Image.Image:
    """Return all greys, or a lattice of colours."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), -1)
    return Image.frombytes(mode, (len(levels), lattice[..., 0].size // len(levels)), lattice.tobytes())


def _scaling(image: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that maps values with more than 8 bits (modes I;16, I, F) to 0 to 255."""
    if image.mode.startswith("I;16"):
        return lambda values: values / 257
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not numbers")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if image.mode == "F" and low >= 0 and high <= 1:
        return lambda values: values * 255
    if low < 0 or high > 65535:
        # No agreed range: stretch the values that occur.
        span = high - low
        return lambda values: (values - low) * (255 / span) if span else np.zeros_like(values)
    return (lambda values: values / 257) if high > 255 else (lambda values: values)
