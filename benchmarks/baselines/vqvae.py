"""VQ-VAE (van den Oord et al. 2017): a convolutional autoencoder whose middle is a grid of codes from a codebook.

Two halvings make a grid of a quarter of the picture's side. The codebook is that of ``vector-quantize-pytorch``: it
starts at centres by k-means of the first outputs and follows the encoder's outputs by moving averages (their appendix
A.1); gradients pass straight through to the encoder, and codes that are no longer in use are put on random outputs.

Shapes: B pictures, S side in pixels, s = S / 4, K codes, W width of a code, C channels.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from baselines.pictures import Batch

SHRINK = 4
"""Pixels along a side of a code's square."""

COMMITMENT = 0.25
"""Weight of the loss that keeps the encoder's outputs near their codes (their β)."""

DECAY = 0.99
"""Decay per step of the codebook's moving averages."""

DEAD = 0.1
"""A code that this many outputs per step or fewer choose (their moving average) is put on a random output."""


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
    """Shape of the autoencoder."""

    channels: int = 128
    """C, an even number."""
    codes: int = 512
    """K."""
    code_width: int = 32
    """W."""


class Residual(nn.Module):
    """ReLU, 3 × 3, ReLU, 1 × 1, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.thin = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, s, s]`` to the same."""
        return x + self.thin(F.relu(self.wide(F.relu(x))))


class VQVAE(nn.Module):
    """The autoencoder."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config, c, half = config, config.channels, config.channels // 2
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, 2, 1), nn.ReLU(), nn.Conv2d(half, c, 4, 2, 1), Residual(c), Residual(c), nn.ReLU(),
            nn.Conv2d(c, config.code_width, 1),
        )  # fmt: skip
        self.quantiser = VectorQuantize(
            config.code_width, config.codes, decay=DECAY, kmeans_init=True, rotation_trick=False,
            accept_image_fmap=True,
            threshold_ema_dead_code=DEAD,  # pyright: ignore[reportArgumentType] (it is compared with floats)
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_width, c, 3, padding=1), Residual(c), Residual(c), nn.ReLU(),
            nn.ConvTranspose2d(c, half, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(half, 3, 4, 2, 1),
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode(self, pictures: Tensor) -> Tensor:
        """The encoder's outputs, fp32 ``[B, W, s, s]``, of uint8 ``[B, S, S, 3]``."""
        return self.encoder(_scaled(pictures)).float()

    def decode(self, codes: Tensor) -> Tensor:
        """Scaled pictures, fp32 ``[B, 3, S, S]``, of codes ``[B, W, s, s]``."""
        return self.decoder(codes).float()

    def forward(self, batch: Batch) -> Tensor:
        """What is trained on: squared error (of pixels whose variance is about 1) and weighted commitment.

        Each is a mean over the picture, times its number of predictions, as the training loop divides by these:
        fp32 ``[B, 1, 2]``.
        """
        outputs = self.encode(batch.inputs)
        with torch.autocast(outputs.device.type, enabled=False):  # distances of near neighbours
            codes, _, _ = self.quantiser(outputs)
        commitment = (outputs - codes.detach()).square().mean((1, 2, 3))
        error = (self.decode(codes) - _scaled(batch.inputs)).square().mean((1, 2, 3))
        return torch.stack([error, COMMITMENT * commitment], -1)[:, None] * batch.predicted.shape[1]

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:
        """Codes' numbers, int64 ``[B, s²]``, of uint8 ``[B, S, S, 3]``."""
        return self.quantiser(self.encode(pictures), freeze_codebook=True)[1].flatten(1)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> Tensor:
        """Pictures uint8 ``[B, S, S, 3]`` of codes' numbers int64 ``[B, s²]``."""
        side = round(tokens.shape[1] ** 0.5)
        scaled = self.decode(self.quantiser.get_output_from_indices(tokens.view(-1, side, side)))
        return (scaled * 64 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _scaled(pictures: Tensor) -> Tensor:
    """Channels first, variance about 1: fp32 ``[B, 3, S, S]``."""
    return (pictures.permute(0, 3, 1, 2).float() - 127.5) / 64
