"""Training on a GPU: triples per second, model FLOP utilisation and memory; eager, compiled, and as CUDA graphs.

    python benchmarks/gpu_train.py [--presets small] [--batches 64 256 1024] [--modes eager muon graphs compiled]
                                   [--seconds 80] [--steps 10] [--device cuda]

A step is the one of `dctransformer train`: conditions, texture, bf16 autocast, fused optimiser, EMA; batches are in
host memory. ``eager`` and ``compiled`` use AdamW, ``muon`` is eager with Muon, and ``graphs`` replays its passes as
CUDA graphs. Failed variants are reported with their errors, and variants for which no time is left are skipped, so that
the last line is always JSON. Operations are counted by `measure.step_flops` for chunks in which nothing is given, since
a GPU pads the others to their length. Utilisation is relative to the GPU's dense bf16 peak in the vendor's data sheet
or, for other GPUs, to a measured matrix product.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import statistics
import time
import traceback
from typing import Any

import torch

from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.chunks import ChunkBatch
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer
from measure import GENERATION, PEAKS, batches, machine, product_flops, seconds, step_flops, synthetic


class TimeUp(BaseException):
    """Raised on SIGTERM, to print at once what has been measured so far."""


def end(*_: object) -> None:
    """Handle SIGTERM."""
    raise TimeUp


MODES: dict[str, dict[str, Any]] = {
    "eager": {"compile": "off", "optimizer": "adamw"},
    "muon": {"compile": "off", "optimizer": "muon"},
    "graphs": {"compile": "off", "optimizer": "muon", "graphs": True},
    "compiled": {"compile": "on", "optimizer": "adamw"},
}
WARM_UP = 6
"""Warmup steps before the clock starts: the compiler sees different numbers of channel runs, and graphs are recorded.
"""


def configuration(name: str) -> ModelConfig:
    """A preset at its intended size and quality: 256 px at quality 50 for `paper`, else 64 px at quality 20."""
    return preset(name) if name == "paper" else preset(name, size=64, quality=20)


def flops_of(config: ModelConfig) -> float:
    """Operations per chunk and its share of texture, averaged over two chunks in which nothing is given."""
    [batch] = batches(synthetic(2, config), config, TrainConfig(batch=2, conditions=GENERATION), 1)
    return step_flops(DCTransformer(config), batch) / 2


def measure(
    config: ModelConfig, mode: str, data: list[ChunkBatch], device: torch.device, until: float
) -> dict[str, float]:
    """Time training steps of one variant; figures are medians after a few warmup steps.

    Args:
        config: shape of the model.
        mode: a key of `MODES`.
        data: one batch per step.
        device: device to train on.
        until: value of `time.perf_counter` at which to stop early.
    """
    rows = len(data[0].labels)
    settings = TrainConfig(batch=rows, micro_batch=None, device=str(device), **MODES[mode])
    began = time.perf_counter()
    trainer = Trainer(new_model(config, 0), settings)
    for batch in data[:WARM_UP]:
        seconds(lambda batch=batch: trainer.step(batch), device)
    warm_up = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rates, times = [], []
    for batch in data:
        count = int(batch.predicted.sum())
        times.append(seconds(lambda batch=batch, count=count: trainer.step(batch, count), device))
        rates.append(count / times[-1])
        if time.perf_counter() > until:
            break
    trainer.check_finite()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "triples_per_second": statistics.median(rates), "ms_per_step": statistics.median(times) * 1e3,
        "warm_up_seconds": warm_up, "gib": peak / 2**30, "steps": len(times),
    }  # fmt: skip


def fill(
    table: list[dict[str, Any]], arguments: argparse.Namespace, device: torch.device, peak: float, until: float
) -> None:
    """Measure every variant; print a row for each and append it to the table."""
    for name in arguments.presets:
        config = configuration(name)
        flops = flops_of(config)
        store = synthetic(32, config)
        print(f"{name}: {flops / 1e9:.2f} GFLOP per chunk")
        print("preset    mode      batch  ms per step  triples/s    MFU     GiB  warm-up s")
        # The middle size comes first, so that every mode has a figure if time runs out.
        sizes = sorted(arguments.batches, key=lambda b: abs(arguments.batches.index(b) - len(arguments.batches) // 2))
        for batch in sizes:
            data = batches(store, config, TrainConfig(batch=batch), arguments.steps)
            for mode in arguments.modes:
                row: dict[str, Any] = {"preset": name, "mode": mode, "batch": batch}
                table.append(row)
                if time.perf_counter() > until:
                    row["skipped"] = "no time left"
                    continue
                try:
                    row |= measure(config, mode, data, device, until)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"[:500]
                    traceback.print_exc()
                    print(f"{name:9s} {mode:9s} {batch:5d}  {row['error'].splitlines()[0][:100]}", flush=True)
                    continue
                finally:
                    gc.collect()
                    torch.compiler.reset()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                row["mfu"] = flops * batch / (row["ms_per_step"] / 1e3) / peak
                print(
                    f"{name:9s} {mode:9s} {batch:5d}  {row['ms_per_step']:11.1f}  {row['triples_per_second']:9.0f}"
                    f"  {row['mfu']:.4f}  {row['gib']:6.2f}  {row['warm_up_seconds']:8.1f}",
                    flush=True,
                )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=80.0, help="start no variant after this time")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    began = time.perf_counter()
    until = began + arguments.seconds
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"benchmark": "gpu_train", "ratio": None, "skipped": "there is no GPU here"}))
        return
    facts = machine(device)
    product = product_flops(torch.bfloat16, device, 8192 if device.type == "cuda" else 512)
    peak = next((peak for name, peak in PEAKS.items() if name in facts["machine"]), product)
    print(f"{facts['machine']}: peak {peak / 1e12:.1f} TFLOP/s, a product reaches {product / 1e12:.1f}")
    table: list[dict[str, Any]] = []
    with contextlib.suppress(TimeUp):
        fill(table, arguments, device, peak, until)
    rate = {(r["preset"], r["batch"], r["mode"]): r.get("triples_per_second") for r in table}
    gains = {
        f"{p}-{b}": round(compiled / eager, 3)
        for (p, b, mode), eager in rate.items()
        if mode == "eager" and eager and (compiled := rate.get((p, b, "compiled")))
    }
    result = {
        "benchmark": "gpu_train",
        "ratio": min(gains.values(), default=None),
        "goal": 1.0,
        "compiled_over_eager": gains,
        "peak_tflops": round(peak / 1e12, 1),
        "product_tflops": round(product / 1e12, 2),
        "table": [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in table],
        "seconds": round(time.perf_counter() - began, 1),
        **facts,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
