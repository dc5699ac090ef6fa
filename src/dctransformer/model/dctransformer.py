"""The DCTransformer: an encoder over the partial DCT image and three stacked decoders (paper, section 4).

    p(image) = ∏ p(channel | before) · p(position | channel, before) · p(value | channel, position, before)

Training, likelihood and sampling all read the three distributions from the same heads (`dctransformer.model.heads`);
whole chunks (`forward`) and single steps (the sampling engine) differ only in how many triples L they pass and in the
key/value caches.

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
from dctransformer.codec.grid import CHANNEL_OF_RANK, Grid, rank_of_slot
from dctransformer.codec.tables import value_limits
from dctransformer.codec.triples import gather
from dctransformer.model.chunk_state import Context, Places
from dctransformer.model.config import ModelConfig, check_guide
from dctransformer.model.context import (
    VALUE_FEATURES,
    LocalContext,
    States,
    neighbour_table,
    states_by_run,
    value_features,
)
from dctransformer.model.heads import ChannelHead, PositionHead, ValueHead
from dctransformer.model.layers import KVCache, Layer, Stack
from dctransformer.model.legality import ValueAlphabet, last_open_place, open_places
from dctransformer.model.ops import coarse, nll, position_embeddings
from dctransformer.model.texture import Texture
from dctransformer.sequence.chunks import START, ChunkBatch
from dctransformer.sequence.runs import Runs


class DCTransformer(nn.Module):
    """The DCTransformer network (see the module docstring); `config` holds its sizes.

    `dctransformer.DCTransformer` is this class with `from_pretrained`, `save_pretrained` and `push_to_hub`
    (`dctransformer.hub.model`).
    """

    limits: Tensor
    """int64 ``[192]`` by rank: largest magnitude of each channel."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        c, d = config, config.width
        with torch.device("cpu"):  # the alphabet is known even where weights are only planned (meta device)
            limits = value_limits(config.quality)[CHANNEL_OF_RANK]
            self.alphabet = ValueAlphabet(limits)
        self.register_buffer("limits", limits, persistent=False)

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

        self.channel_head = ChannelHead(c)
        self.position_head = PositionHead(c)
        self.value_head = ValueHead(c, self.alphabet)
        if c.local_context:
            self.local = LocalContext(c, limits)
        if c.texture_rank < order.NUM_CHANNELS:
            self.texture = Texture(c, c.num_labels, limits)
        self._guides: tuple[DCTransformer, ...] = ()  # in a tuple, so that its weights are not among this model's
        self._initialise()

    def _initialise(self) -> None:
        """Initialise the weights: unit-scale streams; residual branches and output heads start near zero."""
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
        for head in (self.channel_head, self.position_head, self.value_head):
            head.initialise()
        if self.config.texture_rank < order.NUM_CHANNELS:
            self.texture.initialise()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.rank.weight.device

    @property
    def guide(self) -> DCTransformer | None:
        """A weaker model of the same pictures, which guidance leads away from (autoguidance); None if there is none.

        It is not a part of this model's weights, and likelihoods don't depend on it.
        """
        return self._guides[0] if self._guides else None

    @property
    def guidable(self) -> bool:
        """Whether guidance changes what is generated: there are classes or a guide."""
        return self.config.num_labels > 0 or self.guide is not None

    def attach_guide(self, guide: DCTransformer | None) -> None:
        """Set the guide, or remove it with None.

        Raises:
            ValueError: its sequences or conditions are not those of this model.
        """
        if guide is not None:
            check_guide(self.config, guide.config)
        self._guides = () if guide is None else (guide,)

    @property
    def decoders(self) -> tuple[Stack, Stack, Stack]:
        """The channel, position and value decoder."""
        return self.channel_decoder, self.position_decoder, self.value_decoder

    def compile_stacks(self, *, by_layer: bool = False) -> None:
        """Let `torch.compile` fuse what surrounds the matrix products in whole chunks (in place).

        Sizes that turn out to differ (a last micro-batch's rows, channel runs) are made variable when they first do.

        Args:
            by_layer: compile each layer apart, as those must be that are gathered from several processes.
        """
        for stack in (self.encoder, *self.decoders):
            if by_layer:
                for layer in cast(Iterable[Layer], stack.layers):
                    layer.run = torch.compile(layer.run)
            else:
                stack.compile()
        self.nats = torch.compile(self.nats)
        if self.config.local_context:
            self.local.features = torch.compile(self.local.features)
        if self.config.texture_rank < order.NUM_CHANNELS:
            self.texture.nats = torch.compile(self.texture.nats)

    # -- encoder ------------------------------------------------------------------------------------------------

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
            closed: bool ``[B, N, 6, 64]``, coefficients that are never listed.
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
            raise ValueError(f"this model handles pictures up to {side} pixels per side; choose a smaller size")
        features = value_features(coefficients, self.limits[rank_of_slot(coefficients.device)])
        features = torch.cat([features.flatten(2), settled.to(features.dtype).flatten(2)], dim=-1)
        place = position_embeddings(self.row, self.col, grid, offset)
        x = self.encoder_input(features) + place[grid.table("chroma_position", place.device)]
        label = self.label(labels)[:, None]
        x = torch.cat([label, x + label], dim=1)
        x = self.encoder(x)
        encoded = x[:, 1:]
        memory = torch.cat([x[:, :1], coarse(encoded, grid, self.config.memory)], dim=1)
        opened = open_places(gather(closed, grid), grid)
        opened[:, self.config.texture_rank :] = False  # texture channels are not listed: see `Texture`
        return Context(
            grid=grid,
            labels=labels,
            encoded=encoded,
            memory=[s.memory(memory) for s in self.decoders],
            at_place=self.value_head.encoder_at_place(encoded),
            place_keys=self.position_head.keys(encoded, grid),
            previous_place=place,
            chosen_place=position_embeddings(self.chosen_row, self.chosen_col, grid, offset),
            neighbours=neighbour_table(grid, encoded.device),
            planes=gather(coefficients, grid),
            given=gather(closed & settled, grid),
            opened=opened,
            last_open=last_open_place(opened),
            states=self.local.start(coefficients, settled, closed, grid) if self.config.local_context else None,
            encoded_places=self.local.encoded_places(encoded, grid) if self.config.local_context else None,
        )

    # -- symbols ------------------------------------------------------------------------------------------------

    def embed_previous(self, rank: Tensor, position: Tensor, value: Tensor, context: Context) -> Tensor:
        """Embed the triples before the ones to predict: int64 ``[B, L]`` each to ``[B, L, D]``."""
        symbol = F.embedding(position, context.previous_place)
        symbol = symbol + self.value(self.alphabet.encode(value))
        is_triple = (rank < order.NUM_CHANNELS)[..., None]
        return self.rank(rank) + torch.where(is_triple, symbol, 0.0) + self.label(context.labels)[:, None]

    def embed_channel(self, stream: Tensor, rank: Tensor) -> Tensor:
        """Return the position decoder's input: the channel decoder's stream and the channel chosen."""
        return stream + self.chosen_rank(rank)

    def embed_position(
        self, stream: Tensor, rank: Tensor, position: Tensor, places: Places, context: Context
    ) -> Tensor:
        """Return the value decoder's input: the stream, the position chosen and what is known around it.

        Args:
            stream: of the position decoder, ``[B, L, D]``.
            rank: int64 ``[B, L]``, less than 192.
            position: int64 ``[B, L]``.
            places: the places of those channels.
            context: of the chunk.

        Returns:
            ``[B, L, D]``.
        """
        x = stream + F.embedding(position, context.chosen_place)
        return self.value_head.read(x, rank, position, places, context)

    # -- whole chunks -------------------------------------------------------------------------------------------

    def places_of_chunk(self, batch: ChunkBatch, context: Context) -> Places:
        """Return the places at the beginning of each channel run of whole chunks."""
        grid = context.grid
        ranks, positions, values = batch.ranks[:, 1:], batch.positions[:, 1:], batch.values[:, 1:]
        runs = Runs.find(ranks) if batch.runs is None else batch.runs
        index = torch.arange(ranks.shape[1], device=ranks.device)
        counted = batch.predicted & (ranks < order.NUM_CHANNELS)
        listed = (index < batch.lengths[:, None]) & (ranks < order.NUM_CHANNELS)
        same = context.planes[runs.row, runs.rank].float()
        slot = torch.where(listed, runs.of_triple * grid.positions + positions, same.numel())  # else a spare one
        filled = F.pad(same.flatten(), (0, 1)).scatter(0, slot.flatten(), values.flatten().float())
        same = filled[:-1].view_as(same)
        places = Places(runs.rank, same, runs.of_triple)
        if self.config.local_context:
            assert context.states is not None
            states = states_by_run(self.local, context.states, runs, ranks, positions, values, counted, grid)
            places.features, places.keys, places.base = self.look_around(states, context, runs.row, runs.rank)
        return places

    def look_around(self, states: States, context: Context, row: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute features, pointer keys and base scores of every place for T channels to be listed (see `Places`).

        Args:
            states: at the beginning of each channel, luma ``[T, P, S]`` and chroma ``[T, N, S]``.
            context: of the chunks.
            row: int64 ``[T]``, the chunk of each.
            rank: int64 ``[T]``, less than 192.
        """
        assert context.encoded_places is not None
        encoded, given = context.encoded_places.index_select(0, row), context.given[row, rank]
        around = None
        # Where a check costs nothing and no gradient is needed, channels without given coefficients are skipped.
        checks = given.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not checks or bool(given.any()):
            given = torch.stack([torch.where(given, context.planes[row, rank], 0), given], dim=-1).float()
            around = given, context.neighbours[self.local.is_chroma[rank].long()]
        features = self.local.features(states, encoded, around, rank, context.grid)
        return features, *self.position_head.local_scores(features, rank)

    def streams(
        self, batch: ChunkBatch, context: Context, places: Places, caches: list[list[KVCache]] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the channel, position and value decoder over whole chunks: three streams, ``[B, L, D]`` each.

        Args:
            batch: whole chunks.
            context: of the chunks.
            places: from `places_of_chunk`.
            caches: one list per decoder, filled for step-by-step decoding after the chunks (prefill).
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
        """Return the empty key/value caches of the three decoders for one chunk of ``batch`` rows."""
        return [s.new_cache(batch, like) for s in self.decoders]

    def forward(self, batch: ChunkBatch) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the negative log-likelihood of every triple of some chunks, by field, and of some textures.

        Args:
            batch: from `dctransformer.sequence.chunks.cut_chunks`.

        Returns:
            fp32 nats ``[B, L, 3]`` (channel, position, value); 0 where nothing is predicted (`ChunkBatch.predicted`),
            and position and value are 0 at the stop; 0 everywhere if the chunks are not to be scored
            (`ChunkBatch.scored`). If the batch has textures, also what `Texture.forward` returns.
        """
        nats = self.triple_nats(batch) if batch.scored else torch.zeros(*batch.predicted.shape, 3, device=self.device)
        if batch.texture is None or not len(batch.texture.labels):
            return nats
        return nats, self.texture(batch.texture)

    def triple_nats(self, batch: ChunkBatch) -> Tensor:
        """Compute −log p of every triple of some chunks: see `forward`."""
        context = self.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid, batch.offset)
        places = self.places_of_chunk(batch, context)
        streams = self.streams(batch, context, places)
        return self.nats(batch, context, places, streams)

    def nats(
        self, batch: ChunkBatch, context: Context, places: Places, streams: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Compute the three distributions' negative log-likelihoods from the streams of `streams`: see `forward`."""
        before = batch.ranks[:, :-1], batch.positions[:, :-1]
        rank, position, value = batch.ranks[:, 1:], batch.positions[:, 1:], batch.values[:, 1:]
        chosen = rank.clamp(max=order.NUM_CHANNELS - 1)
        cursor = torch.where(before[0] == rank, before[1], -1)
        channel = self.channel_head(streams[0], *before, context)
        where = self.position_head(streams[1], chosen, cursor, places, context)
        what = self.value_head(streams[2], chosen)

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
