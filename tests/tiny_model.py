"""A tiny untrained model for tests that generates dense pictures quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.data import prepare
from dctransformer.model.config import preset
from dctransformer.sequence import conditions


@torch.no_grad()
def lively(network: DCTransformer) -> DCTransformer:
    """Set all weights of an untrained model to non-zero values, and make it generate many triples."""
    for p in network.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    if network.config.local_context:
        network.channel_head.after.weight += 2
    else:
        network.channel_head.out.bias[: order.STOP] -= 0.3 * torch.arange(order.NUM_CHANNELS)
        network.channel_head.out.bias[order.STOP] = -40
    return network


def save_tiny_model(folder: Path, **changes: Any) -> Path:
    """Save a model of 32 × 32 pixels that supports every task; ``changes`` apply to its config."""
    torch.manual_seed(0)
    settings = {
        "num_labels": 2, "label_names": ("rose", "lily"), "quality": 30, "size": 32, "chunk": 16, "overlap": 0,
        "conditions": conditions.NAMES, **changes,
    }  # fmt: skip
    lively(DCTransformer(preset("tiny", **settings))).save_pretrained(folder)
    return folder


def save_plain_model(folder: Path) -> Path:
    """Save an untrained tiny model of 32-pixel pictures with two classes, for tests that ignore its pictures."""
    torch.manual_seed(0)
    config = preset("tiny", num_labels=2, label_names=("rose", "tulip"), size=32, quality=30)
    DCTransformer(config).save_pretrained(folder)
    return folder


def prepare_small(photos: Path, out: Path) -> Path:
    """Prepare a folder of pictures for the model, with a quarter held out."""
    prepare(photos, out, size=32, quality=30, val_fraction=0.25, workers=1, progress=False)
    return out
