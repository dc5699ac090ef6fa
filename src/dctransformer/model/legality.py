"""Masks of possible outcomes, shared by training, likelihood and sampling.

The order lets channels never go down and positions rise inside a channel; settled coefficients are never chosen
again; a value is never 0 and never larger than the codec can produce. Everything else gets probability 0, so each
sample is a valid DCT image and the negative log-likelihood is an exact code length.

Shapes: B batch, L triples, P positions, V values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import Grid, is_chroma_rank

NEVER = -1e9
"""Logit of an impossible outcome: its probability is exactly 0 in fp32, and no gradient becomes NaN."""


def open_places(closed_planes: Tensor, grid: Grid) -> Tensor:
    """Return the places that may ever be chosen, given those that are never listed: bool ``[B, 192, P]`` both."""
    device = closed_planes.device
    return ~closed_planes & (~is_chroma_rank(device)[:, None] | grid.table("is_chroma_place", device))


def last_open_place(opened: Tensor) -> Tensor:
    """Return the largest open position of each rank, −1 for none: bool ``[B, 192, P]`` to int64 ``[B, 192]``."""
    index = torch.arange(opened.shape[-1], device=opened.device)
    return torch.where(opened, index, -1).amax(-1)


def legal_channels(last: Tensor, previous_rank: Tensor, previous_position: Tensor) -> Tensor:
    """Return the channels (as ranks, with the stop) that may come next.

    Args:
        last: from `last_open_place`, int64 ``[B, 192]``.
        previous_rank: int64 ``[B, L]``, −1 before the first triple.
        previous_position: int64 ``[B, L]``.

    Returns:
        bool ``[B, L, 193]``; stopping is always possible.
    """
    rank = torch.arange(order.NUM_CHANNELS, device=last.device)
    later = (rank > previous_rank[..., None]) & (last >= 0)[:, None]
    same = (rank == previous_rank[..., None]) & (last[:, None] > previous_position[..., None])
    stop = torch.ones_like(previous_rank, dtype=torch.bool)[..., None]
    return torch.cat([later | same, stop], dim=-1)


def legal_positions(opened: Tensor, row: Tensor, rank: Tensor, cursor: Tensor) -> Tensor:
    """Return the positions that may come next in a chosen channel.

    Args:
        opened: from `open_places`, bool ``[B, 192, P]``.
        row: int64, broadcastable to ``rank``: which of the B each decision belongs to.
        rank: int64 ``[B, L]``, less than 192.
        cursor: int64 ``[B, L]``, the last position of the same channel, −1 if the channel is new.

    Returns:
        bool ``[B, L, P]``.
    """
    index = torch.arange(opened.shape[-1], device=opened.device)
    return opened[row, rank] & (index > cursor[..., None])


class ValueAlphabet:
    """The V possible values: ``−m … −1, 1 … m`` with m the largest limit of any channel."""

    def __init__(self, limits: Tensor):
        """List the values.

        Args:
            limits: int64 ``[192]`` by rank, largest magnitude of each channel.
        """
        self.limits = limits
        self.largest = int(limits.max())
        magnitudes = torch.arange(1, self.largest + 1)
        self.values = torch.cat([-magnitudes.flip(0), magnitudes])
        # At a DC step of 1 the encoder gives −1,024 … 1,016; a baseline file holds a range of 2,047 at most.
        self.legal = (self.values.abs() <= limits[:, None]) & (self.values <= 1023)

    def __len__(self) -> int:
        """Return the number V of values."""
        return 2 * self.largest

    def encode(self, value: Tensor) -> Tensor:
        """Return the class of each value (0 is not a value: it gets an arbitrary class, for stops and padding)."""
        return value + self.largest - (value > 0).to(value.dtype)

    def decode(self, index: Tensor) -> Tensor:
        """Return the value of each class."""
        return index - self.largest + (index >= self.largest).to(index.dtype)
