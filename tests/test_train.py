"""Tests of training: learning, exact resuming, and refusals."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.commands.training import train_defaults
from dctransformer.data import prepare
from dctransformer.data.store import TripleStore
from dctransformer.model.config import preset
from dctransformer.sequence.conditions import Conditions
from dctransformer.training.bands import count_by_band
from dctransformer.training.checkpoint import start_from
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train
from dctransformer.training.setup import Steps, freeze_structure, new_model
from dctransformer.training.trainer import Trainer
from forked import errors_of, forked
from pictures import photo_folder

QUICK = {"precision": "fp32", "batch": 8, "eval_images": 3, "eval_every": 4000, "sample_every": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 40 synthetic pictures in two classes, 32 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    photo_folder(folder, 40, ("even", "odd"))
    out = tmp_path_factory.mktemp("data") / "set"
    prepare(folder, out, size=32, quality=30, val_fraction=0.2, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training on 1,000 triples."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(data, run, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    return run


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def metrics_of(run: Path) -> list[dict]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_bits_and_fills_the_run_folder(data: Path, tmp_path: Path) -> None:
    """Validation bytes per image fall; weights, settings, curves and samples are written."""
    run = tmp_path / "run"
    config = TrainConfig(triples=40_000, **{**QUICK, "sample_every": 30_000, "eval_every": 2000}, lr=5e-3, warmup=10)
    final = train(data, run, preset("tiny"), config, progress=False)
    scores = [m["validation/bytes_per_image"] for m in metrics_of(run) if "validation/bytes_per_image" in m]
    assert scores[-1] < 0.8 * scores[0]
    assert final["bytes_per_image"] < 0.87 * final["huffman_bytes_per_image"]
    assert final["finished"] and final["images"] == len(TripleStore.open(data, "validation"))
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "model.safetensors", "train.json", "checkpoint.safetensors", "samples"} <= names
    sheet = Image.open(next((run / "samples").iterdir()))
    assert sheet.width > 100
    assert not list(run.rglob("*.part"))


def test_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    """A run that is killed and resumed ends with the same weights, bit for bit."""
    settings = ["--preset", "tiny", "--triples", "14000", "--batch", "8", "--eval-images", "3", "--eval-every", "4000"]
    settings += ["--sample-every", "0", "--model.dropout", "0.1", "--checkpoint-every", "0.001", "--seed", "7"]
    settings += ["--precision", "fp32"]

    def command(run: Path) -> list[str]:
        return ["train", "--data", str(data), "--run", str(run), *settings]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main(command(whole))
    with forked(tmp_path / "printed.txt", main, command(broken)) as process:
        while not (broken / "checkpoint.safetensors").exists():
            assert process.exitcode is None, errors_of(tmp_path / "printed.txt")
            time.sleep(0.02)
        time.sleep(0.2)
        process.kill()
    done = json.loads(safe_progress(broken / "checkpoint.safetensors"))["triples"]
    assert 0 < done < 14_000, "the run was killed too late to show anything"
    main(command(broken))
    for name in ("model.safetensors", "checkpoint.safetensors"):
        a, b = load_file(whole / name), load_file(broken / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    curves = [[(m["step"], m.get("train/bits_per_triple")) for m in metrics_of(run)] for run in (whole, broken)]
    assert [s for s, _ in curves[0]] == sorted(s for s, _ in curves[0])
    assert {s for s, b in curves[0] if b is None} == {s for s, b in curves[1] if b is None}


def safe_progress(path: Path) -> str:
    """The progress recorded in a checkpoint."""
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()["progress"]


def test_every_chunk_is_visited_once_an_epoch(data: Path) -> None:
    """The order is a shuffle that depends on the seed and the epoch alone."""
    store = TripleStore.open(data, "train")
    model = preset("tiny", num_labels=2, size=32, quality=30)
    steps = Steps(store, model, TrainConfig(batch=4, seed=1))
    count = len(steps.sampler.items)
    seen = np.concatenate([steps.sampler.chosen(s) for s in range(-(-2 * count // 4))])
    for epoch in (seen[:count], seen[count : 2 * count]):
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, steps.sampler.items))
    assert not np.array_equal(seen[:count], seen[count : 2 * count])
    repeated = Steps(store, model, TrainConfig(batch=4, seed=1))
    assert torch.equal(repeated[5].values, steps[5].values)
    other = Steps(store, model, TrainConfig(batch=4, seed=2))
    assert not np.array_equal(other.sampler.chosen(0), steps.sampler.chosen(0))


def test_micro_batches_give_the_same_step(data: Path, tmp_path: Path) -> None:
    """Accumulated gradients equal those of the whole batch, also with groups by length."""
    weights = []
    for micro in (None, 3, "auto"):
        run = tmp_path / f"micro-{micro}"
        train(data, run, preset("tiny"), TrainConfig(triples=1500, micro_batch=micro, **QUICK), progress=False)
        weights.append(load_file(run / "checkpoint.safetensors"))
    for name, value in weights[0].items():
        if name.startswith("weights."):
            for other in weights[1:]:
                torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5)


def test_a_run_of_another_config_is_refused(data: Path, finished: Path) -> None:
    """A run with another config is refused and left unchanged."""
    before = {p: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=r"another config .*width"):
        train(data, finished, preset("tiny", width=64), TrainConfig(triples=1000, **QUICK), progress=False)
    with pytest.raises(ValueError, match=r"another config .*lr"):
        train(data, finished, preset("tiny"), TrainConfig(triples=1000, lr=1e-5, **QUICK), progress=False)
    assert before == {p: p.read_bytes() for p in finished.iterdir() if p.is_file()}


def test_a_damaged_checkpoint_and_foreign_folders_are_refused(data: Path, finished: Path, tmp_path: Path) -> None:
    """Damaged checkpoints and foreign folders are refused in one sentence."""
    (finished / "checkpoint.safetensors").write_bytes((finished / "checkpoint.safetensors").read_bytes()[:3000])
    with pytest.raises(ValueError, match="damaged"):
        train(data, finished, preset("tiny"), TrainConfig(triples=2000, **QUICK), progress=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="other files"):
        train(data, foreign, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    with pytest.raises(ValueError, match="dctransformer prepare"):
        train(tmp_path / "nowhere", tmp_path / "new", preset("tiny"), TrainConfig(**QUICK), progress=False)


def test_a_full_disk_is_one_sentence(data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is reported in one sentence, and the previous checkpoint is preserved."""
    before = (finished / "checkpoint.safetensors").read_bytes()

    # The exception of safetensors for failed writes, which is not an OSError.
    def full(*_args, **_kwargs) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ValueError, match="disk is full"):
        train(data, finished, preset("tiny"), TrainConfig(triples=2000, **QUICK), progress=False)
    assert (finished / "checkpoint.safetensors").read_bytes() == before
    assert not list(finished.glob(".*.part"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "lr"),
        ({"triples": 5, "minutes": 1.0}, "not both"),
        ({"warmup": 0}, "warmup"),
        ({"seed": -1}, "seed"),
        ({"batch": 0}, "batch"),
        ({"minutes": -1.0}, "minutes"),
        ({"micro_batch": 99}, "micro_batch"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, message: str) -> None:
    """Invalid settings are refused by name."""
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields).check()


def test_a_saved_model_is_not_a_run(data: Path, tmp_path: Path) -> None:
    """Training into the folder of a saved model is refused before anything is written."""
    saved = tmp_path / "saved"
    DCTransformer(preset("tiny")).save_pretrained(saved)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(ValueError, match="other files"):
        train(data, saved, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)
    assert before == {p.name: p.read_bytes() for p in saved.iterdir()}


def test_another_data_set_is_refused(finished: Path, tmp_path: Path) -> None:
    """A run can be resumed only with its own data set."""
    photo_folder(tmp_path / "pictures", 12, ("even", "odd"))
    prepare(tmp_path / "pictures", tmp_path / "set", size=32, quality=30, val_fraction=0.2, workers=1, progress=False)
    with pytest.raises(ValueError, match="data"):
        train(tmp_path / "set", finished, preset("tiny"), TrainConfig(triples=2000, **QUICK), progress=False)


def test_a_finished_run_is_left_alone_and_can_go_on(data: Path, finished: Path) -> None:
    """The same command does nothing more, and a larger budget continues the run."""
    before = (finished / "metrics.jsonl").read_bytes()
    assert train(data, finished, preset("tiny"), TrainConfig(triples=1000, **QUICK), progress=False)["finished"]
    assert (finished / "metrics.jsonl").read_bytes() == before
    more = train(data, finished, preset("tiny"), TrainConfig(triples=2000, **QUICK), progress=False)
    assert more["triples"] >= 2000


def test_divergence_is_one_sentence(data: Path, tmp_path: Path) -> None:
    """Divergence is reported in one sentence, and non-finite weights are not saved."""
    with pytest.raises(ValueError, match="lower --lr"):
        train(data, tmp_path / "run", preset("tiny"), TrainConfig(triples=20_000, lr=1e5, **QUICK), progress=False)


def test_a_failed_gpu_is_one_sentence(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA error in a step is reported in one sentence, and the next call goes on from the checkpoint."""
    run, real = tmp_path / "run", Trainer.step

    def step(trainer: Trainer, *batch: Any) -> torch.Tensor:
        if trainer.progress.step == 3:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for it in the manual")
        return real(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", step)
    config = TrainConfig(triples=2000, checkpoint_every=0.0, **QUICK)
    with pytest.raises(
        ValueError, match=r"cpu failed \(CUDA error: unspecified launch failure\); run the same command"
    ):
        train(data, run, preset("tiny"), config, progress=False)
    monkeypatch.setattr(Trainer, "step", real)
    assert json.loads(safe_progress(run / "checkpoint.safetensors"))["step"] == 3
    assert train(data, run, preset("tiny"), config, progress=False)["finished"]


def test_a_stop_signal_saves_and_the_run_goes_on(data: Path, tmp_path: Path) -> None:
    """SIGTERM finishes the step, saves a checkpoint and exits with 143 and a hint; SIGINT with 130.

    Schedulers send SIGTERM to the processes that cut chunks, too.
    """
    command = ["train", "--data", str(data), "--run", str(tmp_path / "run")]
    command += ["--preset", "tiny", "--minutes", "10", "--batch", "8", "--loaders", "1", "--checkpoint-every", "0.001"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dctransformer.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "run/checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(ValueError, match=rf"in use by process {process.pid} on .* since 20"):
        train(data, tmp_path / "run", preset("tiny"), TrainConfig(minutes=10.0, batch=8), progress=False)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "run the same command again" in out
    DCTransformer.from_pretrained(tmp_path / "run")  # although there was no validation yet
    state = json.loads(safe_progress(tmp_path / "run/checkpoint.safetensors"))
    assert state["step"] == json.loads(out.splitlines()[-1])["step"]
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    with forked(tmp_path / "printed.txt", main, command) as resumed:
        while (tmp_path / "run/metrics.jsonl").read_text() == lines:
            assert resumed.exitcode is None, errors_of(tmp_path / "printed.txt")
            time.sleep(0.05)
        assert resumed.pid is not None
        os.kill(resumed.pid, signal.SIGINT)
        resumed.join(120)
        assert resumed.exitcode == 130


def test_label_dropout_hides_the_given_share_of_labels(data: Path) -> None:
    """Label dropout hides all labels at 1, none at 0 and about half at 0.5."""
    store = TripleStore.open(data, "train")
    model = preset("tiny", num_labels=2, size=32, quality=30)
    for part in (0.0, 0.5, 1.0):
        steps = Steps(store, model, TrainConfig(batch=16, label_dropout=part))
        hidden = torch.cat([steps[i].labels == model.null_label for i in range(12)]).float().mean()
        assert abs(float(hidden) - part) < 0.15


def test_the_average_lags_behind_the_weights(data: Path, tmp_path: Path) -> None:
    """The saved weights are the EMA, which differs from the last weights."""
    run = tmp_path / "run"
    train(data, run, preset("tiny"), TrainConfig(triples=3000, ema=0.9, **QUICK), progress=False)
    state = load_file(run / "checkpoint.safetensors")
    saved = load_file(run / "model.safetensors")
    assert torch.equal(saved["value_head.out.weight"], state["average.value_head.out.weight"])
    assert not torch.equal(saved["value_head.out.weight"], state["weights.value_head.out.weight"])


def test_bf16_training_learns_what_fp32_does(data: Path, tmp_path: Path) -> None:
    """Training in bf16 ends within 2 % of fp32; the likelihood is always computed in fp32."""
    scores = []
    for precision in ("fp32", "bf16"):
        config = TrainConfig(triples=6000, lr=5e-3, warmup=10, **{**QUICK, "precision": precision})
        scores.append(train(data, tmp_path / precision, preset("tiny"), config, progress=False)["bytes_per_image"])
    assert scores[0] != scores[1]
    assert scores[1] == pytest.approx(scores[0], rel=0.02)


def test_auto_is_muon_unless_the_weights_are_sharded() -> None:
    """Each optimiser has its default learning rate, and explicit settings are kept."""
    whole, shared = (TrainConfig().resolved(sharded=sharded) for sharded in (False, True))
    assert (whole.optimizer, whole.lr, shared.optimizer, shared.lr) == ("muon", 5e-3, "adamw", 2e-3)
    asked = TrainConfig(optimizer="adamw", lr=1e-4).resolved(sharded=False)
    assert (asked.optimizer, asked.lr) == ("adamw", 1e-4)
    assert whole.resolved(sharded=False) == whole
    with pytest.raises(ValueError, match="--parallel ddp or --optimizer adamw"):
        TrainConfig(optimizer="muon").resolved(sharded=True)


def test_muon_learns_and_resumes_exactly(data: Path, tmp_path: Path) -> None:
    """Muon's momentum is in the checkpoint, so a resumed run equals an uninterrupted one."""
    store, model = TripleStore.open(data, "train"), preset("tiny", quality=30, size=32, num_labels=2)
    config = TrainConfig(triples=6000, optimizer="muon", lr=5e-3, warmup=5, batch=8, precision="fp32")
    steps = Steps(store, model, config)
    once, twice = (Trainer(new_model(model, 0), config) for _ in range(2))
    nats = [float(once.step(steps[k % 3]).sum()) for k in range(30)]
    assert nats[-1] < 0.8 * nats[2]
    for k in range(20):
        twice.step(steps[k % 3])
    twice.save(tmp_path / "checkpoint.safetensors")
    resumed = Trainer(new_model(model, 1), config)
    resumed.load(tmp_path / "checkpoint.safetensors")
    for k in range(20, 30):
        resumed.step(steps[k % 3])
    assert all(torch.equal(a, b) for a, b in zip(once.model.parameters(), resumed.model.parameters(), strict=True))
    assert "momentum_buffer" in resumed.optimizer.state_of(resumed.model.encoder.layers[0].attention.inner.query.weight)
    assert "exp_avg" in resumed.optimizer.state_of(resumed.model.value_head.out.weight)


def test_a_mixture_of_conditions_depends_on_the_step_alone(data: Path) -> None:
    """All conditions occur, every chunk has predictions, and steps are reproducible."""
    model = preset("tiny", quality=30, size=32, num_labels=2)
    config = TrainConfig(batch=4)
    steps, repeated = (Steps(TripleStore.open(data, "train"), model, config) for _ in range(2))
    given = 0
    for k in range(40):
        batch, same = steps[k], repeated[k]
        assert torch.equal(batch.closed, same.closed) and torch.equal(batch.values, same.values)
        assert bool(batch.predicted.any(1).all())
        given += int(batch.closed.any((1, 2, 3)).sum())
    assert 0.35 < given / 160 < 0.75


def test_the_config_records_the_trained_conditions(data: Path, tmp_path: Path) -> None:
    """The config lists the trained conditions, so that other tasks can be refused."""
    only = TrainConfig(triples=200, batch=2, conditions=Conditions(none=1, low=1, luma=0, region=0, factors=(2,)))
    train(data, tmp_path / "run", preset("tiny"), only, progress=False)
    assert DCTransformer.from_pretrained(tmp_path / "run").config.conditions == ("none", "low4")


def test_starting_from_another_model(data: Path, tmp_path: Path) -> None:
    """Weights are copied and classes matched by name; another shape is refused."""
    train(data, tmp_path / "first", preset("tiny", texture_from=2), TrainConfig(triples=300, batch=2), progress=False)
    first = DCTransformer.from_pretrained(tmp_path / "first")
    config = TrainConfig(triples=300, batch=2, init=str(tmp_path / "first"))
    shape = dataclasses.replace(first.config, num_labels=2, label_names=(first.config.label_names[1], "new"))
    model = new_model(shape, 1)
    start_from(model, str(tmp_path / "first"))
    before, now = first.label.weight, model.label.weight
    assert torch.equal(now[0], before[1]) and torch.equal(now[1], before[-1]) and torch.equal(now[2], before[-1])
    assert torch.equal(model.value_head.out.weight, first.value_head.out.weight)
    assert torch.equal(Trainer(model, config).ema.value_head.out.weight, first.value_head.out.weight)
    names = ("texture.label", "texture.use_label")
    for table, old in ((model.get_submodule(name), first.get_submodule(name)) for name in names):
        assert torch.equal(table.weight[0], old.weight[1]) and torch.equal(table.weight[2], old.weight[-1])
    start_from(new_model(dataclasses.replace(shape, windows=True, size=16), 1), str(tmp_path / "first"))
    chosen = train_defaults(["train", "--data", "data", "--init", str(tmp_path / "first")]).model
    assert chosen.width == first.config.width != train_defaults(["train"]).model.width
    assert train_defaults(["--preset", "base", "--init", str(tmp_path / "first")]).model.width > 2 * chosen.width
    with pytest.raises(ValueError, match=r"\(width 32 instead of 48\).*--model options"):
        train(data, tmp_path / "third", preset("tiny", width=48, texture_from=2), config, progress=False)
    assert not (tmp_path / "third").exists()
    with pytest.raises(ValueError, match=f"--quality {first.config.quality}"):
        start_from(new_model(dataclasses.replace(shape, quality=90), 1), str(tmp_path / "first"))


def test_training_texture_alone(data: Path, tmp_path: Path) -> None:
    """Without structure only the texture's weights change, or a new texture network starts next to the structure."""
    shape = preset("tiny", texture_from=2)
    train(data, tmp_path / "first", shape, TrainConfig(triples=300, batch=2), progress=False)
    first = DCTransformer.from_pretrained(tmp_path / "first")
    config = TrainConfig(triples=900, batch=2, init=str(tmp_path / "first"), structure=False, lr=0.01)
    train(data, tmp_path / "whole", shape, config, progress=False)
    whole = DCTransformer.from_pretrained(tmp_path / "whole")
    for name, p in whole.named_parameters():
        same = torch.equal(p, first.get_parameter(name))
        assert same != name.startswith("texture.") or not p.numel(), name
    steps = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert not any("train/structure" in step for step in steps)
    assert steps[-1]["final/structure"] > 0

    # Another texture network starts anew next to the structure that is kept.
    wider = dataclasses.replace(shape, texture_width=24, texture_blocks=1)
    train(data, tmp_path / "wider", wider, config, progress=False)
    model = DCTransformer.from_pretrained(tmp_path / "wider")
    assert model.texture.value_out.weight.shape[1] == 24
    assert torch.equal(model.value_head.out.weight, first.value_head.out.weight)
    with pytest.raises(ValueError, match="texture_width"):
        train(data, tmp_path / "x", wider, dataclasses.replace(config, structure=True), progress=False)
    with pytest.raises(ValueError, match="width"):
        train(data, tmp_path / "x", dataclasses.replace(wider, width=48), config, progress=False)
    with pytest.raises(ValueError, match="--init"):
        train(data, tmp_path / "x", shape, dataclasses.replace(config, init=None), progress=False)
    train(data, tmp_path / "triples", preset("tiny"), TrainConfig(triples=100, batch=2), progress=False)
    with pytest.raises(ValueError, match="has no texture"):
        alone = dataclasses.replace(config, init=str(tmp_path / "triples"))
        train(data, tmp_path / "x", preset("tiny"), alone, progress=False)


def test_a_stopped_training_of_texture_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    """A trainer loaded from a checkpoint takes the same steps, and frozen weights need no optimiser state."""
    torch.manual_seed(0)
    network = new_model(preset("tiny", quality=30, size=32, texture_from=2), 0)
    freeze_structure(network)
    config = TrainConfig(batch=2, structure=False, init="x", precision="fp32")
    trainer = Trainer(network, config)
    steps = Steps(TripleStore.open(data, "train"), network.config, config)
    for k in range(2):
        trainer.step(steps[k])
    trainer.save(tmp_path / "checkpoint.safetensors")
    other = new_model(network.config, 1)
    freeze_structure(other)
    resumed = Trainer(other, config)
    resumed.load(tmp_path / "checkpoint.safetensors")
    for k in (2, 3):
        assert torch.equal(trainer.step(steps[k]), resumed.step(steps[k]))
    for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_texture_scores_do_not_depend_on_the_structure(data: Path) -> None:
    """With and without scoring the chunks, a batch's textures cost the same, and chunks that are not scored nothing."""
    network = new_model(preset("tiny", quality=30, size=32, texture_from=2), 0)
    config = TrainConfig(batch=3, texture=1.0)
    store = TripleStore.open(data, "train")
    both = Steps(store, network.config, config)[1]
    alone = Steps(store, network.config, dataclasses.replace(config, structure=False, init="x", texture=0.3))[1]
    with torch.no_grad():
        (nats, texture), (none, same) = network(both), network(alone)
    assert torch.equal(texture, same) and float(nats.sum()) > 0 and not none.any()
    assert none.shape == nats.shape
    counts, same_counts = count_by_band(both), count_by_band(alone)
    assert same_counts[2:4] == counts[2:4] and not any(same_counts[:2]) and all(counts[:2])


@pytest.mark.parametrize("texture_from", [2, 4])
def test_compiled_stacks_take_the_same_steps(
    texture_from: int, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Traced and differentiated stacks equal the eager ones up to rounding (without slow code generation)."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    store, losses = TripleStore.open(data, "train"), []
    for mode in ("off", "on"):
        model = new_model(preset("tiny", quality=30, size=32, texture_from=texture_from), 0)
        trainer = Trainer(model, TrainConfig(batch=4, compile=mode, precision="fp32"))
        steps = Steps(store, model.config, trainer.config)
        losses.append(torch.stack([trainer.step(steps[k]) for k in range(3)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-3)
