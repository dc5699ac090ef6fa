"""Tests of atomic writes, leftover temporary files and locks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dctransformer.files import (
    TEMPORARY,
    atomic_write,
    locked_folder,
    make_folder,
    sweep,
    temporary_name,
    write_tensors,
    write_text,
)


def test_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_writers_with_the_same_process_id_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as first, atomic_write(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second and first.read_text() == "first"
        assert TEMPORARY.fullmatch(first.name) and TEMPORARY.fullmatch(second.name)
    assert (tmp_path / "a.txt").read_text() == "first"


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    name = temporary_name()
    monkeypatch.setattr("dctransformer.files.temporary_name", lambda: name)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(victim)
    with pytest.raises(ValueError, match="in the way"):
        write_text(out / "a.txt", "new")
    with pytest.raises(ValueError, match="in the way"):
        make_folder(out)
    assert victim.read_text() == "precious"
    monkeypatch.undo()
    (out / "b.txt").symlink_to(victim)
    write_text(out / "b.txt", "new")
    assert victim.read_text() == "precious" and not (out / "b.txt").is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "a")
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})
        with atomic_write(tmp_path / "durable", durable=True) as temporary:
            temporary.write_bytes(b"x")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~umask}
    assert load_file(tmp_path / "a.safetensors")["x"].sum() == 2


def test_the_longest_possible_name_can_be_written_and_a_longer_one_is_refused_before_the_work(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 255), "a")
    make_folder(tmp_path, ["x" * 255])
    for refused in (lambda: make_folder(tmp_path, ["x" * 256]), lambda: write_text(tmp_path / ("x" * 256), "a")):
        with pytest.raises(ValueError, match="the name is too long; choose a shorter one"):
            refused()


def test_sweep_removes_only_old_temporary_files(tmp_path: Path) -> None:
    old, new, link, folder = (tmp_path / temporary_name() for _ in range(4))
    other = tmp_path / ".photo.1.part"
    for path in (old, new, other):
        path.write_text("x")
    link.symlink_to(other)
    folder.mkdir()
    for path in (old, other, link, folder):
        os.utime(path, (0, 0), follow_symlinks=False)
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {new, link, folder, other}
    os.utime(new, (0, 0))
    make_folder(tmp_path)
    assert set(tmp_path.iterdir()) == {link, folder, other}


def test_killed_writer_leaves_litter_that_the_next_lock_holder_sweeps(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "a.txt"):
            os.kill(os.getpid(), 9)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    (litter,) = tmp_path.iterdir()
    os.utime(litter, (time.time() - 100,) * 2)
    with locked_folder(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".dctransformer.lock"]
    assert not list(tmp_path.iterdir())


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    year = time.strftime("%Y-")
    with locked_folder(run):
        with (
            pytest.raises(
                ValueError, match=rf"run is in use by process {os.getpid()} on {socket.gethostname()} since {year}"
            ),
            locked_folder(run),
        ):
            pass
        (run / ".dctransformer.lock").write_bytes(b'{"pid": "\x1b[2J"}')
        with pytest.raises(ValueError, match="in use by another process"), locked_folder(run):
            pass
    with locked_folder(run) as folder:
        assert folder == run


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from dctransformer.files import locked_folder
        with locked_folder(sys.argv[1]):
            print("locked", flush=True)
            time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(ValueError, match=f"process {holder.pid} "), locked_folder(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with locked_folder(tmp_path):
        pass


def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".dctransformer.lock").symlink_to(victim)
    with pytest.raises(ValueError, match="can't be written"), locked_folder(run):
        pass
    assert victim.read_text() == "precious"
