"""Checkpoints: everything that a resumed run needs, in one safetensors file; and weights to start from."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from dctransformer.files import write_tensors
from dctransformer.hub.compatibility import ADDED, current_name, current_shape
from dctransformer.hub.pretrained import load_model
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.labels import model_labels
from dctransformer.training.distributed import gather_alike, placed_like
from dctransformer.training.optimizer import Optimizers

STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer", "step")
"""Names of the optimisers' states of a parameter."""

TEXTURE_NETWORK = {"texture_state", "texture_width", "texture_hidden", "texture_blocks"}
"""Settings of the texture network alone."""


def save_checkpoint(
    path: Path, model: nn.Module, ema: nn.Module, optimizer: Optimizers, progress: dict[str, Any], *, write: bool
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: of the file.
        model: the weights in training; if they are sharded, every process takes part in gathering them.
        ema: their moving average.
        optimizer: of the model.
        progress: JSON-ready.
        write: whether this process writes the file.

    Raises:
        ValueError: the disk is full or the folder can't be written; the file is as it was before.
    """
    tensors: dict[str, Tensor] = {}
    for (name, p), mean in zip(model.named_parameters(), ema.parameters(), strict=True):
        states = {f"optimizer.{key}.{name}": value for key, value in optimizer.state_of(p).items()}
        values = {f"weights.{name}": p.detach(), f"average.{name}": mean, **states}
        alike = [key for key, value in values.items() if value.shape == p.shape]  # all but the number of steps
        values |= zip(alike, gather_alike([values[key] for key in alike]), strict=True)
        if write:
            tensors |= {key: value.cpu().contiguous() for key, value in values.items()}
    if write:
        write_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_checkpoint(path: Path, model: nn.Module, ema: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
    """Read a checkpoint into a model, its EMA and its optimiser.

    Returns:
        The progress that was saved with it.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            tensors = {_current_key(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        for key, tensor in tensors.items():
            if not key.startswith("optimizer.step."):  # a scalar
                tensors[key] = tensor.reshape(current_shape(key, [*tensor.shape]))
        for (name, p), mean in zip(model.named_parameters(), ema.parameters(), strict=True):
            if name in ADDED and f"weights.{name}" not in tensors:
                p.data.zero_()
                mean.zero_()
                continue
            p.data.copy_(placed_like(tensors[f"weights.{name}"], p))
            mean.copy_(placed_like(tensors[f"average.{name}"], mean))
            for key in STATES:
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:  # the number of steps is one for all processes, the rest is sharded like p
                    optimizer.state_of(p)[key] = value.to(p.device) if key == "step" else placed_like(value, p)
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start the run again from its beginning") from error
    return progress


def _current_key(key: str) -> str:
    """Return a checkpoint's key with the name that the parameter has now."""
    return re.sub(r"^(weights|average|optimizer\.\w+)\.(.+)", lambda m: f"{m[1]}.{current_name(m[2])}", key)


def start_from(model: DCTransformer, name: str, *, new_texture: bool = False) -> None:
    """Copy the weights of another model; classes are matched by name, new ones start as "no label".

    Args:
        model: the model to be trained, on the CPU.
        name: run folder, saved model's folder, hf:owner/name or shipped weights.
        new_texture: where the settings of the texture network differ, keep the model's own texture network.

    Raises:
        ValueError: there is no such model, or its architecture or quality is another.
    """
    source = load_model(name)
    before, now = (dataclasses.asdict(c) for c in (source.config, model.config))
    free = {
        "dropout", "num_labels", "label_names", "conditions", "size", "shape", "extent", "windows", "prepared", "chunk",
        "overlap", "memory",
    }  # fmt: skip
    differ = [field for field in now if field not in free and before[field] != now[field]]
    keeps_texture = new_texture and any(field in TEXTURE_NETWORK for field in differ)
    differ = [field for field in differ if not (keeps_texture and field in TEXTURE_NETWORK)]
    if "quality" in differ:
        raise ValueError(
            f"{name} was trained on pictures of quality {before['quality']}, and these have {now['quality']}; prepare "
            f"them with --quality {before['quality']}, or leave --init out"
        )
    if differ or (model.config.block == "paper" and before["chunk"] != now["chunk"]):
        values = ", ".join(f"{field} {before[field]} instead of {now[field]}" for field in differ or ["chunk"])
        raise ValueError(
            f"{name} has another architecture ({values}); leave --preset and these --model options out, and the "
            "weights' architecture is used, or leave --init out"
        )
    state = source.state_dict()
    rows = model_labels(source.config, model.config.label_names, range(len(model.config.label_names)))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if keeps_texture and key.startswith("texture."):
                continue
            by_label = key.endswith("label.weight")  # the structure's, and the texture's two
            p.copy_(state[key][[*rows, source.config.null_label]] if by_label else state[key])
