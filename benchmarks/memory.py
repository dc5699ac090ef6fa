"""Memory of a training step by preset: optimiser states from the number of parameters, activations from a real pass.

    python benchmarks/memory.py [--presets tiny small base paper] [--gib 12 24 40 80]

*States*: fp32 weights, gradients, two moments and the EMA, 20 bytes per parameter. *Activations*: tensors that the
forward pass of one more chunk saves for the backward pass, counted on the CPU (eager, with bf16 autocast and fused
attention as on a GPU; without weights, and shared storage counted once). For presets that decide texture a channel at a
time the chunk is one of the structure, to which the texture of half a picture is added, as `train` does it by default.
From both follows the number of chunks that fit into nine tenths of the memory of some GPUs. This is an estimate;
`--micro-batch auto` measures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from dctransformer.codec import order
from dctransformer.model import layers
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.texture import sample_texture
from dctransformer.training.config import TrainConfig
from measure import chunks, machine, sequences, synthetic, total_nats

STATES = 20
"""Bytes of weights, gradients and optimiser states per parameter."""


def saved_bytes(model: DCTransformer, forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that a forward pass saves for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, seen: None) -> torch.Tensor:
        assert seen is None, "only decoding attends to a part"
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with (
        torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
        mock.patch.object(layers, "attention", fused),
    ):
        total_nats(forward())
    return sum(sizes.values())


def bytes_per_chunk(model: DCTransformer, config: ModelConfig) -> tuple[int, int]:
    """Bytes that one more chunk keeps, and those that the texture of one more picture keeps (0 without texture)."""
    [picture] = sequences(synthetic(1, config), config)
    one, two = (saved_bytes(model, lambda n=n: model(chunks([picture], config, n))) for n in (1, 2))
    if config.texture_rank == order.NUM_CHANNELS:
        return two - one, 0
    channels = TrainConfig().texture_channels
    textures = (sample_texture([picture] * n, torch.full((n,), 0.5), channels, config.texture_rank) for n in (1, 2))
    textured = [saved_bytes(model, lambda batch=batch: model.texture(batch)) for batch in textures]
    return two - one, textured[1] - textured[0]


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base", "paper"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--gib", nargs="+", type=int, default=[12, 24, 40, 80])
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    print(
        "preset   px  quality   parameters  states, GiB    MiB/chunk  " + "  ".join(f"{g} GiB" for g in arguments.gib)
    )
    for name in arguments.presets:
        for size in arguments.sizes:
            config = preset(name, size=size, quality=20 if size < 256 else 50)
            model = DCTransformer(config)
            count = sum(p.numel() for p in model.parameters())
            chunk, texture = bytes_per_chunk(model, config)
            per_chunk, states = chunk + TrainConfig().texture * texture, STATES * count
            fits = [max(0, int((0.9 * gib * 2**30 - states) / per_chunk)) for gib in arguments.gib]
            table.append(
                {"preset": name, "size": size, "quality": config.quality, "parameters": count, "chunk": config.chunk,
                 "states_gib": round(states / 2**30, 2), "mib_per_chunk": round(per_chunk / 2**20, 1),
                 "mib_per_texture": round(texture / 2**20, 1),
                 "fits": dict(zip(map(str, arguments.gib), fits, strict=True))}
            )  # fmt: skip
            print(
                f"{name:7s} {size:4d} {config.quality:7d} {count:13,d} {states / 2**30:12.2f} "
                + f"{per_chunk / 2**20:12.1f}  "
                + "  ".join(f"{n:6d}" for n in fits)
            )
            del model
    print(json.dumps({"benchmark": "memory", "table": table, **machine(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
