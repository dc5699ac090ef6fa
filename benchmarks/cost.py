"""Cost by picture size: time and memory of a training step and seconds per sampled image, for 64 to 1,024 px.

    python benchmarks/cost.py [--sizes 64 128 256 512 1024] [--preset small] [--chunk 512] [--out docs/images/cost.png]
                              [--texture-from 4]

The model is untrained, and the pictures are synthetic, with the spectrum of photographs, at quality 20. Each size runs
in a separate process, so that peak memory is measured per size. Chunks have the same length at every size (but that the
structure of a picture of 64 px is shorter than a chunk). The encoder, whose cost grows with the picture, runs once per
chunk, so large pictures need long chunks (896 in the paper).

* *step*: one optimiser step of ``--batch`` chunks in which nothing is given, and the texture of half as many pictures.
* *structure*: one picture at a time, the engine continues from a quarter, a half and three quarters of the structure of
  a synthetic picture, for one chunk each. It draws every decision, which is then replaced by the picture's, so that the
  triples are realistic. Decoder time excludes the encoder.
* *texture*: the engine draws the texture of the same picture, from rates that are those of the synthetic pictures. They
  use fewer channels than photographs do, and the fewer the larger they are (13 at 1,024 px).

Seconds per image are seconds per triple times triples of structure, plus seconds per texture channel times channels in
use. The output is a table, the slopes of a log–log plot against the number of pixels, and a line of JSON, in which
``ratio`` is the exponent of seconds per image as a function of non-zero coefficients per image; it is 1 if the cost is
linear.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch

from dctransformer.codec import order
from dctransformer.codec.grid import IS_CHROMA_RANK, RANK_OF_SLOT
from dctransformer.codec.triples import public
from dctransformer.data.store import TripleStore
from dctransformer.model.config import preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling import stepper
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import Engine
from dctransformer.sampling.rows import Request
from dctransformer.sequence.chunks import Sequence, cut_chunks
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer
from measure import GENERATION, batches, decisions, machine, seconds, sequences, synthetic, total_nats

GOAL = 1.1
"""Largest exponent that counts as linear."""


def peak_mib(device: torch.device) -> float:
    """Peak memory of this process, or of the GPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def one_size(size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure training and sampling at one size."""
    device = torch.device(arguments.device)
    texture = {} if arguments.texture_from is None else {"texture_from": arguments.texture_from}
    config = preset(arguments.preset, size=size, quality=20, chunk=arguments.chunk, **texture)
    store = synthetic(arguments.pictures, config)
    settings = TrainConfig(batch=arguments.batch, device=arguments.device, compile="off", conditions=GENERATION)
    trainer = Trainer(new_model(config, settings.seed), settings)
    data = batches(store, config, settings, arguments.steps + 1)
    before = peak_mib(device)
    times = [seconds(functools.partial(trainer.step, batch), device) for batch in data][1:]
    memory = peak_mib(device) - (before if device.type == "cpu" else 0)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    model = cast(DCTransformer, trainer.model.eval())
    with torch.inference_mode():
        total_nats(model(data[0].to(device)))
    [picture, *_] = sequences(store, config)
    encoder, per_triple = structure_seconds(model, picture, device)
    per_channel = 0.0
    if config.texture_rank < order.NUM_CHANNELS:
        set_rates(model, store)
        per_channel = texture_seconds(model, picture, device)
    structure = float(store.listed(config.texture_rank).mean())
    channels = decisions(store, config.texture_rank) - structure
    return {
        "size": size,
        "triples": round(len(store.channels) / len(store)),
        "structure": round(structure),
        "channels": round(channels),
        "step_seconds": statistics.median(times),
        "step_mib": memory,
        "seconds_per_triple": per_triple,
        "decoder_seconds_per_triple": per_triple - encoder,
        "seconds_per_channel": per_channel,
        "sample_seconds": per_triple * structure + per_channel * channels,
        "parameters": parameters,
    }


@torch.no_grad()
def set_rates(model: DCTransformer, store: TripleStore) -> None:
    """Give an untrained texture network the rates of a store's pictures: how often channels are used, how densely."""
    spans = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    ranks = (order.RANK[store.channels[start:stop]] for start, stop in spans)
    counts = torch.stack([torch.from_numpy(np.bincount(r, minlength=order.NUM_CHANNELS)) for r in ranks])
    used, grid = (counts > 0).sum(0), store.grid(0)
    places = torch.where(IS_CHROMA_RANK, grid.mcus, grid.positions)
    in_use = (used / len(store)).clamp(1e-3, 1 - 0.25 / len(store))
    dense = (counts.sum(0) / (used * places).clamp_min(1)).clamp(0.5 / grid.positions, 0.99)
    model.texture.use_bias.weight[:, 0] = (-torch.log1p(-in_use) / places).log()
    model.texture.occupancy_bias.weight[:, 0] = dense.logit()


@torch.inference_mode()
def texture_seconds(model: DCTransformer, picture: Sequence, device: torch.device) -> float:
    """Seconds per channel of the texture of one picture whose structure is given, the second time."""
    engine, structure = Engine(model, SampleConfig(batch=1)), model.config.texture_rank > RANK_OF_SLOT
    assert picture.coefficients is not None
    known = torch.where(structure, picture.coefficients, 0)
    request = Request(0, model.config.null_label, known, structure.expand(known.shape))
    channels: list[int] = []
    for _ in range(2):
        rows = engine.begin([request], picture.grid, engine.config)
        elapsed = seconds(lambda rows=rows: channels.append(engine.run_texture(rows)), device)
    return elapsed / max(channels[-1], 1)


@torch.inference_mode()
def structure_seconds(model: DCTransformer, sequence: Sequence, device: torch.device) -> tuple[float, float]:
    """Seconds per triple of the encoder and of the whole engine, averaged over chunks of one picture."""
    engine, grid = Engine(model, SampleConfig(batch=1)), sequence.grid
    stride = model.config.stride
    ranks, positions, values = (x[:-1] for x in (sequence.ranks, sequence.positions, sequence.values))
    triples = public(ranks, positions, values)
    decisions = torch.stack([ranks, positions, model.alphabet.encode(values)], 1)
    starts = sorted({int(len(triples) * part) // stride * stride for part in (0.25, 0.5, 0.75)})
    encoder, spent, listed = 0.0, 0.0, 0
    for i, start in enumerate([starts[0], *starts]):
        [row] = engine.begin([Request(0, model.config.null_label, kept=triples[:start])], grid, engine.config)
        with following(engine, decisions[start : start + stride].to(device)):
            elapsed = seconds(functools.partial(engine.run, [row]), device)
        if i:  # the first one is a warmup
            spent, listed = spent + elapsed, listed + len(row.listed) - start
            chunk = cut_chunks([row.sequence()], [start // stride], model.config.chunk, model.config.overlap).to(device)
            parts = chunk.coefficients, chunk.settled, chunk.closed, chunk.labels, chunk.grid
            encoder += seconds(functools.partial(engine.model.encode, *parts), device)
    return encoder / listed, spent / listed


@contextlib.contextmanager
def following(engine: Engine, decisions: torch.Tensor) -> Iterator[None]:
    """Make the engine draw as usual, but continue with the given triples (int64 ``[L, 3]``) and then a stop."""
    stop = torch.tensor([[order.STOP, 0, 0]] * 4, device=decisions.device)
    decisions, fields, pick = torch.cat([decisions, stop]), itertools.cycle(range(3)), stepper.pick

    def follow(*drawn: Any) -> torch.Tensor:
        pick(*drawn)
        (running,) = engine.steppers.values()
        return decisions[:, next(fields)].index_select(0, running.turn)

    with mock.patch.object(stepper, "pick", follow):
        yield


def slope(x: list[float], y: list[float]) -> float:
    """Exponent of y against x: the slope of the line through their logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the log–log plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pixels = [row["size"] ** 2 for row in rows]
    curves = {
        "step_seconds": "training step, s",
        "step_mib": "its memory, MiB",
        "sample_seconds": "sampling, s per image",
    }
    figure, axes = pyplot.subplots(figsize=(6, 4.4), layout="constrained")
    for field, name in curves.items():
        y = [row[field] for row in rows]
        axes.loglog(pixels, y, "o-", label=f"{name} (slope {slope(pixels, y):.2f})")
    axes.loglog(pixels, [row["triples"] for row in rows], "k:", label="coefficients per image")
    axes.set_xticks(pixels, [f"{row['size']}²" for row in rows])
    axes.minorticks_off()
    axes.set_xlabel("pixels")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Measure each size in a separate process and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--texture-from", type=int, help="as --model.texture-from of train; 4 lists every triple")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="where to draw the plot")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(one_size(arguments.only, arguments)))
        return
    rows: list[dict[str, Any]] = []
    heads = (
        "px", "coefficients", "structure", "channels", "step, s", "MiB", "ms per triple", "decoders only",
        "ms / channel", "s per image",
    )  # fmt: skip
    print(" ".join(f"{head:>13s}" for head in heads))
    for size in arguments.sizes:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        cells = (
            f"{size}", f"{row['triples']}", f"{row['structure']}", f"{row['channels']}", f"{row['step_seconds']:.3f}",
            f"{row['step_mib']:.0f}", f"{row['seconds_per_triple'] * 1e3:.2f}",
            f"{row['decoder_seconds_per_triple'] * 1e3:.2f}", f"{row['seconds_per_channel'] * 1e3:.1f}",
            f"{row['sample_seconds']:.1f}",
        )  # fmt: skip
        print(" ".join(f"{cell:>13s}" for cell in cells), flush=True)
    pixels, triples = (
        [float(v) for v in values] for values in ([r["size"] ** 2 for r in rows], [r["triples"] for r in rows])
    )
    fields = ("step_seconds", "step_mib", "sample_seconds")
    slopes = {field: round(slope(pixels, [row[field] for row in rows]), 3) for field in fields}
    print("slopes against pixels: " + ", ".join(f"{field} {value:.2f}" for field, value in slopes.items()))
    if arguments.out:
        plot(rows, arguments.out)
    ratio = slope(triples, [row["sample_seconds"] for row in rows])
    result = {
        "benchmark": "cost",
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "reached": ratio <= GOAL,
        "slopes_against_pixels": slopes,
        "table": [{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
        **machine(torch.device(arguments.device)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
