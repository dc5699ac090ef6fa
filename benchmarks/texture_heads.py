"""Variants of the texture network, each trained alone for the same processor time and scored by exact bytes.

    python benchmarks/texture_heads.py DATA --out FOLDER [--minutes 3] [--seeds 0] [--only "one pass"]

DATA is a data set prepared by `dctransformer prepare`. Each of `VARIANTS` trains the texture of the same pictures in
the same order, for generation, with one thread and the default settings of training, and is scored on the same held-out
pictures (``--scored``): bytes of use, occupancy and values per picture. A variant within 1 % of the preset needs more
seeds. With the same ``--out``, finished runs are not repeated. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.loop import Stage, base_config, fit, remove_checkpoints, step_seconds
from dctransformer import DCTransformer
from dctransformer.codec.grid import Grid
from dctransformer.data import TripleStore
from dctransformer.files import write_text
from dctransformer.model.config import Architecture, ModelConfig, preset
from dctransformer.model.texture import Texture
from dctransformer.model.texture_layers import Around
from dctransformer.model.texture_state import Channels
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.texture import channels_in_use, texture_batch
from dctransformer.training.config import RATES, TrainConfig
from dctransformer.training.setup import Steps, freeze_structure
from measure import machine

FIELDS = ("use", "occupancy", "value")


class OnePass(Texture):
    """All places at once: the second colour sees neither the occupancy nor the values of the first."""

    def _look_around(self, channels: Channels, around: Around, where: Tensor, grid: Grid) -> Tensor:
        seen = {"values": torch.where(channels.opened, 0.0, channels.values)}
        if around is self.occupancy_around:
            seen |= {"settled": channels.settled & ~channels.opened, "occupied": channels.occupied & ~channels.opened}
        return super()._look_around(dataclasses.replace(channels, **seen), around, where, grid)


class ValuesWithoutOccupancy(Texture):
    """Values see which other values are known, but not the occupancy of the whole channel."""

    def _look_around(self, channels: Channels, around: Around, where: Tensor, grid: Grid) -> Tensor:
        if around is self.value_around:
            channels = dataclasses.replace(channels, occupied=channels.values != 0)
        return super()._look_around(channels, around, where, grid)


class LinearHeads(Texture):
    """Occupancy and values are linear in the features of a place and the convolutions of what is settled around it."""

    def __init__(self, config: Architecture, num_labels: int, limits: Tensor):
        super().__init__(config, num_labels, limits)
        self.occupancy_mlp, self.value_mlp = nn.Identity(), nn.Identity()


@dataclasses.dataclass(frozen=True)
class Variant:
    """A class of the network and settings of the model that differ from the preset."""

    network: Callable[[Architecture, int, Tensor], Texture] = Texture
    model: dict[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS = {
    "as it is": Variant(),
    "one pass": Variant(OnePass),
    "values without occupancy": Variant(ValuesWithoutOccupancy),
    "linear heads": Variant(LinearHeads),
    "no block": Variant(model={"texture_blocks": 0}),
    "one block": Variant(model={"texture_blocks": 1}),
    "three blocks": Variant(model={"texture_blocks": 3}),
    "width 64": Variant(model={"texture_width": 64, "texture_hidden": 128}),
    "width 128": Variant(model={"texture_width": 128, "texture_hidden": 256}),
}  # fmt: skip


def network(shape: ModelConfig, variant: Variant) -> DCTransformer:
    """Create a model of which only the texture is trained."""
    model = DCTransformer(dataclasses.replace(shape, **variant.model))
    model.texture = variant.network(model.config, model.config.num_labels, model.limits)
    model.texture.initialise()
    freeze_structure(model)
    return model


@torch.inference_mode()
def score(model: DCTransformer, held_out: TripleStore, num: int) -> dict[str, float]:
    """Return mean bytes of texture per held-out picture, in all and by field."""
    first, nats = model.config.texture_rank, torch.zeros(len(FIELDS))
    for i in range(num):
        label = int(held_out.labels[i])
        label = label if 0 <= label < model.config.num_labels else model.config.null_label
        sequence = Sequence.from_triples(held_out.triples(i), held_out.grid(i), label).structure(first)
        used = channels_in_use(sequence, first)
        batch = texture_batch([sequence], [used], [torch.ones(len(used))])
        nats += model.texture(batch).sum((0, 1))
    per_picture = nats / num / 8 / torch.log(torch.tensor(2.0))
    return {"bytes": float(per_picture.sum()), **dict(zip(FIELDS, per_picture.tolist(), strict=True))}


def measure(name: str, seed: int, store: TripleStore, held_out: TripleStore, args: argparse.Namespace) -> dict:
    """Train and score one variant."""
    shape = dataclasses.replace(
        preset(args.preset), quality=store.info.quality, size=store.info.side,
        num_labels=len(store.info.labels), label_names=tuple(store.info.labels),
    )  # fmt: skip
    base = dataclasses.replace(
        base_config(seed=seed), optimizer=TrainConfig().optimizer, structure=False, batch=args.batch
    )
    stage = Stage("model", lambda: network(shape, VARIANTS[name]), lambda c: Steps(store, shape, c), lambda _: 0.0,
                  args.batch, 1.0)  # fmt: skip
    folder = args.out / f"{name.replace(' ', '-')}-{args.minutes:g}min-{seed}"
    rate = RATES[base.resolved(sharded=False).optimizer]
    trained = fit(stage, args.minutes, rate, base, folder, step_seconds(stage, base, "processor"), "processor")
    model = trained.network
    assert isinstance(model, DCTransformer)
    remove_checkpoints(folder)
    weights = sum(p.numel() for p in model.texture.parameters())
    return {"steps": trained.facts["steps"], "parameters": weights, **score(model, held_out, args.scored)}


def main() -> None:
    """Measure all variants and print a table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor time per variant and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=16, help="pictures per step")
    parser.add_argument("--scored", type=int, default=96, help="held-out pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)  # processor time adds up over threads
    store, held_out = (TripleStore.open(args.data, part, progress=False) for part in ("train", "validation"))
    rows: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for name in args.only:
            path = args.out / f"{name.replace(' ', '-')}-{args.minutes:g}min-{seed}" / "row.json"
            if not path.is_file():
                write_text(path, json.dumps(measure(name, seed, store, held_out, args)))
            rows.setdefault(name, []).append(json.loads(path.read_text()))
            print(f"{name}, seed {seed}: {rows[name][-1]}", flush=True)
    mean = {n: {k: statistics.fmean(row[k] for row in all_) for k in all_[0]} for n, all_ in rows.items()}
    print("| variant | parameters | steps | bytes of texture | use | occupancy | values |\n" + "|---" * 7 + "|")
    for name, row in mean.items():
        figures = [f"{row[key]:.1f}" for key in ("bytes", *FIELDS)]
        print(f"| {name} | {row['parameters'] / 1e6:.2f}M | {row['steps']:.0f} | {' | '.join(figures)} |")
    print(json.dumps({"benchmark": "texture_heads", "minutes": args.minutes, "seeds": args.seeds, "variants": mean,
                      **machine(torch.device("cpu"))}))  # fmt: skip


if __name__ == "__main__":
    main()
