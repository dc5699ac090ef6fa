"""The sampling engine: pictures from a model, step by step with key/value caches.

It calls the same parts of the model that training uses, the three distributions above all.
Rows run in step inside a chunk; a row that stops leaves the batch at once, and its place is taken by a picture
still waiting when the next chunk begins.

Shapes: B rows in the batch, N MCUs, P positions, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import Codec, DCTImage, order
from dctransformer.codec.grid import Grid
from dctransformer.data.chunks import START, settled_before
from dctransformer.model.dctransformer import Context, DCTransformer, Places
from dctransformer.model.layers import KVCache
from dctransformer.model.legality import NEVER

_CHANNEL = torch.from_numpy(order.GENERATION_ORDER)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How to sample."""

    seed: int = 0
    """Picture i of a seed is the same whatever the batch size and the number of pictures (its noise is its own)."""
    temperature: float = 1.0
    """Divides the logits of positions and values (channels keep theirs); below 1 is tamer, 0 takes the likeliest."""
    top_p: float = 1.0
    """Keep the likeliest positions and values that make up this probability."""
    guidance: float = 1.0
    """Classifier-free guidance on the label: 1 is none, 1.5 follows the label more closely (twice the work)."""
    batch: int = 16
    """Pictures at a time."""

    def __post_init__(self) -> None:
        """Check what no type can say."""
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed {self.seed} must be from 0 to {2**31 - 1}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} must be 0 or more; 1 samples from the model as it is")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p} must be greater than 0 and at most 1")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance {self.guidance} must be 0 or more; 1 switches it off")
        if self.batch < 1:
            raise ValueError(f"batch {self.batch} must be at least 1")


@dataclasses.dataclass
class Request:
    """One picture to make.

    Attributes:
        index: its number, which with the seed decides its noise.
        label: class number, `ModelConfig.null_label` for none.
        known: int16 ``[N, 6, 64]``, settled coefficients, 0 elsewhere; None for none.
        given: bool ``[N, 6, 64]``, which are settled; None for none.
    """

    index: int
    label: int
    known: Tensor | None = None
    given: Tensor | None = None


@dataclasses.dataclass
class Samples:
    """What came out.

    Attributes:
        mcus: int16 ``[n, N, 6, 64]``, the DCT images.
        triples: generated triples of each (channel, position, value), int32 ``[L, 3]`` in the order of generation.
        labels: int64 ``[n]``.
        grid: the MCU grid.
        quality: of the codec.
    """

    mcus: Tensor
    triples: list[Tensor]
    labels: Tensor
    grid: Grid
    quality: int

    def dct(self) -> DCTImage:
        """As a DCT image, batch n."""
        codec = Codec(quality=self.quality)
        return DCTImage.from_mcus(self.mcus, self.grid.rows, self.grid.cols, codec.luma_table, codec.chroma_table)

    def pixels(self) -> Tensor:
        """As pictures, uint8 ``[n, H, W, 3]``."""
        return Codec(quality=self.quality).decode(self.dct())

    def places(self) -> Tensor:
        """How often each luma block position was chosen: int64 ``[n, 2·rows, 2·cols]`` (the paper's figure 1)."""
        counts = [
            torch.bincount(t[:, 1].long(), minlength=self.grid.positions).view(2 * self.grid.rows, self.grid.width)
            for t in self.triples
        ]
        return torch.stack(counts)


@torch.inference_mode()
def sample(
    model: DCTransformer,
    num: int,
    config: SampleConfig = SampleConfig(),
    *,
    labels: list[int] | None = None,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Generate pictures.

    Args:
        model: in eval mode.
        num: how many.
        config: seed, temperature and so on.
        labels: class of each picture; None for the null label.
        size: height and width in pixels, multiples of 16; None for the size the model was trained on.
        progress: called with (triples so far, pictures finished).

    Returns:
        The samples, in order.

    Raises:
        ValueError: ``num`` is not positive, a label or the size is impossible.
    """
    if num < 1:
        raise ValueError(f"num {num} must be at least 1")
    height, width = size or (model.config.size, model.config.size)
    labels = [model.config.null_label] * num if labels is None else labels
    assert len(labels) == num
    for label in labels:
        if not 0 <= label <= model.config.num_labels:
            raise ValueError(f"label {label} is not one of the model's {model.config.num_labels} labels")
    requests = [Request(i, label) for i, label in enumerate(labels)]
    return fill(model, requests, Grid.of_size(height, width), config, progress=progress)


@torch.inference_mode()
def fill(
    model: DCTransformer,
    requests: list[Request],
    grid: Grid,
    config: SampleConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Generate what is not settled of some pictures.

    Args:
        model: in eval mode.
        requests: the pictures.
        grid: their MCU grid.
        config: seed, temperature and so on.
        progress: called with (triples so far, pictures finished).

    Returns:
        The samples, in the order of the requests.
    """
    waiting = [Row.new(request, grid, config.seed) for request in requests]
    finished: dict[int, Row] = {}
    at_work: list[Row] = []
    total = 0
    order_of = {id(row): i for i, row in enumerate(waiting)}
    while waiting or at_work:
        while waiting and len(at_work) < config.batch:
            at_work.append(waiting.pop(0))
        total += _Chunk(model, at_work, grid, config).run()
        for row in at_work:
            if row.stopped:
                finished[order_of[id(row)]] = row
        at_work = [row for row in at_work if not row.stopped]
        if progress is not None:
            progress(total, len(finished))
    rows = [finished[i] for i in range(len(requests))]
    return Samples(
        torch.stack([row.coefficients for row in rows]),
        [row.triples() for row in rows],
        torch.tensor([row.request.label for row in rows]),
        grid,
        model.config.quality,
    )


@dataclasses.dataclass
class Row:
    """A picture in the making."""

    request: Request
    coefficients: Tensor
    given: Tensor
    noise: np.random.Generator
    listed: list[tuple[int, int, int]]
    """(rank, position, value) generated so far."""
    stopped: bool = False

    @classmethod
    def new(cls, request: Request, grid: Grid, seed: int) -> Row:
        shape = (grid.mcus, order.BLOCKS_PER_MCU, 64)
        known = torch.zeros(shape, dtype=torch.int16) if request.known is None else request.known.clone()
        given = torch.zeros(shape, dtype=torch.bool) if request.given is None else request.given
        return cls(request, known, given, np.random.default_rng([seed, request.index]), [])

    def triples(self) -> Tensor:
        """int32 ``[L, 3]`` (channel, position, value)."""
        if not self.listed:
            return torch.zeros(0, 3, dtype=torch.int32)
        rank, position, value = torch.tensor(self.listed).unbind(1)
        return torch.stack([_CHANNEL[rank], position, value], 1).int()


def pick(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Draw a class for each row by inverting the cumulative distribution.

    Args:
        logits: fp32 ``[B, K]``, `dctransformer.model.legality.NEVER` where impossible.
        uniform: fp64 ``[B]`` in [0, 1).
        temperature: divides the logits; 0 takes the likeliest class.
        top_p: keep the likeliest classes that make up this probability.

    Returns:
        int64 ``[B]``; never a class of probability 0.
    """
    if temperature == 0:
        return logits.argmax(-1)
    impossible = logits <= NEVER / 2
    p = (logits.double() / temperature).masked_fill(impossible, -torch.inf).softmax(-1)
    if top_p < 1:
        high, index = p.sort(-1, descending=True)
        # A class stays if the likelier ones do not already make up top_p: the first always stays.
        high = torch.where(high.cumsum(-1) - high < top_p, high, 0.0)
        p = torch.zeros_like(p).scatter(-1, index, high)
    cumulative = p.cumsum(-1)
    drawn = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(drawn, last)


class _Chunk:
    """One chunk of a batch of rows: encode once, then triple by triple."""

    def __init__(self, model: DCTransformer, rows: list[Row], grid: Grid, config: SampleConfig):
        self.model, self.rows, self.grid, self.config = model, rows, grid, config
        self.guided = config.guidance != 1 and model.config.num_labels > 0
        overlap = model.config.overlap
        # How much context each row has depends on its length; rows are lined up by their first *new* triple.
        self.contexts = [min(overlap, len(row.listed)) for row in rows]

    def run(self) -> int:
        """Generate up to a stride of triples a row; returns how many there were."""
        total = 0
        # Rows with the same amount of context share a batch (all but those in their first chunks have `overlap`).
        for context in sorted(set(self.contexts)):
            total += self._run([r for r, c in zip(self.rows, self.contexts, strict=True) if c == context], context)
        return total

    def _run(self, rows: list[Row], overlap: int) -> int:
        model, device = self.model, self.model.device
        stride = model.config.stride
        steps = Decoding.begin(model, rows, self.grid, overlap, guided=self.guided)
        noise = torch.from_numpy(np.stack([row.noise.random((stride, 3)) for row in rows])).to(device)
        new: list[list[tuple[int, int, int]]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        c = self.config
        for step in range(stride):
            u = noise[alive, step]
            rank = pick(self._mix(steps.channel()), u[:, 0])
            going = rank < order.NUM_CHANNELS
            if not bool(going.all()):
                for i in (~going).nonzero()[:, 0].tolist():
                    rows[alive[i]].stopped = True
                kept = going.nonzero()[:, 0]
                alive = [alive[i] for i in kept.tolist()]
                if not alive:
                    break
                steps.keep(torch.cat([kept, kept + len(going)]) if self.guided else kept)
                u, rank = u[kept], rank[kept]
            position = pick(self._mix(steps.position(self._both(rank))), u[:, 1], c.temperature, c.top_p)
            value_class = pick(self._mix(steps.value(self._both(position))), u[:, 2], c.temperature, c.top_p)
            value = model.alphabet.decode(value_class)
            steps.settle(self._both(value))
            triples = torch.stack([rank, position, value], 1).tolist()
            for i, triple in zip(alive, triples, strict=True):
                new[i].append((triple[0], triple[1], triple[2]))
        for row, listed in zip(rows, new, strict=True):
            row.listed += listed
            if listed:
                rank, position, value = torch.tensor(listed).unbind(1)
                row.coefficients.view(-1)[self.grid.slot(_CHANNEL[rank], position)] = value.to(torch.int16)
        return sum(map(len, new))

    def _both(self, x: Tensor) -> Tensor:
        """Decisions for the labelled rows and, with guidance, for their unlabelled twins."""
        return torch.cat([x, x]) if self.guided else x

    def _mix(self, logits: Tensor) -> Tensor:
        """With guidance, extrapolate from the twins' log-probabilities; masks survive as they are."""
        if not self.guided:
            return logits
        labelled, plain = logits.log_softmax(-1).chunk(2)
        legal = logits.chunk(2)[0] > NEVER / 2
        mixed = plain + self.config.guidance * (labelled - plain)
        return torch.where(legal, mixed, logits.chunk(2)[0])


class Decoding:
    """Step-by-step decoding of a chunk: call `channel`, `position`, `value`, `settle` in turn.

    Each of the first three returns fp32 logits ``[B, K]`` equal (up to rounding) to those of the whole-chunk forward.
    """

    def __init__(
        self,
        model: DCTransformer,
        context: Context,
        caches: list[list[KVCache]],
        previous: tuple[Tensor, Tensor, Tensor],
    ):
        self.model, self.context, self.caches = model, context, caches
        self.previous_rank, self.previous_position, self.previous_value = previous
        self.index = 0
        batch = len(self.previous_rank)
        device = model.device
        self.run_rank = torch.full((batch,), -1, device=device)
        self.states = None if context.states is None else context.states.copy()
        self.same = torch.zeros(batch, context.grid.positions, device=device)
        self.features: Tensor | None = None
        self.stream = context.encoded.new_zeros(batch, 1, model.config.width)
        # What has been decided of the triple in hand, and the last position in its channel.
        self.chosen_rank = self.chosen_position = torch.zeros_like(self.run_rank)
        self.cursor = self.chosen_rank[:, None]
        self.planes = context.planes.float()

    @classmethod
    def begin(
        cls, model: DCTransformer, rows: list[Row], grid: Grid, overlap: int, *, guided: bool = False
    ) -> Decoding:
        """Encode what is settled, and prefill the caches with ``overlap`` triples of context."""
        device = model.device
        coefficients = torch.stack([row.coefficients for row in rows])
        given = torch.stack([row.given for row in rows])
        settled = given.clone()
        for i, row in enumerate(rows):
            if row.listed:
                settled[i] |= settled_before(row.listed[-1][0], row.listed[-1][1], grid)
        labels = torch.tensor([row.request.label for row in rows])
        recent = torch.tensor(
            [[(START, 0, 0), *row.listed][len(row.listed) - overlap :] for row in rows], dtype=torch.int64
        )
        tensors = [coefficients, settled, given, labels, recent]
        if guided:
            tensors = [torch.cat([t, t]) for t in tensors]
            tensors[3][len(rows) :] = model.config.null_label
        coefficients, settled, given, labels, recent = (t.to(device) for t in tensors)
        context = model.encode(coefficients, settled, given, labels, grid)
        stacks = (model.channel_decoder, model.position_decoder, model.value_decoder)
        caches = [stack.new_cache(len(labels), context.encoded) for stack in stacks]
        first = recent[:, 0]
        decoding = cls(model, context, caches, (first[:, 0], first[:, 1], first[:, 2]))
        for k in range(1, overlap + 1):
            decoding._replay(recent[:, k])
        return decoding

    def _replay(self, triple: Tensor) -> None:
        """Pass a triple of context (int64 ``[B, 3]``) through the decoders; the states hold it already."""
        self.channel()
        self.position(triple[:, 0])
        self.value(triple[:, 1])
        self.settle(triple[:, 2], counted=False)

    def keep(self, rows: Tensor) -> None:
        """Drop all batch rows but those listed."""
        self.context = self.context.keep(rows)
        for stack in self.caches:
            for cache in stack:
                cache.keep(rows)
        self.previous_rank = self.previous_rank[rows]
        self.previous_position = self.previous_position[rows]
        self.previous_value = self.previous_value[rows]
        self.run_rank, self.same, self.planes = self.run_rank[rows], self.same[rows], self.planes[rows]
        self.states = None if self.states is None else self.states[rows]
        self.features = None if self.features is None else self.features[rows]
        self.stream = self.stream[rows]

    def channel(self) -> Tensor:
        """Logits of the next channel, ``[B, 193]``."""
        m = self.model
        before = self.previous_rank[:, None], self.previous_position[:, None], self.previous_value[:, None]
        x = m.embed_previous(*before, self.context)
        self.stream = m.channel_decoder(x, self.context.memory[0], self.caches[0], self.index)
        return m.channel_logits(self.stream, before[0], before[1], self.context)[:, 0]

    def position(self, rank: Tensor) -> Tensor:
        """Logits of the position in the channels chosen (int64 ``[B]``), ``[B, P]``."""
        m = self.model
        self._enter(rank)
        self.cursor = torch.where(self.previous_rank == rank, self.previous_position, -1)[:, None]
        self.chosen_rank = rank
        x = m.embed_channel(self.stream, rank[:, None])
        self.stream = m.position_decoder(x, self.context.memory[1], self.caches[1], self.index)
        return m.position_logits(self.stream, rank[:, None], self.cursor, self.places, self.context)[:, 0]

    def value(self, position: Tensor) -> Tensor:
        """Logits of the value at the positions chosen (int64 ``[B]``), ``[B, V]``."""
        m = self.model
        self.chosen_position = position
        x = m.embed_position(self.stream, self.chosen_rank[:, None], position[:, None], self.places, self.context)
        self.stream = m.value_decoder(x, self.context.memory[2], self.caches[2], self.index)
        return m.value_logits(self.stream, self.chosen_rank[:, None])[:, 0]

    def settle(self, value: Tensor, *, counted: bool = True) -> None:
        """Take the triple as decided (values, int64 ``[B]``) and go to the next."""
        rank, position = self.chosen_rank, self.chosen_position
        rows = torch.arange(len(rank), device=rank.device)
        self.same[rows, position] = value.float()
        if self.states is not None and counted:
            added = self.model.local.contribution(rank, value)
            luma = (_CHANNEL.to(rank.device)[rank] < order.CB)[:, None]
            self.states.luma[rows, position] += torch.where(luma, added, 0.0)
            mcu = self.context.grid.mcu.to(rank.device)[position]
            self.states.chroma[rows, mcu] += torch.where(luma, 0.0, added)
        self.previous_rank, self.previous_position, self.previous_value = rank, position, value
        self.index += 1

    def _enter(self, rank: Tensor) -> None:
        """Where a row's channel is new, make its place features from the states as they are now."""
        rows = torch.arange(len(rank), device=rank.device)
        fresh = (rank != self.run_rank).nonzero()[:, 0]
        self.run_rank = rank
        if len(fresh):
            self.same[fresh] = self.planes[fresh, rank[fresh]]
            if self.states is not None:
                assert self.context.encoded_places is not None
                made = self.model.local.features(
                    self.states[fresh], self.context.encoded_places[fresh], rank[fresh], self.context.grid
                )
                if self.features is None:
                    self.features = made.new_zeros(len(rank), *made.shape[1:])
                self.features[fresh] = made
        self.places = Places(self.features, self.same, rank, rows[:, None])
