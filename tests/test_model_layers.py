"""Tests of single layers: blockwise attention, and dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.model import attention as module
from dctransformer.model.attention import attention
from dctransformer.model.layers import dropout


def with_gradients(causal: bool, way, *tensors: Tensor) -> list[Tensor]:
    """Output of an attention, and gradients of queries, keys and values, in fp64."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    y = way(q, k, v, causal)
    y.backward(tensors[3].to(y.dtype))
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [x.detach().double() for x in (y, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "causal", "compiled"),
    [
        (20, 20, True, False),
        (20, 9, False, False),
        (300, 300, True, False),
        (130, 300, False, False),
        (300, 300, True, True),
        (300, 300, False, True),
    ],
)
def test_attention_written_out_is_the_fused_one(
    queries: int, keys: int, causal: bool, compiled: bool, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blockwise attention, recomputed or not, compiled or not, is as accurate as bf16 permits."""
    monkeypatch.setattr(module, "KEPT", 1024 if keep else 1)
    draw = torch.Generator().manual_seed(queries + keys)
    q, g = (torch.randn(2, 3, queries, 16, generator=draw).bfloat16() for _ in range(2))
    # The memory layout of the layers: heads inside tokens.
    k, v = (torch.randn(2, keys, 3, 16, generator=draw).bfloat16().transpose(1, 2) for _ in range(2))

    def ours(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return attention(q, k, v, causal=causal)

    def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    exact = with_gradients(causal, fused, *(x.double() for x in (q, k, v, g)))
    for blockwise, expected in zip(
        with_gradients(causal, torch.compile(ours) if compiled else ours, q, k, v, g), exact, strict=True
    ):
        assert (blockwise - expected).norm() < 0.01 * expected.norm()


def test_dropout_keeps_the_mean_and_follows_the_seed() -> None:
    """The rate is exact to 1/256, elements are independent, the mean is preserved, and a seed is reproducible."""
    x = torch.ones(301, 1001)
    torch.manual_seed(3)
    y = dropout(x, 0.1)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.1), y)
    assert not torch.equal(dropout(x, 0.1), y)
    dropped = (y == 0).double()
    assert y.unique().tolist() == [0, pytest.approx(256 / 230)]
    assert dropped.mean() == pytest.approx(26 / 256, abs=0.003)
    # The bytes of a random word are independent, and so are neighbours.
    for shift in range(1, 9):
        both = (dropped * dropped.roll(shift, 1)).mean()
        assert both == pytest.approx((26 / 256) ** 2, abs=0.002)
