"""Tests of the command line as a newcomer uses it, with right and wrong arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dctransformer import DCTransformer, read_jpeg
from dctransformer.cli import main
from dctransformer.codec import order
from dctransformer.commands.common import listed, with_revision
from dctransformer.files import printable
from pictures import photo_folder
from tiny_model import prepare_small, save_plain_model, save_tiny_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 synthetic pictures in two classes."""
    folder = tmp_path_factory.mktemp("photos")
    return photo_folder(folder, 12, ("rose", "tulip"), suffix=".jpg")


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data set of these pictures."""
    return prepare_small(photos, tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny model of 32-pixel pictures."""
    return save_plain_model(tmp_path_factory.mktemp("models") / "model")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must succeed, and return its output."""
    main([*map(str, argv)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail with exit status 2, and return its one-sentence error."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, argv)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err + captured.out


def test_train_then_sample_and_score(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training, sampling and scoring work end to end on a small scale."""
    rundir = tmp_path / "run"
    run(
        capsys, "train", "--data", data, "--run", rundir, "--preset", "tiny", "--triples", "2000", "--batch", "4",
        "--eval-images", "2", "--sample-every", "0", "--model.width", "48",
    )  # fmt: skip
    assert json.loads((rundir / "config.json").read_text())["model"]["width"] == 48
    facts = json.loads(run(capsys, "info", rundir, "--json"))
    assert facts["kind"] == "model" and facts["labels"] == ["rose", "tulip"] and facts["parameters"] > 0
    scores = json.loads(run(capsys, "likelihood", rundir, data, "--json"))
    held_out = json.loads(run(capsys, "info", data, "--json"))["pictures"]["validation"]
    assert scores["images"] == held_out > 0 and scores["bytes_per_image"] > 0


def test_sample_writes_real_jpeg_files(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JPEG and PNG files have the same picture; sheet and heat map exist; a seed is reproducible."""
    out = json.loads(run(capsys, "sample", model, "--num", "3", "--out", tmp_path / "a", "--seed", "5", "--json"))
    assert len(out["files"]) == 3
    for jpg, png in zip(out["files"], out["pngs"], strict=True):
        assert np.array_equal(np.asarray(Image.open(jpg).convert("RGB")), np.asarray(Image.open(png)))
        assert Image.open(jpg).format == "JPEG"
        assert read_jpeg(jpg).sampling == "4:2:0"
    assert Image.open(out["sheet"]).width > 100 and Image.open(out["heat_map"]).width > 100
    repeated = json.loads(run(capsys, "sample", model, "--num", "2", "--out", tmp_path / "b", "--seed", "5", "--json"))
    for a, b in zip(out["files"], repeated["files"], strict=False):
        assert Path(a).read_bytes() == Path(b).read_bytes()
    text = run(capsys, "sample", model, "--num", "1", "--out", tmp_path / "c", "--label", "Tulip", "--top-p", "0.9")
    assert "sample-0000.jpg" in text


def test_sample_counts_decisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A texture channel is one decision, however many coefficients it has, in JSON and in the progress bar."""
    model = save_tiny_model(tmp_path / "model", texture_from=2, size=16)
    network = DCTransformer.from_pretrained(model)
    network.texture.use_bias.weight.data += 3
    network.save_pretrained(model)
    command = ("sample", model, "--out", tmp_path / "out", "--workers", "1", "--num")
    facts = json.loads(run(capsys, *command, "2", "--json"))
    triples = decisions = 0
    for path in facts["files"]:
        rank = order.RANK[read_jpeg(path).to_triples()[0][:, 0].long()]
        is_texture = rank >= network.config.texture_rank
        triples, decisions = triples + len(rank), decisions + sum(~is_texture) + len(set(rank[is_texture]))
    assert facts["decisions"] == decisions / 2 < triples / 2
    main([*map(str, command), "3"])
    assert " decisions]" in capsys.readouterr().err


def test_likelihood_of_a_folder_is_that_of_the_prepared_set(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain folder is cropped, resized and encoded as by `prepare`."""
    out = tmp_path / "all"
    run(capsys, "prepare", photos, out, "--size", "32", "--quality", "30", "--val-fraction", "0")
    prepared = json.loads(run(capsys, "likelihood", model, out, "--split", "train", "--json"))
    folder = json.loads(run(capsys, "likelihood", model, photos, "--json"))
    assert prepared["images"] == folder["images"] == 12
    assert folder["labelled"] == 12
    for key in ("bytes_per_image", "bits_per_pixel", "bits_per_triple", "huffman_bytes_per_image"):
        assert folder[key] == pytest.approx(prepared[key], rel=1e-6)
    assert folder["bits_per_pixel"] == pytest.approx(folder["bytes_per_image"] * 8 / 32**2)
    by_band = sum(folder["bits_per_image_by_band"].values())
    assert by_band == pytest.approx(folder["bytes_per_image"] * 8)
    assert sum(folder["bits_per_triple_by_field"].values()) == pytest.approx(folder["bits_per_triple"])
    assert "bytes per image" in run(capsys, "likelihood", model, photos, "--num", "2")


def test_info_of_a_jpeg_and_of_data(photos: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`info` shows tables, sampling and triples of a file, and counts and labels of a data set."""
    path = next(photos.rglob("*.jpg"))
    facts = json.loads(run(capsys, "info", path, "--json"))
    dct = read_jpeg(path)
    assert facts["sampling"] == "4:2:0" and facts["luma_table"] == dct.luma_table.tolist()
    assert facts["triples"] == len(dct.to_triples()[0]) == sum(facts["triples_by_band"].values())
    facts = json.loads(run(capsys, "info", data, "--json"))
    assert sum(facts["pictures"].values()) == 12 and facts["labels"] == ["rose", "tulip"]
    assert "quality: 30" in run(capsys, "info", data)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has a description and an example; the help of train shows the preset's values."""
    for command in ("prepare", "train", "sample", "likelihood", "info"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert "Example: dctransformer" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(SystemExit):
        main(["train", "--preset", "paper", "--help"])
    assert "default: 896" in capsys.readouterr().out


def test_wrong_arguments_are_refused(
    model: Path, data: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments give one sentence that says what to do and exit status 2, and leave nothing behind."""
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("no picture")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(next(photos.rglob("*.jpg")).read_bytes()[:700])
    train = ("train", "--data", data, "--run", out)
    cases: list[tuple[tuple, str]] = [
        (("prepare", tmp_path / "nowhere", out), "nowhere"),
        (("prepare", empty, out), "empty"),
        (("prepare", texts, out), "texts"),
        (("prepare", photos, out, "--size", "40"), "multiple of 16"),
        (("prepare", photos, out, "--quality", "0"), "1 to 100"),
        (("prepare", photos, out, "--quality", "101"), "1 to 100"),
        ((*train, "--preset", "huge"), "choose one of tiny"),
        ((*train, "--model.widht", "3"), "--model.width"),
        ((*train, "--lr", "fast"), "--lr"),
        ((*train, "--warmup", "0"), "warmup can't be 0; it must be at least 1"),
        ((*train, "--triples", "5", "--minutes", "1"), "not both"),
        ((*train, "--model.width", "33"), "even multiple of heads"),
        (("likelihood", model, photos, "--num", "-1"), "at least 1"),
        (("likelihood", model, data, "--split", "test"), "choose one of train, validation"),
        (("sample", "no/such-model", "--out", out), "no/such-model"),
        (("train", "--data", empty, "--run", out), "dctransformer prepare"),
        (("sample", model, "--out", out, "--label", "rosse"), "rose"),
        (("sample", model, "--out", out, "--num", "0"), "at least 1"),
        (("sample", model, "--out", out, "--top-p", "0"), "top-p"),
        (("sample", model, "--out", out, "--temperature", "-1"), "temperature"),
        (("sample", tmp_path / "nowhere", "--out", out), "no model"),
        (("evaluate", model, "--data", data, "--texture-top-p", "2"), "dctransformer: texture's top-p 2.0 must be"),
        (("sample", model, "--out", broken), "file is in the way"),
        (("likelihood", model, empty), "empty"),
        (("likelihood", model, tmp_path / "nowhere"), "nowhere"),
        (("info", broken), "broken.jpg"),
        (("info", empty), "neither a model nor a prepared data set"),
        (("info", tmp_path / "nowhere.jpg"), "no file or folder"),
    ]
    for argv, message in cases:
        assert message in refused(capsys, *argv), argv
        assert not out.exists(), argv


def test_help_and_version_import_nothing_heavy() -> None:
    """Help and version are printed without importing heavy modules."""
    code = (
        "import sys\nfrom dctransformer.cli import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'PIL', 'huggingface_hub', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_the_output_may_be_full_or_closed() -> None:
    """A full disk is reported with exit status 2; a closed pipe is not an error."""
    command = [sys.executable, "-m", "dctransformer.cli", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dctransformer: standard output can't be written (No space left on device)")
    assert done.stderr.count("\n") == 1
    closed = ["sh", "-c", f"{' '.join(command)} >&-"]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("dctransformer: standard output is closed")


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Escapes, text direction marks and invalid bytes in names never reach the terminal."""
    with pytest.raises(SystemExit):
        main(["info", "a\x1b[2J\x9b\u202eb\ud800\n"])
    assert r"a\x1b[2J\x9b\u202eb\ud800\n" in capsys.readouterr().err.replace("\\\\", "\\")
    assert printable("Rose\u00a0ü 薔薇 🌹") == "Rose\u00a0ü 薔薇 🌹"
    folder = save_tiny_model(tmp_path / "model", label_names=("\x1b]0;owned\x07", "lily"))
    main(["info", str(folder)])
    shown = capsys.readouterr().out
    assert r"\x1b]0;owned\x07" in shown and "\x1b" not in shown


def test_a_revision_belongs_to_a_model_of_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    """A revision is refused for a local folder instead of being ignored."""
    with pytest.raises(SystemExit):
        main(["info", "flowers64", "--revision", "v1"])
    assert "--revision is for models of the hub" in capsys.readouterr().err
    assert with_revision("hf:me/flowers", "v1") == "hf:me/flowers@v1"


@pytest.mark.parametrize(
    ("paths", "text"), [(["a b.jpg"], "1 picture: a b.jpg"), (["a.jpg", "b.jpg"], "2 pictures: a.jpg …")]
)
def test_written_pictures_are_counted(paths: list[str], text: str) -> None:
    """One picture is singular, and of several the first is named."""
    assert listed(paths) == text
