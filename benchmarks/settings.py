"""Scan sampling settings, and score how close the samples are to real pictures.

    python benchmarks/settings.py DATA --out FOLDER [--model flowers64] [--num 1000] [--only "as it is" "top-p 0.9"]

DATA is a prepared data set of the model's size and quality. ``--num`` pictures of the same classes and seed are
generated with each of `SETTINGS`, and compared with all training pictures (after the codec) by

- the kernel distance of features (times 1,000, averaged over subsets);
- triples per band, relative to real pictures (ideally 1);
- contrast: the standard deviation of luma's DC coefficients, relative to real pictures;
- the edge ratio: mean brightness step across block borders divided by that inside blocks, which is higher in blocky
  pictures.

Temperature, top-p and guidance can be set separately for structure (DC and band 1–3) and texture. Pictures are written
to FOLDER, from which the same command continues. The outputs are a table (``table.md``) and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dctransformer.codec import Codec, DCTImage, order
from dctransformer.evaluate.cache import cached, extract
from dctransformer.evaluate.features import open_extractor
from dctransformer.evaluate.metrics import KID_SUBSET_SIZE, kernel_distance
from dctransformer.evaluate.pictures import Pictures, open_reference
from dctransformer.files import make_folder, write_tensors, write_text
from dctransformer.hub.pretrained import load_model
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from measure import machine

SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "top-p 0.9": {"top_p": 0.9},
    "texture top-p 0.9": {"texture_top_p": 0.9},
    "texture temperature 0.9": {"texture_temperature": 0.9},
    "structure temperature 0.9": {"temperature": 0.9, "texture_temperature": 1.0},
    "structure temperature 0.8": {"temperature": 0.8, "texture_temperature": 1.0},
    "temperature 0.9": {"temperature": 0.9},
    "structure top-p 0.95, texture 0.9": {"top_p": 0.95, "texture_top_p": 0.9},
    "min-p 0.02": {"min_p": 0.02},
    "min-p 0.05": {"min_p": 0.05},
    "min-p 0.1": {"min_p": 0.1},
    "structure temperature 0.9, min-p 0.05": {"temperature": 0.9, "texture_temperature": 1.0, "min_p": 0.05},
    "guidance 1.5": {"guidance": 1.5},
    "structure guidance 1.5": {"guidance": 1.5, "texture_guidance": 1.0},
    "structure guidance 1.3": {"guidance": 1.3, "texture_guidance": 1.0},
    "structure guidance 1.5, min-p 0.02": {"guidance": 1.5, "texture_guidance": 1.0, "min_p": 0.02},
    "structure guidance 1.5, min-p 0.05": {"guidance": 1.5, "texture_guidance": 1.0, "min_p": 0.05},
    "structure guidance 1.5, texture temperature 0.9": {
        "guidance": 1.5, "texture_guidance": 1.0, "texture_temperature": 0.9,
    },
}  # fmt: skip
"""Sampling settings by name: fields of `SampleConfig`."""


def triples_by_band(pictures: DCTImage) -> np.ndarray:
    """Mean number of triples per picture by band: float64 ``[4]``."""
    counts = sum((part != 0).double().sum((0, 1, 2)) for part in pictures.components)
    assert isinstance(counts, Tensor)
    return np.array([float(counts[low:high].sum()) for low, high in order.BANDS]) / len(pictures)


def edge_ratio(pixels: Tensor) -> float:
    """Blockiness: mean absolute brightness step across block borders divided by that inside blocks.

    Args:
        pixels: uint8 ``[n, H, W, 3]``.
    """
    light = pixels.float().mean(3)
    borders, inside = [], []
    for axis in (1, 2):
        steps = light.diff(dim=axis).abs().mean((0, 3 - axis))  # [size - 1]
        is_border = torch.arange(1, len(steps) + 1) % order.BLOCK == 0
        borders.append(steps[is_border])
        inside.append(steps[~is_border])
    return float(torch.cat(borders).mean() / torch.cat(inside).mean().clamp_min(1e-9))


def contrast(pictures: DCTImage) -> float:
    """Contrast: standard deviation of luma's DC coefficients."""
    return float(pictures.luma[..., 0].float().std())


def statistics_of(pictures: DCTImage, codec: Codec) -> dict[str, Any]:
    """Statistics of a set of pictures that need no features: triples, contrast and edge ratio."""
    return {
        "triples": triples_by_band(pictures).tolist(),
        "contrast": contrast(pictures),
        "edges": edge_ratio(codec.decode(pictures)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table, with triples and contrast relative to real pictures."""
    real = rows[0]
    head = ["settings", "kernel distance × 1,000", *(f"triples {b}" for b in order.BAND_TITLES), "contrast"]
    head += ["edge ratio", "s per picture"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        parts = [f"{a / b:.3f}" for a, b in zip(row["triples"], real["triples"], strict=True)]
        kernel = "–" if row["kernel"] is None else f"{1000 * row['kernel']:.1f}"
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.2f}"
        contrast = f"{row['contrast'] / real['contrast']:.3f}"
        lines.append([row["name"], kernel, *parts, contrast, f"{row['edges']:.3f}", seconds])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def scan(data: Path, model: str, out: Path, num: int, names: list[str], features: str, batch: int) -> dict[str, Any]:
    """Generate and score pictures with each of the settings.

    Returns:
        The fields of the JSON line.

    Raises:
        ValueError: model or data is missing or does not match, or a name is unknown.
    """
    unknown = [name for name in names if name not in SETTINGS]
    if unknown or num < 2:
        raise ValueError(f"there are no settings {unknown}" if unknown else f"num {num} must be at least 2")
    network = load_model(model)
    reference = open_reference(data, network.config, find_originals=False)
    extractor, codec = open_extractor(features), Codec(network.config.quality)
    real_features = cached(extractor, reference.round_trip)
    labels = [reference.labels[i % len(reference)] for i in range(num)]
    real = reference.dct(0, min(len(reference), max(num, KID_SUBSET_SIZE)))
    rows: list[dict[str, Any]] = [
        {"name": "real pictures", "kernel": None, "seconds": None, **statistics_of(real, codec)}
    ]
    make_folder(out)
    for name in names:
        path = out / f"{name.replace(' ', '-')}-{num}.safetensors"
        began, seconds = time.process_time(), None
        if path.exists():
            parts = load_file(path)
        else:
            config = SampleConfig(batch=batch, workers=1, **SETTINGS[name])
            dct = sample(network, num, config, labels=labels, size=network.config.trained_shape).dct()
            assert dct.cb is not None and dct.cr is not None
            parts = {"luma": dct.luma.contiguous(), "cb": dct.cb.contiguous(), "cr": dct.cr.contiguous()}
            seconds = (time.process_time() - began) / num
            write_tensors(path, parts, {})
        height, width = network.config.trained_shape
        tables = codec.luma_table, codec.chroma_table
        samples = DCTImage(parts["luma"], parts["cb"], parts["cr"], *tables, height, width)
        pixels = codec.decode(samples)
        sample_features = extract(extractor, Pictures("generated", num, lambda a, b, pixels=pixels: pixels[a:b]))
        subset = min(KID_SUBSET_SIZE, num, len(real_features))
        kernel, _ = kernel_distance(real_features.features, sample_features.features, subset_size=subset)
        rows.append({"name": name, "kernel": kernel, "seconds": seconds, **statistics_of(samples, codec)})
        print(table([rows[0], rows[-1]]).splitlines()[-1], file=sys.stderr, flush=True)
    write_text(out / "table.md", table(rows))
    print(table(rows))
    best = min(rows[1:], key=lambda row: row["kernel"])["name"]
    facts = {"data": str(data), "model": model, "num": num, "features": extractor.name}
    return {"benchmark": "settings", "best": best, "rows": rows, **facts, **machine(torch.device("cpu"))}


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="output folder for pictures and table")
    parser.add_argument("--model", default="flowers64", help="shipped weights, a run folder, …")
    parser.add_argument("--num", type=int, default=1000, help="pictures for each of the settings")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), help="names of settings; all if not given")
    parser.add_argument(
        "--features",
        default="small64-imagenette",
        help="extractor, see dctransformer evaluate; the default has seen no flowers in training, small64 no cats",
    )
    parser.add_argument("--batch", type=int, default=64, help="pictures at a time")
    args = parser.parse_args(argv)
    try:
        result = scan(args.data, args.model, args.out, args.num, args.only, args.features, args.batch)
        print(json.dumps(result))
    except ValueError as error:
        print(f"settings: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
