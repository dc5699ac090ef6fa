"""Tests of training on pictures of several sizes and on windows."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.codec.grid import Grid
from dctransformer.data import TripleStore, prepare
from dctransformer.hub.pretrained import read_config, save_model
from dctransformer.model.config import preset
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.training.checkpoint import start_from
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.setup import shape_for
from dctransformer.training.trainer import Trainer
from dctransformer.training.validation import validation_sequences, what_is_scored
from test_data_shapes import mixed_folder
from test_train_processes import SETTINGS, SHAPE, by_two, job


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of four sizes, with long sides of 64 pixels; one size has only one or two pictures."""
    folder = tmp_path_factory.mktemp("train-shapes")
    mixed_folder(folder / "photos", 30)
    prepare(folder / "photos", folder / "data", quality=20, long_side=64, workers=1, progress=False, val_fraction=0.2)
    return folder / "data"


def alone(data: Path, run: Path, triples: int, **changes) -> dict:
    """Train in this process."""
    config = TrainConfig(triples=triples, **{**SETTINGS, **changes})
    return train(data, run, preset("tiny", **SHAPE), config, progress=False)


@pytest.mark.parametrize(
    ("window", "size", "shape", "extent"),
    [(None, 32, (32, 64), (64, 64)), ("32", 32, (), ()), ("48x32", 32, (32, 48), ()), ("64", 32, (32, 64), (64, 64))],
)
def test_the_model_records_what_it_was_trained_on(data, window, size, shape, extent):
    """The config has the most common shape, and the number of trained rows and columns."""
    store = TripleStore.open(data, "train", progress=False)
    config = shape_for(store, preset("tiny"), TrainConfig(window=window))
    assert config.size == size and config.quality == 20
    assert config.trained_shape == (shape or (size, size))
    assert config.trained_extent == (extent or shape or (size, size))
    assert config.prepared == ("" if window is None else "long side 64")
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"sides of up to \d+ pixels, and this model can have 16"):
        shape_for(store, preset("tiny", max_grid=2, size=16), TrainConfig(window=window))


def test_the_size_of_the_training_pictures_is_no_obstacle(data, tmp_path):
    """Runs of versions that did not record it are resumed and get it; models of other sizes can be started from."""
    store, training = TripleStore.open(data, "train", progress=False), TrainConfig(window="32", **SETTINGS)
    shape = shape_for(store, preset("tiny", **SHAPE), training)
    folder = RunFolder(tmp_path / "run")
    folder.prepare(dataclasses.replace(shape, prepared=""), training, "set")
    folder.checkpoint.touch()
    folder.prepare(shape, training, "set")
    assert read_config(folder.path).prepared == "long side 64"
    with pytest.raises(ValueError, match="differs in prepared"):
        folder.prepare(dataclasses.replace(shape, prepared="32x32"), training, "set")
    save_model(DCTransformer(dataclasses.replace(shape, prepared="144x144")), tmp_path / "before")
    start_from(DCTransformer(shape), str(tmp_path / "before"))


def test_two_processes_train_as_one_and_resume_exactly(data, tmp_path, monkeypatch):
    """Two processes equal one on buckets, one with fewer pictures than processes, and on windows."""
    step = Trainer.step

    class Killed(Exception):
        """Simulates a power failure."""

    def killed(self: Trainer, *args):
        if self.progress.step == 2:
            raise Killed
        return step(self, *args)

    alike = {}
    for window in (None, "32"):
        run = functools.partial(alone, data, triples=500, window=window)
        alike[window] = whole = run(tmp_path / f"whole-{window}")
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Trainer, "step", killed)
            run(tmp_path / f"parts-{window}", checkpoint_every=0.0)
        assert run(tmp_path / f"parts-{window}", checkpoint_every=0.0) == whole and whole["step"] > 3
        a, b = (load_file(tmp_path / f"{name}-{window}" / "checkpoint.safetensors") for name in ("whole", "parts"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    jobs = [job(data, tmp_path / f"pair-{window}", 500, window=window) for window in alike]
    for results in by_two(tmp_path, jobs):
        for whole, result in zip(alike.values(), results, strict=True):
            assert result["step"] == whole["step"]
            assert result["bytes_per_image"] == pytest.approx(whole["bytes_per_image"], rel=1e-4)


def test_bits_of_mixed_sizes_are_those_of_each_size_alone(data):
    """Bits add up over sizes, and pixels are counted by each picture's own size."""
    torch.manual_seed(0)
    store = TripleStore.open(data, "train", progress=False)
    model = DCTransformer(shape_for(store, preset("tiny", **SHAPE), TrainConfig())).eval()
    everything = code_lengths(model, validation_sequences(store, model.config, range(len(store))), batch=5)
    for grid, count in store.grids.items():
        members = store.members(grid)
        assert len(members) == count
        part = code_lengths(model, validation_sequences(store, model.config, members), batch=7)
        assert torch.allclose(part.bits, everything.bits[members], rtol=1e-5)
        assert torch.equal(part.triples, everything.triples[members])
        assert set(part.pixels.tolist()) == {256 * grid.mcus} == set(everything.pixels[members].tolist())
    summary = everything.summary()
    pixels = sum(256 * grid.mcus * count for grid, count in store.grids.items())
    assert summary["bits_per_pixel"] == pytest.approx(float(everything.bits.sum()) / pixels)


def test_the_log_states_what_validation_scores(data, tmp_path, capsys):
    """Validation scores whole pictures or centre windows, and their Huffman bytes."""
    store = TripleStore.open(data, "train", progress=False)
    assert what_is_scored(store, TrainConfig()) == "validation scores whole pictures (4 sizes, most often 64x32)"
    sentence = "validation scores the window of 48x32 pixels at the centre of each picture"
    assert what_is_scored(store, TrainConfig(window="48x32")) == sentence
    config = TrainConfig(triples=300, **{**SETTINGS, "window": "48x32"})
    scores = train(data, tmp_path / "run", preset("tiny", **SHAPE), config, progress=True)
    assert sentence in capsys.readouterr().out
    assert 0 < scores["huffman_bytes_per_image"] < store.huffman_bytes.mean()
    grids = {s.grid for s in validation_sequences(store, preset("tiny"), range(len(store)), Grid(2, 3))}
    assert grids == {Grid(2, 3), Grid(2, 2), Grid(2, 1)} & grids and len(grids) >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "128"], "a window of 128x128 pixels is larger than every picture (the largest is 64x64)"),
        (["--window", "100x64"], "window 100x64 is not a positive multiple of 16 pixels each way; choose 96x64"),
        (["--window", "32", "--starts", "early"], "early starts are for whole pictures"),
    ],
)
def test_windows_that_are_refused(data, tmp_path, capsys, options, message):
    """Invalid windows are refused in one sentence with exit status 2, without a run folder."""
    for split in ("train", "validation"):
        TripleStore.open(data, split, progress=False)  # derives the triples, which otherwise shows a progress bar
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data", str(data), "--run", str(tmp_path / "run"), "--preset", "tiny", *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
