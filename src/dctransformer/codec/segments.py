"""The segments of a JPEG file: what its header claims, and the file again with nothing but its picture.

Untrusted files reach libjpeg only as `plain` writes them: known segments in their order, one marker before each,
nothing between them. So no two parsers can disagree about where a segment starts, metadata can't be in the way, and
libjpeg has nothing to warn about except damage to the picture itself.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator, Sequence

MAX_PIXELS = 178_956_970
"""Largest picture that is read unless asked otherwise (Pillow's own limit for untrusted files)."""

MAX_SIDE = 65_500
"""Largest side that libjpeg writes."""

MAX_SCANS = 100
"""Most scans of a file that is read. Encoders write 1 to about 20; each scan costs a pass over the whole picture."""

MAX_SEGMENTS = 10_000
"""Most segments of a file that is read."""

SOI, EOI, SOS, DHT, DQT, DRI, DAC = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xCC
_APP0, _APP14, _COM, _DNL, _TEM = 0xE0, 0xEE, 0xFE, 0xDC, 0x01
_RESTARTS = range(0xD0, 0xD8)
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, DAC}
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_PROGRESSIVE = {0xC2, 0xCA}
_ARITHMETIC = {0xC9, 0xCA}
_TABLES = {DHT, DQT, DRI, DAC}
_METADATA = {*range(_APP0, 0xF0), _COM, _DNL}
_KNOWN = FRAMES | _TABLES | _METADATA | {SOS}

_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"

_ONE_BIT_CODES = b"".join(bytes([table, 1, *(15 * [0]), 0]) for table in (0x00, 0x10))

CUT = "is cut off or damaged; fetch or export it again"
_UNUSUAL = "is lossless, hierarchical or not 8-bit; convert it to an ordinary JPEG file"

_NEXT = re.compile(rb"[^\xff]*\xff+([^\xff])", re.DOTALL)
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


class Unreadable(Exception):
    """What is wrong with a file, as the end of a sentence that starts with its name."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a file.

    Attributes:
        marker: the second byte of its marker.
        start: offset of its contents in the file.
        body: its contents, without marker and length.
        scan: for a scan (``SOS``), its entropy-coded data with their restart markers; otherwise empty.
    """

    marker: int
    start: int
    body: bytes
    scan: memoryview


@dataclasses.dataclass(frozen=True)
class Component:
    """One colour component of a frame: its identifier and its sampling factors."""

    identifier: int
    across: int
    down: int


@dataclasses.dataclass(frozen=True)
class JpegFile:
    """A file's frame and the segments that its coefficients depend on, in the order of the file.

    Attributes:
        height: pixels.
        width: pixels.
        components: as the frame lists them.
        is_rgb: whether the components are red, green and blue, by libjpeg's rule for three of them (jdapimin.c).
        segments: tables, frame and scans.
    """

    height: int
    width: int
    components: tuple[Component, ...]
    is_rgb: bool
    segments: tuple[Segment, ...]

    @property
    def factors(self) -> list[tuple[int, int]]:
        """Sampling factors (down, across) of each component."""
        return [(c.down, c.across) for c in self.components]

    def without_padding(self, count: int) -> JpegFile | None:
        """Return the picture without the last ``count`` bytes of its last scan, or None if these are not all zeros."""
        last = self.segments[-1]
        if not 0 < count <= len(last.scan) or any(last.scan[-count:]):
            return None
        shorter = dataclasses.replace(last, scan=last.scan[:-count])
        return dataclasses.replace(self, segments=(*self.segments[:-1], shorter))

    def plain(self) -> bytes:
        """Return the picture as a file without metadata."""
        return b"".join([*self._header(), *self._scans(), b"\xff\xd9"])

    def blank(self, grids: Sequence[tuple[int, int]]) -> bytes:
        """Return the same header, byte for byte up to the first scan, with scans that hold only zeros.

        Args:
            grids: blocks (down, across) of each component.
        """
        [frame] = [segment.marker for segment in self.segments if segment.marker in FRAMES]
        # One-bit codes for "no difference" and "end of block", so that libjpeg finds as many bits as it expects.
        parts = [*self._header(), _segment(DRI, b"\0\0"), _segment(DHT, _ONE_BIT_CODES)]
        bits = 1 if frame in _PROGRESSIVE else 2
        for component, (down, across) in zip(self.components, grids, strict=True):
            spectrum = b"\0\0\0" if frame in _PROGRESSIVE else b"\x00\x3f\x00"
            parts.append(_segment(SOS, bytes([1, component.identifier, 0]) + spectrum))
            parts.append(b"" if frame in _ARITHMETIC else bytes(-(-down * across * bits // 8)))
        return b"".join([*parts, b"\xff\xd9"])

    def _header(self) -> Iterator[bytes]:
        """Yield everything before the first scan."""
        yield b"\xff\xd8"
        yield _JFIF
        for segment in self.segments:
            if segment.marker == SOS:
                return
            yield _segment(segment.marker, segment.body)

    def _scans(self) -> Iterator[bytes | memoryview]:
        """Yield everything from the first scan on."""
        sequential = begun = False
        for segment in self.segments:
            body = segment.body
            if segment.marker in FRAMES:
                sequential = segment.marker in _SEQUENTIAL
            elif segment.marker == SOS:
                begun = True
                if sequential:  # No decoder needs these bytes here, and some cameras leave them 0.
                    body = body[:-3] + b"\x00\x3f\x00"
            if begun:
                yield _segment(segment.marker, body)
                yield segment.scan


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments of a JPEG file up to its end-of-image marker; what follows that is no part of the picture.

    Stray bytes between segments and repeated ``FF`` bytes are skipped, as libjpeg does.

    Raises:
        Unreadable: it is not a JPEG file, ends too early, or has a marker of an unsupported kind.
    """
    if data[:2] != b"\xff\xd8":
        raise Unreadable("is not a JPEG file; convert it, or encode its pixels with Codec")
    view, at = memoryview(data), 2
    for _ in range(MAX_SEGMENTS):
        found = _NEXT.match(data, at)
        if found is None:
            raise Unreadable(CUT)
        marker, at = found[1][0], found.end()
        if marker == EOI:
            return
        if marker == _TEM or marker in _RESTARTS:
            continue
        if marker not in _KNOWN:
            raise Unreadable(
                f"has the marker 0xFF{marker:02X}, which no ordinary JPEG file has; fetch it again, or re-encode it"
            )
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            raise Unreadable(CUT)
        start, at = at + 2, at + length
        body, scan_start = data[start:at], at
        if marker == SOS:
            end = _END_OF_SCAN.search(data, at)
            if end is None:
                raise Unreadable(CUT)
            at = end.start()
        yield Segment(marker, start, body, view[scan_start:at])
    raise Unreadable(f"has more than {MAX_SEGMENTS} segments; re-encode it as an ordinary JPEG file")


def read_picture(data: bytes) -> JpegFile:
    """Read a JPEG file's segments without decoding anything.

    Raises:
        Unreadable: it is cut off, of a kind that is not read, or has more than `MAX_SCANS` scans.
    """
    frame: Segment | None = None
    jfif, adobe_transform = False, None
    kept: list[Segment] = []
    scanned: list[int] = []
    scans = 0
    for segment in segments(data):
        marker, body = segment.marker, segment.body
        if marker in _METADATA:
            if scans == 0 and marker == _APP0 and body[:5] == b"JFIF\0" and len(body) >= 14:
                jfif = True
            elif scans == 0 and marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
                adobe_transform = body[11]
            continue
        if marker in FRAMES:
            if marker not in _SEQUENTIAL | _PROGRESSIVE or body[:1] != b"\x08":
                raise Unreadable(_UNUSUAL)
            if frame is not None:
                raise Unreadable(CUT)
            frame = segment
        elif marker == SOS:
            scans += 1
            if frame is None or not body or not 1 <= body[0] <= 4 or len(body) != 4 + 2 * body[0]:
                raise Unreadable(CUT)
            if scans > MAX_SCANS:
                raise Unreadable(_too_many_scans())
            scanned += body[1 : 1 + 2 * body[0] : 2]
        kept.append(segment)
    if frame is None or not scans or len(frame.body) < 6 or len(frame.body) != 6 + 3 * frame.body[5]:
        raise Unreadable(CUT)
    height, width = struct.unpack_from(">HH", frame.body, 1)
    if not height or not width:
        raise Unreadable("has no height or width in its header; re-encode it as an ordinary JPEG file")
    table = frame.body[6:]
    components = tuple(Component(table[k], table[k + 1] >> 4, table[k + 1] & 15) for k in range(0, len(table), 3))
    if frame.marker in _SEQUENTIAL and sorted(scanned) != sorted(c.identifier for c in components):
        raise Unreadable(f"{CUT} (its scans do not hold each colour component once)")
    while kept[-1].marker != SOS:
        kept.pop()
    is_rgb = not jfif and len(components) == 3 and (
        adobe_transform == 0 if adobe_transform is not None
        else bytes(c.identifier for c in components) == b"RGB"
    )  # fmt: skip
    return JpegFile(height, width, components, is_rgb, tuple(kept))


def check_scans(data: bytes, name: str = "the picture") -> None:
    """Refuse a JPEG file with so many scans that decoding it would take very long; lets everything else pass.

    It is for those who decode pixels with another library; `read_jpeg` checks by itself. Every scan needs the bytes
    ``FF DA``, so counting these suffices for nearly all files, whichever parser comes after.

    Args:
        data: a file of any format.
        name: what the error message calls it.

    Raises:
        ValueError: it is a JPEG file with more than `MAX_SCANS` scans, or one so damaged that they can't be counted.
    """
    if data[:2] != b"\xff\xd8" or data.count(b"\xff\xda") <= MAX_SCANS:
        return
    try:
        scans = sum(segment.marker == SOS for segment in segments(data))
    except Unreadable as problem:
        raise ValueError(f"{name} {problem}") from None
    if scans > MAX_SCANS:
        raise ValueError(f"{name} {_too_many_scans()}")


def _too_many_scans() -> str:
    return f"has more than {MAX_SCANS} scans, which no camera or encoder writes; re-encode it as an ordinary JPEG file"
