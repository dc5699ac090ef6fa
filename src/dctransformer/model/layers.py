"""Attention, feed-forward and the stacks made of them: nothing here is specific to triples.

Shapes: B batch, L sequence, M memory, H heads, E head size, D width.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dctransformer.model.attention import attention
from dctransformer.model.config import Architecture


@dataclasses.dataclass
class Step:
    """A decode step: where in the chunk its one element lies, and how much of the caches it reads."""

    index: Tensor
    """int64 ``[1]``, the element's place in the chunk."""
    filled: int | None
    """Places of the caches that are filled, this one included; None if the host does not know."""
    seen: Tensor | None
    """bool ``[capacity]``, the places that are filled, if the host does not know how many."""

    @classmethod
    def at(cls, index: Tensor, capacity: int, *, static: bool) -> Step:
        """Return the step at ``index`` of a chunk of at most ``capacity`` elements.

        Args:
            index: int64 ``[1]``.
            capacity: of the caches.
            static: read whole caches under a mask, so that the host reads nothing and no shape changes, as a CUDA
                graph needs; else the host reads the number, which costs nothing on a CPU.
        """
        if static:
            return cls(index, None, torch.arange(capacity, device=index.device) <= index)
        filled = int(index.item()) + 1
        if torch.compiler.is_compiling():
            torch._check(filled >= 1)
            torch._check(filled <= capacity)
        return cls(index, filled, None)


@dataclasses.dataclass
class KVCache:
    """Keys and values of one self-attention layer: ``[B, H, capacity, E]`` each, of one size from start to end."""

    k: Tensor
    v: Tensor

    def put(self, k: Tensor, v: Tensor, step: Step | None) -> tuple[Tensor, Tensor]:
        """Store keys and values, and return all that the queries of the same elements may attend to.

        Args:
            k: ``[B, H, L, E]``.
            v: likewise.
            step: where they belong (L = 1); None for the beginning of the chunk.
        """
        if step is None:
            self.k[:, :, : k.shape[2]] = k
            self.v[:, :, : k.shape[2]] = v
            return k, v
        self.k.index_copy_(2, step.index, k)
        self.v.index_copy_(2, step.index, v)
        return self.k[:, :, : step.filled], self.v[:, :, : step.filled]


def rotary_table(length: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Return the cosine and signed sine of the rotary index for `rotate`: fp32 ``[length, E]`` each."""
    frequency = 10_000.0 ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.cos(), angle.cos()], dim=1), torch.cat([-angle.sin(), angle.sin()], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary index to ``x [B, H, L, E]`` with tables ``[L, E]``: halves ``(a, b)`` turn as one plane."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if torch.compiler.is_compiling():  # a roll is the faster way where nothing is fused, and a hindrance where it is
        half = x.shape[-1] // 2
        a, b = x.unflatten(-1, (2, half)).unbind(-2)
        turned = [a * cos[..., :half] + b * sin[..., :half], b * cos[..., half:] + a * sin[..., half:]]
        return torch.stack(turned, -2).flatten(-2)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def make_norm(config: Architecture, width: int) -> nn.LayerNorm:
    """Create a layer normalisation, with a bias in the paper's blocks."""
    return nn.LayerNorm(width, eps=1e-6, bias=config.block != "modern")


def normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Compute ``norm(x)`` without a module call, which takes longer than the normalisation if there are few rows."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Apply dropout; on a CPU its rate is a multiple of 1/256, and drawing is five times as fast."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = max(1, round(256 * rate))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(1 << 63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


def cast_once(x: Tensor) -> Tensor:
    """Cast ``x`` to autocast's precision, lest every product that reads it casts it again."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to a memory."""

    def __init__(self, config: Architecture):
        super().__init__()
        self.heads, self.head_size = config.heads, config.width // config.heads
        self.modern = config.block == "modern"
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        if self.modern:
            self.query_norm = make_norm(config, self.head_size)
            self.key_norm = make_norm(config, self.head_size)
        else:
            self.query_norm = self.key_norm = None
        self.fused: Tensor | None = None
        """Weights of queries, keys and values one below the other, ``[3 D, D]``; see `fuse`."""

    def fuse(self) -> None:
        """Compute queries, keys and values with one product from now on; the weights must not change any more."""
        weight = torch.cat([self.query.weight, self.key_value.weight])
        self.fused = weight.t().contiguous().t() if weight.device.type == "cpu" else weight

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys (normalised, not rotated) and values of ``source [B, M, D]``: ``[B, H, M, E]`` each."""
        k, v = self.key_value(source).unflatten(-1, (2, self.heads, self.head_size)).unbind(2)
        k = k if self.key_norm is None else self.key_norm(k)
        return k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        *,
        memory: tuple[Tensor, Tensor] | None = None,
        causal: bool = False,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        step: Step | None = None,
    ) -> Tensor:
        """Attend to the sequence itself, or to a memory.

        Args:
            x: ``[B, L, D]``.
            memory: keys and values to attend to instead of those of ``x``.
            causal: forbid looking ahead (in a step there is nothing ahead).
            rotary: tables whose row 0 is the index of ``x[:, 0]``.
            cache: where to store the keys and values of ``x``, and to read those before it.
            step: where ``x`` (L = 1) belongs in the cache; None for its beginning.

        Returns:
            ``[B, L, D]``.
        """
        if memory is None and self.fused is not None:
            projected = F.linear(x, self.fused).unflatten(-1, (3, self.heads, self.head_size))
            q, k, v = projected.permute(2, 0, 3, 1, 4).unbind()
            k = k if self.key_norm is None else normalise(k, self.key_norm)
        else:
            q = F.linear(x, self.query.weight).unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)
            k, v = memory if memory is not None else self.keys_values(x)
        q = q if self.query_norm is None else normalise(q, self.query_norm)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.put(k, v, step)
        y = attention(q, k, v, causal=causal and step is None, seen=step.seen if step is not None else None)
        return F.linear(y.transpose(1, 2).flatten(2), self.out.weight)


class FeedForward(nn.Module):
    """Gated (modern) or ReLU (paper) two-layer network on each element."""

    def __init__(self, config: Architecture):
        super().__init__()
        self.modern = config.block == "modern"
        self.up = nn.Linear(config.width, (2 if self.modern else 1) * config.hidden, bias=not self.modern)
        self.down = nn.Linear(config.hidden, config.width, bias=not self.modern)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to each element: ``[B, L, D]`` to the same."""
        if self.modern:
            gate, up = F.linear(x, self.up.weight).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, self.down.weight)
        return F.linear(F.relu(F.linear(x, self.up.weight, self.up.bias)), self.down.weight, self.down.bias)


class Branch(nn.Module):
    """Pre-normalised residual branch, with a ReZero gate (starting at 0) in the paper's style.

    Its parts are called by ``forward``, here and in `Layer`: with few rows a module call's hooks take longer than a
    product, and there is nothing to hook into (sharding hooks into whole layers, and into `Attention.keys_values`).
    """

    def __init__(self, config: Architecture, inner: nn.Module):
        super().__init__()
        self.norm = make_norm(config, config.width)
        self.inner = inner
        self.dropout = config.dropout
        self.gate = nn.Parameter(torch.zeros(1)) if config.block == "paper" else None

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        """Compute ``x + gate · inner(norm(x))``, ``[B, L, D]``."""
        y = self.inner.forward(cast_once(normalise(x, self.norm)), **kwargs)
        if self.dropout and self.training:
            y = dropout(y, self.dropout)
        return x + y if self.gate is None else x + self.gate * y


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, then some feed-forward layers."""

    def __init__(self, config: Architecture, feed_forwards: int, cross: bool):
        super().__init__()
        self.attention = Branch(config, Attention(config))
        self.cross = Branch(config, Attention(config)) if cross else None
        self.feed_forwards = nn.ModuleList(Branch(config, FeedForward(config)) for _ in range(feed_forwards))
        self.checkpoint = False
        """Keep only the layer's input for the backward pass and compute the rest again (less memory, more time)."""

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor] | None, **attention) -> Tensor:
        """Apply the layer: ``[B, L, D]`` to the same; ``attention`` goes to the self-attention."""
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(self.run, x, memory, use_reentrant=False, **attention)  # pyright: ignore[reportReturnType]
        return self.run(x, memory, **attention)

    def run(self, x: Tensor, memory: tuple[Tensor, Tensor] | None, **attention) -> Tensor:
        """Apply the layer without checkpointing: see `forward`."""
        x = self.attention.forward(x, **attention)
        if self.cross is not None:
            x = self.cross.forward(x, memory=memory)
        for feed_forward in self.feed_forwards:
            x = feed_forward.forward(x)
        return x


class Stack(nn.Module):
    """Layers with a final norm: a bidirectional encoder, or a causal decoder, with a memory or without."""

    cos: Tensor
    """fp32 ``[chunk, E]``, rotary tables of the modern style."""
    sin: Tensor

    def __init__(self, config: Architecture, layers: tuple[int, ...], decoder: bool, *, cross: bool | None = None):
        """Build the layers.

        Args:
            config: of the model.
            layers: number of feed-forward layers of each attention layer.
            decoder: whether the stack is causal.
            cross: whether it attends to a memory; None: decoders do.
        """
        super().__init__()
        self.config, self.decoder = config, decoder
        cross = decoder if cross is None else cross
        self.layers = nn.ModuleList(Layer(config, n, cross=cross) for n in layers)
        self.norm = make_norm(config, config.width)
        if decoder and config.block == "paper":
            self.index = nn.Embedding(config.chunk, config.width)
            nn.init.normal_(self.index.weight, std=0.02)
        if decoder and config.block == "modern":
            cos, sin = rotary_table(config.chunk, config.width // config.heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)

    def memory(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Compute keys and values of ``encoded [B, M, D]`` for each layer's cross-attention, once per chunk."""
        pairs = (layer.cross.inner.keys_values(encoded) for layer in self.layers)  # type: ignore[union-attr]
        # Laid out once here, and not again in every step.
        return [(k.contiguous(), v.contiguous()) for k, v in pairs]

    def new_cache(self, batch: int, like: Tensor) -> list[KVCache]:
        """Create an empty KV cache per layer for one chunk of ``batch`` rows, of the dtype and device of ``like``."""
        c = self.config
        shape = batch, c.heads, c.chunk, c.width // c.heads
        return [KVCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def forward(
        self,
        x: Tensor,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        caches: list[KVCache] | None = None,
        step: Step | None = None,
    ) -> Tensor:
        """Run the stack over a chunk from its start (with caches: prefill), or over one more element of it.

        Args:
            x: ``[B, L, D]``.
            memory: from `memory`; None without cross-attention.
            caches: from `new_cache`, to store the keys and values of ``x`` in.
            step: where ``x`` (L = 1) continues the chunk in the caches; None for its start.

        Returns:
            The stream after the final norm, ``[B, L, D]``.
        """
        rotary = None
        if self.decoder and self.config.block == "modern":
            rotary = self._rows(self.cos, x, step), self._rows(self.sin, x, step)
        elif self.decoder:
            x = x + self._rows(self.index.weight, x, step)
        for i, layer in enumerate(self.layers):
            x = layer(
                x,
                memory[i] if memory is not None else None,
                causal=self.decoder,
                rotary=rotary,
                cache=caches[i] if caches is not None else None,
                step=step,
            )
        return self.norm(x)

    @staticmethod
    def _rows(table: Tensor, x: Tensor, step: Step | None) -> Tensor:
        """Return the rows of a table ``[chunk, ·]`` that belong to ``x``."""
        return table[: x.shape[1]] if step is None else table.index_select(0, step.index)
