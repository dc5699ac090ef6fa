"""Uploaded pictures, kept in the server's memory for a while, within bounds."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dctransformer.app.uploads import Inspected, Upload

Picture = Upload | Inspected


class _Held(NamedTuple):
    picture: Picture
    size: int
    visitor: str
    until: float


class Shelf:
    """Keeps pictures under random names, which only whoever brought them knows.

    Where there would be more than the bounds allow, a visitor's oldest pictures go first, then the oldest of all.
    """

    def __init__(
        self, most: int, visitor_most: int, seconds: float = 3600, clock: Callable[[], float] = time.monotonic
    ):
        """Set the bounds.

        Args:
            most: bytes of all pictures together.
            visitor_most: bytes of one visitor's.
            seconds: how long a picture is kept after its last use.
            clock: the time in seconds.
        """
        self.most, self.visitor_most, self.seconds, self._clock = most, visitor_most, seconds, clock
        self._held: OrderedDict[str, _Held] = OrderedDict()  # by last use, the oldest first
        self._fixed: dict[str, Picture] = {}
        self._lock = threading.Lock()

    def fix(self, name: str, picture: Picture) -> None:
        """Keep a picture that everybody may use, for ever."""
        self._fixed[name] = picture

    def put(self, picture: Picture, visitor: str) -> str:
        """Keep a visitor's picture; returns the name to get it by."""
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._held[name] = _Held(picture, _size(picture), visitor, self._clock() + self.seconds)
            self._tidy(visitor)
        return name

    def get(self, name: str) -> Picture | None:
        """Look a picture up.

        Args:
            name: of the picture, from `put` or `fix`; empty for none.

        Returns:
            The picture, or None for an empty name.

        Raises:
            ValueError: there is no such picture, or not any more.
        """
        if not name:
            return None
        if name in self._fixed:
            return self._fixed[name]
        with self._lock:
            self._tidy()
            if name not in self._held:
                raise ValueError("your picture is no longer kept here; choose it again")
            self._held[name] = self._held[name]._replace(until=self._clock() + self.seconds)
            self._held.move_to_end(name)
            return self._held[name].picture

    def bytes(self, visitor: str | None = None) -> int:
        """Return the bytes of all pictures, or of a visitor's."""
        return sum(held.size for held in self._held.values() if visitor in (None, held.visitor))

    def _tidy(self, visitor: str | None = None) -> None:
        now = self._clock()
        for name in [name for name, held in self._held.items() if held.until < now]:
            del self._held[name]
        if visitor is not None:
            self._drop(visitor, self.visitor_most)
        self._drop(None, self.most)

    def _drop(self, visitor: str | None, most: int) -> None:
        names = [name for name, held in self._held.items() if visitor in (None, held.visitor)]
        while names and self.bytes(visitor) > most:
            del self._held[names.pop(0)]


def _size(picture: Picture) -> int:
    """Return the approximate number of bytes that a picture takes in memory."""
    if isinstance(picture, Inspected):
        return len(picture.jpeg) + 2000
    source = 0 if isinstance(picture.source, np.ndarray) else len(picture.source)
    return picture.pixels.nbytes + source + 2000
