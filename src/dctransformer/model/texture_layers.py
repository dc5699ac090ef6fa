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


class Around(nn.ModuleList):
    """Convolutions over the planes of a channel: luma sees 5 × 5 blocks of itself, chroma 5 × 5 MCUs."""

    def __init__(self, planes: int, width: int):
        super().__init__(nn.Conv2d(planes, width, 5, padding=2 * d, dilation=d) for d in (1, 2))

    def forward(self, planes: Tensor, is_chroma: Tensor, kind: int | None) -> Tensor:
        """Return the features of what is around every place.

        Args:
            planes: ``[T, planes, rows, cols]``, of luma blocks.
            is_chroma: bool ``[T]``.
            kind: 0 if all channels are luma, 1 if all are chroma, None if they are mixed or unknown.

        Returns:
            ``[T, rows, cols, W]``; of chroma alone every other row and column.
        """
        luma, chroma = self
        assert isinstance(luma, nn.Conv2d) and isinstance(chroma, nn.Conv2d)
        if kind is None:
            around = torch.where(is_chroma[:, None, None, None], chroma(planes), luma(planes))
        else:
            used, unused = (chroma, luma) if kind else (luma, chroma)
            assert used.bias is not None and unused.bias is not None
            bias = used.bias
            if torch.is_grad_enabled():
                # Zero gradients instead of none: processes that train together exchange those of all weights.
                bias = bias + 0.0 * (unused.weight.sum() + unused.bias.sum())
            around = F.conv2d(planes[:, :, :: 1 + kind, :: 1 + kind], used.weight, bias, padding=2)
        return around.permute(0, 2, 3, 1)


class Block(nn.Module):
    """Depthwise 3×3 convolution over places, then a gated feed-forward layer, both with residuals."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Apply the block: ``[T, rows, cols, W]`` to the same, or with a stride of 2 to every other row and column."""
        weight = self.around.weight.squeeze(1).unsqueeze(1)  # its gradient has the strides that DDP expects
        around = F.conv2d(x.permute(0, 3, 1, 2), weight, self.around.bias, stride, padding=1, groups=self.around.groups)
        return self.mlp(x[:, ::stride, ::stride] + around.permute(0, 2, 3, 1))
