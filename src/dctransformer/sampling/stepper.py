"""Steps of one triple per picture of a batch: eager, compiled, or replayed as a CUDA graph.

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
from dctransformer.sampling.guided import GuidedDecoding


def compilable_numbers() -> AbstractContextManager[Any]:
    """Let compiled code read a number from a tensor and have sizes depend on it (see `Step.at`)."""
    return torch._dynamo.config.patch(capture_scalar_outputs=True)


def compile_part(part: Callable[[Stepper], Any], device: torch.device) -> Callable[[Stepper], Any]:
    """Compile a part of a stepper's step, for that stepper alone.

    A stepper's tensors keep their shapes, so guards, which would take longer than many a kernel, are left out. Nothing
    else may use code that was compiled without guards, so the part's code is copied (compilations belong to a code
    object). On a CPU the calls between kernels are compiled, too: they take longer than the kernels.
    """
    copied = types.FunctionType(part.__code__.replace(), part.__globals__, part.__name__)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if device.type == "cpu":
        options["cpp_wrapper"] = True
    return torch.compile(copied, fullgraph=True, dynamic=False, options=options)


class Stepper:
    """Whole steps of a decoding: decide on one triple per row, settle and record it; the host reads no result."""

    def __init__(
        self, decoding: Decoding | GuidedDecoding, noise: Tensor, draws: Draws, *, compile: bool = False
    ):  # fmt: skip
        """Prepare a stepper.

        Args:
            decoding: a row per picture, and after them one for each of the draws' twins, without its label or by the
                guide.
            noise: uniform numbers, ``[B, L, 3]``.
            draws: the settings of each picture.
            compile: whether to compile the steps.
        """
        self.turn = torch.zeros(1, dtype=torch.int64, device=noise.device)
        self.graph: Any = None
        self.parts: tuple[Callable, ...] = (Stepper._choose_channel, Stepper._choose_rest)
        if compile:
            self.parts = tuple(compile_part(part, noise.device) for part in self.parts)
        self.load(decoding, noise, draws)

    def load(self, decoding: Decoding | GuidedDecoding, noise: Tensor, draws: Draws) -> None:
        """Begin another batch of chunks; the tensors of a captured graph stay."""
        if self.graph is None:
            self.decoding, self.noise, self.draws = decoding, noise, draws
            self.decisions = torch.zeros(noise.shape, dtype=torch.int64, device=noise.device)
            # Sum of squares of each row's largest logits; the host checks once per chunk that it is not too large.
            self.peak = torch.zeros(len(noise), device=noise.device)
        else:
            self.decoding.state.copy_(decoding.state)  # type: ignore[arg-type]  # both of the same kind
            self.noise.copy_(noise)
            self.draws.copy_(draws)
        self.turn.zero_()
        self.peak.zero_()

    def capture(self) -> None:
        """Record a step as a CUDA graph, which replays without the host's help.

        Tested on one GPU for a small all-triples model without guidance, in bf16 (`tests/test_gpu.py`, on an H200):
        the pictures of two runs were the same. It has not run with guidance.
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
        """Decide on one triple per row."""
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
        self.decisions.index_copy_(1, self.turn, torch.stack([rank, position, value], 1)[:, None])
        self.turn += 1

    def _mix(self, logits: Tensor, live: Tensor | None = None) -> Tensor:
        """Apply guidance: extrapolate from the twins' log-probabilities; masks stay as they are.

        The largest logits are noted in `peak`, for rows that have not stopped (``live``, bool ``[B]``).
        """
        if len(self.draws.twins):
            labelled = logits[: len(self.peak)]
            same = (labelled <= NEVER / 2) | (self.draws.guidance == 1)[:, None]
            logits = torch.where(same, labelled, self.draws.mix(logits.log_softmax(-1)))
        largest = logits.amax(-1)
        self.peak.addcmul_(largest, largest if live is None else largest * live)
        return logits
