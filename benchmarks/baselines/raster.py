"""A causal Transformer over a square grid of tokens in raster order: palette colours (Image GPT) or VQ-VAE codes.

The layout is that of GPT-2, a decoder without cross-attention. It is built from the same layers as DCTransformer's
decoders and samples with the same KV cache.

Shapes: B rows, L = side² tokens, K vocabulary size, D width.
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
    """Number of tokens along a side."""
    kinds: int = 512
    """Vocabulary size K."""
    num_labels: int = 0
    """Number of classes, not counting the null label, which is always added."""
    width: int = 192
    """Width D of the residual stream."""
    heads: int = 3
    """Number of attention heads."""
    layers: int = 5
    """Number of layers, each attention followed by a feed-forward network."""
    hidden: int = 768
    """Width of the feed-forward layers."""

    @property
    def length(self) -> int:
        """Number of tokens L per picture."""
        return self.side**2

    def architecture(self) -> Architecture:
        """The settings of `Stack`; the "chunk" is the whole picture."""
        return Architecture(width=self.width, heads=self.heads, hidden=self.hidden, chunk=self.length)


class RasterTransformer(nn.Module):
    """Predicts each token from the preceding tokens, its row and column, and the label."""

    def __init__(self, config: RasterConfig):
        super().__init__()
        self.config, d = config, config.width
        self.token = nn.Embedding(config.kinds + 1, d)
        """Embedding of the preceding token; the last entry stands for the start of the sequence."""
        self.row = nn.Embedding(config.side, d)
        self.col = nn.Embedding(config.side, d)
        self.label = nn.Embedding(config.num_labels + 1, d)
        self.stack = Stack(config.architecture(), (1,) * config.layers, decoder=True, cross=False)
        self.out = nn.Linear(d, config.kinds)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as DCTransformer does: unit-scale streams, residual branches and output head close to zero."""
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
        """The device of the weights."""
        return self.out.weight.device

    def embed(self, before: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Embed the input of the Transformer stack.

        Args:
            before: int64 ``[B, L]``, the token that precedes each predicted one; K at the start.
            index: int64 ``[L]``, raster indices of the predicted tokens.
            labels: int64 ``[B]``.

        Returns:
            ``[B, L, D]``.
        """
        side = self.config.side
        place = self.row(index // side) + self.col(index % side)
        return self.token(before) + place + self.label(labels)[:, None]

    def logits(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits of every token given the preceding ones: fp32 ``[B, L, K]`` for tokens int64 ``[B, L]``."""
        start = tokens.new_full((len(tokens), 1), self.config.kinds)
        before = torch.cat([start, tokens[:, :-1]], 1)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        return self.out(self.stack(self.embed(before, index, labels))).float()

    def forward(self, batch: Batch) -> Tensor:
        """Negative log-likelihood of every token in nats, fp32 ``[B, L, 1]``; its sum is the exact code length."""
        logits = self.logits(batch.inputs, batch.labels)
        return F.cross_entropy(logits.transpose(1, 2), batch.inputs, reduction="none")[..., None]


class Steps:
    """Decodes a batch of pictures token by token with a KV cache."""

    def __init__(self, model: RasterTransformer, labels: Tensor):
        """Allocate the KV cache.

        Args:
            model: the network, in eval mode.
            labels: int64 ``[B]``, on the device of the model.
        """
        self.model, self.labels = model, labels
        self.caches = model.stack.new_cache(len(labels), model.out.weight)
        self.index = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.before = torch.full((len(labels), 1), model.config.kinds, device=model.device)

    def __call__(self) -> Tensor:
        """Compute the logits of the next token, fp32 ``[B, K]``."""
        step = Step.at(self.index, self.model.config.length, static=self.index.device.type != "cpu")
        x = self.model.embed(self.before, self.index, self.labels)
        return self.model.out(self.model.stack(x, caches=self.caches, step=step))[:, 0].float()

    def append(self, token: Tensor) -> None:
        """Append the chosen token (int64 ``[B]``) and advance by one step."""
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
    """Sample the tokens of pictures with a KV cache.

    Args:
        model: the network, in eval mode.
        labels: one label per picture.
        config: seed, temperature, top-p, batch and precision (guidance is not used); picture i of a seed does not
            depend on the batch size.
        first: index of the first picture.
        progress: called with the number of finished pictures.

    Returns:
        int64 ``[n, L]`` on the CPU.

    Raises:
        ValueError: the device does not support the precision.
    """
    device, length = model.device, model.config.length
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    model = for_steps(model, resolve_precision(precision, device))
    batches: list[Tensor] = []
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
            steps.append(token)
        batches.append(tokens.cpu())
        if progress is not None:
            progress(numbers.stop)
    return torch.cat(batches)
