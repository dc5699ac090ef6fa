"""Tests of the commands `dctransformer evaluate` and `dctransformer report`."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import Codec, DCTransformer
from dctransformer.cli import main
from dctransformer.data.images import crop_resize, load_image
from dctransformer.evaluate import plots
from dctransformer.evaluate.evaluation import evaluate
from dctransformer.evaluate.figures import run_figures
from dctransformer.evaluate.pictures import of_folder, open_reference
from dctransformer.evaluate.report import _Work
from dctransformer.evaluate.tables import sampling_text
from dctransformer.hub.curves import read_curves
from dctransformer.hub.pretrained import load_model
from dctransformer.model.config import ModelConfig
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.sampling.rows import Samples
from pictures import photo, photo_folder
from test_evaluate_features import Mean
from tiny_model import prepare_small, save_plain_model, save_tiny_model

ALL = ("--features", "small64", "--kid-subset", "4", "--few", "--num", "5")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 synthetic pictures in two classes."""
    return photo_folder(tmp_path_factory.mktemp("photos") / "all", 12, ("rose", "tulip"))


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data set of these pictures."""
    return prepare_small(photos, tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny model of 32-pixel pictures."""
    return save_plain_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache in every test."""
    monkeypatch.setenv("DCTRANSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(capsys: pytest.CaptureFixture[str], *argv) -> str:
    """Run a command that must succeed, and return its output."""
    main([*map(str, argv)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv) -> str:
    """Run a command that must fail with exit status 2, and return its one-sentence error."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, argv)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err + captured.out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands have a description, an example and explanations of their options."""
    for command, option in (("evaluate", "--kid-subset"), ("report", "--evaluation")):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out.replace("\n", " ")
        assert "Example: dctransformer" in text and option in text


def test_evaluate_reports_everything_that_scores_depend_on(
    model: Path, data: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report has three comparisons (one is the floor), exact bits and tables; the cache gives the same."""
    out = tmp_path / "figures.json"
    first = json.loads(run(capsys, "evaluate", model, "--data", data, *ALL, "--out", out, "--json"))
    assert json.loads(out.read_text()) == first
    names = ["small64-frechet", "small64-spatial-frechet", "small64-precision", "small64-recall", "small64-kernel"]
    assert list(first["scores"]) == [
        "generated, against the codec round trip",
        "generated, against the originals",
        "floor: codec round trip, against the originals",
    ]
    for scores in first["scores"].values():
        assert list(scores) == [*names, "small64-kernel-spread"]
    floor = first["scores"]["floor: codec round trip, against the originals"]
    generated = first["scores"]["generated, against the originals"]
    assert 0 < floor["small64-frechet"] < generated["small64-frechet"] and floor["small64-recall"] > 0.9
    settings = first["settings"]
    counts = json.loads(run(capsys, "info", data, "--json"))["pictures"]
    assert settings["reference"]["pictures"] == counts["train"] and settings["reference"]["split"] == "train"
    assert settings["generated"]["pictures"] == 5 and settings["generated"]["seed"] == settings["seed"] == 0
    assert settings["codec"] == "JPEG quality 30, 4:2:0" and "64×64" in settings["resize"]
    assert first["bits"]["images"] == counts["validation"] and first["bits"]["split"] == "validation"
    likelihood = json.loads(run(capsys, "likelihood", model, data, "--json"))
    assert first["bits"]["bytes_per_image"] == pytest.approx(likelihood["bytes_per_image"])
    files = sorted(cache.rglob("*.safetensors"))
    assert len(files) == 2
    assert json.loads(run(capsys, "evaluate", model, "--data", data, *ALL, "--json")) == first
    text = run(capsys, "evaluate", model, "--data", data, *ALL, "--seed", "3", "--metrics", "fid,bits")
    assert "floor" in text and "small64-frechet" in text and "seed 3" in text and "Lepton" in text
    assert "not with published ones" in text and "small64-recall" not in text
    assert sorted(cache.rglob("*.safetensors")) == files


SAMPLING = SampleConfig(
    7, temperature=0.8, top_p=0.9, min_p=0.02, guidance=1.5, texture_temperature=1.0, texture_top_p=0.95,
    texture_guidance=1.1, batch=3,
)  # fmt: skip


def options(sampling: SampleConfig) -> list[str]:
    """Return settings of sampling as options of a command."""
    names = ("seed", "temperature", "top_p", "min_p", "guidance")
    names += ("texture_temperature", "texture_top_p", "texture_guidance", "batch")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(sampling, name)))]


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_pictures_are_generated_with_the_settings_of_the_command(
    command: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Settings of structure and of texture reach the sampler under their names, and are stated with the scores."""
    if command == "report":
        pytest.importorskip("matplotlib")
    used: list[SampleConfig] = []

    def watched(network: DCTransformer, number: int, sampling: SampleConfig, **options: Any) -> Samples:
        used.append(sampling)
        return sample(network, number, sampling, **options)

    monkeypatch.setattr("dctransformer.evaluate.evaluation.sample", watched)
    out = tmp_path / "report.html"
    words = ["--data", data, "--num", 5, *options(SAMPLING)]
    words += ["--metrics", "precision", "--features", "small64"] if command == "evaluate" else ["--out", out]
    text = run(capsys, command, model, *words)
    assert used == [SAMPLING]
    text = text if command == "evaluate" else out.read_text(encoding="utf-8")
    for phrase in (
        "seed 7, temperature 0.8, top-p 0.9, guidance 1.5, min-p 0.02, ",
        "temperature of texture 1, top-p of texture 0.95, guidance of texture 1.1",
    ):
        assert phrase in text


def test_sheets_of_a_report_are_drawn_by_the_settings_that_measured_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores and histograms are of the model's own distribution; whoever gives a setting gets it everywhere."""
    pytest.importorskip("matplotlib")
    folder, used = save_tiny_model(tmp_path / "model", texture_from=2), []

    def watched(network: DCTransformer, number: int, sampling: SampleConfig, **options: Any) -> Samples:
        used.append(sampling)
        return sample(network, number, sampling, **options)

    monkeypatch.setattr("dctransformer.evaluate.evaluation.sample", watched)
    run(capsys, "report", folder, "--out", tmp_path / "report.html", "--num", "2", "--seed", "5")
    assert used == [SampleConfig(5), SampleConfig(5, min_p=0.05, guidance=1.5, texture_guidance=1.0)]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        "the first of the seed (seed 5, temperature 1, top-p 1, guidance 1.5, min-p 0.05, guidance of texture 1)"
        in text
    )

    def sheets(folder: Path, **settings: float) -> SampleConfig:
        sampling, network = SampleConfig(5, **settings), load_model(folder)
        return _Work("", folder, network, None, None, 2, sampling, None, False).sampling_of_sheets

    cut = SampleConfig(5, min_p=0.05)
    assert sheets(folder, top_p=0.9) == SampleConfig(5, top_p=0.9)
    (folder / "train.json").write_text('{"label_dropout": 0.0}')  # the null label was not trained
    assert sheets(folder) == cut
    unlabelled = {"num_labels": 0, "label_names": ()}
    assert sheets(save_tiny_model(tmp_path / "without", texture_from=2, **unlabelled)) == cut
    assert sheets(save_tiny_model(tmp_path / "triples", texture_from=4)) == SampleConfig(5)
    (folder / "train.json").write_text("[")
    with pytest.raises(ValueError, match=r"train\.json is damaged"):
        sheets(folder)


def test_evaluations_without_settings_of_texture_can_be_shown() -> None:
    """Files of older versions hold no settings of texture; the defaults of texture are not stated."""
    old = {"seed": 3, "temperature": 1.0, "top_p": 1.0, "guidance": 1.0}
    assert sampling_text(old) == "seed 3, temperature 1, top-p 1, guidance 1"
    assert sampling_text(dataclasses.asdict(SampleConfig(3))) == sampling_text(old)


def test_a_folder_is_its_own_original(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is cropped and resized as by `prepare`, and a subset of it is a random sample."""
    result = json.loads(run(capsys, "evaluate", model, "--data", photos, *ALL, "--reference", "8", "--json"))
    assert result["settings"]["reference"]["pictures"] == 8 and result["bits"]["images"] == 5
    config = ModelConfig(size=32, quality=30, num_labels=2, label_names=("rose", "tulip"))
    reference = open_reference(photos, config)
    assert reference.originals is not None and sorted(set(reference.labels[:8])) == [0, 1]
    first = reference.originals.read(0, 12)
    whole = {np.asarray(crop_resize(load_image(p), 32)).tobytes() for p in photos.rglob("*.png")}
    assert {x.numpy().tobytes() for x in first} == whole
    torch.testing.assert_close(reference.round_trip.read(2, 5), Codec(30).decode(Codec(30).encode(first[2:5])))


def test_originals_of_a_prepared_set(
    model: Path, data: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Originals are found at the recorded or the given path; otherwise the report explains why they are missing."""
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    info = json.loads((moved / "dctransformer.json").read_text())
    (moved / "dctransformer.json").write_text(json.dumps({**info, "source": "/nowhere"}))
    command = ("evaluate", model, "--data", moved, *ALL, "--metrics", "fid")
    text = run(capsys, *command)
    assert "floor" not in text and "--originals" in text
    assert "floor" in run(capsys, *command, "--originals", photos)
    other = photo_folder(tmp_path / "other", 3, ("rose", "tulip"), suffix=".jpg")
    assert "is not what" in refused(capsys, *command, "--originals", other)
    # Other pictures with the same names, at the recorded path.
    same_names = tmp_path / "same"
    for path in photos.rglob("*.png"):
        (same_names / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), "red").save(same_names / path.relative_to(photos))
    assert "is another picture" in refused(capsys, *command, "--originals", same_names)
    (moved / "dctransformer.json").write_text(json.dumps({**info, "source": str(same_names)}))
    text = run(capsys, *command)
    assert "floor" not in text and "is another picture" in text
    assert Path(info["source"]).is_absolute()


def test_pictures_made_before(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder written by `sample` is scored without its sheets, with the same scores as new samples."""
    run(capsys, "sample", model, "--num", "5", "--out", tmp_path / "samples", "--label", "rose")
    pictures = of_folder(tmp_path / "samples", 32)
    assert len(pictures) == 5
    for i, picture in enumerate(pictures.read(0, 5)):
        assert np.array_equal(picture, np.asarray(Image.open(tmp_path / "samples" / f"sample-{i:04d}.png")))
    command = ("evaluate", model, "--data", data, *ALL, "--metrics", "precision,kid", "--samples", tmp_path / "samples")
    result = json.loads(run(capsys, *command, "--json"))
    assert result["settings"]["generated"] == {"pictures": 5, "folder": str(tmp_path / "samples")}
    assert result["bits"] is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_cannot_be_evaluated(
    model: Path, data: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invalid requests end in one sentence and exit status 2 before any picture is generated."""
    torch.jit.save(torch.jit.script(Mean()), str(tmp_path / "mean.pt"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    empty = tmp_path / "empty"
    empty.mkdir()
    plain = ("evaluate", model, "--data", data, "--features", "small64")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    network = DCTransformer.from_pretrained(model)
    with torch.no_grad():
        network.channel_head.out.weight.fill_(3e38)
    network.save_pretrained(broken)
    cases: list[tuple[tuple, str]] = [
        ((*plain, "--num", "20", "--metrics", "fid"), "small64-frechet needs 161 generated pictures"),
        ((*plain, "--num", "200", "--metrics", "fid"), "small64-frechet needs 161 real pictures"),
        ((*plain, "--num", "200", "--metrics", "sfid"), "small64-spatial-frechet needs 449 generated"),
        ((*plain, "--num", "3", "--metrics", "recall"), "small64-recall needs 4 generated pictures"),
        ((*plain, "--num", "5", "--metrics", "kid"), "needs 1,000 generated pictures"),
        ((*plain, "--num", "0"), "num can't be 0; it must be at least 1"),
        ((*plain, "--metrics", "fdi"), "no metric 'fdi'"),
        ((*plain, "--metrics", ","), "no metric is asked for"),
        ((*plain, "--split", "test"), "no split 'test'"),
        ((*plain, "--top-p", "0"), "top-p"),
        ((*plain, "--features", tmp_path / "none.pt"), "no extractor"),
        ((*plain, *ALL, "--samples", empty), "empty"),
        ((*plain, "--out", tmp_path / "mean.pt" / "x.json"), "a file is in the way"),
        (("evaluate", model, "--data", empty, *ALL), "empty"),
        (("evaluate", model, "--data", tmp_path / "nowhere", *ALL), "nowhere"),
        (("evaluate", model, "--data", photos, *ALL, "--originals", photos), "leave --originals out"),
        (("evaluate", "flowers64", "--data", data, *ALL), "was prepared at quality 30"),
        (("evaluate", broken, "--data", data, *ALL, "--metrics", "fid"), "not finite"),
        (("evaluate", broken, "--data", data, *ALL, "--metrics", "bits"), "not finite"),
        (("report", model, "--data", data, "--num", "0", "--out", tmp_path / "r.html"), "num 0"),
        (("report", broken, "--out", tmp_path / "r.html"), "not finite"),
        (("report", model, "--data", empty, "--out", tmp_path / "r.html"), "empty"),
        (("report", model, "--evaluation", tmp_path / "mean.pt", "--out", tmp_path / "r.html"), "as an evaluation"),
        (("report", model, "--evaluation", tmp_path / "deep.json", "--out", tmp_path / "r.html"), "as an evaluation"),
        (("report", tmp_path / "none", "--out", tmp_path / "r.html"), "no model"),
    ]
    for argv, message in cases:
        assert message in refused(capsys, *argv), argv
        assert not (tmp_path / "r.html").exists(), argv
    mean = ("evaluate", model, "--data", data, "--features", tmp_path / "mean.pt", "--metrics", "fid", "--num", "4")
    assert "mean-frechet" in run(capsys, *mean)


class Page(html.parser.HTMLParser):
    """Parses an HTML page and checks that its tags are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.titles, self.links, self.tags, self.open, self._in_title = [], [], [], [], False
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record tags and references."""
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that tags are closed in order."""
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record self-closing SVG tags."""
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        """Record section titles."""
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


SECTIONS = [
    "Model", "Scores", "Told from real pictures", "Exact bits", "Training", "Samples", "Progressive decoding",
    "Where was it surprised?", "Values, real and generated", "Nearest training pictures",
]  # fmt: skip


def test_a_report_of_a_run(data: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After training and evaluation, the report is a single self-contained page."""
    pytest.importorskip("matplotlib")
    rundir = tmp_path / "run <1>"
    run(
        capsys, "train", "--data", data, "--run", rundir, "--preset", "tiny", "--triples", "3000", "--batch", "4",
        "--eval-every", "1000", "--eval-images", "2", "--sample-every", "0",
    )  # fmt: skip
    run(capsys, "evaluate", rundir, "--data", data, *ALL)
    assert (rundir / "evaluation.json").is_file()
    out = tmp_path / "pages" / "report.html"
    run(capsys, "report", rundir, "--data", data, "--out", out, "--num", "6")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.titles == [*SECTIONS, "All figures"]
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in text
    assert page.tags.count("svg") == 4 and page.tags.count("img") == 5
    assert "run &lt;1&gt;" in text and "<1>" not in text
    for phrase in ("small64-frechet", "Lepton", "seed 0", "Median distance", "validation split"):
        assert phrase in text
    run(capsys, "report", rundir, "--data", data, "--out", out, "--num", "6")
    assert out.read_text(encoding="utf-8") == text and "OTHER WEIGHTS" not in text
    DCTransformer.from_pretrained(rundir).save_pretrained(rundir, dtype=torch.float16)
    run(capsys, "report", rundir, "--data", data, "--out", out, "--num", "6")
    assert "OTHER WEIGHTS" in out.read_text(encoding="utf-8")
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]


def test_a_report_of_little(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without data the report lists what is missing; with a folder it computes the scores that are possible."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "report.html"
    run(capsys, "report", model, "--out", out, "--num", "3")
    text = out.read_text(encoding="utf-8")
    assert Page(text).titles == SECTIONS and "name them with --data" in text and "No curves" in text
    everything = tmp_path / "set"
    run(capsys, "prepare", photos, everything, "--size", "32", "--quality", "30", "--val-fraction", "0")
    result = json.loads(run(capsys, "evaluate", model, "--data", everything, "--metrics", "bits", "--json"))
    assert result["bits"]["split"] == "train" and result["bits"]["images"] == 12
    run(capsys, "report", model, "--data", everything, "--out", out, "--num", "4")
    text = out.read_text(encoding="utf-8")
    assert "train split" in text and "Median distance" not in text
    run(capsys, "report", model, "--data", photos, "--out", out, "--num", "4")
    text = out.read_text(encoding="utf-8")
    assert "small64-imagenette-recall" in text and "small64-imagenette-frechet" not in text and "floor" in text


def test_progressive_decoding_ends_with_the_picture() -> None:
    """The last stage is the complete picture, and the first is grey."""
    codec = Codec(30)
    dct = codec.encode(photo(32, 32, 1))
    strip = np.asarray(plots.progressive_strip(dct.to_triples(), 32, 32, 30))
    cells = [strip[4 : 4 + 128 : 4, 4 + i * 132 : 4 + i * 132 + 128 : 4] for i in range(5)]
    assert np.array_equal(cells[-1], codec.decode(dct)[0].numpy())
    assert (cells[0].max(-1) == cells[0].min(-1)).all() and not (cells[1].max(-1) == cells[1].min(-1)).all()
    error = [float(((cell.astype(int) - cells[-1]) ** 2).mean()) for cell in cells]
    assert error == sorted(error, reverse=True) and error[-2] > 0


def test_a_heat_map_has_one_scale() -> None:
    """Zero is black, the maximum is the brightest colour, and brightness is monotonic."""
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    coloured = plots.heat(maps, 4)
    assert coloured.shape == (1, 16, 16, 3)
    light = coloured[0, ::8, ::8].astype(int).sum(-1).flatten().tolist()
    assert light == sorted(light) and light[0] < 10 and light[-1] > 600


def test_curves_skip_a_line_that_was_cut_off(tmp_path: Path) -> None:
    """Curves of a running training can be read, although its last line is incomplete."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"triples": 5, "train/value": 2}\n{"triples": 9, "tr')
    assert read_curves(path) == [{"triples": 5, "train/value": 2}]


def test_curves_of_strangers_are_numbers_or_nothing(tmp_path: Path) -> None:
    """Invalid values in a foreign run's metrics are skipped."""
    path = tmp_path / "metrics.jsonl"
    odd = ["[" * 100_000, '{"triples": ' + "9" * 5000 + "}", '{"triples": "5"}', '{"triples": 1e400}', "null", "\xff"]
    path.write_bytes(
        "\n".join([*odd, '{"triples": 5, "train/value": NaN, "train/channel": [1], "x": 1}']).encode("latin1")
    )
    assert read_curves(path) == [{"triples": 5, "x": 1}]
    (tmp_path / "evaluation.json").write_text('{"weights": []')
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged; remove it"):
        run_figures(tmp_path)


def test_dollar_signs_in_names_are_no_mathematics() -> None:
    """Names with dollar signs are not parsed as formulas by matplotlib."""
    pytest.importorskip("matplotlib")
    fields = {band: {"channel": 1.0, "position": 1.0, "value": 1.0} for band in ("dc", "1-3")}
    name = r"runs/$\frac$"
    bits = {"bits_per_image_by_band_and_field": fields, "table": [{"coder": name, "bytes_per_image": 3.0}]}
    assert name in plots.svg(plots.bits_by_band_and_field(bits))


def test_a_report_opens_no_data_that_a_run_names(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report does not open the data folder named in a foreign evaluation.json."""
    pytest.importorskip("matplotlib")
    rundir, out = tmp_path / "run", tmp_path / "report.html"
    shutil.copytree(model, rundir)
    figures = {"scores": {}, "data": str(photos), "bits": None, "weights": "", "num": 1, "seed": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dctransformer.evaluate.report.open_held_out", lambda *_: pytest.fail("opened"))
        patch.setattr("dctransformer.evaluate.report.read_evaluation", lambda *_: figures)
        patch.setattr("dctransformer.evaluate.report._Work.sections", lambda work: iter([work._no_data("Bits")]))
        run(capsys, "report", rundir, "--out", out, "--num", "1")
    assert f"the evaluation used {photos}" in out.read_text(encoding="utf-8")


def test_data_is_checked_before_an_extractor_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without pictures is reported first: fetching the Inception weights may take long, or fail."""

    def fetch(*_: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("dctransformer.evaluate.evaluation.open_extractor", fetch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        evaluate("flowers64", "empty")
