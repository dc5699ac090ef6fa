"""`write_report`: one self-contained HTML page about a model. No script, no network, no second file."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import dctransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate import plots, tables
from dctransformer.evaluate.bits import exact_bits, surprise
from dctransformer.evaluate.cache import cached, extract
from dctransformer.evaluate.config import DISTANCES, EvaluateConfig
from dctransformer.evaluate.evaluation import (
    RESULT,
    describe_sampling,
    draw_samples,
    feature_widths,
    recognise,
    require_enough,
    score,
    weights_hash,
)
from dctransformer.evaluate.features import Extractor, open_extractor
from dctransformer.evaluate.nearest import memorisation, nearest
from dctransformer.evaluate.pictures import Reference, of_samples, open_held_out, open_reference
from dctransformer.files import check_place, check_regular, write_text
from dctransformer.hub.curves import curves_of_weights, read_curves, shipped_curves, trains_structure
from dctransformer.hub.pretrained import SHIPPED, load_model, model_folder
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import resolve_device
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import check_sampling
from dctransformer.sampling.rows import Samples
from dctransformer.settings import check_positive
from dctransformer.sheets import contact_sheet, heat_map_sheet
from dctransformer.tasks.info import describe_model
from dctransformer.training.run_folder import METRICS as CURVES
from dctransformer.training.run_folder import SETTINGS

SHEET = 64
"""Pictures in the sheet of samples."""

SHOWN = 8
"""Pictures in the sheets that have a row of their own for each."""

BITS_PICTURES = 256
"""Held-out pictures whose bits are counted if no evaluation did."""

_SAMPLING = SampleConfig()


@dataclasses.dataclass
class Section:
    """A part of the page: a title, a sentence of what it shows, and HTML."""

    title: str
    text: str
    body: str = ""


def write_report(
    run: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    evaluation: str | Path | None = None,
    num: int = 512,
    sampling: SampleConfig = _SAMPLING,
    features: str = "small64-imagenette",
    device: str = "auto",
    progress: bool = False,
) -> None:
    """Write a page with scores, exact bits, curves, samples, heat-maps, histograms and nearest training pictures.

    Args:
        run: a run folder, a saved model's folder, ``hf:owner/name``, or shipped weights.
        out: the HTML file; missing folders are made.
        data: prepared data set or folder of pictures; without it, the parts that need one are left out, with a note on
            the page. (Paths in a run's files are not opened, since a stranger may have written them.)
        evaluation: figures from `dctransformer evaluate`; None for the run's own, if there are.
        num: pictures to generate; if there is no evaluation, they are scored, as far as they are enough for it.
        sampling: seed, temperature and so on. If nothing but the seed is given, scores, histograms and nearest pictures
            are of the model's own distribution, and the sheets of samples are drawn by `SampleConfig.for_show`.
        features: the extractor for nearest training pictures and for those scores.
        device: cpu, cuda, … or auto.
        progress: show bars.

    Raises:
        ValueError: the model, the data or the evaluation is missing or doesn't fit, or the page can't be written.
    """
    check_positive(num=num)
    plots.require_matplotlib()
    folder = model_folder(run)
    figures = read_evaluation(folder, evaluation)
    network = load_model(run, resolve_device(device))
    check_sampling(network, sampling)
    check_place(out)
    extractor = None if data is None else open_extractor(features, network.device)
    work = _Work(str(run), folder, network, data, figures, num, sampling, extractor, progress)
    sections = list(tqdm(work.sections(), desc="report", unit="section", total=10, disable=not progress))
    write_text(out, page(f"{run}: a report", sections))


def read_evaluation(folder: Path, given: str | Path | None) -> dict[str, Any] | None:
    """Return the figures of an evaluation; those in the run's folder if none are given; None if there are none.

    Raises:
        ValueError: the file is missing or is no evaluation.
    """
    path = Path(given) if given is not None else folder / RESULT
    if given is None and not path.is_file():
        return None
    check_regular(path)
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(figures["scores"], dict) or not isinstance(figures["data"], str):
            raise TypeError("unexpected contents")
        figures["bits"]
        return figures
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} can't be read as an evaluation ({error}); make it with: dctransformer evaluate MODEL --data DATA "
            f"--out {path}"
        ) from error


def hides_labels(folder: Path) -> bool:
    """Return whether a model was trained with hidden labels, too; assumed if there are no settings of its training."""
    path = folder / SETTINGS
    if not path.is_file():
        return True
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("label_dropout", 1) != 0
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove or restore it") from error


@dataclasses.dataclass
class _Work:
    """The inputs of the report, and its sections."""

    name: str
    folder: Path
    network: DCTransformer
    data: str | Path | None
    figures: dict[str, Any] | None
    num: int
    sampling: SampleConfig
    extractor: Extractor | None
    progress: bool

    def sections(self) -> Iterator[Section]:
        """Yield all parts of the page, in order."""
        config = self.network.config
        training = held_out = alike = None
        if self.data is not None:
            held_out = open_held_out(self.data, config)
            alike = held_out.of_grid(Grid.of_size(*config.trained_shape))  # of the size that the model generates
            same = held_out.split != "validation" and alike
            training = same or open_reference(self.data, config)
        yield self._summary()
        samples = self._draw(training, self.num, self.sampling)
        if training is not None and self.figures is None:
            self.figures = self._score(samples, training)
        yield self._scores()
        yield self._recognised()
        yield self._bits(held_out)
        yield self._curves()
        shown = samples
        if self.sampling_of_sheets != self.sampling:
            shown = self._draw(training, min(self.num, SHEET), self.sampling_of_sheets)
        yield self._samples(shown)
        yield self._stages(shown)
        yield self._surprise(alike)
        yield self._histograms(samples, held_out)
        yield self._memory(samples, training, alike)
        if self.figures is not None:
            yield Section("All figures", "", _parts.folded(json.dumps(self.figures, indent=1)))

    @functools.cached_property
    def sampling_of_sheets(self) -> SampleConfig:
        """Settings of the pictures that are there to be looked at."""
        config = self.network.config
        if not self.sampling.is_default or config.texture_rank == order.NUM_CHANNELS:  # measured with texture alone
            return self.sampling
        by_label = config.num_labels > 0 and hides_labels(self.folder)
        return self.sampling.for_show(by_label, by_guide=self.network.guide is not None)

    def _draw(self, reference: Reference | None, number: int, sampling: SampleConfig) -> Samples:
        return draw_samples(self.network, self.name, reference, number, sampling, self.progress)

    def _no_data(self, title: str) -> Section:
        used = "" if self.figures is None else f" (the evaluation used {self.figures['data']})"
        return Section(title, f"This part needs pictures; name them with --data{used}.")

    def _summary(self) -> Section:
        facts = describe_model(self.folder)
        rows = [
            ["pictures", f"{facts['shape']}, JPEG quality {facts['quality']}"],
            ["parameters", f"{facts['parameters']:,}"],
            ["classes", f"{len(facts['labels']):,}" if facts["labels"] else "none"],
            ["weights", f"{facts['file_bytes']:,} bytes"],
            ["guide", f"{facts['guide_parameters']:,} parameters" if facts["guide_parameters"] else "none"],
            ["data", str(self.data or "none given")],
            [
                "generated for scores, histograms and neighbours",
                tables.sampling_text(dataclasses.asdict(self.sampling)),
            ],
            ["generated for the sheets", tables.sampling_text(dataclasses.asdict(self.sampling_of_sheets))],
            ["dctransformer", dctransformer.__version__],
        ]
        return Section("Model", "", table([["", ""], *rows]))

    def _score(self, samples: Samples, training: Reference) -> dict[str, Any]:
        """Return an evaluation of the page's own samples, by all metrics that there are enough of them for."""
        extractor = self.extractor
        assert extractor is not None  # there is data
        config = EvaluateConfig(
            num=self.num, sampling=self.sampling, kid_subset=max(2, min(1000, self.num, len(training)))
        )
        widths = feature_widths(extractor, training)
        possible = []
        for metric in DISTANCES:
            with contextlib.suppress(ValueError):
                require_enough(extractor, metric, widths, self.num, len(training), config)
                possible.append(metric)
        settings, scores = score(
            extractor, training, lambda: of_samples(samples), self.num, tuple(possible), config, progress=self.progress
        )
        generated = describe_sampling(self.num, self.sampling, bool(self.network.config.num_labels))
        return {
            "model": self.name,
            "data": str(self.data),
            "weights": weights_hash(self.folder),
            "settings": {**settings, "generated": generated},
            "scores": scores if possible else {},
            "c2st": recognise(training, samples.dct(), config.c2st_pictures, self.progress),
            "bits": None,
        }

    def _scores(self) -> Section:
        title = "Scores"
        if self.figures is None or not self.figures["scores"]:
            return Section(title, f"None yet; make them with: dctransformer evaluate {self.name} --data DATA")
        lines = tables.setting_lines(self.figures["settings"])
        if self.figures.get("weights") not in (None, weights_hash(self.folder)):
            lines.insert(0, "THESE FIGURES ARE OF OTHER WEIGHTS than those in the folder now; evaluate again")
        return Section(
            title,
            "Generated pictures against real ones, before the codec (originals) and after it (round trip). The round "
            "trip's own distance to the originals is the floor of what a model of these coefficients can reach.",
            table(tables.score_rows(self.figures)) + _parts.notes(lines),
        )

    def _recognised(self) -> Section:
        title = "Told from real pictures"
        found = None if self.figures is None else self.figures.get("c2st")
        if found is None:
            return Section(title, f"Not tested yet; do it with: dctransformer evaluate {self.name} --data DATA")
        text = " ".join(tables.two_sample_lines(found))
        if found["skipped"]:
            return Section(title, f"{text[0].upper()}{text[1:]}.")
        return Section(
            title,
            f"{text[0].upper()}{text[1:]}. The right half is the same test of real pictures against other real ones.",
            table(tables.two_sample_rows(found)),
        )

    def _bits(self, held_out: Reference | None) -> Section:
        title = "Exact bits"
        bits = self.figures["bits"] if self.figures is not None else None
        if bits is None:
            if held_out is None:
                return self._no_data(title)
            bits = exact_bits(self.network, self.name, held_out.first(BITS_PICTURES))
        split = f"{bits['split']} split of " if bits["split"] != "all" else ""
        return Section(
            title,
            f"Mean code length of {bits['images']:,} pictures ({split}{bits['data']}); every coder codes the same "
            "coefficients, and what it spends on a blank picture is subtracted.",
            chart(plots.bits_by_band_and_field(bits)) + table(tables.coder_rows(bits)) + table(tables.band_rows(bits)),
        )

    def _curves(self) -> Section:
        title = "Training"
        path = self.folder / CURVES
        lines = read_curves(path) if path.is_file() else []
        if not lines:
            trainings = curves_of_weights(self.folder.name) if self.folder.parent == SHIPPED else []
            if not trainings:
                return Section(title, "No curves lie next to these weights; a run folder has them.")
            names = "; then ".join(f"{curve.name} ({curve.about})" for curve in trainings)
            body = Markup().join(chart(plots.loss_curves(curve.lines)) for curve in trainings)
            return Section(title, f"The trainings that made these weights: {names}.", body)
        text = "The bytes of validations are relative to those of libjpeg's optimised Huffman code."
        others = shipped_curves(self.network.config, trains_structure(lines))
        if others:
            names = "; ".join(f"{curve.name}: {curve.about}" for curve in others)
            text += f" Dashed: trainings of the same size and quality that come with the package ({names})."
        return Section(title, text, chart(plots.loss_curves(lines, others)))

    def _samples(self, samples: Samples) -> Section:
        names = self.network.config.label_names
        captions = [names[i] if i < len(names) else "" for i in samples.labels[:SHEET].tolist()]
        pixels = samples.pixels()[:SHEET]
        scale = max(1, 96 // pixels.shape[2])
        sheet = contact_sheet(pixels, columns=8, captions=captions if any(captions) else None, scale=scale)
        heat = heat_map_sheet(pixels[:SHOWN], samples.places()[:SHOWN])
        return Section(
            "Samples",
            f"Unselected, the first of the seed ({tables.sampling_text(dataclasses.asdict(self.sampling_of_sheets))}). "
            "Below, some with the heat-map of the places that were chosen while they were generated.",
            image(sheet, "samples") + image(heat, "samples and the places chosen"),
        )

    def _stages(self, samples: Samples) -> Section:
        grid = samples.grid
        strip = plots.progressive_strip(samples.triples[:SHOWN], 16 * grid.rows, 16 * grid.cols, samples.quality)
        return Section(
            "Progressive decoding",
            "What is visible after each band of the sequence, with the number of triples until then.",
            image(strip, "stages of decoding"),
        )

    def _surprise(self, held_out: Reference | None) -> Section:
        title = "Where was it surprised?"
        if not held_out:
            return self._no_data(title)
        shown = held_out.first(2 * SHOWN)
        maps = surprise(self.network, shown.sequences())
        sheet = plots.surprise_sheet(shown.round_trip.read(0, len(shown)), maps)
        return Section(
            title,
            "Held-out pictures and the bits spent at each place: black is none, pale yellow the most. The caption is "
            "the picture's code length.",
            image(sheet, "held-out pictures and heat-maps of bits"),
        )

    def _histograms(self, samples: Samples, held_out: Reference | None) -> Section:
        title = "Values, real and generated"
        if held_out is None:
            return self._no_data(title)
        real = held_out.first(max(BITS_PICTURES, self.num))
        listed = real.triples()
        return Section(
            title,
            f"Coefficient values of {len(listed):,} held-out and {len(samples.triples):,} generated pictures by band "
            "(values beyond the ends are counted there), and the lengths of their sequences.",
            chart(plots.value_histograms(listed, samples.triples)),
        )

    def _memory(self, samples: Samples, training: Reference | None, held_out: Reference | None) -> Section:
        title = "Nearest training pictures"
        if training is None or not held_out:
            return self._no_data(title)
        extractor = self.extractor
        assert extractor is not None  # there is data
        known = cached(extractor, training.round_trip, progress=self.progress)
        found = nearest(extract(extractor, of_samples(samples)).features, known.features)
        shown = found.index[: 2 * SHOWN]
        pictures = samples.pixels()[: 2 * SHOWN]
        near = torch.stack([_read(training, row) for row in shown])
        sheet = plots.neighbours_sheet(pictures, near, found.distance[: 2 * SHOWN])
        text = (
            f"Each generated picture next to its {near.shape[1]} nearest training pictures in the feature space of "
            f"{extractor.name}, with the distances. A copy would show as a twin at a distance near 0."
        )
        body = image(sheet, "generated pictures and their nearest training pictures")
        if held_out.split != training.split:
            new = nearest(extract(extractor, held_out.round_trip).features, known.features)
            figures = memorisation(found, new)
            body += chart(plots.nearness(found.distance[:, 0], new.distance[:, 0]))
            text += (
                f" Median distance: generated {figures['generated_median']:.3g}, held-out photographs "
                f"{figures['held_out_median']:.3g}. {figures['suspicious']:.1%} of the generated pictures lie nearer "
                f"to a training picture than 99 % of the {figures['held_out']} held-out ones do; about 1 % would if "
                "they were as new as those."
            )
        return Section(title, text, body)


def _read(reference: Reference, index: Tensor) -> Tensor:
    """Return the pictures of a reference after the codec, by their numbers: uint8 ``[k, H, W, 3]``."""
    return torch.cat([reference.round_trip.read(i, i + 1) for i in index.tolist()])


# HTML: the template escapes every text but Markup ---------------------------------------------------------------------

_TEMPLATE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("report.html")
_parts: Any = _TEMPLATE.make_module({"sections": []})


def table(rows: tables.Rows) -> Markup:
    """Return a table; the first row is the header, unless it is empty."""
    return _parts.table(rows)


def image(picture: Image.Image, what: str) -> Markup:
    """Return a picture inside the page, as PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return _parts.image(base64.b64encode(out.getvalue()).decode(), what)


def chart(figure: Any) -> Markup:
    """Return a matplotlib figure inside the page, as SVG."""
    return Markup(plots.svg(figure))


def page(title: str, sections: list[Section]) -> str:
    """Return the whole page."""
    return _TEMPLATE.render(title=title, sections=sections) + "\n"
