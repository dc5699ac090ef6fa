"""Tests of every command on pictures of any size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import ranked, scatter
from dctransformer.data import TripleStore, prepare
from dctransformer.data.coefficients import PictureSource
from dctransformer.data.images import crop_resize
from dctransformer.data.shapes import Shape
from dctransformer.evaluate.coders import compare
from dctransformer.evaluate.pictures import open_held_out, open_reference
from dctransformer.hub.pretrained import load_model, save_model
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sequence import Sequence
from dctransformer.sequence.windows import centre_window
from dctransformer.tasks.generate import generate
from dctransformer.tasks.likelihood import likelihood
from test_data_shapes import mixed_folder
from tiny_model import save_tiny_model

UNLABELLED = {"num_labels": 0, "label_names": ()}
MIXED = {"size": 32, "shape": (32, 48), "extent": (48, 48), **UNLABELLED}
WINDOWS = {"size": 32, "shape": (), "extent": (), "windows": True, **UNLABELLED}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures of several aspect ratios."""
    return mixed_folder(tmp_path_factory.mktemp("sizes") / "photos", 36)


@pytest.fixture(scope="module")
def data(photos: Path) -> Path:
    """The prepared data set with long sides of 48 pixels."""
    out = photos.parent / "data"
    prepare(photos, out, quality=30, long_side=48, workers=1, progress=False, val_fraction=0.25)
    return out


def terse_model(folder: Path, **changes) -> Path:
    """A tiny untrained model whose pictures have few triples, so that sampling is quick."""
    model = load_model(save_tiny_model(folder, **changes))
    with torch.no_grad():
        model.channel_head.after.weight -= 2
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for all tasks and mixed sizes, according to its config, most often 48 × 32."""
    return terse_model(tmp_path_factory.mktemp("mixed") / "model", **MIXED)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained, according to its config, on windows of 32 pixels."""
    return terse_model(tmp_path_factory.mktemp("windowed") / "model", **WINDOWS)


@pytest.mark.parametrize(("size", "tiled"), [(None, False), ("48x48", False), ("16x32", False), ("48x64", True)])
def test_sample_makes_files_of_the_size(mixed, tmp_path, capsys, size, tiled):
    """The default is the training size; sizes beyond the model's positions are sampled in tiles."""
    main(
        ["sample", str(mixed), "--out", str(tmp_path / "out"), "--num", "2", "--json", *(["--size", size] * bool(size))]
    )
    files = json.loads(capsys.readouterr().out)
    for name in [*files["files"], *files["pngs"]]:
        assert "{}x{}".format(*Image.open(name).size) == (size or "48x32")
    network = load_model(mixed)
    height, width = (32, 48) if size is None else tuple(map(int, size.split("x")))[::-1]
    samples, _ = generate(network, 2, size=(height, width))
    if not tiled:
        shape = None if size is None else (height, width)
        assert torch.equal(samples.mcus, sample(network, 2, SampleConfig(), size=shape).mcus)
    assert all(torch.equal(a, b) for a, b in zip(samples.triples, samples.dct().to_triples(), strict=True))
    repeated, _ = generate(network, 1, size=(height, width), sampling=SampleConfig(batch=1, workers=1))
    assert torch.equal(repeated.mcus[0], samples.mcus[0]) and not torch.equal(samples.mcus[0], samples.mcus[1])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("100x64", "size 100x64 is not a positive multiple of 16 pixels each way; choose 96x64, say"),
        ("70000x16", "size 70000x16 is longer than the 65,500 pixels"),
        ("48x64", "knows pictures of up to 48x48 pixels, not 48x64, and was not trained to go on from one tile"),
    ],
)
def test_sizes_that_are_refused(tmp_path, capsys, size, message):
    """Invalid sizes are refused in one sentence with exit status 2, and no folder is created."""
    model = save_tiny_model(tmp_path / "model", **MIXED, conditions=("none",))
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(model), "--out", str(tmp_path / "out"), "--num", "1", "--size", size, "--json"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["none", "low2", "luma"])
def test_bits_of_mixed_sizes(mixed, data, given):
    """Bits per pixel use each picture's own size, conditional parts add up, and each size alone gives the same."""
    store = TripleStore.open(data, "validation", progress=False)
    assert len(store.grids) > 1
    summary = likelihood(mixed, data, given=given)
    pixels = float((store.heights.astype(int) * store.widths).sum())
    assert summary["images"] == len(store) and summary["windows"] == 0
    assert summary["bits_per_pixel"] == pytest.approx(summary["bits_per_image"] * len(store) / pixels)
    assert summary["huffman_bytes_per_image"] == pytest.approx(store.huffman_bytes.mean())
    network = load_model(mixed)
    alone = [
        code_lengths(network, [Sequence.from_triples(store.triples(i), store.grid(i), 0)]).bits.sum()
        for i in range(len(store))
    ]
    assert summary["bits_per_image"] == pytest.approx(float(np.mean(alone)), rel=1e-5)
    if given != "none":
        part = summary["given"]
        assert part["sum_bytes_per_image"] == pytest.approx(
            part["given_first_bytes_per_image"] + part["rest_given_bytes_per_image"]
        )
        both = part["given_unconditional_bytes_per_image"] + part["rest_unconditional_bytes_per_image"]
        assert both == pytest.approx(summary["bytes_per_image"], rel=1e-6)


def test_larger_pictures_are_scored_by_their_centres(windowed, data, capsys):
    """Rows and columns beyond the model's positions are not read."""
    main(["likelihood", str(windowed), str(data), "--json"])
    summary = json.loads(capsys.readouterr().out)
    store = TripleStore.open(data, "validation", progress=False)
    assert summary["windows"] == len(store) and summary["bits_per_pixel"] > 0
    pixels = 256 * sum(store.grid(i).within(Grid(2, 2)).mcus for i in range(len(store)))
    assert summary["bits_per_pixel"] == pytest.approx(summary["bits_per_image"] * len(store) / pixels)
    assert summary["huffman_bytes_per_image"] < store.huffman_bytes.mean()
    main(["likelihood", str(windowed), str(data)])
    assert f"of {len(store)} larger ones the window at the centre" in capsys.readouterr().out


def test_a_folder_is_cropped_to_the_models_shape(mixed, photos):
    """A folder of pictures is cropped as by `prepare`."""
    summary = likelihood(mixed, photos, num=3)
    assert summary["size"] == "48x32" and summary["bits_per_pixel"] == pytest.approx(
        summary["bits_per_image"] / 48 / 32
    )  # fmt: skip


def test_a_folder_is_scored_as_if_prepared_like_the_training_pictures(windowed, tmp_path, capsys):
    """Plain folders give a model of windows the same pictures as a data set of its training pictures' size."""
    folder, data, model = mixed_folder(tmp_path / "photos", 12), tmp_path / "data", tmp_path / "model"
    prepare(folder, data, quality=30, long_side=48, workers=1, progress=False, val_fraction=0)
    save_model(load_model(windowed), model)
    assert likelihood(model, folder)["size"] == 32  # an older config: squares, as before
    config = json.loads((model / "config.json").read_text())
    config["model"]["prepared"] = "long side 48"
    (model / "config.json").write_text(json.dumps(config))

    main(["likelihood", str(model), str(folder), "--json"])
    plain, same = json.loads(capsys.readouterr().out), likelihood(model, data, split="train")
    assert plain["size"] == same["size"] == "long side 48" and 0 < plain["windows"] == same["windows"] <= 12
    for name in ("bytes_per_image", "huffman_bytes_per_image", "bits_per_pixel", "triples_per_image"):
        assert plain[name] == pytest.approx(same[name], rel=1e-6)

    shape, window = load_model(model).config, Grid(2, 2)
    references = open_reference(folder, shape), open_reference(data, shape, split="train")
    assert 0 < len(references[0]) == len(references[1]) < 12 == len(open_held_out(folder, shape))
    for pictures in ([r.round_trip for r in references], [r.originals for r in references]):
        first, second = (sorted(bytes(p.numpy()) for p in part.read(0, len(part))) for part in pictures)
        assert first == second
    store = TripleStore.open(data, progress=False)
    centres = [centre_window(store.triples(i), store.grid(i), window) for i in range(12)]
    coded = PictureSource(folder, "validation", shape)
    assert sorted(bytes(scatter(*ranked(triples), grid).numpy()) for triples, grid in centres) == sorted(
        bytes(coded.read(i).mcus.numpy()) for i in range(12)
    )

    figures = ["--data", str(folder), "--features", "small64", "--num", "6", "--metrics", "recall,bits", "--json"]
    main(["evaluate", str(model), *figures])
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["reference"]["size"] == 32 and "larger ones" in result["settings"]["reference"]["crop"]
    assert set(result["scores"]) >= {"floor: codec round trip, against the originals"} and result["bits"]["images"] == 6
    tall = tmp_path / "tall"
    tall.mkdir()
    Image.new("RGB", (40, 90), "red").save(tall / "a.png")
    with pytest.raises(ValueError, match=r"no picture of .* is 32 pixels large at long side 48"):
        open_reference(tall, shape)


def test_reference_pictures_are_those_that_the_model_generates(mixed, data, photos):
    """References are whole pictures of the most common size, before and after the codec."""
    config = load_model(mixed).config
    reference = open_reference(data, config, split="train")
    store = reference.store
    assert 0 < len(reference) == store.grids[Grid(2, 3)] < len(store)
    assert reference.round_trip.read(0, len(reference)).shape == (len(reference), 32, 48, 3)
    assert reference.originals is not None
    original, after = reference.originals.read(0, 2).float(), reference.round_trip.read(0, 2).float()
    assert original.shape == after.shape and (original - after).abs().mean() < 15
    assert [s.grid for s in reference.sequences()] == [Grid(2, 3)] * len(reference)
    held_out = open_held_out(data, config)
    assert len(held_out) == len(held_out.store) > len(held_out.of_grid(Grid(2, 3))) > 0
    assert len({s.grid for s in held_out.sequences()}) > 1


def test_reference_windows_are_at_the_centre(windowed, data, photos):
    """References are the same window before and after the codec; too small pictures are left out."""
    config = load_model(windowed).config
    reference = open_reference(data, config, split="train")
    fitting = [grid for grid in reference.store.grids if grid.within(Grid(2, 2)) == Grid(2, 2)]
    assert 0 < len(reference) == sum(reference.store.grids[grid] for grid in fitting) < len(reference.store)
    assert reference.originals is not None and "of larger ones the window at the centre" in reference.crop
    count = len(reference)
    original, after = reference.originals.read(0, count).float(), reference.round_trip.read(0, count).float()
    assert original.shape == after.shape == (count, 32, 32, 3)
    wrong = (original - after.roll(1, 0)).abs().mean((1, 2, 3))
    assert bool(((original - after).abs().mean((1, 2, 3)) < wrong).all())


def test_classical_coders_subtract_a_blank_picture_of_each_size(mixed, data):
    """The mean over mixed sizes follows from those of single sizes."""
    held_out = open_held_out(data, load_model(mixed).config)
    pictures = [held_out.dct(i, i + 1) for i in range(5)]
    assert len({picture.width for picture in pictures}) > 1
    alone = [compare([picture])[0]["bytes_per_image"] for picture in pictures]
    assert compare(pictures)[0]["bytes_per_image"] == pytest.approx(np.mean(alone))
    assert compare(pictures[::-1])[0]["bytes_per_image"] == pytest.approx(np.mean(alone))


@pytest.mark.parametrize("name", ["mixed", "windowed"])
def test_evaluate_and_report(request, name, data, photos, tmp_path, capsys):
    """Both commands work with several sizes, and name the crop."""
    model = request.getfixturevalue(name)
    options = ["--features", "small64", "--num", "6", "--metrics", "precision,recall,bits", "--batch", "6", "--json"]
    main(["evaluate", str(model), "--data", str(data), "--out", str(tmp_path / "figures.json"), *options])
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["reference"]["size"] == ("48x32" if name == "mixed" else 32)
    assert ("larger ones" in result["settings"]["reference"]["crop"]) == (name == "windowed")
    assert result["bits"]["images"] == 6 and result["bits"]["table"][0]["bits_per_pixel"] > 0
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    main(["report", str(model), "--data", str(data), "--out", str(page), "--num", "6"])
    assert "nearest training pictures" in page.read_text().lower()


def test_data_of_another_size_is_refused_where_sizes_must_match(photos, mixed, tmp_path):
    """The refusal names the size to prepare."""
    prepare(photos, tmp_path / "data", size=32, quality=30, workers=1, progress=False, val_fraction=0.2)
    with pytest.raises(ValueError, match=r"prepared at size 32, the model was trained at 48x32; .*--size 48x32"):
        open_reference(tmp_path / "data", load_model(mixed).config)


@pytest.mark.parametrize(
    "task", [["upscale"], ["colorize"], ["continue", "--bands", "1"], ["inpaint", "--box", "0,0,16,16"]]
)
def test_tasks_on_pictures_beyond_and_within_what_is_known(mixed, tmp_path, capsys, task):
    """Tasks use tiles of the trained shape, or the whole picture if it fits."""
    for width, height in ((48, 32), (80, 32)):
        path = tmp_path / f"{width}.png"
        crop_resize(Image.new("RGB", (90, 90), (200, 40, 90)), Shape.of((width, height))).save(path)
        name, *options = task
        main([name, str(mixed), str(path), "--out", str(tmp_path / name), *options, "--json"])
        result = Image.open(json.loads(capsys.readouterr().out)["files"][0])
        factor = 2 if name == "upscale" else 1
        assert result.size == (factor * width, factor * height)


def test_the_model_describes_its_sizes(mixed, capsys):
    """`info` shows the sizes of a model."""
    main(["info", str(mixed), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["size"], facts["shape"], facts["extent"]) == (32, "48x32", "48x48")
    assert DCTransformer(load_model(mixed).config).config.trained_shape == (32, 48)
