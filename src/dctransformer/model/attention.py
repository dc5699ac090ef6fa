"""Attention, softmax(QKᵀ/√E)V, by the fastest implementation for the device.

Shapes: B batch, H heads, L queries, M keys, E head size; N = B·H.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 128
"""Queries of a block: its weights stay in a core's cache."""

KEPT = 1024
"""Most keys whose weights are kept for the backward pass; beyond, memory counts for more than computing them again."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, seen: Tensor | None = None) -> Tensor:
    """Compute the attention of queries to keys and values.

    In training on a CPU in bf16 the fused kernel takes three times as long as plain products for short sequences and
    half as long again for long ones; everywhere else, for the single query of a decode step too, it is the fastest.

    Args:
        q: ``[B, H, L, E]``.
        k: ``[B, H, M, E]``.
        v: ``[B, H, M, E]``.
        causal: forbid looking ahead (L = M).
        seen: bool ``[M]``, the keys that are valid; None for all.

    Returns:
        ``[B, H, L, E]``.
    """
    if not torch.is_grad_enabled() or q.dtype != torch.bfloat16 or q.device.type != "cpu":
        mask = None if seen is None else seen.expand(q.shape[0], 1, q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        heads, longest = q.shape[1], max(q.shape[2], k.shape[2])
        q, k, v = (x.to(q.dtype).flatten(0, 1) for x in (q, k, v))
        if longest > ROWS:
            y = torch.ops.dctransformer.attention_in_blocks(q, k, v, causal)[0]
        else:
            y = torch.bmm(_weights(q, k, causal), v)
        return y.unflatten(0, (-1, heads))


def _weights(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Return softmax(QKᵀ/√E), ``[N, L, M]``; if causal, the last query sees all keys, the one before it one less."""
    bias = q.new_zeros(1, q.shape[1], k.shape[1])
    if causal:
        seen = torch.ones_like(bias, dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        bias = torch.where(seen, bias, -torch.inf)
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5).softmax(-1)


def _blocks(length: int, keys: int, causal: bool) -> Iterator[tuple[slice, int]]:
    """Yield the queries of each block, and how many keys they see."""
    for start in range(0, length, ROWS):
        end = min(start + ROWS, length)
        yield slice(start, end), end if causal else keys


@torch.library.custom_op("dctransformer::attention_in_blocks", mutates_args=(), device_types="cpu")
def attention_in_blocks(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Compute attention a block of queries at a time, without the keys that no query of a block sees.

    Args:
        q: ``[N, L, E]``.
        k: ``[N, M, E]``; M = L if causal.
        v: ``[N, M, E]``.
        causal: forbid looking ahead.

    Returns:
        ``[N, L, E]``, and the weights of all blocks one after the other (empty if there are too many to keep).
    """
    blocks = list(_blocks(q.shape[1], k.shape[1], causal))
    kept = q.new_empty(_kept(q, k, causal))
    out, begin = torch.empty_like(q), 0
    for rows, seen in blocks:
        weights = _weights(q[:, rows], k[:, :seen], causal)
        out[:, rows] = torch.bmm(weights, v[:, :seen])
        if len(kept):
            kept[begin : begin + weights.numel()] = weights.flatten()
            begin += weights.numel()
    return out, kept


def _kept(q: Tensor, k: Tensor, causal: bool) -> int:
    """Return the number of weights that are kept for the backward pass."""
    if k.shape[1] > KEPT:
        return 0
    return q.shape[0] * sum((rows.stop - rows.start) * seen for rows, seen in _blocks(q.shape[1], k.shape[1], causal))


@attention_in_blocks.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(_kept(q, k, causal))


@torch.library.custom_op("dctransformer::attention_in_blocks_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dq, (dk, dv) = torch.empty_like(q), (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    begin = 0
    for rows, seen in _blocks(q.shape[1], k.shape[1], causal):
        if len(kept):
            count = q.shape[0] * (rows.stop - rows.start) * seen
            weights = kept[begin : begin + count].view(q.shape[0], -1, seen)
            begin += count
        else:
            weights = _weights(q[:, rows], k[:, :seen], causal)
        grad_rows = grad[:, rows]
        dv[:, :seen] += torch.bmm(weights.transpose(1, 2), grad_rows)
        by_weight = torch.bmm(grad_rows, v[:, :seen].transpose(1, 2))
        by_score = torch.ops.aten._softmax_backward_data(by_weight, weights, -1, weights.dtype)
        dq[:, rows] = torch.bmm(by_score, k[:, :seen])
        dk[:, :seen] += torch.bmm(by_score.transpose(1, 2), q[:, rows])
    scale = q.shape[-1] ** -0.5
    return dq.mul_(scale), dk.mul_(scale).to(k.dtype), dv.to(v.dtype)


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors, ctx.causal), None


attention_in_blocks.register_autograd(_differentiate, setup_context=_remember)
