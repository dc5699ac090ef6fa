"""Tests of models on the hub: uploads, refusals, and offline use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
from safetensors.torch import load_file

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.evaluate.evaluation import weights_hash
from dctransformer.model.config import preset
from dctransformer.sequence.conditions import NAMES, TASKS
from dctransformer.tasks.edit import colorize, continue_, inpaint, upscale
from dctransformer.tasks.generate import generate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model() -> DCTransformer:
    """A tiny model with labels."""
    torch.manual_seed(0)
    return DCTransformer(preset("tiny", num_labels=2, label_names=("Röse", "Tulip"), conditions=("none", "luma")))


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Record uploads to the hub, with a token that is not checked."""
    sent: list[dict] = []

    def upload(self: HfApi, *, folder_path: Path, **options) -> str:
        files = {str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}
        sent.append({"files": files, "token": self.token, **options})
        return f"https://hub/{options['repo_id']}/commit/1"

    def create(self: HfApi, repo_id: str, **options) -> huggingface_hub.RepoUrl:
        sent.append({"create": repo_id, **options})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    return sent


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all tokens."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def test_an_upload_holds_config_weights_and_card(model: DCTransformer, uploads: list[dict], tmp_path: Path) -> None:
    """An upload is one commit that can be loaded again."""
    assert isinstance(model, PyTorchModelHubMixin)
    url = model.push_to_hub("me/flowers", private=True)
    repositories, sent = uploads
    assert repositories["create"] == "me/flowers" and repositories["private"] is True
    assert url.endswith("me/flowers/commit/1") and sent["repo_id"] == "me/flowers"
    assert sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
    for name, data in sent["files"].items():
        (tmp_path / name).write_bytes(data)
    loaded = DCTransformer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "dctransformer" and {"jpeg", "model_hub_mixin"} <= set(card.data.tags)
    assert 'from_pretrained("me/flowers")' in card.text and "generate, continue, colorize" in card.text
    assert "| width | 32 |" in card.text and "None were measured" in card.text


@pytest.mark.parametrize("condition", NAMES)
def test_the_card_lists_exactly_the_tasks_that_run(condition: str) -> None:
    """Tasks that the card does not list are refused, and the refusal has the same list."""
    model = DCTransformer(preset("tiny", conditions=(condition,)))
    line = next(x for x in model.generate_model_card().text.splitlines() if x.startswith("It was trained to: "))
    listed = line.removeprefix("It was trained to: ").rstrip(".").split(", ")
    calls = {
        "generate": lambda: generate(model, 0),
        "continue": lambda: continue_(model, [], bands=1),
        "colorize": lambda: colorize(model, []),
        "inpaint": lambda: inpaint(model, [], box=(0, 0, 1, 1)),
        **{f"upscale by {factor}": lambda factor=factor: upscale(model, [], factor) for factor in (2, 4, 8)},
    }
    assert set(listed) <= set(calls) == {task.phrase for task in TASKS}
    for phrase, call in calls.items():
        with pytest.raises(ValueError) as error:  # supported tasks are refused for lack of pictures
            call()
        refused = re.search(r"was not trained to (.*) \(it can: (.*)\);", str(error.value))
        assert (refused is None) == (phrase in listed), (phrase, str(error.value))
        assert refused is None or refused[2].split(", ") == listed


def test_saving_may_write_a_card_and_upload(model: DCTransformer, uploads: list[dict], tmp_path: Path) -> None:
    """A card is written on request only, and an existing one is preserved."""
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain/README.md").exists()
    model.save_pretrained(tmp_path / "carded", model_card_kwargs={"figures": {"bytes per image": 12.5}})
    assert "| bytes per image | 12.5 |" in (tmp_path / "carded/README.md").read_text()
    (tmp_path / "carded/README.md").write_text("mine")
    model.save_pretrained(
        tmp_path / "carded", model_card_kwargs={}, push_to_hub=True, repo_id="me/x", commit_message="Hello"
    )
    assert (tmp_path / "carded/README.md").read_text() == "mine"
    assert uploads[-1]["commit_message"] == "Hello"


def test_push_takes_the_runs_figures(
    model: DCTransformer, uploads: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card has the final validation and the scores of the present weights; a custom card is unchanged."""
    run = tmp_path / "run"
    model.save_pretrained(run)
    lines = [
        {"step": s, "triples": 9, "final/bytes_per_image": b, "final/huffman_bytes_per_image": 99.0,
         "final/bits_per_triple": 3.5} for s, b in ((1, 80.0), (2, 70.25))
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"weights": weights_hash(run), "scores": {"samples to originals": {"fid-small64": 1.5}}}
    (run / "evaluation.json").write_text(json.dumps(result))
    (run / "checkpoint.safetensors").write_bytes(b"not to be uploaded")
    main(["push", str(run), "me/flowers"])
    assert "me/flowers/commit/1" in capsys.readouterr().out
    assert sorted(uploads[-1]["files"]) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard(uploads[-1]["files"]["README.md"].decode())
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {
        "bytes per image, held-out pictures": 70.25, "libjpeg's optimised Huffman, the same pictures": 99.0,
        "bits per triple": 3.5, "fid-small64, samples to originals": 1.5,
    }  # fmt: skip
    assert "| bytes per image, held-out pictures | 70.25 |" in card.text
    (run / "evaluation.json").write_text(json.dumps({**result, "weights": "others"}))
    main(["push", str(run), "me/flowers"])
    assert b"fid-small64" not in uploads[-1]["files"]["README.md"]
    main(["push", "flowers64", "me/flowers64"])
    assert "Oxford 102 Flowers" in uploads[-1]["files"]["README.md"].decode()
    assert load_file_of(uploads[-1]["files"]["model.safetensors"], tmp_path).keys()


def load_file_of(data: bytes, folder: Path) -> dict:
    """Load the tensors of a file given as bytes."""
    (folder / "sent.safetensors").write_bytes(data)
    return load_file(folder / "sent.safetensors")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_missing_token_is_reported_with_login_instructions(
    model: DCTransformer, tmp_path: Path, offline: str, no_token: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without a token, the command ends before any work with exit status 2 and one sentence."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline == "1")
    with pytest.raises(ValueError, match=r"hf auth login.*HF_TOKEN"):
        model.push_to_hub("me/flowers")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as caught:
        main(["push", str(tmp_path / "model"), "me/flowers"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "hf auth login" in error and "Traceback" not in error


def test_what_the_hub_refuses_is_a_sentence(model: DCTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline mode, an unreachable hub and a read-only token are reported in one sentence."""
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
            model.push_to_hub("me/flowers", token="hf_nobody")

    def answers(error: Exception):
        def create(*_, **__):
            raise error

        return create

    response = httpx_response(403)
    refusal = huggingface_hub.errors.HfHubHTTPError("403 Forbidden\nmore", response=response)
    for error, message in ((refusal, "does not let this token write me/flowers"), (OSError("no route"), "no route")):
        monkeypatch.setattr(HfApi, "create_repo", answers(error))
        with pytest.raises(ValueError, match=message):
            model.push_to_hub("me/flowers", token="hf_nobody")


def httpx_response(status: int):
    """A minimal response of the HTTP library that the hub's client uses."""
    from huggingface_hub.errors import HfHubHTTPError

    module = sys.modules[HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
    return module.Response(status, request=module.Request("POST", "https://hub"))


def test_offline_mode_loads_what_was_downloaded(model: DCTransformer, tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE=1, cached models load by name, by commit and on the command line."""
    repo = tmp_path / "hub" / "models--me--flowers"
    model.save_pretrained(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    assert DCTransformer.from_pretrained("me/flowers", cache_dir=tmp_path / "hub", local_files_only=True)
    code = (
        "from dctransformer import DCTransformer as D\n"
        f"a, b = (D.from_pretrained('me/flowers', revision=r) for r in (None, '{COMMIT}'))\n"
        "assert a.config == b.config\n"
        "from dctransformer.cli import main\n"
        "main(['info', 'hf:me/flowers'])\n"
        "try: main(['info', 'hf:me/tulips'])\n"
        "except SystemExit as error: assert error.code == 2\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "labels: Röse, Tulip" in done.stdout
    assert "hf:me/tulips" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(repo / "snapshots")
    with pytest.raises(ValueError, match="me/flowers"):
        DCTransformer.from_pretrained("me/flowers", cache_dir=tmp_path / "hub", local_files_only=True)
