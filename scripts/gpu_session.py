"""Run device tests, GPU benchmarks and a training within a few minutes, see ``scripts/gpu_session.sh``.

The phases are ``tests`` (tests/test_gpu.py), ``benchmark`` (benchmarks/gpu_train.py), ``training`` (for most of the
remaining time, as CUDA graphs or compiled if that was fastest in the benchmark; once more from its last checkpoint if
it fails) and ``sampling`` (pictures per second of the trained model). Each phase is a process with its own time limit.
The results file is updated after each phase.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OVERHEAD = 120.0
"""Seconds reserved for starting the training and for everything after its last step: validation, a sheet of samples and
the sampling phase."""
TAIL = 6000
"""Number of characters of a phase's output that are recorded."""


class Session:
    """Keeps the remaining time and the results so far."""

    def __init__(self, minutes: float, out: Path):
        self.ends = time.monotonic() + 60 * minutes
        self.out = out
        self.results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    @property
    def left(self) -> float:
        """Remaining time in seconds."""
        return self.ends - time.monotonic()

    def done(self, phase: str) -> bool:
        """Whether a phase has succeeded, in this session or an earlier one."""
        return self.results.get(phase, {}).get("status") == 0

    def record(self, phase: str, facts: dict[str, Any]) -> None:
        """Add a phase to the results file."""
        self.results[phase] = facts
        temporary = self.out.with_suffix(".part")
        temporary.write_text(json.dumps(self.results, indent=1) + "\n")
        temporary.replace(self.out)
        print(f"-- {phase}: status {facts['status']}, {facts['seconds']} s; {self.left:.0f} s left", flush=True)

    def run(self, phase: str, command: list[str], limit: float, grace: float = 20.0) -> dict[str, Any]:
        """Run a command, and record and return the outcome.

        Args:
            phase: name of the phase.
            command: command line.
            limit: seconds after which the process receives SIGTERM.
            grace: seconds after SIGTERM until it receives SIGKILL.
        """
        limit = max(limit, 1.0)
        print(f"-- {phase}: at most {limit:.0f} s: {' '.join(command)}", flush=True)
        began = time.monotonic()
        log = self.out.with_suffix(f".{phase}.log")
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            status: int | str
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    status = process.wait(grace)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    status = process.wait()
        text = log.read_text(errors="replace").replace("\r", "\n")
        lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        facts: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1), "command": command}
        if lines:
            with contextlib.suppress(json.JSONDecodeError):
                facts["result"] = json.loads(lines[-1])
        if status or not lines:
            facts["output"] = text[-TAIL:]
        self.record(phase, facts)
        return facts


def run_tests() -> int:
    """Run tests/test_gpu.py, with pytest if it is installed, otherwise function by function; return the exit status."""
    path = ROOT / "tests" / "test_gpu.py"
    try:
        import pytest
    except ImportError:
        pass
    else:
        return int(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "--noconftest", str(path)]))
    import torch

    if not torch.cuda.is_available():
        print("skipped: there is no GPU")
        return 0
    sys.path.insert(0, str(path.parent))
    import test_gpu  # pyright: ignore[reportMissingImports]

    failed = []
    for name in [name for name in dir(test_gpu) if name.startswith("test_")]:
        began = time.monotonic()
        try:
            getattr(test_gpu, name)()
        except Exception:
            failed.append(name)
            traceback.print_exc()
        print(f"{'FAILED' if name in failed else 'passed'} {name} ({time.monotonic() - began:.1f} s)", flush=True)
    print(json.dumps({"failed": failed}))
    return int(bool(failed))


def best_mode(benchmark: dict[str, Any]) -> list[str]:
    """Options of ``train`` for the fastest of eager steps, steps as CUDA graphs and compiled ones.

    The last two are compared with eager steps of the same optimiser, at the last batch size that was measured for both.
    """
    rows = benchmark.get("result", {}).get("table", [])
    speed = {(row["batch"], row["mode"]): row["triples_per_second"] for row in rows if "triples_per_second" in row}
    gains = {"--graphs": 1.0, "--compile": 1.0}
    for option, mode, eager in (("--graphs", "graphs", "muon"), ("--compile", "compiled", "eager")):
        for batch, measured in speed:
            if measured == mode and (batch, eager) in speed:
                gains[option] = speed[batch, mode] / speed[batch, eager]
    fastest = max(gains, key=lambda option: gains[option])
    if gains[fastest] <= 1.05:
        return ["--compile", "off"]
    return ["--compile", "on"] if fastest == "--compile" else ["--compile", "off", "--graphs"]


def main() -> int:
    """Run the phases that have not succeeded yet, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder written by `dctransformer prepare`; without it there is no training"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/gpu"), help="run folder")
    parser.add_argument("--out", type=Path, default=Path("gpu-session.json"), help="results file")
    parser.add_argument("--minutes", type=float, default=10.0, help="total time")
    parser.add_argument("--train-minutes", type=float, help="training time; the remaining time by default")
    parser.add_argument("--device", default="cuda", help="cpu for a dry run")
    parser.add_argument(
        "--bench", nargs="+", default=[], help="options of benchmarks/gpu_train.py without their dashes, as seconds=60"
    )
    parser.add_argument("--skip", nargs="+", default=[], choices=["tests", "benchmark", "training", "sampling"])
    parser.add_argument("--only-tests", action="store_true", help=argparse.SUPPRESS)
    session_options, options = sys.argv[1:], []
    if "--" in session_options:
        at = session_options.index("--")
        session_options, options = session_options[:at], session_options[at + 1 :]
    arguments = parser.parse_args(session_options)
    if arguments.only_tests:
        return run_tests()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    session = Session(arguments.minutes, arguments.out.resolve())
    python, share = sys.executable, 60 * arguments.minutes
    phases = [p for p in ("tests", "benchmark", "training", "sampling") if p not in arguments.skip]

    if "tests" in phases and not session.done("tests"):
        session.run("tests", [python, "scripts/gpu_session.py", "--only-tests"], min(0.2 * share, 120))
    if "benchmark" in phases and not session.done("benchmark"):
        limit = min(0.2 * share, 90)
        command = [python, "benchmarks/gpu_train.py", "--device", arguments.device, "--seconds", f"{0.8 * limit:.0f}"]
        command += [part for option in arguments.bench for part in expanded(option)]
        session.run("benchmark", command, limit, grace=10)
    if "training" in phases and arguments.data is not None and not session.done("training"):
        overhead = min(OVERHEAD, 0.3 * share)
        minutes = arguments.train_minutes or max(session.left - overhead, 5.0) / 60
        command = [python, "-m", "dctransformer.cli", "train", "--data", str(arguments.data.resolve())]
        command += ["--run", str(arguments.run.resolve()), "--device", arguments.device, "--minutes", f"{minutes:.2f}"]
        command += ["--checkpoint-every", "1"]
        if not {"--compile", "--graphs"} & set(options):
            command += best_mode(session.results.get("benchmark", {}))
        for _ in range(2):
            session.run("training", [*command, *options], session.left - 0.3 * overhead, grace=0.2 * overhead)
            if session.done("training") or session.left < 2 * overhead:
                break
    weights = arguments.run.resolve() / "model.safetensors"
    if "sampling" in phases and weights.exists() and session.left > 5:
        command = [python, "-m", "dctransformer.cli", "sample", str(arguments.run.resolve()), "--num", "64", "--json"]
        out = session.out.with_suffix(".samples")
        facts = session.run(
            "sampling", [*command, "--out", str(out), "--device", arguments.device], session.left - 2, 1
        )
        facts["pictures_per_second"] = round(64 / facts["seconds"], 2)  # loading included
        session.record("sampling", facts)
    status_of = {p: session.results.get(p, {}).get("status", "not run") for p in phases}
    print(json.dumps({"out": str(session.out), "weights": weights.exists(), "status": status_of}))
    return 0 if all(status == 0 for status in status_of.values()) else 1


def expanded(option: str) -> list[str]:
    """Convert ``name=a,b`` to ``--name a b``."""
    name, _, values = option.partition("=")
    return [f"--{name}", *values.split(",")]


if __name__ == "__main__":
    sys.exit(main())
