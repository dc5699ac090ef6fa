"""Tests of reading and writing coefficients of JPEG files, and of files that must be refused."""

from __future__ import annotations

import errno
import io
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jpeglib
import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import Codec, DCTImage, read_jpeg, write_jpeg
from dctransformer.codec import huffman_bytes, order, read_jpeg_bytes, write_jpeg_bytes
from pictures import photo, pillow_jpeg, pillow_pixels, real_photographs


def pillow_file(mode: str = "RGB", size: tuple[int, int] = (70, 45), **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(*size)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


# Round trips ----------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (8, 8), (45, 70), (16, 200)])
@pytest.mark.parametrize("grey", [False, True])
def test_written_files_hold_the_same_coefficients(tmp_path, size, grey):
    picture = photo(*size)[..., 0] if grey else photo(*size)
    dct = Codec(50).encode(picture)
    path = tmp_path / "a.jpg"
    write_jpeg(dct, path)
    assert read_jpeg(path).equal(dct)
    # Read by jpeglib alone.
    other = jpeglib.read_dct(str(path))
    natural = other.Y.reshape(*other.Y.shape[:2], 64)[..., order.ZIGZAG]
    assert np.array_equal(natural, dct.luma[0].numpy())
    # Read by Pillow, whose pixels follow from the coefficients.
    image = Image.open(path)
    assert image.mode == ("L" if grey else "RGB") and image.size == (size[1], size[0])
    assert np.array_equal(np.asarray(image.convert("RGB")), Codec(50).decode(dct)[0].numpy())


@pytest.mark.parametrize("quality", [20, 75, 100])
def test_bytes_are_those_of_pillow_with_optimize(quality):
    for seed in range(4):
        picture = photo(64, 48 + seed, seed)
        assert write_jpeg_bytes(Codec(quality).encode(picture)) == pillow_jpeg(picture, quality, optimize=True)


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({}, "4:2:0"),
        ({"subsampling": 0}, "4:4:4"),
        ({"subsampling": 1}, "4:2:2"),
        ({"progressive": True}, "4:2:0"),
        ({"restart_marker_blocks": 2}, "4:2:0"),
        ({"optimize": True, "quality": 100}, "4:2:0"),
        ({"comment": "x" * 5000, "icc_profile": b"y" * 200_000}, "4:2:0"),
        ({"mode": "L"}, "grey"),
        ({"mode": "L", "progressive": True}, "grey"),
    ],
)
def test_kinds_of_files(options, sampling):
    data = pillow_file(**options)
    dct = read_jpeg_bytes(data)
    assert dct.sampling == sampling and (dct.height, dct.width) == (70, 45) and len(dct) == 1
    rewritten = read_jpeg_bytes(write_jpeg_bytes(dct))
    assert rewritten.equal(dct)
    if not options.get("progressive"):  # Decoders smooth the blocks of progressive files.
        assert np.array_equal(Codec().decode(dct)[0].numpy(), pillow_pixels(data))
    assert np.array_equal(pillow_pixels(write_jpeg_bytes(dct)), Codec().decode(dct)[0].numpy())


def test_arithmetic_coding(tmp_path):
    path = str(tmp_path / "a.jpg")
    picture = jpeglib.from_spatial(photo(40, 56))
    picture.samp_factor = "4:2:0"
    picture.write_spatial(path, qt=75, flags=["+ARITH_CODE"])
    data = Path(path).read_bytes()
    assert b"\xff\xc9" in data
    assert np.array_equal(Codec().decode(read_jpeg_bytes(data))[0].numpy(), pillow_pixels(data))


def test_files_with_many_markers():
    data = pillow_file()
    many = data[:2] + b"".join(b"\xff\xe5" + struct.pack(">H", 1000) + bytes(998) for _ in range(300)) + data[2:]
    assert read_jpeg_bytes(many).equal(read_jpeg_bytes(data))


def test_extreme_coefficients_are_written():
    codec = Codec(100)
    values = [(0, 0, -1024), (0, 1, 1016), (5, 0, 1023), (63, 3, -1023), (64, 0, 1023), (128, 0, -1024), (191, 0, 1)]
    dct = codec.from_triples(torch.tensor(values), 16, 16)
    assert read_jpeg_bytes(write_jpeg_bytes(dct)).equal(dct)


def test_threads():
    pictures = [Codec(40).encode(photo(32, 32, seed)) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda dct: read_jpeg_bytes(write_jpeg_bytes(dct)).equal(dct), pictures))


def test_real_photographs(tmp_path):
    for path in real_photographs(10):
        dct = read_jpeg(path)
        write_jpeg(dct, tmp_path / "again.jpg")
        assert read_jpeg(tmp_path / "again.jpg").equal(dct)
        assert np.array_equal(pillow_pixels((tmp_path / "again.jpg").read_bytes()), pillow_pixels(path.read_bytes()))
        triples = dct.to_triples()[0]
        same = DCTImage.from_triples(triples, dct.height, dct.width, dct.luma_table, dct.chroma_table, dct.chroma_step)
        assert same.equal(dct)


@pytest.mark.parametrize("grey", [False, True])
def test_huffman_bytes_against_pillow(grey):
    for quality, seed in ((20, 1), (50, 2), (90, 3)):
        picture = photo(64, 64, seed)[..., 0] if grey else photo(64, 64, seed)
        whole = len(pillow_jpeg(picture, quality, optimize=True))
        blank = len(pillow_jpeg(np.full_like(picture, 128), quality, optimize=True))
        assert huffman_bytes(Codec(quality).encode(picture)) == whole - blank
        assert huffman_bytes(Codec(quality).encode(np.full_like(picture, 128))) == 0


# Writing what can't be written ----------------------------------------------------------------


def test_refused_for_writing(tmp_path):
    codec = Codec(100)
    two = codec.encode(np.stack([photo(16, 16, s) for s in (0, 1)]))
    with pytest.raises(ValueError, match="one picture, not 2"):
        write_jpeg(two, tmp_path / "a.jpg")
    for channel, value in ((1, 1024), (70, -1024), (0, 3000), (128, -2048)):
        dct = codec.from_triples(torch.tensor([(channel, 0, value)]), 16, 16)
        with pytest.raises(ValueError, match="too large"):
            write_jpeg(dct, tmp_path / "a.jpg")
    apart = codec.from_triples(torch.tensor([(0, 0, 1024), (0, 1, -1024)]), 16, 16)
    with pytest.raises(ValueError, match="too large"):
        write_jpeg(apart, tmp_path / "a.jpg")
    wide = codec.from_triples(torch.empty(0, 3, dtype=torch.int32), 1, 65_501)
    with pytest.raises(ValueError, match="too large"):
        write_jpeg(wide, tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    dct = Codec().encode(photo(16, 16))
    write_jpeg(dct, path)
    before = path.read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="disk is full"):
        write_jpeg(Codec().encode(photo(16, 16, 1)), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_folders_on_the_way(tmp_path):
    dct = Codec().encode(photo(16, 16))
    write_jpeg(dct, tmp_path / "new" / "a.jpg")
    assert read_jpeg(tmp_path / "new" / "a.jpg").equal(dct)
    with pytest.raises(ValueError, match="a file is in the way"):
        write_jpeg(dct, tmp_path / "new" / "a.jpg" / "b.jpg")


# Reading what can't be read ----------------------------------------------------------------


def with_size(data: bytes, height: int, width: int) -> bytes:
    """Replace the size in the header of a file."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def cmyk() -> bytes:
    return pillow_file("CMYK")


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not a JPEG"),
        (lambda: b"hello", "not a JPEG"),
        (png, "not a JPEG"),
        (lambda: b"\xff\xd8", "cut off"),
        (lambda: b"\xff\xd8\xff\xd9", "cut off"),
        (lambda: pillow_file()[:100], "cut off"),
        (lambda: pillow_file()[:-2], "cut off"),
        (cmyk, "4 colour components"),
        (lambda: pillow_file(keep_rgb=True), "stores RGB"),
        (lambda: with_size(pillow_file(), 65_500, 65_500), "65500×65500 pixels, more than the limit"),
        (lambda: with_size(pillow_file(), 0, 45), "no height or width"),
        (lambda: with_size(pillow_file(), 700, 45), "cut off"),
        (lambda: pillow_file().replace(b"\xff\xc0", b"\xff\xc3", 1), "lossless"),
        (lambda: pillow_file().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1), "not 8-bit"),
    ],
)
def test_refused_for_reading(tmp_path, make, message):
    path = tmp_path / "picture.jpg"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        read_jpeg(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_jpeg(path)


def test_the_pixel_limit():
    data = pillow_file(size=(40, 50))
    assert read_jpeg_bytes(data, max_pixels=2000).height == 40
    with pytest.raises(ValueError, match="limit of 1999"):
        read_jpeg_bytes(data, max_pixels=1999)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"subsampling": 0}])
def test_every_truncation_is_noticed(options):
    data = pillow_file(**options)
    for length in [*range(0, len(data), 17), *range(len(data) - 20, len(data))]:
        with pytest.raises(ValueError, match="the JPEG data"):
            read_jpeg_bytes(data[:length])


def test_unusual_subsampling_is_refused_by_its_factors(tmp_path):
    # No strict decoder supports it, and without one damage would go unnoticed.
    picture = jpeglib.from_spatial(photo(40, 56))
    picture.samp_factor = "4:1:0"
    picture.write_spatial(str(tmp_path / "a.jpg"), qt=75)
    with pytest.raises(ValueError, match=r"subsamples its colours unusually \(factors 4×2, 1×1, 1×1\)"):
        read_jpeg(tmp_path / "a.jpg")


def test_damage_is_refused_or_harmless():
    # Not every flipped bit can be noticed, but each file must give a picture or one clear error.
    data = pillow_file()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(2, len(data))] = rng.integers(256)
        try:
            dct = read_jpeg_bytes(bytes(damaged), max_pixels=10_000_000)
        except ValueError as error:
            refused += 1
            assert str(error).startswith("the JPEG data ")
        else:
            assert len(dct) == 1
    assert refused > 30
