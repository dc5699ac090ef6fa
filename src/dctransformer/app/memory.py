"""Memory that is given back to the system after a burst of work."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

SECONDS = 1
"""Least time between two calls that do something; one takes some milliseconds."""

_last = 0.0
_lock = threading.Lock()


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, in each thread's share. Elsewhere, do nothing."""
    global _last
    with _lock:
        if not sys.platform.startswith("linux") or time.monotonic() - _last < SECONDS:
            return
        _last = time.monotonic()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
