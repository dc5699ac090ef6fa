"""Tests of preparing with Ray: the same bytes as the local engine, also if workers die."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

from dctransformer.cli import main
from dctransformer.data import DatasetInfo, prepare
from pictures import photo_folder

preparing = importlib.import_module("dctransformer.data.prepare")
plan = importlib.import_module("dctransformer.data.plan")
shards = importlib.import_module("dctransformer.data.shards")


def run(source: str | Path, out: Path, **options) -> DatasetInfo:
    """Prepare a small data set."""
    return prepare(source, out, **{"size": 32, "quality": 50, "val_fraction": 0.2, "progress": False, **options})


def contents(out: Path) -> dict[str, bytes]:
    """All files of a data set."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def rays_workers() -> list[int]:
    """Process ids of the Ray workers below this process that run tasks."""
    parents, names = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            names[int(facts["Pid"])] = (status.parent / "cmdline").read_text()
        except (OSError, KeyError):
            continue
        parents[int(facts["Pid"])] = int(facts["PPid"])

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid, name in names.items() if "_Worker" in name and "ray::" in name and ours(pid)]


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster with two workers, common to the tests of this file."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'dctransformer[ray]')")
    pytest.importorskip("ray.data")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
        # Ray's workers have low priority by default, and get little CPU time while other tests run.
        _system_config={"worker_niceness": 0},
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 synthetic pictures in two classes, one of them broken."""
    folder = photo_folder(tmp_path_factory.mktemp("photos"), 80, ("ant", "bee"))
    (folder / "ant" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="finds Ray's workers in /proc")
def test_the_same_bytes_though_a_worker_is_killed(cluster, photos, tmp_path, monkeypatch):
    """Ray replaces a killed worker, and the output is identical."""
    monkeypatch.setattr(plan, "UNIT", 2)
    monkeypatch.setattr(plan, "pictures_per_shard", lambda size: 30)
    local = run(photos, tmp_path / "local", workers=1)
    killed, kept = [], []
    keep = shards.UnitJob.keep

    def keep_and_kill(job, unit, piece):
        keep(job, unit, piece)
        kept.append(unit.piece)
        if len(kept) == 5:
            killed.extend(rays_workers()[:1])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(shards.UnitJob, "keep", keep_and_kill)
    by_ray = run(photos, tmp_path / "ray", workers=2, engine="ray")
    assert len(killed) == 1 and 5 < len(kept) == len(set(kept)) > 35
    assert by_ray == local and by_ray.skipped == 1
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert len(list((tmp_path / "ray").glob("train-*.parquet"))) > 1


def test_an_interrupted_run_goes_on_with_either_engine(cluster, photos, tmp_path, monkeypatch):
    """A run interrupted in one engine continues in the other; the source is a URL."""
    monkeypatch.setattr(plan, "UNIT", 8)
    run(photos.as_uri(), tmp_path / "whole", workers=1)
    keep, kept = shards.UnitJob.keep, []

    def stop_half_way(job, unit, piece):
        if len(kept) == 4:
            raise KeyboardInterrupt
        keep(job, unit, piece)
        kept.append(unit.piece)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.UnitJob, "keep", stop_half_way)
        run(photos.as_uri(), tmp_path / "out", workers=1, engine="ray")
    assert not (tmp_path / "out" / "dctransformer.json").exists()
    second = []
    monkeypatch.setattr(shards.UnitJob, "keep", lambda *args: second.append(args[1].piece) or keep(*args))
    run(photos.as_uri(), tmp_path / "out", workers=1)
    assert second and not set(second) & set(kept)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_missing_ray_is_reported_with_install_instructions(photos, tmp_path, monkeypatch, capsys):
    """Without Ray, one sentence says what to install, with exit status 2."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as caught:
        main(["prepare", str(photos), str(tmp_path / "out"), "--engine", "ray"])
    assert caught.value.code == 2 and "pip install 'dctransformer[ray]'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="neither local nor ray"):
        run(photos, tmp_path / "other", engine="dask")


def without_ray(monkeypatch: pytest.MonkeyPatch, init) -> None:
    """Ray before it is started, with another `init`."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)


def test_an_instance_started_here_is_for_this_process_alone(photos, tmp_path, monkeypatch):
    """Ports are on loopback and need a random token; the environment is restored afterwards."""
    seen = []

    def init(**_):
        seen.append({name: value for name, value in os.environ.items() if name.startswith("RAY_")})
        raise RuntimeError("enough")

    without_ray(monkeypatch, init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before = dict(os.environ)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Ray can't start \(enough\); use --engine local"):
            run(photos, tmp_path / "out", engine="ray")
    assert [environment["RAY_AUTH_MODE"] for environment in seen] == ["token"] * 2
    assert seen[0]["RAY_AUTH_TOKEN"] != seen[1]["RAY_AUTH_TOKEN"] and len(seen[0]["RAY_AUTH_TOKEN"]) == 64
    assert seen[0]["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert {**os.environ, "RAY_USAGE_STATS_ENABLED": ""} == {**before, "RAY_USAGE_STATS_ENABLED": ""}


def test_a_cluster_that_does_not_answer(photos, tmp_path, monkeypatch):
    """A stale cluster address is reported immediately instead of after minutes."""
    without_ray(monkeypatch, lambda **_: pytest.fail("Ray was started"))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match=f"no cluster answers at RAY_ADDRESS={address} .*unset RAY_ADDRESS"):
            run(photos, tmp_path / "out", engine="ray")


def test_a_folder_for_temporary_files_with_a_long_path(photos, tmp_path, monkeypatch):
    """Long temporary paths are avoided, as Ray's socket names must be short."""

    def init(**_):
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/x")

    without_ray(monkeypatch, init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="too long for Ray's sockets; set TMPDIR"):
        run(photos, tmp_path / "out", engine="ray")
