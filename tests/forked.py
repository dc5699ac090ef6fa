"""Child processes for tests, forked from a server process that has imported PyTorch and done nothing else.

Importing PyTorch in every process would take seconds, and the process that runs the tests can't be forked: the threads
of OpenMP and other libraries don't exist in the copy, which then crashes occasionally in their code (segmentation
faults were seen in tests of distributed training). Tests of how an interpreter starts or ends use a new interpreter.
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

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dctransformer.cli", "dctransformer.training.loop", "dctransformer.sampling.engine"])


@contextlib.contextmanager
def forked(output: Path, work: Callable[..., Any], *arguments: Any) -> Iterator[BaseProcess]:
    """Run a function in a child process, which is ended when the block is left.

    Args:
        output: file for standard output; standard error is written to a file next to it with suffix ``.err``.
        work: the function, which must be picklable; its `SystemExit` is the exit status of the process.
        arguments: picklable arguments of the function.
    """
    process = _CONTEXT.Process(target=_run, args=(output, work, arguments, dict(os.environ), os.getcwd()))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def errors_of(output: Path) -> str:
    """Standard error of the process with this output."""
    return output.with_suffix(".err").read_text()


def _run(
    output: Path, work: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], folder: str
) -> None:
    os.environ.clear()  # those of the server are from the first test that started a process
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup, or in the background of a
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # shell, both are ignored
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray does not restore the handler
    for number, path in ((1, output), (2, output.with_suffix(".err"))):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    work(*arguments)
