"""DCTransformer compared with Image GPT and VQ-VAE: same data, loop, optimiser, parameters, minutes and metrics.

    python benchmarks/compare.py DATA --out FOLDER [--minutes 8] [--num 350] [--threads N]

Every system is trained for ``--minutes`` on this machine, after each of three learning rates was tried for
``--tune-minutes`` and the best by held-out loss was taken; then all generate ``--num`` pictures of the same classes,
which are scored by the same features against the data set's training pictures. See docs/baselines.md.

A system's weights are written to FOLDER when they are trained, its pictures as they are made, its row when it is
finished; the same command again goes on from there, also with another ``--num`` or ``--features``. At the end stand a
table (``table.md``), a sheet (``sheet.png``) and one line of JSON: ``ratio`` is the Fréchet distance of the best
baseline over DCTransformer's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from baselines.loop import CLOCKS, base_config, fit, parameters, step_seconds, tune
from baselines.pictures import psnr
from baselines.systems import Data, DCTransformerSystem, System, systems
from dctransformer.evaluate.cache import FeatureSet, cached, extract
from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.evaluate.evaluation import require_enough
from dctransformer.evaluate.features import Extractor, open_extractor
from dctransformer.evaluate.metrics import frechet_distance, precision_recall
from dctransformer.evaluate.pictures import Pictures, open_reference
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
    minutes: float = 8.0
    """Minutes each system is trained."""
    tune_minutes: float | None = None
    """Minutes of training with each of the three learning rates; a sixth of --minutes if not given."""
    num: int = 350
    """Pictures each system generates."""
    preset: str = "small"
    """DCTransformer's shape, whose parameters the others match."""
    sides: tuple[int, ...] = (32, 64)
    """Image GPT's sides in pixels, a row each."""
    batch: int = 32
    """Pictures generated at a time, for all."""
    scored: int = 16
    """Held-out pictures that losses and bits are taken of."""
    features: str = "small64"
    """The extractor: small64, inception, or a TorchScript or .onnx file."""
    few: bool = False
    """Allow Fréchet distances from no more pictures than there are features. They are then far too large."""
    originals: Path | None = None
    """Folder that the data set was prepared from, if it is no longer where it was."""
    cache: Path | None = None
    """Where features of the real pictures are kept; the user's cache folder if not given."""
    seed: int = 0
    """Of weights, order, noise and palettes."""
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
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("out", "cache", "threads", "sides")}
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}


class Judge:
    """Scores pictures against the training pictures, which is what all systems learnt from."""

    def __init__(self, args: Args, data: Data):
        """Find out beforehand whether there are enough pictures.

        Raises:
            ValueError: there are too few, or the extractor or the originals can't be had.
        """
        self.extractor: Extractor = open_extractor(args.features, resolve_device(args.device))
        features, _ = self.extractor(data.train.pixels[:1])
        config = EvaluateConfig(few=args.few)
        for metric in ("fid", "precision"):
            require_enough(self.extractor, metric, (features.shape[1], None), args.num, len(data.train), config)
        self.enough = len(data.held_out) > (2 if args.few else features.shape[1])
        """Whether the held-out pictures suffice for a distance of their own."""
        self.held_out = _pictures("held-out pictures", data.held_out.pixels)
        self.real = cached(self.extractor, _pictures("training pictures", data.train.pixels), args.cache)
        shape = preset(args.preset, quality=data.train.info.quality, size=data.train.info.size)
        reference = open_reference(data.folder, shape, split="validation", originals=args.originals)
        self.originals = reference.originals
        self.floor_against = "the originals" if self.originals is not None else "the decoded JPEG files"
        self.floor: FeatureSet | None = None

    def scores(self, pictures: Tensor) -> dict[str, Any]:
        """Fréchet distance, precision and recall of uint8 ``[n, S, S, 3]``."""
        found = extract(self.extractor, _pictures("generated", pictures))
        precision, recall = precision_recall(self.real.features, found.features)
        return {"frechet": frechet_distance(self.real.moments, found.moments), "precision": precision, "recall": recall}

    def floors(self, pictures: Tensor) -> dict[str, Any]:
        """How far held-out pictures are from themselves when a representation has held them.

        They are compared with the originals, from before the codec, if they are at hand.
        """
        true = self.held_out if self.originals is None else self.originals
        error = psnr(pictures, true.read(0, len(pictures)))
        distance = None
        if self.enough:
            self.floor = self.floor or extract(self.extractor, true)
            held = extract(self.extractor, _pictures("reconstructed", pictures))
            distance = frechet_distance(self.floor.moments, held.moments)
        return {"floor_psnr": error if math.isfinite(error) else None, "floor_frechet": distance}


def _pictures(name: str, pixels: Tensor) -> Pictures:
    return Pictures(name, len(pixels), lambda a, b: pixels[a:b])


def learn(system: System, args: Args, folder: Path) -> dict[str, Any]:
    """Tune and train a system, or take up what was trained before; returns the facts by stage."""
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
        rate, losses = tune(stage, stage.share * short, base, folder / "tuning" / stage.name, pace, args.clock)
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


def row_of(system: System, args: Args, judge: Judge, labels: list[int], folder: Path) -> dict[str, Any]:
    """Train, sample and score a system; returns its row."""
    stages = learn(system, args, folder)
    made, each = generate(system, args, labels, folder)
    bits, size = system.bits(), made.shape[1]
    return {
        "system": system.name,
        "parameters": sum(stage["parameters"] for stage in stages.values()),
        "stages": stages,
        "tokens": system.tokens,
        **each,
        **judge.scores(made),
        **judge.floors(system.reconstructed()),
        "bits_per_image": bits,
        "bits_per_pixel": bits / size**2,
        "settings": args.settings(),
        **machine(resolve_device(args.device)),
    }


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# The table and the sheet ----------------------------------------------------------------------------------------------

COLUMNS = (
    "system", "parameters", "learning rate", "training images/s", "tokens per image", "s a sample", "Fréchet distance",
    "precision", "recall", "floor: PSNR", "floor: distance", "bits/px",
)  # fmt: skip


def table(rows: list[dict[str, Any]], held_out: dict[str, Any] | None) -> str:
    """Markdown."""

    def of_stages(row: dict[str, Any], field: str) -> str:
        return " + ".join(f"{stage[field]:.3g}" for stage in row["stages"].values())

    def figure(value: float | None, digits: str, nothing: str = "–") -> str:
        return nothing if value is None else f"{value:{digits}}"

    lines = [
        [
            row["system"], f"{row['parameters'] / 1e6:.2f}M",
            of_stages(row, "learning_rate"), of_stages(row, "images_per_second"), f"{row['tokens']:,.0f}",
            f"{row['seconds_a_sample']:.2f}", f"{row['frechet']:.2f}",
            f"{row['precision']:.3f}", f"{row['recall']:.3f}",
            figure(row["floor_psnr"], ".2f", "exact"), figure(row["floor_frechet"], ".2f"),
            f"{row['bits_per_pixel']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    if held_out is not None:
        scores = [f"{held_out['frechet']:.2f}", f"{held_out['precision']:.3f}", f"{held_out['recall']:.3f}"]
        lines.append(["held-out photographs", *["–"] * 5, *scores, *["–"] * 3])
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def sheet(rows: list[dict[str, Any]], folder: Path) -> None:
    """A row of samples of each system, of the same classes."""
    shown = [_samples(folder / _slug(row["system"]))[:SHOWN] for row in rows]
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
    SampleConfig(args.seed, batch=args.batch)  # refuses a seed that can't be one
    data = Data.open(args.data, args.scored)
    judge = Judge(args, data)
    out = make_folder(args.out)
    labels = [int(data.train.labels[i % len(data.train)]) for i in range(args.num)]
    rows: list[dict[str, Any]] = []
    for system in systems(preset(args.preset), data, args.sides, args.seed):
        folder = out / _slug(system.name)
        row = kept(folder / ROW, args, SAMPLING)
        if row is None or row["settings"] != args.settings():
            row = row_of(system, args, judge, labels, folder)
            write_text(folder / ROW, json.dumps(row, indent=2, ensure_ascii=False) + "\n")
        rows.append(row)
        _tell(table([row], None).splitlines()[-1])
    photographs = None
    if judge.enough:
        some = data.held_out.pixels[: args.num]
        photographs = {"pictures": len(some), **judge.scores(some)}
    text = table(rows, photographs)
    write_text(out / "table.md", text)
    sheet(rows, out)
    print(text)
    best = min(row["frechet"] for row in rows[1:])
    return {
        "benchmark": "compare",
        "ratio": round(best / rows[0]["frechet"], 3),
        "goal": 1.0,
        "frechet": {row["system"]: round(row["frechet"], 3) for row in rows},
        "features": judge.extractor.name,
        "seconds_a_sample": {row["system"]: round(row["seconds_a_sample"], 3) for row in rows},
        "parameters": {row["system"]: row["parameters"] for row in rows},
        "held_out_photographs": photographs,
        "floor_against": judge.floor_against,
        **{
            k: v
            for k, v in args.settings().items()
            if k in ("data", "minutes", "clock", "num", "batch", "seed", "preset")
        },
        "tune_minutes": args.minutes / 6 if args.tune_minutes is None else args.tune_minutes,
        **{k: rows[0][k] for k in ("machine", "torch", "commit")},
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
