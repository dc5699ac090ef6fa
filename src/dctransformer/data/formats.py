"""Kinds of picture files: optional readers, files that are no pictures and why, PNG files with long texts."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import struct
import zlib
from pathlib import Path

from PIL import UnidentifiedImageError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of the text that stands for a file in a clone made without git-lfs."""

NEEDS_LFS = "it is a Git LFS pointer, not the file itself: run git lfs pull"

_READERS = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
"""Optional plugins for Pillow: module and name of the package."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_PROFILE_BYTES = 2**20
"""Longest colour profile that Pillow unpacks from a PNG file."""


@functools.cache
def register_optional_readers() -> frozenset[str]:
    """Let Pillow read HEIC and JPEG XL where the packages for it are installed; returns these modules' names."""
    found = set()
    for module in _READERS:
        if importlib.util.find_spec(module) is None:
            continue
        try:
            plugin = importlib.import_module(module)
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
            found.add(module)
        except (ImportError, OSError):  # a wheel for another system
            continue
    return frozenset(found)


def reason(source: str | Path | bytes, error: Exception) -> str:
    """Return the reason why Pillow could not read a file, in one line.

    Args:
        source: the path, or the bytes.
        error: what reading it raised. Its message is used, unless Pillow does not know the format or an optional reader
            failed, whose errors are for its developers.
    """
    try:
        by_plugin = _plugin(_start(source)) is not None
    except OSError:
        by_plugin = False
    if by_plugin or isinstance(error, UnidentifiedImageError):
        return unknown_format(source)
    return " ".join(str(error).split()) or type(error).__name__


def unknown_format(source: str | Path | bytes) -> str:
    """Return the reason why Pillow does not know a file's format, with a cure where there is one."""
    try:
        start = _start(source)
    except OSError as error:
        return error.strerror or "it can't be opened"
    if not start:
        return "the file is empty"
    if start.startswith(LFS_POINTER):
        return NEEDS_LFS
    plugin = _plugin(start)
    if plugin:
        module, what = plugin
        if module in register_optional_readers():
            return f"{what} that is damaged"
        return f"{what}; to read it: pip install {_READERS[module]}"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        return "an AVIF picture, which this Pillow does not read: pip install --upgrade pillow"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture"
    if text.startswith((b"<svg", b"<?xml")):
        return "a drawing; export it as PNG"
    return "not a picture in a format that Pillow knows"


def _start(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:64]
    with open(source, "rb") as file:
        return file.read(64)


def _plugin(start: bytes) -> tuple[str, str] | None:
    """Return the optional module for files that begin like this, and their kind; None if Pillow itself reads them."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "pillow_heif", "an HEIC picture"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "pillow_jxl", "a JPEG XL picture"
    return None


def png_without_text(data: bytes) -> bytes:
    """Return a PNG file less its texts and a profile longer than Pillow unpacks; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept = [data[:8]]
    place = 8
    while place + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        chunk = data[place : place + 12 + length]
        if name not in (b"tEXt", b"zTXt", b"iTXt") and not (name == b"iCCP" and _is_long_profile(chunk[8:-4])):
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


def _is_long_profile(body: bytes) -> bool:
    name_end = body.find(b"\0")
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(body[name_end + 2 :], _PROFILE_BYTES)
        return bool(unpacker.unconsumed_tail)
    except zlib.error:
        return True
