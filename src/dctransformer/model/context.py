"""Local context: features of a place from the coefficients around it, up to date for every channel.

Generation goes channel by channel, so when a channel begins, every earlier channel is settled at *every* place.
Two things follow without waiting for the next chunk's encoder pass:

* each place keeps a *state*, a running sum of table rows over its settled coefficients; a convolution over the
  states around a place, what is given of the same channel on all sides of it, the encoder's feature and the channel
  give the place's *features*, once per channel;
* inside a channel, a place also sees the same channel's values to its left and above.

Classical coders (Lepton, brunsli) live on these contexts alone.

Shapes: B batch, L triples, T channel runs of all chunks together, P positions, N MCUs, S state width, W place width,
K value features, D width.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctransformer.codec import order
from dctransformer.codec.grid import IS_CHROMA_RANK, Grid, cached_by_grid, outside_inference, rank_of_slot
from dctransformer.model.config import ModelConfig
from dctransformer.sequence.runs import Runs

VALUE_FEATURES = 4
"""K: signed log, non-zero flag, log magnitude, and four times the value over the channel's limit."""

NEIGHBOURS, BEFORE = 8, 4
"""Places around a place, and how many of them come before it in raster order."""

GIVEN_FEATURES = 4
"""Features of a place in the current channel: given, non-zero, log magnitude, signed log magnitude."""


def value_features(value: Tensor, limit: Tensor) -> Tensor:
    """Return the features of quantised values.

    Args:
        value: any shape, integer or float.
        limit: largest magnitude of each value's channel, broadcastable.

    Returns:
        fp32 ``[..., K]``; all zero where the value is 0.
    """
    x = value.float()
    magnitude = x.abs().log1p()
    return torch.stack([x.sign() * magnitude, (x != 0).float(), magnitude, 4 * x / limit], dim=-1)


@cached_by_grid
@outside_inference
def neighbour_table(grid: Grid, device: torch.device) -> Tensor:
    """Return the positions around each: int64 ``[2, 8, P]`` for luma and chroma, P where it is outside of the picture.

    The first `BEFORE` come earlier in raster order (left, above, above-left, above-right), the others mirror them.
    """
    tables = []
    for step in (1, 2):
        around = []
        before = ((0, -step), (-step, 0), (-step, -step), (-step, step))
        for down, right in (*before, *((-down, -right) for down, right in before)):
            row, col = grid.row + down, grid.col + right
            inside = (row >= 0) & (row < 2 * grid.rows) & (col >= 0) & (col < grid.width)
            around.append(torch.where(inside, row * grid.width + col, grid.positions))
        tables.append(torch.stack(around))
    return torch.stack(tables).to(device)


def _at_positions(by_mcu: Tensor, grid: Grid) -> Tensor:
    """Return each MCU's row of ``[T, N, W]`` at its four positions: ``[T, P, W]``."""
    spread = by_mcu.unflatten(1, (grid.rows, 1, grid.cols, 1)).expand(-1, -1, 2, -1, 2, -1)
    return spread.flatten(1, 4)


@dataclasses.dataclass
class States:
    """Running sums at every place: ``luma [·, P, S]`` and ``chroma [·, N, S]``."""

    luma: Tensor
    chroma: Tensor

    def __getitem__(self, rows: Tensor | tuple[Tensor, ...]) -> States:
        return States(self.luma[rows], self.chroma[rows])

    def copy(self) -> States:
        """Return the states that can be changed in place."""
        return States(self.luma.clone(), self.chroma.clone())


class LocalContext(nn.Module):
    """The states of all places, and the place features computed from them."""

    limits: Tensor
    """int64 ``[192]`` by rank: largest magnitude of each channel."""
    is_chroma: Tensor
    """bool ``[192]`` by rank."""

    def __init__(self, config: ModelConfig, limits: Tensor):
        super().__init__()
        s, w = config.state_width, config.place_width
        self.register_buffer("is_chroma", IS_CHROMA_RANK.clone(), persistent=False)
        self.register_buffer("limits", limits.clone(), persistent=False)
        self.table = nn.Parameter(torch.randn(order.NUM_CHANNELS, VALUE_FEATURES, s) * 0.3)
        self.given_table = nn.Parameter(torch.zeros(order.NUM_CHANNELS, s))
        """What a coefficient that is never to be listed adds to its place's state."""
        self.hidden_table = nn.Parameter(torch.zeros(order.NUM_CHANNELS, s))
        """What it adds besides if its value is not known."""
        self.given_mix = nn.Parameter(torch.zeros(NEIGHBOURS * GIVEN_FEATURES, 2 * w))
        """What given coefficients of the current channel add to the features of the places around them."""
        self.luma_mix = nn.Conv2d(s, 2 * w, 3, padding=1)
        self.chroma_mix = nn.Conv2d(s, 2 * w, 3, padding=1)
        self.encoded = nn.Linear(config.width, 4 * 2 * w, bias=False)
        self.channel = nn.Embedding(order.NUM_CHANNELS, 2 * w)
        self.norm = nn.LayerNorm(w, eps=1e-6, bias=False)
        nn.init.normal_(self.channel.weight, std=0.5)

    def contribution(self, rank: Tensor, value: Tensor) -> Tensor:
        """Return what triples add to their place's state: ranks < 192 and values, ``[...]``, to ``[..., S]``."""
        rows = F.embedding(rank, self.table.flatten(1)).unflatten(-1, self.table.shape[1:])
        return (value_features(value, self.limits[rank])[..., None, :] @ rows)[..., 0, :]

    def start(self, coefficients: Tensor, settled: Tensor, closed: Tensor, grid: Grid) -> States:
        """Compute the states before a chunk.

        Args:
            coefficients: int16 ``[B, N, 6, 64]``, the partial DCT image.
            settled: bool ``[B, N, 6, 64]``, where the value (zero too) is known.
            closed: bool ``[B, N, 6, 64]``, coefficients that are never listed: given, or else hidden.
            grid: the MCU grid.
        """
        device = coefficients.device
        ranks = rank_of_slot(device)
        features = value_features(coefficients, self.limits[ranks])
        luma_block = grid.table("luma_block", device)
        luma = features.flatten(1, 2)[:, luma_block].flatten(2) @ self.table[ranks[0]].flatten(0, 1)
        chroma = features[:, :, 4:].flatten(2) @ self.table[ranks[4:]].flatten(0, 2)
        for mask, table in ((closed, self.given_table), (closed & ~settled, self.hidden_table)):
            mask = mask.to(luma.dtype)
            luma = luma + mask.flatten(1, 2)[:, luma_block] @ table[ranks[0]]
            chroma = chroma + mask[:, :, 4:].flatten(2) @ table[ranks[4:]].flatten(0, 1)
        return States(luma, chroma)

    def encoded_places(self, encoded: Tensor, grid: Grid) -> Tensor:
        """Return the encoder's share of the place features: ``[B, N, D]`` to ``[B, P, 2 W]``."""
        parts = self.encoded(encoded).unflatten(-1, (4, -1)).flatten(1, 2)
        return parts[:, grid.table("luma_of_mcus", encoded.device)]

    def _given_around(self, given: Tensor, near: Tensor) -> Tensor:
        """Return the features of the given coefficients around each place: see `features`; ``[T, P, 8 · 4]``."""
        count, places = given.shape[:2]
        size = given[..., 0].abs().log1p()
        inputs = torch.stack([given[..., 1], (size > 0).float(), size, size * given[..., 0].sign()], dim=-1)
        row = torch.arange(count, device=near.device)[:, None, None] * (places + 1) + near.transpose(1, 2)
        return F.pad(inputs, (0, 0, 0, 1)).flatten(0, 1).index_select(0, row.flatten()).view(count, places, -1)

    def features(
        self, states: States, encoded: Tensor, given: tuple[Tensor, Tensor] | None, rank: Tensor, grid: Grid
    ) -> Tensor:
        """Compute the place features of T channels about to be listed.

        Args:
            states: at the beginning of each channel, luma ``[T, P, S]`` and chroma ``[T, N, S]``.
            encoded: from `encoded_places`, ``[T, P, 2 W]``.
            given: fp32 ``[T, P, 2]``, the channels' coefficients that are settled from the start (0 where they are
                not), and whether they are; no others of the channel, which are still to be decided. And rows of
                `neighbour_table`, int64 ``[T, 8, P]``. None where nothing is given.
            rank: int64 ``[T]``, less than 192.
            grid: the MCU grid.

        Returns:
            ``[T, P, W]``.
        """
        rows, cols = grid.rows, grid.cols
        luma = states.luma.transpose(1, 2).unflatten(2, (2 * rows, 2 * cols))
        chroma = states.chroma.transpose(1, 2).unflatten(2, (rows, cols))
        around_luma = self.luma_mix(luma).flatten(2).transpose(1, 2)
        around_chroma = self.chroma_mix(chroma).flatten(2).transpose(1, 2)
        mixed = around_luma + _at_positions(around_chroma, grid) + encoded + self.channel(rank)[:, None]
        if given is not None:
            mixed = mixed + self._given_around(*given).to(mixed.dtype) @ self.given_mix
        gate, up = mixed.chunk(2, dim=-1)
        return self.norm(F.silu(gate) * up)


def states_by_run(
    local: LocalContext, start: States, runs: Runs, ranks: Tensor, positions: Tensor, values: Tensor,
    counted: Tensor, grid: Grid,
) -> States:  # fmt: skip
    """Compute the states at the beginning of every run of a batch of whole chunks.

    Args:
        local: the module with the tables.
        start: states before each chunk.
        runs: from `Runs.find`.
        ranks: int64 ``[B, L]``; likewise positions and values.
        positions: see above.
        values: see above.
        counted: bool ``[B, L]``, triples that are not in ``start`` already and are no stop or padding.
        grid: the MCU grid.

    Returns:
        luma ``[T, P, S]`` and chroma ``[T, N, S]``.
    """
    batch, most = ranks.shape[0], runs.most
    listed = ranks.clamp(max=order.NUM_CHANNELS - 1)
    added, is_chroma = local.contribution(listed, values), local.is_chroma[listed]
    run = runs.index[runs.of_triple] + 1  # a triple shows from the next run on
    place = torch.arange(batch, device=ranks.device)[:, None] * most + run
    shown = counted & (run < most)

    def accumulate(base: Tensor, chosen: Tensor, position: Tensor) -> Tensor:
        # What each run adds: the first run begins with the states before the chunk; triples that no run shows go to a
        # spare row.
        places, width = base.shape[1:]
        rows = batch * most * places
        slot = torch.where(chosen, place * places + position, rows).flatten()
        given = F.pad(base[:, None], (0, 0, 0, 0, 0, most - 1)).flatten(0, 2)
        fresh = F.pad(given, (0, 0, 0, 1)).index_add(0, slot, added.flatten(0, 1).to(base.dtype))[:rows]
        return (
            _running_sum(fresh.view(batch, most, places * width))
            .flatten(0, 1)
            .index_select(0, runs.row * most + runs.index)
            .unflatten(1, (places, width))
        )

    return States(
        accumulate(start.luma, shown & ~is_chroma, positions),
        accumulate(start.chroma, shown & is_chroma, grid.mcu_at(positions)),
    )


def _running_sum(x: Tensor) -> Tensor:
    """Sum over dimension 1 of ``[B, R, K]`` up to each index: a product with a triangle, several times faster."""
    triangle = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()
    with torch.autocast(x.device.type, enabled=False):
        return triangle @ x
