"""The command line: parse, call, print. What the commands do lives in the modules they name."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dctransformer import __version__
from dctransformer.app.limits import Limits
from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.model.config import PRESETS, Architecture, ModelConfig
from dctransformer.sampling.config import SampleConfig
from dctransformer.sequence.conditions import CONDITIONS
from dctransformer.training.config import TrainConfig
from dctransformer.training.config_file import ConfigFile, read_config_file

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclasses.dataclass
class Prepare:
    """Turn a folder of pictures into a data set: JPEG files of one quality in Parquet shards.

    Sub-folders are labels. Any picture that Pillow reads will do; what can't be read is skipped and listed in
    OUT/skipped.jsonl. An interrupted run goes on where it stopped.

    Example: dctransformer prepare ~/photos data --size 64 --quality 20
    """

    source: tyro.conf.Positional[str]
    """Image folder, Parquet file or folder, the URL of one (s3://…, hf://…), zip or tar file, or a `datasets` id."""
    out: tyro.conf.Positional[Path]
    """Folder for the data set."""
    size: str | None = None
    """Crop to squares of so many pixels, or to WIDTHxHEIGHT, multiples of 16; 64 if no shape is given."""
    long_side: int | None = None
    """Or keep the aspect ratio: pixels of the longer side, a multiple of 16 (the other is cropped to one)."""
    short_side: int | None = None
    """The same for the shorter side."""
    quality: int = 20
    """JPEG quality, 1 to 100: higher means finer pictures and longer sequences."""
    val_fraction: float = 0.05
    """Part of the pictures kept for validation."""
    workers: int | None = None
    """Processes; all cores if not given."""
    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or Ray's workers: here, or on the cluster that RAY_ADDRESS names."""
    labels: str | None = None
    """none, folders, a table of labels (.csv, .jsonl, .json), or a column; if not given, what is found."""
    update: bool = False
    """Add pictures that are new in the source to OUT, in new shards."""

    def run(self) -> None:
        """Prepare."""
        from dctransformer.data import prepare

        info = prepare(
            self.source, self.out, size=self.size, quality=self.quality, val_fraction=self.val_fraction,
            workers=self.workers, engine=self.engine, long_side=self.long_side, short_side=self.short_side,
            labels=self.labels, update=self.update,
        )  # fmt: skip
        counts = ", ".join(f"{n:,} {split}" for split, n in info.splits.items())
        sizes = list(info.size_table)
        shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, most often {sizes[0]}"
        print(f"{self.out}: {counts}; {shown}; {info.skipped} skipped; {len(info.labels)} labels")


@dataclasses.dataclass
class Train:
    """Train a model on a prepared data set. The same command again resumes the run.

    Example: dctransformer train --data data --run runs/flowers --preset small --triples 20000000
    """

    data: Path
    """Folder made by `dctransformer prepare`."""
    run_: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder: weights, settings, curves and samples go there."""
    config: Path | None = None
    """TOML file of settings, as in configs/paper; the command line takes precedence over it."""
    preset: str = "small"
    """Shape of the model: tiny, small, base or paper."""
    model: Architecture = dataclasses.field(default_factory=Architecture)
    """Changes to the preset."""
    options: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)
    """Settings of the loop."""

    def run(self) -> None:
        """Train."""
        from dctransformer.training.loop import train

        if self.config is not None:
            from dctransformer.data.info import DatasetInfo

            read_config_file(self.config).data.check(DatasetInfo.load(self.data), self.data)
        metrics = train(self.data, self.run_, ModelConfig(**dataclasses.asdict(self.model)), self.options)
        if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
            print(json.dumps(metrics), flush=True)
        if metrics.get("signal"):  # unfinished: whatever started the command must not take the model for done
            raise SystemExit(128 + metrics["signal"])


@dataclasses.dataclass
class Sample:
    """Generate pictures: PNG and real JPEG files, a contact sheet, and a heat-map of the chosen places.

    Example: dctransformer sample flowers64 --num 16 --out samples --label "Sunflower"
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    out: Path
    """Folder for the pictures."""
    num: int = 16
    """How many."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of 16; what the model was trained on if not given. Pictures larger than the
    model knows are generated by tiles."""
    label: str | None = None
    """Name or number of the class; every picture gets a class of its own if not given."""
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=SampleConfig)
    """How to sample."""
    device: str = "auto"
    """cpu, cuda, …"""
    json: bool = False
    """Print a JSON object instead of text."""

    def run(self) -> None:
        """Sample."""
        from tqdm import tqdm

        from dctransformer.data.shapes import parse_size
        from dctransformer.tasks.generate import generate, save_samples

        size = None if self.size is None else parse_size(self.size)[::-1]
        with tqdm(total=self.num, desc="sampling", unit="picture", disable=self.json) as bar:
            samples, names = generate(
                self.model, self.num, label=self.label, size=size, sampling=self.sampling, device=self.device,
                out=self.out, progress=_show(bar),
            )  # fmt: skip
        files = save_samples(samples, names, self.out, written=True)
        _print(self.json, {**files, "seed": self.sampling.seed, "labels": names}, lambda: _list_files(files))


@dataclasses.dataclass
class _Edit(abc.ABC):
    """What the tasks that start from pictures have in common."""

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    out: Path
    """Folder for the results: NAME-0.jpg, NAME-1.jpg, …, PNG files and a contact sheet."""
    num: int = 1
    """Alternatives of each picture."""
    label: str | None = None
    """Name or number of the class to lean on; none if not given."""
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=SampleConfig)
    """How to sample."""
    device: str = "auto"
    """cpu, cuda, …"""
    json: bool = False
    """Print a JSON object instead of text."""

    @abc.abstractmethod
    def edited(self, options: Any) -> list[Any]:
        """Do it."""

    def run(self) -> None:
        """Try the folder, work, write."""
        from tqdm import tqdm

        from dctransformer.tasks.edit import Options, save_edits

        with tqdm(total=1.0, desc=type(self).__name__.lower(), disable=self.json, bar_format=_PERCENT) as bar:

            def show(done: float) -> None:
                bar.n = done
                bar.refresh()

            options = Options(self.num, self.label, self.sampling, self.device, show, self.out)
            edits = self.edited(options)
        files = save_edits(edits, self.out, written=True)
        _print(self.json, {**files, "seed": self.sampling.seed}, lambda: _list_files(files))


_PERCENT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@dataclasses.dataclass
class Upscale(_Edit):
    """Enlarge pictures: their content becomes the low frequencies, the high ones are generated.

    Example: dctransformer upscale flowers64 small.png --factor 2 --num 4 --out large
    """

    factor: int = 2
    """2, 4 or 8."""

    def edited(self, options: Any) -> list[Any]:
        """Upscale."""
        from dctransformer.tasks.edit import upscale

        return upscale(self.model, self.images, self.factor, options)


@dataclasses.dataclass
class Colorize(_Edit):
    """Give pictures colours: brightness stays, colour is generated (a colour picture's own is ignored).

    Example: dctransformer colorize flowers64 grey.jpg --num 4 --out coloured
    """

    def edited(self, options: Any) -> list[Any]:
        """Colorize."""
        from dctransformer.tasks.edit import colorize

        return colorize(self.model, self.images, options)


@dataclasses.dataclass
class Inpaint(_Edit):
    """Replace a part of pictures; all 16 × 16 squares that the mask does not touch stay as they are, exactly.

    Example: dctransformer inpaint flowers64 photo.jpg --box 16,16,32,32 --num 4 --out filled
    """

    mask: Path | None = None
    """Picture of the same size, white where something is to be replaced."""
    box: str | None = None
    """Or the place: x,y,width,height in pixels."""

    def edited(self, options: Any) -> list[Any]:
        """Inpaint."""
        from dctransformer.tasks.edit import inpaint

        return inpaint(self.model, self.images, self.mask, self._box(), options)

    def _box(self) -> tuple[int, int, int, int] | None:
        if self.box is None:
            return None
        try:
            x, y, width, height = map(int, self.box.split(","))
        except ValueError:
            raise ValueError(f"--box {self.box} is not x,y,width,height; give four whole numbers") from None
        return x, y, width, height


@dataclasses.dataclass
class Continue(_Edit):
    """Keep the beginning of pictures, coarse to fine, and generate the rest.

    Example: dctransformer continue flowers64 photo.jpg --bands 1 --num 4 --out continued
    """

    bands: int | None = None
    """Keep so many of the four bands."""
    from_triples: int | None = None
    """Or so many triples."""

    def edited(self, options: Any) -> list[Any]:
        """Continue."""
        from dctransformer.tasks.edit import continue_

        return continue_(self.model, self.images, self.bands, self.from_triples, options)


_GIVEN = "Score the rest when a part is given, too: " + ", ".join(
    f"{c.name} ({c.given})" for c in CONDITIONS.values() if c.name != "none"
)


@dataclasses.dataclass
class Likelihood:
    """Count the exact bits that a model needs for pictures: a lossless code length of their DCT images.

    Example: dctransformer likelihood flowers64 ~/photos --json
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    data: tyro.conf.Positional[Path]
    """Prepared data set, or a folder of pictures (cropped, resized and encoded as `prepare` does it)."""
    split: str = "validation"
    """Which part of a prepared data set: train or validation."""
    num: int | None = None
    """Score the first so many pictures only."""
    labels: bool = True
    """Tell the model the pictures' labels where their names fit its own."""
    given: Annotated[str, tyro.conf.arg(help=_GIVEN)] = "none"
    batch: int = 32
    """Chunks at a time."""
    device: str = "auto"
    """cpu, cuda, …"""
    json: bool = False
    """Print a JSON object instead of a table."""

    def run(self) -> None:
        """Score."""
        from tqdm import tqdm

        from dctransformer.tasks.likelihood import likelihood

        with tqdm(desc="scoring", unit="picture", disable=self.json) as bar:
            summary = likelihood(
                self.model, self.data, split=self.split, num=self.num, use_labels=self.labels, given=self.given,
                batch=self.batch, device=self.device, progress=lambda n: _advance(bar, n), show=not self.json,
            )  # fmt: skip
        _print(self.json, summary, lambda: _likelihood_table(summary))


@dataclasses.dataclass
class Evaluate:
    """Score a model: distances of its pictures to real ones, and exact bits beside classical coders.

    Without a network, use --features small64: it comes with the package, and its figures carry its name.

    Example: dctransformer evaluate runs/flowers --data data --num 1000 --features small64
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
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
    """Run folder, saved model's folder, hf:owner/name, or shipped weights."""
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
class Push:
    """Upload a model to the Hugging Face hub: config, weights, and a card with the run's figures.

    It needs a token: log in with `hf auth login`, or set HF_TOKEN.

    Example: dctransformer push runs/flowers me/flowers --private
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, or shipped weights."""
    repo: tyro.conf.Positional[str]
    """Where to: owner/name."""
    private: bool = False
    """Make it visible to its owner only, if it is new."""

    def run(self) -> None:
        """Upload."""
        from dctransformer.evaluate.figures import run_figures
        from dctransformer.hub.push import push

        print(push(self.model, self.repo, private=self.private or None, figures=run_figures))


@dataclasses.dataclass
class App:
    """Open the web page: generate, upscale, colorize, inpaint, continue and inspect in a browser.

    It listens on this machine alone unless --host says otherwise. Nothing that is uploaded is kept.

    Example: dctransformer app flowers64
    """

    model: tyro.conf.Positional[str] = "flowers64"
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    port: int = 7860
    """Where to listen; 0 takes any port that is free."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    root_path: str = ""
    """Where a proxy shows the page, say https://example.org/flowers."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Limits)
    """What the page takes on."""
    device: str = "auto"
    """cpu, cuda, …"""

    def run(self) -> None:
        """Serve."""
        from dctransformer.app.server import serve

        serve(self.model, self.limits, host=self.host, port=self.port, device=self.device, root_path=self.root_path)


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
        from dctransformer.tasks.info import describe

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
        if name in files:
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
    if s["windows"]:
        print(f"of {s['windows']:,} larger ones the window at the centre whose rows and columns the model knows")
    huffman = s["huffman_bytes_per_image"]
    print(f"{s['bytes_per_image']:.1f}{error} bytes an image (libjpeg's optimised Huffman: {huffman:.1f})")
    print(f"{s['bits_per_pixel']:.4f} bits a pixel, {s['bits_per_triple']:.4f} bits a triple, of which")
    for field, bits in s["bits_per_triple_by_field"].items():
        print(f"  {field:9s}{bits:8.4f}")
    print(f"{'band':>8s} {'triples':>8s} {'bits':>8s}")
    for band, bits in s["bits_per_image_by_band"].items():
        print(f"{band:>8s} {s['triples_per_image_by_band'].get(band, 1.0):8.1f} {bits:8.1f}")
    if "given" in s:
        _given_table(s["given"])


def _given_table(given: dict[str, Any]) -> None:
    name = given["condition"]
    part = {key.removesuffix("_bytes_per_image"): value for key, value in given.items()}
    if not given["trained"]:
        print(f"the model was not trained on the condition {name}: its numbers are still exact, but poor")
    print(f"given {name}: {part['given_first']:.1f} bytes an image listed first, the rest unknown")
    print(f"  then the rest: {part['rest_given']:.1f} bytes; sum {part['sum']:.1f}")
    print(
        f"  unconditionally: {part['given_unconditional']:.1f} bytes for what is given, "
        f"{part['rest_unconditional']:.1f} for the rest"
    )


def _word_after(option: str, argv: list[str]) -> str | None:
    """The value of an option on the command line, before it is parsed."""
    for i, word in enumerate(argv):
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _train_defaults(argv: list[str]) -> Train:
    """What holds unless the command line says otherwise, and what --help shows: the preset's values and the file's."""
    path, name = _word_after("--config", argv), _word_after("--preset", argv)
    file = ConfigFile() if path is None else read_config_file(path)
    config, options = file.architecture(name), file.train
    # A budget on the command line replaces the file's, whichever of the two it is counted in.
    if _word_after("--minutes", argv) is not None:
        options = dataclasses.replace(options, triples=None)
    if _word_after("--triples", argv) is not None:
        options = dataclasses.replace(options, minutes=None)
    chosen = Architecture(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Architecture)})
    return Train(tyro.MISSING, tyro.MISSING, None, name or file.preset or "small", chosen, options)


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that workers end and no temporary files are left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        raise SystemExit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``dctransformer`` command."""
    argv = sys.argv[1:] if argv is None else argv
    with _orderly_end():
        _main(argv)


def _main(argv: list[str]) -> None:
    try:
        if argv == ["--version"]:
            print(__version__)
            return
        defaults = _train_defaults(argv if argv[:1] == ["train"] else [])
        commands: Any = (
            Annotated[Prepare, tyro.conf.subcommand("prepare")]
            | Annotated[Train, tyro.conf.subcommand("train", default=defaults)]
            | Annotated[Sample, tyro.conf.subcommand("sample")]
            | Annotated[Upscale, tyro.conf.subcommand("upscale")]
            | Annotated[Colorize, tyro.conf.subcommand("colorize")]
            | Annotated[Inpaint, tyro.conf.subcommand("inpaint")]
            | Annotated[Continue, tyro.conf.subcommand("continue")]
            | Annotated[Likelihood, tyro.conf.subcommand("likelihood")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
            | Annotated[Report, tyro.conf.subcommand("report")]
            | Annotated[Push, tyro.conf.subcommand("push")]
            | Annotated[App, tyro.conf.subcommand("app")]
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
