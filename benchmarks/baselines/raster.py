"""A causal Transformer over a square of tokens in raster order: palette colours (Image GPT) or codes (VQ-VAE's prior).

It is GPT-2's layout, a decoder without cross-attention, made of the very layers that DCTransformer's decoders are made
of, and it samples with the same caches.

Shapes: B rows, L = side² tokens, K kinds of tokens, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.pictures import Batch
from dctransformer.model.config import Architecture
from dctransformer.model.layers import Stack, Step
from dctransformer.model.precision import resolve_precision
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.decoder_state import for_steps
from dctransformer.sampling.drawing import Draws, pick


@dataclasses.dataclass(frozen=True)
class RasterConfig:
    """Shape of the Transformer."""

    side: int
    """Tokens along a side."""
    kinds: int = 512
    """Kinds K of tokens."""
    num_labels: int = 0
    """Number of classes; one more label, the null label, is always added."""
    width: int = 192
    """Width D of the residual stream."""
    heads: int = 3
    """Attention heads."""
    layers: int = 5
    """Layers: attention, then a feed-forward network."""
    hidden: int = 768
    """Width of the feed-forward layers."""

    @property
    def length(self) -> int:
        """Tokens L of a picture."""
        return self.side**2

    def architecture(self) -> Architecture:
        """What `Stack` reads: its "chunk" is the whole picture."""
        return Architecture(width=self.width, heads=self.heads, hidden=self.hidden, chunk=self.length)


class RasterTransformer(nn.Module):
    """Token k from the tokens before it, its row and column, and the label."""

    def __init__(self, config: RasterConfig):
        super().__init__()
        self.config, d = config, config.width
        self.token = nn.Embedding(config.kinds + 1, d)
        """Of the token before; the last stands for none."""
        self.row = nn.Embedding(config.side, d)
        self.col = nn.Embedding(config.side, d)
        self.label = nn.Embedding(config.num_labels + 1, d)
        self.stack = Stack(config.architecture(), (1,) * config.layers, decoder=True, cross=False)
        self.out = nn.Linear(d, config.kinds)
        self._initialise()

    def _initialise(self) -> None:
        """As DCTransformer: unit-scale streams; residual branches and the head start at nearly nothing."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                small = 0.1 if name == "out" or name.endswith(("inner.out", "inner.down")) else 1.0
                nn.init.normal_(module.weight, std=small / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.out.weight.device

    def embed(self, before: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """The stack's input.

        Args:
            before: int64 ``[B, L]``, the tokens before those to be predicted; K where there is none.
            index: int64 ``[L]``, raster indices of those to be predicted.
            labels: int64 ``[B]``.

        Returns:
            ``[B, L, D]``.
        """
        side = self.config.side
        place = self.row(index // side) + self.col(index % side)
        return self.token(before) + place + self.label(labels)[:, None]

    def logits(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits of every token, each from those before it: fp32 ``[B, L, K]`` for tokens int64 ``[B, L]``."""
        start = tokens.new_full((len(tokens), 1), self.config.kinds)
        before = torch.cat([start, tokens[:, :-1]], 1)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        return self.out(self.stack(self.embed(before, index, labels))).float()

    def forward(self, batch: Batch) -> Tensor:
        """Nats of every token: fp32 ``[B, L, 1]``; their sum is a picture's exact code length."""
        logits = self.logits(batch.inputs, batch.labels)
        return F.cross_entropy(logits.transpose(1, 2), batch.inputs, reduction="none")[..., None]


class Steps:
    """A batch of pictures token by token; `__call__` gives the next token's logits."""

    def __init__(self, model: RasterTransformer, labels: Tensor):
        """Args: model: in eval mode; labels: int64 ``[B]``, on its device."""
        self.model, self.labels = model, labels
        self.caches = model.stack.new_cache(len(labels), model.out.weight)
        self.index = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.before = torch.full((len(labels), 1), model.config.kinds, device=model.device)

    def __call__(self) -> Tensor:
        """Logits of the next token, fp32 ``[B, K]``."""
        step = Step.at(self.index, self.model.config.length, static=self.index.device.type != "cpu")
        x = self.model.embed(self.before, self.index, self.labels)
        return self.model.out(self.model.stack(x, caches=self.caches, step=step))[:, 0].float()

    def take(self, token: Tensor) -> None:
        """Decide on it (int64 ``[B]``), and go on."""
        self.before = token[:, None]
        self.index += 1


@torch.inference_mode()
def sample_tokens(
    model: RasterTransformer,
    labels: list[int],
    config: SampleConfig,
    *,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw pictures' tokens with key/value caches.

    Args:
        model: in eval mode.
        labels: one a picture.
        config: seed, temperature, top-p, batch and precision (guidance is not used); picture i of a seed is the same
            whatever the batch.
        first: number of the first picture.
        progress: called with the number of finished pictures.

    Returns:
        int64 ``[n, L]`` on the CPU.

    Raises:
        ValueError: the device can't do the precision.
    """
    device, length = model.device, model.config.length
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    model = for_steps(model, resolve_precision(precision, device))
    made: list[Tensor] = []
    for start in range(0, len(labels), config.batch):
        numbers = range(start, min(start + config.batch, len(labels)))
        noise = np.stack([np.random.default_rng([config.seed, first + i]).random(length) for i in numbers], 1)
        uniform = torch.from_numpy(noise).to(device)
        steps = Steps(model, torch.tensor([labels[i] for i in numbers], device=device))
        draws = Draws.of([config] * len(numbers), device)
        tokens = torch.zeros(len(numbers), length, dtype=torch.int64, device=device)
        for k in range(length):
            token = pick(steps(), uniform[k], draws)
            tokens[:, k] = token
            steps.take(token)
        made.append(tokens.cpu())
        if progress is not None:
            progress(numbers.stop)
    return torch.cat(made)
