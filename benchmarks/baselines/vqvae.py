"""VQ-VAE (van den Oord et al. 2017): a convolutional autoencoder whose latent is a grid of codes from a codebook.

Two strided convolutions reduce the side of the picture to a quarter. The codebook is that of
``vector-quantize-pytorch``: it is initialised by k-means on the first encoder outputs and updated by moving averages
(their appendix A.1); gradients pass straight through to the encoder, and dead codes are reset to random outputs.

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
"""Downsampling factor: the side in pixels that one code covers."""

COMMITMENT = 0.25
"""Weight of the commitment loss, which keeps encoder outputs close to their codes (β in the paper)."""

DECAY = 0.99
"""Decay per step of the codebook's moving averages."""

DEAD = 0.1
"""A code whose moving average of uses per step is at most this is reset to a random encoder output."""


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
    """Shape of the autoencoder."""

    channels: int = 128
    """Number of channels C, even."""
    codes: int = 512
    """Number of codes K."""
    code_width: int = 32
    """Width W of a code."""


class Residual(nn.Module):
    """A residual block: ReLU, 3 × 3 convolution, ReLU, 1 × 1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.thin = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to ``[B, C, s, s]``."""
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
        """The device of the weights."""
        return next(self.parameters()).device

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures uint8 ``[B, S, S, 3]`` to continuous outputs fp32 ``[B, W, s, s]``."""
        return self.encoder(_scaled(pictures)).float()

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes ``[B, W, s, s]`` to scaled pictures fp32 ``[B, 3, S, S]``."""
        return self.decoder(codes).float()

    def forward(self, batch: Batch) -> Tensor:
        """Compute the training loss: squared error of the scaled pixels, and the weighted commitment loss.

        Returns:
            fp32 ``[B, 1, 2]``, each a mean over the picture multiplied by the number of predictions, because the
            training loop divides by that number.
        """
        outputs = self.encode(batch.inputs)
        with torch.autocast(outputs.device.type, enabled=False):  # nearest codes need exact distances
            codes, _, _ = self.quantiser(outputs)
        commitment = (outputs - codes.detach()).square().mean((1, 2, 3))
        error = (self.decode(codes) - _scaled(batch.inputs)).square().mean((1, 2, 3))
        return torch.stack([error, COMMITMENT * commitment], -1)[:, None] * batch.predicted.shape[1]

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:
        """Convert pictures uint8 ``[B, S, S, 3]`` to code indices int64 ``[B, s²]``."""
        return self.quantiser(self.encode(pictures), freeze_codebook=True)[1].flatten(1)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> Tensor:
        """Convert code indices int64 ``[B, s²]`` to pictures uint8 ``[B, S, S, 3]``."""
        side = round(tokens.shape[1] ** 0.5)
        scaled = self.decode(self.quantiser.get_output_from_indices(tokens.view(-1, side, side)))
        return (scaled * 64 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _scaled(pictures: Tensor) -> Tensor:
    """Scale pictures to a variance of about 1, channels first: fp32 ``[B, 3, S, S]``."""
    return (pictures.permute(0, 3, 1, 2).float() - 127.5) / 64
