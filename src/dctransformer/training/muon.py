"""Muon: steps along the orthogonalised momentum of matrices (Jordan et al. 2024).

`torch.optim.Muon` orthogonalises one matrix after the other, in bf16, which a CPU without bf16 hardware emulates many
times slower than fp32. Here matrices of one shape go through the iteration together, in a precision of choice, and
a parameter that holds several matrices one below the other is orthogonalised by its parts.

Shapes: K matrices of one shape, R rows, C columns, R ≤ C.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial x ↦ a·x + b·x³ + c·x⁵ that drives singular values towards 1 (Jordan et al.)."""

STEPS = 5
"""Iterations; singular values end between about 0.7 and 1.2."""


def orthogonalise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace the singular values of matrices by values near 1: a quintic Newton-Schulz iteration.

    With G = X·Xᵀ, each iteration is X ← (a + b·G + c·G²)·X.

    Args:
        x: ``[K, R, C]`` with R ≤ C.
        dtype: of the products.

    Returns:
        ``[K, R, C]`` in ``dtype``.
    """
    a, b, c = COEFFICIENTS
    x = x.to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum and decoupled weight decay; steps as large as AdamW's (Liu et al. 2025)."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        """Set the options.

        Args:
            groups: of 2-D parameters; ``parts`` is the number of matrices one below the other in each, 1 by default.
            lr: learning rate.
            weight_decay: decoupled, as a multiple of the learning rate.
            momentum: decay of the gradients' average.
            dtype: of the orthogonalisation.
        """
        self.dtype = dtype
        """Precision of the orthogonalisation."""
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take an optimiser step."""
        assert closure is None
        by_shape: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            gradients: list[Any] = [p.grad for p in parameters]
            momenta: list[Any] = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])  # pyright: ignore
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # pyright: ignore
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore
            for p, update in zip(parameters, ahead, strict=True):
                for matrix, change in zip(p.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    wide = (matrix, change) if matrix.shape[0] <= matrix.shape[1] else (matrix.mT, change.mT)
                    by_shape[*wide[0].shape, group["lr"]].append(wide)
        for (_, columns, lr), pairs in by_shape.items():
            updates = orthogonalise(torch.stack([change for _, change in pairs]), self.dtype)
            size = 0.2 * math.sqrt(columns)
            torch._foreach_add_([p for p, _ in pairs], list(updates.to(pairs[0][0].dtype).unbind()), alpha=-lr * size)  # pyright: ignore
