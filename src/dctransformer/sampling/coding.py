"""Pictures to bits and back, by the model's own distributions: sampling with an entropy coder in place of noise.

Encoder and decoder are one loop. It decides symbol by symbol with the same decoding state as the sampling engine; an
encoder's symbols come from the picture, a decoder's from the bits. Logits must be equal to the last bit in both, so
nothing that a row computes may depend on the other rows: a batch has the same number of rows in both, each picture
keeps its row, and rows without a picture stay idle.

Shapes: B rows in the batch, P positions, H = P / 2 places of one checkerboard colour, C = 192 ranks, V values.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import Grid, rank_slots
from dctransformer.codec.triples import gather, scatter
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.legality import NEVER
from dctransformer.model.ops import next_channel_log_p
from dctransformer.model.precision import full_fp32
from dctransformer.model.texture_state import Occupancy, TextureState, Values
from dctransformer.model.texture_values import value_logits
from dctransformer.sampling.bits import DamagedBits, SymbolCoder
from dctransformer.sampling.decoder_state import Decoding, for_steps
from dctransformer.sampling.drawing import overflow_error
from dctransformer.sequence import chunks
from dctransformer.sequence.chunks import cut_chunks

MAX_BATCH = 16
"""Most rows of a batch."""

MAX_PLACES = 1 << 16
"""Most positions of a batch of several rows: their features fill the memory."""

_Result = TypeVar("_Result")


@dataclasses.dataclass
class CodingTask:
    """A picture to encode, or the bits of one to decode.

    Attributes:
        label: class number, `ModelConfig.null_label` for none.
        coefficients: int16 ``[N, 6, 64]``, to be encoded; None to decode.
        data: bits, to be decoded; None to encode.
    """

    label: int
    coefficients: Tensor | None = None
    data: bytes | None = None


@dataclasses.dataclass
class Coded:
    """A picture with its bits.

    Attributes:
        coefficients: int16 ``[N, 6, 64]``.
        data: its bits.
    """

    coefficients: Tensor
    data: bytes


class PictureCoder:
    """Codes batches of pictures with one model."""

    def __init__(self, model: DCTransformer):
        """Prepare a model.

        Args:
            model: in eval mode; it is copied.

        Raises:
            ValueError: its weights are not finite.
        """
        self.model, self.device = for_steps(model, "fp32"), model.device

    def batch(self, wanted: int, grid: Grid) -> int:
        """Return the number of rows that a batch may have; with overlap, chunks can't be begun row by row."""
        most = 1 if self.model.config.overlap else min(MAX_BATCH, max(1, MAX_PLACES // grid.positions))
        return min(wanted, most)

    @torch.inference_mode()
    @full_fp32()
    def run(self, tasks: Sequence[CodingTask | None], grid: Grid) -> list[Coded | None]:
        """Encode or decode the pictures of a batch.

        Args:
            tasks: one per row; None for an idle row. A picture is decoded from its bits if the number of rows, its row
                and its label are those that it was encoded with.
            grid: of all pictures.

        Returns:
            One per row; None for idle rows and where bits are damaged.

        Raises:
            ValueError: a prediction is not finite, or far too large.
        """
        assert self.batch(len(tasks), grid) == len(tasks)
        rows = [_Row(task, grid, self.model) for task in tasks]
        with _one_thread():
            self._code_structure(rows)
            for row in rows:
                row.end_structure()
            if self.model.config.texture_rank < order.NUM_CHANNELS:
                self._code_texture(rows, grid)
        return [row.finished() for row in rows]

    # -- structure ----------------------------------------------------------------------------------------------

    def _code_structure(self, rows: list[_Row]) -> None:
        """Code the triples of all rows, chunk by chunk."""
        config, k = self.model.config, 0
        while any(row.active for row in rows):
            sequences, index = [row.sequence() for row in rows], [k if row.active else 0 for row in rows]
            batch = cut_chunks(sequences, index, config.chunk, config.overlap)
            decoding = Decoding(self.model, batch.to(self.device), separate=True)
            for _ in range(config.stride):
                self._code_triples(rows, decoding)
                if not any(row.active for row in rows):
                    break
            k += 1

    def _code_triples(self, rows: list[_Row], decoding: Decoding) -> None:
        """Code one triple, or the stop, of each row."""
        alphabet = self.model.alphabet
        truths = [row.next_triple() for row in rows]
        ranks = _choose_all(rows, decoding.channel(), [t and t[0] for t in truths], order.STOP)
        places = decoding.position(torch.tensor(ranks, device=self.device))
        for row, rank in zip(rows, ranks, strict=True):
            row.active = row.active and rank != order.STOP
        positions = _choose_all(rows, places, [t and t[1] for t in truths], 0)
        classes = decoding.value(torch.tensor(positions, device=self.device))
        known = [t and int(alphabet.encode(torch.tensor(t[2]))) for t in truths]
        values = alphabet.decode(torch.tensor(_choose_all(rows, classes, known, 0)))
        decoding.settle(values.to(self.device))
        for row, *triple in zip(rows, ranks, positions, values.tolist(), strict=True):
            if row.active:
                row.listed.append((triple[0], triple[1], triple[2]))

    # -- texture ------------------------------------------------------------------------------------------------

    def _code_texture(self, rows: list[_Row], grid: Grid) -> None:
        """Code the texture of some rows, a channel of each per turn."""
        texture, device = self.model.texture, self.device
        picture = torch.stack([row.coefficients for row in rows]).to(device)
        coefficients = F.pad(picture.flatten(1), (0, 1))  # one more, for places that don't exist
        nothing = torch.zeros_like(picture, dtype=torch.bool)
        labels = torch.tensor([row.label for row in rows], device=device)
        index = torch.arange(len(rows), device=device)
        before = [texture.first - 1] * len(rows)
        while True:
            view = TextureState(coefficients[:, :-1].view_as(picture), nothing, nothing, labels, grid)
            rates = texture.use_rates(view).cpu()
            self._check(rates)
            following = next_channel_log_p(rates, torch.tensor(before))
            truths = [row.next_channel(rank) for row, rank in zip(rows, before, strict=True)]
            before = _choose_all(rows, following, truths, order.STOP)
            for row, rank in zip(rows, before, strict=True):
                row.active = row.active and rank != order.STOP
            if not any(row.active for row in rows):
                break
            ranks = torch.tensor(before, device=device).clamp(max=order.NUM_CHANNELS - 1)
            channels = texture.begin(view, index, ranks, whole=True)
            channels = texture.decide(channels, grid, self._occupancy(rows, ranks), self._values(rows, ranks))
            decided = channels.opened & torch.tensor([row.active for row in rows], device=device)[:, None]
            slots = rank_slots(grid, device)[ranks]
            values = torch.where(decided, channels.values.to(torch.int16), coefficients.gather(1, slots))
            coefficients.scatter_(1, slots, values)
        for row, result in zip(rows, coefficients[:, :-1].view_as(picture).cpu(), strict=True):
            row.coefficients = result

    def _occupancy(self, rows: list[_Row], ranks: Tensor) -> Occupancy:
        """Code which open places of one colour hold a coefficient (for `Texture.decide`)."""
        truths = [row.channel(rank) for row, rank in zip(rows, ranks.tolist(), strict=True)]

        def decide(logits: Tensor, where: Tensor, opened: Tensor, must: Tensor) -> Tensor:
            self._check(logits[opened])
            held = np.zeros(tuple(opened.shape), bool)
            logits, where, opened = logits.cpu().double(), where.cpu(), opened.cpu()
            for i, (row, truth) in enumerate(zip(rows, truths, strict=True)):
                if row.active:
                    at = opened[i]
                    known = None if truth is None else (truth[where[i][at]] != 0).numpy()
                    held[i, at.numpy()] = row.flags(logits[i][at].numpy(), bool(must[i]), known)
            return torch.from_numpy(held).to(self.device)

        return decide

    def _values(self, rows: list[_Row], ranks: Tensor) -> Values:
        """Code the values at the occupied places of one colour (for `Texture.decide`)."""
        texture, alphabet = self.model.texture, self.model.alphabet
        truths = [row.channel(rank) for row, rank in zip(rows, ranks.tolist(), strict=True)]
        limits = texture.limits[ranks].cpu()

        def decide(scores: Tensor, where: Tensor, due: Tensor) -> Tensor:
            self._check(scores[due])
            values = torch.zeros(due.shape)
            scores, where, due = scores.cpu().double(), where.cpu(), due.cpu()
            for i, (row, truth) in enumerate(zip(rows, truths, strict=True)):
                at = due[i]
                if row.active and bool(at.any()):
                    log_p = value_logits(scores[i][at], limits[i].expand(int(at.sum())), alphabet)
                    legal = (log_p[0] > NEVER / 2).nonzero()[:, 0]  # the same at all places of a channel
                    known = None
                    if truth is not None:
                        known = torch.searchsorted(legal, alphabet.encode(truth[where[i][at]])).numpy()
                    chosen = torch.from_numpy(row.symbols(log_p[:, legal].numpy(), known))
                    values[i, at] = alphabet.decode(legal[chosen]).float()
            return values.to(self.device)

        return decide

    @staticmethod
    def _check(predictions: Tensor) -> None:
        if not bool((predictions.abs() < -NEVER / 2).all()):
            raise overflow_error("fp32", False)


def _choose_all(rows: list[_Row], logits: Tensor, truths: Sequence[int | None], idle: int) -> list[int]:
    """Code one decision of each active row: logits ``[B, K]``, `NEVER` where impossible; no truth where decoding."""
    parts = logits.cpu().double().numpy()
    return [
        row.choose(row_logits, truth) if row.active else idle
        for row, row_logits, truth in zip(rows, parts, truths, strict=True)
    ]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: how a product is shared out among threads can change its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Row:
    """A picture that is being encoded or decoded; or an idle row.

    Attributes:
        label: class number.
        active: whether it takes part in the decisions at hand.
        listed: (rank, position, value) of the structure so far.
        coefficients: int16 ``[N, 6, 64]``, as far as it is coded.
    """

    def __init__(self, task: CodingTask | None, grid: Grid, model: DCTransformer):
        self.grid, self.first = grid, model.config.texture_rank
        self.label = model.config.null_label if task is None else task.label
        self.coder = None if task is None else SymbolCoder(task.data)
        self.active = task is not None
        self.listed: list[tuple[int, int, int]] = []
        self.coefficients = torch.zeros(grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.int16)
        self.planes: Tensor | None = None
        if task is not None and task.coefficients is not None:
            self.planes = planes = gather(task.coefficients[None], grid)[0].long()
            rank, position = planes[: self.first].nonzero().unbind(1)
            triples = torch.stack([rank, position, planes[rank, position]], 1).tolist()
            self.triples = [*map(tuple, triples), (order.STOP, 0, 0)]
            self.used = planes.any(-1).nonzero()[:, 0].tolist()

    # -- the picture --------------------------------------------------------------------------------------------

    def sequence(self) -> chunks.Sequence:
        """Return the structure so far, without a stop; nothing for an idle row."""
        listed = torch.tensor(self.listed if self.active else [], dtype=torch.int64).view(-1, 3)
        rank, position, value = listed.unbind(1)
        return chunks.Sequence(rank, position, value, None, None, self.label, self.grid)

    def end_structure(self) -> None:
        """Put the structure's triples into the coefficients; the texture follows."""
        if self.listed:
            rank, position, value = torch.tensor(self.listed).unbind(1)
            scatter(rank, position, value, self.grid, into=self.coefficients)
        self.active = self.coder is not None

    def next_triple(self) -> tuple[int, int, int] | None:
        """Return the triple to be encoded next."""
        return None if self.planes is None or not self.active else self.triples[len(self.listed)]

    def next_channel(self, before: int) -> int | None:
        """Return the texture channel in use to be encoded after ``before``, or the stop."""
        return None if self.planes is None else next((rank for rank in self.used if rank > before), order.STOP)

    def channel(self, rank: int) -> Tensor | None:
        """Return a channel to be encoded: int64 ``[P]``."""
        return None if self.planes is None else self.planes[rank]

    # -- decisions ----------------------------------------------------------------------------------------------

    def choose(self, logits: np.ndarray, truth: int | None) -> int:
        """Code a class: fp64 logits ``[K]``, `NEVER` where impossible."""
        legal = np.flatnonzero(logits > NEVER / 2)
        if not logits.max() < -NEVER / 2 or not len(legal):  # NaN, infinity, or too large
            raise overflow_error("fp32", False)
        at = None if truth is None else int(np.searchsorted(legal, truth))
        assert at is None or (at < len(legal) and legal[at] == truth), "the picture is legal"
        return int(legal[self._coded(0, lambda coder: coder.symbol(logits[legal], at))])

    def flags(self, logits: np.ndarray, must: bool, truth: np.ndarray | None) -> np.ndarray:
        """Code occupancy: log-odds fp64 ``[n]``, whether not all may be empty, bool ``[n]``."""
        held = np.zeros(len(logits), bool)
        free = 0
        if must:
            # p(the first occupied place is h | one is) is proportional to a_h times all 1 − a before it.
            passed = np.logaddexp(0, logits).cumsum()
            log_p = logits - passed
            first = None if truth is None else int(truth.argmax())
            free = self._coded(0, lambda coder: coder.symbol(log_p, first)) + 1
            held[free - 1] = True
        p = np.exp(-np.logaddexp(0, -logits[free:]))
        rest = None if truth is None else truth[free:]
        held[free:] = self._coded(held[free:], lambda coder: coder.flags(p, rest))
        return held

    def symbols(self, log_p: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
        """Code classes: fp64 ``[n, K]``, int64 ``[n]``."""
        return self._coded(np.zeros(len(log_p), np.int64), lambda coder: coder.symbols(log_p, truth))

    def _coded(self, otherwise: _Result, code: Callable[[SymbolCoder], _Result]) -> _Result:
        """Run the coder; if its bits are damaged, return ``otherwise`` and leave the row idle from here on."""
        if self.coder is None:
            return otherwise
        try:
            return code(self.coder)
        except DamagedBits:
            self.coder, self.active = None, False
            return otherwise

    def finished(self) -> Coded | None:
        """Return the picture and its bits; None for an idle row and if they are damaged."""
        data = self._coded(None, lambda coder: coder.finish())
        return None if data is None else Coded(self.coefficients, data)
