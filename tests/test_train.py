"""Training: it learns, it resumes exactly, and it refuses what doesn't fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dctransformer.data import prepare
from dctransformer.data.store import TripleStore
from dctransformer.model.config import preset
from dctransformer.train import Steps, train
from dctransformer.train_config import TrainConfig
from pictures import photo

QUICK = {"batch": 8, "eval_images": 3, "eval_every": 4000, "sample_every": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of 40 made pictures in two classes, 32 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(40, 40, i)).save(path)
    out = tmp_path_factory.mktemp("data") / "set"
    prepare(folder, out, size=32, quality=30, val_fraction=0.2, workers=1, progress=False)
    return out


def metrics_of(run: Path) -> list[dict]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_bits_and_fills_the_run_folder(data: Path, tmp_path: Path) -> None:
    """Bytes an image fall on validation; weights, settings, curves and samples are there."""
    run = tmp_path / "run"
    config = TrainConfig(triples=40_000, **{**QUICK, "sample_every": 30_000}, lr=5e-3, warmup=10)
    final = train(data, run, preset("tiny"), config, progress=False)
    scores = [m["validation/bytes_per_image"] for m in metrics_of(run) if "validation/bytes_per_image" in m]
    assert scores[-1] < 0.7 * scores[0]
    assert final["finished"] and final["images"] == len(TripleStore.open(data, "validation"))
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "model.safetensors", "train.json", "checkpoint.safetensors", "samples"} <= names
    sheet = Image.open(next((run / "samples").iterdir()))
    assert sheet.width > 100
    assert not list(run.rglob("*.part"))


def test_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    """A run that is killed half-way and resumed ends with the same weights, bit for bit."""
    settings = ["--preset", "tiny", "--triples", "14000", "--batch", "8", "--eval-images", "3", "--eval-every", "4000"]
    settings += ["--sample-every", "0", "--model.dropout", "0.1", "--checkpoint-every", "0.001", "--seed", "7"]

    def command(run: Path) -> list[str]:
        return [sys.executable, "-m", "dctransformer.cli", "train", "--data", str(data), "--run", str(run), *settings]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(command(broken), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (broken / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads(safe_progress(broken / "checkpoint.safetensors"))["triples"]
    assert 0 < done < 14_000, "the run was killed too late to show anything"
    subprocess.run(command(broken), check=True, env=environment, capture_output=True)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        a, b = load_file(whole / name), load_file(broken / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    curves = [[(m["step"], m.get("train/bits_per_triple")) for m in metrics_of(run)] for run in (whole, broken)]
    assert [s for s, _ in curves[0]] == sorted(s for s, _ in curves[0])
    assert {s for s, b in curves[0] if b is None} == {s for s, b in curves[1] if b is None}


def safe_progress(path: Path) -> str:
    """The progress that a checkpoint notes."""
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()["progress"]


def test_every_chunk_is_visited_once_an_epoch(data: Path) -> None:
    """The order is a shuffle that depends on the seed and the epoch alone."""
    store = TripleStore.open(data, "train")
    model = preset("tiny", num_labels=2, size=32, quality=30)
    steps = Steps(store, model, TrainConfig(batch=4, seed=1))
    count = len(steps.items)
    seen = np.concatenate([steps.chosen(s) for s in range(-(-2 * count // 4))])
    for epoch in (seen[:count], seen[count : 2 * count]):
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, steps.items))
    assert not np.array_equal(seen[:count], seen[count : 2 * count])
    again = Steps(store, model, TrainConfig(batch=4, seed=1))
    assert torch.equal(again[5].values, steps[5].values)
    other = Steps(store, model, TrainConfig(batch=4, seed=2))
    assert not np.array_equal(other.chosen(0), steps.chosen(0))


def test_micro_batches_give_the_same_step(data: Path, tmp_path: Path) -> None:
    """Accumulated gradients are those of the whole batch."""
    weights = []
    for micro in (None, 3):
        run = tmp_path / f"micro-{micro}"
        train(data, run, preset("tiny"), TrainConfig(triples=1500, micro_batch=micro, **QUICK), progress=False)
        weights.append(load_file(run / "checkpoint.safetensors"))
    for name, value in weights[0].items():
        if name.startswith("weights."):
            torch.testing.assert_close(value, weights[1][name], atol=2e-3, rtol=0)


def test_a_run_of_another_config_is_refused(data: Path, tmp_path: Path) -> None:
    """And nothing of it is changed."""
    run = tmp_path / "run"
    train(data, run, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    before = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=r"another config .*width"):
        train(data, run, preset("tiny", width=64), TrainConfig(triples=1000, **QUICK), progress=False)
    with pytest.raises(ValueError, match=r"another config .*lr"):
        train(data, run, preset("tiny"), TrainConfig(triples=1000, lr=1e-5, **QUICK), progress=False)
    assert before == {p: p.read_bytes() for p in run.iterdir() if p.is_file()}


def test_a_damaged_checkpoint_and_foreign_folders_are_refused(data: Path, tmp_path: Path) -> None:
    """With a sentence each."""
    run = tmp_path / "run"
    train(data, run, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    (run / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes()[:3000])
    with pytest.raises(ValueError, match="damaged"):
        train(data, run, preset("tiny"), TrainConfig(triples=2000, **QUICK), progress=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="other files"):
        train(data, foreign, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    with pytest.raises(ValueError, match="dctransformer prepare"):
        train(tmp_path / "nowhere", tmp_path / "new", preset("tiny"), TrainConfig(**QUICK), progress=False)


def test_a_full_disk_is_one_sentence(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the checkpoint that was there stays whole."""
    run = tmp_path / "run"
    train(data, run, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    before = (run / "checkpoint.safetensors").read_bytes()

    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dctransformer.train.save_file", full)
    with pytest.raises(ValueError, match="disk is full"):
        train(data, run, preset("tiny"), TrainConfig(triples=2000, **QUICK), progress=False)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert not list(run.glob(".*.part"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lr": 0.0}, "lr"),
        ({"batch": 0}, "batch"),
        ({"minutes": -1.0}, "minutes"),
        ({"micro_batch": 99}, "micro_batch"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, says: str) -> None:
    """By name."""
    with pytest.raises(ValueError, match=says):
        TrainConfig(**fields)
