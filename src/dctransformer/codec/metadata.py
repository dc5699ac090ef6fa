"""Metadata of a JPEG file: its rotation, and the colour profile and EXIF that a changed version keeps."""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

_SEGMENT_BYTES = 65_533
"""Most bytes in a segment, without its marker and length."""

_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"


@dataclasses.dataclass(frozen=True)
class Metadata:
    r"""Metadata that a changed version of a JPEG file keeps.

    Attributes:
        exif: its EXIF block from ``Exif\0\0`` on; empty if there is none.
        profile: its ICC colour profile; empty if there is none.
    """

    exif: bytes = b""
    profile: bytes = b""

    def segments(self) -> bytes:
        """Return the JPEG segments that hold the metadata, to be inserted after a file's start."""
        parts = [struct.pack(">BBH", 0xFF, 0xE1, len(self.exif) + 2) + self.exif] if self.exif else []
        step = _SEGMENT_BYTES - len(_PROFILE) - 2
        pieces = [self.profile[at : at + step] for at in range(0, len(self.profile), step)]
        for number, piece in enumerate(pieces, 1):
            body = _PROFILE + bytes([number, len(pieces)]) + piece
            parts.append(struct.pack(">BBH", 0xFF, 0xE2, len(body) + 2) + body)
        return b"".join(parts)

    def put_into(self, jpeg: bytes) -> bytes:
        """Insert this metadata after the JFIF header of a file that has none, such as `write_jpeg_bytes` makes."""
        length = int.from_bytes(jpeg[4:6], "big") + 2 if jpeg[2:4] == b"\xff\xe0" else 0
        return jpeg[: 2 + length] + self.segments() + jpeg[2 + length :]


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation from 1 to 8; 1 where it is missing, undefined or can't be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged EXIF block
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in range(1, 9) else 1
    # A damaged EXIF block says nothing about the pixels, and Pillow's parser can fail on it in many ways.
    except Exception:
        return 1


def read_metadata(data: bytes) -> Metadata:
    """Read a JPEG file's EXIF and colour profile.

    A thumbnail in the EXIF block is left out, since it shows the picture as it was. What is damaged is left out, too.

    Args:
        data: the file's bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
                return Metadata(_sound_exif(image), _sound_profile(image))
    # Pillow's parsers answer damage with almost any exception.
    except Exception:
        return Metadata()


def _sound_exif(image: Image.Image) -> bytes:
    block = image.info.get("exif", b"")
    try:
        exif = Image.Exif()
        exif.load(block)
        if not exif:
            return b""
        thumbnail = exif.get_ifd(ExifTags.IFD.IFD1)
        if thumbnail:
            block = _without_thumbnail(block, thumbnail)
    except Exception:
        return b""
    return block if block.startswith(_EXIF) and len(block) <= _SEGMENT_BYTES else b""


def _without_thumbnail(block: bytes, directory: dict[int, Any]) -> bytes:
    """Blank the thumbnail of an EXIF block and make its first directory the last; all else stays in its place."""
    data = bytearray(block)
    start = len(_EXIF)
    order = "<" if data[start : start + 2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", data, start + 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start + first)
    struct.pack_into(f"{order}I", data, start + first + 2 + 12 * entries, 0)
    for place, length in ((0x0201, 0x0202), (ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts)):
        offsets, counts = (np.atleast_1d(directory.get(tag, ())).tolist() for tag in (place, length))
        for offset, count in zip(map(int, offsets), map(int, counts), strict=True):
            stop = min(start + offset + count, len(data))
            data[start + offset : stop] = bytes(max(0, stop - start - offset))
    return bytes(data)


def _sound_profile(image: Image.Image) -> bytes:
    profile = image.info.get("icc_profile") or b""
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except Exception:
        return b""
    return profile if len(profile) <= 255 * (_SEGMENT_BYTES - len(_PROFILE) - 2) else b""
