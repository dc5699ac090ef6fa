"""Compare where windows lie in a model's position tables: at their beginning, anywhere, or as in their pictures.

    python benchmarks/positions.py DATA [LARGER …] [--seeds 0 1] [--triples 250000] [--window 64]

DATA is a data set made by `dctransformer prepare --long-side …`; LARGER are others of the same pictures and quality.
The structure alone of models of one layout is trained on random windows of DATA, the same windows in the same order:

- ``start``: every window at the beginning of the tables (`train`);
- ``random``: a step's windows at a random row and column of tables that end at the largest pictures scored;
- ``random-long``: the same with the tables that models have if nothing else is asked for (1,024 pixels a side);
- ``centre``: a window at its place in its picture, whose centre lies at the centre of the tables.

Scored are held-out pictures of each data set: bytes per image of DC, band 1–3 and the stop, with the pictures at the
beginning of the tables, at their middle, or (``start``) also cut into windows that are scored alone. Texture reads no
positions. The last line is JSON.
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
from dctransformer.sequence.windows import centred, parse_window
from dctransformer.training.config import TrainConfig
from dctransformer.training.trainer import Trainer
from measure import machine

Offset = tuple[int, int]
Scored = list[tuple[str, TripleStore, Grid | None]]
LONG = 128
"""Luma blocks along a side of the tables of a model's default layout."""


class Windows(ChunkBatches):
    """Batches that know where each window lies in tables with the picture's centre in the middle."""

    def offsets(self, step: int) -> list[Offset]:
        """The row and the column of MCUs of each of a step's windows in tables of ``span`` MCUs a side."""
        sampler = self.sampler
        flips = np.random.default_rng([sampler.seed, 2, step]).random((sampler.batch, 2))[:, 0] < 0.5
        found = []
        for row, seen in zip(sampler.rows, sampler.draws(step, sampler.rows), strict=True):
            picture = self.store.grid(seen.picture)
            left = picture.cols - seen.grid.cols - seen.left if self.flip and flips[row] else seen.left
            found.append((seen.top - picture.rows // 2, left - picture.cols // 2))
        return found


class Placed(Trainer):
    """A trainer of windows that lie at different places: ``at`` has the offset of each row of a step."""

    at: list[Offset] | None = None

    def accumulate(self, batch: ChunkBatch, count: int, micro_batch: int | None) -> Tensor:
        """As a trainer does, one group of rows with the same offset after the other."""
        if self.at is None:
            return super().accumulate(batch, count, micro_batch)
        total = torch.zeros(())
        for offset in sorted(set(self.at)):
            part = batch.rows(torch.tensor([here == offset for here in self.at])).trimmed()
            part.offset = offset
            total = total + super().accumulate(part, count, micro_batch)
        return total


def train(store: TripleStore, shape: ModelConfig, how: str, window: Grid, triples: int, seed: int) -> DCTransformer:
    """Train the structure of one model, as long as it takes to see so many triples."""
    config = TrainConfig(
        triples=triples, seed=seed, texture=0, sample_every=0, device="cpu", precision="fp32", warmup=20
    )
    torch.manual_seed(seed)
    trainer = Placed(DCTransformer(shape), config)
    span = shape.max_grid // 2
    batches = Windows(
        store, shape.chunk, shape.overlap, config.batch, seed=seed, window=window, texture_from=shape.texture_rank,
        texture=0, positions=span if how.startswith("random") else 0,
    )  # fmt: skip
    while trainer.progress.triples < triples:
        step = trainer.progress.step
        if how == "centre":
            trainer.at = [(span // 2 + down, span // 2 + right) for down, right in batches.offsets(step)]
        trainer.step(batches[step])
    assert isinstance(trainer.ema, DCTransformer)
    return trainer.ema


def structures(model: DCTransformer, store: TripleStore, window: Grid | None, count: int) -> Iterator[Sequence]:
    """Held-out pictures, or the windows at their centres, as the model lists their structure."""
    config = model.config
    for i in range(min(count, len(store))):
        triples, grid = centred(store.triples(i), store.grid(i), window)
        yield Sequence.from_triples(triples, grid, int(store.labels[i])).structure(config.texture_rank)


def pieces(sequences: Iterable[Sequence], store: TripleStore, window: Grid, rank: int) -> Iterator[Sequence]:
    """The same pictures cut into windows, each a picture of its own."""
    for i, sequence in enumerate(sequences):
        triples, picture = store.triples(i), store.grid(i)
        for top in range(0, picture.rows, window.rows):
            for left in range(0, picture.cols, window.cols):
                grid = Grid.shared(min(window.rows, picture.rows - top), min(window.cols, picture.cols - left))
                part = crop_triples(triples, picture, top, left, grid)
                yield Sequence.from_triples(part, grid, sequence.label).structure(rank)


@torch.inference_mode()
def nats(model: DCTransformer, sequences: Iterable[Sequence], at: str) -> float:
    """All nats of some sequences, which lie at the ``start`` or in the ``middle`` of the model's tables."""
    config = model.config
    chunks: dict[Grid, list[tuple[Sequence, int]]] = {}
    for sequence in sequences:
        chunks.setdefault(sequence.grid, []).extend((sequence, k) for k in range(sequence.chunks(config.stride)))
    total = 0.0
    for grid, several in chunks.items():
        several.sort(key=lambda one: min(config.stride, len(one[0]) - one[1] * config.stride))
        for first in range(0, len(several), 16):
            some = several[first : first + 16]
            batch = cut_chunks([s for s, _ in some], [k for _, k in some], config.chunk, config.overlap)
            if at == "middle":
                batch.offset = config.max_grid // 4 - grid.rows // 2, config.max_grid // 4 - grid.cols // 2
            total += float(model.triple_nats(batch).sum())
    return total


def score(model: DCTransformer, how: str, sets: Scored, window: Grid, count: int) -> dict[str, float]:
    """Bytes per image of every set, wherever pictures may lie."""
    found = {}
    places = {"start": ("start", "windows"), "centre": ("middle",)}.get(how, ("start", "middle"))
    for name, store, crop in sets:
        some = min(count, len(store))
        for at in places:
            sequences = structures(model, store, crop, count)
            if at == "windows":
                if crop is not None:
                    continue
                sequences = pieces(sequences, store, window, model.config.texture_rank)
            found[f"{name}, {at}"] = nats(model, sequences, at) / math.log(2) / 8 / some
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score everything."""
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
            found = score(model.eval(), how, sets, window, args.num)
            seconds = {"seconds": trained - began, "seconds_scored": time.process_time() - trained}
            rows.append({"layout": how, "seed": seed, **found, **seconds})
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
        found = measure(parser.parse_args(argv))
    except ValueError as error:
        print(f"positions: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
