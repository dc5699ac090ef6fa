"""Tests of the GPU session script in a dry run on the CPU: time limits, weights, resuming."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dctransformer.data.prepare import prepare
from pictures import photo_folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    path = Path(__file__).parent.parent / "scripts" / "gpu_session.py"
    spec = importlib.util.spec_from_file_location("gpu_session", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_phase_that_hangs_costs_its_own_time_only(script: ModuleType, tmp_path: Path) -> None:
    """A phase is killed at its limit, even if it ignores SIGTERM; its output is in the results."""
    session = script.Session(1.0, tmp_path / "results.json")
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True)\n"
    began = time.monotonic()
    facts = session.run("benchmark", [sys.executable, "-c", stubborn + "time.sleep(60)"], limit=2.0, grace=0.2)
    assert time.monotonic() - began < 20
    assert facts["status"] == -9 and facts["output"] == "here\n"
    assert not session.done("benchmark") and session.left > 30
    session.run("sampling", [sys.executable, "-c", "print('{\"speed\": 3}')"], limit=20.0)
    kept = script.Session(1.0, tmp_path / "results.json")
    assert kept.done("sampling") and kept.results["sampling"]["result"] == {"speed": 3}


@pytest.mark.parametrize(
    ("speeds", "options"),
    [
        ({}, ["--compile", "off"]),
        ({"eager": 100.0, "muon": 80.0, "graphs": 82.0, "compiled": 101.0}, ["--compile", "off"]),
        ({"eager": 100.0, "muon": 80.0, "graphs": 160.0, "compiled": 150.0}, ["--compile", "off", "--graphs"]),
        ({"eager": 100.0, "muon": 80.0, "graphs": 90.0, "compiled": 150.0}, ["--compile", "on"]),
        ({"muon": 80.0, "graphs": 160.0, "compiled": 500.0}, ["--compile", "off", "--graphs"]),
    ],
)
def test_the_fastest_mode_trains(script: ModuleType, speeds: dict[str, float], options: list[str]) -> None:
    """Modes are compared with eager steps of their optimiser; an unmeasured or failed one is not taken."""
    table = [{"batch": 96, "mode": mode, "triples_per_second": speed} for mode, speed in speeds.items()]
    failed = [{"batch": 96, "mode": mode, "error": "out of memory"} for mode in ("graphs", "compiled") if not speeds]
    assert script.best_mode({"result": {"table": table + failed}}) == options
    assert script.best_mode({}) == ["--compile", "off"]


def test_a_training_that_fails_is_tried_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may fail once: the same command then goes on from the checkpoint; a second failure ends the phase."""
    calls: list[list[str]] = []

    def run(session: Any, phase: str, command: list[str], limit: float, grace: float = 20.0) -> dict[str, Any]:
        calls.append(command)
        session.results[phase] = {"status": 2 if len(calls) in (1, 3, 4) else 0, "seconds": 1.0}
        return session.results[phase]

    monkeypatch.setattr(script.Session, "run", run)
    skip = ["--skip", "tests", "benchmark", "sampling"]
    arguments = ["--data", str(tmp_path), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", *arguments, *skip])
    assert script.main() == 0 and len(calls) == 2 and calls[0] == calls[1]
    (tmp_path / "results.json").unlink(missing_ok=True)
    assert script.main() == 1 and len(calls) == 4


def test_training_leaves_weights_and_is_not_done_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training uses the remaining time, and the same command does not repeat it."""
    photo_folder(tmp_path / "photos", 8, ("a",))
    prepare(tmp_path / "photos", tmp_path / "data", 32, 30, val_fraction=0.3, workers=1, progress=False)
    out, run = tmp_path / "results.json", tmp_path / "run"
    args = ["--data", tmp_path / "data", "--run", run, "--out", out, "--minutes", "3", "--train-minutes", "0.01"]
    args += ["--device", "cpu", "--skip", "tests", "benchmark", "sampling", "--", "--preset", "tiny", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", *map(str, args), "--sample-every", "0"])
    assert script.main() == 0
    assert (run / "model.safetensors").is_file()
    facts = json.loads(out.read_text())["training"]
    assert facts["status"] == 0 and "--minutes" in facts["command"]
    weights = (run / "model.safetensors").read_bytes()
    capfd.readouterr()
    assert script.main() == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last == {"out": str(out), "weights": True, "status": {"training": 0}}
    assert json.loads(out.read_text())["training"] == facts and (run / "model.safetensors").read_bytes() == weights
