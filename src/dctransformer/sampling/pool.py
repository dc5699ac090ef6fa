"""A pool of pictures that are generated together, for one caller or for several.

A pool is filled by jobs: pictures of one size and with the same settings. Each turn runs one chunk of the pictures at
work, of whatever job they are; pictures that are finished, or whose job was given up, leave, and waiting ones take
their places. Pictures that arrive just after a turn has begun need not wait for its end: it begins again with them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dctransformer.codec.grid import Grid
from dctransformer.model.precision import out_of_memory
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.rows import Request, Row, Snapshot

if TYPE_CHECKING:
    from dctransformer.sampling.engine import Engine

Progress = Callable[[int, int], None]
Watch = Callable[[Snapshot], None]
GiveWay = Callable[[int], bool]

LOOKS = (8, 24)
"""Steps after which a chunk begins again with the pictures that have arrived since, at most once after each.

At most these steps are lost, a twelfth of a chunk of 384 triples; pictures of several users who click at the same
moment, whose requests take up to a quarter of a second to be read, share their steps instead of waiting for the first.
"""


class _Job:
    """Pictures of one call of `Pool.fill`.

    Attributes:
        rows: the pictures.
        decided: triples and texture channels so far.
        unstructured: how many pictures lack a part of their structure.
        unfinished: how many pictures are not finished.
        news: pictures that were worked on since the job's thread looked last.
        error: why the job can't go on.
    """

    def __init__(self, rows: list[Row], watched: bool):
        self.rows, self.watched = rows, watched
        self.decided = 0
        self.unstructured = sum(not row.stopped for row in rows)
        self.unfinished = len(rows)
        self.news: dict[Row, Snapshot] = {}
        self.error: Exception | None = None


class Pool:
    """Generates pictures for one or more threads.

    Every thread that calls `fill` either waits for a turn or, if there is none, runs the next one itself, for all jobs.
    A picture is the same whatever it is generated together with: its noise and its settings are its own.
    """

    def __init__(self, engine: Engine):
        """Begin without pictures; ``engine.config`` decides how many are at work at a time, not on their settings."""
        self.engine = engine
        self._changed = threading.Condition()
        self._job_of: dict[Row, _Job] = {}
        # The k-th picture of a job that arrives at time t has its turn at t + k; time is the last turn begun.
        self._waiting: list[tuple[int, int, Row]] = []
        self._arrivals = itertools.count()
        self._time = 0
        self._at_work: list[Row] = []
        self._structured: list[Row] = []
        self._busy, self._turns = False, 0

    def fill(
        self,
        requests: list[Request],
        grid: Grid,
        config: SampleConfig,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> list[Row]:
        """Generate pictures; returns when they are finished.

        Args:
            requests: the pictures.
            grid: their MCU grid.
            config: their seed, temperature, top-p and guidance; its other settings are ignored.
            progress: called after each turn with (decisions so far, pictures finished); what it raises ends the job.
            watch: called after each turn with every picture that was worked on, as far as it is.

        Raises:
            ValueError: the predictions are not finite, or memory does not suffice for one picture at a time.
        """
        rows = self.engine.begin(requests, grid, config)
        job = _Job(rows, watch is not None)
        with self._changed:
            seen = self._turns
            for k, row in enumerate(rows):
                self._job_of[row] = job
                if row.stopped:
                    self._structured.append(row)
                else:
                    heapq.heappush(self._waiting, (self._time + k, next(self._arrivals), row))
        try:
            while job.unfinished:
                seen = self._next_turn(seen)
                with self._changed:
                    news, job.news = job.news, {}
                    decided, finished = job.decided, len(rows) - job.unfinished
                if job.error is not None:
                    raise job.error
                if watch is not None:
                    for snapshot in news.values():
                        watch(snapshot)
                if progress is not None:
                    progress(decided, finished)
        finally:
            self._give_up(job)
        return rows

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no turn begin during the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next_turn(self, seen: int) -> int:
        """Wait for a turn after those that the caller has seen, or run it; returns the number of turns so far."""
        with self._changed:
            while self._busy and self._turns == seen:
                self._changed.wait()
            if self._turns != seen:
                return self._turns
            self._busy = True
        try:
            self._turn()
        finally:
            with self._changed:
                self._busy = False
                self._turns += 1
                self._changed.notify_all()
        return seen + 1

    def _give_up(self, job: _Job) -> None:
        with self._changed:
            for row in job.rows:
                self._job_of.pop(row, None)

    def _turn(self) -> None:
        """Run a chunk of every picture at work, then texture: one batch of each grid that has enough for it."""
        looks = list(LOOKS)

        def give_way(steps: int) -> bool:
            if not looks or steps < looks[0]:
                return False
            looks.pop(0)
            return self._has_company(groups[0])

        groups = self._admit()
        while groups and not self._run(groups[0], give_way=give_way):
            groups = self._admit()
        for group in groups[1:]:
            self._run(group)
        self._structured += [row for row in self._at_work if row.stopped and not row.finished]
        self._at_work = [row for row in self._at_work if not row.stopped]
        for group in self._due_texture():
            self._run(group, texture=True)
        self._structured = [row for row in self._structured if not row.finished]

    def _admit(self) -> list[list[Row]]:
        """Give the places of finished and unwanted pictures to waiting ones; returns those at work, in groups.

        The pictures of a group can share their steps.
        """
        with self._changed:
            self._at_work = [row for row in self._at_work if row in self._job_of]
            self._structured = [row for row in self._structured if row in self._job_of]
            while self._waiting and len(self._at_work) < self.engine.config.batch:
                turn, _, row = heapq.heappop(self._waiting)
                if row in self._job_of:
                    self._time = max(self._time, turn)
                    self._at_work.append(row)
        groups: dict[tuple[Grid, bool, int], list[Row]] = {}
        for row in self._at_work:
            groups.setdefault(self._stage(row), []).append(row)
        return list(groups.values())

    def _stage(self, row: Row) -> tuple[Grid, bool, int]:
        """Return the key of pictures that can share steps: the grid, and how many triples their chunk begins with.

        In one grid, all but those in their first chunks, or continued, agree.
        """
        stride = self.engine.model.config.stride
        return row.grid, len(row.listed) < stride, len(row.listed) % stride

    def _has_company(self, group: list[Row]) -> bool:
        """Return whether pictures wait that could share the steps of a group, and have room."""
        with self._changed:
            return len(self._at_work) < self.engine.config.batch and any(
                row in self._job_of and self._stage(row) == self._stage(group[0]) for _, _, row in self._waiting
            )

    def _due_texture(self) -> list[list[Row]]:
        """Return batches of pictures whose texture is due: full ones, and those of a job without structure left."""
        with self._changed:
            by_grid: dict[Grid, list[Row]] = {}
            for row in self._structured:
                by_grid.setdefault(row.grid, []).append(row)
            due = []
            for grid, rows in by_grid.items():
                batch = self.engine.texture_batch(grid)
                jobs = [job for row in rows if (job := self._job_of.get(row)) is not None]
                if len(rows) >= batch or any(not job.unstructured for job in jobs):
                    due.append(rows[:batch])
        return due

    def _run(self, rows: list[Row], *, texture: bool = False, give_way: GiveWay | None = None) -> bool:
        """Run a chunk, or the texture, of some pictures; what fails for some jobs does not end the others.

        Returns:
            Whether it was done; False if the chunk gave way (see `Engine.run`) before anything was decided.
        """
        batch = self.engine.texture_batch(rows[0].grid) if texture else self.engine.config.batch
        if len(rows) > batch:
            for part in (rows[:batch], rows[batch:]):
                self._run(part, texture=texture)
            return True
        decided = [row.decided for row in rows]
        structured = [row.stopped for row in rows]
        try:
            if texture:
                self.engine.run_texture(rows)
            elif not self.engine.run(rows, give_way):
                return False
        except Exception as error:
            self._run_apart(rows, texture, error)
            return True
        with self._changed:
            for row, before, complete in zip(rows, decided, structured, strict=True):
                job = self._job_of.get(row)
                if job is not None:
                    job.decided += row.decided - before
                    job.unstructured -= row.stopped and not complete
                    job.unfinished -= row.finished
                    if job.watched:
                        job.news[row] = Snapshot(row.request.index, len(row.listed), row.mcus(), row.finished)
        return True

    def _run_apart(self, rows: list[Row], texture: bool, error: Exception) -> None:
        """Run smaller batches after an error for lack of memory; after any other error, each job by itself."""
        memory = out_of_memory(error)
        if memory and len(rows) > 1:
            half = len(rows) // 2
            warnings.warn(f"a batch of {len(rows)} did not fit in memory; going on with {half}", stacklevel=2)
            self.engine = self.engine.with_batch(half)
            self._run(rows, texture=texture)
            return
        with self._changed:
            by_job: dict[_Job, list[Row]] = {}
            for row in rows:
                if row in self._job_of:
                    by_job.setdefault(self._job_of[row], []).append(row)
        if len(by_job) > 1:
            for group in by_job.values():
                self._run(group, texture=texture)
            return
        for job in by_job:
            if memory:
                error = ValueError("there is not enough memory for one picture of this size; choose a smaller one")
            job.error = error
            self._give_up(job)
