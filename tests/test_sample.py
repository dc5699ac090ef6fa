"""Tests of the sampling engine: steps without host reads, resuming, watching, running out of memory."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.model import precision
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.decoder_state import DecoderState, Decoding, for_steps
from dctransformer.sampling.drawing import Draws
from dctransformer.sampling.engine import Engine, fill, sample
from dctransformer.sampling.rows import Request, Snapshot
from dctransformer.sampling.stepper import Stepper
from dctransformer.sequence.chunks import Sequence, cut_chunks
from dctransformer.sequence.labels import label_number
from dctransformer.tasks.generate import generate
from tiny_model import lively

GRID = Grid(2, 3)


@pytest.fixture(scope="module")
def model() -> DCTransformer:
    """A tiny model with long samples of at least three chunks."""
    torch.manual_seed(0)
    return lively(DCTransformer(preset("tiny", num_labels=3, chunk=24, overlap=8)).eval())


def begun(model: DCTransformer, count: int, rows: int = 3, static: bool = False) -> Decoding:
    """A decoding of pictures that start with ``count`` triples of a sample."""
    triples = sample(model, rows, SampleConfig(seed=1), size=(32, 48)).triples
    rank = torch.from_numpy(order.RANK)
    parts = [t[:count].long().unbind(1) for t in triples]
    sequences = [Sequence(rank[c], p, v, None, None, i % 3, GRID) for i, (c, p, v) in enumerate(parts)]
    c = model.config
    return Decoding(model, cut_chunks(sequences, [count // c.stride] * rows, c.chunk, c.overlap), static=static)


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_is_one_graph_without_the_host(model: DCTransformer, guided: bool) -> None:
    """A step captured as one graph, without any read by the host, equals the eager step."""
    noise = torch.rand(3 if not guided else 2, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = 2 * len(noise) if guided else len(noise)
    config = SampleConfig(top_p=0.9, min_p=0.05, guidance=2.0 if guided else 1.0)
    with torch.inference_mode():
        draws = Draws.of([config] * len(noise), noise.device)
        eager = Stepper(begun(model, 20, rows), noise, draws)
        captured = Stepper(begun(model, 20, rows, static=True), noise, draws)
        step = torch.compile(lambda: captured._step(), backend="eager", fullgraph=True)
        for _ in range(9):
            eager.step()
            step()
    assert torch.equal(eager.decisions, captured.decisions)
    assert int(eager.decisions[:, :9, 2].count_nonzero()) > 6 * len(noise)


def test_a_decoding_can_be_loaded_with_another(model: DCTransformer) -> None:
    """All state of a decoding is in tensors with fixed addresses."""
    with torch.inference_mode():
        one, other = begun(model, 4, static=True), begun(model, 20, static=True)
        draws = Draws.of([SampleConfig()] * 3, one.device)
        stepper = Stepper(one, torch.full((3, 16, 3), 0.5, dtype=torch.float64), draws)
        for _ in range(5):
            stepper.step()

        def tensors(state: DecoderState) -> tuple[torch.Tensor, ...]:
            context, cache = state.context, state.caches[2][0]
            assert state.states is not None and state.places.features is not None
            return state.index, state.previous_rank, state.run_rank, state.places.same, state.places.features, \
                state.states.luma, context.planes, context.memory[1][0][0], cache.k, cache.v  # fmt: skip

        kept, other_tensors = tensors(one.state), tensors(other.state)
        assert not any(torch.equal(a, b) for a, b in zip(kept[3:], other_tensors[3:], strict=True))
        one.state.copy_(other.state)
        for before, now, source in zip(kept, tensors(one.state), other_tensors, strict=True):
            assert now is before and now is not source and torch.equal(now, source)
        loaded = Stepper(one, stepper.noise, draws)
        fresh = Stepper(begun(model, 20), stepper.noise, draws)
        for _ in range(5):
            loaded.step()
            fresh.step()
    assert torch.equal(loaded.decisions, fresh.decisions)


@pytest.mark.parametrize("block", ["modern", "paper"])
def test_weights_prepared_for_steps_give_the_same_logits(block: str) -> None:
    """Fused and transposed weights give the same logits in prefill and steps, with and without a mask."""
    torch.manual_seed(1)
    plain = lively(DCTransformer(preset("tiny", num_labels=3, chunk=24, overlap=8, block=block)).eval())
    rank, positions = torch.arange(6) // 2, torch.tensor([0, 3, 1, 2, 5, 9])
    sequences = [Sequence(rank, positions, torch.ones_like(rank), None, None, i, GRID) for i in range(2)]
    batch = cut_chunks(sequences, [0, 0], 24, 8)
    with torch.inference_mode():
        decodings = [Decoding(plain, batch), Decoding(for_steps(plain, "fp32"), batch)]
        decodings.append(Decoding(decodings[1].model, batch, static=True))
        for k in range(3):
            chosen, place = torch.full((2,), 4 + k), torch.full((2,), 2 * k)
            logits = [(d.channel(), d.position(chosen), d.value(place)) for d in decodings]
            for other in logits[1:]:
                torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=1e-5)
            for d in decodings:
                d.settle(torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("keep", [0, 5, 16, 17, 33])
def test_kept_triples_are_a_prefix(model: DCTransformer, keep: int) -> None:
    """A picture can be continued from anywhere, in a batch with others at other places."""
    triples = sample(model, 1, SampleConfig(seed=3), size=(32, 48)).triples[0]
    assert len(triples) > 35
    requests = [Request(i, i, kept=triples[:keep]) for i in range(2)] + [Request(2, 2), Request(3, 1, kept=triples[:3])]
    samples = fill(model, requests, GRID, SampleConfig(seed=8))
    for request, listed in zip(requests, samples.triples, strict=True):
        kept = triples[:0] if request.kept is None else request.kept
        assert torch.equal(listed[: len(kept)], kept) and len(listed) > len(kept)
        key = torch.from_numpy(order.RANK)[listed[:, 0].long()] * GRID.positions + listed[:, 1]
        assert bool((key.diff() > 0).all())
    alone = fill(model, requests[:1], GRID, SampleConfig(seed=8))
    assert torch.equal(alone.mcus[0], samples.mcus[0])


def test_pictures_can_be_watched(model: DCTransformer) -> None:
    """After each chunk, a snapshot shows each picture so far; the last one is the finished picture."""
    seen: dict[int, list[Snapshot]] = {}
    samples = sample(
        model, 3, SampleConfig(batch=2), size=(32, 48), watch=lambda s: seen.setdefault(s.index, []).append(s)
    )
    for i, looks in seen.items():
        counts = [look.triples for look in looks]
        assert counts == sorted(counts) and counts[-1] == len(samples.triples[i])
        assert [look.finished for look in looks] == [False] * (len(looks) - 1) + [True]
        assert torch.equal(looks[-1].mcus, samples.mcus[i])
        assert int(looks[0].mcus.count_nonzero()) == counts[0]
    stages = samples.by_band()
    assert torch.equal(stages[-1], samples.mcus)
    nonzero = [int(stage.count_nonzero()) for stage in stages]
    assert nonzero == sorted(nonzero) and nonzero[0] == int(samples.mcus[..., 0].count_nonzero())


def test_bf16_samples_are_legal_pictures(model: DCTransformer) -> None:
    """Lower precision may choose other triples, but never impossible ones."""
    samples = sample(model, 3, SampleConfig(precision="bf16"), size=(32, 48))
    for listed in samples.triples:
        rank = torch.from_numpy(order.RANK)[listed[:, 0].long()]
        assert bool(((rank * GRID.positions + listed[:, 1]).diff() > 0).all())
        assert bool((listed[:, 2].abs() <= model.limits[rank]).all()) and bool((listed[:, 2] != 0).all())


def test_a_batch_too_large_for_memory_is_halved(model: DCTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is halved with a warning, with the same pictures; a single picture is refused."""
    expected = sample(model, 5, SampleConfig(), size=(32, 48))
    whole, limit = Decoding.__init__, 2

    def small(self, model, batch, **options):
        if len(batch.labels) > limit:
            raise torch.OutOfMemoryError("out of memory")
        whole(self, model, batch, **options)

    monkeypatch.setattr(Decoding, "__init__", small)
    with pytest.warns(UserWarning, match="going on with 2"):
        samples = sample(model, 5, SampleConfig(batch=4, workers=1), size=(32, 48))
    assert torch.equal(samples.mcus, expected.mcus)
    limit = 0
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="not enough memory"):
        sample(model, 5, SampleConfig(batch=2, workers=1), size=(32, 48))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_worker_processes_give_the_same_pictures_and_report_progress(model: DCTransformer) -> None:
    """Any number of processes gives the same pictures, and all progress and snapshots arrive."""
    alone = sample(model, 7, SampleConfig(seed=4, workers=1), size=(32, 48))
    for workers in (2, 3):
        seen: list[Snapshot] = []
        done: list[tuple[int, int]] = []

        def show(triples: int, pictures: int, done: list[tuple[int, int]] = done) -> None:
            done.append((triples, pictures))

        config = SampleConfig(seed=4, workers=workers, batch=2)
        shared = sample(model, 7, config, size=(32, 48), progress=show, watch=seen.append)
        assert torch.equal(shared.mcus, alone.mcus)
        assert [t.tolist() for t in shared.triples] == [t.tolist() for t in alone.triples]
        assert done[-1] == (sum(map(len, alone.triples)), 7) and done == sorted(done)
        last = {shot.index: shot for shot in seen}
        assert sorted(last) == list(range(7))
        assert all(shot.finished and torch.equal(shot.mcus, alone.mcus[i]) for i, shot in last.items())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_failed_and_killed_workers_are_reported(model: DCTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed or killed process is reported in one sentence without a deadlock."""

    def refuse(*_: object) -> int:
        raise ValueError("no more pictures today")

    monkeypatch.setattr(Engine, "run", refuse)
    with pytest.raises(ValueError, match="no more pictures today"):
        sample(model, 2, SampleConfig(workers=2), size=(32, 48))
    monkeypatch.setattr(Engine, "run", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ValueError, match="ended from outside"):
        sample(model, 2, SampleConfig(workers=2), size=(32, 48))


def test_nothing_is_left_where_steps_cannot_be_compiled(
    model: DCTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a compiler, the sentence says what to install, and no folder is created."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        generate(model, 1, sampling=SampleConfig(compile=True), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
def test_compiled_steps(model: DCTransformer) -> None:
    """Compiled steps give the same pictures, also if rows leave the batch or are continued, and engines differ."""
    kept = sample(model, 1, SampleConfig(seed=3), size=(32, 48)).triples[0][:17]
    requests = [Request(i, i % 3, kept=kept if i == 1 else None) for i in range(5)]
    for config in (SampleConfig(1, batch=3), SampleConfig(1, batch=2, temperature=0.5, guidance=1.5)):
        plain, compiled = (
            fill(model, requests, GRID, dataclasses.replace(config, workers=1, compile=c)) for c in (False, True)
        )
        assert torch.equal(plain.mcus, compiled.mcus)


def _overflowing(model: DCTransformer, name: str, value: float) -> DCTransformer:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_parameter(name).fill_(value)
    return broken


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", ["value_head.out.weight", "channel_head.out.weight", "rank.weight"])
def test_weights_that_overflow_in_use_end_in_a_sentence(model: DCTransformer, name: str, guidance: float) -> None:
    """Finite weights with infinite products end the work at the first chunk."""
    for temperature in (0, 1):
        config = SampleConfig(workers=1, temperature=temperature, guidance=guidance)
        with pytest.raises(ValueError, match="predictions are not finite, or far too large"):
            sample(_overflowing(model, name, 3e38), 2, config, labels=[0, 1], size=(32, 48))


def test_weights_that_overflow_when_converted_are_refused_before_the_work(model: DCTransformer) -> None:
    """A weight of 3.4e38, infinite in bf16, is refused."""
    broken = _overflowing(model, "value_head.out.weight", torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match="weights are not finite in bf16"):
        Engine(broken, SampleConfig(precision="bf16"))


def test_no_list_of_triples_is_longer_than_the_open_coefficients(
    model: DCTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling ends whatever the network predicts."""
    given = torch.ones(1, 6, 64, dtype=torch.bool)
    given[0, 0, :30] = False
    request = Request(0, 0, given=given, known=torch.zeros(1, 6, 64, dtype=torch.int16))
    monkeypatch.setattr(
        Engine, "_decode", lambda self, batch, noise, configs, steps, *_: torch.zeros(1, steps, 3).long()
    )
    with pytest.raises(ValueError, match="more triples than the picture has coefficients"):
        fill(model, [request], Grid(1, 1), SampleConfig(workers=1))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": t} for t in (-1e-310, -1.0, float("nan"), float("inf"))]
    + [{"guidance": g} for g in (1e300, -1.0, float("nan"))]
    + [{"top_p": p} for p in (0.0, 1.1, float("nan"))]
    + [{"min_p": p} for p in (-0.1, 1.1, float("nan"))],
)
def test_settings_that_overflow_are_refused(settings: dict[str, float]) -> None:
    """Settings out of range are refused with the possible values."""
    SampleConfig(temperature=1e-3, guidance=1000)
    with pytest.raises(ValueError, match="must be"):
        SampleConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_only_a_cpu_is_measured_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured speed of a CPU does not decide the precision of another device."""
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: 1.0 if dtype == torch.bfloat16 else 2.0)
    assert precision.resolve_precision("auto", torch.device("cpu")) == "bf16"
    assert precision.resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("rosse", "no label 'rosse'; did you mean 'Rose'\\? `dctransformer info"),
        ("tulips", "did you mean 'Tulip' or 'Tulip tree'\\?"),
        ("zebra", "no label 'zebra'; `dctransformer info MODEL` lists all"),
        ("3", "no label '3'; `"),
    ],
)
def test_an_unknown_label_is_answered_with_those_like_it(label: str, message: str) -> None:
    """Only labels that resemble it are suggested."""
    config = preset("tiny", num_labels=3, label_names=["Rose", "Tulip", "Tulip tree"])
    with pytest.raises(ValueError, match=message):
        label_number(config, label)
