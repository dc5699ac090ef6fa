"""Tests of real-world files: profiles, comments, long texts, pipes, formats that need a package, large pictures."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from dctransformer.codec import read_jpeg_bytes
from dctransformer.data import formats, prepare
from dctransformer.data.images import encode_jpeg, load_image, prepare_image
from dctransformer.tasks.info import describe
from pictures import photo


def file_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def swapped_profile() -> bytes:
    """A colour profile that swaps red and green."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", data[128:132])
    places = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = places[b"rXYZ"] + 4, places[b"gXYZ"] + 4
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


# Colour profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_are_converted_to_srgb(kind):
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    image = load_image(file_of(red, kind, icc_profile=swapped_profile()))
    r, g, b = image.getpixel((9, 9))
    assert r < 60 and g > 240 and b < 60 and image.info == {}


def test_profiles_of_transparent_and_palette_pictures():
    green = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    green.paste((255, 0, 0, 0), (20, 0, 40, 20))
    picture = np.asarray(load_image(file_of(green, icc_profile=swapped_profile())))
    assert picture[9, 9, 1] > 240 and picture[9, 9, 0] < 60 and (picture[9, 30] == 255).all()
    palette = Image.new("RGB", (20, 20), (255, 0, 0)).quantize(4)
    assert load_image(file_of(palette, icc_profile=swapped_profile())).getpixel((5, 5))[1] > 240


def test_srgb_profiles_and_broken_ones_change_no_pixel():
    picture = photo(40, 50)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, lab, b"no profile at all", srgb[:300], b""):
        assert np.array_equal(np.asarray(load_image(file_of(picture, icc_profile=profile))), picture)
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    pixels = np.asarray(load_image(file_of(grey, icc_profile=swapped_profile())))  # a profile of another kind
    assert np.array_equal(pixels[..., 0], grey)


# What is stored -------------------------------------------------------------------------------------------------------


def commented(kind: str, text: str) -> bytes:
    image = Image.fromarray(photo(80, 80))
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", text)
        return file_of(image, pnginfo=info)
    return file_of(image.quantize() if kind == "GIF" else image, kind, comment=text.encode())


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "PNG"])
def test_nothing_of_the_source_but_pixels_is_stored(kind):
    text = "1 Secret Street " * 4500  # 72 kB, more than a JPEG comment can hold
    data = commented(kind, text if kind != "JPEG" else text[:3000])
    plain = prepare_image(commented(kind, "x"), 64, 20)
    assert prepare_image(data, 64, 20) == plain and b"Secret" not in plain
    noted = Image.fromarray(photo(64, 64))
    noted.info = {"comment": b"Secret", "exif": b"Exif\0\0Secret", "xmp": b"Secret", "dpi": (72, 72)}
    assert encode_jpeg(noted, 20) == encode_jpeg(Image.fromarray(photo(64, 64)), 20)
    assert noted.info


# PNG files with long texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "profile", "many"])
def test_long_texts_in_png_files_are_passed_over(kind, tmp_path):
    picture = photo(80, 80)
    info = PngImagePlugin.PngInfo()
    if kind == "profile":
        data = file_of(picture, icc_profile=os.urandom(1_200_000))
    else:
        for _ in range(1 if kind == "text" else 70):
            info.add_text("workflow", "x" * (3_000_000 if kind == "text" else 1_000_000), zip=True)
        data = file_of(picture, pnginfo=info)
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        assert np.array_equal(np.asarray(load_image(source)), picture)


def test_a_damaged_png_file_with_long_texts_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    data = file_of(photo(80, 80), pnginfo=info)
    with pytest.raises(ValueError, match="can't be read"):
        load_image(data[: len(data) // 2])


# Files that are no pictures -------------------------------------------------------------------------------------------


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is not a regular file"):
            load_image(path)
        with pytest.raises(ValueError, match="is not a regular file"):
            describe(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200), "an HEIC picture; to read it: pip install pillow-heif"),
        (b"\xff\x0a" + bytes(50), "a JPEG XL picture; to read it: pip install pillow-jxl-plugin"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page, not a picture"),
        (b"<svg xmlns='x'>", "a drawing; export it as PNG"),
        (b"anything", "not a picture in a format that Pillow knows"),
    ],
)
def test_the_reason_names_the_cure(data, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "register_optional_readers", lambda: frozenset())
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        with pytest.raises(ValueError, match="can't be read") as caught:
            load_image(source, formats=("PNG", "JPEG"))  # without the plugins that are installed here
        assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "data", "reason"),
    [
        ("pillow_heif", b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200), "an HEIC picture that is damaged"),
        ("pillow_jxl", b"\xff\x0a" + bytes(50), "a JPEG XL picture that is damaged"),
    ],
)
def test_errors_of_optional_readers_are_passed_over(module, data, reason, monkeypatch):
    """Errors of optional readers are ignored, because they address developers of the reader."""
    monkeypatch.setattr(formats, "register_optional_readers", lambda: frozenset([module]))

    def fail(*_, **__):
        raise RuntimeError("Generic Error. Please build `libjxl` from source")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=f"can't be read \\({reason}\\)"):
        load_image(data)


def test_jpeg_xl_is_read_where_the_plugin_is_installed():
    pytest.importorskip("pillow_jxl")
    picture = photo(40, 50)
    data = file_of(picture, "JXL", lossless=True)
    script = """if True:
        import sys
        from dctransformer.data.images import load_image
        print(load_image(sys.stdin.buffer.read()).size)
    """
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert done.stdout.split() == [b"(50,", b"40)"]


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_in_proportion_to_the_pixels(tmp_path):
    side, modes = 5000, ("LA", "P", "I;16")
    for mode in modes:
        image = Image.new(mode, (side, side))
        if mode == "P":
            image.info["transparency"] = 0
        image.save(tmp_path / f"{mode}.png", compress_level=1)
    script = """if True:
        import re, sys
        from pathlib import Path
        from dctransformer.data.images import load_image
        def kilobytes(name):
            return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        for path in sys.argv[1:]:
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            before = kilobytes("VmRSS")
            load_image(path)
            print(kilobytes("VmHWM") - before)
    """
    paths = [str(tmp_path / f"{mode}.png") for mode in modes]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, check=True)
    peaks = [int(line) * 1024 / side**2 for line in done.stdout.split()]
    assert len(peaks) == 3 and all(4 < peak < 10 for peak in peaks)  # a picture as it is (1 to 4 bytes), and as RGB (4)


def test_preparing_a_folder_with_a_pipe_ends(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(file_of(photo(40, 40)))
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    info = prepare(tmp_path / "photos", tmp_path / "out", size=32, workers=1, progress=False)
    assert info.skipped == 1 and "not a regular file" in (tmp_path / "out" / "skipped.jsonl").read_text()
    read_jpeg_bytes(prepare_image(tmp_path / "photos" / "a.png", 32, 20))
