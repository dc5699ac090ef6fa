"""CPU efficiency of a training step, and its speedup over a plain implementation.

    python benchmarks/train.py [--preset small] [--batch 16] [--rounds 12] [--threads N] [--texture-from 4]

The following are timed alternately on the same batches of synthetic pictures, with the conditions and the share of
texture that `dctransformer train` has by default:

* *compiled*: the step of `dctransformer train --precision auto --compile on`, including optimiser and EMA;
* *eager*: the same without compilation;
* *no masks*: the eager step without the legality masks;
* *plain*: fp32, eager, attention written out as softmax(QKᵀ)V, AdamW one parameter at a time; the model code is the
  same;
* large matrix products in bf16 and fp32.

Triples are those that a step predicts; texture comes on top. Operations are counted by `measure.step_flops`, padding
included (the eager steps leave most of it out). The last line is JSON: ``ratio`` is the FLOP/s of the compiled step
divided by those of the bf16 product; ``speedup`` is its triples per second divided by those of the plain step;
``mask_share`` is the fraction of an eager step that the masks take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dctransformer.codec.order import NUM_CHANNELS
from dctransformer.model import dctransformer as module
from dctransformer.model import heads
from dctransformer.model.config import preset
from dctransformer.sequence.chunks import ChunkBatch
from dctransformer.training.config import TrainConfig
from dctransformer.training.optimizer import Optimizers
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer
from measure import batches, machine, median_ratio, product_flops, step_flops, synthetic

GOAL, SPEEDUP_GOAL, MASK_GOAL = 0.7, 1.3, 0.1
WARMUP_STEPS = 6
"""Steps before the clock starts, in which the compiler sees every shape."""


def plain_optimizer(trainer: Trainer) -> Optimizers:
    """AdamW with the same parameter groups, applied to one parameter at a time."""
    groups = [
        {k: g[k] for k in ("params", "weight_decay", "scale")}
        for part in trainer.optimizer.parts
        for g in part.param_groups
    ]
    options = {"lr": trainer.config.lr, "betas": (0.9, 0.95), "eps": 1e-9}
    return Optimizers(torch.optim.AdamW(groups, **options, foreach=False, fused=False))


@contextlib.contextmanager
def without_masks() -> Iterator[None]:
    """Disable the masks that give impossible outcomes probability 0 (the sums over open places remain)."""
    everything = torch.ones(1, dtype=torch.bool)
    with (
        mock.patch.object(heads, "legal_channels", lambda *_: everything.expand(NUM_CHANNELS + 1)),
        mock.patch.object(heads, "legal_positions", lambda *_: everything),
        mock.patch.object(module, "open_places", lambda closed, _: closed),
        mock.patch.object(module, "last_open_place", lambda opened: opened),
        mock.patch.object(torch.Tensor, "masked_fill", lambda logits, mask, value: logits),
    ):
        yield


def timed(trainer: Trainer, batch: ChunkBatch, context: contextlib.AbstractContextManager) -> float:
    """Seconds of a training step."""
    with context:
        start = time.perf_counter()
        trainer.step(batch)
        return time.perf_counter() - start


def main() -> None:
    """Measure all variants and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--quality", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--optimizer", default="adamw", help="muon's matrix products take time but are not counted as operations"
    )
    parser.add_argument("--texture-from", type=int, help="as --model.texture-from of train; 4 lists every triple")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cpu = torch.device("cpu")
    texture = {} if arguments.texture_from is None else {"texture_from": arguments.texture_from}
    config = preset(arguments.preset, size=arguments.size, quality=arguments.quality, **texture)
    data = batches(synthetic(64, config), config, TrainConfig(batch=arguments.batch), arguments.rounds)

    def trainer(precision: Any, compile: Any) -> Trainer:
        settings = TrainConfig(
            batch=arguments.batch, device="cpu", precision=precision, compile=compile, optimizer=arguments.optimizer
        )
        return Trainer(new_model(config, settings.seed), settings)

    compiled, eager, plain = trainer("auto", "on"), trainer("auto", "off"), trainer("fp32", "off")
    plain.optimizer = plain_optimizer(plain)  # type: ignore[assignment]
    flops = [step_flops(eager.model, batch) for batch in data]
    triples = [int(batch.predicted.sum()) for batch in data]
    unchanged, math = contextlib.nullcontext(), lambda: sdpa_kernel(SDPBackend.MATH)
    variants = {
        "compiled": (compiled, lambda: unchanged),
        "eager": (eager, lambda: unchanged),
        "no masks": (eager, without_masks),
        "plain": (plain, math),
    }
    for batch in data[:WARMUP_STEPS]:
        for step, context in variants.values():
            timed(step, batch, context())
    times: dict[str, list[float]] = {name: [] for name in variants}
    products: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    for i, batch in enumerate(data):
        order = list(variants.items())[:: 1 if i % 2 else -1]
        for name, (step, context) in order:
            times[name].append(timed(step, batch, context()))
        if i % 2 == 0:
            for dtype, speeds in products.items():
                speeds.append(product_flops(dtype, cpu, 2048))

    reached = [count / seconds for count, seconds in zip(flops, times["compiled"], strict=True)]
    bf16, fp32 = max(products[torch.bfloat16]), max(products[torch.float32])
    ratio = statistics.median(reached) / bf16
    speedup = median_ratio(times["plain"], times["compiled"])
    mask_share = 1 - median_ratio(times["no masks"], times["eager"])
    for name, durations in times.items():
        rate = statistics.median(t / s for t, s in zip(triples, durations, strict=True))
        print(f"{name:9s} {statistics.median(durations) * 1e3:7.0f} ms per step  {rate:7.0f} triples/s")
    print(f"products: bf16 {bf16 / 1e9:.0f}, fp32 {fp32 / 1e9:.0f} GFLOP/s")
    print(f"compiled step: {ratio * bf16 / 1e9:.0f} GFLOP/s")
    result = {
        "benchmark": "train",
        "preset": arguments.preset,
        "texture_from": config.texture_from,
        "batch": arguments.batch,
        "optimizer": arguments.optimizer,
        "precision": compiled.precision,
        "gflop_per_step": round(statistics.mean(flops) / 1e9, 2),
        "gflops": round(statistics.median(reached) / 1e9, 2),
        "bf16_product_gflops": round(bf16 / 1e9, 2),
        "fp32_product_gflops": round(fp32 / 1e9, 2),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "ratio_to_the_faster_product": round(ratio * bf16 / max(bf16, fp32), 3),
        "triples_per_second": round(statistics.median(t / s for t, s in zip(triples, times["compiled"], strict=True))),
        "speedup": round(speedup, 3),
        "speedup_goal": SPEEDUP_GOAL,
        "mask_share": round(mask_share, 3),
        "mask_goal": MASK_GOAL,
        "reached": ratio >= GOAL and speedup >= SPEEDUP_GOAL and mask_share <= MASK_GOAL,
        **machine(cpu),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
