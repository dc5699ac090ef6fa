"""Processes for tests, forked from the one that runs the tests: importing PyTorch again would take seconds.

What depends on how an interpreter begins or ends is tested with a new one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("fork")


@contextlib.contextmanager
def forked(output: Path, work: Callable[..., Any], *arguments: Any) -> Iterator[BaseProcess]:
    """Run a function in a process of its own, which ends at the latest with the block.

    Args:
        output: file for what it prints; what it prints to standard error goes to a file next to it, ``.err``.
        work: the function; its `SystemExit` is the status of the process.
        arguments: of the function.
    """
    process = _CONTEXT.Process(target=_run, args=(output, work, arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def errors_of(output: Path) -> str:
    """What the process with this output printed to standard error."""
    return output.with_suffix(".err").read_text()


def _run(output: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup, or in the background of a
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # shell, both are ignored
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray leaves a handler of its own behind
    for number, path in ((1, output), (2, output.with_suffix(".err"))):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    work(*arguments)
