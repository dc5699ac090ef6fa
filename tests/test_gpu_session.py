"""Tests of the GPU session script in a dry run on the CPU: time limits, weights, resuming."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

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
