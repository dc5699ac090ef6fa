"""Texture: high-frequency coefficients, decided one channel at a time instead of one triple at a time.

The channels of the bands from `Architecture.texture_from` on follow the structure. For each of them, in generation
order, three things are decided, given everything before:

1. *Use*: whether the channel holds anything at all. With ``d`` the expected number of coefficients per open place,
   p(in use) = 1 − exp(−d · open places), so that a rate learned on small pictures holds for large ones.
2. *Occupancy*: which open places hold a coefficient: a Bernoulli per place, all places of a checkerboard colour at
   once. The second colour sees the first. The last colour with open places must not leave the channel empty:
   P(o) = ∏ a^o (1 − a)^(1 − o) / (1 − ∏ (1 − a)).
3. *Values* at the occupied places, again one colour after the other; all see the channel's whole occupancy. The
   magnitude is a sequence of hazards ("1?", "2?", …) with a constant hazard from `MAGNITUDES` on, up to the codec's
   limit; then comes the sign.

Every term is normalised, so the likelihood stays exact. The network is convolutional over luma blocks, sees no
positions, and runs on a picture of any size. Training, likelihood and sampling call the same methods.

Shapes: B pictures, T channel decisions (of any of the pictures), N MCUs, P positions, H = P / 2 places of one colour,
C = 192 ranks, S state width, W place width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctransformer.codec import order
from dctransformer.codec.grid import BAND_OF_RANK, IS_CHROMA_RANK, Grid, rank_of_slot
from dctransformer.codec.triples import gather
from dctransformer.model.config import Architecture
from dctransformer.model.context import value_features
from dctransformer.model.ops import log_at_least_one, rows_at
from dctransformer.model.texture_layers import Around, Block, GatedMLP
from dctransformer.model.texture_state import (
    Channels,
    Occupancy,
    TextureState,
    Values,
    checkerboard,
    chroma_half,
    settle,
)
from dctransformer.model.texture_values import MAGNITUDES, VALUE_OUTPUTS, value_log_p
from dctransformer.sequence.texture import TextureBatch

TEXTURE_PLACES = 1 << 16
"""Most places whose features are computed together without gradients, as they take memory."""

PLACE_INPUTS = 5
"""Inputs per coefficient: `value_features`, and whether the coefficient is settled."""

_AROUND = 4
"""Planes of the current channel: settled, non-zero, log magnitude, signed log magnitude."""

_SUMMARY = 4
"""Statistics per channel: two of the density, the mean log magnitude, the settled part."""


class Texture(nn.Module):
    """The network of all texture decisions; see the module docstring."""

    limits: Tensor
    """int64 ``[C]`` by rank: largest magnitude of each channel."""
    is_chroma: Tensor
    """int64 ``[C]`` by rank: 0 for luma, 1 for chroma."""
    band: Tensor
    """int64 ``[C]`` by rank: index into `order.BANDS`."""

    def __init__(self, config: Architecture, num_labels: int, limits: Tensor):
        """Build the layers.

        Args:
            config: its ``texture_*`` fields and `Architecture.texture_rank`.
            num_labels: classes; one more, the null label, is added.
            limits: int64 ``[C]`` by rank, largest magnitude of each channel.
        """
        super().__init__()
        s, w, hidden = config.texture_state, config.texture_width, config.texture_hidden
        self.first = config.texture_rank
        self.register_buffer("limits", limits.clone(), persistent=False)
        self.register_buffer("is_chroma", IS_CHROMA_RANK.long(), persistent=False)
        self.register_buffer("band", BAND_OF_RANK[:-1].clone(), persistent=False)

        self.luma_state = nn.Linear(64 * PLACE_INPUTS, s)
        self.chroma_state = nn.Linear(2 * 64 * PLACE_INPUTS, s)
        self.luma_mix = nn.Conv2d(s, 2 * w, 3, padding=1)
        self.chroma_mix = nn.Conv2d(s, 2 * w, 3, padding=1)
        self.channel = nn.Embedding(order.NUM_CHANNELS, 2 * w)
        self.label = nn.Embedding(num_labels + 1, 2 * w)
        self.blocks = nn.ModuleList(Block(w, hidden) for _ in range(config.texture_blocks))

        self.occupancy_around, self.value_around = Around(_AROUND, w), Around(_AROUND, w)
        self.occupancy_mlp = GatedMLP(w, hidden)
        self.value_mlp = GatedMLP(w, hidden)
        self.occupancy_norm = nn.LayerNorm(w, eps=1e-6, bias=False)
        self.value_norm = nn.LayerNorm(w, eps=1e-6, bias=False)
        self.occupancy_out = nn.Embedding(order.NUM_CHANNELS, w)
        self.occupancy_bias = nn.Embedding(order.NUM_CHANNELS, 1)
        self.value_out = nn.Linear(w, VALUE_OUTPUTS, bias=False)
        self.value_bias = nn.Embedding(order.NUM_CHANNELS, VALUE_OUTPUTS)

        self.summary = nn.Parameter(torch.empty(order.NUM_CHANNELS, _SUMMARY, w))
        self.use_channel = nn.Embedding(order.NUM_CHANNELS, w)
        self.use_label = nn.Embedding(num_labels + 1, w)
        self.use_mlp = GatedMLP(w, hidden)
        self.use_norm = nn.LayerNorm(w, eps=1e-6, bias=False)
        self.use_out = nn.Embedding(order.NUM_CHANNELS, w)
        self.use_bias = nn.Embedding(order.NUM_CHANNELS, 1)

    def initialise(self) -> None:
        """Set the start of training: unit-scale streams, and heads that predict rare, small coefficients."""
        w = self.channel.weight.shape[1] // 2
        for table in (self.channel, self.use_channel):
            nn.init.normal_(table.weight, std=0.5)
        for table in (self.label, self.use_label):
            nn.init.zeros_(table.weight)
        nn.init.normal_(self.summary, std=0.3)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.around.weight, std=0.1)
            assert block.around.bias is not None
            nn.init.zeros_(block.around.bias)
        for module in self.modules():
            if isinstance(module, GatedMLP):
                module.down.weight.data.mul_(0.3)
        for table in (self.occupancy_out, self.use_out):
            nn.init.normal_(table.weight, std=0.1 / w**0.5)
        nn.init.constant_(self.occupancy_bias.weight, -1.5)
        nn.init.constant_(self.use_bias.weight, -5.0)
        nn.init.normal_(self.value_out.weight, std=0.1 / w**0.5)
        nn.init.zeros_(self.value_bias.weight)
        self.value_bias.weight.data[:, :MAGNITUDES] = 1.0

    # -- use ----------------------------------------------------------------------------------------------------

    def use_rates(self, picture: TextureState) -> Tensor:
        """Return the expected number of coefficients of each channel, given the channels before it.

        Args:
            picture: what is settled; the entry of a channel depends on given coefficients and lower ranks alone.

        Returns:
            fp32 ``[B, C]``, rates λ of p(channel in use) = 1 − exp(−λ); 0 where no place is open and for structure;
            NaN where the network overflows.
        """
        return self.rates(self.before(picture), picture.opened.sum(-1), picture.labels)

    def before(self, picture: TextureState) -> Tensor:
        """Summarise for each channel what is known of the others: ``[B, C, W]``.

        Those are the statistics of channels of lower ranks, and of the others as far as they are given.
        """
        grid, rank = picture.grid, torch.arange(order.NUM_CHANNELS, device=picture.labels.device)
        visible = ~gather(picture.hidden, grid)
        given, settled = (  # products by channel: `einsum` would cast the weights in both
            torch.bmm(self.statistics(picture.planes, known, rank, grid).transpose(0, 1), self.summary).transpose(0, 1)
            for known in (picture.given_planes, visible)
        )
        return settled.cumsum(1) - settled + given.sum(1, keepdim=True) - given.cumsum(1) + given

    def rates(self, before: Tensor, open_count: Tensor, labels: Tensor, ranks: Tensor | None = None) -> Tensor:
        """Compute `use_rates` from what `before` returns.

        Args:
            before: ``[B, C, W]``.
            open_count: int64 ``[B, C]``, numbers of open places.
            labels: int64 ``[B]``.
            ranks: int64 ``[B, K]``, the channels whose rates are wanted; None for all.

        Returns:
            fp32 ``[B, C]``, or ``[B, K]``.
        """
        if ranks is None:
            ranks = torch.arange(order.NUM_CHANNELS, device=labels.device)[None]
        else:
            before = before.gather(1, ranks[..., None].expand(-1, -1, before.shape[-1]))
            open_count = open_count.gather(1, ranks)
        x = before + self.use_channel(ranks) + self.use_label(labels)[:, None]
        x = self.use_norm(self.use_mlp(x))
        score = ((x * self.use_out(ranks)).sum(-1, dtype=torch.float32) + self.use_bias(ranks)[..., 0]).float()
        score = torch.where(score.isinf(), torch.nan, score)  # the clamp would hide an overflow
        rate = score.clamp(-60.0, 12.0).exp() * open_count  # never 0, which means impossible
        return torch.where((open_count > 0) & (ranks >= self.first), rate, 0.0)

    def statistics(self, planes: Tensor, settled: Tensor, rank: Tensor, grid: Grid) -> Tensor:
        """Summarise channels as a whole.

        Args:
            planes: int16 ``[B, K, P]``, coefficients.
            settled: bool ``[B, K, P]``, which of them are known.
            rank: int64 ``[K]`` or ``[B, K]``, the channels.
            grid: the MCU grid.

        Returns:
            fp32 ``[B, K, 4]``.
        """
        chroma = self.is_chroma[rank] > 0
        places = torch.where(chroma, float(grid.mcus), float(grid.positions))
        exists = ~chroma[..., None] | grid.table("is_chroma_place", rank.device)
        size = torch.where(settled, planes, 0).abs().float()
        density = (size > 0).sum(-1) / places
        return torch.stack(
            [density.sqrt(), torch.log1p(1000 * density) / 7, size.log1p().sum(-1) / places,
             (settled & exists).sum(-1) / places], dim=-1,
        )  # fmt: skip

    def use_nats(self, picture: TextureState) -> Tensor:
        """Compute −log p of which channels are in use: fp32 ``[B, C]`` (0 for channels that can't be used)."""
        rate = self.use_rates(picture)
        nats = torch.where(picture.used, -log_at_least_one(rate), rate)
        return torch.where(rate > 0, nats, 0.0)

    # -- place features -----------------------------------------------------------------------------------------

    def begin(
        self, picture: TextureState, row: Tensor, rank: Tensor, *, mixed: Tensor | None = None,
        labels: Tensor | None = None, whole: bool = False,
    ) -> Channels:  # fmt: skip
        """Compute the features of the places of channels about to be decided.

        Args:
            picture: the pictures.
            row: int64 ``[T]``, which picture each channel belongs to.
            rank: int64 ``[T]``, the channels.
            mixed: what `mix` returns for them, if it is known already.
            labels: int64 ``[T]``, if not those of the pictures.
            whole: compute everything, needed or not, so that no channel's numbers depend on the others' to the last bit
                (with the same T).
        """
        kind = None if whole else self._kind(rank)
        x = mixed
        if x is None:
            x = self.mix(picture.coefficients[row], picture.given[row], picture.hidden[row], rank, picture.grid)
        labels = picture.labels[row] if labels is None else labels
        x = x.permute(0, 2, 3, 1) + (self.channel(rank) + self.label(labels))[:, None, None]
        gate, up = x.chunk(2, dim=-1)
        x = F.silu(gate) * up
        # Chroma has places in every other row and column alone: the last step leaves the others out.
        last = 2 if kind == 1 else 1
        for i, block in enumerate(self.blocks, 1):
            x = block(x, last if i == len(self.blocks) else 1)
        if not len(self.blocks):
            x = x[:, ::last, ::last]
        known = picture.given_planes[row, rank]
        value = torch.where(known, picture.planes[row, rank], 0).float()
        return Channels(rank, x.flatten(1, 2), picture.opened[row, rank], known, value, value != 0, kind, whole)

    def mix(self, coefficients: Tensor, given: Tensor, hidden: Tensor, rank: Tensor, grid: Grid) -> Tensor:
        """Sum up the settled coefficients around every place, before a channel: ``[T, 2 W, rows, cols]``.

        It is linear in the settled coefficients' features, so that sampling adds what has become settled to it.

        Args:
            coefficients: int16 ``[T, N, 6, 64]``, the picture of each channel; those of higher ranks are not read.
            given: bool ``[T, N, 6, 64]``, settled from the start.
            hidden: bool ``[T, N, 6, 64]``, neither known nor to be generated.
            rank: int64 ``[T]``, the channels.
            grid: the MCU grid.
        """
        device = rank.device
        settled = ((rank_of_slot(device) < rank[:, None, None, None]) & ~hidden) | given
        values = torch.where(settled, coefficients, 0)
        limits = self.limits[rank_of_slot(device)]
        inputs = torch.cat([value_features(values, limits), settled[..., None].float()], dim=-1)
        luma = self.luma_state(inputs[:, :, :4].flatten(1, 2)[:, grid.table("luma_of_mcus", device)].flatten(2))
        chroma = self.chroma_state(inputs[:, :, 4:].flatten(2))
        luma = self.luma_mix(luma.unflatten(1, (2 * grid.rows, grid.width)).permute(0, 3, 1, 2))
        chroma = self.chroma_mix(chroma.unflatten(1, (grid.rows, grid.cols)).permute(0, 3, 1, 2))
        return luma + F.interpolate(chroma, scale_factor=2, mode="nearest")

    def _kind(self, rank: Tensor) -> int | None:
        """Return 0 if all channels (int64 ``[T]``) are luma, 1 if all are chroma; None if they are mixed or unknown.

        Only on a CPU it is known without waiting for the device.
        """
        if rank.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        kinds = self.is_chroma[rank].unique()
        return int(kinds) if len(kinds) == 1 else None

    def _half(self, channels: Channels, colour: int, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return each channel's positions of one colour, int64 ``[T, H]``, and which are open, bool ``[T, H]``."""
        where = checkerboard(grid, channels.rank.device)[self.is_chroma[channels.rank], colour]
        if channels.kind == 1:
            where = where[:, : chroma_half(grid, colour)]
        return where, channels.opened.gather(1, where)

    def _look_around(self, channels: Channels, around: Around, where: Tensor, grid: Grid) -> Tensor:
        """Return the features at the places ``where`` (int64 ``[T, H]``) with what is settled around: ``[T, H, W]``."""
        size = channels.values.abs().log1p()
        planes = torch.stack(
            [channels.settled.float(), channels.occupied.float(), size, size * channels.values.sign()], dim=1
        ).unflatten(2, (2 * grid.rows, grid.width))
        # Channels last: the features of a place lie together, as those that they are added to do.
        planes = planes.contiguous(memory_format=torch.channels_last)
        if channels.kind == 1:
            where = where // (2 * grid.width) * grid.cols + where % grid.width // 2
        features = channels.features + around(planes, self.is_chroma[channels.rank] == 1, channels.kind).flatten(1, 2)
        return rows_at(features, torch.arange(len(features), device=where.device)[:, None], where)

    # -- occupancy ----------------------------------------------------------------------------------------------

    def occupancy_logits(self, channels: Channels, colour: int, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the log-odds that places hold a coefficient.

        Args:
            channels: with the occupancy of the colour before, if this is the second.
            colour: 0 or 1.
            grid: the MCU grid.

        Returns:
            fp32 ``[T, H]`` log-odds, int64 ``[T, H]`` positions and bool ``[T, H]``: which of them are open.
        """
        where, opened = self._half(channels, colour, grid)
        x = self._look_around(channels, self.occupancy_around, where, grid)
        x = self.occupancy_norm(self.occupancy_mlp(x))
        score = torch.bmm(x, self.occupancy_out(channels.rank)[..., None].to(x.dtype))[..., 0].float()
        return score + self.occupancy_bias(channels.rank), where, opened

    @staticmethod
    def must_be_occupied(channels: Channels, colour: int, opened: Tensor) -> Tensor:
        """Return whether this colour must hold a coefficient, because no other can: bool ``[T]``.

        Args:
            channels: with the occupancy of the colour before, if this is the second.
            colour: 0 or 1.
            opened: open places of this colour, bool ``[T, H]``.
        """
        if colour == 0:
            return opened.sum(-1) == channels.opened.sum(-1)
        return ~(channels.occupied & channels.opened).any(-1)

    # -- values -------------------------------------------------------------------------------------------------

    def value_scores(self, channels: Channels, colour: int, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the scores of the values at places, for `value_log_p` and `value_logits`.

        Args:
            channels: with the whole occupancy, and the values of the colour before, if this is the second.
            colour: 0 or 1.
            grid: the MCU grid.

        Returns:
            fp32 ``[T, H, MAGNITUDES + 2]``; int64 ``[T, H]`` positions; and bool ``[T, H]``, where a value is due
            (other scores mean nothing).
        """
        where, opened = self._half(channels, colour, grid)
        due = opened & channels.occupied.gather(1, where)
        x = self._look_around(channels, self.value_around, where, grid)
        bias = self.value_bias(channels.rank)[:, None].expand(-1, x.shape[1], -1)
        if channels.whole or x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.value_out(self.value_norm(self.value_mlp(x))).float() + bias, where, due
        # Few places hold a coefficient, and finding them costs a CPU nothing.
        scores = self.value_out(self.value_norm(self.value_mlp(x[due]))).float() + bias[due]
        return bias.new_zeros(bias.shape).index_put((due.nonzero(as_tuple=True)), scores), where, due

    # -- all passes over a channel ------------------------------------------------------------------------------

    def decide(self, channels: Channels, grid: Grid, occupancy: Occupancy, values: Values) -> Channels:
        """Decide on T channels in use, pass by pass.

        Args:
            channels: from `begin`.
            grid: the MCU grid.
            occupancy: decides which open places of one colour hold a coefficient: called with fp32 log-odds ``[T, H]``,
                int64 positions ``[T, H]``, which of them are open, bool ``[T, H]``, and `must_be_occupied`, bool
                ``[T]``; returns bool ``[T, H]``.
            values: decides on the values of one colour: called with what `value_scores` returns; returns fp32
                ``[T, H]``, read where a value is due.

        Returns:
            The channels with everything settled.
        """
        for colour in (0, 1):
            logits, where, opened = self.occupancy_logits(channels, colour, grid)
            must = self.must_be_occupied(channels, colour, opened)
            channels = settle(channels, where, opened, occupied=occupancy(logits, where, opened, must))
        for colour in (0, 1):
            scores, where, due = self.value_scores(channels, colour, grid)
            channels = settle(channels, where, due, values=values(scores, where, due))
        return channels

    # -- negative log-likelihood --------------------------------------------------------------------------------

    def forward(self, batch: TextureBatch) -> Tensor:
        """Compute −log p of the textures, by band and field.

        Args:
            batch: from `dctransformer.sequence.texture`.

        Returns:
            fp32 nats ``[B, 4 (bands), 3 (use, occupancy, value)]``, each channel's times its weight.
        """
        return self.nats(batch).clone()  # sharded models must not return views

    def nats(self, batch: TextureBatch) -> Tensor:
        """Compute −log p: see `forward`."""
        picture = TextureState.of(batch)
        count, rank = len(batch.rank), batch.rank.flatten()
        row = torch.arange(count, device=rank.device).repeat_interleave(batch.rank.shape[1])
        occupancy, values, saved = self.channel_nats(picture, row, rank)
        held = torch.stack([occupancy.sum(-1) + saved, values.sum(-1)], dim=-1) * batch.weight.flatten()[:, None]
        use = self.use_nats(picture) * batch.use_weight[:, None]
        bands = len(order.BANDS)
        result = use.new_zeros(count * bands, 3)
        result = result.index_add(0, row * bands + self.band[rank], F.pad(held, (1, 0)))
        use_row = (torch.arange(count, device=rank.device)[:, None] * bands + self.band).flatten()
        result = result.index_add(0, use_row, F.pad(use.reshape(-1, 1), (0, 2)))
        return result.view(count, bands, 3)

    def channel_nats(self, picture: TextureState, row: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute −log p of the occupancy and the values of channels in use.

        Args:
            picture: the pictures.
            row: int64 ``[T]``, which picture each channel belongs to.
            rank: int64 ``[T]``, channels in use.

        Returns:
            fp32 ``[T, P]`` nats of the occupancy and of the value at each place, and fp32 ``[T]``: the correction for
            knowing that the channel is in use (log(1 − ∏(1 − a)), negative or 0).
        """
        grid = picture.grid
        channels = self.begin(picture, row, rank)
        truth = picture.planes[row, rank].float()
        limit = self.limits[rank][:, None]
        occupancy, values = torch.zeros_like(truth), torch.zeros_like(truth)
        saved = torch.zeros_like(truth[:, 0])
        open_truth = torch.where(channels.opened, truth, 0.0)

        def score_occupancy(logits: Tensor, where: Tensor, opened: Tensor, must: Tensor) -> Tensor:
            nonlocal occupancy, saved
            holds = open_truth.gather(1, where) != 0
            empty = torch.where(opened, F.softplus(logits), 0.0)
            occupancy = occupancy.scatter_add(1, where, empty - torch.where(opened & holds, logits, 0.0))
            saved = saved + torch.where(must, log_at_least_one(empty.sum(-1)), 0.0)
            return holds

        def score_values(scores: Tensor, where: Tensor, due: Tensor) -> Tensor:
            nonlocal values
            value = torch.where(due, open_truth.gather(1, where), 1.0)
            log_p = value_log_p(scores, limit, value.long())
            values = values.scatter_add(1, where, torch.where(due, -log_p, 0.0))
            return value

        self.decide(channels, grid, score_occupancy, score_values)
        return occupancy, values, saved
