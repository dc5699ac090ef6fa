"""Fuzz the decompression of damaged files: no wrong picture, no crash, no endless work.

    python benchmarks/fuzz_compress.py [--count 1000] [--seed 0]

The files are compressed by a tiny untrained model from synthetic pictures of two sizes, and then cut, patched,
lengthened and spliced. Each mutated file must be refused or give exactly the picture of its original (which is possible
if only its row has changed), and an intact file among them must be restored. The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.codec import Codec, write_jpeg
from dctransformer.model.config import preset
from dctransformer.tasks.compress import compress, decompress
from dctransformer.tasks.dct_file import Header
from measure import pictures

_SMALL = {"texture_from": 2, "texture_state": 8, "texture_width": 12, "texture_hidden": 16, "texture_blocks": 1}


def originals(folder: Path, count: int) -> DCTransformer:
    """Write ``count`` pictures to ``folder/pictures``, a fourth of them wide, and compress them to ``folder/files``."""
    torch.manual_seed(0)
    config = preset("tiny", quality=10, size=32, chunk=16, overlap=0, num_labels=2, label_names=("a", "b"), **_SMALL)
    model = DCTransformer(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    for i, pixels in enumerate(pictures(count, 48).numpy()):
        path = folder / "pictures" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % 4:
            Image.fromarray(pixels).save(path.with_suffix(".png"))
        else:
            write_jpeg(Codec(10).encode(pixels[:16]), path)
    compress(model, folder / "pictures", folder / "files")
    return model


def mutated(draw: np.random.Generator, data: bytes, others: list[bytes]) -> bytes:
    """Damage a file: flip a bit, cut off, insert or replace bytes, or splice in the end of another file.

    Half of the damage is in the header.
    """
    changed = bytearray(data)
    header = len(Header.parse(data)[0].pack())
    place = int(draw.integers(0, header) if draw.random() < 0.5 else draw.integers(header, len(data)))
    kind = draw.integers(5)
    if kind == 0:
        changed[place] ^= 1 << int(draw.integers(8))
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed[place:place] = draw.bytes(int(draw.integers(1, 300)))
    elif kind == 3:
        changed[place : place + 4] = draw.bytes(4)
    else:
        changed[place:] = others[int(draw.integers(len(others)))][place:]
    return bytes(changed)


def fuzz(count: int, seed: int, folder: Path, pictures: int = 16) -> dict[str, Any]:
    """Decompress ``count`` mutated files and an intact one.

    Raises:
        AssertionError: a mutated file gave a wrong picture, or the intact one was not restored.
    """
    draw = np.random.default_rng(seed)
    model = originals(folder, pictures)
    restored = decompress(folder / "files", folder / "right", model=model)
    expected = {path.stem: path.read_bytes() for path in restored}
    files = {path.stem: path.read_bytes() for path in sorted((folder / "files").rglob("*.dct"))}
    names = list(files)
    for i in range(count):
        name = names[i % len(names)]
        data = mutated(draw, files[name], list(files.values()))
        path = folder / "mutated" / name / f"{i}.dct"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[:-1] if data in files.values() else data)
    (folder / "mutated" / "sound.dct").write_bytes(files[names[0]])
    start = time.process_time()
    try:
        decompress(folder / "mutated", folder / "back", model=model)
        raise AssertionError("no file was refused")
    except ValueError as error:
        sentence = str(error)
    outcome = collections.Counter({"refused": count, "same picture": 0})
    for path in (folder / "back").rglob("*.jpg"):
        sound = path.stem == "sound"
        assert path.read_bytes() == expected[names[0] if sound else path.parent.name], f"{path} is a wrong picture"
        outcome.update({"sound": 1} if sound else {"same picture": 1, "refused": -1})
    assert outcome["sound"] == 1
    return {
        **outcome, "cpu_seconds": round(time.process_time() - start, 1), "sentence": sentence.partition(" ")[2],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(arguments.count, arguments.seed, Path(folder))
    print(json.dumps({"benchmark": "fuzz_compress", "count": arguments.count, "seed": arguments.seed, **result}))


if __name__ == "__main__":
    main()
