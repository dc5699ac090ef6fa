"""One table of what codes the held-out pictures' coefficients: the model, counted tables and classical coders.

    python benchmarks/coders.py DATA [--model flowers64] [--num N] [--counted N]

DATA is a data set made by `dctransformer prepare`, of the model's size and quality; without a model any whose pictures
are of one size. All coders code the same coefficients of the same pictures, and what a file format spends on a blank
picture is subtracted. Structure is DC and band 1–3, texture the bands above: for the model and for tables, the code
lengths of these coefficients; for a file format, the size with all texture set to zero, and the rest of its size.

The model and the tables know pictures of the same kind (the training part); the file formats know none. The column
"side information" has what a receiver needs beforehand: weights, or the counts that are not zero at four bytes each.
The last line is JSON; ``ratio`` is the model's bytes over those of the counted tables, which must stay below 1.
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
"""Frequencies of DC and of band 1–3."""

PRIOR = 0.01
"""What is added to every count of the static histogram."""


def histogram_bits(train: DCTImage, held_out: DCTImage) -> tuple[np.ndarray, int]:
    """A static code for every coefficient: frequencies of each channel's values, zero included.

    Args:
        train: the pictures that are counted.
        held_out: the pictures that are coded.

    Returns:
        Bits of each channel, the mean over the pictures, float64 ``[192]``; and the number of counts above 0.
    """
    bits, counted = np.zeros(order.NUM_CHANNELS), 0
    known, coded = planes_of(train), planes_of(held_out)
    for component, planes in known.items():
        for frequency, plane in enumerate(planes):
            new = coded[component][frequency]
            largest = int(max(np.abs(plane).max(), np.abs(new).max(), 1))
            counts = np.bincount(plane.reshape(-1).astype(np.int64) + largest, minlength=2 * largest + 1)
            counted += int((counts > 0).sum())
            length = -np.log2((counts + PRIOR) / (counts + PRIOR).sum())
            bits[component + frequency] = length[new.astype(np.int64) + largest].sum() / len(held_out)
    return bits, counted


def row(coder: str, structure: float | None, texture: float | None, side: int | None, **facts: Any) -> dict[str, Any]:
    """A row of the table, of bytes per image; None where a coder is not installed."""
    total = None if structure is None or texture is None else structure + texture
    parts = {"bytes_per_image": total, "structure_bytes": structure, "texture_bytes": texture}
    return {"coder": coder, **parts, "side_bytes": side, **facts}


def of_channels(bits: np.ndarray) -> tuple[float, float]:
    """Bytes of structure and texture, from bits of each channel ``[192]``."""
    structure = np.arange(order.NUM_CHANNELS) % 64 < STRUCTURE
    return float(bits[structure].sum() / 8), float(bits[~structure].sum() / 8)


def of_model(model: str, data: Path, num: int | None) -> list[dict[str, Any]]:
    """Rows of the model, with labels (if it knows any) and without."""
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
    soft = [part.clone() for part in held_out.components]
    for part in soft:
        part[..., STRUCTURE:] = 0
    structure = dataclasses.replace(held_out, luma=soft[0], cb=soft[1], cr=soft[2])
    rows = []
    for coder in coders():
        if coder.missing:
            rows.append(row(coder.name, None, None, 0, missing=coder.missing))
            continue
        nothing = coder.size(blank(held_out[0]))
        whole, low = (
            sum(coder.size(pictures[i]) for i in range(len(held_out))) / len(held_out) - nothing
            for pictures in (held_out, structure)
        )
        rows.append(row(coder.name, low, whole - low, 0))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def cells(one: dict[str, Any]) -> list[str]:
        if one["bytes_per_image"] is None:
            return [one["coder"], f"not installed: {one['missing']}", "", "", ""]
        side = one["side_bytes"]
        sizes = [f"{one[name]:.1f}" for name in ("bytes_per_image", "structure_bytes", "texture_bytes")]
        return [one["coder"], *sizes, f"{side:,} bytes" if side else "none"]

    head = ["coder", "bytes per image", "structure", "texture", "side information"]
    lines = [head, ["---"] * len(head), *(cells(one) for one in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def measure(data: Path, model: str | None, num: int | None, counted: int | None) -> dict[str, Any]:
    """All rows.

    Args:
        data: prepared data set.
        model: shipped weights, a run folder, …; None for none.
        num: held-out pictures; None for all.
        counted: training pictures that are counted; None for all.

    Raises:
        ValueError: model or data is missing or doesn't fit, or the pictures are not of one size.
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
        part.first(most).dct(0, min(most or len(part), len(part)))
        for part, most in (
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


def _of_one_size(part: Reference, data: Path) -> Reference:
    if len({part.grid(i) for i in range(len(part))}) > 1:
        raise ValueError(f"the pictures of {data} are of several sizes; prepare them with --size, or give a model")
    return part


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
        found = measure(arguments.data, model, arguments.num, arguments.counted)
    except ValueError as error:
        print(f"coders: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{found['images']} held-out pictures, {found['counted_images']:,} counted\n\n{table(found['rows'])}")
    sizes = {one["coder"]: one["bytes_per_image"] for one in found["rows"]}
    ratio = None if model is None else found["rows"][0]["bytes_per_image"] / sizes["counted tables"]
    result = {"benchmark": "coders", "ratio": ratio, "goal": 1.0, **found, **machine(torch.device("cpu"))}
    print(json.dumps(result))
    raise SystemExit(ratio is not None and ratio >= 1)


if __name__ == "__main__":
    main()
