"""Tests of models on disk: saving and loading, and refusal of damaged files."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dctransformer
from dctransformer import DCTransformer
from dctransformer.hub.compatibility import ADDED, RENAMED, RETIRED
from dctransformer.hub.pretrained import SHIPPED, model_folder
from dctransformer.model import dctransformer as network
from dctransformer.model.config import preset
from dctransformer.training.checkpoint import load_checkpoint
from dctransformer.training.config import TrainConfig
from dctransformer.training.optimizer import make_optimizer
from tiny_model import save_tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a saved tiny model."""
    torch.manual_seed(0)
    DCTransformer(preset("tiny", num_labels=2, label_names=("Röse", "Tulip"))).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_saved_models_are_restored_exactly(saved: Path, tmp_path: Path) -> None:
    """Config and weights are restored bit for bit, or rounded once to bf16; files are JSON and safetensors only."""
    model = DCTransformer.from_pretrained(saved)
    assert model.config == preset("tiny", num_labels=2, label_names=("Röse", "Tulip"))
    assert not model.training
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    model.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    half = DCTransformer.from_pretrained(tmp_path / "half")
    for a, b in zip(half.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b.bfloat16().float())


def test_configs_with_retired_switches_load_where_they_have_what_is_built_in(saved: Path) -> None:
    """Configs of older weights with retired switches load if they have the built-in value."""
    before = DCTransformer.from_pretrained(saved)
    _field(saved, **{name: value for name, (value, _) in RETIRED.items()}, survival=True)
    assert DCTransformer.from_pretrained(saved).config == before.config


@pytest.mark.parametrize("block", ["modern", "paper"])
def test_weights_of_older_versions_load(block: str, tmp_path: Path) -> None:
    """The heads' layers were the network's, gates were scalars, and some parameters did not exist."""
    saved = save_tiny_model(tmp_path / "model", block=block)
    model = DCTransformer.from_pretrained(saved)
    for name in ADDED:
        model.get_parameter(name).detach().zero_()
    older = {now: before for before, now in RENAMED.items()}

    def old_name(name: str) -> str:
        module, _, rest = name.rpartition(".")
        return next((f"{older[now]}{module[len(now) :]}.{rest}" for now in older if module.startswith(now)), name)

    tensors = {
        old_name(name): p[0].clone() if name.endswith(".gate") else p
        for name, p in model.state_dict().items()
        if name not in ADDED
    }
    assert any(p.ndim == 0 for p in tensors.values()) == (block == "paper")
    assert {"channel_out.weight", "place_readout.weight", "value_context.2.bias"} <= tensors.keys()
    save_file(tensors, saved / "model.safetensors")
    loaded = DCTransformer.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[name], p) for name, p in model.state_dict().items())

    state = {f"{kind}.{name}": p.clone() for kind in ("weights", "average") for name, p in tensors.items()}
    state |= {f"optimizer.exp_avg.{name}": p + 1 for name, p in tensors.items()}
    state |= {f"optimizer.step.{name}": torch.tensor(7.0) for name in tensors}
    save_file(state, tmp_path / "checkpoint.safetensors", {"progress": "{}"})
    fresh, ema = DCTransformer(model.config), DCTransformer(model.config).requires_grad_(False)
    optimizer = make_optimizer(fresh, TrainConfig(optimizer="adamw", lr=1e-3))
    with torch.no_grad():
        fresh.local.given_mix.add_(1)
    load_checkpoint(tmp_path / "checkpoint.safetensors", fresh, ema, optimizer)
    for (name, p), a, b in zip(model.named_parameters(), fresh.parameters(), ema.parameters(), strict=True):
        assert torch.equal(a, p) and torch.equal(b, p)
        assert name in ADDED or torch.equal(optimizer.state_of(a)["exp_avg"], p + 1)
        assert name in ADDED or optimizer.state_of(a)["step"].shape == ()


def test_int8_is_within_half_a_step_of_every_row(tmp_path: Path) -> None:
    """Matrices are stored as int8 with a scale per row; embeddings and vectors are rounded once to bf16."""
    torch.manual_seed(0)
    model = DCTransformer(preset("tiny", texture_from=2))
    with torch.no_grad():
        model.value_head.out.weight[0] = 0
        model.value_head.out.weight[1] *= 1e-30
    model.save_pretrained(tmp_path, dtype=torch.int8)
    stored = load_file(tmp_path / "model.safetensors")
    kinds = {name: stored[name].dtype for name in ("value_head.out.weight", "local.luma_mix.weight", "row.weight")}
    assert list(kinds.values()) == [torch.int8, torch.int8, torch.bfloat16]
    assert stored["local.luma_mix.weight.scale"].shape == model.local.luma_mix.weight.shape[:1]
    loaded = DCTransformer.from_pretrained(tmp_path).state_dict()
    for name, weight in model.state_dict().items():
        if stored[name].dtype == torch.int8:
            rows, error = weight.flatten(1), (loaded[name] - weight).flatten(1).abs()
            assert (error <= rows.abs().amax(1, keepdim=True) / 127 * 0.5001).all(), name
        else:
            assert torch.equal(loaded[name], weight.bfloat16().float()), name


def test_weights_are_not_stored_as_other_integers(saved: Path, tmp_path: Path) -> None:
    """Other integer types are refused, as they would lose the weights silently."""
    model = DCTransformer.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"can't be stored as torch.int32; choose .* torch.int8"):
        model.save_pretrained(tmp_path / "whole", dtype=torch.int32)
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize(
    ("name", "size", "quality", "labels", "prepared"),
    [
        ("cats128", 128, 35, 0, "144x144"),
        ("flowers64", 64, 20, 102, "short side 64"),
        ("photos", 64, 75, 0, "short side 80"),
    ],
)
def test_shipped_weights_load_by_name(name: str, size: int, quality: int, labels: int, prepared: str) -> None:
    """All shipped weights load by name, know their training pictures' size, and are below the size limits."""
    model = DCTransformer.from_pretrained(name)
    assert model.config.windows and model.config.prepared == prepared
    assert (model.config.size, model.config.quality, model.config.num_labels) == (size, quality, labels)
    assert set(model.config.conditions) == {"none", "low1", "low2", "low4", "luma", "region"}
    sizes = [path.stat().st_size for path in (SHIPPED / name).rglob("model.safetensors")]
    assert len(sizes) == 1 + (model.guide is not None)
    assert sum(sizes) <= (12 if name == "cats128" else 8) << 20


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _not_a_number(folder: Path) -> None:
    model = DCTransformer.from_pretrained(folder)
    with torch.no_grad():
        model.value_head.out.bias[0] = float("nan")
    model.save_pretrained(folder)


def _other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["hidden"] = 96
    (folder / "config.json").write_text(json.dumps(config))


def _unknown_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["widht"] = 32
    (folder / "config.json").write_text(json.dumps(config))


def _as_type(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["value_head.out.bias"] = tensors["value_head.out.bias"].to(dtype)
    save_file(tensors, folder / "model.safetensors")


def _too_large(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["value_head.out.bias"] = tensors["value_head.out.bias"].double() + 1e300
    save_file(tensors, folder / "model.safetensors")


def _int8(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    DCTransformer.from_pretrained(folder).save_pretrained(folder, dtype=torch.int8)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _scale(folder: Path, value: float) -> None:
    _int8(folder, lambda t: t["value_head.out.weight.scale"].__setitem__(0, value))


def _field(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"].update(fields)
    (folder / "config.json").write_text(json.dumps(config))


DAMAGE = {
    "a config of a huge width": (
        lambda f: _field(f, width=1 << 40, heads=1),
        "width can't be 1099511627776",
    ),
    "a config of many layers": (
        lambda f: _field(f, encoder=[1] * 1_000_000),
        "it must be of length 128 or less",
    ),
    "a config of deep layers": (lambda f: _field(f, value=[10**9]), "value can't be 1000000000; it must be at most 16"),
    "a config of long chunks": (lambda f: _field(f, chunk=1 << 30), "chunk can't be 1073741824; it must be at most"),
    "a config of many labels": (
        lambda f: _field(f, num_labels=10**12, label_names=[]),
        "num_labels can't be 1000000000000",
    ),
    "a config of large pictures": (lambda f: _field(f, size=16384), "size 16384 is more than max_grid 128 blocks"),
    "a config of many sides": (lambda f: _field(f, shape=[16] * 100_000), "^.{,400}$"),
    "a config of a long value": (lambda f: _field(f, width=[7] * 100_000), "^.{,400}$"),
    "a config of a long name": (lambda f: _field(f, **{"x" * 100_000: 1}), "^.{,1500}$"),
    "a config of a huge shape": (lambda f: _field(f, shape=[1 << 20, 16]), "size 1048576 is more than max_grid 128"),
    "a config of a huge extent": (lambda f: _field(f, extent=[16, 1 << 20]), "size 1048576 is more than max_grid 128"),
    "a config of wide texture": (
        lambda f: _field(f, texture_hidden=1 << 30),
        "texture_hidden can't be 10",
    ),
    "a size of no pictures": (lambda f: _field(f, prepared="large"), "prepared 'large' is not a size of pictures that"),
    "pictures smaller than windows": (lambda f: _field(f, prepared="short side 48"), "that hold 64x64 pixels; write"),
    "pictures of a huge size": (lambda f: _field(f, prepared="9" * 100_000), "^.{,400}$"),
    "pictures of an impossible size": (lambda f: _field(f, prepared="long side 4000000"), "is not a size of pictures"),
    "an unknown condition": (lambda f: _field(f, conditions=["none", "lumma"]), "did you mean 'luma'"),
    "a config that needs more than the file": (lambda f: _field(f, width=16384), "does not fit"),
    "a deeply nested config": (lambda f: (f / "config.json").write_text("[" * 200_000), "as a model config"),
    "a config of a huge number": (lambda f: (f / "config.json").write_text("9" * 9000), "as a model config"),
    "a config of an infinite rate": (lambda f: _field(f, dropout=float("inf")), "dropout can't be inf"),
    "integer weights": (lambda f: _as_type(f, torch.int8), "value_head.out.bias as I8; weights must be floating-point"),
    "complex weights": (
        lambda f: _as_type(f, torch.complex64),
        "value_head.out.bias as C64; weights must be floating-point",
    ),
    "int8 without scales": (
        lambda f: _int8(f, lambda t: t.pop("value_head.out.weight.scale")),
        "I8 without one .* per row",
    ),
    "int8 with too few scales": (
        lambda f: _int8(f, lambda t: t.update({"value_head.out.weight.scale": torch.ones(1)})),
        "I8 without one .* per row",
    ),
    "int8 with integer scales": (
        lambda f: _int8(f, lambda t: t.update({"value_head.out.weight.scale": t["value_head.out.weight.scale"].int()})),
        "I8 without one .* per row",
    ),
    "scales of weights that are not int8": (
        lambda f: _int8(f, lambda t: t.update({"value_head.out.weight": t["value_head.out.weight"].float()})),
        r"does not fit its config.json \(at value_head.out.weight.scale\)",
    ),
    "a negative scale": (lambda f: _scale(f, -1.0), "value_head.out.weight.scale holds negative numbers"),
    "a scale that is not a number": (lambda f: _scale(f, float("nan")), "value_head.out.weight.scale holds negative"),
    "an infinite scale": (lambda f: _scale(f, float("inf")), "value_head.out.weight.scale holds negative"),
    "weights that overflow when converted": (_too_large, "too large for fp32"),
    "a truncated weights file": (_truncate, "is damaged"),
    "weights that are not numbers": (_not_a_number, "NaN"),
    "a config of another shape": (_other_width, "does not fit"),
    "an unknown field": (_unknown_field, "did you mean 'width'"),
    "a retired switch": (
        lambda f: _field(f, pointer=False),
        "pointer False are no .*; check out commit 3940652",
    ),
    "a switch that was retired later": (
        lambda f: _field(f, ordinal_values=True),
        "ordinal_values True are no .*; check out commit 324a6b1",
    ),
    "another retired switch": (lambda f: _field(f, survival=False), "survival False are no longer supported"),
    "a retired switch of no sense": (lambda f: _field(f, norm=[1] * 100_000), "^.{,500}$"),
    "a config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "as a model config"),
    "a config without a model": (lambda f: (f / "config.json").write_text("[]"), "no 'model' section"),
    "missing weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "a missing config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(saved: Path, kind: str) -> None:
    """Damaged files are refused in one sentence, never with a foreign traceback."""
    damage, message = DAMAGE[kind]
    damage(saved)
    with pytest.raises(ValueError, match=message):
        DCTransformer.from_pretrained(saved)


def test_a_config_allocates_nothing_that_its_weights_file_does_not_hold(saved: Path) -> None:
    """Loading a config of a huge model with a small weights file allocates less than 1 GB."""
    _field(saved, width=16384, hidden=65536, encoder=[1] * 100)  # about a terabyte
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        with pytest.raises(ValueError, match="does not fit"):
            DCTransformer.from_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_models_of_the_hub_are_fetched_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt folder does not download a model of the hub."""
    fetched = []

    def fetch(repo: str, **options: object) -> str:
        fetched.append((repo, options["revision"]))
        return str(SHIPPED / "flowers64")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ValueError, match=r"no model 'runs/flower'.* or hf:runs/flower to fetch it"):
        model_folder("runs/flower")
    for name in ("hf:flowers", "hf:../../etc", "hf:a/b/c", "hf:"):
        with pytest.raises(ValueError, match="write hf:owner/name"):
            model_folder(name)
    assert not fetched
    model_folder("hf:me/flowers")
    model_folder("hf:me/flowers@v1.0")
    DCTransformer.from_pretrained("me/flowers", revision="abc")
    assert fetched == [("me/flowers", None), ("me/flowers", "v1.0"), ("me/flowers", "abc")]


def test_no_such_model_lists_the_shipped_ones() -> None:
    """A name that is neither a folder nor shipped is refused with the list of shipped models."""
    with pytest.raises(ValueError, match="no model 'flowers65'"):
        DCTransformer.from_pretrained("flowers65")


def test_the_network_knows_nothing_of_files_and_hub() -> None:
    """`model/` imports neither hub/ nor the libraries for files and the hub."""
    package = Path(dctransformer.__file__).parent
    banned = re.compile(
        r"^\s*(import|from) (huggingface_hub|pyarrow|safetensors|dctransformer\.(hub|files|data|training|sampling))\b",
        re.M,
    )
    offenders = {path.name for path in (package / "model").glob("*.py") if banned.search(path.read_text())}
    assert not offenders
    assert issubclass(DCTransformer, network.DCTransformer) and not hasattr(network.DCTransformer, "push_to_hub")
