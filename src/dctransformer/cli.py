"""The command line: parse, call, print. What the commands do lives in the modules they name."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.model.config import PRESETS, Architecture, ModelConfig, preset
from dctransformer.train_config import TrainConfig


@dataclasses.dataclass
class Prepare:
    """Turn a folder of pictures into a data set: JPEG files of one size and quality in Parquet shards.

    Sub-folders are labels. Any picture that Pillow reads will do; what can't be read is skipped and listed in
    OUT/skipped.jsonl. An interrupted run goes on where it stopped.

    Example: dctransformer prepare ~/photos data --size 64 --quality 20
    """

    source: tyro.conf.Positional[str]
    """Image folder, Parquet file or folder, or a `datasets` id."""
    out: tyro.conf.Positional[Path]
    """Folder for the data set."""
    size: int = 64
    """Side of the square pictures in pixels, a multiple of 16."""
    quality: int = 20
    """JPEG quality, 1 to 100: higher means finer pictures and longer sequences."""
    val_fraction: float = 0.05
    """Part of the pictures kept for validation."""
    workers: int | None = None
    """Processes; all cores if not given."""

    def run(self) -> None:
        """Prepare."""
        from dctransformer.data import prepare

        info = prepare(
            self.source, self.out, size=self.size, quality=self.quality,
            val_fraction=self.val_fraction, workers=self.workers,
        )  # fmt: skip
        counts = ", ".join(f"{n:,} {split}" for split, n in info.splits.items())
        print(f"{self.out}: {counts}; {info.skipped} skipped; {len(info.labels)} labels")


@dataclasses.dataclass
class Train:
    """Train a model on a prepared data set. The same command again resumes the run.

    Example: dctransformer train --data data --run runs/flowers --preset small --triples 20000000
    """

    data: Path
    """Folder made by `dctransformer prepare`."""
    run_: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder: weights, settings, curves and samples go there."""
    preset: str = "small"
    """Shape of the model: tiny, small, base or paper."""
    model: Architecture = dataclasses.field(default_factory=Architecture)
    """Changes to the preset."""
    options: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)
    """Settings of the loop."""

    def run(self) -> None:
        """Train."""
        from dctransformer.train import train

        metrics = train(self.data, self.run_, ModelConfig(**dataclasses.asdict(self.model)), self.options)
        if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
            print(json.dumps(metrics))


@dataclasses.dataclass
class Sample:
    """Generate pictures: PNG and real JPEG files, a contact sheet, and a heat-map of the chosen places.

    Example: dctransformer sample flowers64 --num 16 --out samples --label "Sunflower"
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hub id, or shipped weights (flowers64)."""
    out: Path
    """Folder for the pictures."""
    num: int = 16
    """How many."""
    seed: int = 0
    """Picture i of a seed is always the same."""
    label: str | None = None
    """Name or number of the class; every picture gets a class of its own if not given."""
    temperature: float = 1.0
    """Below 1 is tamer, above 1 wilder, 0 takes the likeliest."""
    top_p: float = 1.0
    """Keep the likeliest outcomes that make up this probability."""
    guidance: float = 1.0
    """Above 1 follows the label more closely (twice the work)."""
    batch: int = 16
    """Pictures at a time."""
    device: str = "auto"
    """cpu, cuda, …"""
    json: bool = False
    """Print a JSON object instead of text."""

    def run(self) -> None:
        """Sample."""
        from dctransformer.tasks import generate, save_samples

        with tqdm(total=self.num, desc="sampling", unit="picture", disable=self.json) as bar:
            samples, names = generate(
                self.model, self.num, label=self.label, seed=self.seed, temperature=self.temperature,
                top_p=self.top_p, guidance=self.guidance, batch=self.batch, device=self.device,
                out=self.out, progress=_show(bar),
            )  # fmt: skip
        files = save_samples(samples, names, self.out)
        _print(self.json, {**files, "seed": self.seed, "labels": names}, lambda: _list_files(files))


@dataclasses.dataclass
class Likelihood:
    """Count the exact bits that a model needs for pictures: a lossless code length of their DCT images.

    Example: dctransformer likelihood flowers64 ~/photos --json
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hub id, or shipped weights (flowers64)."""
    data: tyro.conf.Positional[Path]
    """Prepared data set, or a folder of pictures (cropped, resized and encoded as `prepare` does it)."""
    split: str = "validation"
    """Which part of a prepared data set: train or validation."""
    num: int | None = None
    """Score the first so many pictures only."""
    labels: bool = True
    """Tell the model the pictures' labels where their names fit its own."""
    batch: int = 32
    """Chunks at a time."""
    device: str = "auto"
    """cpu, cuda, …"""
    json: bool = False
    """Print a JSON object instead of a table."""

    def run(self) -> None:
        """Score."""
        from dctransformer.tasks import likelihood

        with tqdm(desc="scoring", unit="picture", disable=self.json) as bar:
            summary = likelihood(
                self.model, self.data, split=self.split, num=self.num, use_labels=self.labels, batch=self.batch,
                device=self.device, progress=lambda n: _advance(bar, n), show=not self.json,
            )  # fmt: skip
        _print(self.json, summary, lambda: _likelihood_table(summary))


@dataclasses.dataclass
class Evaluate:
    """Score a model: distances of its pictures to real ones, and exact bits beside classical coders.

    Without a network, use --features small64: it comes with the package, and its figures carry its name.

    Example: dctransformer evaluate runs/flowers --data data --num 1000 --features small64
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hub id, or shipped weights (flowers64)."""
    data: Path
    """Prepared data set, or a folder of pictures (cropped, resized and encoded as `prepare` does it)."""
    options: tyro.conf.OmitArgPrefixes[EvaluateConfig] = dataclasses.field(default_factory=EvaluateConfig)
    """What to measure, and how."""
    out: Path | None = None
    """Write the figures to this JSON file, too; a run folder gets them as evaluation.json if not given."""
    json: bool = False
    """Print a JSON object instead of tables."""

    def run(self) -> None:
        """Evaluate."""
        from dctransformer.evaluate.evaluation import evaluate, result_file, save_result
        from dctransformer.evaluate.tables import as_text
        from dctransformer.files import make_folder

        out = self.out or result_file(self.model)
        if out is not None:
            make_folder(out.resolve().parent)
        result = evaluate(self.model, self.data, self.options, progress=not self.json)
        if out is not None:
            save_result(result, out)
        _print(self.json, result, lambda: print(as_text(result)))


@dataclasses.dataclass
class Report:
    """Write one HTML page about a model: scores, bits, curves, samples, what it was surprised by, what it copied.

    Example: dctransformer report runs/flowers --data data
    """

    run_: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """Run folder, saved model's folder, hub id, or shipped weights."""
    data: Path | None = None
    """Prepared data set or folder of pictures; that of the run's last evaluation if not given."""
    out: Path = Path("report.html")
    """The page."""
    evaluation: Path | None = None
    """Figures to show, a JSON file written by `evaluate`; the run's own if not given."""
    num: int = 512
    """Pictures to generate, for the sheets and, if there is no evaluation, for scores."""
    seed: int = 0
    """Of the generated pictures."""
    top_p: float = 1.0
    """Of the generated pictures."""
    features: str = "small64"
    """The extractor for nearest training pictures and scores: small64, inception, or a TorchScript or .onnx file."""
    device: str = "auto"
    """cpu, cuda, …"""

    def run(self) -> None:
        """Write the page."""
        from dctransformer.evaluate.report import write_report

        write_report(
            self.run_, self.out, data=self.data, evaluation=self.evaluation, num=self.num, seed=self.seed,
            top_p=self.top_p, features=self.features, device=self.device, progress=True,
        )  # fmt: skip
        print(f"the report: {self.out}")


@dataclasses.dataclass
class Info:
    """Tell what a model, a data set or an image holds.

    Example: dctransformer info picture.jpg
    """

    thing: tyro.conf.Positional[str]
    """Model, prepared data set, or image file."""
    json: bool = False
    """Print a JSON object instead of text."""

    def run(self) -> None:
        """Describe."""
        from dctransformer.info import describe

        facts = describe(self.thing)
        _print(self.json, facts, lambda: _list_facts(facts))


def _advance(bar: tqdm, count: int) -> None:
    bar.update(count - bar.n)


def _show(bar: tqdm) -> Callable[[int, int], None]:
    def update(triples: int, finished: int) -> None:
        bar.set_postfix_str(f"{triples:,} triples")
        bar.update(finished - bar.n)

    return update


def _print(as_json: bool, facts: dict[str, Any], text: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        text()


def _list_files(files: dict[str, Any]) -> None:
    print(f"{len(files['files'])} pictures: {files['files'][0]} …")
    for name in ("sheet", "heat_map"):
        print(f"{name.replace('_', '-')}: {files[name]}")


def _list_facts(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _list_facts(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{indent}{name}: {shown}")


def _likelihood_table(s: dict[str, Any]) -> None:
    error = f" ± {s['standard_error_bytes']:.1f}" if s["standard_error_bytes"] is not None else ""
    print(f"{s['images']:,} images, {s['triples_per_image']:.0f} triples each")
    huffman = s["huffman_bytes_per_image"]
    print(f"{s['bytes_per_image']:.1f}{error} bytes an image (libjpeg's optimised Huffman: {huffman:.1f})")
    print(f"{s['bits_per_pixel']:.4f} bits a pixel, {s['bits_per_triple']:.4f} bits a triple, of which")
    for field, bits in s["bits_per_triple_by_field"].items():
        print(f"  {field:9s}{bits:8.4f}")
    print(f"{'band':>8s} {'triples':>8s} {'bits':>8s}")
    for band, bits in s["bits_per_image_by_band"].items():
        print(f"{band:>8s} {s['triples_per_image_by_band'].get(band, 1.0):8.1f} {bits:8.1f}")


def _preset_of(argv: list[str]) -> str:
    """The preset named on the command line: its values become the defaults that --help shows."""
    for i, word in enumerate(argv):
        if word.startswith("--preset="):
            return word.split("=", 1)[1]
        if word == "--preset" and i + 1 < len(argv):
            return argv[i + 1]
    return "small"


def _train_defaults(name: str) -> Train:
    config = preset(name)
    chosen = Architecture(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Architecture)})
    return Train(tyro.MISSING, tyro.MISSING, name, chosen, TrainConfig())


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``dctransformer`` command."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        name = _preset_of(argv) if argv[:1] == ["train"] else "small"
        commands: Any = (
            Annotated[Prepare, tyro.conf.subcommand("prepare")]
            | Annotated[Train, tyro.conf.subcommand("train", default=_train_defaults(name))]
            | Annotated[Sample, tyro.conf.subcommand("sample")]
            | Annotated[Likelihood, tyro.conf.subcommand("likelihood")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
            | Annotated[Report, tyro.conf.subcommand("report")]
            | Annotated[Info, tyro.conf.subcommand("info")]
        )
        tyro.cli(
            commands,
            prog="dctransformer",
            description="Images as sparse JPEG coefficients: train a Transformer on them, sample, and count bits. "
            f"Presets: {', '.join(PRESETS)}. Start with: dctransformer sample flowers64 --out samples",
            args=argv,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        ).run()
        sys.stdout.flush()
    except ValueError as error:
        print(f"dctransformer: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print("dctransformer: stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
