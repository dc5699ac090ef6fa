"""Tests that worker processes end with their parent, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from dctransformer.cli import main
from dctransformer.processes import deal, in_parallel
from forked import errors_of, forked
from tiny_model import save_tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                pids.append(int(stat.parent.name))
    return pids


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition holds, and fail after a timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pictures take long, because every chunk is one triple."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), chunk=2, overlap=1, size=512)


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGKILL", -9)])
def test_workers_of_a_killed_sample_end_with_it(model: Path, tmp_path: Path, number: str, status: int) -> None:
    """The exit status is the shell's, one sentence is printed, and no temporary files remain."""
    out, printed = tmp_path / "out", tmp_path / "printed.txt"
    arguments = ["sample", str(model), "--out", str(out), "--num", "4", "--workers", "2", "--batch", "1"]
    with forked(printed, main, arguments) as process:
        pid = process.pid
        assert pid is not None
        wait_for(lambda: len(children(pid)) == 2)
        workers = children(pid)
        time.sleep(0.2)
        os.kill(pid, getattr(signal, number))
        process.join(30)
        assert process.exitcode == status
        wait_for(lambda: not any(map(running, workers)), 10)
    assert "Traceback" not in errors_of(printed)
    assert not list(out.rglob(".*"))


def test_results_and_messages_of_dealt_work() -> None:
    """Each process gets every n-th item, and messages arrive in order per process."""

    def work(items: Sequence[int], send: Callable[[object], None]) -> list[int]:
        for item in items:
            send(item)
        return [item * item for item in items]

    messages: list[tuple[int, int]] = []
    results = deal(work, 7, 3, lambda worker, message: messages.append((worker, message)))
    assert results == [[0, 9, 36], [1, 16], [4, 25]]
    assert [[m for w, m in messages if w == worker] for worker in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_others_end_at_once_when_one_process_fails_or_the_caller_stops() -> None:
    """Other processes are stopped immediately, even in long work."""

    def fail(items: Sequence[int], send: Callable[[object], None]) -> None:
        if items[0] == 1:
            raise OSError("no such luck")
        time.sleep(60)

    def report(items: Sequence[int], send: Callable[[object], None]) -> None:
        send(os.getpid())
        time.sleep(60)

    def stop(worker: int, message: object) -> None:
        raise KeyboardInterrupt

    start, before = time.monotonic(), children(os.getpid())
    with pytest.raises(RuntimeError, match="OSError: no such luck"):
        deal(fail, 2, 2, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        deal(report, 2, 2, stop)
    assert time.monotonic() - start < 10 and children(os.getpid()) == before


def test_tasks_are_done_in_order_and_a_killed_worker_is_reported() -> None:
    """Results are in order with one or several workers, and a killed worker is reported."""
    for workers in (1, 3):
        assert list(in_parallel(lambda x: x * x, range(20), workers)) == [(x, x * x) for x in range(20)]

    def die(task: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ValueError, match="a worker process was killed"):
        list(in_parallel(die, range(3), 2))


def test_a_killed_worker_takes_no_lock_along() -> None:
    """Progress bars continue after a worker was killed while holding their lock."""
    tqdm.set_lock(TqdmDefaultWriteLock())
    with pytest.raises(ValueError, match="was killed"):
        list(in_parallel(_die_with_the_lock, range(2), 2))
    lock = tqdm.get_lock()
    assert lock.acquire(timeout=5)
    lock.release()


def _die_with_the_lock(_: int) -> None:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
