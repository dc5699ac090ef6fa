"""Compressed files: size and speed, compared with the likelihood and with classical coders.

    python benchmarks/compress.py MODEL DATA [--num N] [--batch B]

DATA is a prepared data set (its validation pictures) or a folder of pictures. Each picture is compressed and restored
in one thread, and must be restored bit for bit. Coders that are not installed are left out. Headers count for
compressed files, not for JPEG files. Speeds are bytes of JPEG files (optimised Huffman tables, with header) compressed
or restored per second of CPU time, including the time to load the model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dctransformer.codec import Codec, DCTImage, write_jpeg_bytes
from dctransformer.codec.triples import gather, public
from dctransformer.data.coefficients import Coefficients, PictureSource
from dctransformer.evaluate.coders import compare
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sequence.chunks import Sequence
from dctransformer.tasks.compress import Compressed, compress, decompress
from dctransformer.tasks.dct_file import read_file
from dctransformer.tasks.models import resolve_model
from measure import machine

CPU = torch.device("cpu")


def image(picture: Coefficients, codec: Codec) -> DCTImage:
    """Combine a picture's coefficients with the quantisation tables."""
    mcus, grid = picture.mcus, picture.grid
    return DCTImage.from_mcus(mcus[None], grid.rows, grid.cols, codec.luma_table, codec.chroma_table)


def sequence(picture: Coefficients, label: int) -> Sequence:
    """Convert a picture to the sequence that the likelihood is computed from."""
    planes = gather(picture.mcus[None], picture.grid)[0].long()
    rank, position = planes.nonzero().unbind(1)
    triples = public(rank, position, planes[rank, position])
    return Sequence.from_triples(triples, picture.grid, label)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of a call, which is nearly independent of other load on the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Compress, restore, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--num", type=int)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = resolve_model(arguments.model, "cpu")
    config, codec = network.config, Codec(network.config.quality)
    with tempfile.TemporaryDirectory() as folder:
        files, restored_folder = Path(folder, "files"), Path(folder, "restored")
        result = Compressed([], [])

        def pack() -> None:
            nonlocal result
            data, batch = arguments.data, arguments.batch
            result = compress(arguments.model, data, files, num=arguments.num, batch=batch, verify=False)

        packing = cpu_seconds(pack)
        restoring = cpu_seconds(lambda: decompress(files, restored_folder, model=arguments.model))
        headers = {path.relative_to(files).with_suffix("").as_posix(): read_file(path)[0] for path in result.files}
        listed = PictureSource(arguments.data, "validation", config)
        pictures = {name: listed.read(i) for i, name in enumerate(listed.names) if name in headers}
        restored = PictureSource(restored_folder, "validation", config)
        for i, name in enumerate(restored.names):
            assert torch.equal(restored.read(i).mcus, pictures[name].mcus), f"{name} was not restored bit for bit"
        assert len(restored) == len(pictures) == len(result.files)
        size = result.bytes
    count = len(pictures)
    labels = [config.null_label if (label := headers[name].label) is None else label for name in pictures]
    exact = code_lengths(network, [sequence(p, k) for p, k in zip(pictures.values(), labels, strict=True)]).bits.sum()
    images = [image(picture, codec) for picture in pictures.values()]
    jpeg = sum(len(write_jpeg_bytes(dct)) for dct in images)
    rows = {"compressed files": size / count, "likelihood": float(exact) / 8 / count}
    coders = compare(images)
    rows |= {row["coder"]: row["bytes_per_image"] for row in coders if row["bytes_per_image"] is not None}
    print(f"{count} pictures; bytes per picture:")
    for name, size_of_picture in rows.items():
        print(f"  {name:28s}{size_of_picture:9.1f}")
    speed = {"compressing": jpeg / packing, "restoring": jpeg / restoring}
    for name, rate in speed.items():
        print(f"  {name:28s}{rate:9.1f} bytes per second")
    facts = {"pictures": count, "bytes_per_picture": rows, "bytes_per_second": speed, "batch": arguments.batch}
    print(json.dumps({"benchmark": "compress", "model": arguments.model, **facts, **machine(CPU)}))
    for row in coders:
        if row["missing"]:
            print(f"{row['coder']} is not installed: {row['missing']}", file=sys.stderr)


if __name__ == "__main__":
    main()
