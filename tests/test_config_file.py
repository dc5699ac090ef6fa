"""Tests of settings files: precedence of command line, file and preset, and the paper's runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dctransformer.cli import main
from dctransformer.commands.training import train_defaults
from dctransformer.data import DatasetInfo
from dctransformer.data.shapes import Shape
from dctransformer.model.config import preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.training.config import TrainConfig
from dctransformer.training.config_file import read_config_file
from pictures import photo_folder

PAPER = Path(__file__).parents[1] / "configs" / "paper"
RUNS = sorted(path.stem for path in PAPER.glob("*.toml"))


def written(folder: Path, text: str) -> Path:
    """Write a file with the given settings."""
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_over_file_over_preset(tmp_path: Path) -> None:
    """Each level overrides only what it names; the budget may use another unit than the file's."""
    path = written(
        tmp_path,
        'preset = "tiny"\n[model]\nwidth = 48\nvalue = [1, 2]\n'
        "[train]\ntriples = 500\nlr = 1\nmicro_batch = 2\nconditions.low = 0.0\n",
    )
    defaults = train_defaults(["train", "--config", str(path), "--model.width", "64"])
    assert defaults.preset == "tiny" and defaults.model.width == 48 and defaults.model.value == (1, 2)
    assert defaults.model.hidden == preset("tiny").hidden and defaults.model.chunk == preset("tiny").chunk
    assert defaults.options.triples == 500 and defaults.options.lr == 1.0 and defaults.options.micro_batch == 2
    assert defaults.options.conditions.low == 0 and defaults.options.conditions.luma == TrainConfig().conditions.luma
    assert defaults.options.batch == TrainConfig().batch
    other = train_defaults(["train", f"--config={path}", "--preset=small", "--minutes", "1"])
    assert other.preset == "small" and other.model.width == 48 and other.model.hidden == preset("small").hidden
    assert other.options.triples is None
    assert train_defaults(["train"]).options == TrainConfig()


def test_train_reads_a_file(tmp_path: Path) -> None:
    """A run stores the settings of the file, overridden by the command line."""
    photos, data, run = photo_folder(tmp_path / "photos", 6, ("a", "b")), tmp_path / "data", tmp_path / "run"
    main(["prepare", str(photos), str(data), "--size", "32", "--quality", "30", "--val-fraction", "0.3"])
    path = written(
        tmp_path,
        'preset = "tiny"\nmodel.width = 48\n[data]\nsize = 32\nquality = 30\nlabels = 2\n'
        "[train]\ntriples = 300\nbatch = 2\nsample_every = 0\nconditions.none = 1\nconditions.region = 0\n"
        "conditions.low = 0\nconditions.luma = 0\n",
    )
    main(["train", "--config", str(path), "--data", str(data), "--run", str(run), "--seed", "3"])
    model = json.loads((run / "config.json").read_text())["model"]
    assert model["width"] == 48 and model["conditions"] == ["none"]
    settings = json.loads((run / "train.json").read_text())
    assert settings["triples"] == 300 and settings["batch"] == 2 and settings["seed"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nbatsh = 4", "train has no field 'batsh'; did you mean 'batch'?"),
        ("[train]\nconditions.lov = 1", "did you mean 'low'?"),
        ("[model]\nwidht = 4", "model has no field 'widht'; did you mean 'width'?"),
        ("[model]\nquality = 30", "model has no field 'quality'"),
        ("[trian]\nlr = 1", "did you mean 'train'?"),
        ("[data]\nsise = 64", "did you mean 'size'?"),
        ("train = 3", "train can't be 3; it must be a table"),
        ("[train]\nbatch = 4.5", "train.batch can't be 4.5; it must be a whole number"),
        ("[train]\nbatch = true", "train.batch can't be True; it must be a whole number"),
        ('[train]\nlr = "fast"', "train.lr can't be 'fast'; it must be a number"),
        ("[train]\nflip = 1", "it must be true or false"),
        ('[train]\nprecision = "fp16"', "it must be 'auto', 'fp32' or 'bf16'"),
        ('[train]\nmicro_batch = "some"', "it must be 'auto' or a whole number"),
        ("[model]\nencoder = 3", "encoder can't be 3; it must be a list"),
        ("[train]\ntriples = 5\nminutes = 1", "not both"),
        ('[model]\nencoder = [1, "2"]', "it must be a whole number"),
        ("[train]\nconditions = 3", "train.conditions can't be 3; it must be a table"),
        ("[train]\nbatch = 0", "train.batch can't be 0; it must be at least 1"),
        ("[train]\nlr = nan", "train.lr can't be nan; it must be greater than 0"),
        ("preset = []", "preset can't be []; it must be a text"),
        ('preset = "huge"', "choose one of tiny"),
        ("[model]\nwidth = 33", "even multiple of heads"),
        ("[data]\nsize = 40", "multiple of 16"),
        ('[data]\nsize = "192x100"', "choose 192x96, say"),
        ("[data]\nlong_side = 8", "long side 8 is not a positive multiple of 16"),
        ("[data]\nlong_side = 96\nsize = 64", "give one of size, long side and short side"),
        ("preset =", "is not TOML"),
    ],
)
def test_mistakes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    """Mistakes are refused with one sentence that names the file and the problem."""
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_config_file(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_and_other_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file and other data are refused before anything is written."""
    data, run = tmp_path / "data", tmp_path / "run"
    photos = photo_folder(tmp_path / "photos", 2, ("a",))
    main(["prepare", str(photos), str(data), "--size", "32", "--quality", "30", "--val-fraction", "0"])
    for path, message in (
        (tmp_path / "none.toml", "can't be read (No such file"),
        (written(tmp_path, "[data]\nquality = 50"), f"a data set of quality 50, but {data} has 30"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["train", "--config", str(path), "--data", str(data), "--run", str(run)])
        assert caught.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ") and not run.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size = 64", None),
        ('size = "64x64"', None),
        ("short_side = 64", "of size short side 64, but data has 64"),
        ('size = "64x48"', "of size 64x48, but data has 64"),
    ],
)
def test_the_shape_of_the_data_is_checked(options: str, message: str | None, tmp_path: Path) -> None:
    """The shape of the data is checked, however it is specified."""
    file = read_config_file(written(tmp_path, f"[data]\n{options}"))
    info = DatasetInfo.of_shape(Shape.of(64), quality=20, splits={})
    if message is None:
        file.data.check(info, "data")
    else:
        with pytest.raises(ValueError, match=message):
            file.data.check(info, "data")


@pytest.mark.parametrize("name", RUNS)
def test_the_papers_runs(name: str) -> None:
    """Every settings file loads, and its model has the number of parameters given in the table."""
    file = read_config_file(PAPER / f"{name}.toml")
    config = file.model_config()
    with torch.device("meta"):
        count = sum(p.numel() for p in DCTransformer(config).parameters())
    row = re.search(rf"\| `{name}` \|.*", (PAPER / "README.md").read_text(encoding="utf-8"))
    assert row is not None and f" {count:,} " in row[0]
    stated, width, heads = (738e6, 1152, 18) if name.endswith("738m") else (448e6, 896, 14)
    assert 0.97 < count / stated < 1.03  # as reported for the paper's supplement
    assert (config.width, config.heads, config.chunk, config.overlap) == (width, heads, 896, 128)
    shape = (75, (288, 384), (384, 384)) if name.startswith("lsun") else (50, (256, 256), (256, 256))
    assert (config.quality, config.trained_shape, config.trained_extent) == shape
    assert file.train.batch == 512 and file.train.triples == 300_000_000_000


def test_the_papers_runs_are_those() -> None:
    """All runs of the paper have a settings file."""
    assert {
        "lsun-bedrooms",
        "lsun-towers",
        "lsun-churches",
        "ffhq",
        "imagenet-256",
        "imagenet-256-738m",
        "openimages-upsample",
    } < set(RUNS)


def test_files_may_name_switches_that_are_built_in_now(tmp_path: Path) -> None:
    """Retired switches are accepted at the built-in value; for others the error names the last commit with them."""
    built_in = read_config_file(written(tmp_path, 'preset = "tiny"\n[model]\npointer = true\nnorm = "layer"\n'))
    assert built_in.architecture() == preset("tiny")
    paper = read_config_file(written(tmp_path, 'preset = "paper"\n[model]\nsurvival = false\n'))
    assert paper.architecture() == preset("paper")
    with pytest.raises(ValueError, match="settled_input False are no longer supported; check out commit 3940652"):
        read_config_file(written(tmp_path, "[model]\nsettled_input = false\n"))
