"""Layers of the texture network.

Shapes: T channel decisions, W place width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 1024
"""Places at a time where nothing is trained: what is in between stays in a CPU's cache, which halves the time."""


class GatedMLP(nn.Module):
    """Pre-normalised gated feed-forward layer with a residual: ``[..., W]`` to the same."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: ``[..., W]`` to the same."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return x + self._change(x)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = x.reshape(-1, x.shape[-1]).split(_ROWS)
        for part, into in zip(rows, result.view(-1, x.shape[-1]).split(_ROWS), strict=True):
            torch.add(part, self._change(part), out=into)
        return result

    def _change(self, x: Tensor) -> Tensor:
        gate, up = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Depthwise 3×3 convolution over places, then a gated feed-forward layer, both with residuals."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Apply the block: ``[T, rows, cols, W]`` to the same, or with a stride of 2 to every other row and column."""
        around = F.conv2d(
            x.permute(0, 3, 1, 2), self.around.weight, self.around.bias, stride, padding=1, groups=self.around.groups
        )
        return self.mlp(x[:, ::stride, ::stride] + around.permute(0, 2, 3, 1))
