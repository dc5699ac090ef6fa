"""The commands `likelihood`, `evaluate` and `report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dctransformer.commands.common import print_facts, with_revision
from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.files import printable
from dctransformer.sampling.config import SampleConfig
from dctransformer.sequence.conditions import CONDITIONS

if TYPE_CHECKING:
    from tqdm import tqdm


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
    """Prepared data set, or a folder of pictures (cropped, resized and encoded as the training pictures were)."""
    split: str = "validation"
    """Which part of a prepared data set: train or validation."""
    num: int | None = None
    """Score the first so many pictures only."""
    labels: bool = True
    """Condition on the pictures' labels where their names fit the model's."""
    given: Annotated[str, tyro.conf.arg(help=_GIVEN)] = "none"
    batch: int = 32
    """Chunks at a time."""
    device: str = "auto"
    """cpu, cuda, …"""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    json: bool = False
    """Print a JSON object instead of a table."""

    def run(self) -> None:
        """Count the bits and print them."""
        from tqdm import tqdm

        from dctransformer.tasks.likelihood import likelihood

        with tqdm(desc="scoring", unit="picture", disable=self.json, delay=0.01) as bar:
            summary = likelihood(
                with_revision(self.model, self.revision), self.data,
                split=self.split, num=self.num, use_labels=self.labels, given=self.given,
                batch=self.batch, device=self.device, progress=lambda n: _advance(bar, n), show=not self.json,
            )  # fmt: skip
        print_facts(self.json, summary, lambda: _likelihood_table(summary))


@dataclasses.dataclass
class Evaluate:
    """Score a model: distances of its pictures to real ones, and exact bits next to classical coders.

    Without a network, use --features small64-imagenette: it comes with the package, and its figures carry its name.

    Example: dctransformer evaluate runs/flowers --data data --num 1000 --features small64-imagenette
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    data: Path
    """Prepared data set, or a folder of pictures (cropped, resized and encoded as the training pictures were)."""
    options: tyro.conf.OmitArgPrefixes[EvaluateConfig] = dataclasses.field(default_factory=EvaluateConfig)
    """What to measure, and how."""
    out: Path | None = None
    """Write the figures to this JSON file, too; a run folder gets them as evaluation.json if not given."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    json: bool = False
    """Print a JSON object instead of tables."""

    def run(self) -> None:
        """Evaluate the model, print the scores and save them."""
        from dctransformer.evaluate.evaluation import evaluate, result_file, save_result
        from dctransformer.evaluate.tables import as_text
        from dctransformer.files import check_place

        out = self.out or result_file(with_revision(self.model, self.revision))
        if out is not None:
            check_place(out)
        result = evaluate(with_revision(self.model, self.revision), self.data, self.options, progress=not self.json)
        if out is not None:
            save_result(result, out)
        print_facts(self.json, result, lambda: print("\n".join(map(printable, as_text(result).split("\n")))))


@dataclasses.dataclass
class Report:
    """Write one HTML page about a model: scores, bits, curves, samples, surprising places, nearest training pictures.

    Example: dctransformer report runs/flowers --data data
    """

    run_: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights."""
    data: Path | None = None
    """Prepared data set or folder of pictures; parts that need one are left out if not given."""
    out: Path = Path("report.html")
    """The page."""
    evaluation: Path | None = None
    """Figures to show, a JSON file written by `evaluate`; the run's own if not given."""
    num: int = 512
    """Pictures to generate, for the sheets and, if there is no evaluation, for scores."""
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=SampleConfig)
    """How to sample. If nothing but the seed is given, scores are of the model's own distribution, and the sheets of
    samples are drawn by the settings that measured best (docs/evaluation.md)."""
    features: str = "small64-imagenette"
    """The extractor for nearest training pictures and scores: small64-imagenette (was trained on Imagenette and cats),
    small64 (Imagenette and flowers), inception, or a TorchScript or .onnx file."""
    device: str = "auto"
    """cpu, cuda, …"""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    def run(self) -> None:
        """Write the page."""
        from dctransformer.evaluate.report import write_report

        write_report(
            with_revision(self.run_, self.revision), self.out, data=self.data,
            evaluation=self.evaluation, num=self.num, sampling=self.sampling,
            features=self.features, device=self.device, progress=True,
        )  # fmt: skip
        print(f"the report: {printable(self.out)}")


def _advance(bar: tqdm, count: int) -> None:
    bar.update(count - bar.n)


def _likelihood_table(s: dict[str, Any]) -> None:
    error = f" ± {s['standard_error_bytes']:.1f}" if s["standard_error_bytes"] is not None else ""
    print(f"{s['images']:,} images, {s['triples_per_image']:.0f} triples each")
    if s["windows"]:
        print(f"of {s['windows']:,} larger ones the window at the centre whose rows and columns the model knows")
    huffman = s["huffman_bytes_per_image"]
    print(f"{s['bytes_per_image']:.1f}{error} bytes per image (libjpeg's optimised Huffman: {huffman:.1f})")
    print(f"{s['bits_per_pixel']:.4f} bits per pixel, {s['bits_per_triple']:.4f} bits per triple, of which")
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
    print(f"given {name}: {part['given_first']:.1f} bytes per image listed first, the rest unknown")
    print(f"  then the rest: {part['rest_given']:.1f} bytes; sum {part['sum']:.1f}")
    print(
        f"  unconditionally: {part['given_unconditional']:.1f} bytes for what is given, "
        f"{part['rest_unconditional']:.1f} for the rest"
    )
