"""Tests of distributed training: equal to one process, and resumable with another number of processes."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dctransformer.codec.grid import Grid
from dctransformer.data import prepare
from dctransformer.model.config import preset
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.texture import sample_texture
from dctransformer.training.config import TrainConfig
from dctransformer.training.distributed import Processes
from dctransformer.training.loop import train
from dctransformer.training.setup import freeze_untrained, new_model
from dctransformer.training.trainer import Trainer
from forked import errors_of, forked
from pictures import photo_folder
from test_model_distribution import triples_of
from test_texture import SMALL, random_picture
from training_process import do_jobs, run_command

SETTINGS = {
    "batch": 4, "eval_images": 3, "eval_every": 900, "sample_every": 0, "precision": "fp32", "lr": 1e-3, "warmup": 5,
    "optimizer": "adamw",
}  # fmt: skip
SHAPE = {"chunk": 24, "overlap": 8, "texture_from": 2, **SMALL}
FIRST, THEN = 1150, 1450
"""Triples of a training, and of its continuation."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 24 synthetic pictures in two classes, 32 pixels."""
    photo_folder(tmp_path_factory.mktemp("pictures"), 24, ("even", "odd"))
    out = tmp_path_factory.mktemp("data") / "set"
    prepare(tmp_path_factory.getbasetemp() / "pictures0", out, size=32, quality=30, val_fraction=0.2, workers=1)
    return out


def alone(data: Path, run: Path, triples: int, **changes) -> dict:
    """Train in this process."""
    config = TrainConfig(triples=triples, **{**SETTINGS, **changes})
    return train(data, run, preset("tiny", **SHAPE), config, progress=False)


def by_two(folder: Path, jobs: list[dict]) -> list[list[dict]]:
    """Run trainings with two processes, and return the results printed by each process."""
    outputs = [folder / f"process-{rank}.txt" for rank in range(2)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(forked(output, do_jobs, rank, 2, folder / "meeting", jobs))
            for rank, output in enumerate(outputs)
        ]
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0, 0], list(map(errors_of, outputs))
        assert not any("Warning" in errors_of(output) for output in outputs), list(map(errors_of, outputs))
    printed = [output.read_text().splitlines() for output in outputs]
    assert len(printed[1]) == len(jobs), "only the first process prints more than results"
    return [[json.loads(line) for line in lines if line.startswith("{")] for lines in printed]


def job(data: Path, run: Path, triples: int, block: str = "modern", **changes) -> dict:
    """The description of a training for `by_two`."""
    config = {**SETTINGS, "triples": triples, **changes}
    return {"data": str(data), "run": str(run), "preset": {**SHAPE, "block": block}, "config": config}


def curve(run: Path) -> list[dict]:
    """Losses and scores of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "triples", "train/bits_per_triple", "train/position", "validation/bytes_per_image")
    return [{k: line[k] for k in keys if k in line} for line in lines]


def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """Losses, scores and weights are equal: replicated, sharded, accumulated and resumed."""
    runs = {name: tmp_path / name for name in ("one", "ddp", "fsdp", "from-one")}
    for run in (runs["one"], runs["from-one"]):
        alone(data, run, FIRST)
    printed = by_two(
        tmp_path,
        [
            job(data, runs["ddp"], FIRST, parallel="ddp", micro_batch=1),
            job(data, runs["fsdp"], FIRST, parallel="fsdp", micro_batch=1, checkpoint_activations=True),
            job(data, runs["from-one"], THEN, parallel="fsdp"),
            job(data, tmp_path / "muon", FIRST, parallel="ddp", optimizer="auto"),
            job(data, tmp_path / "uneven", FIRST, batch=5),
            *(
                job(data, tmp_path / f"paper-{way}", 500, parallel=way, block="paper", texture=0.0)
                for way in ("ddp", "fsdp")
            ),
        ],
    )
    assert printed[0][:4] == printed[1][:4]
    assert "multiple" in printed[0][4]["error"] and printed[1][4] == {"status": 2}
    assert not (tmp_path / "uneven").exists()
    first = curve(runs["one"])
    assert sum("train/position" in line for line in first) >= 1
    for name in ("ddp", "fsdp"):
        assert curve(runs[name]) == [pytest.approx(line, rel=1e-5) for line in first]
    assert curve(tmp_path / "paper-fsdp") == [pytest.approx(line, rel=1e-5) for line in curve(tmp_path / "paper-ddp")]
    alone(data, tmp_path / "muon-alone", FIRST, optimizer="muon")
    lines = curve(tmp_path / "muon-alone")
    assert lines != first
    # Muon makes matrices orthogonal in bf16.
    assert curve(tmp_path / "muon") == [pytest.approx(line, rel=1e-3) for line in lines]
    finals = [alone(data, runs[name], THEN) for name in ("one", "ddp", "fsdp")] + [printed[0][2]]
    weights = [load_file(run / "checkpoint.safetensors") for run in runs.values()]
    for name, final, state in zip(runs, finals, weights, strict=True):
        assert final == pytest.approx(finals[0], rel=1e-5), name
        assert state.keys() == weights[0].keys()
        for key, value in state.items():
            # Adam divides gradients by their magnitude, so the order of summation matters where sums nearly cancel:
            # compare whole tensors.
            error = (value.double() - weights[0][key].double()).norm()
            assert error <= 1e-3 * weights[0][key].double().norm() + 1e-5, f"{name}: {key} differs by {error}"


@pytest.fixture
def group() -> Iterator[Processes]:
    """A group of one process, whose weights are replicated or sharded like those of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    processes = Processes(joined=True)
    try:
        yield processes
    finally:
        processes.leave()


TEXTURED = preset("tiny", quality=20, size=16, num_labels=1, texture_from=2, **SMALL)


def one_picture(blocks: slice, *, texture: bool) -> ChunkBatch:
    """A chunk of a picture that has coefficients in some blocks of its MCU, and its texture."""
    grid, picture = Grid(1, 1), torch.zeros(1, 6, 64, dtype=torch.int16)
    picture[:, blocks] = random_picture(0, 0.3, grid, top=4)[:, blocks]
    sequence = Sequence.from_triples(triples_of(picture, grid), grid, 0)
    batch = cut_chunks([sequence.structure(TEXTURED.texture_rank)], [0], TEXTURED.chunk, TEXTURED.overlap)
    if texture:
        batch.texture = sample_texture([sequence], torch.tensor([0.5]), 3, TEXTURED.texture_rank)
        batch.texture.pictures, batch.texture.first = 1, TEXTURED.texture_rank
    return batch


@pytest.mark.parametrize(
    ("way", "case"), [("ddp", "both"), ("ddp", "luma"), ("ddp", "chroma"), ("ddp", "no texture"), ("fsdp", "both")]
)
def test_all_weights_get_the_gradients_that_processes_exchange(
    way: str, case: str, group: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of luma or chroma alone, and steps without texture, train as in one process, without warnings."""
    blocks = {"luma": slice(0, 4), "chroma": slice(4, 6)}.get(case, slice(None))
    batch, share = one_picture(blocks, texture=case != "no texture"), 0.0 if case == "no texture" else 1.0
    config = TrainConfig(
        batch=1, texture=share, micro_batch=None, precision="fp32", device="cpu", lr=1e-3, warmup=1, optimizer="adamw"
    )
    trainers = [Trainer(new_model(TEXTURED, 0), config)]
    monkeypatch.setattr("dctransformer.training.trainer.choose_parallelism", lambda *_: way)
    model = new_model(TEXTURED, 0)
    freeze_untrained(model, config)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainers.append(Trainer(model, config, group))
            expected, losses = (torch.stack([t.step(batch) for _ in range(3)]) for t in trainers)
    finally:
        torch.set_warn_always(False)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-4)
    assert float(losses[0].sum()) > float(losses[-1].sum())


def test_a_signal_to_one_process_stops_all(data: Path, tmp_path: Path) -> None:
    """All processes stop at the same step, saved, with one message, in torchrun's environment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--run", str(run), "--preset", "tiny", "--minutes", "10", "--batch", "4"]
    command += ["--checkpoint-every", "0.001", "--sample-every", "0"]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    outputs = [tmp_path / f"process-{rank}.txt" for rank in range(2)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(forked(output, run_command, {**meeting, "RANK": rank, "LOCAL_RANK": rank}, command))
            for rank, output in zip("01", outputs, strict=True)
        ]
        while not (run / "checkpoint.safetensors").exists():
            assert [process.exitcode for process in processes] == [None, None], list(map(errors_of, outputs))
            time.sleep(0.05)
        processes[1].terminate()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [143, 143], list(map(errors_of, outputs))
    printed = [output.read_text() for output in outputs]
    assert printed[0].count("run the same command again") == 1 and not printed[1]


def test_an_incomplete_environment_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the missing variables."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT missing.*torchrun"):
        Processes.join()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="must be numbers"):
        Processes.join()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join() == Processes()


def test_a_meeting_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port in use, a missing master and a missing process are reported in time, with what to change."""
    with socket.socket() as used, socket.socket() as free:
        used.bind(("127.0.0.1", 0))
        used.listen()
        free.bind(("127.0.0.1", 0))
        ports = {name: str(s.getsockname()[1]) for name, s in (("taken", used), ("free", free))}
        free.close()
        settings = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**settings, "MASTER_PORT": ports["taken"]}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("dctransformer.training.distributed.MEETING", datetime.timedelta(seconds=0.6))
        with pytest.raises(
            ValueError, match=r"port of 127.0.0.1:\d+ is taken.*MASTER_PORT.*--rdzv-endpoint localhost:0"
        ):
            Processes.join()
        monkeypatch.setenv("MASTER_PORT", ports["free"])
        monkeypatch.setenv("RANK", "1")
        for rank in "10":
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(
                ValueError, match=r"the 2 processes did not meet at 127.0.0.1:\d+ within 1 s; .*MASTER_"
            ):
                Processes.join()


@pytest.mark.skipif(sys.platform != "linux", reason="finds torchrun's processes in /proc")
def test_a_killed_process_ends_the_job_and_nothing_is_lost(data: Path, tmp_path: Path) -> None:
    """A sharded run under torchrun, killed and resumed, equals an uninterrupted one."""
    shape, triples = {**SHAPE, "dropout": 0.1}, 1100
    options = {"parallel": "fsdp", "shuffle": "stretches"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    command += ["dctransformer.cli", "train", "--data", str(data), "--run", str(run), "--preset", "tiny"]
    settings = {**{f"model.{k}": v for k, v in shape.items()}, **SETTINGS, **options, "triples": triples}
    command += [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]

    def start(*further: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *further], env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def done() -> int:
        path = run / "checkpoint.safetensors"
        if not path.exists():
            return 0
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["progress"])["triples"]

    process = start("--checkpoint-every", "1e-4")  # at every step: saving takes most of the time
    while done() < triples / 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in map(int, children) if b"dctransformer.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert triples / 6 <= done() < triples, "the process was killed too late to show anything"
    process = start()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    by_two(tmp_path, [{"data": str(data), "run": str(whole), "preset": shape,
                       "config": {**SETTINGS, **options, "triples": triples}}])  # fmt: skip
    for name in ("model.safetensors", "checkpoint.safetensors"):
        a, b = load_file(whole / name), load_file(run / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    assert curve(run)[-1] == curve(whole)[-1]
