"""DCTransformer compared with Image GPT and VQ-VAE: same data, loop, optimiser, parameters, minutes and metrics.

    python benchmarks/compare.py DATA --out FOLDER [--minutes 30] [--seeds 0 1 2] [--num 1000] [--threads N]

Every system is trained for ``--minutes`` with each seed on this machine, after each of three learning rates was tried
for ``--tune-minutes`` (with the first seed) and the best by held-out loss was taken; then all generate ``--num``
pictures of the same classes. They are scored against the data set's training pictures, before the codec (the originals,
which the baselines learn from) and after it (which DCTransformer learns from): by features, and by the classifier
two-sample test, which needs no features. See docs/baselines.md.

A system's weights are written to FOLDER when they are trained, its pictures as they are made, its row when it is
finished; the same command again goes on from there, also with another ``--num`` or ``--features``. At the end stand
tables (``table.md``), a sheet (``sheet.png``) and one line of JSON: ``ratio`` is the Fréchet distance to the originals
of the best baseline over DCTransformer's, the means over the seeds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from baselines.judge import Judge
from baselines.loop import CLOCKS, base_config, fit, parameters, step_seconds, tune
from baselines.systems import Data, DCTransformerSystem, System, systems
from dctransformer.files import atomic_write, make_folder, write_tensors, write_text
from dctransformer.model.config import preset
from dctransformer.model.precision import resolve_device, resolve_precision
from dctransformer.sampling.config import SampleConfig
from dctransformer.sheets import contact_sheet
from measure import machine

TRAINED, SAMPLES, ROW = "trained.json", "samples.safetensors", "row.json"
"""Files of a system's folder, next to its weights and curves."""

TRAINING = ("data", "minutes", "tune_minutes", "preset", "scored", "seed", "device", "precision", "clock")
"""Settings that decide on the weights."""

SAMPLING = (*TRAINING, "batch")
"""Settings that decide on the pictures and their cost."""

SHOWN = 7
"""Pictures of each system on the sheet."""


@dataclasses.dataclass
class Args:
    """What to compare, and for how long."""

    data: tyro.conf.Positional[Path]
    """Prepared data set."""
    out: Path
    """Folder for rows, weights, table and sheet."""
    minutes: float = 30.0
    """Minutes each system is trained, with each seed."""
    tune_minutes: float | None = None
    """Minutes of training with each of the three learning rates; a sixth of --minutes if not given."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order, noise and palettes: each system is trained with each."""
    num: int = 1000
    """Pictures each system generates, with each seed."""
    preset: str = "small"
    """DCTransformer's shape, whose parameters the others match."""
    sides: tuple[int, ...] = (32, 64)
    """Image GPT's sides in pixels, a row each: the first with every seed, the others with the first seed alone."""
    batch: int = 32
    """Pictures generated at a time, for all."""
    scored: int = 16
    """Held-out pictures that losses and bits are taken of."""
    features: str = "small64-imagenette"
    """The extractor, see `dctransformer evaluate`. This one has seen no flowers; small64 has seen no cats."""
    few: bool = False
    """Allow Fréchet distances from no more pictures than there are features. They are then far too large."""
    originals: Path | None = None
    """Folder that the data set was prepared from, if it is no longer where it was."""
    cache: Path | None = None
    """Where features of the real pictures are kept; the user's cache folder if not given."""
    c2st: bool = True
    """Make the classifier two-sample test, too (a minute of one core for each row of 1,000 pictures)."""
    seed: tyro.conf.Suppress[int] = 0
    """The seed under way."""
    device: str = "auto"
    """cpu, cuda, …"""
    precision: str = "auto"
    """Arithmetic of training: auto, fp32 or bf16. (Sampling is fp32 on a CPU, bf16 on a GPU.)"""
    threads: int | None = None
    """Threads; PyTorch's default if not given."""
    clock: Literal["wall", "processor"] = "wall"
    """What minutes and seconds are counted by: the wall's clock, or, on a machine shared with other jobs, the processor
    time of this process (one thread on a CPU)."""

    def settings(self) -> dict[str, Any]:
        """What rows of one table must have in common."""
        fields = {
            k: v for k, v in dataclasses.asdict(self).items() if k not in ("out", "cache", "threads", "sides", "seeds")
        }
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}


def learn(system: System, args: Args, folder: Path, rates: dict[str, Any]) -> dict[str, Any]:
    """Tune and train a system, or load what was trained before.

    Args:
        system: to train.
        args: settings.
        folder: of the system, for this seed.
        rates: facts by stage of an earlier seed, whose learning rates are taken; empty to try all.

    Returns:
        Facts by stage.
    """
    known = kept(folder / TRAINED, args, TRAINING)
    if known is not None:
        system.load(folder)
        return known["stages"]
    # Decided once: where auto times products, it must not decide differently for different systems.
    precision = resolve_precision(args.precision, resolve_device(args.device))
    base = base_config(seed=args.seed, device=args.device, precision=precision)
    short = args.minutes / 6 if args.tune_minutes is None else args.tune_minutes
    facts: dict[str, Any] = {}
    for stage in system.stages():
        pace = step_seconds(stage, base, args.clock)
        rate, losses = (
            tune(stage, stage.share * short, base, folder / "tuning" / stage.name, pace, args.clock)
            if stage.name not in rates
            else (rates[stage.name]["learning_rate"], {})
        )
        _tell(f"{system.name}, {stage.name}: {pace:.2f} s a step; held-out loss by rate {losses}")
        trained = fit(stage, stage.share * args.minutes, rate, base, folder / stage.name, pace, args.clock)
        system.networks[stage.name] = trained.network
        facts[stage.name] = {
            **trained.facts, "parameters": parameters(trained.network),
            "tuning": {rate: loss if math.isfinite(loss) else None for rate, loss in losses.items()},
            "held_out_loss": stage.loss(trained.network),
        }  # fmt: skip
        _tell(f"{system.name}, {stage.name}: {facts[stage.name]}")
    system.save(folder)
    write_text(folder / TRAINED, json.dumps({"settings": args.settings(), "stages": facts}, indent=2) + "\n")
    return facts


def generate(system: System, args: Args, labels: list[int], folder: Path) -> tuple[Tensor, dict[str, float]]:
    """Pictures, a batch after the other, and the seconds they took; those that are there already are taken up.

    DCTransformer makes all at once, as its engine gives the places of finished pictures to waiting ones.
    """
    path, config = folder / SAMPLES, SampleConfig(args.seed, batch=args.batch, graphs=False)
    made = torch.zeros(0, *system.data.train.pixels.shape[1:], dtype=torch.uint8)
    facts: dict[str, Any] = {"settings": args.settings(), "clock": 0.0, "wall": 0.0}
    if path.exists():
        facts = kept(folder / "samples.json", args, SAMPLING) or facts
        made = _samples(folder)
    part = args.num if isinstance(system, DCTransformerSystem) else args.batch
    now = CLOCKS[args.clock]
    while len(made) < args.num:
        numbers = slice(len(made), min(len(made) + part, args.num))
        start, wall = now(), time.perf_counter()
        made = torch.cat([made, system.draw(labels[numbers], config, len(made))])
        facts["clock"] += now() - start
        facts["wall"] += time.perf_counter() - wall
        write_text(folder / "samples.json", json.dumps(facts) + "\n")
        write_tensors(path, {"pictures": made}, {})
        _tell(f"{system.name}: {len(made)} pictures in {facts['clock']:.0f} s")
    each = {"seconds_a_sample": facts["clock"] / len(made), "wall_seconds_a_sample": facts["wall"] / len(made)}
    return made[: args.num], each


def row_of(
    system: System, args: Args, judge: Judge, labels: list[int], folder: Path, rates: dict[str, Any]
) -> dict[str, Any]:
    """Train, sample and score a system with one seed; returns its row."""
    stages = learn(system, args, folder, rates)
    made, each = generate(system, args, labels, folder)
    bits, size = system.bits(), made.shape[1]
    is_decoded = isinstance(system, DCTransformerSystem)
    return {
        "system": system.name,
        "parameters": sum(stage["parameters"] for stage in stages.values()),
        "stages": stages,
        "tokens": system.tokens,
        **each,
        "scores": judge.scores(made),
        "c2st": judge.recognised(made, is_decoded) if args.c2st else None,
        **judge.floors(system.reconstructed()),
        "bits_per_image": bits,
        "bits_per_pixel": bits / size**2,
        "settings": args.settings(),
        **machine(resolve_device(args.device)),
    }


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# The table and the sheet ----------------------------------------------------------------------------------------------

SCORES = (("recall", ".3f"), ("precision", ".3f"), ("frechet", ".2f"), ("kernel", ".4f"))
"""Scores of the first table and their digits, recall first: precision alone rewards a few good pictures."""


def figures(values: list[float | None], digits: str, nothing: str = "–") -> str:
    """A mean and, over several seeds, the standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return nothing
    spread = f" ± {statistics.stdev(known):{digits}}" if len(known) > 1 else ""
    return f"{statistics.mean(known):{digits}}{spread}"


def tables(rows: list[list[dict[str, Any]]], extra: dict[str, Any]) -> str:
    """Scores and costs as Markdown.

    Args:
        rows: of each system, one for each seed.
        extra: ``held_out`` (scores of held-out photographs, or None) and ``real_from_real`` (two-sample test, or None).
    """

    def recognised(found: list[dict[str, Any] | None], view: str) -> str:
        return figures([None if one is None else one[view]["accuracy"] for one in found], ".3f")

    views = ("dc, 1-3", "pixels")
    head = ["system"]
    for against in ("originals", "round trip"):
        head += [f"{name.replace('frechet', 'Fréchet')}, {against}" for name, _ in SCORES]
    head += [f"recognised by {view}" for view in views] + ["floor: PSNR", "floor: Fréchet"]
    lines = [head, ["---"] * len(head)]
    for seeds in rows:
        cells = [seeds[0]["system"]]
        for against in ("originals", "round trip"):
            cells += [figures([row["scores"][against][name] for row in seeds], digits) for name, digits in SCORES]
        cells += [recognised([row["c2st"] for row in seeds], view) for view in views]
        cells.append(figures([row["floor_psnr"] for row in seeds], ".2f", "exact"))
        cells.append(figures([row["floor_frechet"] for row in seeds], ".2f"))
        lines.append(cells)
    if extra["held_out"] is not None:
        scores = [f"{extra['held_out'][a][n]:{d}}" for a in ("originals", "round trip") for n, d in SCORES]
        chance = [recognised([extra["real_from_real"]], view) for view in views]
        lines.append(["held-out photographs", *scores, *chance, "–", "–"])

    def of_stages(row: dict[str, Any], field: str) -> str:
        return " + ".join(f"{stage[field]:.3g}" for stage in row["stages"].values())

    costs = [
        ["system", "parameters", "learning rate", "training images/s", "tokens per image", "s per sample", "bits/px"]
    ]
    costs.append(["---"] * len(costs[0]))
    for seeds in rows:
        first = seeds[0]
        costs.append([
            first["system"], f"{first['parameters'] / 1e6:.2f}M", of_stages(first, "learning_rate"),
            of_stages(first, "images_per_second"), f"{first['tokens']:,.0f}",
            figures([row["seconds_a_sample"] for row in seeds], ".2f"),
            figures([row["bits_per_pixel"] for row in seeds], ".3f"),
        ])  # fmt: skip
    return "\n".join("".join("| " + " | ".join(line) + " |\n" for line in part) for part in (lines, costs))


def sheet(rows: list[dict[str, Any]], samples: Path, folder: Path) -> None:
    """A row of samples of each system, of the same classes, of one seed."""
    shown = [_samples(samples / _slug(row["system"]))[:SHOWN] for row in rows]
    captions = [
        row["system"] if i == 0 else "" for row, pictures in zip(rows, shown, strict=True) for i in range(len(pictures))
    ]
    with atomic_write(folder / "sheet.png") as temporary:
        contact_sheet(torch.cat(shown), columns=len(shown[0]), captions=captions).save(temporary, "PNG", optimize=True)


def _samples(folder: Path) -> Tensor:
    try:
        return load_file(folder / SAMPLES)["pictures"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder / SAMPLES} is damaged ({error}); delete it, and it is made anew") from error


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def kept(path: Path, args: Args, common: tuple[str, ...]) -> dict[str, Any] | None:
    """What an earlier run wrote; None if it did not come so far.

    Raises:
        ValueError: it is damaged, or of other settings among those that must be ``common``.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before = found["settings"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made anew") from error
    differ = [k for k, v in args.settings().items() if k in common and before.get(k) != v]
    if differ:
        raise ValueError(f"{path} was made with another {', '.join(differ)}; use its settings, or another --out")
    return found


def compare(args: Args) -> dict[str, Any]:
    """Make all rows that are not there yet, the table and the sheet; returns the last line.

    Raises:
        ValueError: an argument can't be what it is, data is missing or too little, or training fails.
    """
    for name in ("minutes", "num", "batch", "scored", "tune_minutes"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} {value} must be greater than 0, and finite")
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"threads {args.threads} must be at least 1")
        torch.set_num_threads(args.threads)
    if args.clock == "processor" and (torch.get_num_threads() > 1 or resolve_device(args.device).type != "cpu"):
        raise ValueError(
            "processor time is for one thread on a CPU; add --threads 1 --device cpu, or take --clock wall"
        )
    if not args.seeds or len(set(args.seeds)) < len(args.seeds):
        raise ValueError("seeds must be one or more different numbers")
    for seed in args.seeds:
        SampleConfig(seed, batch=args.batch)  # refuses a seed that can't be one
    data = Data.open(args.data, args.scored, args.originals)
    judge = Judge(data, args.features, args.num, few=args.few, device=args.device, cache=args.cache)
    out = make_folder(args.out)
    labels = [int(data.train.labels[i % len(data.train)]) for i in range(args.num)]
    rows: list[list[dict[str, Any]]] = []
    for seed in args.seeds:
        settings = dataclasses.replace(args, seed=seed)
        sides = args.sides if seed == args.seeds[0] else args.sides[:1]
        for number, system in enumerate(systems(preset(args.preset), data, sides, seed)):
            folder = out / f"seed-{seed}" / _slug(system.name)
            row = kept(folder / ROW, settings, SAMPLING)
            if row is None or row["settings"] != settings.settings():
                first = rows[number][0]["stages"] if number < len(rows) else {}
                row = row_of(system, settings, judge, labels, folder, first)
                write_text(folder / ROW, json.dumps(row, indent=2, ensure_ascii=False) + "\n")
            rows = [*rows, []] if number == len(rows) else rows
            rows[number].append(row)
            _tell(f"seed {seed}, {system.name}: {row['scores']}")
    extra: dict[str, Any] = {"held_out": None, "real_from_real": judge.real_from_real() if args.c2st else None}
    if judge.enough:
        extra["held_out"] = judge.scores(data.held_out.pixels[: args.num])
    text = tables(rows, extra)
    write_text(out / "table.md", text)
    sheet([seeds[0] for seeds in rows], out / f"seed-{args.seeds[0]}", out)
    print(text)
    frechet = {
        seeds[0]["system"]: statistics.mean(row["scores"]["originals"]["frechet"] for row in seeds) for seeds in rows
    }
    ours, *others = frechet.values()
    return {
        "benchmark": "compare",
        "ratio": round(min(others) / ours, 3),
        "goal": 1.0,
        "frechet": {name: round(value, 3) for name, value in frechet.items()},
        "features": judge.extractor.name,
        "scores": {seeds[0]["system"]: [row["scores"] for row in seeds] for seeds in rows},
        "parameters": {seeds[0]["system"]: seeds[0]["parameters"] for seeds in rows},
        "held_out_photographs": extra["held_out"],
        "seeds": list(args.seeds),
        **{k: v for k, v in args.settings().items() if k in ("data", "minutes", "clock", "num", "batch", "preset")},
        "tune_minutes": args.minutes / 6 if args.tune_minutes is None else args.tune_minutes,
        **{k: rows[0][0][k] for k in ("machine", "torch", "commit")},
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = tyro.cli(Args, description=__doc__, args=argv)
    try:
        print(json.dumps(compare(args), ensure_ascii=False))
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
