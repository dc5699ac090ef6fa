"""One of several processes that train together, for the tests: ``training_process.py RANK COUNT MEETING-FILE JOBS``.

JOBS is JSON, a list of trainings done one after the other by the same processes: ``data``, ``run``, ``preset``
(changes to `tiny`) and ``config``. What each ends with is printed as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from dctransformer.model.config import preset
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train


def main() -> None:
    """Do the jobs."""
    rank, count, meeting, jobs = sys.argv[1:]
    os.environ["LOCAL_RANK"] = rank
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(count))
    for job in json.loads(jobs):
        try:
            said = train(
                job["data"], job["run"], preset("tiny", **job["preset"]), TrainConfig(**job["config"]), progress=False
            )
        except ValueError as error:
            said = {"error": str(error)}
        except SystemExit as error:
            said = {"status": error.code}
        print(json.dumps(said), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    # A thread of the group that outlives the interpreter may abort the process when all is done and said.
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names


if __name__ == "__main__":
    main()
