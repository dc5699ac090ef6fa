"""Limits of the web page."""

from __future__ import annotations

import dataclasses

from dctransformer.codec import order

MAX_BATCH = 32
"""Most clicks that are worked on at a time; each takes a thread of the server."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on uploads, results and waiting clicks; whatever exceeds one gets a message in the page."""

    max_megabytes: float = 10.0
    """Largest file that may be uploaded."""
    max_megapixels: float = 40.0
    """Largest picture that is decoded."""
    max_side: int = 256
    """Longest side of a result in pixels; larger pictures are shrunk. The time grows with the square of the side."""
    max_num: int = 4
    """Most pictures, or alternatives of one picture, per click."""
    queue: int = 16
    """How many clicks may wait; the next ones are refused."""
    batch: int = 16
    """How many clicks are worked on at a time, and how many pictures are generated together."""

    def __post_init__(self) -> None:
        """Check that the limits are in range."""
        if not 0 < self.max_megabytes <= 1000:
            raise ValueError(f"max-megabytes {self.max_megabytes} must be greater than 0 and at most 1000")
        if not 0 < self.max_megapixels <= 178:
            raise ValueError(f"max-megapixels {self.max_megapixels} must be greater than 0 and at most 178")
        if not order.MCU <= self.max_side <= 4096:
            raise ValueError(f"max-side {self.max_side} must be from {order.MCU} to 4096 pixels")
        for name in ("max_num", "queue", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.batch > MAX_BATCH:
            raise ValueError(f"batch {self.batch} must be at most {MAX_BATCH}")
