"""Tests of JPEG files as phones, cameras and old software write them."""

from __future__ import annotations

import dataclasses
import io
import struct

import jpeglib
import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer.codec import Codec, DCTImage, read_jpeg_bytes, write_jpeg_bytes
from dctransformer.codec.segments import SOS, segments
from dctransformer.tasks.info import describe
from pictures import photo, pillow_jpeg, pillow_pixels


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """Split a file after the header of its first scan; the first part comes as segments."""
    parts = []
    for segment in segments(data):
        parts.append(data[segment.start - 4 : segment.start + len(segment.body)])
        if segment.marker == SOS:
            break
    return parts, data[2 + sum(map(len, parts)) :]


def joined(parts: list[bytes], rest: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(parts) + rest


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}])
def test_scan_headers_of_zeros_in_sequential_files(options, capfd):
    data = pillow_jpeg(photo(64, 64), 75, **options)
    parts, rest = cut(data)
    parts[-1] = parts[-1][:-3] + b"\0\0\0"
    assert read_jpeg_bytes(joined(parts, rest)).equal(read_jpeg_bytes(data))
    assert capfd.readouterr() == ("", "")


def stray_bytes() -> dict[str, bytes]:
    data = pillow_jpeg(photo(64, 64), 75)
    parts, rest = cut(data)
    return {
        "three zeros before the end": data[:-2] + bytes(3) + data[-2:],
        "zeros before the end": data[:-2] + bytes(258) + data[-2:],
        "zeros between segments": joined([parts[0], b"\0\0", *parts[1:]], rest),
        "fill bytes": joined([parts[0], b"\xff\xff", *parts[1:]], rest),
        "JFIF 3.1": data.replace(b"JFIF\0\1", b"JFIF\0\3"),
        "zeros behind the end": data + bytes(50_000),
        "another picture behind the end": data + pillow_jpeg(photo(64, 64, 1), 75),
        "tables behind the frame": joined(
            [part for part in parts[:-1] if part[1] != 0xDB] + [part for part in parts if part[1] == 0xDB] + parts[-1:],
            rest,
        ),
        "tables twice": joined([part for part in parts if part[1] == 0xDB] + parts, rest),
    }


@pytest.mark.parametrize("name", stray_bytes())
def test_files_with_stray_bytes_are_read(name, capfd):
    expected = read_jpeg_bytes(pillow_jpeg(photo(64, 64), 75))
    assert read_jpeg_bytes(stray_bytes()[name]).equal(expected)
    assert capfd.readouterr() == ("", "")


def test_files_with_lost_coefficients_are_refused(capfd):
    data = pillow_jpeg(photo(64, 64), 75)
    parts, rest = cut(data)
    for damaged, message in [
        (data[:-2] + b"\x55" * 300 + data[-2:], "extraneous bytes"),
        (joined(parts, rest[:200] + b"\xff\xd9"), "premature end"),
        (joined(parts, rest[:-2]), "cut off"),
        (joined([*parts[:-1], parts[-1][:2] + b"\x00\x08\x01" + parts[-1][5:7] + parts[-1][-3:]], rest), "once"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_jpeg_bytes(damaged)
    assert capfd.readouterr() == ("", "")


def test_the_first_scans_of_a_progressive_file_are_a_picture():
    data = pillow_jpeg(photo(64, 64), 75, progressive=True)
    starts = [segment.start - 4 for segment in segments(data) if segment.marker == SOS]
    known = [int((read_jpeg_bytes(data[:start] + b"\xff\xd9").luma != 0).sum()) for start in starts[1:]]
    whole = int((read_jpeg_bytes(data).luma != 0).sum())
    assert known[0] > 0 and known == sorted(known) and known[-1] <= whole


def test_info_of_files_with_several_pictures(tmp_path):
    file = io.BytesIO()
    first, second = (Image.fromarray(photo(64, 64, seed)) for seed in (0, 1))
    first.save(file, "MPO", save_all=True, append_images=[second], quality=75)
    (tmp_path / "several.jpg").write_bytes(file.getvalue())
    (tmp_path / "one.jpg").write_bytes(pillow_jpeg(photo(64, 64), 75))
    multiple, single = describe(tmp_path / "several.jpg"), describe(tmp_path / "one.jpg")
    assert multiple["format"] == "MPO" and multiple["sampling"] == "4:2:0"
    assert multiple["file_bytes"] == len(file.getvalue())
    for fact in ("triples", "triples_by_band", "luma_table", "chroma_table"):
        assert multiple[fact] == single[fact]


def coarse(top: int) -> DCTImage:
    """A picture with quantisation steps up to ``top``."""
    dct = Codec(95).encode(photo(64, 64))
    table = torch.linspace(40, top, 64).round().int()

    def again(part, old):
        return (part.double() * old / table).round().to(torch.int16)

    assert dct.cb is not None and dct.cr is not None and dct.chroma_table is not None
    return dataclasses.replace(
        dct,
        luma=again(dct.luma, dct.luma_table), cb=again(dct.cb, dct.chroma_table), cr=again(dct.cr, dct.chroma_table),
        luma_table=table, chroma_table=table,
    )  # fmt: skip


@pytest.mark.parametrize("top", [255, 256, 1000, 65_535])
def test_coarse_tables_are_exact_and_quiet(top, tmp_path, capfd):
    dct = coarse(top)
    data = write_jpeg_bytes(dct)
    assert read_jpeg_bytes(data).equal(dct)
    assert np.array_equal(pillow_pixels(data), Codec().decode(dct)[0].numpy())
    assert capfd.readouterr() == ("", "")
    # libjpeg itself writes the same bytes, with a warning, and numbers the components from 0.
    (tmp_path / "a.jpg").write_bytes(data)
    picture = jpeglib.read_dct(str(tmp_path / "a.jpg"))
    picture.load()
    picture.markers = []
    picture.write_dct(str(tmp_path / "b.jpg"), flags=["+OPTIMIZE_CODING"])
    other = (tmp_path / "b.jpg").read_bytes()
    assert len(other) == len(data) and sum(a != b for a, b in zip(data, other, strict=True)) == 6


def test_only_one_table_is_coarse(capfd):
    dct = dataclasses.replace(coarse(1000), luma_table=torch.full((64,), 7, dtype=torch.int32))
    assert read_jpeg_bytes(write_jpeg_bytes(dct)).equal(dct)
    assert capfd.readouterr() == ("", "")


SAMPLING = {
    (2, 2, 1, 1, 1, 1): "4:2:0", (2, 2, 2, 1, 2, 1): "4:2:2", (2, 1, 1, 1, 1, 1): "4:4:0", (1, 2, 1, 2, 1, 2): "4:4:4",
    (1, 4, 1, 1, 1, 1): "4:1:1", (4, 1, 1, 1, 1, 1): "4:4:1",
    (2, 4, 1, 1, 1, 1): "factors 4×2, 1×1, 1×1", (1, 3, 1, 1, 1, 1): "factors 3×1, 1×1, 1×1",
    (3, 1, 1, 1, 1, 1): "factors 1×3, 1×1, 1×1", (1, 1, 2, 2, 2, 2): "factors 1×1, 2×2, 2×2",
    (2, 2, 2, 1, 1, 2): "factors 2×2, 1×2, 2×1",
}  # fmt: skip
"""Factors (down, across) of Y, Cb and Cr, and the sampling that they are or what the refusal names."""


@pytest.mark.parametrize("factors", SAMPLING)
@pytest.mark.parametrize("size", [(41, 59), (1, 1), (17, 33), (8, 64), (200, 25)])
def test_sampling_factors(size, factors, tmp_path, capfd):
    picture = jpeglib.from_spatial(photo(*size))
    picture.samp_factor = np.array(factors, dtype=np.int32).reshape(3, 2)
    picture.write_spatial(str(tmp_path / "a.jpg"), qt=75)
    data = (tmp_path / "a.jpg").read_bytes()
    if SAMPLING[factors].startswith("factors"):
        with pytest.raises(ValueError, match=SAMPLING[factors]):
            read_jpeg_bytes(data)
    else:
        dct = read_jpeg_bytes(data)
        assert dct.sampling == SAMPLING[factors]
        assert np.array_equal(Codec().decode(dct)[0].numpy(), pillow_pixels(data))
        assert read_jpeg_bytes(write_jpeg_bytes(dct)).equal(dct)
    assert capfd.readouterr() == ("", "")


def test_sampling_that_no_baseline_file_holds(capfd):
    zeros = torch.zeros(1, 4, 4, 64, dtype=torch.int16)
    table = torch.ones(64, dtype=torch.int32)
    dct = DCTImage(zeros, zeros[:, :1, :1], zeros[:, :1, :1], table, table, 32, 32, (4, 4))
    with pytest.raises(ValueError, match="too coarse"):
        write_jpeg_bytes(dct)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"progressive": True}])
@pytest.mark.parametrize("size", [(9, 41), (17, 17), (64, 64), (1, 9)])
def test_grey_files_with_factors(size, options):
    plain = pillow_jpeg(photo(*size)[..., 0], 75, **options)
    data = bytearray(plain)
    [frame] = [s.start for s in segments(plain) if s.marker in (0xC0, 0xC2)]
    data[frame + 7] = 0x22
    dct = read_jpeg_bytes(bytes(data))
    assert dct.sampling == "grey" and dct.equal(read_jpeg_bytes(plain))
    if not options.get("progressive"):
        assert np.array_equal(Codec().decode(dct)[0].numpy(), pillow_pixels(bytes(data)))


def test_metadata_never_reaches_libjpeg(capfd):
    data = pillow_jpeg(photo(16, 16), 75)
    odd = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in [(0xE0, b"JFIF\0\x09\x09"), (0xEE, b"Adobe\0\0\0\0\0\0\x07"), (0xE1, b"Exif\0\0\xff\xd9")]
    )
    assert read_jpeg_bytes(data[:2] + odd + data[2:]).equal(read_jpeg_bytes(data))
    assert capfd.readouterr() == ("", "")
