"""The decoder stacks for one triple at a time: the same arithmetic as `dctransformer.model.layers` in fewer operations.

A step does little work on small tensors, so what counts is how many operations it takes and how its matrices lie in
memory. Everything that does not depend on the triple is therefore folded beforehand: queries, keys and values come
from one product, normalisation weights and scales go into the rotary tables or the memory's keys, ReZero gates into
the output matrices, and residuals are added by the products themselves.

Shapes: B rows, H heads, E head size, M memory, D width; a step has one triple a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctransformer.model.layers import Attention, Branch, FeedForward, KVCache, Layer, Stack


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention of a scaled query a row, ``[B, H, E]``, to ``[B, H, M, E]``, where ``seen`` (bool ``[M]``): ``[B, D]``.

    For a single query on a CPU, plain products are twice as fast as the fused kernel, and compiled loops faster yet.
    """
    batch, heads, size = q.shape
    if q.device.type != "cpu":
        mask = None if seen is None else seen.expand(batch, heads, 1, -1)
        return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, scale=1.0).reshape(batch, -1)
    if torch.compiler.is_compiling():
        assert seen is None, "compiled for a CPU, only what is there is read"
        weights = (q[:, :, None] * k).sum(-1).softmax(-1)
        return (weights[..., None] * v).sum(2).flatten(1)
    scores = torch.bmm(q.reshape(batch * heads, 1, size), k.flatten(0, 1).transpose(1, 2))
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(batch, heads * size)


class _Norm:
    """A normalisation; ``plain`` leaves out the weights, which are folded into what follows."""

    def __init__(self, norm: nn.Module, *, plain: bool = False):
        assert isinstance(norm, nn.LayerNorm)
        self.shape, self.eps = list(norm.normalized_shape), norm.eps
        self.weight, self.bias = (None, None) if plain else (norm.weight, norm.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


def _by_columns(*weights: Tensor) -> Tensor:
    """Matrices ``[out, in]`` side by side as ``[in, out]``: with few rows a product is bound by reading it in order."""
    return torch.cat(weights).t().contiguous()


class _Attention:
    """What a step needs of an attention branch, to itself or to a memory."""

    def __init__(self, branch: Branch, stack: Stack):
        inner = branch.inner
        assert isinstance(inner, Attention)
        self.heads, self.modern, self.norm = inner.heads, inner.modern, _Norm(branch.norm)
        self.size = inner.head_size
        self.scale = inner.head_size**-0.5
        gate = 1.0 if branch.gate is None else branch.gate
        self.out = _by_columns(inner.out.weight * gate)
        if self.modern:
            self.query_weight, self.key_weight = inner.query_norm.weight * self.scale, inner.key_norm.weight
            self.normalise = _Norm(inner.query_norm, plain=True)


class _SelfAttention(_Attention):
    def __init__(self, branch: Branch, stack: Stack):
        super().__init__(branch, stack)
        inner = branch.inner
        assert isinstance(inner, Attention)
        query = inner.query.weight if self.modern else inner.query.weight * self.scale
        self.query_key_value = _by_columns(query, inner.key_value.weight)
        if self.modern:
            # rotate(w·x) = x·(w·cos) + roll(x)·(roll(w)·sin), for queries and keys at once.
            weight = torch.stack([self.query_weight, self.key_weight])
            dtype = weight.dtype
            self.cos = (stack.cos[:, None].to(dtype) * weight)[:, :, None]  # [chunk, 2, 1, E]
            self.sin = (stack.sin[:, None].to(dtype) * weight.roll(self.size // 2, -1))[:, :, None]

    def __call__(self, x: Tensor, cache: KVCache, place: Place, seen: Tensor | None) -> Tensor:
        width = x.shape[1]
        made = torch.mm(self.norm(x), self.query_key_value)
        both = made[:, : 2 * width].view(-1, 2, self.heads, self.size)
        if self.modern:
            both = self.normalise(both)
            both = torch.addcmul(both * place.row(self.cos), both.roll(self.size // 2, -1), place.row(self.sin))
        q, k = both.unbind(1)
        v = made[:, 2 * width :].view(-1, self.heads, self.size)
        keys, values = place.put(cache, k, v)
        return torch.addmm(x, attend(q, keys, values, seen), self.out)


class _CrossAttention(_Attention):
    def __init__(self, branch: Branch, stack: Stack):
        super().__init__(branch, stack)
        inner = branch.inner
        assert isinstance(inner, Attention)
        self.query = _by_columns(inner.query.weight if self.modern else inner.query.weight * self.scale)

    def memory(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A memory's keys and values, ``[B, H, M, E]`` each, ready for queries that are only normalised."""
        k = k * self.query_weight if self.modern else k
        return k.to(self.out.dtype), v.to(self.out.dtype)

    def __call__(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        q = torch.mm(self.norm(x), self.query).view(-1, self.heads, self.size)
        if self.modern:
            q = self.normalise(q)
        return torch.addmm(x, attend(q, *memory), self.out)


class _FeedForward:
    def __init__(self, branch: Branch):
        inner = branch.inner
        assert isinstance(inner, FeedForward)
        gate = 1.0 if branch.gate is None else branch.gate
        self.norm, self.modern = _Norm(branch.norm), inner.modern
        self.up, self.up_bias = _by_columns(inner.up.weight), inner.up.bias
        self.down = _by_columns(inner.down.weight * gate)
        self.down_bias = None if inner.down.bias is None else inner.down.bias * gate

    def __call__(self, x: Tensor) -> Tensor:
        if self.modern:
            gate, up = torch.mm(self.norm(x), self.up).chunk(2, dim=1)
            return torch.addmm(x, F.silu(gate) * up, self.down)
        assert self.up_bias is not None and self.down_bias is not None
        hidden = F.relu(torch.addmm(self.up_bias, self.norm(x), self.up))
        return torch.addmm(x + self.down_bias, hidden, self.down)


class Place:
    """Where in the chunk a step is, and how it reads and writes there.

    Either the host knows, and only what is there is read; or a tensor alone does. Then shapes never change and what is
    not there yet is masked, as a captured graph needs; a step compiled for a CPU reads the number from the tensor.
    """

    def __init__(self, begun: int, capacity: int, device: torch.device, *, known: bool):
        """Args: begun: triples that are there; capacity: of the chunk; device; known: whether the host keeps count."""
        self.index = torch.full((1,), begun, device=device)
        self.capacity = capacity
        self.filled: int | None = begun + 1 if known else None
        """How much of the caches there is with this triple."""

    def advance(self) -> None:
        """Go to the next triple."""
        self.index += 1
        if self.filled is not None:
            self.filled += 1

    def reads_index(self) -> bool:
        """Whether compiled code may read the tensor's number: on a CPU it costs nothing."""
        return self.index.device.type == "cpu" and torch.compiler.is_compiling()

    def seen(self) -> Tensor | None:
        """What of the caches there is, where all of them is read: bool ``[capacity]``."""
        if self.filled is not None or self.reads_index():
            return None
        return torch.arange(self.capacity, device=self.index.device) <= self.index

    def row(self, table: Tensor) -> Tensor:
        """The table's row for this place."""
        return table.index_select(0, self.index)[0] if self.filled is None else table[self.filled - 1]

    def put(self, cache: KVCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``[B, H, E]`` each and return all that there is, ``[B, H, M, E]`` each."""
        if self.filled is None:
            cache.put(k[:, :, None], v[:, :, None], self.index)
            if not self.reads_index():
                return cache.k, cache.v
            filled = int(self.index.item()) + 1
            torch._check(filled >= 1)
            torch._check(filled <= self.capacity)
            return cache.k[:, :, :filled], cache.v[:, :, :filled]
        cache.k[:, :, self.filled - 1].copy_(k)
        cache.v[:, :, self.filled - 1].copy_(v)
        return cache.k[:, :, : self.filled], cache.v[:, :, : self.filled]


class _StepLayer:
    def __init__(self, layer: Layer, stack: Stack):
        self.attention = _SelfAttention(layer.attention, stack)
        self.cross = None if layer.cross is None else _CrossAttention(layer.cross, stack)
        self.feed_forwards = [_FeedForward(branch) for branch in layer.feed_forwards if isinstance(branch, Branch)]


class StepStack:
    """A decoder stack for one triple at a time."""

    def __init__(self, stack: Stack):
        """Args: stack: whose weights to fold (as they are now); a decoder."""
        assert stack.decoder
        self.layers = [_StepLayer(layer, stack) for layer in stack.layers if isinstance(layer, Layer)]
        self.norm, self.dtype = _Norm(stack.norm), stack.norm.weight.dtype
        self.index = stack.index.weight if stack.config.block == "paper" else None

    def memory(self, memory: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Prepare a memory from `Stack.memory` for the steps of a chunk."""
        crosses = [layer.cross for layer in self.layers if layer.cross is not None]
        return [cross.memory(*pair) for cross, pair in zip(crosses, memory, strict=True)]

    def __call__(self, x: Tensor, memory: list[tuple[Tensor, Tensor]], caches: list[KVCache], place: Place) -> Tensor:
        """One step.

        Args:
            x: ``[B, 1, D]``.
            memory: from `memory`; empty without cross-attention.
            caches: one a layer.
            place: where in the chunk.

        Returns:
            The stream after the final norm, ``[B, 1, D]``.
        """
        x, seen = x[:, 0].to(self.dtype), place.seen()
        with torch.autocast(x.device.type, enabled=False):  # everything is in one dtype already
            if self.index is not None:
                x = x + place.row(self.index)
            for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
                x = layer.attention(x, cache, place, seen)
                if layer.cross is not None:
                    x = layer.cross(x, memory[i])
                for feed_forward in layer.feed_forwards:
                    x = feed_forward(x)
            return self.norm(x)[:, None]
