"""One triple for every picture of a batch: eager, compiled, or replayed as a CUDA graph.

Shapes: B rows in the batch, L triples.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.model.legality import NEVER
from dctransformer.sampling.decoder_state import Decoding
from dctransformer.sampling.drawing import Draws, pick


def compilable_numbers() -> AbstractContextManager[Any]:
    """Where what is compiled may read a number from a tensor and have sizes depend on it (see `Step.at`)."""
    return torch._dynamo.config.patch(capture_scalar_outputs=True)


def compiled(part: Callable[[Stepper], Any], device: torch.device) -> Callable[[Stepper], Any]:
    """A part of a stepper's step, compiled for it alone.

    A stepper's tensors keep their shapes, so guards, which would take longer than many a kernel, are left out; and as
    nothing else may use what was compiled so, the part's code is copied (compilations belong to a code object). On a
    CPU the calls between kernels are compiled, too: there are more of them than there is work in them.
    """
    own = types.FunctionType(part.__code__.replace(), part.__globals__, part.__name__)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if device.type == "cpu":
        options["cpp_wrapper"] = True
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


class Stepper:
    """Whole steps of a decoding: decide on a triple a row, settle it, note it; no result is read by the host."""

    def __init__(self, decoding: Decoding, noise: Tensor, draws: Draws, *, compile: bool = False):
        """Prepare a stepper.

        Args:
            decoding: a row per picture, and after them one without its label for each of the draws' twins.
            noise: uniform numbers, ``[B, L, 3]``.
            draws: the settings of each picture.
            compile: whether to compile the steps.
        """
        self.turn = torch.zeros(1, dtype=torch.int64, device=noise.device)
        self.graph: Any = None
        self.parts: tuple[Callable, ...] = (Stepper._choose_channel, Stepper._choose_rest)
        if compile:
            self.parts = tuple(compiled(part, noise.device) for part in self.parts)
        self.load(decoding, noise, draws)

    def load(self, decoding: Decoding, noise: Tensor, draws: Draws) -> None:
        """Begin another batch of chunks; the tensors of a captured graph stay."""
        if self.graph is None:
            self.decoding, self.noise, self.draws = decoding, noise, draws
            self.made = torch.zeros(noise.shape, dtype=torch.int64, device=noise.device)
            # Sum of squares of each row's largest logits; the host checks once per chunk that it is not too large.
            self.peak = torch.zeros(len(noise), device=noise.device)
        else:
            self.decoding.state.copy_(decoding.state)
            self.noise.copy_(noise)
            self.draws.copy_(draws)
        self.turn.zero_()
        self.peak.zero_()

    def capture(self) -> None:
        """Record a step as a CUDA graph, which replays without the host's help.

        A GPU has run it for a small all-triples model without guidance, in bf16 (`tests/test_gpu.py`, on an H200): its
        pictures were the same twice. With guidance none has.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries set themselves up on their first calls
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()

    def step(self) -> None:
        """One triple a row."""
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def _step(self) -> None:
        choose_channel, choose_rest = self.parts
        rank = choose_channel(self)
        self.decoding.enter(self.draws.both(rank))
        choose_rest(self)

    def _choose_channel(self) -> Tensor:
        uniform = self.noise.index_select(1, self.turn)[:, 0]
        return pick(self._mix(self.decoding.channel()), uniform[:, 0])

    def _choose_rest(self) -> None:
        uniform = self.noise.index_select(1, self.turn)[:, 0]
        both = self.decoding.decided_rank
        rank, places = both[: len(uniform)], self.decoding.position(both, entered=True)
        live = rank != order.STOP
        position = pick(self._mix(places, live), uniform[:, 1], self.draws)
        values = self.decoding.value(self.draws.both(position))
        chosen = pick(self._mix(values, live), uniform[:, 2], self.draws)
        value = self.decoding.model.alphabet.decode(chosen)
        self.decoding.settle(self.draws.both(value))
        self.made.index_copy_(1, self.turn, torch.stack([rank, position, value], 1)[:, None])
        self.turn += 1

    def _mix(self, logits: Tensor, live: Tensor | None = None) -> Tensor:
        """With guidance, extrapolate from the twins' log-probabilities; masks survive as they are.

        The largest logits are noted in `peak`, for rows that have not stopped (``live``, bool ``[B]``).
        """
        if len(self.draws.twins):
            labelled = logits[: len(self.peak)]
            same = (labelled <= NEVER / 2) | (self.draws.guidance == 1)[:, None]
            logits = torch.where(same, labelled, self.draws.mix(logits.log_softmax(-1)))
        largest = logits.amax(-1)
        self.peak.addcmul_(largest, largest if live is None else largest * live)
        return logits
