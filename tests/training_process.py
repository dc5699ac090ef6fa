"""What one of several processes that train together does, for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dctransformer.cli import main
from dctransformer.model.config import preset
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train


def do_jobs(rank: int, count: int, meeting: Path, jobs: list[dict[str, Any]]) -> None:
    """Do trainings one after the other, and print what each ends with as a line of JSON.

    Args:
        rank: number of the process.
        count: how many there are.
        meeting: a file by which they meet.
        jobs: ``data``, ``run``, ``preset`` (changes to `tiny`) and ``config`` of each.
    """
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    for job in jobs:
        try:
            result = train(
                job["data"], job["run"], preset("tiny", **job["preset"]), TrainConfig(**job["config"]), progress=False
            )
        except ValueError as error:
            result = {"error": str(error)}
        except SystemExit as error:
            result = {"status": error.code}
        print(json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    _check_threads()


def run_command(environment: dict[str, str], arguments: list[str]) -> None:
    """Run the command line with additions to the environment, such as those that torchrun makes."""
    os.environ.update(environment)
    try:
        main(arguments)
    finally:
        _check_threads()


def _check_threads() -> None:
    """A thread of the group that outlives the interpreter may abort a process that is done."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names
