"""Signals that stop a training."""

from __future__ import annotations

import contextlib
import signal
from types import TracebackType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


def leave_signals_to_the_trainer(_: int) -> None:
    """Make a process that cuts chunks ignore what stops a training, since it is the trainer that ends it.

    Ctrl-C and most schedulers signal all processes of a group. Without its loaders the trainer could not finish.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class StopSignal:
    """Remembers a SIGINT or SIGTERM, so that the step in progress is finished and saved."""

    number = 0
    """Number of the last signal; 0 for none."""

    def __enter__(self) -> StopSignal:
        self._before: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals stay with their owner
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, _: object) -> None:
        self.number = number

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
