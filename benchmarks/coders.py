"""Compare coders of the held-out pictures' coefficients: the model, counted tables and classical coders.

    python benchmarks/coders.py DATA [--model flowers64] [--num N] [--counted N]

DATA is a data set prepared by `dctransformer prepare` with the size and quality of the model, or, without a model, any
data set of pictures of one size. All coders code the same coefficients of the same pictures, and the size of a blank
picture is subtracted from that of every file. Structure is DC and band 1–3, texture the bands above: for the model and
the tables, the code lengths of these coefficients; for a file format, the size with all texture set to zero, and the
rest.

The model and the tables are fitted to the training split; the file formats are not. The column "side information" is
the size of what a receiver needs in advance: weights, or the non-zero counts at four bytes each. The last line is JSON;
``ratio`` is the model's bytes divided by those of the counted tables and must be below 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counted_tables import CountedTables, planes_of
from dctransformer.codec import order
from dctransformer.codec.dct_image import DCTImage
from dctransformer.data.info import DatasetInfo
from dctransformer.evaluate.coders import blank, coders
from dctransformer.evaluate.pictures import Reference, open_held_out, open_reference
from dctransformer.hub.pretrained import WEIGHTS, load_model, model_folder
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.tasks.likelihood import likelihood
from measure import machine

STRUCTURE = 4
"""Number of structure frequencies per block: DC and band 1–3."""

PRIOR = 0.01
"""Constant added to every count of the static histogram."""


def histogram_bits(train: DCTImage, held_out: DCTImage) -> tuple[np.ndarray, int]:
    """Code lengths of a static code: a histogram of the values of each channel, zero included.

    Args:
        train: pictures to count.
        held_out: pictures to code.

    Returns:
        Mean bits per picture by channel, float64 ``[192]``, and the number of non-zero counts.
    """
    bits, counted = np.zeros(order.NUM_CHANNELS), 0
    train_planes, held_out_planes = planes_of(train), planes_of(held_out)
    for component, planes in train_planes.items():
        for frequency, plane in enumerate(planes):
            coded = held_out_planes[component][frequency]
            largest = int(max(np.abs(plane).max(), np.abs(coded).max(), 1))
            counts = np.bincount(plane.reshape(-1).astype(np.int64) + largest, minlength=2 * largest + 1)
            counted += int((counts > 0).sum())
            length = -np.log2((counts + PRIOR) / (counts + PRIOR).sum())
            bits[component + frequency] = length[coded.astype(np.int64) + largest].sum() / len(held_out)
    return bits, counted


def row(coder: str, structure: float | None, texture: float | None, side: int | None, **facts: Any) -> dict[str, Any]:
    """A row of the table in bytes per image; None if the coder is not installed."""
    total = None if structure is None or texture is None else structure + texture
    parts = {"bytes_per_image": total, "structure_bytes": structure, "texture_bytes": texture}
    return {"coder": coder, **parts, "side_bytes": side, **facts}


def of_channels(bits: np.ndarray) -> tuple[float, float]:
    """Bytes of structure and of texture from bits by channel ``[192]``."""
    structure = np.arange(order.NUM_CHANNELS) % 64 < STRUCTURE
    return float(bits[structure].sum() / 8), float(bits[~structure].sum() / 8)


def of_model(model: str, data: Path, num: int | None) -> list[dict[str, Any]]:
    """Rows of the model, with labels (if it has any) and without."""
    size = (model_folder(model) / WEIGHTS).stat().st_size
    network, rows = load_model(model), []
    for labelled in (True, False) if network.config.num_labels else (False,):
        summary = likelihood(network, data, num=num, use_labels=labelled)
        bands = summary["bits_per_image_by_band"]
        texture = sum(bands[name] for name in order.BAND_NAMES[2:])
        name = f"{Path(model).name}, {'with' if labelled else 'without'} labels"
        rows.append(row(name, (summary["bits_per_image"] - texture) / 8, texture / 8, size))
    return rows


def of_formats(held_out: DCTImage) -> list[dict[str, Any]]:
    """Rows of the classical coders."""
    low = [plane.clone() for plane in held_out.components]
    for plane in low:
        plane[..., STRUCTURE:] = 0
    structure = dataclasses.replace(held_out, luma=low[0], cb=low[1], cr=low[2])
    rows = []
    for coder in coders():
        if coder.missing:
            rows.append(row(coder.name, None, None, 0, missing=coder.missing))
            continue
        overhead = coder.size(blank(held_out[0]))
        total_bytes, structure_bytes = (
            sum(coder.size(pictures[i]) for i in range(len(held_out))) / len(held_out) - overhead
            for pictures in (held_out, structure)
        )
        rows.append(row(coder.name, structure_bytes, total_bytes - structure_bytes, 0))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""

    def cells(row: dict[str, Any]) -> list[str]:
        if row["bytes_per_image"] is None:
            return [row["coder"], f"not installed: {row['missing']}", "", "", ""]
        side = row["side_bytes"]
        sizes = [f"{row[name]:.1f}" for name in ("bytes_per_image", "structure_bytes", "texture_bytes")]
        return [row["coder"], *sizes, f"{side:,} bytes" if side else "none"]

    head = ["coder", "bytes per image", "structure", "texture", "side information"]
    lines = [head, ["---"] * len(head), *(cells(row) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def measure(data: Path, model: str | None, num: int | None, counted: int | None) -> dict[str, Any]:
    """Measure all coders.

    Args:
        data: prepared data set.
        model: shipped weights, a run folder, …; None to leave the model out.
        num: number of held-out pictures; None for all.
        counted: number of training pictures to count; None for all.

    Returns:
        The fields of the JSON line, with the rows of the table under ``rows``.

    Raises:
        ValueError: model or data is missing or does not match, or the pictures are not of one size.
    """
    if any(number is not None and number < 1 for number in (num, counted)):
        raise ValueError("num and counted must be at least 1")
    info = DatasetInfo.load(data)
    if model is None:
        config: ModelConfig = preset("small", quality=info.quality, size=info.side)
    else:
        network: DCTransformer = load_model(model)
        config = network.config
    train, held_out = (
        pictures.first(limit).dct(0, min(limit or len(pictures), len(pictures)))
        for pictures, limit in (
            (_of_one_size(open_reference(data, config, find_originals=False), data), counted),
            (_of_one_size(open_held_out(data, config), data), num),
        )
    )
    rows = [] if model is None else of_model(model, data, num)
    began = time.process_time()
    tables = CountedTables(train)
    seconds = time.process_time() - began
    bits = np.zeros(order.NUM_CHANNELS)
    for channel, places in tables.bits(held_out).items():
        bits[channel] = places.sum() / len(held_out)
    rows.append(row("counted tables", *of_channels(bits), 4 * tables.occurred, seconds=seconds))
    bits, counts = histogram_bits(train, held_out)
    rows.append(row("static histogram of each channel", *of_channels(bits), 4 * counts))
    rows += of_formats(held_out)
    return {"data": str(data), "images": len(held_out), "counted_images": len(train), "rows": rows}


def _of_one_size(pictures: Reference, data: Path) -> Reference:
    if len({pictures.grid(i) for i in range(len(pictures))}) > 1:
        raise ValueError(f"the pictures of {data} are of several sizes; prepare them with --size, or give a model")
    return pictures


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="flowers64", help="shipped weights, a run folder, …, or none")
    parser.add_argument("--num", type=int, help="held-out pictures; all if not given")
    parser.add_argument("--counted", type=int, help="training pictures that are counted; all if not given")
    arguments = parser.parse_args(argv)
    model = None if arguments.model == "none" else arguments.model
    try:
        report = measure(arguments.data, model, arguments.num, arguments.counted)
    except ValueError as error:
        print(f"coders: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{report['images']} held-out pictures, {report['counted_images']:,} counted\n\n{table(report['rows'])}")
    sizes = {row["coder"]: row["bytes_per_image"] for row in report["rows"]}
    ratio = None if model is None else report["rows"][0]["bytes_per_image"] / sizes["counted tables"]
    result = {"benchmark": "coders", "ratio": ratio, "goal": 1.0, **report, **machine(torch.device("cpu"))}
    print(json.dumps(result))
    raise SystemExit(ratio is not None and ratio >= 1)


if __name__ == "__main__":
    main()
