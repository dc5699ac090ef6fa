"""Step-by-step decoding of chunks: what the sampling engine does with the model.

All state lives in tensors that are made once a chunk and changed in place, and nothing is read back by the host, so
that a step can be captured as a CUDA graph or compiled.

Shapes: B rows in the batch, L triples, N MCUs, P positions, D width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.model.chunk_state import PLACE_POINTER, Places
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.steps import Place, StepStack
from dctransformer.sequence.chunks import ChunkBatch


def step_stacks(model: DCTransformer) -> tuple[StepStack, StepStack, StepStack]:
    """The three decoders of a model as it is now, for steps."""
    return StepStack(model.channel_decoder), StepStack(model.position_decoder), StepStack(model.value_decoder)


class Decoding:
    """A batch of chunks, decoded in step: call `channel`, `position`, `value`, `settle` in turn.

    Each of the first three returns fp32 logits ``[B, K]`` equal (up to rounding) to those of the whole-chunk forward.
    """

    def __init__(
        self,
        model: DCTransformer,
        batch: ChunkBatch,
        *,
        static: bool = False,
        stacks: tuple[StepStack, StepStack, StepStack] | None = None,
        separate: bool = False,
    ):
        """Encode what is settled, and fill the caches with the triples that the chunks begin with.

        Args:
            model: in eval mode.
            batch: chunks as far as they are known, all equally far; on the model's device.
            static: every step has the same shapes and asks nothing of the host, as a captured or compiled one must;
                else less is computed.
            stacks: from `step_stacks`, where they are there already.
            separate: compute the place features of each row by themselves, so that a row's logits are the same, bit
                for bit, whatever the other rows hold (where chunks begin with overlap, of a batch of 1 only).
        """
        rows, device = len(batch.labels), model.device
        begun = batch.ranks.shape[1] - 1
        if device.type == "cpu":  # elsewhere the host would wait for it
            assert bool((batch.lengths == begun).all()), "rows of a batch are equally far"
        self.model, self.device, self.separate = model, device, separate
        self.context = context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)
        self.stacks = stacks or step_stacks(model)
        self.memory = [stack.memory(pairs) for stack, pairs in zip(self.stacks, context.memory, strict=True)]
        self.caches = model.new_caches(rows, model.rank.weight)
        self.rows = torch.arange(rows, device=device)
        self.place = Place(begun, model.config.chunk, device, known=not static)
        self.previous_rank = batch.ranks[:, -1].clone()
        self.previous_position = batch.positions[:, -1].clone()
        self.previous_value = batch.values[:, -1].clone()
        # The channel run in hand, a row each: its channel, and the places as its decisions see them.
        self.run_rank = torch.full((rows,), -1, device=device)
        self.states = None if context.states is None else context.states.copy()
        self.places = self._new_places()
        if begun:
            self._prefill(batch)
        # What has been decided of the triple in hand.
        self.stream = context.encoded.new_zeros(rows, 1, model.config.width)
        self.decided_rank = self.chosen_rank = self.chosen_position = self.run_rank

    def _new_places(self) -> Places:
        """Places of a run a row, to be filled in as channels are entered."""
        m, positions, rows = self.model, self.context.grid.positions, self.rows
        new = functools.partial(self.context.encoded.new_zeros, len(rows), positions)
        local = m.config.local_context
        return Places(
            rank=torch.zeros_like(rows),
            same=torch.zeros(len(rows), positions, device=self.device),
            of_triple=rows[:, None],
            features=new(m.config.place_width) if local else None,
            keys=new(PLACE_POINTER) if local else None,
            base=new() if local else None,
            one_each=True,
        )

    def _prefill(self, batch: ChunkBatch) -> None:
        """Fill the caches with the batch's triples in one pass, and stand where step-by-step decoding would."""
        model = self.model
        places = model.places_of_chunk(batch, self.context)
        model.streams(batch, self.context, places, self.caches)
        last = places.of_triple[:, -1]
        self.run_rank.copy_(self.previous_rank)
        for target, source in self._pairs(places):
            target.copy_(source[last])
        if self.states is not None:
            listed = batch.ranks[:, 1:], batch.positions[:, 1:], batch.values[:, 1:]
            self._add(*listed, batch.predicted)  # overlap is in the states already

    def _pairs(self, places: Places) -> list[tuple[Tensor, Tensor]]:
        """What changes with the run, here and in other places."""
        names = ("rank", "same", "features", "keys", "base")
        pairs = [(getattr(self.places, name), getattr(places, name)) for name in names]
        return [pair for pair in pairs if pair[0] is not None]

    def channel(self) -> Tensor:
        """Logits of the next channel, ``[B, 193]``."""
        m = self.model
        before = self.previous_rank[:, None], self.previous_position[:, None], self.previous_value[:, None]
        x = m.embed_previous(*before, self.context)
        self.stream = self._run(0, x)
        return m.channel_head(self.stream, before[0], before[1], self.context)[:, 0]

    def enter(self, rank: Tensor) -> None:
        """Where a row's channel is new, make its place features from the states as they are now.

        Args:
            rank: the channels chosen, int64 ``[B]``; rows that have stopped come along idly.
        """
        self.decided_rank = rank
        rank = rank.clamp(max=order.NUM_CHANNELS - 1)
        fresh = rank != self.run_rank
        self.run_rank.copy_(rank)
        self.chosen_rank = rank
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            changed = fresh.nonzero()[:, 0]
            for part in changed.split(1 if self.separate else max(1, len(changed))):
                if len(part):
                    for target, source in self._pairs(self._made(part)):
                        target[part] = source.to(target.dtype)
        else:
            for target, source in self._pairs(self._made(self.rows)):
                new = fresh.view(-1, *[1] * (target.ndim - 1))
                target.copy_(torch.where(new, source.to(target.dtype), target))

    def _made(self, rows: Tensor) -> Places:
        """Places of some rows' channels as they are when entered."""
        m, context, rank = self.model, self.context, self.chosen_rank[rows]
        places = Places(rank, context.planes[rows, rank].float(), rows[:, None])
        if self.states is not None:
            places.features, places.keys, places.base = m.look_around(self.states[rows], context, rows, rank)
        return places

    def position(self, rank: Tensor, *, entered: bool = False) -> Tensor:
        """Logits of the position in the channels chosen (int64 ``[B]``), ``[B, P]``."""
        if not entered:
            self.enter(rank)
        m, rank = self.model, self.chosen_rank[:, None]
        cursor = torch.where(self.previous_rank[:, None] == rank, self.previous_position[:, None], -1)
        x = m.embed_channel(self.stream, rank)
        self.stream = self._run(1, x)
        return m.position_head(self.stream, rank, cursor, self.places, self.context)[:, 0]

    def value(self, position: Tensor) -> Tensor:
        """Logits of the value at the positions chosen (int64 ``[B]``), ``[B, V]``."""
        m, rank = self.model, self.chosen_rank[:, None]
        self.chosen_position = position
        x = m.embed_position(self.stream, rank, position[:, None], self.places, self.context)
        self.stream = self._run(2, x)
        return m.value_head(self.stream, rank)[:, 0]

    def _run(self, decoder: int, x: Tensor) -> Tensor:
        return self.stacks[decoder](x, self.memory[decoder], self.caches[decoder], self.place)

    def settle(self, value: Tensor) -> None:
        """Take the triple as decided (values, int64 ``[B]``) and go to the next."""
        self.places.same[self.rows, self.chosen_position] = value.float()
        if self.states is not None:
            self._add(self.chosen_rank[:, None], self.chosen_position[:, None], value[:, None])
        self.previous_rank.copy_(self.decided_rank)
        self.previous_position.copy_(self.chosen_position)
        self.previous_value.copy_(value)
        self.place.advance()

    def _add(self, rank: Tensor, position: Tensor, value: Tensor, counted: Tensor | None = None) -> None:
        """Add triples (int64 ``[B, L]`` each) to the states, where ``counted`` (bool ``[B, L]``)."""
        assert self.states is not None
        added = self.model.local.contribution(rank, value).to(self.states.luma.dtype)
        if counted is not None:
            added = torch.where(counted[..., None], added, 0.0)
        chroma, rows = self.model.local.is_chroma[rank][..., None].long(), self.rows[:, None]
        mcu = self.context.grid.mcu_at(position)
        for states, place, part in (
            (self.states.luma, position, added * (1 - chroma)),
            (self.states.chroma, mcu, added * chroma),
        ):
            states.flatten(0, 1).index_add_(0, (rows * states.shape[1] + place).flatten(), part.flatten(0, 1))

    def load(self, other: Decoding) -> None:
        """Take over another batch of chunks of the same shapes, keeping the tensors (a captured graph reads them)."""
        for target, source in zip(_tensors(vars(self)), _tensors(vars(other)), strict=True):
            target.copy_(source)


def _tensors(thing: Any) -> list[Tensor]:
    """All tensors in a nest of lists, dictionaries and plain objects, in a fixed order."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, (list, tuple)):
        return [t for part in thing for t in _tensors(part)]
    if isinstance(thing, dict):
        return [t for key in sorted(thing) for t in _tensors(thing[key])]
    ours = type(thing).__module__.startswith(("dctransformer.model", "dctransformer.sampling"))
    if isinstance(thing, (torch.nn.Module, StepStack)) or not ours:
        return []  # weights, the grid, numbers
    return _tensors(vars(thing))
