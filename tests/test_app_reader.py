"""Tests of the process that reads uploaded files: errors, timeouts and crashes."""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import save

from dctransformer.app import reader
from dctransformer.app.limits import Limits
from dctransformer.app.reader import Reader
from dctransformer.app.uploads import Inspected, Upload, read_for_inspection, read_upload
from dctransformer.codec import read_jpeg_bytes
from pictures import photo, pillow_jpeg
from test_app import BAD_UPLOADS

LIMITS = Limits(max_megabytes=1)


@pytest.fixture(scope="module")
def reading() -> Iterator[Reader]:
    """A reader for a model of 32 × 32 pixels."""
    file_reader = Reader(LIMITS, 64, (32, 32), 30)
    file_reader.start()
    yield file_reader
    file_reader.close()


def slow_file() -> bytes:
    """A small file that takes a quarter of a second or more to read."""
    out = io.BytesIO()
    Image.new("L", (6000, 6000)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "data", [pillow_jpeg(photo(48, 40), 90), pillow_jpeg(photo(100, 200), 80)], ids=["own", "large"]
)
def test_a_file_is_read_as_in_this_process(reading: Reader, data: bytes) -> None:
    """Pixels, coefficients, facts and notes equal those of reading in this process."""
    expected, upload = read_upload(data, LIMITS, 64), reading.read(data)
    assert isinstance(upload, Upload) and upload.notes == expected.notes
    assert np.array_equal(upload.pixels, expected.pixels)
    if isinstance(expected.source, bytes):
        assert isinstance(upload.source, bytes) and upload.source != data
        assert read_jpeg_bytes(upload.source).equal(read_jpeg_bytes(data))
    else:
        assert np.array_equal(upload.source, expected.source)
    seen, inspected = read_for_inspection(data, LIMITS, (32, 32), 30), reading.read(data, "inspect")
    assert isinstance(inspected, Inspected) and (inspected.own, inspected.facts) == (seen.own, seen.facts)
    assert read_jpeg_bytes(inspected.jpeg).equal(read_jpeg_bytes(seen.jpeg))


@pytest.mark.parametrize("name", list(BAD_UPLOADS))
def test_bad_files_are_the_same_sentence(reading: Reader, name: str) -> None:
    """Bad files are refused with the same sentence as in this process."""
    data, message = BAD_UPLOADS[name]
    for kind in ("work", "inspect"):
        with pytest.raises(ValueError, match=message):
            reading.read(data, kind)


def test_a_file_that_takes_too_long_is_one_sentence(reading: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that exceeds the time limit is killed, and the next file is read."""
    with monkeypatch.context() as patch:
        patch.setattr(reading, "seconds", 0.05)
        patch.setitem(reading._settings, "seconds", 0.05)
        with pytest.raises(ValueError, match="could not be read within"):
            reading.read(slow_file())
    assert isinstance(reading.read(pillow_jpeg(photo(16, 16), 90)), Upload)


def test_a_file_that_takes_too_much_memory_is_one_sentence(reading: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that needs too much memory is refused, and the server does not allocate that memory."""
    assert reader.memory_bytes(Limits(max_megapixels=40)) < 1.5e9
    with monkeypatch.context() as patch:
        patch.setitem(reading._settings, "memory", 40_000_000)
        with pytest.raises(ValueError, match="more memory than is allowed"):
            reading.read(slow_file())
    assert isinstance(reading.read(pillow_jpeg(photo(16, 16), 90)), Upload)


def test_a_crashing_reader_affects_no_other_reader(reading: Reader) -> None:
    """A crashing reader takes down neither other readers nor the process that forks them."""
    assert reading._process is not None
    parent, slow = psutil.Process(reading._process.pid), slow_file()
    ends: list[str] = []

    def victim() -> None:
        try:
            reading.read(slow)
        except ValueError as error:
            ends.append(str(error))

    while parent.children():  # those of previous tests
        time.sleep(0.005)
    thread = threading.Thread(target=victim)
    thread.start()
    while not (children := parent.children()) or children[0].rlimit(psutil.RLIMIT_CORE) != (0, 0):
        time.sleep(0.005)  # until it reads the file
    other = threading.Thread(target=lambda: ends.append(type(reading.read(pillow_jpeg(photo(16, 16), 90))).__name__))
    other.start()
    children[0].send_signal(signal.SIGSEGV)
    thread.join()
    other.join()
    assert sorted(ends) == ["Upload", reader.CRASHED] and parent.is_running()


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"x", b"\xff" * 100, save({"answer": reader._text([])}), save({"answer": reader._text({"notes": []})}),
        save({"answer": reader._text({"notes": []}), "pixels": np.zeros((999, 999, 3), np.uint8)}),
        save({"answer": reader._text({"notes": []}), "pixels": np.zeros((4, 4, 3), np.float32)}),
        save({"answer": reader._text({"notes": [], "height": 9, "width": 9}), "luma": np.zeros((1, 9), np.int16)}),
    ],
)  # fmt: skip
def test_invalid_replies_of_a_compromised_reader_are_refused(
    reading: Reader, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    """Shapes and types from a compromised reader are checked, and nothing is decoded or unpickled."""
    monkeypatch.setattr(reading, "_ask", lambda request: reply)
    with pytest.raises(ValueError, match="broke the program"):
        reading.read(b"x")


def test_the_process_that_forks_is_started_again(
    reading: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed fork server is restarted, ignores the working folder, and ends with the server."""
    for name in ("json.py", "numpy.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert reading._process is not None
    reading._process.kill()
    assert isinstance(reading.read(pillow_jpeg(photo(16, 16), 90)), Upload)
    process = reading._process
    reading.close()
    assert process.returncode == 0
