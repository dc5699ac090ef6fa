"""Tests of recorded passes, with a tracer in the place of CUDA graphs: what is replayed are operations, not Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from dctransformer.codec.grid import Grid
from dctransformer.model import layers
from dctransformer.model.config import preset
from dctransformer.sequence import conditions
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.texture import sample_texture
from dctransformer.training import capture
from dctransformer.training.capture import MOST_GRAPHS, RECORD_AT, RecordedPasses, tensors_of
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer
from test_model_distribution import triples_of
from test_texture import random_picture

CONFIG = preset("tiny", size=32, quality=30, num_labels=2, texture_from=1, dropout=0.1, conditions=conditions.NAMES)


def batch(step: int, rows: int = 4) -> ChunkBatch:
    """The chunks and textures of some random pictures."""
    grid, first = Grid(2, 2), CONFIG.texture_rank
    pictures = [
        Sequence.from_triples(triples_of(random_picture(10 * step + k, 0.02, grid), grid), grid, k % 2)
        for k in range(rows)
    ]
    chunks = cut_chunks([s.structure(first) for s in pictures], [0] * rows, CONFIG.chunk, CONFIG.overlap)
    chunks.texture = sample_texture(pictures, torch.linspace(0, 0.9, rows), 3, first)
    chunks.texture.pictures, chunks.texture.first = rows, first
    return chunks


def shape(chunks: ChunkBatch) -> tuple:
    """The shape of a batch that is to be recorded."""
    return tensors_of(chunks.padded(CONFIG.chunk))[1]


def trace(run: Callable[[], tuple[Tensor, list[Tensor | None]]]) -> tuple[Callable[[], None], tuple]:
    """Record the operations of a function and give each replay's results to the memory of the first."""
    parameters: list[int] = []

    def present() -> list[Tensor]:
        result, gradients = run()
        parameters[:] = [i for i, g in enumerate(gradients) if g is not None]
        return [result, *(g for g in gradients if g is not None)]

    graph = make_fx(present)()
    result, gradients = run()
    memory = [result, *(g for g in gradients if g is not None)]

    def replay() -> None:
        with torch.no_grad():
            for into, new in zip(memory, graph(), strict=True):
                into.copy_(new)

    return replay, (result, gradients)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record by tracing, and let the model take the way of a GPU, which reads nothing; lists the recordings made."""
    made: list[int] = []

    def record(run: Callable) -> tuple:
        made.append(len(made))
        state = torch.get_rng_state()
        recorded = trace(run)
        torch.set_rng_state(state)
        return recorded

    monkeypatch.setattr(capture, "record", record)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(layers, "dropout", torch.nn.functional.dropout)
    return made


def trainer(recorded: bool) -> Trainer:
    """A trainer that passes over whole batches, recorded or not."""
    settings = {"micro_batch": None, "precision": "fp32", "warmup": 2, "compile": "off", "optimizer": "muon"}
    result = Trainer(new_model(CONFIG, 0), TrainConfig(batch=4, device="cpu", **settings))
    if recorded:
        result.recorded = RecordedPasses(result._pass, result.model.parameters(), lambda: True)
    return result


def test_replayed_steps_are_the_steps(recordings: list[int]) -> None:
    """Steps on other pictures, numbers of triples and dropout masks than those recorded are what they would be."""
    plain, replayed = trainer(False), trainer(True)
    assert len({shape(batch(step)) for step in range(6)}) == 1
    assert len({(batch(step).ranks.shape, int(batch(step).predicted.sum())) for step in range(6)}) > 3
    for step in range(6):
        expected, nats = plain.step(batch(step).padded(CONFIG.chunk)), replayed.step(batch(step))
        torch.testing.assert_close(nats, expected, rtol=1e-5, atol=1e-4)
    assert recordings == [0]
    for a, b in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_shape_is_recorded_where_there_is_room(recordings: list[int]) -> None:
    """A shape that has occurred often enough is recorded and replayed, up to the most graphs, if there is memory."""

    @dataclasses.dataclass
    class Batch:
        x: Tensor

    weight = torch.nn.Parameter(torch.ones(1))

    def run(batch: Batch, number: Tensor) -> Tensor:
        loss = (weight * batch.x / number).sum()
        loss.backward()
        return loss.detach()

    for room, most in ((True, MOST_GRAPHS), (False, 0)):
        recordings.clear()
        passes = RecordedPasses(run, [weight], lambda room=room: room)
        for number in range(1, RECORD_AT + 3):
            for size in range(1, MOST_GRAPHS + 3):
                weight.grad = None
                assert float(passes(Batch(torch.full((size,), 2.0)), number)) == pytest.approx(2 * size / number)
                assert weight.grad is not None and float(weight.grad) == pytest.approx(2 * size / number)
        assert len(recordings) == most


def test_the_shape_tells_apart_what_is_part_of_a_recording() -> None:
    """Another grid, another offset or other dtypes are other shapes; other numbers are not."""
    first, other = batch(0), batch(1)
    assert shape(first) == shape(other)
    assert first.texture is not None
    changes = (
        {"offset": (1, 0)}, {"scored": False}, {"grid": Grid(1, 4)}, {"labels": first.labels.int()}, {"texture": None},
        {"texture": dataclasses.replace(first.texture, pictures=7)},
    )  # fmt: skip
    keys = {shape(dataclasses.replace(first, **change)) for change in changes}
    assert len(keys | {shape(first)}) == len(changes) + 1
