"""One picture: any file that Pillow reads becomes an upright 8-bit RGB square, then the JPEG that is stored."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from dctransformer.codec import order

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded (Pillow's own limit for decompression bombs)."""

DRAFT_GAP = 3
"""A JPEG may be decoded at 1/2, 1/4 or 1/8 size as long as it stays this many times larger than asked for."""

SUBSAMPLING = "4:2:0"


def load_image(
    source: str | Path | bytes, *, enough: int | None = None, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Read a picture as a person sees it: upright, 8 bits a channel, RGB.

    EXIF rotation is applied; 16-bit, integer and float grey are scaled to 8 bits; palettes and grey become RGB;
    transparent places become white; of an animation the first frame is taken.

    Args:
        source: a path, or the bytes of a file.
        enough: the shorter side that will be asked for; a JPEG much larger than that is decoded at reduced size,
            which is several times faster and, ``DRAFT_GAP`` times above the size wanted, invisible after resizing.
        formats: Pillow's names of those that are tried; None for all.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        ValueError: there is no such file, it is not a picture Pillow reads, is damaged, or is too large.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                if enough is not None:
                    scale = DRAFT_GAP * enough / min(width, height)
                    image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
                image.load()
                return as_rgb(image)
    except FileNotFoundError:
        raise ValueError(f"there is no file {name}; check the path") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name)) from None
    # Pillow's plugins answer damaged files with almost any exception (SyntaxError, IndexError, struct.error, …).
    except Exception as error:
        what = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            what = "not a picture in a format that Pillow knows"
        raise ValueError(f"{name} can't be read ({what}); replace or remove it") from error
    raise ValueError(_too_large(name))


def as_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode as a person sees it (see `load_image`): RGB."""
    return _to_rgb(_upright(image))


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels; shrink it first"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if there is one that can be read."""
    try:
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    # A damaged EXIF block says nothing about the pixels, and Pillow's parser can fail on it in many ways.
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if rotated else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey with more than 8 bits (modes I;16, I, F) to mode L, the full range to the full range."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not numbers")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        values /= 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        values *= 255
    elif low < 0 or high > 65535:
        # No agreed range: stretch what there is.
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    elif high > 255:
        values /= 257
    return Image.fromarray(np.rint(values).astype(np.uint8))


def crop_resize(image: Image.Image, size: int) -> Image.Image:
    """Cut the largest centred square out of a picture and resize it (Lanczos, antialiased).

    Args:
        image: RGB.
        size: side of the result in pixels.

    Returns:
        RGB, size × size.

    Raises:
        ValueError: the size is not a positive multiple of 16.
    """
    check_size(size)
    width, height = image.size
    side = min(width, height)
    if (width, height) == (size, size):
        return image
    # The box may lie half a pixel off the grid, where resize samples then: a flipped picture gives a flipped result.
    # At its edges the filter sees the pixels beyond.
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The picture as a baseline JPEG file: 4:2:0, libjpeg's accurate DCT, optimised Huffman tables.

    Args:
        image: RGB; a grey picture gets chroma that is all zero.
        quality: 1 to 100.

    Raises:
        ValueError: the quality is out of range.
    """
    check_quality(quality)
    out = io.BytesIO()
    try:
        image.save(out, "JPEG", quality=quality, subsampling=SUBSAMPLING, optimize=True)
    except OSError:
        # With optimised tables the whole file must fit Pillow's buffer, whose size is a guess; noise may not fit.
        out = io.BytesIO()
        guess, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, 8 * image.width * image.height
        try:
            image.save(out, "JPEG", quality=quality, subsampling=SUBSAMPLING, optimize=True)
        finally:
            ImageFile.MAXBLOCK = guess
    return out.getvalue()


def prepare_image(source: str | Path | bytes, size: int, quality: int) -> bytes:
    """What `prepare` stores of a picture: read, cropped to a centred square, resized, encoded.

    Raises:
        ValueError: the picture can't be read, or size or quality are out of range.
    """
    check_size(size)
    return encode_jpeg(crop_resize(load_image(source, enough=size), size), quality)


def check_size(size: int) -> None:
    """Raise ValueError unless ``size`` is a positive multiple of 16 (the side of an MCU)."""
    if isinstance(size, bool) or not isinstance(size, int) or size < order.MCU or size % order.MCU:
        raise ValueError(f"size {size} is not a positive multiple of {order.MCU}; choose one, say 64")


def check_quality(quality: int) -> None:
    """Raise ValueError unless ``quality`` is a whole number from 1 to 100."""
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"quality {quality} is not a whole number from 1 to 100; choose one in that range, say 75")
