"""Ablations: train variants of a preset at equal compute and compare their bytes per image.

Groups of variants (``--groups``), each compared with the unchanged preset:

* ``blocks``: the paper's blocks (learned index, ReLU, ReZero; also in the PAR layout) instead of the modern ones;
* ``depth``: more decoder layers, four or five of them split between channel, position and value in several ways; fewer
  encoder layers; narrower feed-forward layers;
* ``parts``: no local context (and therefore softmax heads); a coarser encoder memory;
* ``chunks``: chunk length, overlap, chunk starts sampled early in the sequence;
* ``optimizer``: AdamW and Muon, with four learning rates each.

First, the training step of each variant is timed, alternating with that of the preset. The preset is then trained on
``--triples`` triples, and a variant whose triples cost r times as much on a fraction 1/r of them. Compute is thus equal
by measurement, and the results do not depend on the load of the machine during training.

Every variant starts from the same seed, reads the pictures in the same order and is scored in exact bytes per image on
the same validation pictures. A variant within 1 % of the preset needs a second seed: ``--seeds 0 1``. Finished runs are
not repeated, so the table can grow over several calls; diverged runs are listed as such.

Writes FOLDER/GROUP/NAME-SEED (run folders), FOLDER/costs.json and FOLDER/ablations.md. The last line is JSON.

Example: python benchmarks/ablations.py data --out ablations --triples 800000 --groups blocks parts --jobs 2
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from dctransformer.data.store import TripleStore
from dctransformer.files import write_text
from dctransformer.hub.model import DCTransformer
from dctransformer.model.config import ModelConfig, preset
from dctransformer.sequence.chunks import ChunkBatch
from dctransformer.sequence.conditions import Conditions
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train
from dctransformer.training.setup import Steps, new_model
from dctransformer.training.trainer import Trainer

BASE = "as it is"
WARMUP_STEPS, TIMED_STEPS = 2, 10
"""Steps before the clock starts, and steps that are timed."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings of the model and of training that differ from the preset."""

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)


def depths(channel: int, position: int, value: int) -> Variant:
    """A variant with the given number of layers in each decoder."""
    return Variant({"channel": (1,) * channel, "position": (1,) * position, "value": (1,) * value})


GROUPS: dict[str, dict[str, Variant]] = {
    "blocks": {
        "paper's blocks": Variant({"block": "paper"}),
        "paper's blocks, PAR": Variant({"block": "paper", "encoder": (2, 1), "position": (3,), "value": (3,)}),
        "modern blocks, PAR": Variant({"encoder": (2, 1), "position": (3,), "value": (3,)}),
        "paper's blocks, Muon twice": Variant({"block": "paper"}, {"optimizer": "muon", "lr": 2.0}),
    },
    "depth": {
        "2 + 1 + 1": depths(2, 1, 1),
        "1 + 2 + 1": depths(1, 2, 1),
        "1 + 1 + 2": depths(1, 1, 2),
        "1 + 1 + 3": depths(1, 1, 3),
        "1 + 3 + 1": depths(1, 3, 1),
        "2 + 1 + 2": depths(2, 1, 2),
        "1 + 2 + 2": depths(1, 2, 2),
        "2 + 3 + 3": depths(2, 3, 3),
        "encoder of 1": Variant({"encoder": (1,)}),
        "feed-forward of 320": Variant({"hidden": 320}),
    },
    "parts": {
        "no local context": Variant({"local_context": False}),
        "memory of 4 squares": Variant({"memory": 4}),
    },
    "chunks": {
        "chunk 256": Variant({"chunk": 256}, {"batch": 8}),
        "chunk 512": Variant({"chunk": 512}, {"batch": 4}),
        "chunk 896": Variant({"chunk": 896}, {"batch": 2}),
        "chunk 256, overlap 128": Variant({"chunk": 256, "overlap": 128}, {"batch": 16}),
        "early starts": Variant({}, {"starts": "early"}),
    },
    "optimizer": {
        "AdamW, half the rate": Variant({}, {"lr": 0.5}),
        "AdamW, twice the rate": Variant({}, {"lr": 2.0}),
        "AdamW, four times the rate": Variant({}, {"lr": 4.0}),
        "Muon, half the rate": Variant({}, {"optimizer": "muon", "lr": 0.5}),
        "Muon": Variant({}, {"optimizer": "muon", "lr": 1.0}),
        "Muon, twice the rate": Variant({}, {"optimizer": "muon", "lr": 2.0}),
        "Muon, four times the rate": Variant({}, {"optimizer": "muon", "lr": 4.0}),
    },
}
"""All variants by group and name. ``lr`` is a multiple of ``--lr``; longer chunks come in smaller batches, so that the
number of triples per step stays the same."""


@dataclasses.dataclass
class Args:
    """Settings of the ablations."""

    data: tyro.conf.Positional[Path]
    """Prepared data set."""
    out: Path
    """Output folder for the runs and the table."""
    triples: int = 800_000
    """Number of triples that the preset is trained on; variants are trained on as many as cost the same."""
    preset: str = "small"
    """Name of the preset to vary."""
    groups: Annotated[tuple[str, ...], tyro.conf.arg(metavar="GROUP")] = tuple(GROUPS)
    """Groups of variants to compare."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="VARIANT")] = ()
    """Names of variants of these groups; all by default."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each variant."""
    lr: float = 2.5e-3
    """Peak learning rate of the preset, which uses AdamW."""
    batch: int = 16
    """Chunks per step, for chunks of the preset's length."""
    precision: str = "auto"
    """fp32, bf16 or auto, which is the faster one."""
    jobs: int = 1
    """Number of parallel runs, each with `threads` threads, or all on one GPU."""
    threads: int = 1
    """Number of threads per run."""
    device: str = "auto"
    """cpu, cuda, …"""


def variant_of(group: str, name: str) -> Variant:
    """Look up a variant by group and name."""
    return Variant() if name == BASE else GROUPS[group][name]


def configs(args: Args, variant: Variant, seed: int = 0, triples: int = 1) -> tuple[ModelConfig, TrainConfig]:
    """Settings of the model and of training for one run."""
    model = preset(args.preset, **variant.model)
    changes = {"batch": args.batch, "optimizer": "adamw", **variant.train, "lr": args.lr * variant.train.get("lr", 1.0)}
    if args.batch != 16 and "batch" in variant.train:
        changes["batch"] = max(1, variant.train["batch"] * args.batch // 16)
    return model, TrainConfig(
        triples=triples, seed=seed, sample_every=0, eval_every=1 << 60, eval_images=16, checkpoint_every=60.0,
        conditions=Conditions(none=1, low=0, luma=0, region=0), precision=args.precision,  # pyright: ignore
        device=args.device, **changes,
    )  # fmt: skip


def cost(args: Args, variant: Variant) -> float:
    """Training time per triple of a variant relative to the preset: the median over alternating steps."""
    torch.set_num_threads(args.threads)
    store = TripleStore.open(args.data, "train", progress=False)
    info = store.info

    def prepared(variant: Variant) -> tuple[Trainer, list[ChunkBatch]]:
        model, config = configs(args, variant)
        names = tuple(info.labels)
        model = dataclasses.replace(
            model, quality=info.quality, size=info.size, num_labels=len(names), label_names=names
        )
        steps = Steps(store, model, config)
        return Trainer(new_model(model, config.seed), config), [steps[i] for i in range(WARMUP_STEPS + TIMED_STEPS)]

    def seconds(trainer: Trainer, batch: ChunkBatch) -> float:
        start = time.perf_counter()
        trainer.step(batch)
        return (time.perf_counter() - start) / int(batch.predicted.sum())

    changed, base = prepared(variant), prepared(Variant())
    ratios = []
    for i in range(WARMUP_STEPS + TIMED_STEPS):
        pairs = [(changed[0], changed[1][i]), (base[0], base[1][i])]
        times = {id(trainer): seconds(trainer, batch) for trainer, batch in (pairs if i % 2 else pairs[::-1])}
        ratios.append(times[id(changed[0])] / times[id(base[0])])
    return statistics.median(ratios[WARMUP_STEPS:])


def costs(args: Args, variants: list[tuple[str, str]]) -> dict[str, float]:
    """The `cost` of each variant by name, measured or read from an earlier call."""
    path = args.out / "costs.json"
    cost_by_name: dict[str, float] = json.loads(path.read_text()) if path.exists() else {BASE: 1.0}
    args.out.mkdir(parents=True, exist_ok=True)
    for group, name in variants:
        if name not in cost_by_name:
            cost_by_name[name] = round(cost(args, variant_of(group, name)), 4)
            print(f"{group}: {name} costs {cost_by_name[name]:.3f} times as much per triple as the preset", flush=True)
            write_text(path, json.dumps(cost_by_name, indent=2) + "\n")
    return cost_by_name


def run(args: Args, group: str, name: str, seed: int, cost: float) -> dict[str, Any]:
    """Train and score one variant, or read the result of an earlier call."""
    folder = args.out / group / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
    finished = folder / "result.json"
    if finished.exists():
        return json.loads(finished.read_text())
    torch.set_num_threads(args.threads)
    model, config = configs(args, variant_of(group, name), seed, round(args.triples / cost))
    result: dict[str, Any] = {"group": group, "name": name, "seed": seed, "cost": cost}
    start = time.perf_counter()
    try:
        metrics = train(args.data, folder, model, config, progress=False)
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        result |= {"bytes_per_image": None, "error": str(error)}
    else:
        parameters = sum(p.numel() for p in DCTransformer.from_pretrained(folder).parameters())
        fields = ("bytes_per_image", "channel", "position", "value", "step", "triples")
        result |= {**{field: metrics[field] for field in fields}, "parameters": parameters}
    result["seconds"] = round(time.perf_counter() - start, 1)
    write_text(finished, json.dumps(result) + "\n")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Format the results as Markdown: one row per variant, averaged over its seeds and compared with the preset."""
    lines = [
        "| group | variant | parameters | cost of a triple | triples seen | channel | position | value "
        "| bytes per image | relative to the preset |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = {r["seed"]: r["bytes_per_image"] for r in results if r["name"] == BASE}
    for key in dict.fromkeys((r["group"], r["name"]) for r in results):
        rows = [r for r in results if (r["group"], r["name"]) == key]
        if any(r["bytes_per_image"] is None for r in rows):
            lines.append(f"| {key[0]} | {key[1]} | | {rows[0]['cost']:.2f} | | | | | diverged | |")
            continue
        mean = {f: statistics.fmean(r[f] for r in rows) for f in ("channel", "position", "value", "triples")}
        scores = [r["bytes_per_image"] for r in rows]
        against = statistics.fmean(r["bytes_per_image"] / base[r["seed"]] - 1 for r in rows if base.get(r["seed"]))
        each = f" ({', '.join(f'{s:.1f}' for s in scores)})" if len(scores) > 1 else ""
        lines.append(
            f"| {key[0]} | {key[1]} | {rows[0]['parameters'] / 1e6:.2f}M | {rows[0]['cost']:.2f} "
            f"| {mean['triples'] / 1e6:.2f}M "
            f"| {mean['channel']:.3f} | {mean['position']:.3f} | {mean['value']:.3f} "
            f"| {statistics.fmean(scores):.1f}{each} | {against:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    """Run the missing variants and write the table."""
    for group in args.groups:
        if group not in GROUPS:
            raise SystemExit(f"there is no group {group!r}; choose among {', '.join(GROUPS)}")
    named = [(group, name) for group in args.groups for name in GROUPS[group]]
    for name in args.only:
        if name not in [variant for _, variant in named]:
            raise SystemExit(f"there is no variant {name!r} in {', '.join(args.groups)}")
    selected = [("preset", BASE)] + [pair for pair in named if not args.only or pair[1] in args.only]
    cost_of = costs(args, selected)
    items = [(group, name, seed, cost_of[name]) for seed in args.seeds for group, name in selected]
    results = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        for future in [pool.submit(run, args, *item) for item in items]:
            results.append(future.result())
            result = results[-1]
            print(
                f"{result['group']}: {result['name']}, seed {result['seed']}: {result['bytes_per_image']}", flush=True
            )
    text = table(results)
    write_text(args.out / "ablations.md", text)
    print(text)
    scored = [r for r in results if r["bytes_per_image"] is not None]
    best = min(scored, key=lambda r: r["bytes_per_image"])
    base = statistics.fmean(r["bytes_per_image"] for r in scored if r["name"] == BASE)
    print(json.dumps({
        "benchmark": "ablations", "ratio": round(base / best["bytes_per_image"], 4), "goal": 1.0,
        "preset_bytes_per_image": round(base, 2), "best": best["name"], "best_bytes_per_image": best["bytes_per_image"],
        "triples": args.triples, "runs": len(results), "threads": args.threads, "jobs": args.jobs,
    }))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
