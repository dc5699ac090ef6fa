"""Compare placements of training windows in a model's position tables: at the start, random, or as in the picture.

    python benchmarks/positions.py DATA [LARGER …] [--seeds 0 1] [--triples 250000] [--window 64]

DATA is a data set prepared by `dctransformer prepare --long-side …`; LARGER are larger versions of the same pictures at
the same quality. Models are trained on the structure of random windows of DATA, the same windows in the same order,
with one layout each:

- ``start``: every window at the start of the tables (as in `train`);
- ``random``: the windows of a step at a random row and column of tables that fit the largest scored pictures;
- ``random-long``: the same with tables of the default length (1,024 pixels per side);
- ``centre``: every window at its place in its picture, with the centre of the picture at the centre of the tables.

Scores are bytes per image of DC, band 1–3 and the stop, on held-out pictures of each data set, placed at the start of
the tables or in their middle; for ``start`` also cut into windows that are scored separately. Texture does not depend
on positions. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import crop_triples
from dctransformer.data import TripleStore
from dctransformer.model.config import ModelConfig, preset
from dctransformer.sequence.batches import ChunkBatches
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.windows import centre_window, parse_window
from dctransformer.training.config import TrainConfig
from dctransformer.training.trainer import Trainer
from measure import machine

Offset = tuple[int, int]
Scored = list[tuple[str, TripleStore, Grid | None]]
LONG = 128
"""Default length of position tables, in luma blocks."""


class Windows(ChunkBatches):
    """Batches of windows with their offsets from the centres of their pictures."""

    def offsets(self, step: int) -> list[Offset]:
        """Row and column, in MCUs, of each window of a step relative to the centre of its picture."""
        sampler = self.sampler
        flips = np.random.default_rng([sampler.seed, 2, step]).random((sampler.batch, 2))[:, 0] < 0.5
        offsets = []
        for row, draw in zip(sampler.rows, sampler.draws(step, sampler.rows), strict=True):
            picture = self.store.grid(draw.picture)
            left = picture.cols - draw.grid.cols - draw.left if self.flip and flips[row] else draw.left
            offsets.append((draw.top - picture.rows // 2, left - picture.cols // 2))
        return offsets


class OffsetTrainer(Trainer):
    """A trainer whose windows may have different offsets in the position tables."""

    offsets: list[Offset] | None = None
    """The offset of each row of the current step; None if all are 0."""

    def accumulate(self, batch: ChunkBatch, count: int, micro_batch: int | None) -> Tensor:
        """Accumulate gradients as `Trainer` does, one group of rows with equal offsets at a time."""
        if self.offsets is None:
            return super().accumulate(batch, count, micro_batch)
        total = torch.zeros(())
        for offset in sorted(set(self.offsets)):
            part = batch.rows(torch.tensor([other == offset for other in self.offsets])).trimmed()
            part.offset = offset
            total = total + super().accumulate(part, count, micro_batch)
        return total


def train(store: TripleStore, shape: ModelConfig, how: str, window: Grid, triples: int, seed: int) -> DCTransformer:
    """Train a model on structure for a number of triples."""
    config = TrainConfig(
        triples=triples, seed=seed, texture=0, sample_every=0, device="cpu", precision="fp32", warmup=20
    )
    torch.manual_seed(seed)
    trainer = OffsetTrainer(DCTransformer(shape), config)
    span = shape.max_grid // 2
    batches = Windows(
        store, shape.chunk, shape.overlap, config.batch, seed=seed, window=window, texture_from=shape.texture_rank,
        texture=0, positions=span if how.startswith("random") else 0,
    )  # fmt: skip
    while trainer.progress.triples < triples:
        step = trainer.progress.step
        if how == "centre":
            trainer.offsets = [(span // 2 + down, span // 2 + right) for down, right in batches.offsets(step)]
        trainer.step(batches[step])
    assert isinstance(trainer.ema, DCTransformer)
    return trainer.ema


def structures(model: DCTransformer, store: TripleStore, window: Grid | None, count: int) -> Iterator[Sequence]:
    """Yield the structure of held-out pictures, or of the windows at their centres, as sequences."""
    config = model.config
    for i in range(min(count, len(store))):
        triples, grid = centre_window(store.triples(i), store.grid(i), window)
        yield Sequence.from_triples(triples, grid, int(store.labels[i])).structure(config.texture_rank)


def pieces(sequences: Iterable[Sequence], store: TripleStore, window: Grid, rank: int) -> Iterator[Sequence]:
    """Cut the pictures into windows, and yield the structure of each window as a separate picture."""
    for i, sequence in enumerate(sequences):
        triples, picture = store.triples(i), store.grid(i)
        for top in range(0, picture.rows, window.rows):
            for left in range(0, picture.cols, window.cols):
                grid = Grid.shared(min(window.rows, picture.rows - top), min(window.cols, picture.cols - left))
                part = crop_triples(triples, picture, top, left, grid)
                yield Sequence.from_triples(part, grid, sequence.label).structure(rank)


@torch.inference_mode()
def nats(model: DCTransformer, sequences: Iterable[Sequence], at: str) -> float:
    """Total nats of sequences that are placed at the ``start`` or in the ``middle`` of the model's tables."""
    config = model.config
    chunks: dict[Grid, list[tuple[Sequence, int]]] = {}
    for sequence in sequences:
        chunks.setdefault(sequence.grid, []).extend((sequence, k) for k in range(sequence.chunks(config.stride)))
    total = 0.0
    for grid, pairs in chunks.items():
        pairs.sort(key=lambda pair: min(config.stride, len(pair[0]) - pair[1] * config.stride))
        for first in range(0, len(pairs), 16):
            part = pairs[first : first + 16]
            batch = cut_chunks([s for s, _ in part], [k for _, k in part], config.chunk, config.overlap)
            if at == "middle":
                batch.offset = config.max_grid // 4 - grid.rows // 2, config.max_grid // 4 - grid.cols // 2
            total += float(model.triple_nats(batch).sum())
    return total


def score(model: DCTransformer, how: str, sets: Scored, window: Grid, count: int) -> dict[str, float]:
    """Bytes per image by data set and placement of the pictures."""
    scores = {}
    places = {"start": ("start", "windows"), "centre": ("middle",)}.get(how, ("start", "middle"))
    for name, store, crop in sets:
        num = min(count, len(store))
        for at in places:
            sequences = structures(model, store, crop, count)
            if at == "windows":
                if crop is not None:
                    continue
                sequences = pieces(sequences, store, window, model.config.texture_rank)
            scores[f"{name}, {at}"] = nats(model, sequences, at) / math.log(2) / 8 / num
    return scores


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score every layout with every seed."""
    window = parse_window(args.window)
    store = TripleStore.open(args.data, "train")
    sets: Scored = [(f"windows of {args.window}", TripleStore.open(args.data, "validation"), window)]
    for path in (args.data, *args.larger):
        held_out = TripleStore.open(path, "validation")
        sets.append((path.name, held_out, None))
    longest = max(max(grid.rows, grid.cols) for _, held_out, _ in sets for grid in held_out.grids)
    rows = []
    for seed in args.seeds:
        for how in args.layouts:
            shape = preset(
                args.preset, quality=store.info.quality, size=order.MCU, num_labels=len(store.info.labels),
                max_grid=LONG if how == "random-long" else 2 * longest, texture_from=2, **json.loads(args.model),
            )  # fmt: skip
            began = time.process_time()
            model = train(store, shape, how, window, args.triples, seed)
            trained = time.process_time()
            scores = score(model.eval(), how, sets, window, args.num)
            seconds = {"seconds": trained - began, "seconds_scored": time.process_time() - trained}
            rows.append({"layout": how, "seed": seed, **scores, **seconds})
            print(json.dumps(rows[-1]), flush=True)
    return {"benchmark": "positions", "rows": rows, "triples": args.triples, **machine(torch.device("cpu"))}


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--triples", type=int, default=250_000, help="structure triples that each model sees")
    parser.add_argument("--window", default="64")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--model", default="{}", help="JSON of fields of the model that differ from the preset's")
    parser.add_argument("--num", type=int, default=128, help="held-out pictures of each set")
    parser.add_argument(
        "--layouts", nargs="+", default=["start", "random", "random-long", "centre"],
        choices=["start", "random", "random-long", "centre"],
    )  # fmt: skip
    try:
        result = measure(parser.parse_args(argv))
    except ValueError as error:
        print(f"positions: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
