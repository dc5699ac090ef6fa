"""Speed of reading coefficients from JPEG files, compared with decoding the same files to pixels with simplejpeg.

    python benchmarks/codec_speed.py [PHOTOS] [--size 256] [--quality 75] [--count 200] [--rounds 5]

Without a folder of photographs, synthetic pictures with the spectrum of photographs are used. All files have one size
and quality and are held in memory; they are read one by one in one thread, and the methods alternate. Reading
coefficients includes the checks that reject damaged files, a header check and a strict decode, because libjpeg's
coefficient interface accepts most damage silently. The last line is JSON. For `prepare` as a whole see ``prepare.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import simplejpeg
import torch
from PIL import Image

from dctransformer.codec import Codec
from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.data.images import encode_jpeg, prepare_image
from measure import machine, median_ratio, pictures

GOAL = 0.2
"""Smallest ratio that meets the goal: coefficients take two passes of entropy decoding, one of them through libjpeg's
file interface, and pixels take one."""


def jpeg_files(photos: Path | None, count: int, size: int, quality: int) -> list[bytes]:
    """Encode pictures as JPEG files of one size and quality."""
    if photos is None:
        return [encode_jpeg(Image.fromarray(p.numpy()), quality) for p in pictures(count, size)]
    paths = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    return [prepare_image(path, size, quality) for path in paths]


def rate(work: Callable[[bytes], object], files: list[bytes]) -> float:
    """Files read per second."""
    start = time.perf_counter()
    for data in files:
        work(data)
    return len(files) / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", help="photographs that Pillow can read")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--quality", type=int, default=75)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = jpeg_files(arguments.photos, arguments.count, arguments.size, arguments.quality)
    if not files:
        parser.error(f"{arguments.photos} holds no .jpg or .png files; give a folder of photographs")
    methods: dict[str, Callable[[bytes], object]] = {
        "coefficients": read_jpeg_bytes,
        "triples": lambda data: read_jpeg_bytes(data).to_triples(),
        "pixels": simplejpeg.decode_jpeg,
        # The way to obtain coefficients from decoded pixels.
        "pixels encoded again": lambda data: codec.encode(torch.from_numpy(simplejpeg.decode_jpeg(data))[None]),
    }
    codec = Codec(quality=arguments.quality)
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for work in methods.values():
        rate(work, files[:10])
    for _ in range(arguments.rounds):
        for name, work in methods.items():
            rates[name].append(rate(work, files))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, files_per_second in median.items():
        print(f"{name:22s}{files_per_second:8.0f} files/s")
    ratio = median_ratio(rates["coefficients"], rates["pixels"])
    result = {
        "benchmark": "codec_speed",
        "files": len(files),
        "size": arguments.size,
        "quality": arguments.quality,
        **{f"{'_'.join(name.split())}_per_s": round(speed, 1) for name, speed in median.items()},
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "reached": ratio >= GOAL,
        **machine(torch.device("cpu")),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
