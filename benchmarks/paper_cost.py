"""Cost of training as in the paper: operations counted on a CPU, and GPU hours extrapolated from them.

    python benchmarks/paper_cost.py [--configs configs/paper] [--mfu 0.4] [--triples-per-picture 25000]

For every settings file: parameters, triples, training operations per target triple (`measure.step_flops` of one full
chunk at the file's size and quality, on the CPU; a minute or two, once for files of one shape), the hours on one GPU at
an assumed fraction of its dense bf16 peak (``--mfu``), and the number of pictures seen, for an assumed number of
triples per picture. For files that keep the aspect ratio, pictures of 4:3 stand for all. Nothing was run on a GPU. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.training.config_file import ConfigFile, read_config_file
from measure import PEAKS, chunks, machine, sequences, step_flops, synthetic

GPUS = ("A100", "H100")


def parameters(config: ModelConfig) -> int:
    """Number of parameters of a model, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in DCTransformer(config).parameters())


def flops_per_triple(config: ModelConfig) -> float:
    """Operations of a forward and a backward pass over one full chunk, per predicted triple."""
    model = DCTransformer(config)
    batch = chunks(sequences(synthetic(1, config), config), config, 1)
    return step_flops(model, batch) / int(batch.predicted.sum())


def hours(flops: float, gpu: str, mfu: float) -> float:
    """Hours on one GPU at a model FLOP utilisation of ``mfu``."""
    return flops / (PEAKS[gpu] * mfu) / 3600


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, default=Path("configs/paper"))
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--triples-per-picture", type=int, default=25_000)
    arguments = parser.parse_args()
    counted: dict[ModelConfig, float] = {}
    table = []
    print(f"assumed: {arguments.mfu:.0%} of the dense bf16 peak")
    print(f"assumed: {arguments.triples_per_picture:,} triples per picture")
    hours_of = "  ".join(f"{gpu} hours" for gpu in GPUS)
    print(f"settings               parameters  triples  pictures seen  GFLOP/triple  EFLOP  {hours_of}")
    for path in sorted(arguments.configs.glob("*.toml")):
        file: ConfigFile = read_config_file(path)
        config = file.model_config()
        # Neither classes nor conditions change what a step computes.
        shape = dataclasses.replace(config, num_labels=0, conditions=("none",))
        if shape not in counted:
            counted[shape] = flops_per_triple(shape)
        triples = file.train.triples or 0
        total = counted[shape] * triples
        row = {
            "settings": path.stem,
            "parameters": parameters(config),
            "triples": triples,
            "pictures_seen": round(triples / arguments.triples_per_picture),
            "gflop_per_triple": round(counted[shape] / 1e9, 3),
            "eflop": round(total / 1e18, 1),
            **{f"{gpu}_hours": round(hours(total, gpu, arguments.mfu)) for gpu in GPUS},
        }
        table.append(row)
        print(
            f"{path.stem:22s} {row['parameters']:11,d} {triples / 1e9:5.0f}e9 {row['pictures_seen']:14,d} "
            f"{row['gflop_per_triple']:13.2f} "
            f"{row['eflop']:6.0f}  " + "  ".join(f"{row[f'{gpu}_hours']:10,d}" for gpu in GPUS)
        )
    print(json.dumps({"benchmark": "paper_cost", "mfu": arguments.mfu, "table": table, **machine(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
