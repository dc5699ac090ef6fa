"""Inputs of texture decisions that change little from channel to channel, kept up to date.

`Texture.before` sums up a few statistics per channel, and `Texture.mix` is linear in the features of settled
coefficients: what a channel adds to either when it becomes settled is found without looking at the others.

Shapes: B pictures, R of them (in any order), K channels, P positions, C = 192 ranks, W place width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec.grid import CHANNEL_OF_RANK
from dctransformer.model.context import value_features
from dctransformer.model.texture import PLACE_INPUTS, Texture
from dctransformer.model.texture_state import TextureState

LARGE = 1024
"""Number of positions from which a picture counts as large, and its mix is kept up to date: 256 × 256 pixels."""


class RunningRates:
    """The rates of channels in use of B pictures, on any device."""

    def __init__(self, texture: Texture, picture: TextureState):
        """Sum up the statistics before the first channel of texture.

        Args:
            texture: in eval mode.
            picture: the structure and what else is given are settled. It is not changed.
        """
        self.texture, self.picture = texture, picture
        self.open_count = picture.opened.sum(-1)
        before = texture.before(picture)
        self.dtype, self.before = before.dtype, before.float()  # many small numbers are added to it

    def __call__(self, rows: Tensor, labels: Tensor, ranks: Tensor | None = None) -> Tensor:
        """Compute `Texture.use_rates` of some pictures.

        Args:
            rows: int64 ``[R]``, the pictures.
            labels: int64 ``[R]``.
            ranks: int64 ``[R, K]``, the channels whose rates are wanted; None for all.

        Returns:
            fp32 ``[R, C]``, or ``[R, K]``.
        """
        return self.texture.rates(self.before[rows].to(self.dtype), self.open_count[rows], labels, ranks)

    def settle(self, rows: Tensor, rank: Tensor, values: Tensor) -> None:
        """Settle a channel (int64 ``[R]``) of each of R different pictures, to values int16 ``[R, P]``."""
        texture, picture = self.texture, self.picture
        visible = (picture.opened[rows, rank] | picture.given_planes[rows, rank])[:, None]
        new, old = (
            texture.statistics(planes[:, None], visible, rank[:, None], picture.grid)[:, 0]
            for planes in (values, picture.planes[rows, rank])
        )
        gained = torch.einsum("rf,rfw->rw", new - old, texture.summary[rank])
        later = torch.arange(self.before.shape[1], device=rank.device) > rank[:, None]
        self.before[rows] += torch.where(later[..., None], gained.float()[:, None], 0.0)


class RunningMix:
    """The mix of B pictures on a CPU."""

    def __init__(self, texture: Texture, picture: TextureState):
        """Compute the mix before the first channel of texture.

        Args:
            texture: in eval mode.
            picture: the structure and what else is given are settled. It is not changed.
        """
        self.texture, self.picture = texture, picture
        self.planes = picture.planes.clone()
        """int16 ``[B, C, P]``, coefficients as far as they are settled."""
        count = len(picture.labels)
        self.settled = [texture.first] * count
        """The rank of each picture below which all channels are in the mix."""
        self.mixed = texture.mix(
            picture.coefficients, picture.given, picture.hidden, torch.full((count,), texture.first), picture.grid
        )

    def before(self, rows: Tensor, rank: Tensor) -> Tensor:
        """`Texture.mix` before a channel (int64 ``[R]``) of each of R pictures: ``[R, 2 W, rows, cols]``."""
        for row, end in zip(rows.tolist(), rank.tolist(), strict=True):
            if end > self.settled[row]:
                self.mixed[row] += self._gained(row, torch.arange(self.settled[row], end))
                self.settled[row] = end
        return self.mixed[rows]

    def settle(self, rows: Tensor, rank: Tensor, values: Tensor) -> None:
        """Settle a channel (int64 ``[R]``) of each of R different pictures, to values int16 ``[R, P]``."""
        self.planes[rows, rank] = values

    def _gained(self, row: int, ranks: Tensor) -> Tensor:
        """Compute what channels (int64 ``[K]``) add to the mix of a picture: ``[2 W, rows, cols]``."""
        texture, grid = self.texture, self.picture.grid
        gained = torch.zeros_like(self.mixed[row])
        parts = ((0, texture.luma_state, texture.luma_mix), (1, texture.chroma_state, texture.chroma_mix))
        for chroma, state, mix in parts:
            of_kind = ranks[texture.is_chroma[ranks] == chroma]
            if not len(of_kind):
                continue
            stride = 1 + chroma
            opened, values = (
                planes[row, of_kind].unflatten(1, (2 * grid.rows, grid.width))[:, ::stride, ::stride]
                for planes in (self.picture.opened, self.planes)
            )
            features = value_features(torch.where(opened, values, 0), texture.limits[of_kind, None, None])
            inputs = torch.cat([features, opened[..., None].float()], dim=-1)  # [K, rows, cols, 5]
            slot = CHANNEL_OF_RANK[of_kind] - 64 * chroma
            column = (slot[:, None] * PLACE_INPUTS + torch.arange(PLACE_INPUTS)).flatten()
            weight = torch.einsum("wsyx,sk->wkyx", mix.weight, state.weight[:, column])
            sums = F.conv2d(inputs.permute(0, 3, 1, 2).flatten(0, 1)[None], weight, padding=1)
            gained += (F.interpolate(sums, scale_factor=2, mode="nearest") if chroma else sums)[0]
        return gained
