"""Tests of loading single pictures: every kind of file is decoded as a viewer shows it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dctransformer import Codec
from dctransformer.codec.jpeg import huffman_bytes, read_jpeg_bytes
from dctransformer.data.images import crop_resize, encode_jpeg, load_image, prepare_image
from pictures import photo, real_photographs


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data) -> np.ndarray:
    image = load_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "TGA"])
def test_lossless_formats_keep_every_pixel(kind):
    picture = photo(30, 41)
    assert np.array_equal(pixels(file_of(Image.fromarray(picture), kind)), picture)


def test_webp_and_gif():
    picture = photo(30, 41)
    assert np.array_equal(pixels(file_of(Image.fromarray(picture), "WEBP", lossless=True)), picture)
    palette = Image.fromarray(picture).quantize(16)
    assert np.array_equal(pixels(file_of(palette, "GIF")), np.asarray(palette.convert("RGB")))


def test_path_and_bytes_are_alike(tmp_path):
    data = file_of(Image.fromarray(photo(20, 20)), "PNG")
    (tmp_path / "no_suffix").write_bytes(data)
    assert np.array_equal(pixels(tmp_path / "no_suffix"), pixels(data))
    assert np.array_equal(pixels(str(tmp_path / "no_suffix")), pixels(data))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("TIFF", m) for m in ("L", "1", "P", "CMYK", "YCbCr")]
    + [("PNG", m) for m in ("L", "1", "P")]
    + [("JPEG", m) for m in ("L", "CMYK", "YCbCr")],
)
def test_other_colour_modes(kind, mode):
    image = Image.fromarray(photo(24, 24)).convert(mode)
    data = file_of(image, kind)
    try:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError:
        pytest.skip("this version of Pillow does not read the file that it writes (YCbCr TIFF in 12.3)")
    assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(kind):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    result = pixels(file_of(Image.fromarray(ramp), kind))
    assert np.abs(result[..., 0] - ramp / 257).max() <= 0.5
    assert result.min() == 0 and result.max() == 255


def test_big_endian_sixteen_bit_grey():
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(">u2")
    image = Image.frombytes("I;16B", (8, 8), ramp.tobytes())
    assert np.abs(pixels(file_of(image, "TIFF"))[..., 0] - ramp / 257).max() <= 0.5


def test_sixteen_bit_colour_png():
    # Pillow can't write one: build it.
    rows = np.zeros((4, 5, 3), ">u2")
    rows[..., 0], rows[..., 1] = 65535, 32768
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert np.array_equal(pixels(data), np.broadcast_to(np.uint8([255, 128, 0]), (4, 5, 3)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0), (-3.0, 9.0)])
def test_float_and_integer_grey(low, high):
    ramp = np.linspace(low, high, 256).reshape(16, 16)
    expected = np.linspace(0, 255, 256).reshape(16, 16)
    result = pixels(file_of(Image.fromarray(ramp.astype(np.float32)), "TIFF"))
    assert np.abs(result[..., 0].astype(float) - expected).max() <= 0.51
    if high > 1 and low == 0:
        whole = np.rint(ramp).astype(np.int32)
        result = pixels(file_of(Image.fromarray(whole), "TIFF"))
        assert np.abs(result[..., 0].astype(float) - expected).max() <= 0.51


def test_float_that_is_not_a_number_is_refused():
    broken = np.full((8, 8), np.nan, np.float32)
    with pytest.raises(ValueError, match="not numbers"):
        load_image(file_of(Image.fromarray(broken), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_places_become_white(mode):
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:, :8] = [20, 120, 20, 255]
    picture[:, 8:] = [120, 20, 20, 0]
    image = Image.fromarray(picture)
    if mode == "P":
        index = Image.fromarray(np.repeat(np.uint8([[0] * 8 + [1] * 8]), 16, axis=0), "L").convert("P")
        index.putpalette([20, 120, 20, 120, 20, 20])
        data = file_of(index, "PNG", transparency=1)
    elif mode == "RGB":
        data = file_of(image.convert("RGB"), "PNG", transparency=(120, 20, 20))
    elif mode == "L":
        grey = Image.fromarray(np.repeat(np.uint8([[77] * 8 + [5] * 8]), 16, axis=0))
        data = file_of(grey, "PNG", transparency=5)
    else:
        data = file_of(image.convert(mode), "PNG")
    result = pixels(data)
    assert (result[:, 8:] == 255).all()
    assert (result[:, :8] < 130).all()


def test_half_transparent_is_blended_with_white():
    picture = np.full((8, 8, 4), [100, 0, 200, 128], np.uint8)
    expected = np.array([100, 0, 200]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(pixels(file_of(Image.fromarray(picture), "PNG")) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation(orientation, kind):
    upright = photo(24, 40)
    turn = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(turn[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    result = pixels(file_of(Image.fromarray(stored), kind, exif=exif, **options))
    assert result.shape == upright.shape
    assert np.abs(result.astype(int) - upright).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the damage
def test_damaged_exif_does_not_matter():
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"
    data = file_of(Image.fromarray(photo(16, 16)), "JPEG", exif=exif)
    assert pixels(data).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("cut", [0, 3, 100, -40])
def test_cut_off_files_are_refused(tmp_path, cut):
    data = file_of(Image.fromarray(photo(64, 64)), "JPEG")[: cut or 0]
    (tmp_path / "cut.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"cut\.jpg can't be read \(.+\); replace or remove it"):
        load_image(tmp_path / "cut.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the damage
def test_flipped_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    image = Image.fromarray(photo(40, 40))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        good = np.frombuffer(file_of(image, kind), np.uint8)
        for _ in range(40):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 3)] = rng.integers(0, 256, 3)
            try:
                load_image(bad.tobytes())
            except ValueError as error:
                assert "\n" not in str(error)


def test_missing_file():
    with pytest.raises(ValueError, match="there is no file nowhere"):
        load_image("nowhere.png")


def test_enormous_header_is_refused_without_memory(tmp_path):
    data = bytearray(file_of(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    (tmp_path / "huge.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"huge\.jpg has more than 178 million pixels; shrink it"):
        load_image(tmp_path / "huge.jpg")


# Crop, resize, encode -------------------------------------------------------------------------------------------------


def test_crop_is_centred_and_square():
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, 30:60] = 255
    assert (np.asarray(crop_resize(Image.fromarray(picture), 16))[:, 1:-1] > 250).all()
    assert (np.asarray(crop_resize(Image.fromarray(picture.transpose(1, 0, 2)), 16))[1:-1] > 250).all()


@pytest.mark.parametrize("size", [(61, 44), (44, 61), (100, 101)])
def test_flip_before_or_after_is_the_same(size):
    picture = photo(*size)
    flipped_after = np.asarray(crop_resize(Image.fromarray(picture), 32))[:, ::-1]
    flipped_before = np.asarray(crop_resize(Image.fromarray(np.ascontiguousarray(picture[:, ::-1])), 32))
    assert np.abs(flipped_after.astype(int) - flipped_before).max() <= 1


def test_a_picture_of_the_right_size_is_left_alone():
    picture = photo(32, 32)
    assert np.array_equal(np.asarray(crop_resize(Image.fromarray(picture), 32)), picture)


def test_small_pictures_are_enlarged():
    assert crop_resize(Image.fromarray(photo(3, 5)), 48).size == (48, 48)


def test_reduced_decoding_makes_no_visible_difference():
    data = file_of(Image.fromarray(photo(600, 800)), "JPEG", quality=90)
    assert load_image(data, enough=32).size == (200, 150)
    fast = np.asarray(crop_resize(load_image(data, enough=32), 32)).astype(int)
    full = np.asarray(crop_resize(load_image(data), 32)).astype(int)
    assert np.abs(fast - full).mean() < 1.0


@pytest.mark.parametrize("size", [0, -16, 8, 65, 64.0, True])
def test_sizes_that_are_refused(size):
    with pytest.raises(ValueError, match="is not a positive multiple of 16"):
        prepare_image(file_of(Image.new("RGB", (9, 9)), "PNG"), size, 20)


@pytest.mark.parametrize("quality", [0, 101, 20.5, None])
def test_qualities_that_are_refused(quality):
    with pytest.raises(ValueError, match="is not a whole number from 1 to 100"):
        encode_jpeg(Image.new("RGB", (16, 16)), quality)


@pytest.mark.parametrize("quality", [1, 20, 75, 94, 95, 100])
def test_stored_bytes_hold_what_the_codec_gives(quality):
    picture = photo(48, 48, seed=3)
    stored = read_jpeg_bytes(encode_jpeg(Image.fromarray(picture), quality))
    assert stored.equal(Codec(quality).encode(picture))
    assert stored.sampling == "4:2:0"


def test_grey_pictures_get_chroma_that_is_zero():
    stored = read_jpeg_bytes(prepare_image(file_of(Image.fromarray(photo(40, 40)[..., 0]), "PNG"), 32, 50))
    assert stored.cb is not None and stored.cr is not None
    assert not stored.cb.any() and not stored.cr.any() and stored.luma.any()


def test_noise_that_overflows_the_encoder_is_stored_all_the_same():
    noise = (np.random.default_rng(0).integers(0, 2, (512, 512, 3)) * 255).astype(np.uint8)
    assert read_jpeg_bytes(encode_jpeg(Image.fromarray(noise), 94)).equal(Codec(94).encode(noise))


def test_stored_size_is_the_optimised_huffman_size():
    blank = len(encode_jpeg(Image.new("RGB", (64, 64), (128, 128, 128)), 20))
    for seed in range(5):
        data = encode_jpeg(Image.fromarray(photo(64, 64, seed)), 20)
        assert len(data) - blank == huffman_bytes(read_jpeg_bytes(data))


def test_real_photographs_are_stored_exactly():
    for path in real_photographs(8):
        picture = np.asarray(crop_resize(load_image(path, enough=64), 64))
        assert read_jpeg_bytes(prepare_image(path, 64, 35)).equal(Codec(35).encode(picture))
