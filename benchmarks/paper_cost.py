"""What the paper's own runs would cost: operations counted here, GPU hours extrapolated from them.

    python benchmarks/paper_cost.py [--configs configs/paper] [--mfu 0.4] [--triples-per-picture 25000]

For every settings file: parameters, triples, operations of a training step a target triple (`measure.step_flops` of one
whole chunk at the file's size and quality, on the CPU; a minute or two, once for files of one shape), the hours on one
GPU of a kind at a stated part of its dense bf16 peak (``--mfu``, an assumption), and how many pictures are seen at a
number of triples per picture. Where a file keeps the aspect ratio, pictures of 4 to 3 stand for all. Nothing of it was
run on a GPU.
The last line is JSON.
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
from measure import PEAKS, chunks, machine, sequences, step_flops

GPUS = ("A100", "H100")


def parameters(config: ModelConfig) -> int:
    """How many weights a model has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in DCTransformer(config).parameters())


def flops_per_triple(config: ModelConfig) -> float:
    """Operations of a forward and a backward pass over one whole chunk, by the triples it predicts."""
    model = DCTransformer(config)
    batch = chunks(sequences(1, config.trained_shape, config.quality, config.null_label), config, 1)
    return step_flops(model, batch) / int(batch.predicted.sum())


def hours(flops: float, gpu: str, mfu: float) -> float:
    """Hours on one GPU."""
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
