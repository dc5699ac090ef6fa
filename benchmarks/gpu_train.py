"""Training on a GPU: model FLOP utilisation of the large presets, and a table of what fits.

    python benchmarks/gpu_train.py [--presets paper base] [--micro-batches 1 4 16 64] [--steps 10] [--device cuda]

A step is `train`'s own: bf16 autocast, compiled stacks, fused optimiser, weight average. Its operations are those of
`measure.step_flops` (nothing that is computed twice counts) and are set against the GPU's dense bf16 peak from its
maker's data sheet, or, for a GPU that is not listed, against a measured product. Every row of the table is a step of
one micro-batch. Without a GPU it says so and ends. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
from typing import Any

import torch

from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import out_of_memory
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer
from measure import PEAKS, chunks, machine, product_flops, seconds, sequences, step_flops

GOAL = 0.45


def configuration(name: str) -> ModelConfig:
    """A preset on the pictures that it is for: 256 px at quality 50 for the paper's, else 64 px at quality 20."""
    return preset(name) if name == "paper" else preset(name, size=64, quality=20)


def flops_of(config: ModelConfig) -> float:
    """Operations that a chunk takes, as a mean of some."""
    model = DCTransformer(config)
    batch = chunks(sequences(2, config.size, config.quality, config.null_label), config, 2)
    return step_flops(model, batch) / 2


def measure(config: ModelConfig, micro: int, steps: int, device: torch.device, checkpoint: bool) -> dict[str, Any]:
    """Seconds a step and peak memory of one micro-batch.

    Raises:
        ValueError: it does not fit.
    """
    settings = TrainConfig(
        batch=micro, micro_batch=None, device=str(device), checkpoint_activations=checkpoint, optimizer="adamw"
    )
    trainer = Trainer(new_model(config, settings.seed), settings)
    of = sequences(8, config.size, config.quality, config.null_label)
    batches = [chunks(of, config, micro, seed=i) for i in range(steps)]
    for batch in batches[:4]:
        trainer.step(batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [seconds(functools.partial(trainer.step, batch), device) for batch in batches]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    triples = sum(int(batch.predicted.sum()) for batch in batches)
    return {"seconds": statistics.median(times), "gib": peak / 2**30, "triples_per_s": triples / sum(times)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["paper", "base"])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"benchmark": "gpu_train", "ratio": None, "goal": GOAL, "skipped": "there is no GPU here"}))
        return
    facts = machine(device)
    product = product_flops(torch.bfloat16, device, 8192 if device.type == "cuda" else 1024)
    listed = [peak for name, peak in PEAKS.items() if name in facts["machine"]]
    peak = listed[0] if listed else product
    table, best = [], {}
    print(f"{facts['machine']}: peak {peak / 1e12:.1f} TFLOP/s, a product reaches {product / 1e12:.1f}")
    print("preset   checkpointed  chunks  ms a step  triples/s   MFU     GiB")
    for name in arguments.presets:
        config = configuration(name)
        each = flops_of(config)
        for checkpoint in (False, True):
            for micro in arguments.micro_batches:
                row: dict[str, Any] = {"preset": name, "micro_batch": micro, "checkpoint_activations": checkpoint}
                try:
                    row |= measure(config, micro, arguments.steps, device, checkpoint)
                except (ValueError, RuntimeError) as error:
                    if not out_of_memory(error) and "do not fit" not in str(error):
                        raise
                    print(f"{name:8s} {checkpoint!s:12s} {micro:7d}  does not fit")
                    table.append(row | {"fits": False})
                    break
                finally:
                    gc.collect()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                row["mfu"] = each * micro / row["seconds"] / peak
                best[name] = max(best.get(name, 0.0), row["mfu"])
                table.append(row | {"fits": True})
                print(
                    f"{name:8s} {checkpoint!s:12s} {micro:7d}  {row['seconds'] * 1e3:9.1f}  {row['triples_per_s']:9.0f}"
                    f"  {row['mfu']:.3f}  {row['gib']:6.2f}"
                )
    ratio = min(best.values(), default=0.0)
    result = {
        "benchmark": "gpu_train",
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "reached": ratio >= GOAL,
        "mfu": {name: round(value, 3) for name, value in best.items()},
        "peak_tflops": round(peak / 1e12, 1),
        "product_tflops": round(product / 1e12, 2),
        "table": [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in table],
        **facts,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
