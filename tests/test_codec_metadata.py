"""Tests of orientation, EXIF and colour profiles of JPEG files, which tasks preserve with the coefficients."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from dctransformer import DCTransformer, read_jpeg
from dctransformer.app.limits import Limits
from dctransformer.app.uploads import read_upload
from dctransformer.cli import main
from dctransformer.codec import read_jpeg_bytes, write_jpeg_bytes
from dctransformer.codec.adapt import read_own_coefficients
from dctransformer.codec.metadata import Metadata, read_metadata
from dctransformer.model.config import preset
from dctransformer.sequence.conditions import NAMES
from dctransformer.tasks.edit import Options, colorize, continue_, inpaint
from pictures import photo, pillow_jpeg

BROKEN = {
    "empty": b"Exif\0\0", "twice": b"Exif\0\0Exif\0\0II*\0\x08\0\0\0\0\0", "no header": b"Exif\0\0XXXXXXXX",
    "far offset": b"Exif\0\0II*\0\xff\xff\xff\xff", "text": b"Exif\0\0b'Exif\\x00",
    "cut off": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
}  # fmt: skip
"""EXIF blocks that no parser can read."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    DCTransformer(preset("tiny", size=16, chunk=64, quality=75, conditions=NAMES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def profile() -> bytes:
    """A colour profile that swaps red and green, larger than one segment."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    offsets = {
        bytes(data[132 + 12 * i : 136 + 12 * i]): struct.unpack_from(">I", data, 136 + 12 * i)[0] for i in range(count)
    }
    red, green = offsets[b"rXYZ"] + 8, offsets[b"gXYZ"] + 8
    data[red : red + 12], data[green : green + 12] = data[green : green + 12], data[red : red + 12]
    data += bytes(100_000)
    data[:4] = struct.pack(">I", len(data))
    return bytes(data)


def camera_exif(orientation: int = 1) -> Image.Exif:
    """A typical EXIF block of a camera."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:01:01 00:00:00"
    return exif


def with_block(block: bytes) -> bytes:
    """Add an EXIF block to a JPEG file."""
    return Metadata(exif=block).put_into(pillow_jpeg(photo(32, 16), 75))


@pytest.mark.parametrize("orientation", range(11))
def test_only_orientations_that_rotate_cost_the_coefficients(orientation: int) -> None:
    """Orientations 0 and 9 are undefined and leave the picture unchanged."""
    data = pillow_jpeg(photo(48, 48), 75, exif=camera_exif(orientation))
    assert (read_own_coefficients(data) is None) == (2 <= orientation <= 8)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_inpaint_keeps_the_coefficients_of_files_with_undefined_orientation(model: Path, orientation: int) -> None:
    """Coefficients are preserved, even if the quality differs from the model's."""
    data = pillow_jpeg(photo(32, 32), 90, exif=camera_exif(orientation))
    result = inpaint(model, [data], box=(16, 16, 16, 16))[0].results[0]
    assert np.array_equal(result.luma[0, :2], read_jpeg_bytes(data).luma[0, :2])


def test_inpaint_keeps_the_coefficients_of_files_with_a_wrong_scan_header(model: Path) -> None:
    """Some phones write a spectral selection of 0, which decoders of sequential files ignore."""
    data = pillow_jpeg(photo(32, 32), 90)
    at = data.index(b"\xff\xda")
    header = slice(at + 2 + data[at + 3] - 3, at + 2 + data[at + 3])
    assert data[header] == b"\0\x3f\0"
    result = inpaint(
        model, [data.replace(data[at : header.stop], data[at : header.start] + bytes(3))], box=(16, 16, 16, 16)
    )
    assert np.array_equal(result[0].results[0].luma[0, :2], read_jpeg_bytes(data).luma[0, :2])


@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN)
def test_broken_exif_blocks_are_ignored(block: bytes, recwarn: pytest.WarningsRecorder) -> None:
    """The coefficients are used, nothing is printed, and no version of the picture has the broken block."""
    data = with_block(block)
    kept = read_own_coefficients(data)
    assert kept is not None and kept.equal(read_jpeg_bytes(data))
    assert read_metadata(data) == Metadata()
    assert not recwarn.list


def test_all_exceptions_of_the_exif_parser_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception of the EXIF parser is ignored; older versions of Pillow raise SyntaxError."""

    def fail(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert read_own_coefficients(with_block(b"Exif\0\0XXXXXXXX")) is not None


@pytest.mark.parametrize("command", ["colorize", "inpaint", "likelihood", "info", "prepare"])
def test_commands_are_quiet_about_broken_exif(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Warnings of Pillow about EXIF never reach the terminal."""
    for name, block in BROKEN.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jpg").write_bytes(with_block(block))
    files = [str(path) for path in sorted((tmp_path / "in").iterdir())]
    out = str(tmp_path / "out")
    argv: dict[str, list[list[str]]] = {
        "colorize": [["colorize", str(model), *files, "--out", out, "--json"]],
        "inpaint": [["inpaint", str(model), *files, "--box", "0,0,16,16", "--out", out, "--json"]],
        "likelihood": [["likelihood", str(model), str(tmp_path / "in"), "--json"]],
        "info": [["info", file] for file in files],
        "prepare": [["prepare", str(tmp_path / "in"), out, "--size", "16", "--workers", "1"]],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for line in argv[command]:
            main(line)
    err = capsys.readouterr().err
    assert "EXIF" not in err and "site-packages" not in err and "Traceback" not in err


TASKS: dict[str, Callable[..., Any]] = {
    "inpaint": lambda *a, **k: inpaint(*a, box=(0, 0, 16, 16), **k),
    "colorize": colorize,
    "continue": lambda *a, **k: continue_(*a, bands=1, **k),
}


@pytest.mark.parametrize("task", TASKS)
def test_results_keep_the_profile_and_exif_of_the_file(model: Path, profile: bytes, tmp_path: Path, task: str) -> None:
    """Results with the file's own coefficients keep its profile; the PNG file has the profile too."""
    source = tmp_path / "photo.jpg"
    source.write_bytes(pillow_jpeg(photo(16, 32), 88, exif=camera_exif(), icc_profile=profile, comment=b"private"))
    edit = TASKS[task](model, [source], options=Options(out=tmp_path / "out"))[0]
    jpeg, png = tmp_path / "out" / "photo-0.jpg", tmp_path / "out" / "photo-0.png"
    with Image.open(jpeg) as image:
        assert image.info["icc_profile"] == profile
        assert image.getexif()[ExifTags.Base.Make] == "Camera"
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:01:01 00:00:00"
    assert b"private" not in jpeg.read_bytes()
    assert read_jpeg(jpeg).equal(edit.results[0])
    with Image.open(png) as image:
        assert image.info["icc_profile"] == profile
    second = TASKS[task](model, [source], options=Options(out=tmp_path / "out"))[0]
    assert second.results[0].equal(edit.results[0])


def test_results_of_pixels_are_srgb_and_have_no_profile(model: Path, profile: bytes, tmp_path: Path) -> None:
    """Pixels are converted by the profile when they are read, so keeping it would apply it twice."""
    source = tmp_path / "photo.png"
    Image.fromarray(photo(32, 32)).save(source, icc_profile=profile)
    inpaint(model, [source], box=(0, 0, 16, 16), options=Options(out=tmp_path))
    assert "icc_profile" not in Image.open(tmp_path / "photo-0.jpg").info


def test_the_thumbnail_is_left_out() -> None:
    """The thumbnail is dropped, because it shows the picture before the edit."""
    thumbnail = pillow_jpeg(photo(16, 16), 75)
    first = struct.pack("<HHHI4s", 1, ExifTags.Base.Make, 2, 4, b"Cam\0")
    second = struct.pack("<HHHII", 2, 0x0201, 4, 1, 56) + struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail))
    block = b"Exif\0\0II*\0\x08\0\0\0" + first + struct.pack("<I", 26) + second + bytes(4)
    data = with_block(block + thumbnail)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)  # the test's file is right
    kept = read_metadata(data)
    assert len(kept.exif) == len(block + thumbnail) and not any(kept.exif[-len(thumbnail) :])
    exif = Image.Exif()
    exif.load(kept.exif)
    assert exif[ExifTags.Base.Make] == "Cam" and not exif.get_ifd(ExifTags.IFD.IFD1)


def test_the_page_uses_coefficients_that_need_no_profile(profile: bytes) -> None:
    """The page shows results without a profile, so pictures with one are converted to sRGB."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kept, converted in ((b"", False), (srgb, False), (b"no profile", False), (profile, True)):
        upload = read_upload(pillow_jpeg(photo(32, 32), 75, icc_profile=kept or None), Limits())
        assert isinstance(upload.source, np.ndarray) == converted


def test_a_broken_profile_is_left_out() -> None:
    """A broken profile is dropped; an intact one may span several segments."""
    assert read_metadata(pillow_jpeg(photo(16, 16), 75, icc_profile=b"no profile at all")) == Metadata()


def test_a_named_pipe_is_refused(model: Path, tmp_path: Path) -> None:
    """A named pipe is refused, because reading it would never end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        colorize(model, [tmp_path / "pipe.jpg"])


def test_metadata_changes_no_coefficient(profile: bytes) -> None:
    """Files with metadata have the same coefficients as without."""
    plain = pillow_jpeg(photo(32, 32), 80)
    dct = read_jpeg_bytes(plain)
    data = Metadata(camera_exif().tobytes(), profile).put_into(write_jpeg_bytes(dct))
    assert read_jpeg_bytes(data).equal(dct)
    assert read_metadata(data) == Metadata(camera_exif().tobytes(), profile)
