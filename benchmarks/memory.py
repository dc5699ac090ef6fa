"""What a training step keeps in memory, by preset: states counted from the parameters, activations from a real pass.

    python benchmarks/memory.py [--presets tiny small base paper] [--gib 12 24 40 80]

*States*: fp32 weights, gradients, two moments and the average, 20 bytes a parameter. *Activations*: what one chunk's
forward pass keeps for its backward pass, counted on the CPU (eager, bf16 autocast and fused attention as on a GPU;
weights and what is kept twice count once). From both: how many chunks at once some GPUs should hold (nine tenths of
their memory), which is a calculation; `--micro-batch auto` measures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from dctransformer.model import layers
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from measure import chunks, machine, sequences

STATES = 20
"""Bytes a parameter."""


def kept_bytes(model: DCTransformer, config: ModelConfig, rows: int) -> int:
    """Bytes of the tensors that a forward pass over ``rows`` chunks saves for the backward pass."""
    batch = chunks(sequences(2, config.size, config.quality, config.null_label), config, rows)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
        mock.patch.object(layers, "attention", fused),
    ):
        nats = model(batch)
    del nats
    return sum(seen.values())


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base", "paper"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--gib", nargs="+", type=int, default=[12, 24, 40, 80])
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    print(
        "preset   px  quality   parameters  states, GiB  MiB a chunk  " + "  ".join(f"{g} GiB" for g in arguments.gib)
    )
    for name in arguments.presets:
        for size in arguments.sizes:
            config = preset(name, size=size, quality=20 if size < 256 else 50)
            model = DCTransformer(config)
            count = sum(p.numel() for p in model.parameters())
            one, two = (kept_bytes(model, config, rows) for rows in (1, 2))
            each, states = two - one, STATES * count
            fits = [max(0, int((0.9 * gib * 2**30 - states) / each)) for gib in arguments.gib]
            table.append(
                {"preset": name, "size": size, "quality": config.quality, "parameters": count, "chunk": config.chunk,
                 "states_gib": round(states / 2**30, 2), "mib_a_chunk": round(each / 2**20, 1),
                 "fits": dict(zip(map(str, arguments.gib), fits, strict=True))}
            )  # fmt: skip
            print(
                f"{name:7s} {size:4d} {config.quality:7d} {count:13,d} {states / 2**30:12.2f} {each / 2**20:12.1f}  "
                + "  ".join(f"{n:6d}" for n in fits)
            )
            del model
    print(json.dumps({"benchmark": "memory", "table": table, **machine(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
