"""The command line: parse, call, report errors in one sentence. `dctransformer.commands` has the commands."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import operator
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import tyro

from dctransformer import __version__
from dctransformer.commands import compression, pictures, scores, sharing, training
from dctransformer.commands.usage import check_numbers, usage_sentence
from dctransformer.files import printable
from dctransformer.model.config import PRESETS

COMMANDS: dict[str, type] = {
    "prepare": training.Prepare, "train": training.Train, "sample": pictures.Sample, "upscale": pictures.Upscale,
    "colorize": pictures.Colorize, "inpaint": pictures.Inpaint, "continue": pictures.Continue,
    "likelihood": scores.Likelihood, "evaluate": scores.Evaluate, "report": scores.Report, "push": sharing.Push,
    "app": sharing.App, "info": sharing.Info, "compress": compression.Compress, "decompress": compression.Decompress,
}  # fmt: skip


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that workers end and no temporary files are left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        raise SystemExit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as sentences, without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"dctransformer: {printable(message)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _parser(argv: list[str]) -> Any:
    """Return the type that tyro parses: all commands, but the options of the chosen one only; the others' take time."""
    options = []
    for name, command in COMMANDS.items():
        if argv[:1] != [name]:
            command = dataclasses.make_dataclass(command.__name__, [], namespace={"__doc__": command.__doc__})
        defaults: dict[str, Any] = {"default": training.train_defaults(argv)} if argv[:1] == [name] == ["train"] else {}
        options.append(Annotated[command, tyro.conf.subcommand(name, **defaults)])
    return functools.reduce(operator.or_, options)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``dctransformer`` command."""
    argv = sys.argv[1:] if argv is None else argv
    with _orderly_end(), _plain_warnings():
        try:
            if sys.stdout is None:
                raise ValueError("standard output is closed; redirect it to a file or to /dev/null")
            _run(argv)
        except ValueError as error:
            print(f"dctransformer: {printable(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("dctransformer: stopped", file=sys.stderr)
            raise SystemExit(130) from None


def _run(argv: list[str]) -> None:
    try:
        if argv == ["--version"]:
            print(__version__)
        else:
            command = _parsed(argv)
            check_numbers(command)
            command.run()
        sys.stdout.flush()
    except SystemExit:  # --help
        _flush()
        raise
    except OSError as error:
        if error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC):
            _end_output(error)
        if error.filename is None or error.strerror is None:
            raise
        raise ValueError(f"{error.filename}: {error.strerror}; check the path and its permissions") from error
    except MemoryError as error:
        raise ValueError("there is not enough memory for this; ask for less at a time") from error


def _parsed(argv: list[str]) -> Any:
    """Return the command with its options.

    Raises:
        ValueError: the arguments can't be parsed.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                _parser(argv),
                prog="dctransformer",
                description="Images as sparse JPEG coefficients: train a Transformer on them, sample, and count bits. "
                f"Presets: {', '.join(PRESETS)}. Start with: dctransformer sample flowers64 --out samples",
                args=argv,
                config=(tyro.conf.OmitSubcommandPrefixes,),
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
        known = argv[0] if argv and argv[0] in COMMANDS else ""
        raise ValueError(usage_sentence(errors.getvalue(), known)) from None


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        _end_output(error)


def _end_output(error: OSError) -> None:
    """End the command because standard output takes no more.

    Raises:
        SystemExit: the reader of a pipe has seen enough (| head).
        ValueError: the disk is full.
    """
    with contextlib.suppress(OSError, ValueError):  # Python flushes again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        raise SystemExit(141) from None
    raise ValueError(f"standard output can't be written ({error.strerror}); redirect it elsewhere") from None


if __name__ == "__main__":
    main()
