"""One picture: any file that Pillow reads becomes an upright 8-bit sRGB square, then the JPEG that is stored."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

from PIL import Image, ImageFile

from dctransformer.codec import check_scans
from dctransformer.codec.metadata import orientation
from dctransformer.codec.order import check_quality
from dctransformer.codec.segments import MAX_PIXELS
from dctransformer.data.formats import png_without_text, reason, register_optional_readers
from dctransformer.data.rgb import as_rgb, to_rgb, upright
from dctransformer.data.shapes import Shape
from dctransformer.files import check_regular

__all__ = ["as_rgb", "check_quality", "crop_resize", "encode_jpeg", "load_image", "prepare_image"]

DRAFT_GAP = 3
"""A JPEG may be decoded at 1/2, 1/4 or 1/8 size as long as it stays this many times larger than asked for."""

SUBSAMPLING = "4:2:0"


def load_image(
    source: str | Path | bytes, *, enough: int | Shape | None = None, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Read a picture as a person sees it: upright, 8 bits per channel, sRGB (see `as_rgb`).

    Of an animation the first frame is taken. Nothing of the file but its pixels is kept. HEIC and JPEG XL are read
    where pillow-heif and pillow-jxl-plugin are installed.

    Args:
        source: a path, or the bytes of a file.
        enough: the shorter side that will be asked for, or the shape; a JPEG much larger than that is decoded at
            reduced size, which is several times faster and, ``DRAFT_GAP`` times above the size wanted, invisible
            after resizing.
        formats: Pillow's names of the formats that are tried; None for all.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        ValueError: there is no such file, it is not a regular file, not a picture Pillow reads, is damaged, or is
            too large.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        check_regular(source)
    if formats is None:
        register_optional_readers()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd metadata, large pictures: of no concern here
            return _load(source, name, enough, formats)
    except FileNotFoundError:
        raise ValueError(f"there is no file {name}; check the path") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name)) from None
    except _TooLarge as error:
        raise ValueError(str(error)) from None
    # Pillow's plugins answer damaged files with almost any exception (SyntaxError, IndexError, struct.error, …).
    except Exception as error:
        raise ValueError(f"{name} can't be read ({reason(source, error)}); replace or remove it") from error


class _TooLarge(Exception):
    pass


def _load(
    source: str | Path | bytes, name: str, enough: int | Shape | None, formats: tuple[str, ...] | None
) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _TooLarge(_too_large(name))
            if enough is not None:
                if isinstance(enough, Shape):  # the picture may lie on its side
                    needed = max(enough.scale(width, height), enough.scale(height, width))
                else:
                    needed = enough / min(width, height)
                scale = DRAFT_GAP * needed
                image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
            if image.format in ("JPEG", "MPO"):
                check_scans(source if isinstance(source, bytes) else Path(source).read_bytes(), "it")
            image.load()
            turn = orientation(image)
            result = to_rgb(image)
    except ValueError as error:
        # Pillow refuses to unpack long texts (workflows, notes) in PNG files; the pixels are sound.
        if "MAX_TEXT" not in str(error):
            raise
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        shorter = png_without_text(data)
        if len(shorter) == len(data):
            raise
        return _load(shorter, name, enough, formats)
    result.info = {}  # comments, profiles and places of the source go nowhere
    if result is not image:
        image.close()  # frees its pixels
    return upright(result, turn)


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels; shrink it first"


def crop_resize(image: Image.Image, size: int | Shape) -> Image.Image:
    """Cut the largest centred rectangle of a shape out of a picture and resize it (Lanczos, antialiased).

    Args:
        image: RGB.
        size: the shape, or the side of a square in pixels.

    Returns:
        RGB, of that size.

    Raises:
        ValueError: the size is not a positive multiple of 16, or the picture is too narrow for it.
    """
    return Shape.of(size).crop_resize(image)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Return the picture as a baseline JPEG file: 4:2:0, libjpeg's accurate DCT, optimised Huffman tables.

    Args:
        image: RGB; a grey picture gets chroma that is all zero.
        quality: 1 to 100.

    Raises:
        ValueError: the quality is out of range.
    """
    check_quality(quality)
    out = io.BytesIO()
    image = image.copy()
    image.info = {}  # Pillow would copy a comment into the file
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


def prepare_image(source: str | Path | bytes, size: int | Shape, quality: int) -> bytes:
    """Return the JPEG file that `prepare` stores of a picture: read, cropped around its centre, resized, encoded.

    Raises:
        ValueError: the picture can't be read or is too narrow, or size or quality are out of range.
    """
    shape = Shape.of(size)
    return encode_jpeg(crop_resize(load_image(source, enough=shape), shape), quality)
