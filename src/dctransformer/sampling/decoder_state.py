"""Step-by-step decoding of chunks, for the sampling engine and the entropy coder.

All state lives in tensors that are made once per chunk and changed in place, and nothing is read back by the host, so
that a step can be captured as a CUDA graph or compiled.

Shapes: B rows in the batch, L triples, N MCUs, P positions, D width.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dctransformer.codec import order
from dctransformer.model.chunk_state import PLACE_POINTER, Context, Places
from dctransformer.model.context import States
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.layers import Attention, KVCache, Step
from dctransformer.sequence.chunks import ChunkBatch

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass
class DecoderState:
    """The state of a batch of chunks between two triples: tensors that keep their shapes and their place in memory."""

    context: Context
    """What was settled before the chunks."""
    caches: list[list[KVCache]]
    """KV caches of the channel, position and value decoder, one per layer."""
    index: Tensor
    """int64 ``[1]``, triples of the chunk so far."""
    previous_rank: Tensor
    """int64 ``[B]``, the triple before the next; likewise its position and its value."""
    previous_position: Tensor
    previous_value: Tensor
    run_rank: Tensor
    """int64 ``[B]``, the channel of each row's current run; −1 before the first."""
    places: Places
    """The places as the decisions of that run see them."""
    states: States | None
    """Current local-context states (None without local context)."""

    def copy_(self, other: DecoderState) -> None:
        """Copy another state of the same shapes into these tensors."""
        for target, source in zip(_tensors(self), _tensors(other), strict=True):
            target.copy_(source)


def _tensors(part: Any) -> Iterator[Tensor]:
    """Yield the tensors of a dataclass in the order of its fields, those in lists and nested dataclasses included."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _tensors(getattr(part, field.name))


def for_steps(model: Model, precision: str) -> Model:
    """Copy a model, in a precision, for steps with few rows; the copy's weights must not change any more.

    With few rows, reading the matrices and calling the kernels take most of the time. So on a CPU matrices are stored
    by columns, which are read half as long again as fast; queries, keys and values come from one product; and weights
    and submodules become plain attributes, so that `torch.nn.Module` need not look them up in Python.

    Raises:
        ValueError: a weight is not finite in that precision.
    """
    model = copy.deepcopy(model)
    if precision == "bf16":
        model = model.bfloat16()
    if not bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all()):  # one read for all of them
        raise ValueError(f"the model's weights are not finite in {precision}; use other weights or another precision")
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()
        elif isinstance(module, Attention):
            module.fuse()
    for module in model.modules():
        vars(module).update(module._parameters, **module._modules, **module._buffers)
    return model


class Decoding:
    """A batch of chunks, decoded in step: call `channel`, `position`, `value`, `settle` in turn.

    Each of the first three returns fp32 logits ``[B, K]`` equal (up to rounding) to those of the whole-chunk forward.
    """

    def __init__(self, model: DCTransformer, batch: ChunkBatch, *, static: bool | None = None, separate: bool = False):
        """Encode what is settled, and fill the caches with the triples that the chunks begin with.

        Args:
            model: in eval mode.
            batch: chunks as far as they are known, all equally far; on the model's device.
            static: read whole caches under a mask (see `Step.at`); None: on every device but a CPU.
            separate: compute the place features of each row by themselves, so that a row's logits are the same, bit
                for bit, whatever the other rows hold (where chunks begin with overlap, of a batch of 1 only).
        """
        rows, device = len(batch.labels), model.device
        prefix = batch.ranks.shape[1] - 1
        if device.type == "cpu":  # elsewhere the host would wait for it
            assert bool((batch.lengths == prefix).all()), "rows of a batch are equally far"
        self.model, self.device, self.separate = model, device, separate
        self.static = device.type != "cpu" if static is None else static
        self.rows = torch.arange(rows, device=device)
        self.dtype = model.rank.weight.dtype
        context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)
        context.memory = [[(k.to(self.dtype), v.to(self.dtype)) for k, v in pairs] for pairs in context.memory]
        self.state = DecoderState(
            context=context,
            caches=model.new_caches(rows, model.rank.weight),
            index=torch.full((1,), prefix, device=device),
            previous_rank=batch.ranks[:, -1].clone(),
            previous_position=batch.positions[:, -1].clone(),
            previous_value=batch.values[:, -1].clone(),
            run_rank=torch.full((rows,), -1, device=device),
            places=self._new_places(context),
            states=None if context.states is None else context.states.copy(),
        )
        if prefix:
            self._prefill(batch)
        # The decisions on the next triple so far.
        self.stream = context.encoded.new_zeros(rows, 1, model.config.width)
        self.decided_rank = self.chosen_rank = self.chosen_position = self.state.run_rank

    def _new_places(self, context: Context) -> Places:
        """Return the places of one run per row, to be filled in as channels are entered."""
        m, positions, rows = self.model, context.grid.positions, self.rows
        new = functools.partial(context.encoded.new_zeros, len(rows), positions)
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
        """Fill the caches with the batch's triples in one pass; the state is then that of step-by-step decoding."""
        s = self.state
        places = self.model.places_of_chunk(batch, s.context)
        self.model.streams(batch, s.context, places, s.caches)
        last = places.of_triple[:, -1]
        s.run_rank.copy_(s.previous_rank)
        for target, source in self._pairs(places):
            target.copy_(source[last])
        if s.states is not None:
            listed = batch.ranks[:, 1:], batch.positions[:, 1:], batch.values[:, 1:]
            self._add(*listed, batch.predicted)  # overlap is in the states already

    def _pairs(self, places: Places) -> list[tuple[Tensor, Tensor]]:
        """Pair this state's tensors that change with the run with those of other places."""
        names = ("rank", "same", "features", "keys", "base")
        pairs = [(getattr(self.state.places, name), getattr(places, name)) for name in names]
        return [pair for pair in pairs if pair[0] is not None]

    def channel(self) -> Tensor:
        """Return the logits of the next channel, ``[B, 193]``."""
        m, s = self.model, self.state
        rank, position = s.previous_rank[:, None], s.previous_position[:, None]
        x = m.embed_previous(rank, position, s.previous_value[:, None], s.context)
        self.stream = self._run(0, x)
        return m.channel_head(self.stream, rank, position, s.context)[:, 0]

    def enter(self, rank: Tensor) -> None:
        """Enter the chosen channels: where a row's channel is new, compute its place features from the current states.

        Args:
            rank: the channels chosen, int64 ``[B]``; rows that have stopped idle.
        """
        self.decided_rank = rank
        rank = rank.clamp(max=order.NUM_CHANNELS - 1)
        fresh = rank != self.state.run_rank
        self.state.run_rank.copy_(rank)
        self.chosen_rank = rank
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            changed = fresh.nonzero()[:, 0]
            for part in changed.split(1 if self.separate else max(1, len(changed))):
                if len(part):
                    for target, source in self._pairs(self._entered(part)):
                        target[part] = source.to(target.dtype)
        else:
            for target, source in self._pairs(self._entered(self.rows)):
                new = fresh.view(-1, *[1] * (target.ndim - 1))
                target.copy_(torch.where(new, source.to(target.dtype), target))

    def _entered(self, rows: Tensor) -> Places:
        """Compute the places of some rows' channels at their entry."""
        m, context, rank = self.model, self.state.context, self.chosen_rank[rows]
        places = Places(rank, context.planes[rows, rank].float(), rows[:, None])
        if self.state.states is not None:
            places.features, places.keys, places.base = m.look_around(self.state.states[rows], context, rows, rank)
        return places

    def position(self, rank: Tensor, *, entered: bool = False) -> Tensor:
        """Return the logits of the position in the channels chosen (int64 ``[B]``), ``[B, P]``."""
        if not entered:
            self.enter(rank)
        m, s, rank = self.model, self.state, self.chosen_rank[:, None]
        cursor = torch.where(s.previous_rank[:, None] == rank, s.previous_position[:, None], -1)
        x = m.embed_channel(self.stream, rank)
        self.stream = self._run(1, x)
        return m.position_head(self.stream, rank, cursor, s.places, s.context)[:, 0]

    def value(self, position: Tensor) -> Tensor:
        """Return the logits of the value at the positions chosen (int64 ``[B]``), ``[B, V]``."""
        m, rank = self.model, self.chosen_rank[:, None]
        self.chosen_position = position
        x = m.embed_position(self.stream, rank, position[:, None], self.state.places, self.state.context)
        self.stream = self._run(2, x)
        return m.value_head(self.stream, rank)[:, 0]

    def _run(self, decoder: int, x: Tensor) -> Tensor:
        stack, state = self.model.decoders[decoder], self.state
        step = Step.at(state.index, self.model.config.chunk, static=self.static)
        # Everything has one dtype already, so that autocast would only add casts.
        casts = torch.is_autocast_enabled(self.device.type)
        with torch.autocast(self.device.type, enabled=False) if casts else contextlib.nullcontext():
            return stack(x.to(self.dtype), state.context.memory[decoder], state.caches[decoder], step)

    def settle(self, value: Tensor) -> None:
        """Record the triple as decided (values, int64 ``[B]``) and go on to the next."""
        s = self.state
        s.places.same[self.rows, self.chosen_position] = value.float()
        if s.states is not None:
            self._add(self.chosen_rank[:, None], self.chosen_position[:, None], value[:, None])
        s.previous_rank.copy_(self.decided_rank)
        s.previous_position.copy_(self.chosen_position)
        s.previous_value.copy_(value)
        s.index += 1

    def _add(self, rank: Tensor, position: Tensor, value: Tensor, counted: Tensor | None = None) -> None:
        """Add triples (int64 ``[B, L]`` each) to the states, where ``counted`` (bool ``[B, L]``)."""
        sums, local = self.state.states, self.model.local
        assert sums is not None
        added = local.contribution(rank, value).to(sums.luma.dtype)
        if counted is not None:
            added = torch.where(counted[..., None], added, 0.0)
        chroma, rows = local.is_chroma[rank][..., None].long(), self.rows[:, None]
        mcu = self.state.context.grid.mcu_at(position)
        for states, place, part in ((sums.luma, position, added * (1 - chroma)), (sums.chroma, mcu, added * chroma)):
            states.flatten(0, 1).index_add_(0, (rows * states.shape[1] + place).flatten(), part.flatten(0, 1))
