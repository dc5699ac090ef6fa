"""Speed of `prepare` compared with a bare Pillow loop, in pictures per second on the same folder.

    python benchmarks/prepare.py FOLDER [--workers N] [--size 64] [--quality 20] [--rounds 3]

The bare loop decodes, crops, resizes and encodes with the same number of processes and discards the result. Both are
timed from the start of their processes to the last picture, alternately. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from dctransformer.data.prepare import prepare
from dctransformer.processes import cores

GOAL = 0.7


def bare(path: Path, size: int, quality: int) -> int:
    """Decode, crop, resize and encode a picture with Pillow, and return the size of the file in bytes."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return len(out.getvalue())


def time_bare(paths: list[Path], size: int, quality: int, workers: int) -> float:
    """Seconds for all pictures with the bare loop in a pool of processes."""
    start = time.perf_counter()
    job = functools.partial(bare, size=size, quality=quality)
    with multiprocessing.Pool(workers) as pool:
        for _ in pool.imap_unordered(job, paths, chunksize=64):
            pass
    return time.perf_counter() - start


def time_prepare(folder: Path, size: int, quality: int, workers: int) -> tuple[float, int]:
    """Seconds for all pictures with `prepare`, and the number of prepared pictures."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        info = prepare(folder, Path(out) / "data", size=size, quality=quality, workers=workers, progress=False)
        return time.perf_counter() - start, sum(info.splits.values())


def main() -> None:
    """Time both alternately and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photos that Pillow can read; sub-folders are labels")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--quality", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    paths = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        parser.error(f"{args.folder} holds no .jpg or .png files; give a folder of photos")
    for path in paths:
        path.read_bytes()  # warm the disk cache
    speeds: dict[str, list[float]] = {"bare": [], "prepare": []}
    for i in range(args.rounds):
        speeds["bare"].append(len(paths) / time_bare(paths, args.size, args.quality, args.workers))
        seconds, count = time_prepare(args.folder, args.size, args.quality, args.workers)
        speeds["prepare"].append(count / seconds)
        print(f"round {i}: bare {speeds['bare'][-1]:.0f} images/s, prepare {speeds['prepare'][-1]:.0f} images/s")
    median = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = median["prepare"] / median["bare"]
    result = {
        "benchmark": "prepare",
        "images": len(paths),
        "workers": args.workers,
        "size": args.size,
        "quality": args.quality,
        "bare_images_per_s": round(median["bare"], 1),
        "prepare_images_per_s": round(median["prepare"], 1),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "reached": ratio >= GOAL,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
