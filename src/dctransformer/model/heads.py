"""The three heads, one class each: parameters, initialisation and logits of the channel, the position and the value.

Shapes: B batch, L triples, N MCUs, P positions, C = 193 channel classes (ranks and the stop), V values, D width,
T channel runs, W place width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctransformer.codec import order
from dctransformer.codec.grid import IS_CHROMA_RANK, Grid
from dctransformer.model.chunk_state import PLACE_POINTER, POINTER, Context, Places
from dctransformer.model.config import Architecture
from dctransformer.model.context import BEFORE, NEIGHBOURS
from dctransformer.model.legality import NEVER, ValueAlphabet, legal_channels, legal_positions
from dctransformer.model.ops import rows_at, take
from dctransformer.sequence.chunks import START


def hazard_logits(score: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
    """Turn hazards into logits of the first outcome that is taken, where the possible ones are met in order.

    An outcome's score is the log-odds that it is taken *given that those before it are passed over*, its hazard. So
    an outcome's score need not depend on which others are possible.

    Args:
        score: fp32 ``[..., K]``.
        legal: bool, of the same shape: possible outcomes.

    Returns:
        The log-probability that each outcome is the first one taken, ``[..., K]`` (`NEVER` where it is impossible),
        and that none is, ``[..., 1]``.
    """
    passed = torch.where(legal, F.softplus(score), 0.0).cumsum(-1)
    return (score - passed).masked_fill(~legal, NEVER), -passed[..., -1:]


class ChannelHead(nn.Module):
    """The channel head: hazards over the channels in order; without local context one softmax, as in the paper."""

    def __init__(self, config: Architecture):
        super().__init__()
        self.hazards = config.local_context
        # The probability that remains when every channel is passed over is the stop's.
        outcomes = order.NUM_CHANNELS if self.hazards else order.NUM_CHANNELS + 1
        self.out = nn.Linear(config.width, outcomes)
        self.after = nn.Embedding(START + 1, outcomes)

    def initialise(self) -> None:
        """Set the start of training; linear layers have their usual weights already."""
        nn.init.normal_(self.out.weight, std=0.1 / math.sqrt(self.out.in_features))
        nn.init.zeros_(self.after.weight)
        if self.hazards:  # most channels are passed over, but one that is listed goes on
            nn.init.constant_(self.after.weight, -3.0)
            self.after.weight.data.fill_diagonal_(1.0)

    def forward(self, stream: Tensor, rank: Tensor, position: Tensor, context: Context) -> Tensor:
        """Return the logits of the next channel.

        Args:
            stream: of the channel decoder, ``[B, L, D]``.
            rank: of the triples before, int64 ``[B, L]`` (`START` for none).
            position: of the triples before.
            context: of the chunk.

        Returns:
            fp32 ``[B, L, C]`` over ranks and the stop.
        """
        score = self.out(stream).float() + self.after(rank)
        legal = legal_channels(context.last_open, torch.where(rank == START, -1, rank), position)
        if self.hazards:
            return torch.cat(hazard_logits(score, legal[..., :-1]), dim=-1)  # stopping is always possible
        return score.masked_fill(~legal, NEVER)


class PositionHead(nn.Module):
    """The position head: a pointer over the places, by the encoder's features and by the local context.

    With local context the scores are hazards over the places in order; without it they are logits, as in the paper.
    """

    is_chroma: Tensor
    """int64 ``[192]`` by rank: 0 for luma, 1 for chroma."""

    def __init__(self, config: Architecture):
        super().__init__()
        d, self.local = config.width, config.local_context
        self.register_buffer("is_chroma", IS_CHROMA_RANK.long(), persistent=False)
        self.pointer_query = nn.Linear(d, POINTER)
        self.pointer_key = nn.Linear(d, 4 * POINTER)
        if self.local:
            w = config.place_width
            self.place_query = nn.Linear(d, PLACE_POINTER)
            self.place_key = nn.Linear(w, PLACE_POINTER)
            self.place_readout = nn.Embedding(order.NUM_CHANNELS, w)
            self.place_bias = nn.Embedding(order.NUM_CHANNELS, 1)
            self.neighbour_gate = nn.Linear(d, BEFORE)
            self.neighbour_bias = nn.Embedding(order.NUM_CHANNELS, BEFORE)

    def initialise(self) -> None:
        """Set the start of training; linear layers have their usual weights already."""
        if self.local:
            nn.init.normal_(self.place_readout.weight, std=0.1 / math.sqrt(self.place_readout.embedding_dim))
            nn.init.constant_(self.place_bias.weight, -1.0)
            nn.init.zeros_(self.neighbour_bias.weight)
            nn.init.normal_(self.neighbour_gate.weight, std=0.1 / math.sqrt(self.neighbour_gate.in_features))

    def keys(self, encoded: Tensor, grid: Grid) -> Tensor:
        """Return the pointer keys of every place, from the encoder: ``[B, N, D]`` to ``[B, P, POINTER]``."""
        keys = self.pointer_key(encoded).unflatten(-1, (4, POINTER)).flatten(1, 2)
        return keys[:, grid.table("luma_of_mcus", keys.device)]

    def local_scores(self, features: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
        """Compute pointer keys and scores from the local context for T channels about to be listed.

        Args:
            features: of every place, ``[T, P, W]``.
            rank: int64 ``[T]``, less than 192.

        Returns:
            Pointer keys ``[T, P, PLACE_POINTER]``, and scores that do not depend on the stream ``[T, P]``.
        """
        base = (features @ self.place_readout(rank)[..., None])[..., 0] + self.place_bias(rank)
        return self.place_key(features) / math.sqrt(PLACE_POINTER), base

    def forward(self, stream: Tensor, rank: Tensor, cursor: Tensor, places: Places, context: Context) -> Tensor:
        """Return the logits of the position in a chosen channel.

        Args:
            stream: of the position decoder, ``[B, L, D]``.
            rank: the chosen channels, int64 ``[B, L]``, less than 192.
            cursor: the last position in the same channel, −1 if there is none; int64 ``[B, L]``.
            places: the places of those channels.
            context: of the chunk.

        Returns:
            fp32 ``[B, L, P]``.
        """
        batch = torch.arange(rank.shape[0], device=rank.device)[:, None]
        legal = legal_positions(context.opened, batch, rank, cursor)
        score = self.pointer_query(stream) @ context.place_keys.transpose(1, 2) / math.sqrt(POINTER)
        if not self.local:
            return score.float().masked_fill(~legal, NEVER)
        assert places.keys is not None and places.base is not None
        score = score + places.at(places.base)
        score = score + (places.at(places.keys) @ self.place_query(stream)[..., None])[..., 0]
        weight = self.neighbour_gate(stream) + self.neighbour_bias(rank)
        score = self._with_neighbours(score, weight, rank, cursor, places, context)
        return hazard_logits(score.float(), legal)[0]

    def _with_neighbours(
        self, score: Tensor, weight: Tensor, rank: Tensor, cursor: Tensor, places: Places, context: Context
    ) -> Tensor:
        """Add the scores that a place gets from the same channel's listed values just left of and above it.

        Only places soon after the cursor have neighbours before it, so no others are looked at: in a large picture a
        small part. (Those before the cursor can't be chosen any more.)

        Args:
            score: of every place, ``[B, L, P]``.
            weight: of the four neighbours, ``[B, L, 4]``.
            rank: the chosen channels, int64 ``[B, L]``; likewise the cursor.
            cursor: see `forward`.
            places: the places of those channels.
            context: of the chunk.
        """
        grid = context.grid
        reach = min(2 * grid.width + 2, grid.positions)  # chroma's neighbour above and to the left
        here = cursor[..., None] + torch.arange(1, reach + 1, device=cursor.device)
        inside, here = here < grid.positions, here.clamp(max=grid.positions - 1)
        side = torch.arange(BEFORE, device=cursor.device)[:, None]
        row = self.is_chroma[rank][..., None, None] * NEIGHBOURS + side
        near = take(context.neighbours, row * grid.positions + here[:, :, None])
        size = places.same_at(near).abs().log1p() * (near <= cursor[..., None, None])
        added = (weight[..., None] * size).sum(-2) * inside
        return score.scatter_add(-1, here, added.to(score.dtype))


class ValueHead(nn.Module):
    """The value head: its input at the chosen place, and the logits of the value."""

    is_chroma: Tensor
    """int64 ``[192]`` by rank: 0 for luma, 1 for chroma."""
    limits: Tensor
    """int64 ``[192]`` by rank: largest magnitude of each channel."""
    legal: Tensor
    """bool ``[192, V]`` by rank: values that a channel can have."""

    def __init__(self, config: Architecture, alphabet: ValueAlphabet):
        super().__init__()
        d, self.local = config.width, config.local_context
        self.register_buffer("is_chroma", IS_CHROMA_RANK.long(), persistent=False)
        self.register_buffer("limits", alphabet.limits.clone(), persistent=False)
        self.register_buffer("legal", alphabet.legal, persistent=False)
        self.encoder_at_place = nn.Linear(d, d)
        self.out = nn.Linear(d, len(alphabet))
        self.after = nn.Embedding(order.NUM_CHANNELS, len(alphabet))
        if self.local:
            self.context = nn.Sequential(nn.Linear(config.place_width + 2 * BEFORE, d), nn.SiLU(), nn.Linear(d, d))

    def initialise(self) -> None:
        """Set the start of training; linear layers have their usual weights already."""
        nn.init.normal_(self.out.weight, std=0.1 / math.sqrt(self.out.in_features))
        nn.init.zeros_(self.after.weight)

    def read(self, x: Tensor, rank: Tensor, position: Tensor, places: Places, context: Context) -> Tensor:
        """Add what is known at and around the chosen places: the encoder's feature and the local context.

        Args:
            x: ``[B, L, D]``.
            rank: int64 ``[B, L]``, less than 192.
            position: int64 ``[B, L]``.
            places: the places of those channels.
            context: of the chunk.

        Returns:
            ``[B, L, D]``.
        """
        grid = context.grid
        batch = torch.arange(len(position), device=position.device)[:, None]
        x = x + rows_at(context.at_place, batch, grid.mcu_at(position))
        if places.features is None:
            return x
        near = context.neighbours[self.is_chroma[rank], :BEFORE, position]
        same = places.same_at(near).masked_fill(near == grid.positions, 0.0)
        limit = self.limits[rank][..., None]
        around = torch.cat([same.sign() * same.abs().log1p(), 4 * same / limit], dim=-1)
        here = rows_at(places.features, places.of_triple, position)
        return x + self.context(torch.cat([here, around.to(here.dtype)], dim=-1))

    def forward(self, stream: Tensor, rank: Tensor) -> Tensor:
        """Return the logits of the value, fp32 ``[B, L, V]``, from the value decoder's stream ``[B, L, D]``."""
        return (self.out(stream).float() + self.after(rank)).masked_fill(~self.legal[rank], NEVER)
