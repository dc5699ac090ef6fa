"""The alphabet of triples: which channels there are, and in which order they are listed.

Everything that decides "which coefficient comes first" lives here.

A *channel* is one frequency of one colour component: Y 0–63, Cb 64–127, Cr 128–191, frequencies counted in
zigzag order. The *rank* of a channel is its place in the generation order (paper, section 3.2): zigzag bands
``[0] [1–3] [4–15] [16–63]``; inside a band first Y, then Cr, then Cb; inside a component by frequency. So an
image sharpens as its sequence grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK = 8
"""Pixels along the side of a block."""

MCU = 16
"""Pixels along the side of an MCU (minimum coded unit) at 4:2:0: 4 luma blocks, 1 Cb block, 1 Cr block."""

BLOCKS_PER_MCU = 6

NUM_CHANNELS = 192
LUMA, CB, CR = 0, 64, 128
"""First channel id of each colour component."""

COMPONENT_ORDER = (LUMA, CR, CB)
"""Order of the components inside a band."""

STOP = NUM_CHANNELS
"""Channel class (in rank space) that ends a sequence; it has neither position nor value."""

BANDS: tuple[tuple[int, int], ...] = ((0, 1), (1, 4), (4, 16), (16, 64))
"""Zigzag bands as half-open ranges of frequencies, low to high."""

BAND_NAMES = ("dc", "1-3", "4-15", "16-63")
"""Names of the bands in JSON and metrics."""

BAND_TITLES = ("DC", "1–3", "4–15", "16–63")
"""Names of the bands for people."""


def _zigzag() -> list[int]:
    """Return the natural (row-major) index of each zigzag position."""
    cells = [(row, column) for row in range(8) for column in range(8)]
    # Odd anti-diagonals run downwards, even ones upwards.
    cells.sort(key=lambda rc: (rc[0] + rc[1], rc[0] if (rc[0] + rc[1]) % 2 else rc[1]))
    return [row * 8 + column for row, column in cells]


def _tables() -> dict[str, np.ndarray]:
    """Return all tables; NumPy is imported here, so that the command line can read the constants above at once."""
    import numpy as np

    zigzag = np.array(_zigzag())
    generation_order = np.concatenate([c + np.arange(*band) for band in BANDS for c in COMPONENT_ORDER])
    bands = [next(b for b, (lo, hi) in enumerate(BANDS) if lo <= c % 64 < hi) for c in range(NUM_CHANNELS)]
    return {
        "ZIGZAG": zigzag,
        "UNZIGZAG": np.argsort(zigzag),
        "GENERATION_ORDER": generation_order,
        "RANK": np.argsort(generation_order),
        "BAND_OF_CHANNEL": np.array(bands),
    }


if TYPE_CHECKING:
    ZIGZAG: np.ndarray
    """``ZIGZAG[k]`` is the row-major index in an 8×8 block of zigzag frequency ``k``: int64 ``[64]``."""

    UNZIGZAG: np.ndarray
    """Inverse of `ZIGZAG`: zigzag frequency of each row-major index, int64 ``[64]``."""

    GENERATION_ORDER: np.ndarray
    """``GENERATION_ORDER[r]`` is the channel id of rank ``r``: int64 ``[192]``."""

    RANK: np.ndarray
    """``RANK[c]`` is the rank of channel id ``c``: int64 ``[192]``."""

    BAND_OF_CHANNEL: np.ndarray
    """Index into `BANDS` of each channel id: int64 ``[192]``."""


def __getattr__(name: str) -> np.ndarray:
    tables = _tables() if name.isupper() else {}
    if name not in tables:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(tables)
    return tables[name]


def check_quality(quality: int) -> None:
    """Raise ValueError unless a JPEG quality is a whole number from 1 to 100."""
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"quality {quality} is not a whole number from 1 to 100; choose one in that range, say 75")
