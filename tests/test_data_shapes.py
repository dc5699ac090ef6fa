"""Tests of data sets with pictures of any size, through `prepare`, the store and `info`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dctransformer.cli import main
from dctransformer.codec import Codec, DCTImage
from dctransformer.codec.grid import Grid
from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.data import DatasetInfo, TripleStore, prepare
from dctransformer.data.images import crop_resize, prepare_image
from dctransformer.data.shapes import Shape, parse_size
from dctransformer.sequence import DCTImageDataset, by_grid, collate
from pictures import photo

SIZES = ((100, 150), (150, 100), (120, 120), (60, 90), (200, 90))
"""Heights and widths of the source pictures, in turn."""


def mixed_folder(root: Path, count: int = 20) -> Path:
    """Pictures of several aspect ratios."""
    root.mkdir()
    for i in range(count):
        Image.fromarray(photo(*SIZES[i % len(SIZES)], seed=i)).save(root / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """20 pictures of several aspect ratios."""
    return mixed_folder(tmp_path_factory.mktemp("shapes") / "photos")


@pytest.fixture(scope="module")
def data(photos) -> Path:
    """The prepared data set with long sides of 96 pixels."""
    out = photos.parent / "data"
    prepare(photos, out, quality=30, long_side=96, workers=1, progress=False, val_fraction=0.2)
    return out


@pytest.mark.parametrize(
    ("shape", "source", "size"),
    [
        (Shape.of(64), (100, 75), (64, 64)),
        (Shape.of("192x128"), (100, 75), (192, 128)),
        (Shape.of((48, 32)), (20, 300), (48, 32)),
        (Shape.of(long_side=96), (150, 100), (96, 64)),
        (Shape.of(long_side=96), (100, 150), (64, 96)),
        (Shape.of(long_side=384), (4000, 3000), (384, 288)),
        (Shape.of(long_side=384), (4000, 2999), (384, 272)),
        (Shape.of(short_side=64), (300, 200), (96, 64)),
        (Shape.of(short_side=64), (64, 64), (64, 64)),
        (Shape.of(short_side=64), (65, 1000), (64, 976)),
    ],
)
def test_the_size_that_pictures_get(shape, source, size):
    """Sizes are computed in exact integers, and the resized picture has the computed size."""
    assert shape.result(*source) == size and shape.holds(*size)
    assert crop_resize(Image.new("RGB", source), shape).size == size
    assert Shape(**shape.settings) == shape


@pytest.mark.parametrize("shape", [Shape.of("48x32"), Shape.of(long_side=64), Shape.of(short_side=32)])
@pytest.mark.parametrize("source", [(50, 70), (70, 51), (33, 90)])
def test_the_crop_is_centred_and_keeps_the_aspect_ratio(shape, source):
    """Flipping commutes with the crop, and a circle stays a circle."""
    picture = photo(*source, seed=4)
    cropped = np.asarray(crop_resize(Image.fromarray(picture), shape)).astype(int)
    for axis in (0, 1):
        flipped = np.asarray(crop_resize(Image.fromarray(np.ascontiguousarray(np.flip(picture, axis))), shape))
        assert np.abs(np.flip(cropped, axis) - flipped).max() <= 1
    slope = np.add.outer(np.arange(source[0]), np.arange(source[1]))[..., None].repeat(3, 2).astype(np.uint8)
    inside = np.asarray(crop_resize(Image.fromarray(slope), shape)).astype(float)[4:-4, 4:-4, 0]
    down, across = np.diff(inside, axis=0).mean(), np.diff(inside, axis=1).mean()
    assert down == pytest.approx(across, rel=0.05)


def test_shards_hold_each_pictures_size(photos, data):
    """Sizes are stored in columns and files, and counted in the data set's description."""
    info = DatasetInfo.load(data)
    assert info.size is None and info.target == Shape.of(long_side=96) and info.format == 2
    rows = [row for path in sorted(data.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    for row in rows:
        picture = Image.open(photos / row["image"]["path"])
        assert (row["width"], row["height"]) == Shape.of(long_side=96).result(*picture.size)
        assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (row["width"], row["height"])
        assert row["image"]["bytes"] == prepare_image(photos / row["image"]["path"], Shape.of(long_side=96), 30)
    assert info.size_table == {"96x64": 8, "32x96": 4, "64x96": 4, "96x96": 4}
    assert prepare(photos, data, quality=30, long_side=96, workers=1, progress=False, val_fraction=0.2) == info
    with pytest.raises(ValueError, match="with size long side 96, not 64;"):
        prepare(photos, data, size=64, quality=30, workers=1, progress=False, val_fraction=0.2)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_store_gives_each_picture_its_grid(data, split):
    """Triples, grid and Huffman bytes equal those of the file, whether derived or memory-mapped."""
    for _ in range(2):
        store = TripleStore.open(data, split, progress=False)
        rows = [row for path in sorted(data.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]
        assert len(store) == len(rows) > 1
        for i, row in enumerate(rows):
            dct = read_jpeg_bytes(row["image"]["bytes"])
            assert store.grid(i) == Grid.of_size(row["height"], row["width"]) and store.grid(i) is store.grid(i)
            assert torch.equal(store.triples(i), dct.to_triples()[0])
            blank = prepare_image(_png(Image.new("RGB", (row["width"], row["height"]), (128,) * 3)), dct_shape(dct), 30)
            assert store.huffman_bytes[i] == len(row["image"]["bytes"]) - len(blank)
        assert sum(store.grids.values()) == len(store)


def dct_shape(dct) -> Shape:
    """Height and width of a picture."""
    return Shape.of((dct.width, dct.height))


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_squares_are_described_as_before(photos, tmp_path):
    """Data sets of squares have the same description as before, so that older versions can read them."""
    info = prepare(photos, tmp_path / "out", size="32", quality=30, workers=1, progress=False)
    fields = json.loads((tmp_path / "out" / "dctransformer.json").read_text())
    assert fields["size"] == 32 and fields["format"] == 1 and not {"shape", "sizes"} & set(fields)
    assert info.size_table == {"32x32": 20}
    store = TripleStore.open(tmp_path / "out", progress=False)
    assert store.grids == {Grid(2, 2): len(store)}


def test_a_rectangle_on_the_command_line(photos, tmp_path, capsys):
    """`prepare --size 48x32` works, and `info` shows the table of sizes."""
    out = str(tmp_path / "out")
    main(["prepare", str(photos), out, "--size", "48x32", "--quality", "30", "--workers", "1"])
    assert "; 48x32; 0 skipped" in capsys.readouterr().out
    main(["info", out, "--json"])
    assert json.loads(capsys.readouterr().out)["sizes"] == {"48x32": 20}
    assert TripleStore.open(out, progress=False).grid(0) == Grid(2, 3)


def test_pictures_that_are_too_narrow_are_skipped(tmp_path, capsys):
    """Pictures narrower than an MCU are skipped; a folder with only such pictures is refused."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(photo(60, 80, i)).save(tmp_path / "photos" / f"{i}.png")
    Image.fromarray(photo(9, 200)).save(tmp_path / "photos" / "narrow.png")
    info = prepare(tmp_path / "photos", tmp_path / "out", long_side=64, workers=1, progress=False)
    assert info.skipped == 1 and info.size_table == {"64x48": 3}
    reason = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())["reason"]
    assert reason == "at long side 64 a 200x9 picture has a side of 3 pixels, less than an MCU"
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(tmp_path / "photos"), str(tmp_path / "none"), "--long-side", "64", "--workers", "1"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.endswith(f"can be used; the first: {reason}")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100x64"], "size 100x64 is not a positive multiple of 16 pixels each way; choose 96x64, say"),
        (["--size", "70000x16"], "size 70000x16 is longer than the 65,500 pixels"),
        (["--size", "65504x16"], "size 65504x16 is longer than the 65,500 pixels"),
        (["--size", "large"], "size large is not a positive multiple of 16"),
        (["--long-side", "8"], "long side 8 is not a positive multiple of 16; choose one, say 384"),
        (["--short-side", "-16"], "short side -16 is not a positive multiple of 16"),
        (["--size", "64", "--long-side", "96"], "give one of size, long side and short side, not several"),
    ],
)
def test_shapes_that_are_refused(photos, tmp_path, capsys, options, message):
    """Invalid shapes are refused in one sentence with exit status 2, and nothing is written."""
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(photos), str(tmp_path / "out"), *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [Shape.of((96, 64)), Shape(long_side=384), Shape(short_side=80)])
def test_shapes_are_read_as_they_are_written(shape):
    """A shape comes back from its text, and holds windows up to its sides."""
    assert Shape.parse(str(shape)) == shape
    side = min(shape.settings.values())
    assert shape.can_hold(side, side) and not shape.can_hold(side + 16, side + 16)
    assert shape.can_hold(side, side + 16) == (shape.short_side is not None)


@pytest.mark.parametrize("text", ["1x", "x64", "64x64x64", "64 by 64", "", "1e3"])
def test_texts_that_are_no_size(text):
    """Invalid sizes are quoted as written."""
    with pytest.raises(ValueError, match="is not a positive multiple of 16"):
        parse_size(text)


def test_a_data_set_of_several_sizes(photos, data):
    """`DCTImageDataset` returns each picture's grid; `by_grid` gives batches of one grid."""
    dataset = DCTImageDataset(data, "train")
    whole = DCTImageDataset(photos, size=Shape.of(long_side=96), quality=30)
    assert len(whole) == 20 and whole.store.grids == {Grid(4, 6): 8, Grid(6, 2): 4, Grid(6, 4): 4, Grid(6, 6): 4}
    codec = Codec(30)
    for i in range(len(dataset)):
        rows, cols = dataset[i]["grid"]
        mcus = dataset[i]["coefficients"][None]
        dct = DCTImage.from_mcus(mcus, rows, cols, codec.luma_table, codec.chroma_table)
        assert torch.equal(dct.to_triples()[0], dataset[i]["triples"])
        assert dataset.sequence(i).grid == Grid(rows, cols)
    with pytest.raises(ValueError, match=r"pictures of several sizes .*by_grid"):
        collate([whole[i] for i in range(3)])
    with pytest.raises(ValueError, match="prepared with size long side 96, not 64"):
        DCTImageDataset(data, size=64)
    seen = []
    for batch in DataLoader(whole, batch_sampler=by_grid(whole.store, 3, seed=1), collate_fn=collate):
        seen += [tuple(t[:n].flatten().tolist()) for t, n in zip(batch["triples"], batch["lengths"], strict=True)]
        assert batch["coefficients"].shape[1] == batch["grid"][0] * batch["grid"][1]
    assert len(seen) == 20 and set(seen) == {tuple(whole[i]["triples"].flatten().tolist()) for i in range(20)}
    orders = [list(by_grid(whole.store, 3, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
