"""What decisions about the texture of large pictures know, kept up to date from channel to channel.

What `Texture.mix` sums up is linear in the features of settled coefficients, and what `Texture.rates` reads are a few
statistics per channel: both change little when a channel becomes settled. In a large picture, making them anew for
every channel takes most of the time.

Shapes: B pictures, R of them, K channels that become settled, P positions, C = 192 ranks, W place width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec.grid import CHANNEL_OF_RANK
from dctransformer.model.context import value_features
from dctransformer.model.texture import PLACE_INPUTS, Texture
from dctransformer.model.texture_state import Channels, Picture

LARGE = 1024
"""Positions from which on a picture is large: 256 × 256 pixels."""


class RunningTexture:
    """The mix and the statistics of B pictures on a CPU."""

    def __init__(self, texture: Texture, picture: Picture):
        """Begin before the first channel of texture.

        Args:
            texture: in eval mode.
            picture: the structure and what else is given are settled. It is not changed.
        """
        self.texture, self.picture = texture, picture
        self.planes = picture.planes.clone()
        """int16 ``[B, C, P]``, coefficients as far as they are settled."""
        self.visible = picture.opened | picture.given_planes
        self.open_count = picture.opened.sum(-1)
        self.known, self.all_of = texture.statistics(picture)
        count = len(picture.labels)
        self.settled = [texture.first] * count
        """The rank of each picture below which all channels are in the mix."""
        self.mixed = texture.mix(picture, torch.arange(count), torch.full((count,), texture.first))

    def rates(self, rows: Tensor, labels: Tensor) -> Tensor:
        """What `Texture.use_rates` returns for pictures (int64 ``[R]``) with labels (int64 ``[R]``)."""
        return self.texture.rates(self.known[rows], self.all_of[rows], self.open_count[rows], labels)

    def begin(self, rows: Tensor, rank: Tensor, labels: Tensor) -> Channels:
        """What `Texture.begin` returns for a channel (int64 ``[R]``) of each of some pictures."""
        for row, end in zip(rows.tolist(), rank.tolist(), strict=True):
            if end > self.settled[row]:
                self.mixed[row] += self._gained(row, torch.arange(self.settled[row], end))
                self.settled[row] = end
        return self.texture.begin(self.picture, rows, rank, mixed=self.mixed[rows], labels=labels)

    def settle(self, rows: Tensor, rank: Tensor, values: Tensor) -> None:
        """Take a channel of each of some pictures as settled (int64 ``[R]``; values int16 ``[R, P]``)."""
        self.planes[rows, rank] = values
        for k, row in enumerate(rows.tolist()):
            only, visible = rank[k : k + 1], self.visible[row, rank[k]]
            self.all_of[row, rank[k]] = self.texture.channel_statistics(
                values[k, None, None], visible[None, None], only, self.picture.grid
            )[0, 0]

    def _gained(self, row: int, ranks: Tensor) -> Tensor:
        """What the mix of a picture gains by channels (int64 ``[K]``) that become settled: ``[2 W, rows, cols]``."""
        texture, grid = self.texture, self.picture.grid
        gained = torch.zeros_like(self.mixed[row])
        parts = ((0, texture.luma_state, texture.luma_mix), (1, texture.chroma_state, texture.chroma_mix))
        for chroma, state, mix in parts:
            some = ranks[texture.is_chroma[ranks] == chroma]
            if not len(some):
                continue
            stride = 1 + chroma
            opened, values = (
                planes[row, some].unflatten(1, (2 * grid.rows, grid.width))[:, ::stride, ::stride]
                for planes in (self.picture.opened, self.planes)
            )
            features = value_features(torch.where(opened, values, 0), texture.limits[some, None, None])
            inputs = torch.cat([features, opened[..., None].float()], dim=-1)  # [K, rows, cols, 5]
            slot = CHANNEL_OF_RANK[some] - 64 * chroma
            column = (slot[:, None] * PLACE_INPUTS + torch.arange(PLACE_INPUTS)).flatten()
            weight = torch.einsum("wsyx,sk->wkyx", mix.weight, state.weight[:, column])
            sums = F.conv2d(inputs.permute(0, 3, 1, 2).flatten(0, 1)[None], weight, padding=1)
            gained += (F.interpolate(sums, scale_factor=2, mode="nearest") if chroma else sums)[0]
        return gained
