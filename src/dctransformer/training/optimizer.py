"""The optimisers, and the learning rate of each group of parameters.

AdamW always trains tables, gains, biases, convolutions and output heads; AdamW or Muon (`dctransformer.training.muon`)
trains the matrices of the stacks and of the texture network's feed-forward layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dctransformer.model.context import LocalContext
from dctransformer.model.layers import Attention, FeedForward, Stack
from dctransformer.model.texture import Texture
from dctransformer.model.texture_layers import GatedMLP
from dctransformer.training.config import TrainConfig
from dctransformer.training.muon import Muon


def learning_rate(config: TrainConfig, step: int, done: float) -> float:
    """Return the learning rate: a warm-up over steps, then a cosine over ``done`` (0 to 1, part of the budget)."""
    assert config.lr is not None, "the optimiser and its rate are resolved"
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * min(1.0, (step + 1) / config.warmup) * (config.final_lr + (1 - config.final_lr) * cosine)


class Optimizers:
    """One optimiser or two behind one interface; no parameter belongs to both."""

    def __init__(self, *parts: torch.optim.Optimizer):
        """Join optimisers of different parameters."""
        self.parts = parts
        self._owner = {p: part for part in parts for group in part.param_groups for p in group["params"]}

    def set_rate(self, rate: float) -> None:
        """Give every group its own multiple (``scale``) of a learning rate."""
        for group in itertools.chain.from_iterable(part.param_groups for part in self.parts):
            group["lr"] = rate * group["scale"]

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the precision of Muon's products."""
        for part in self.parts:
            if isinstance(part, Muon):
                part.dtype = dtype

    def state_of(self, p: Tensor) -> dict[str, Any]:
        """Return the optimiser state of a parameter: moments, and AdamW's number of steps (can be changed in place).

        It is empty for a parameter that is not trained.
        """
        return self._owner[p].state[p] if p in self._owner else {}

    def began(self, p: Tensor) -> bool:
        """Return whether a parameter has optimiser state yet, or never will, because it is not trained."""
        return p not in self._owner or bool(self._owner[p].state.get(p))

    def step(self) -> None:
        """Take an optimiser step."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad()


def make_optimizer(model: nn.Module, config: TrainConfig, dtype: torch.dtype = torch.float32) -> Optimizers:
    """Create fused AdamW for all parameters, or Muon for matrices of residual layers, by `TrainConfig.optimizer`.

    Args:
        model: its stacks, embedding tables and local context are distinguished from the rest.
        config: resolved.
        dtype: precision of Muon's products, one that is fast on the device.
    """
    assert config.lr is not None and config.optimizer != "auto", "the optimiser and its rate are resolved"
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, LocalContext):
            tables |= {id(module.table), id(module.given_table), id(module.hidden_table)}
    # A step of texture reads most rows of its tables: they need no larger steps than other parameters.
    dense = {id(m.weight) for t in model.modules() if isinstance(t, Texture) for m in t.modules()
             if isinstance(m, nn.Embedding)}  # fmt: skip
    tables -= dense
    stacked: set[int] = set()
    if config.optimizer == "muon":
        stacks = (module for module in model.modules() if isinstance(module, Stack))
        stacked = {id(p) for stack in stacks for p in stack.layers.parameters() if p.ndim == 2}
        layers = (module for module in model.modules() if isinstance(module, GatedMLP))
        stacked |= {id(p) for layer in layers for p in layer.parameters() if p.ndim == 2}
    pairs = {id(weight) for module in model.modules() for weight in fused_pairs(module)}
    groups: dict[str, list[Tensor]] = {"stacked": [], "matrices": [], "vectors": [], "tables": []}
    for p in (p for p in model.parameters() if p.requires_grad):
        kind = "tables" if id(p) in tables else "matrices" if p.ndim >= 2 and id(p) not in dense else "vectors"
        groups["stacked" if id(p) in stacked else kind].append(p)
    adamw = torch.optim.AdamW(
        [
            {"params": groups["matrices"], "weight_decay": config.weight_decay, "scale": 1.0},
            {"params": groups["vectors"], "weight_decay": 0.0, "scale": 1.0},
            {"params": groups["tables"], "weight_decay": 0.0, "scale": config.table_lr},
        ],
        lr=config.lr,
        betas=(0.9, 0.95),
        eps=1e-9,
        fused=True,
    )
    if not stacked:
        return Optimizers(adamw)
    single = [p for p in groups["stacked"] if id(p) not in pairs]
    double = [p for p in groups["stacked"] if id(p) in pairs]
    stacks_groups = [{"params": p, "scale": 1.0, "parts": parts} for p, parts in ((single, 1), (double, 2)) if p]
    muon = Muon(stacks_groups, lr=config.lr, weight_decay=config.weight_decay, dtype=dtype)
    return Optimizers(muon, adamw)


def fused_pairs(module: nn.Module) -> Iterator[Tensor]:
    """Yield weights of a module that are two matrices one below the other: keys and values, or gate and up."""
    if isinstance(module, Attention):
        yield module.key_value.weight
    elif isinstance(module, GatedMLP) or (isinstance(module, FeedForward) and module.modern):
        yield module.up.weight
