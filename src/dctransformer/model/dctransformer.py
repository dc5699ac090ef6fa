"""The DCTransformer: an encoder over the partial DCT image and three stacked decoders (paper, section 4).

    p(image) = ∏ p(channel | before) · p(position | channel, before) · p(value | channel, position, before)

Training, likelihood and sampling all read the three distributions from `channel_logits`, `position_logits` and
`value_logits`; whole chunks (`forward`) and single steps (the sampling engine) differ only in how many triples L
they pass and in the key/value caches.

Shapes: B batch, L triples, N MCUs, P positions, C = 193 channel classes (ranks and the stop), V values, D width,
T channel runs, S state width, W place width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctransformer.codec import order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.codec.tables import value_limits
from dctransformer.model.chunk_state import PLACE_POINTER, POINTER, Context, Places
from dctransformer.model.config import ModelConfig
from dctransformer.model.context import (
    VALUE_FEATURES,
    LocalContext,
    Runs,
    States,
    neighbour_table,
    rank_planes,
    states_by_run,
    value_features,
)
from dctransformer.model.layers import KVCache, Layer, Stack
from dctransformer.model.legality import (
    NEVER,
    ValueAlphabet,
    last_open_place,
    legal_channels,
    legal_positions,
    open_places,
)
from dctransformer.model.ops import coarse, nll, position_embeddings, rows_at, taken
from dctransformer.model.texture import Texture
from dctransformer.sequence.chunks import START, ChunkBatch


class DCTransformer(nn.Module):
    """The network: see the module's text; `config` holds its sizes.

    `dctransformer.DCTransformer` is this class with `from_pretrained`, `save_pretrained` and `push_to_hub`
    (`dctransformer.hub.model`).
    """

    limits: Tensor
    """int64 ``[192]`` by rank: largest magnitude of each channel."""
    legal_values: Tensor
    """bool ``[192, V]`` by rank: values that a channel can have."""
    chroma_rank: Tensor
    """int64 ``[192]`` by rank: 0 for luma, 1 for chroma."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        c, d = config, config.width
        with torch.device("cpu"):  # the alphabet is known even where weights are only planned (meta device)
            limits = value_limits(config.quality)[torch.from_numpy(order.GENERATION_ORDER)]
            self.alphabet = ValueAlphabet(limits)
        self.register_buffer("limits", limits, persistent=False)
        self.register_buffer("legal_values", self.alphabet.legal, persistent=False)
        is_chroma = torch.from_numpy(order.GENERATION_ORDER >= order.CB)
        self.register_buffer("chroma_rank", is_chroma.long(), persistent=False)

        # Encoder: all 6 × 64 coefficients of an MCU, and which of them are settled.
        self.encoder_input = nn.Linear(order.BLOCKS_PER_MCU * 64 * (VALUE_FEATURES + 1), d)
        self.label = nn.Embedding(c.num_labels + 1, d)
        self.encoder = Stack(c, c.encoder, decoder=False)

        # Symbols. The row and column tables serve encoder and decoders, luma and chroma.
        self.rank = nn.Embedding(START + 1, d)
        self.value = nn.Embedding(len(self.alphabet), d)
        self.row = nn.Embedding(c.max_grid, d)
        self.col = nn.Embedding(c.max_grid, d)
        self.chosen_rank = nn.Embedding(order.NUM_CHANNELS, d)
        self.chosen_row = nn.Embedding(c.max_grid, d)
        self.chosen_col = nn.Embedding(c.max_grid, d)

        self.channel_decoder = Stack(c, c.channel, decoder=True)
        self.position_decoder = Stack(c, c.position, decoder=True)
        self.value_decoder = Stack(c, c.value, decoder=True)

        # What is left of the probability when every channel is passed over is the stop's.
        outcomes = order.NUM_CHANNELS if c.survival else order.NUM_CHANNELS + 1
        self.channel_out = nn.Linear(d, outcomes)
        self.channel_after = nn.Embedding(START + 1, outcomes)
        self.pointer_query = nn.Linear(d, POINTER)
        self.pointer_key = nn.Linear(d, 4 * POINTER)
        self.encoder_at_place = nn.Linear(d, d)
        self.value_out = nn.Linear(d, len(self.alphabet))
        self.value_after = nn.Embedding(order.NUM_CHANNELS, len(self.alphabet))
        if c.local_context:
            w = c.place_width
            self.local = LocalContext(c, limits)
            self.place_query = nn.Linear(d, PLACE_POINTER)
            self.place_key = nn.Linear(w, PLACE_POINTER)
            self.place_readout = nn.Embedding(order.NUM_CHANNELS, w)
            self.place_bias = nn.Embedding(order.NUM_CHANNELS, 1)
            self.neighbour_gate = nn.Linear(d, 4)
            self.neighbour_bias = nn.Embedding(order.NUM_CHANNELS, 4)
            self.value_context = nn.Sequential(nn.Linear(w + 8, d), nn.SiLU(), nn.Linear(d, d))
        if c.texture_rank < order.NUM_CHANNELS:
            self.texture = Texture(c, c.num_labels, limits)
        self._initialise()
        self._neighbours: dict[tuple[int, int], Tensor] = {}

    def _initialise(self) -> None:
        """Unit-scale streams; residual branches and output heads start at (nearly) nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.inner.out.weight", "cross.inner.out.weight", "inner.down.weight")):
                # ReZero gates start at 0 themselves and need a live branch behind them.
                scale = 1.0 if self.config.block == "paper" else 0.1
                parameter.data.mul_(scale)
        for table in (self.rank, self.value, self.row, self.col, self.label):
            nn.init.normal_(table.weight, std=0.5)
        for table in (self.chosen_rank, self.chosen_row, self.chosen_col):
            nn.init.normal_(table.weight, std=0.7)
        for head in (self.channel_out, self.value_out):
            nn.init.normal_(head.weight, std=0.1 / math.sqrt(self.config.width))
        nn.init.zeros_(self.channel_after.weight)
        if self.config.survival:  # most channels are passed over, but one that is listed goes on
            nn.init.constant_(self.channel_after.weight, -3.0)
            self.channel_after.weight.data.fill_diagonal_(1.0)
        nn.init.zeros_(self.value_after.weight)
        if self.config.local_context:
            nn.init.normal_(self.place_readout.weight, std=0.1 / math.sqrt(self.config.place_width))
            nn.init.constant_(self.place_bias.weight, -1.0)
            nn.init.zeros_(self.neighbour_bias.weight)
            nn.init.normal_(self.neighbour_gate.weight, std=0.1 / math.sqrt(self.config.width))
        if self.config.texture_rank < order.NUM_CHANNELS:
            self.texture.initialise()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.channel_out.weight.device

    def compile_stacks(self, *, by_layer: bool = False) -> None:
        """Let `torch.compile` fuse what surrounds the matrix products in whole chunks (in place).

        Sizes that turn out to differ (a last micro-batch's rows, channel runs) are made variable when they first do.

        Args:
            by_layer: compile each layer apart, as those must be that are gathered from several processes.
        """
        for stack in (self.encoder, self.channel_decoder, self.position_decoder, self.value_decoder):
            if by_layer:
                for layer in cast(Iterable[Layer], stack.layers):
                    layer.run = torch.compile(layer.run)
            else:
                stack.compile()
        self.nats = torch.compile(self.nats)
        if self.config.local_context:
            self.local.features = torch.compile(self.local.features)

    # -- what comes before a chunk ------------------------------------------------------------------------------

    def encode(
        self,
        coefficients: Tensor,
        settled: Tensor,
        closed: Tensor,
        labels: Tensor,
        grid: Grid,
        offset: tuple[int, int] = (0, 0),
    ) -> Context:
        """Run the encoder over a partial DCT image.

        Args:
            coefficients: int16 ``[B, N, 6, 64]``, 0 where absent.
            settled: bool ``[B, N, 6, 64]``, where the value (zero too) is known.
            closed: bool ``[B, N, 6, 64]``, what is never to be listed.
            labels: int64 ``[B]``, `ModelConfig.null_label` for none.
            grid: the MCU grid.
            offset: the row and the column of MCUs in the position tables where the picture lies.

        Returns:
            The context of the next chunk.

        Raises:
            ValueError: the picture is larger than the model's position tables.
        """
        if max(grid.rows + offset[0], grid.cols + offset[1]) * 2 > self.config.max_grid:
            side = self.config.max_grid * order.BLOCK
            raise ValueError(f"this model handles pictures up to {side} pixels a side; choose a smaller size")
        features = value_features(coefficients, self.limits[RANK_OF_SLOT.to(coefficients.device)])
        features = torch.cat([features.flatten(2), settled.to(features.dtype).flatten(2)], dim=-1)
        place = position_embeddings(self.row, self.col, grid, offset)
        x = self.encoder_input(features) + place[grid.chroma_position.to(place.device)]
        label = self.label(labels)[:, None]
        x = torch.cat([label, x + label], dim=1)
        x = self.encoder(x)
        encoded = x[:, 1:]
        memory = torch.cat([x[:, :1], coarse(encoded, grid, self.config.memory)], dim=1)
        keys = self.pointer_key(encoded).unflatten(-1, (4, POINTER)).flatten(1, 2)
        keys = keys[:, (grid.mcu * 4 + (grid.row % 2) * 2 + grid.col % 2).to(keys.device)]
        opened = open_places(rank_planes(closed, grid), grid)
        opened[:, self.config.texture_rank :] = False  # these are not listed: see `Texture`
        return Context(
            grid=grid,
            labels=labels,
            encoded=encoded,
            memory=[s.memory(memory) for s in (self.channel_decoder, self.position_decoder, self.value_decoder)],
            at_place=self.encoder_at_place(encoded),
            place_keys=keys,
            previous_place=place,
            chosen_place=position_embeddings(self.chosen_row, self.chosen_col, grid, offset),
            planes=rank_planes(coefficients, grid),
            opened=opened,
            last_open=last_open_place(opened),
            states=self.local.start(coefficients, closed, grid) if self.config.local_context else None,
            encoded_places=self.local.encoded_places(encoded, grid) if self.config.local_context else None,
        )

    # -- symbols ------------------------------------------------------------------------------------------------

    def embed_previous(self, rank: Tensor, position: Tensor, value: Tensor, context: Context) -> Tensor:
        """Embedding of the triples before the ones to predict: int64 ``[B, L]`` each to ``[B, L, D]``."""
        symbol = F.embedding(position, context.previous_place)
        symbol = symbol + self.value(self.alphabet.encode(value))
        is_triple = (rank < order.NUM_CHANNELS)[..., None]
        return self.rank(rank) + torch.where(is_triple, symbol, 0.0) + self.label(context.labels)[:, None]

    def embed_channel(self, stream: Tensor, rank: Tensor) -> Tensor:
        """The position decoder's input: the channel decoder's stream and the channel chosen."""
        return stream + self.chosen_rank(rank)

    def embed_position(
        self, stream: Tensor, rank: Tensor, position: Tensor, places: Places, context: Context
    ) -> Tensor:
        """The value decoder's input: the stream, the position chosen and what is known around it.

        Args:
            stream: of the position decoder, ``[B, L, D]``.
            rank: int64 ``[B, L]``, less than 192.
            position: int64 ``[B, L]``.
            places: the places of those channels.
            context: of the chunk.

        Returns:
            ``[B, L, D]``.
        """
        grid = context.grid
        x = stream + F.embedding(position, context.chosen_place)
        batch = torch.arange(len(position), device=position.device)[:, None]
        x = x + rows_at(context.at_place, batch, grid.mcu_at(position))
        if places.features is None:
            return x
        near = self._neighbour_table(grid)[self.chroma_rank[rank], :, position]
        same = places.same_at(near).masked_fill(near == grid.positions, 0.0)
        limit = self.limits[rank][..., None]
        around = torch.cat([same.sign() * same.abs().log1p(), 4 * same / limit], dim=-1)
        here = rows_at(places.features, places.of_triple, position)
        return x + self.value_context(torch.cat([here, around.to(here.dtype)], dim=-1))

    def _neighbour_table(self, grid: Grid) -> Tensor:
        key = (grid.rows, grid.cols)
        if key not in self._neighbours or self._neighbours[key].device != self.device:
            with torch.inference_mode(False):  # it may be made while sampling and used in training
                self._neighbours[key] = neighbour_table(grid).to(self.device)
        return self._neighbours[key]

    # -- the three distributions --------------------------------------------------------------------------------

    def channel_logits(self, stream: Tensor, rank: Tensor, position: Tensor, context: Context) -> Tensor:
        """Logits of the next channel.

        With `ModelConfig.survival`, a channel's score is the log-odds that it is the next one *given that those before
        it are passed over*; so a channel that is closed drops out, and what comes after it is as likely as ever.

        Args:
            stream: of the channel decoder, ``[B, L, D]``.
            rank: of the triples before, int64 ``[B, L]`` (`START` for none).
            position: of the triples before.
            context: of the chunk.

        Returns:
            fp32 ``[B, L, C]`` over ranks and the stop.
        """
        score = self.channel_out(stream).float() + self.channel_after(rank)
        started = torch.where(rank == START, -1, rank)
        legal = legal_channels(context.last_open, started, position)
        if not self.config.survival:
            return score.masked_fill(~legal, NEVER)
        passed = self._passed(score, legal[..., :-1])
        return torch.cat([score - passed, -passed[..., -1:]], dim=-1).masked_fill(~legal, NEVER)

    def _passed(self, score: Tensor, legal: Tensor) -> Tensor:
        """−log of the chance that no possible outcome up to each one, itself included, is taken (a survival model).

        With log-odds as scores, ``score − passed`` is the log-probability that the outcome is the first one taken.
        """
        return torch.where(legal, F.softplus(score), 0.0).cumsum(-1)

    def position_logits(self, stream: Tensor, rank: Tensor, cursor: Tensor, places: Places, context: Context) -> Tensor:
        """Logits of the position in a chosen channel.

        Every place still open gets a score. With local context the score is the log-odds that the place is the next
        one *given that those between are passed over*, so the logit is the score less the sum of softplus(score) over
        the open places up to it (a discrete survival model); without, it is the logit itself.

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
        if places.features is None:
            return score.float().masked_fill(~legal, NEVER)

        assert places.keys is not None and places.base is not None
        score = score + places.at(places.base)
        score = score + (places.at(places.keys) @ self.place_query(stream)[..., None])[..., 0]

        weight = self.neighbour_gate(stream) + self.neighbour_bias(rank)
        score = self._with_neighbours(score, weight, rank, cursor, places, context.grid).float()
        return (score - self._passed(score, legal)).masked_fill(~legal, NEVER)

    def _with_neighbours(
        self, score: Tensor, weight: Tensor, rank: Tensor, cursor: Tensor, places: Places, grid: Grid
    ) -> Tensor:
        """Add what the same channel's values just left of and above a place say, as far as they are listed.

        Only places soon after the cursor have neighbours before it, so no others are looked at: in a large picture a
        small part. (Those before the cursor can't be chosen any more.)

        Args:
            score: of every place, ``[B, L, P]``.
            weight: of the four neighbours, ``[B, L, 4]``.
            rank: the chosen channels, int64 ``[B, L]``; likewise the cursor.
            cursor: see `position_logits`.
            places: the places of those channels.
            grid: the MCU grid.
        """
        table = self._neighbour_table(grid)
        reach = min(2 * grid.width + 2, grid.positions)  # chroma's neighbour above and to the left
        here = cursor[..., None] + torch.arange(1, reach + 1, device=cursor.device)
        inside, here = here < grid.positions, here.clamp(max=grid.positions - 1)
        side = torch.arange(4, device=cursor.device)[:, None]
        near = taken(table, (self.chroma_rank[rank][..., None, None] * 4 + side) * grid.positions + here[:, :, None])
        size = places.same_at(near).abs().log1p() * (near <= cursor[..., None, None])
        said = (weight[..., None] * size).sum(-2) * inside
        return score.scatter_add(-1, here, said.to(score.dtype))

    def value_logits(self, stream: Tensor, rank: Tensor) -> Tensor:
        """Logits of the value: from the value decoder's stream ``[B, L, D]`` and the channels, fp32 ``[B, L, V]``."""
        logits = self.value_out(stream).float() + self.value_after(rank)
        return logits.masked_fill(~self.legal_values[rank], NEVER)

    # -- whole chunks -------------------------------------------------------------------------------------------

    def places_of_chunk(self, batch: ChunkBatch, context: Context) -> Places:
        """The places at the beginning of each channel run of whole chunks."""
        grid = context.grid
        ranks, positions, values = batch.ranks[:, 1:], batch.positions[:, 1:], batch.values[:, 1:]
        runs = Runs.find(ranks)
        index = torch.arange(ranks.shape[1], device=ranks.device)
        counted = batch.predicted & (ranks < order.NUM_CHANNELS)
        listed = (index < batch.lengths[:, None]) & (ranks < order.NUM_CHANNELS)
        same = context.planes[runs.row, runs.rank].float()
        same = same.index_put((runs.of_triple[listed], positions[listed]), values[listed].float())
        places = Places(runs.rank, same, runs.of_triple)
        if self.config.local_context:
            assert context.states is not None and context.encoded_places is not None
            states = states_by_run(self.local, context.states, runs, ranks, positions, values, counted, grid)
            encoded = context.encoded_places.index_select(0, runs.row)
            places.features, places.keys, places.base = self.look_around(states, encoded, runs.rank, grid)
        return places

    def look_around(self, states: States, encoded: Tensor, rank: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Features, pointer keys and base scores of every place for T channels about to be listed (see `Places`).

        Args:
            states: at the beginning of each channel, luma ``[T, P, S]`` and chroma ``[T, N, S]``.
            encoded: `Context.encoded_places` of each, ``[T, P, 2 W]``.
            rank: int64 ``[T]``, less than 192.
            grid: the MCU grid.
        """
        features = self.local.features(states, encoded, rank, grid)
        base = (features @ self.place_readout(rank)[..., None])[..., 0] + self.place_bias(rank)
        return features, self.place_key(features) / math.sqrt(PLACE_POINTER), base

    def streams(
        self,
        batch: ChunkBatch,
        context: Context,
        places: Places,
        caches: list[list[KVCache]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the channel, position and value decoder make of the chunks, ``[B, L, D]`` each.

        Args:
            batch: whole chunks.
            context: of them.
            places: from `places_of_chunk`.
            caches: one list a decoder, to be filled for step-by-step decoding from there on.
        """
        before = batch.ranks[:, :-1], batch.positions[:, :-1], batch.values[:, :-1]
        chosen = batch.ranks[:, 1:].clamp(max=order.NUM_CHANNELS - 1)
        stores = caches or (None, None, None)
        x = self.embed_previous(*before, context)
        channel = self.channel_decoder(x, context.memory[0], stores[0])
        x = self.embed_channel(channel, chosen)
        position = self.position_decoder(x, context.memory[1], stores[1])
        x = self.embed_position(position, chosen, batch.positions[:, 1:], places, context)
        return channel, position, self.value_decoder(x, context.memory[2], stores[2])

    def new_caches(self, batch: int, like: Tensor) -> list[list[KVCache]]:
        """Empty key/value caches of the three decoders for one chunk of ``batch`` rows."""
        return [s.new_cache(batch, like) for s in (self.channel_decoder, self.position_decoder, self.value_decoder)]

    def forward(self, batch: ChunkBatch) -> Tensor | tuple[Tensor, Tensor]:
        """Negative log-likelihood of every triple of some chunks, by field, and of some textures.

        Args:
            batch: from `dctransformer.sequence.chunks.cut_chunks`.

        Returns:
            fp32 nats ``[B, L, 3]`` (channel, position, value); 0 where nothing is predicted (`ChunkBatch.predicted`),
            and position and value are 0 at the stop. If the batch has textures, also what `Texture.forward` returns.
        """
        if batch.texture is None or not len(batch.texture.labels):
            return self.triple_nats(batch)
        return self.triple_nats(batch), self.texture(batch.texture)

    def triple_nats(self, batch: ChunkBatch) -> Tensor:
        """−log p of every triple of some chunks: see `forward`."""
        context = self.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid, batch.offset)
        places = self.places_of_chunk(batch, context)
        streams = self.streams(batch, context, places)
        return self.nats(batch, context, places, streams)

    def nats(
        self, batch: ChunkBatch, context: Context, places: Places, streams: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The three distributions' negative log-likelihoods: see `forward`; ``streams`` are those of `streams`."""
        before = batch.ranks[:, :-1], batch.positions[:, :-1]
        rank, position, value = batch.ranks[:, 1:], batch.positions[:, 1:], batch.values[:, 1:]
        chosen = rank.clamp(max=order.NUM_CHANNELS - 1)
        cursor = torch.where(before[0] == rank, before[1], -1)
        channel = self.channel_logits(streams[0], *before, context)
        where = self.position_logits(streams[1], chosen, cursor, places, context)
        what = self.value_logits(streams[2], chosen)

        predicted = batch.predicted
        has_place = predicted & (rank < order.NUM_CHANNELS)
        return torch.stack(
            [
                torch.where(predicted, nll(channel, rank), 0.0),
                torch.where(has_place, nll(where, position), 0.0),
                torch.where(has_place, nll(what, self.alphabet.encode(value)), 0.0),
            ],
            dim=-1,
        )
