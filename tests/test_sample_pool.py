"""Tests of generating pictures of several users together, each with its own settings, progress and end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.codec.grid import Grid
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import Engine, fill
from dctransformer.sampling.pool import Pool
from dctransformer.sampling.rows import Request, Snapshot
from dctransformer.sampling.stepper import Stepper
from tiny_model import lively

GRID, WIDE = Grid(1, 1), Grid(1, 2)
SETTINGS = [
    SampleConfig(1),
    SampleConfig(2, temperature=0.7, top_p=0.8),
    SampleConfig(3, guidance=2.5),
    SampleConfig(4, temperature=0),
    SampleConfig(5, temperature=1.2, top_p=0.9, min_p=0.1, guidance=1.5),
]


def make_model(**fields) -> DCTransformer:
    """A tiny model whose samples have several chunks."""
    torch.manual_seed(0)
    return lively(DCTransformer(preset("tiny", num_labels=3, chunk=24, overlap=8, **fields)).eval())


@pytest.fixture(scope="module")
def model() -> DCTransformer:
    """A model without texture."""
    return make_model()


@pytest.mark.parametrize("fields", [{}, {"texture_from": 2}], ids=["triples", "texture"])
def test_a_picture_does_not_depend_on_other_jobs(fields: dict) -> None:
    """A picture does not depend on settings, sizes, beginnings and arrival of the others."""
    model = make_model(**fields)
    kept = fill(model, [Request(9, 1)], GRID, SETTINGS[0]).triples[0][:5]
    jobs = [
        ([Request(0, i % 3, kept=kept if i == 2 else None), Request(1, 3)], WIDE if i == 4 else GRID, config)
        for i, config in enumerate(SETTINGS)
    ]
    alone = [fill(model, *job[:2], dataclasses.replace(job[2], workers=1)) for job in jobs]
    pool = Pool(Engine(model, SampleConfig(batch=5)))
    together = torch.inference_mode()(lambda job: fill(model, *job, pool=pool))
    with ThreadPoolExecutor(len(jobs)) as threads:
        for expected, samples in zip(alone, threads.map(together, jobs), strict=True):
            assert torch.equal(samples.mcus, expected.mcus)
            assert [t.tolist() for t in samples.triples] == [t.tolist() for t in expected.triples]


@contextlib.contextmanager
def held(pool: Pool, pictures: int) -> Iterator[None]:
    """Let no turn start before the pool has all pictures added in the block."""
    with pool.paused():
        yield
        while len(pool._waiting) < pictures:
            time.sleep(0.001)


def test_pictures_of_several_jobs_share_their_steps(model: DCTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six jobs take about as many turns as one, as each chunk is run once for all."""
    batches: list[int] = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, rows, *more: (batches.append(len(rows)), run(self, rows, *more))[1])
    pool = Pool(Engine(model, SampleConfig()))

    def user(number: int) -> list[tuple[int, int]]:
        steps: list[tuple[int, int]] = []
        with torch.inference_mode():
            pool.fill([Request(0, 0)], GRID, SampleConfig(number), progress=lambda *done: steps.append(done))
        return steps

    with ThreadPoolExecutor(6) as threads:
        with held(pool, 6):
            futures = [threads.submit(user, i) for i in range(6)]
        steps = [future.result() for future in futures]
    alone = len(batches)
    batches_together, batches[:] = batches[:], []
    longest = max(steps, key=lambda done: done[-1][0])
    user(steps.index(longest))
    assert batches_together[0] == 6 and alone <= len(batches) + 1
    for done in steps:
        assert done == sorted(done) and done[-1][1] == 1 and done[-1][0] > 10
    assert len({done[-1][0] for done in steps}) > 1  # each its own progress


@pytest.mark.parametrize(("arrival", "shared"), [(3, True), (10, False)])
def test_late_arrivals_join_a_turn_that_has_just_begun(
    model: DCTransformer, monkeypatch: pytest.MonkeyPatch, arrival: int, shared: bool
) -> None:
    """The chunk is restarted with a new job if little work is lost; pictures are the same either way."""
    configs = [SampleConfig(11, workers=1), SampleConfig(12, workers=1)]
    expected = [fill(model, [Request(0, 0)], GRID, config).mcus for config in configs]
    batches: list[int] = []
    run, step, pool = Engine.run, Stepper.step, Pool(Engine(model, SampleConfig()))
    steps, arrived = itertools.count(1), threading.Event()

    def slow_step(self: Stepper) -> None:
        if next(steps) == arrival:
            arrived.set()
            while not pool._waiting:
                time.sleep(0.001)
        step(self)

    monkeypatch.setattr(Engine, "run", lambda self, rows, *more: (batches.append(len(rows)), run(self, rows, *more))[1])
    monkeypatch.setattr(Stepper, "step", slow_step)
    together = torch.inference_mode()(lambda config: fill(model, [Request(0, 0)], GRID, config, pool=pool).mcus)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(together, configs[0])
        arrived.wait(10)
        second = threads.submit(together, configs[1])
        assert torch.equal(first.result(), expected[0]) and torch.equal(second.result(), expected[1])
    assert batches[:2] == ([1, 2] if shared else [1, 1])


def test_a_job_that_is_given_up_leaves_the_others_alone(model: DCTransformer) -> None:
    """A cancelled job, running or waiting, ends at the next turn and leaves nothing behind."""
    expected = fill(model, [Request(0, 0)], GRID, SampleConfig(7, workers=1))
    pool = Pool(Engine(model, SampleConfig(batch=2)))
    looks: list[Snapshot] = []

    class LeftError(Exception):
        pass

    def leave(*_: int) -> None:
        raise LeftError

    def user(number: int) -> torch.Tensor | None:
        stays = number == 7
        with torch.inference_mode():
            rows = pool.fill(
                [Request(0, 0)], GRID, SampleConfig(number), None if stays else leave, looks.append if stays else None
            )
        return rows[0].mcus()

    with ThreadPoolExecutor(4) as threads:
        with held(pool, 4):
            futures = {i: threads.submit(user, i) for i in (5, 6, 7, 8)}
        mcus = futures.pop(7).result()
        assert mcus is not None and torch.equal(mcus, expected.mcus[0])
        assert [look.finished for look in looks] == [False] * (len(looks) - 1) + [True]
        for future in futures.values():
            with pytest.raises(LeftError):
                future.result()
    assert not pool._job_of


def test_a_newcomer_waits_for_no_long_job(model: DCTransformer) -> None:
    """The first picture of a new job comes before later pictures of an earlier job."""
    pool = Pool(Engine(model, SampleConfig(batch=2)))
    finished: list[str] = []

    def user(name: str, pictures: int) -> None:
        def show(snapshot: Snapshot) -> None:
            if snapshot.finished:
                finished.append(name)

        with torch.inference_mode():
            pool.fill([Request(i, 0) for i in range(pictures)], GRID, SampleConfig(), watch=show)

    with ThreadPoolExecutor(2) as threads:
        with held(pool, 6):
            first = threads.submit(user, "long", 5)
            while not pool._waiting:
                time.sleep(0.001)
            second = threads.submit(user, "short", 1)
        first.result(), second.result()
    assert finished.index("short") <= 2 and len(finished) == 6


def test_an_error_ends_the_job_that_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error ends its own job, and the other jobs of the batch are run again without it."""
    model, run = make_model(), Engine.run

    def fail(self: Engine, rows: list, *more: Any) -> bool:
        if any(row.config.seed == 6 for row in rows):
            raise ValueError("this picture can't be")
        return run(self, rows, *more)

    monkeypatch.setattr(Engine, "run", fail)
    pool = Pool(Engine(model, SampleConfig()))

    def user(number: int) -> int:
        with torch.inference_mode():
            return int(pool.fill([Request(0, 0)], GRID, SampleConfig(number))[0].mcus().count_nonzero())

    with ThreadPoolExecutor(3) as threads:
        with held(pool, 3):
            futures = {i: threads.submit(user, i) for i in (5, 6, 7)}
        with pytest.raises(ValueError, match="this picture can't be"):
            futures[6].result()
        assert futures[5].result() > 10 and futures[7].result() > 10


@pytest.mark.parametrize("temperature", [9e-4, 1e-30, 1e-310])
def test_temperatures_close_to_0_are_0(model: DCTransformer, temperature: float) -> None:
    """Temperatures that would overflow the logits are treated as 0."""
    likeliest, close = (
        fill(model, [Request(0, 0)], GRID, SampleConfig(temperature=t, workers=1)).mcus for t in (0, temperature)
    )
    assert torch.equal(likeliest, close)
