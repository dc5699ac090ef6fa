"""VQ-VAE (van den Oord et al. 2017): a convolutional autoencoder whose middle is a grid of codes from a codebook.

Two halvings make a grid of a quarter of the picture's side. The codebook follows the encoder's outputs by moving
averages (their appendix A.1), gradients pass straight through to the encoder, and codes that fall out of use are taken
up again at random outputs.

Shapes: B pictures, S side in pixels, s = S / 4, K codes, W width of a code, C channels.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.pictures import Batch

SHRINK = 4
"""Pixels along a side of a code's square."""

COMMITMENT = 0.25
"""Weight of the loss that keeps the encoder's outputs near their codes (their β)."""

DECAY = 0.99
"""A step of the codebook's moving averages."""

DEAD = 0.02
"""A code used less than this part of the mean use is taken up elsewhere."""


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


class Codebook(nn.Module):
    """Nearest code, straight-through gradient, and the averages that the codes follow."""

    usage: Tensor
    """fp32 ``[K]``, moving average of how often each code is used a batch."""
    sums: Tensor
    """fp32 ``[K, W]``, moving average of the sum of the outputs that chose it."""
    started: Tensor
    """bool, whether the codes have been put on outputs."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        # A parameter without gradient: so that the training loop's weight average holds it, too.
        self.codes = nn.Parameter(torch.randn(config.codes, config.code_width), requires_grad=False)
        self.register_buffer("usage", torch.zeros(config.codes))
        self.register_buffer("sums", torch.zeros(config.codes, config.code_width))
        self.register_buffer("started", torch.zeros(()))  # 0 or 1: weight files hold numbers only

    def nearest(self, outputs: Tensor) -> Tensor:
        """Number of the nearest code, int64 ``[...]``, of fp32 ``[..., W]``."""
        flat = outputs.reshape(-1, outputs.shape[-1])
        squares = self.codes.square().sum(1)
        return torch.addmm(squares, flat, self.codes.T, alpha=-2).argmin(1).view(outputs.shape[:-1])

    def forward(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise; in training mode, move the codes after the outputs.

        Args:
            outputs: of the encoder, fp32 ``[B, s, s, W]``.

        Returns:
            The codes, ``[B, s, s, W]``, whose gradient is the outputs'; and the commitment loss a picture, ``[B]``.
        """
        if self.training and not self.started:
            self._start(outputs.detach())
        index = self.nearest(outputs)
        chosen = self.codes[index]
        commitment = (outputs - chosen.detach()).square().mean((1, 2, 3))
        if self.training:
            self._follow(outputs.detach().reshape(-1, outputs.shape[-1]), index.flatten())
        return outputs + (chosen - outputs).detach(), commitment

    @torch.no_grad()
    def _start(self, outputs: Tensor) -> None:
        """Put the codes on random outputs, slightly apart where there are fewer outputs than codes."""
        flat = outputs.reshape(-1, outputs.shape[-1])
        picked = flat[torch.randint(len(flat), (len(self.codes),), device=flat.device)]
        self.codes.copy_(picked + 1e-3 * torch.randn_like(picked))
        self.usage.fill_(len(flat) / len(self.codes))
        self.sums.copy_(self.codes * self.usage[:, None])
        self.started.fill_(1)

    @torch.no_grad()
    def _follow(self, flat: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=len(self.codes)).float()
        self.usage.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, index, flat), 1 - DECAY)
        mean = len(flat) / len(self.codes)
        dead = (self.usage < DEAD * mean).nonzero()[:, 0]
        self.usage[dead] = mean
        self.sums[dead] = mean * flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
        self.codes.copy_(self.sums / self.usage[:, None])


class VQVAE(nn.Module):
    """The autoencoder."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config, c, half = config, config.channels, config.channels // 2
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, 2, 1), nn.ReLU(), nn.Conv2d(half, c, 4, 2, 1), Residual(c), Residual(c), nn.ReLU(),
            nn.Conv2d(c, config.code_width, 1),
        )  # fmt: skip
        self.codebook = Codebook(config)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_width, c, 3, padding=1), Residual(c), Residual(c), nn.ReLU(),
            nn.ConvTranspose2d(c, half, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(half, 3, 4, 2, 1),
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codebook.codes.device

    def encode(self, pictures: Tensor) -> Tensor:
        """The encoder's outputs, fp32 ``[B, s, s, W]``, of uint8 ``[B, S, S, 3]``."""
        return self.encoder(_scaled(pictures)).permute(0, 2, 3, 1).float()

    def decode(self, codes: Tensor) -> Tensor:
        """Scaled pictures, fp32 ``[B, 3, S, S]``, of codes ``[B, s, s, W]``."""
        return self.decoder(codes.permute(0, 3, 1, 2)).float()

    def forward(self, batch: Batch) -> Tensor:
        """What is trained on: squared error (of pixels whose variance is about 1) and weighted commitment.

        Each is a mean over the picture, times its number of predictions, as the training loop divides by these:
        fp32 ``[B, 1, 2]``.
        """
        outputs = self.encode(batch.inputs)
        with torch.autocast(outputs.device.type, enabled=False):  # distances of near neighbours
            codes, commitment = self.codebook(outputs)
        error = (self.decode(codes) - _scaled(batch.inputs)).square().mean((1, 2, 3))
        return torch.stack([error, COMMITMENT * commitment], -1)[:, None] * batch.predicted.shape[1]

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:
        """Codes' numbers, int64 ``[B, s²]``, of uint8 ``[B, S, S, 3]``."""
        return self.codebook.nearest(self.encode(pictures)).flatten(1)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> Tensor:
        """Pictures uint8 ``[B, S, S, 3]`` of codes' numbers int64 ``[B, s²]``."""
        side = round(tokens.shape[1] ** 0.5)
        scaled = self.decode(self.codebook.codes[tokens.view(-1, side, side)])
        return (scaled * 64 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _scaled(pictures: Tensor) -> Tensor:
    """Channels first, variance about 1: fp32 ``[B, 3, S, S]``."""
    return (pictures.permute(0, 3, 1, 2).float() - 127.5) / 64
