"""Untrusted files, read in a process that may die: `Reader` runs in the server, the rest of the module elsewhere.

One small process, started when the server starts, has imported what reading needs. For each file it forks a child,
which has little time and memory, reads the file, and ends; whatever a file does to its reader, it does to that child
alone. The server gets arrays and text back, checks their shapes and types, and writes a JPEG file of them itself, so
no decoder in the server ever sees a byte that a stranger sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from safetensors.numpy import load, save

from dctransformer.app.limits import Limits
from dctransformer.app.uploads import Inspected, Upload, read_for_inspection, read_upload
from dctransformer.codec import DCTImage, read_jpeg_bytes, write_jpeg_bytes

Kind = Literal["work", "inspect"]

SECONDS = 20
"""How long a file may take to be read."""

START_SECONDS = 120
"""How long the process may take to start; it takes some seconds on an idle machine."""

PARTS = ("luma", "cb", "cr", "luma_table", "chroma_table")
"""Fields of a DCT image that are sent between the processes."""

CRASHED = "this file broke the program that reads pictures; it may be damaged. Choose another one"
SLOW = f"this file could not be read within {SECONDS} seconds; choose a smaller or simpler one"
LARGE = "reading this file takes more memory than is allowed here; choose a smaller one"


class Reader:
    """Reads files for the server, each in a process of its own. Can be used from several threads at once."""

    def __init__(self, limits: Limits, side: int, shape: tuple[int, int], quality: int, seconds: float = SECONDS):
        """Set how files are read; no process is started before the first file, or before `start` is called.

        Args:
            limits: on bytes and pixels.
            side: longest side to work on in pixels.
            shape: height and width of the model's pictures, for inspection.
            quality: JPEG quality of the model's pictures, for inspection.
            seconds: for one file.
        """
        self.limits, self.side, self.seconds = limits, side, seconds
        self._settings = {"limits": dataclasses.asdict(limits), "side": side, "shape": shape, "quality": quality,
                          "seconds": seconds, "memory": memory_bytes(limits)}  # fmt: skip
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the process that forks, unless it is running."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._start()

    def _start(self) -> None:
        here, there = socket.socketpair()
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        with there:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the working folder. A session of its own: Ctrl-C is for the server.
                [sys.executable, "-P", "-m", __name__, str(there.fileno())], pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self._control = here

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()  # its end sees that, and ends
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._control = None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def read(self, data: bytes, kind: Kind = "work") -> Upload | Inspected:
        """Read a file.

        Args:
            data: its bytes.
            kind: ``work`` to edit the picture, ``inspect`` to show its coefficients.

        Raises:
            ValueError: the file is not a picture, damaged, too large, takes too long, or broke its reader.
        """
        settings = {**self._settings, "kind": kind}
        request = save({"data": np.frombuffer(data, np.uint8), "settings": _text(settings)})
        reply = self._ask(request)
        try:
            arrays = load(reply)
            answer = json.loads(arrays.pop("answer").tobytes())
            if "error" in answer:
                raise ValueError(str(answer["error"]))
            if "traceback" in answer:
                raise RuntimeError(f"the reader of a picture failed: {answer['traceback']!r}")
            return self._checked(kind, arrays, answer)
        except (ValueError, RuntimeError):
            raise
        except Exception as error:  # the child was made to answer nonsense
            raise ValueError(CRASHED) from error

    def _ask(self, request: bytes) -> bytes:
        with tempfile.TemporaryDirectory(prefix="dctransformer-read-") as scratch, self._child(scratch) as child:
            # The child sets an alarm of its own; this one, a second later, is for a child in the hands of an intruder.
            deadline = time.monotonic() + self.seconds + 1
            child.settimeout(self.seconds + 1)
            try:
                child.sendall(request)
                child.shutdown(socket.SHUT_WR)
                return self._receive(child, deadline)
            except TimeoutError:
                raise ValueError(SLOW) from None
            except ConnectionError:
                raise ValueError(CRASHED) from None

    def _child(self, scratch: str) -> socket.socket:
        """Have a child forked; returns the socket that leads to it."""
        for _ in range(2):
            self.start()
            forking = self._process
            here, there = socket.socketpair()
            here.settimeout(START_SECONDS)
            with there, contextlib.suppress(OSError):
                with self._lock:
                    if self._control is not None:
                        socket.send_fds(self._control, [scratch.encode()], [there.fileno()])
                there.close()  # so that its end is seen here
                if here.recv(1) == b"+":
                    return here
            here.close()
            with self._lock:  # the process has been killed; another one is started
                if self._process is forking:
                    self._stop()
        raise RuntimeError("the process that reads pictures does not start")

    def _receive(self, here: socket.socket, deadline: float) -> bytes:
        """Receive all of a reply; a child that its alarm has ended leaves an empty one."""
        most = 64 * self.side**2 + 4_000_000
        reply = bytearray()
        while True:
            here.settimeout(max(deadline - time.monotonic(), 0.01))
            part = here.recv(1 << 20)
            reply += part
            if len(reply) > most:
                raise ValueError(CRASHED)
            if not part:
                break
        if not reply:
            raise ValueError(SLOW if time.monotonic() > deadline - 1.5 else CRASHED)
        return bytes(reply)

    def _checked(self, kind: Kind, arrays: dict[str, np.ndarray], answer: dict[str, Any]) -> Upload | Inspected:
        """Turn a child's answer into what the server works on; what it can't be raises any exception."""
        notes = tuple(str(note)[:300] for note in answer["notes"][:8])
        dct = None
        if "luma" in arrays:
            luma, cb, cr, luma_table, chroma_table = (torch.from_numpy(arrays[name]) for name in PARTS)
            height, width = int(answer["height"]), int(answer["width"])
            dct = DCTImage(luma, cb, cr, luma_table, chroma_table, height, width)
            if max(dct.height, dct.width) > self.side or len(dct) != 1:
                raise ValueError(CRASHED)
        if kind == "inspect":
            if dct is None or not isinstance(answer["facts"], dict):
                raise ValueError(CRASHED)
            return Inspected(write_jpeg_bytes(dct), bool(answer["own"]), answer["facts"], notes)
        pixels = arrays["pixels"]
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 3
            or pixels.shape[2] != 3
            or not 0 < max(pixels.shape) <= self.side
        ):
            raise ValueError(CRASHED)
        return Upload(pixels if dct is None else write_jpeg_bytes(dct), pixels, notes)


def memory_bytes(limits: Limits) -> int:
    """Return the bytes of memory that reading a file may take: some copies of the largest picture."""
    return int(300e6 + 24e6 * limits.max_megapixels)


def _text(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


# The other process ----------------------------------------------------------------------------------------------------


def main(control: socket.socket) -> NoReturn:
    """Fork a child for every socket that arrives, until the server is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    torch.set_num_threads(1)
    while True:
        scratch, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not fds:
            os._exit(0)  # at once: Python's own way out takes seconds
        if os.fork() == 0:
            try:
                control.close()
                with socket.socket(fileno=fds[0]) as there:
                    _serve(there, scratch.decode())
            finally:
                os._exit(0)
        os.close(fds[0])


def _serve(there: socket.socket, scratch: str) -> None:
    """Read one file."""
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    there.sendall(b"+")
    request = bytearray()
    while part := there.recv(1 << 20):
        request += part
    arrays = load(bytes(request))
    settings = json.loads(arrays["settings"].tobytes())
    data = arrays["data"].tobytes()
    del request, arrays
    _confine(settings["seconds"], settings["memory"])
    try:
        reply = _read(data, settings)
    except ValueError as error:
        large = isinstance(error.__cause__, MemoryError)
        reply = {"answer": _text({"error": LARGE if large else str(error)[:1000]})}
    except MemoryError:
        reply = {"answer": _text({"error": LARGE})}
    except Exception:
        reply = {"answer": _text({"traceback": traceback.format_exc()[-4000:]})}
    there.sendall(save(reply))


def _confine(seconds: float, memory: int) -> None:
    """Limit the process: after ``seconds`` it ends, whatever it does, and it gets ``memory`` bytes more than it has."""
    os.nice(5)  # whoever waits for an answer of the server comes first
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory, memory))
    statm = Path("/proc/self/statm")
    if statm.is_file():  # on other systems than Linux, limits on the address space do not bound memory
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


def _read(data: bytes, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    limits = Limits(**settings["limits"])
    if settings["kind"] == "inspect":
        held = read_for_inspection(data, limits, tuple(settings["shape"]), settings["quality"])
        return _reply({"own": held.own, "facts": held.facts, "notes": held.notes}, {}, read_jpeg_bytes(held.jpeg))
    upload = read_upload(data, limits, settings["side"])
    dct = read_jpeg_bytes(upload.source) if isinstance(upload.source, bytes) else None
    return _reply({"notes": upload.notes}, {"pixels": np.ascontiguousarray(upload.pixels)}, dct)


def _reply(answer: dict[str, Any], arrays: dict[str, np.ndarray], dct: DCTImage | None) -> dict[str, np.ndarray]:
    if dct is not None:
        write_jpeg_bytes(dct)  # what no file can hold fails here
        arrays |= {name: np.ascontiguousarray(getattr(dct, name).numpy()) for name in PARTS}
        answer |= {"height": dct.height, "width": dct.width}
    return {**arrays, "answer": _text(answer)}


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
