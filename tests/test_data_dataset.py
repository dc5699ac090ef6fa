"""Tests of data sets, collation, samplers and transforms for custom training loops, and of the loops in the docs."""

from __future__ import annotations

import io
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.data import TripleStore, prepare
from dctransformer.sequence import ChunkBatches, ChunkSampler, DCTImageDataset, ToTriples, collate, cut_chunks
from dctransformer.sequence.conditions import Conditions
from pictures import photo, photo_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """30 synthetic pictures in two classes."""
    return photo_folder(tmp_path_factory.mktemp("home") / "photos", 30, ("ant", "bee"))


@pytest.fixture(scope="module")
def data(photos) -> Path:
    """The prepared data set of these pictures, without held-out ones, next to them."""
    out = photos.parent / "data"
    prepare(photos, out, size=32, quality=30, val_fraction=0, workers=1, progress=False)
    return out


def stored(data: Path) -> list[dict]:
    """The rows of the data set."""
    return pq.read_table(data / "train-00000.parquet").to_pylist()


def test_examples_are_the_stored_jpeg_files(data):
    """Examples have the coefficients, triples and labels of the stored files; batches preserve them."""
    dataset = DCTImageDataset(data)
    files = stored(data)
    assert len(dataset) == len(files) == 30
    for example, row in zip((dataset[i] for i in range(30)), files, strict=True):
        dct = read_jpeg_bytes(row["image"]["bytes"])
        assert torch.equal(example["coefficients"], dct.to_mcus()[0])
        assert torch.equal(example["triples"], dct.to_triples()[0]) and example["label"] == row["label"]
    batch = next(iter(DataLoader(dataset, batch_size=7, collate_fn=collate)))
    assert batch["coefficients"].shape == (7, 4, 6, 64) and batch["triples"].shape == (7, batch["lengths"].max(), 3)
    for i in range(7):
        assert torch.equal(batch["triples"][i, : batch["lengths"][i]], dataset[i]["triples"])
        assert not batch["triples"][i, batch["lengths"][i] :].any() and batch["label"][i] == dataset[i]["label"]
    with pytest.raises(ValueError, match="prepared with quality 30, not 50"):
        DCTImageDataset(data, quality=50)


def test_a_folder_of_pictures_is_what_prepare_makes_of_it(photos, data):
    """A folder of pictures gives the same examples without preparation, in the folder's order."""
    dataset = DCTImageDataset(photos, size=32, quality=30)
    files = {row["image"]["path"]: row for row in stored(data)}
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    for i, name in enumerate(names):
        assert torch.equal(dataset[i]["coefficients"], read_jpeg_bytes(files[name]["image"]["bytes"]).to_mcus()[0])
        assert dataset[i]["label"] == files[name]["label"]


def test_to_triples_is_what_prepare_stores(photos, data):
    """Triples of Pillow images of any mode, arrays and tensors equal the prepared ones, with and without resizing."""
    to_triples = ToTriples(quality=30, size=32)
    assert repr(to_triples) == "ToTriples(quality=30, size=32)"
    for row in stored(data)[:6]:
        image = Image.open(photos / row["image"]["path"])
        expected = read_jpeg_bytes(row["image"]["bytes"]).to_triples()[0]
        for picture in (image, image.convert("RGBA"), np.asarray(image), torch.from_numpy(np.array(image))):
            assert torch.equal(to_triples(picture), expected)
    out = io.BytesIO()
    odd = photo(37, 51)
    Image.fromarray(odd).save(out, "JPEG", quality=30)
    for picture in (odd, Image.fromarray(odd)):
        assert torch.equal(ToTriples(30)(picture), read_jpeg_bytes(out.getvalue()).to_triples()[0])
    for wrong in (odd[..., 0], odd.astype(np.float32), "photo.png"):
        with pytest.raises(ValueError, match=r"uint8 array \[H, W, 3\]"):
            to_triples(wrong)
    with pytest.raises(ValueError, match="multiple of 16"):
        ToTriples(size=40)


def test_sampler_and_batches_agree(data):
    """Chunks cut as the sampler specifies equal those of `ChunkBatches` without random choices."""
    dataset = DCTImageDataset(data)
    sampler = ChunkSampler(dataset.store, stride=24, batch=6, seed=3)
    batches = ChunkBatches(dataset.store, 32, 8, 6, seed=3, flip=False, label_dropout=0)
    for step, pairs in enumerate(islice(sampler, 5)):
        cut = cut_chunks([dataset.sequence(p) for p, _ in pairs], [c for _, c in pairs], 32, 8)
        for name in ("coefficients", "settled", "closed", "ranks", "positions", "values", "context", "labels"):
            assert torch.equal(getattr(cut, name), getattr(batches[step], name)), name


@pytest.mark.parametrize("corner", [1, 2])
def test_the_chunks_of_conditioned_pictures_are_drawn_uniformly(data, monkeypatch, corner):
    """Chunks of a conditioned picture are equally likely; otherwise the sampler's chunk is used."""
    stride, factor = 48, {1: 8, 2: 4}[corner]
    drawn: list[tuple[int, int]] = []

    def record(sequences, index, *_):
        drawn.extend((k, s.chunks(stride)) for s, k in zip(sequences, index, strict=True))

    monkeypatch.setattr("dctransformer.sequence.batches.cut_chunks", record)
    store = TripleStore.open(data, "train", progress=False)
    conditioned = Conditions(none=0, low=1, luma=0, region=0, factors=(factor,), tiled=0, first=0)
    batches = ChunkBatches(store, stride, 0, 64, flip=False, conditions=conditioned)
    for step in range(60):
        batches[step]
    multiple = np.array([(k, count) for k, count in drawn if count > 1])
    assert len(multiple) > 2000 and multiple[:, 0].min() >= 0
    for end in (multiple[:, 0] == 0, multiple[:, 0] == multiple[:, 1] - 1):
        expected = (1 / multiple[:, 1]).sum()
        assert abs(end.sum() / expected - 1) < 0.08
    drawn.clear()
    plain = ChunkBatches(store, stride, 0, 64, flip=False)
    for step in range(5):
        plain[step]
    assert [k for k, _ in drawn] == [int(k) for step in range(5) for k in plain.sampler.chosen(step)[:, 1]]


def test_early_starts_are_drawn_by_their_weights(data):
    """Chunk k of K is drawn with weight max(0.1, (1 - k / K)^3), independently of sharding."""
    store = TripleStore.open(data, "train")
    sampler = ChunkSampler(store, 8, 64, seed=1, starts="early")
    drawn = np.concatenate([sampler.chosen(step) for step in range(400)])
    picture, chunk = sampler.items.T
    weight = np.maximum(0.1, (1 - chunk / sampler.chunks[picture]) ** 3)
    first = [float((items[:, 1] == 0).mean()) for items in (drawn, sampler.items)]
    assert first[0] == pytest.approx(float(weight[chunk == 0].sum() / weight.sum()), rel=0.05)
    assert first[0] > 1.5 * first[1]
    assert np.array_equal(sampler.chosen(3, range(1, 64, 2)), sampler.chosen(3)[1::2])
    with pytest.raises(ValueError, match="early"):
        ChunkSampler(store, 8, 4, starts="early", shuffle="stretches")


@pytest.mark.parametrize("batch", [4, 6])
def test_stretches_keep_each_process_to_its_share(data, batch):
    """Every chunk comes once per epoch; chunks of a row are adjacent; rows do not depend on the process."""
    store = TripleStore.open(data, progress=False)
    whole = ChunkSampler(store, 24, batch, seed=1, shuffle="stretches")
    everything = list(map(tuple, whole.items))
    assert len(everything) == sum(-(-(len(store.triples(i)) + 1) // 24) for i in range(len(store)))
    for row in range(batch):
        first, end = (whole.total * r // batch for r in (row, row + 1))
        stretch = everything[first:end]
        epochs = [[tuple(whole.chosen(e * len(stretch) + k)[row]) for k in range(len(stretch))] for e in range(2)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == stretch and epochs[0] != epochs[1]
    for count in (1, 2):
        share = batch // count
        for rank in range(count):
            rows = range(rank * share, (rank + 1) * share)
            sampler_of_rows = ChunkSampler(store, 24, batch, seed=1, rows=rows, shuffle="stretches")
            for step, pairs in enumerate(islice(sampler_of_rows, 9)):
                assert pairs == list(map(tuple, whole.chosen(step)[rows.start : rows.stop]))
    with pytest.raises(ValueError, match="smaller batch"):
        ChunkSampler(store, 24, 10**6, shuffle="stretches")


def test_the_loops_in_the_documents_run(data, photos, monkeypatch, capsys):
    """All Python blocks of docs/datasets.md run, one after another."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(photos.parent / "cache"))
    text = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/datasets.md", "exec"), names)
    assert "step 2:" in capsys.readouterr().out
