"""Tests of malicious and damaged JPEG files: memory safety, bounded time, one-sentence errors."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jpeglib
import numpy as np
import pytest

from dctransformer.codec import Codec, check_scans, libjpeg, read_jpeg_bytes, write_jpeg_bytes
from dctransformer.codec.segments import MAX_SCANS, MAX_SEGMENTS, read_picture, segments
from dctransformer.data.images import load_image
from pictures import photo, pillow_jpeg

ROOT = Path(__file__).parents[1]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def two_faced(marker: int, sampling: str = "4:1:0") -> bytes:
    """A 256×256 file inside a segment that parsers may skip, followed by the header of a 32×32 file.

    Strict decoders don't support 4:1:0, so that the marker is the only possible error.
    """
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for side in (256, 32):
            picture = jpeglib.from_spatial(np.full((side, side, 3), 90, np.uint8))
            picture.samp_factor = sampling
            picture.write_spatial(f"{folder}/a.jpg", qt=50)
            files.append(Path(folder, "a.jpg").read_bytes())
    assert len(files[0]) < 65_000
    return b"\xff\xd8" + segment(marker, files[0][2:]) + files[1][2:]


def test_headers_that_parsers_disagree_about(tmp_path):
    # In a separate process, because a disagreement causes a write beyond a buffer.
    markers = [0x00, 0x02, 0xBF, 0xC8, 0xDE, 0xDF, 0xF0, 0xFD]
    for marker in markers:
        (tmp_path / f"{marker:02X}.jpg").write_bytes(two_faced(marker))
    code = """
import sys
from pathlib import Path
from dctransformer import read_jpeg
for path in sorted(Path(sys.argv[1]).iterdir()):
    for _ in range(20):
        try:
            read_jpeg(path)
        except ValueError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 20 * len(markers)
    for line, marker in zip(lines[::20], markers, strict=True):
        assert f"the marker 0xFF{marker:02X}" in line
    assert done.stderr == ""


@pytest.mark.parametrize("marker", [0xE1, 0xFE, 0xDC])
def test_headers_in_metadata_are_metadata(marker):
    dct = read_jpeg_bytes(two_faced(marker, "4:2:0"))
    assert (dct.height, dct.width) == (32, 32)


def test_buffers_have_the_size_that_libjpeg_reports():
    large, small = (read_picture(pillow_jpeg(photo(side, side), 50)) for side in (64, 32))
    grids = {side: [(side // 8, side // 8), (side // 16, side // 16), (side // 16, side // 16)] for side in (32, 64)}
    expected = libjpeg.Frame(32, 32, small.factors, grids[32])
    blocks, _ = libjpeg.read(small.blank(grids[32]), small.plain(), expected)
    assert [part.shape[:2] for part in blocks] == grids[32]
    with pytest.raises(OSError, match="another picture"):
        libjpeg.read(large.blank(grids[64]), large.plain(), expected)


def test_mutated_files_in_a_process_of_its_own():
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_jpeg.py"), "--count", "3000", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["read"] > 300 and report["refused"] > 1000
    assert done.stderr == ""  # libjpeg reports errors on stderr only


# Scans ----------------------------------------------------------------------------------------------------------------


def with_scans(count: int) -> bytes:
    """A progressive file whose last scan, a refinement, is repeated ``count`` times."""
    data = pillow_jpeg(photo(64, 64), 50, progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = sum(s.marker == 0xDA for s in segments(data))
    return data[:-2] + data[last:-2] * (count - scans) + b"\xff\xd9"


def test_files_with_thousands_of_scans_are_refused_at_once():
    data = with_scans(5000)
    began = time.perf_counter()
    for refuse in (read_jpeg_bytes, check_scans):
        with pytest.raises(ValueError, match=f"more than {MAX_SCANS} scans") as caught:
            refuse(data, name="cat.jpg")
        assert str(caught.value).startswith("cat.jpg has")
    assert time.perf_counter() - began < 1


def test_pixels_of_files_with_thousands_of_scans_are_not_decoded(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(with_scans(5000))
    for source in (tmp_path / "cat.jpg", with_scans(5000)):
        with pytest.raises(ValueError, match=f"can't be read \\(it has more than {MAX_SCANS} scans"):
            load_image(source)
    assert load_image(with_scans(20)).size == (64, 64)


def test_files_with_few_scans_are_read():
    check_scans(with_scans(MAX_SCANS))
    check_scans(with_scans(10) + with_scans(MAX_SCANS))  # another picture behind the first
    comments = b"".join(segment(0xFE, b"\xff\xda" * 10) for _ in range(20))
    data = pillow_jpeg(photo(64, 64), 50)
    check_scans(data[:2] + comments + data[2:])
    check_scans(b"\x89PNG" + b"\xff\xda" * 500)
    check_scans(b"")


def test_files_of_millions_of_segments_are_refused_at_once():
    data = pillow_jpeg(photo(16, 16), 50)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=f"more than {MAX_SEGMENTS} segments"):
        read_jpeg_bytes(data[:2] + segment(0xFE, b"") * 1_000_000 + data[2:])
    assert read_jpeg_bytes(data[:2] + b"\xff" * 5_000_000 + data[2:]).equal(read_jpeg_bytes(data))
    assert time.perf_counter() - began < 1


# Temporary files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_temporary_file_is_left_or_shared(tmp_path, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.delattr("os.memfd_create", raising=False)
    folders = []
    make = tempfile.mkdtemp

    def watched(*arguments, **options):
        folders.append(Path(make(*arguments, **options)))
        assert folders[-1].stat().st_mode & 0o077 == 0
        return str(folders[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    monkeypatch.setattr(tempfile, "mkstemp", None)
    dct = Codec(50).encode(photo(16, 16))
    assert read_jpeg_bytes(write_jpeg_bytes(dct)).equal(dct)
    assert bool(folders) != in_memory and not list(tmp_path.iterdir())
    monkeypatch.setattr(libjpeg._library, "read_jpeg_dct", lambda *_: 0)
    with pytest.raises(ValueError, match="can't read its scans"):
        read_jpeg_bytes(pillow_jpeg(photo(16, 16), 50))
    assert not list(tmp_path.iterdir())
