"""The work of one process of a distributed training, for tests."""

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
    """Run trainings one after another, and print the result of each as a line of JSON.

    Args:
        rank: rank of the process.
        count: number of processes.
        meeting: path of the rendezvous file.
        jobs: ``data``, ``run``, ``preset`` (changes to `tiny`) and ``config`` of each training.
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
    """Run the command line with additional environment variables, such as torchrun's."""
    os.environ.update(environment)
    try:
        main(arguments)
    finally:
        _check_threads()


def _check_threads() -> None:
    """Check that no thread of gloo is left, which could abort a process as it exits."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names
