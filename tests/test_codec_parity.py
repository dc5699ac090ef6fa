"""Tests of the codec against libjpeg: Pillow's encoder as read by jpeglib, and Pillow's decoder."""

from __future__ import annotations

import jpeglib
import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import Codec
from dctransformer.codec import order, quant_tables, read_jpeg_bytes, value_limits, write_jpeg_bytes
from dctransformer.codec.dct_image import DCTImage, grid_sizes
from pictures import photo, pillow_jpeg, pillow_pixels, real_photographs

QUALITIES = (10, 25, 50, 75, 90, 100)
SIZES = ((64, 64), (48, 80), (1, 1), (2, 3), (7, 16), (17, 31), (33, 8), (50, 49), (65, 100), (127, 90))


@pytest.fixture
def coefficients(tmp_path):
    """Read coefficients with jpeglib: [Y, Cb, Cr] or [Y], int ``[i, j, 64]`` in zigzag order, and the tables."""

    def read(jpeg: bytes) -> tuple[list[np.ndarray], list[np.ndarray]]:
        path = tmp_path / "picture.jpg"
        path.write_bytes(jpeg)
        picture = jpeglib.read_dct(str(path))
        parts = [p for p in (picture.Y, picture.Cb, picture.Cr) if p is not None]
        tables = [picture.get_component_qt(k) for k in range(min(2, len(parts)))]
        return [p.reshape(*p.shape[:2], 64)[..., order.ZIGZAG] for p in parts], [
            t.reshape(64)[order.ZIGZAG] for t in tables
        ]

    return read


def differing(dct: DCTImage, reference: tuple[list[np.ndarray], list[np.ndarray]]) -> int:
    """Number of coefficients that differ from jpeglib's; a different shape counts as an error."""
    parts, tables = reference
    assert len(parts) == len(dct.components)
    for part, reference in zip(dct.tables, tables, strict=True):
        assert np.array_equal(part.numpy(), reference)
    for part, reference in zip(dct.components, parts, strict=True):
        assert part[0].shape == reference.shape
    return sum(int((m[0].numpy() != t).sum()) for m, t in zip(dct.components, parts, strict=True))


def as_grey(picture: np.ndarray, grey: bool) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).convert("L")) if grey else picture


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize("quality", QUALITIES)
def test_encode_is_libjpeg_bit_for_bit(quality, grey, coefficients):
    codec = Codec(quality)
    for seed, (height, width) in enumerate(SIZES):
        picture = as_grey(photo(height, width, seed), grey)
        jpeg = pillow_jpeg(picture, quality)
        assert differing(codec.encode(picture), coefficients(jpeg)) == 0, (height, width)


@pytest.mark.parametrize("quality", QUALITIES)
def test_noise_and_extremes_too(quality, coefficients):
    rng = np.random.default_rng(quality)
    checker = np.indices((40, 40)).sum(0)[..., None] % 2 * np.array([255, 255, 255])
    pictures = [
        rng.integers(0, 256, (41, 57, 3)),
        rng.integers(0, 2, (40, 40, 3)) * 255,
        np.zeros((16, 16, 3)),
        np.full((9, 9, 3), 255),
        checker,
    ]
    for picture in pictures:
        picture = picture.astype(np.uint8)
        jpeg = pillow_jpeg(picture, quality)
        dct = Codec(quality).encode(picture)
        assert differing(dct, coefficients(jpeg)) == 0
        assert np.array_equal(Codec(quality).decode(dct)[0].numpy(), pillow_pixels(jpeg))
        for triples in dct.to_triples():
            assert (triples[:, 2].abs() <= value_limits(quality)[triples[:, 0].long()]).all()


@pytest.mark.parametrize("quality", QUALITIES)
def test_real_photographs(quality, coefficients):
    codec = Codec(quality)
    for k, path in enumerate(real_photographs(12)):
        image = Image.open(path).convert("RGB")
        picture = np.asarray(image)[: image.height - k % 3, : image.width - k % 5]
        for grey in (False, True):
            pixels = as_grey(picture, grey)
            jpeg = pillow_jpeg(pixels, quality)
            dct = codec.encode(pixels)
            assert differing(dct, coefficients(jpeg)) == 0, path
            assert np.array_equal(codec.decode(dct)[0].numpy(), pillow_pixels(jpeg)), path


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_decode_gives_pillows_pixels(grey):
    for quality in QUALITIES:
        codec = Codec(quality)
        for seed, (height, width) in enumerate(SIZES):
            picture = as_grey(photo(height, width, seed), grey)
            pixels = codec.decode(codec.encode(picture))
            assert pixels.dtype == torch.uint8 and tuple(pixels.shape) == (1, height, width, 3)
            assert np.array_equal(pixels[0].numpy(), pillow_pixels(pillow_jpeg(picture, quality))), (quality, height)


@pytest.mark.parametrize("step", [(1, 1), (1, 2), (2, 2), (2, 1), (1, 4), (2, 4), (4, 1)])
@pytest.mark.parametrize("size", [(40, 56), (37, 51), (5, 3), (3, 5), (16, 9), (8, 8)])
def test_decode_of_every_subsampling(step, size):
    """Pixels equal Pillow's; coefficients round-trip except for factors that the strict reader does not support."""
    codec = Codec(80)
    luma_grid, chroma_grid = grid_sizes(*size, step)
    big = codec.encode(photo(8 * luma_grid[0], 8 * luma_grid[1], 1)[..., :1]).luma
    cb, cr = (codec.encode(photo(8 * chroma_grid[0], 8 * chroma_grid[1], k)[..., :1]).luma for k in (2, 3))
    dct = DCTImage(big, cb, cr, codec.luma_table, codec.chroma_table, *size, step)
    jpeg = write_jpeg_bytes(dct)
    if step == (2, 4):
        with pytest.raises(ValueError, match="4×2"):
            read_jpeg_bytes(jpeg)
    else:
        reread = read_jpeg_bytes(jpeg)
        assert reread.equal(dct) and reread.chroma_step == step
    assert np.array_equal(codec.decode(dct)[0].numpy(), pillow_pixels(jpeg))


@pytest.mark.parametrize("quality", [5, 20, 75, 95])
def test_decode_of_made_up_coefficients(quality):
    # An untrained model may sample any value that an encoder could give, anywhere.
    codec = Codec(quality)
    rng = np.random.default_rng(quality)
    limits = codec.value_limits().numpy()
    channel, position = ((rng.random((192, 16)) < 0.2) & (np.arange(192) < 64)[:, None]).nonzero()
    chroma_channel, corner = (rng.random((128, 4)) < 0.2).nonzero()
    channel = np.concatenate([channel, 64 + chroma_channel])
    position = np.concatenate([position, np.array([0, 2, 8, 10])[corner]])
    value = rng.integers(1, limits[channel], endpoint=True) * rng.choice([-1, 1], len(channel))
    dct = codec.from_triples(torch.from_numpy(np.stack([channel, position, value], 1)), 32, 32)
    assert np.array_equal(codec.decode(dct)[0].numpy(), pillow_pixels(write_jpeg_bytes(dct)))


def test_a_batch_is_its_pictures():
    codec = Codec(60)
    pictures = np.stack([photo(39, 52, seed) for seed in range(5)])
    together = codec.encode(torch.from_numpy(pictures))
    assert len(together) == 5
    for k, picture in enumerate(pictures):
        assert codec.encode(picture).equal(together[k])
        assert torch.equal(codec.decode(together)[k], codec.decode(together[k])[0])


def test_accepted_shapes():
    codec = Codec()
    grey = photo(24, 40)[..., 0]
    shapes = [grey, grey[..., None], grey[None, ..., None], torch.from_numpy(grey)]
    first = codec.encode(grey)
    assert first.is_grey and first.sampling == "grey" and (first.height, first.width) == (24, 40)
    assert all(codec.encode(shape).equal(first) for shape in shapes)
    assert codec.encode(photo(24, 40)).sampling == "4:2:0"
    # Views with different strides.
    mirrored = photo(24, 40)[:, ::-1]
    assert codec.encode(mirrored).equal(codec.encode(mirrored.copy()))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 3), np.int64),
        torch.zeros(8, 8, 3),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(wrong):
    with pytest.raises(ValueError, match="pictures are"):
        Codec().encode(wrong)


@pytest.mark.parametrize("quality", [0, 101, -1, 75.0, True, "75", None])
def test_qualities_out_of_range_are_refused(quality):
    with pytest.raises(ValueError, match="1 to 100"):
        Codec(quality)


def test_tables_are_pillows():
    for quality in range(1, 101):
        image = read_jpeg_bytes(pillow_jpeg(photo(8, 8), quality))
        luma, chroma = quant_tables(quality)
        assert torch.equal(image.luma_table, luma) and torch.equal(image.chroma_table, chroma)


def test_value_limits():
    limits = Codec(100).value_limits()
    assert limits.shape == (192,) and limits.dtype == torch.int64
    assert limits[0] == 1024 and limits[1] == 1023
    assert Codec(20).value_limits()[0] == -(-1024 // int(Codec(20).luma_table[0]))
    black = Codec(100).encode(np.zeros((8, 8), np.uint8))
    assert black.luma[0, 0, 0, 0] == -1024
