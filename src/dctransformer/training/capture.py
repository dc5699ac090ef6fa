"""Passes over a batch recorded as CUDA graphs, which a GPU replays without the host's help.

A step of a small model consists of thousands of short kernels. Launching them one by one takes the host longer than
they take a GPU; a recorded graph launches all at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dctransformer.codec.grid import Grid

MOST_GRAPHS = 8
"""Batches of more shapes than that are not recorded: the rest is launched kernel by kernel."""

RECORD_AT = 3
"""How often a shape has to occur before it is recorded."""

Pass = Callable[[Any, Tensor], Tensor]
"""Forward and backward pass over a batch on the device: adds to the gradients and returns a result.

The second argument is a number on the device (fp32, no dimensions) that may differ from step to step.
"""


@dataclasses.dataclass
class Recording:
    """A pass that can be replayed: it reads and writes the same memory each time."""

    batch: Any
    number: Tensor
    result: Tensor
    gradients: list[Tensor | None]
    replay: Callable[[], None]


class RecordedPasses:
    """Runs passes over batches, and replays those whose shapes have occurred before."""

    def __init__(self, run: Pass, parameters: Iterable[nn.Parameter], may_record: Callable[[], bool]):
        """Prepare to record.

        Args:
            run: reads nothing from the device, and no number from the host that is not part of the batch.
            parameters: all that get gradients.
            may_record: called before a recording; without memory for it the pass is not recorded.
        """
        self.run, self.parameters, self.may_record = run, list(parameters), may_record
        self._seen: dict[tuple, int] = {}
        self.recordings: dict[tuple, Recording] = {}

    def __call__(self, batch: Any, number: float) -> Tensor:
        """Run a pass over a batch; its gradients replace those that there are.

        Args:
            batch: a dataclass with tensors on the device.
            number: passed on to the pass.

        Returns:
            What the pass returns.
        """
        tensors, shape = tensors_of(batch)
        recording = self.recordings.get(shape)
        if recording is None:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            value = torch.full((), number, device=tensors[0].device)
            if self._seen[shape] < RECORD_AT or len(self.recordings) >= MOST_GRAPHS or not self.may_record():
                return self.run(batch, value)
            recording = self.recordings[shape] = self._record(batch, value)
        for into, tensor in zip(tensors_of(recording.batch)[0], tensors, strict=True):
            if into is not tensor:
                into.copy_(tensor)
        recording.number.fill_(number)
        recording.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.result.clone()

    def _record(self, batch: Any, number: Tensor) -> Recording:
        def run() -> tuple[Tensor, list[Tensor | None]]:
            for parameter in self.parameters:
                parameter.grad = None
            result = self.run(batch, number)
            return result, [parameter.grad for parameter in self.parameters]

        replay, (result, gradients) = record(run)
        return Recording(batch, number, result, gradients, replay)


def tensors_of(batch: Any) -> tuple[list[Tensor], tuple]:
    """Return the tensors of a dataclass and of those in it, and a key that batches of the same shape share.

    The key has the tensors' shapes and dtypes and every other field, as these are part of a recording.
    """
    tensors: list[Tensor] = []
    key: list[Any] = [type(batch)]
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            tensors.append(value)
            key.append((value.shape, value.dtype))
        elif dataclasses.is_dataclass(value) and not isinstance(value, Grid):
            inner, inner_key = tensors_of(value)
            tensors.extend(inner)
            key.append(inner_key)
        else:
            key.append(value)
    return tensors, tuple(key)


def record(
    run: Callable[[], tuple[Tensor, list[Tensor | None]]],
) -> tuple[Callable[[], None], tuple[Tensor, list[Tensor | None]]]:
    """Record a function as a CUDA graph.

    Args:
        run: runs kernels on the current CUDA device and returns their results.

    Returns:
        A function that replays the graph, and the results, which it writes to.
    """
    random_state = torch.cuda.get_rng_state()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries set themselves up on their first calls
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_rng_state(random_state)  # the first replay draws what the pass would have drawn
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph.replay, results
