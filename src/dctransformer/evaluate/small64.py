"""``small64``: small feature extractors that ship with the package, for machines without a network.

Convolutional classifiers, trained by ``scripts/train_features.py``, whose last layer is cut off: ``small64`` of flowers
and ten kinds of things, ``small64-imagenette`` of those ten kinds and cats, to score models of flowers by. Their
distances compare models on *one* kind of small pictures with each other. They are on another scale than published FIDs,
so every figure made with one carries its name.

Shapes: B pictures, H × W pixels.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dctransformer.files import first_line
from dctransformer.hub.pretrained import SHIPPED

SIDE = 64
"""Side in pixels to which every picture is resized."""

WIDTH = 160
"""Number of features."""

SPATIAL_CHANNELS = 7
"""Channels of the 8 × 8 map that make the spatial features, as many as sFID takes."""

NAMES = ("small64", "small64-imagenette")
"""The extractors that ship."""


def weights_file(name: str) -> Path:
    """Return the path of a shipped extractor's weights."""
    return SHIPPED / name / "features.safetensors"


def _layer(inputs: int, outputs: int, stride: int, normalised: bool) -> nn.Sequential:
    """Return a 3 × 3 convolution, with batch normalisation while it is trained."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not normalised)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs)) if normalised else nn.Sequential(conv)


class Small64(nn.Module):
    """Four halvings, three of them with a residual layer, then the mean over places."""

    gain: Tensor

    def __init__(self, *, normalised: bool = False):
        """Create random weights; ``normalised`` adds the batch normalisation that training needs."""
        super().__init__()
        self.stem = _layer(3, 32, 2, normalised)
        widths = (32, 64, 128, WIDTH)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList([_layer(a, b, 2, normalised) for a, b in pairs])
        self.stay = nn.ModuleList([_layer(b, b, 1, normalised) for _, b in pairs])
        # Factors that make the total variance of either kind of features 100 on the pictures trained on.
        self.register_buffer("gain", torch.ones(2))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of pictures.

        Args:
            pictures: uint8 or float ``[B, H, W, 3]``, 0 to 255.

        Returns:
            fp32 ``[B, 160]``, the mean over places of the last map, and ``[B, 8·8·7]``, the first 7 channels of the
            8 × 8 map, flattened with channels last.
        """
        x = pictures.permute(0, 3, 1, 2).float()
        if x.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        x = self.stem((x - 127.5) / 64).relu()
        spatial = x
        for stage, (down, stay) in enumerate(zip(self.down, self.stay, strict=True)):
            x = down(x).relu()
            x = (x + stay(x)).relu()
            if stage == 1:
                spatial = x[:, :SPATIAL_CHANNELS]
        return x.mean((2, 3)) * self.gain[0], spatial.permute(0, 2, 3, 1).flatten(1) * self.gain[1]


def load_small64(path: Path | None = None) -> Small64:
    """Return the extractor of a file of weights, in eval mode; ``small64`` if none is given.

    Raises:
        ValueError: its file is missing or damaged.
    """
    path = path or weights_file(NAMES[0])
    network = Small64().eval()
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        network.load_state_dict(tensors)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({first_line(error)}); install dctransformer again") from error
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise ValueError(f"{path} is damaged (it holds NaN or infinity); install dctransformer again")
    return network.requires_grad_(False)
