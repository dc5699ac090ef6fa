"""Tests of every command with every kind of bad input: exit status 2, one sentence, no partial output.

The table is generated from the commands' own options; a new command or a new text option needs an entry in `LINES` or
`TEXTS` and fails here without one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.cli import COMMANDS, main
from dctransformer.data.store import TripleStore
from dctransformer.model.config import preset
from dctransformer.sequence.conditions import NAMES
from pictures import photo, photo_folder, pillow_jpeg

LINES: dict[str, dict[str, str]] = {
    "prepare": {"source": "photos", "out": "new", "--size": "16", "--workers": "1"},
    "train": {
        "--data": "data", "--run": "new", "--preset": "tiny", "--triples": "64", "--batch": "2", "--eval-images": "1",
        "--sample-every": "0",
    },
    "sample": {"model": "model", "--out": "new", "--num": "1", "--workers": "1"},
    "upscale": {"model": "model", "images": "photo.jpg", "--out": "new", "--workers": "1"},
    "colorize": {"model": "model", "images": "photo.jpg", "--out": "new", "--workers": "1"},
    "inpaint": {"model": "model", "images": "photo.jpg", "--out": "new", "--box": "0,0,16,16", "--workers": "1"},
    "continue": {"model": "model", "images": "photo.jpg", "--out": "new", "--bands": "1", "--workers": "1"},
    "likelihood": {"model": "model", "data": "photos", "--num": "1"},
    "evaluate": {
        "model": "model", "--data": "photos", "--num": "2", "--features": "small64", "--metrics": "fid", "--few": "",
        "--samples": "photos", "--out": "new/evaluation.json", "--reference": "2",
    },
    "report": {"run": "model", "--data": "photos", "--out": "new/report.html", "--num": "1"},
    "push": {"model": "model", "repo": "me/flowers"},
    "app": {"model": "model"},
    "info": {"thing": "model"},
    "compress": {"model": "model", "data": "photos", "--out": "new", "--num": "1"},
    "decompress": {"source": "compressed", "--out": "new"},
}  # fmt: skip
"""A valid line for each command, whose words are replaced one by one."""

INSTEAD = {
    ("train", "--minutes"): "--triples", ("prepare", "--long-side"): "--size", ("prepare", "--short-side"): "--size",
    ("inpaint", "--mask"): "--box", ("continue", "--from-triples"): "--bands",
}  # fmt: skip
"""Options that exclude another one of the line."""

TEXTS: dict[str, list[str]] = {
    "--size": ["x", "0x0", "17x16", "16x", "-16x16"],
    "--labels": ["nowhere.csv", "broken.json"],
    "--preset": ["huge"],
    "--model.preset": [],
    "--label": ["tulip", "99"],
    "--device": ["quantum", "xpu:99"],
    "--revision": ["v1"],
    "--split": ["nonsense"],
    "--given": ["nonsense"],
    "--metrics": ["nonsense", ","],
    "--features": ["nonsense", "nowhere.onnx", "broken.json"],
    "--box": ["x", "1,2,3", "0,0,0,0", "16,16,99,99", "-1,0,16,16", "0,0,32,32"],
    "--window": ["x", "17x16", "64x64"],
    "--host": ["256.1.1.1"],
    "--root-path": ["https://"],
    "repo": ["flowers", "a/b/c", "me/flo wers"],
}
"""Bad values of options that are texts."""

MODELS = [
    "nowhere", "empty", "texts", "photo.jpg", "model-without-weights", "model-of-half-weights", "model-of-no-weights",
    "model-of-other-weights", "model-of-broken-config", "model-of-half-config", "model-of-odd-config", "",
]  # fmt: skip
PICTURES = ["nowhere.jpg", "empty.jpg", "text.jpg", "half.jpg", "half.png", "empty", "pipe.jpg"]
FOLDERS = ["nowhere", "empty", "texts", "text.jpg", "data-of-half-shards", "data-of-no-shards", "data-of-broken-info"]
PLACES = ["photo.jpg", "photo.jpg/below", "/proc/nowhere", "n" * 300]

PATHS: dict[str, list[str]] = {
    "model": MODELS, "--model": MODELS,
    "thing": [*MODELS[:3], *MODELS[4:-1], *PICTURES], "--init": MODELS[:-1], "run": MODELS,
    "images": PICTURES, "--mask": [*PICTURES, "small.png"],
    "source": ["nowhere", "empty", "texts", "text.jpg", "half.parquet", "empty.parquet", "half.zip", "pipe.jpg", ""],
    "data": FOLDERS, "--data": FOLDERS, "--originals": ["nowhere", "empty", "texts"],
    "--samples": ["nowhere", "empty", "texts", "text.jpg"],
    "out": PLACES, "--out": PLACES, "--out FILE": ["empty", *PLACES[1:]], "--run": [*PLACES, "run-of-broken-config"],
    "--config": ["nowhere.toml", "empty", "text.jpg", "odd.toml", "half.toml", "pipe.jpg"],
    "--evaluation": ["nowhere.json", "empty", "empty.jpg", "text.jpg", "list.json", "pipe.jpg"],
    "--cache": [],  # scores come without a cache
}  # fmt: skip
"""Bad values of arguments that are paths or models: missing, empty, of the wrong kind, cut off, not writable."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An argument of a command: its name on the command line and the kinds of values it accepts."""

    word: str
    kinds: tuple[Any, ...]


def options(command: type, prefix: str = "") -> Iterator[Option]:
    """All arguments of a command."""
    for field in dataclasses.fields(command):
        hint = typing.get_type_hints(command, include_extras=True)[field.name]
        marks = [str(mark) for mark in getattr(hint, "__metadata__", ())]
        hint = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
        name = "run" if field.name == "run_" else field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            flat = any("name=''" in mark or "OmitArgPrefixes" in mark for mark in marks)
            yield from options(typing.cast(type, hint), prefix if flat else f"{prefix}{name}.")
            continue
        word = name if any("Positional" in mark for mark in marks) else f"--{prefix}{name}"
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = typing.get_args(hint) if union else (hint,)
        yield Option(word, tuple(k.__origin__ if typing.get_origin(k) is typing.Annotated else k for k in kinds))


def bad_values(option: Option) -> list[str]:
    """Invalid values for an argument."""
    if option.word in PATHS:
        return PATHS[option.word]
    if option.word in TEXTS:
        return TEXTS[option.word]
    if bool in option.kinds:
        return []
    if float in option.kinds:
        return ["x", "-1", "nan", "inf"]
    if int in option.kinds:
        return ["x", "-1", "99999999999999999999"]
    if any(typing.get_origin(kind) is Literal for kind in option.kinds):
        return ["nonsense"]
    if any(typing.get_origin(kind) is tuple for kind in option.kinds):
        return ["x", "-1"]
    raise AssertionError(f"{option.word} needs bad values in TEXTS or PATHS")


CASES = [
    pytest.param(name, option.word, value, id=f"{name} {option.word} {value[:40] or 'nothing'}")
    for name, command in COMMANDS.items()
    for option in options(command)
    for value in (
        PATHS["--out FILE"] if name in ("evaluate", "report") and option.word == "--out" else bad_values(option)
    )
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all intact and damaged files that the command lines name."""
    root = tmp_path_factory.mktemp("workplace")
    torch.manual_seed(0)
    config = preset("tiny", num_labels=2, label_names=("rose", "lily"), size=16, chunk=64, conditions=NAMES)
    DCTransformer(config).save_pretrained(root / "model")
    photo_folder(root / "photos", 4, ("rose", "lily"), suffix=".jpg")
    main(
        ["prepare", str(root / "photos"), str(root / "data"), "--size", "16", "--workers", "1", "--val-fraction", ".5"]
    )
    sound = pillow_jpeg(photo(32, 32), 75)
    files: dict[str, bytes] = {
        "photo.jpg": sound, "half.jpg": sound[: len(sound) // 2], "half.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "empty.jpg": b"", "text.jpg": b"no picture", "texts/a.txt": b"no picture", "half.parquet": b"PAR1\0\0",
        "empty.parquet": b"", "half.zip": b"PK\x03\x04\x14\0", "broken.json": b"{", "list.json": b"[1, 2]",
        "odd.toml": b"[train]\nnonsense = 1\n", "half.toml": b"[train\n", "small.png": b"",
        "run-of-broken-config/config.json": b"{", "run-of-broken-config/checkpoint.safetensors": b"",
    }  # fmt: skip
    main(["compress", str(root / "model"), str(root / "photos"), "--out", str(root / "compressed"), "--num", "1"])
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (root / "empty").mkdir()
    os.mkfifo(root / "pipe.jpg")
    [weights] = [p.name for p in (root / "model").glob("*.safetensors")]
    whole = (root / "model" / weights).read_bytes()
    text = (root / "model" / "config.json").read_bytes()

    def variant(kind: str, of: str, changes: dict[str, bytes | None]) -> None:
        shutil.copytree(root / of, root / kind)
        for name, data in changes.items():
            if data is None:
                (root / kind / name).unlink()
            else:
                (root / kind / name).write_bytes(data)

    variant("model-without-weights", "model", {weights: None})
    variant("model-of-half-weights", "model", {weights: whole[: len(whole) // 2]})
    variant("model-of-no-weights", "model", {weights: b""})
    variant("model-of-other-weights", "model", {weights: b"no weights at all" * 9})
    variant("model-of-broken-config", "model", {"config.json": b"{"})
    variant("model-of-half-config", "model", {"config.json": b'{"width": 32}'})
    variant("model-of-odd-config", "model", {"config.json": text.replace(b'"heads": ', b'"heads": -')})
    shards = {p.name: p.read_bytes() for p in (root / "data").glob("*.parquet")}
    variant("data-of-half-shards", "data", {name: data[: len(data) // 2] for name, data in shards.items()})
    variant("data-of-no-shards", "data", dict.fromkeys(shards))
    variant("data-of-broken-info", "data", {p.name: b"{" for p in (root / "data").glob("*.json")})
    for split in ("train", "validation"):
        TripleStore.open(root / "data", split, progress=False)  # derives the triples and caches them in the folder
    return root


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """All files below a folder with their sizes and modification times."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in root.rglob("*") if not p.is_dir()}


@pytest.fixture
def limited() -> Iterator[None]:
    """Fail a test that takes more than 20 seconds."""

    def stop(*_: object) -> None:
        raise AssertionError("it did not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run a test in the workplace folder, and remove what a command wrote there."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("DCTRANSFORMER_CACHE", str(workplace.parent / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield workplace
    shutil.rmtree(workplace / "new", ignore_errors=True)


def line(command: str, word: str, value: str) -> list[str]:
    """The valid command line with one argument replaced or added."""
    arguments = {key: default for key, default in LINES[command].items() if key != INSTEAD.get((command, word))}
    arguments[word] = value
    named = [[f"{k}={v}"] if v or k == word else [k] for k, v in arguments.items() if k.startswith("-")]
    return [
        command,
        *(v for k, v in arguments.items() if not k.startswith("-")),
        *(part for pair in named for part in pair),
    ]


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize(("command", "word", "value"), CASES)
def test_bad_input_is_refused_in_a_sentence(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    word: str,
    value: str,
) -> None:
    """Exit status is 2, the sentence names the argument or its value, and no file is written or changed."""
    before = listing(place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(line(command, word, value))
    shown = capsys.readouterr()
    assert stop.value.code == 2
    sentences = [text for text in shown.err.split("\n") if text and "\r" not in text]  # without progress bars
    assert len(sentences) == 1 and sentences[0].startswith("dctransformer: "), shown.err
    assert "Traceback" not in shown.err + shown.out
    name = word.strip("-").split(".")[-1]
    names = {name, name.replace("-", "_"), name.replace("-", " "), value.strip("/") or "nothing"}
    assert any(text.lower() in shown.err.lower() for text in names), shown.err
    assert listing(place) == before
    assert not (place / "new").exists()


def test_the_table_covers_every_command() -> None:
    """The table covers every command, with at least 300 cases."""
    assert set(LINES) == set(COMMANDS)
    assert len(CASES) >= 300
    assert {case.values[0] for case in CASES} == set(COMMANDS)
