"""Tests of the classifier two-sample test on real and corrupted pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer.codec import Codec, DCTImage
from dctransformer.evaluate.scattering import scattering
from dctransformer.evaluate.tables import as_text
from dctransformer.evaluate.two_sample import FEWEST, VIEWS, describe, recognition
from pictures import photo, photo_folder
from test_evaluate_command import run
from tiny_model import prepare_small, save_plain_model

COUNT = 120


@pytest.fixture(scope="module")
def real() -> DCTImage:
    """Twice as many pictures of 32 × 32 pixels as the test needs per class."""
    return Codec(50).encode(np.stack([photo(32, 32, seed) for seed in range(2 * COUNT)]))


@pytest.fixture(scope="module")
def known(real: DCTImage) -> dict[str, torch.Tensor]:
    """Features of the first half of the pictures."""
    return describe(real[:COUNT], Codec(50))


def accuracy(one: dict[str, torch.Tensor], pictures: DCTImage) -> dict[str, tuple[float, float]]:
    """Accuracy and standard error by view."""
    two = describe(pictures, Codec(50))
    results = {name: recognition(one[name], two[name]) for name in VIEWS}
    return {name: (f["accuracy"], f["standard_error"]) for name, f in results.items()}


def test_real_from_real_is_chance(real: DCTImage, known: dict[str, torch.Tensor]) -> None:
    """Real pictures against real ones are within three standard errors of chance in every view."""
    for name, (accuracy_of_view, error) in accuracy(known, real[COUNT:]).items():
        assert abs(accuracy_of_view - 0.5) < 3 * error, name
        assert 0.01 < error < 0.06


@pytest.mark.parametrize("corruption", ["noise", "shuffled", "texture"])
def test_corruptions_are_recognised(real: DCTImage, known: dict[str, torch.Tensor], corruption: str) -> None:
    """Noise in DC, shuffled blocks and the texture of another picture are recognised."""
    rng = torch.Generator().manual_seed(0)
    other = real[COUNT:]
    parts = [part.clone() for part in other.components]
    if corruption == "noise":
        parts[0][..., 0] += torch.randint(-20, 21, parts[0].shape[:3], generator=rng).short()
    elif corruption == "shuffled":
        order = torch.stack([torch.randperm(16, generator=rng) for _ in range(len(other))])
        parts[0] = parts[0].flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 64)).view(parts[0].shape)
    else:
        parts[0][..., 4:] = parts[0].roll(1, 0)[..., 4:]
    accuracies = accuracy(known, dataclasses.replace(other, luma=parts[0], cb=parts[1], cr=parts[2]))
    sees = {"noise": ("dc, 1-3", "pixels"), "shuffled": VIEWS, "texture": ("pixels",)}[corruption]
    for name in sees:
        assert accuracies[name][0] > 0.58 and accuracies[name][0] - 3 * accuracies[name][1] > 0.5, name
    if corruption == "texture":
        assert abs(accuracies["dc"][0] - 0.5) < 3 * accuracies["dc"][1]


def test_recognition_is_the_same_each_time_and_refuses_few() -> None:
    """The test is deterministic and distinguishes features that differ by a constant."""
    a = torch.randn(FEWEST, 5, generator=torch.Generator().manual_seed(0))
    b = torch.randn(FEWEST, 5, generator=torch.Generator().manual_seed(1))
    first = recognition(a, b)
    assert first == recognition(a, b) and len(first["seeds"]) == 3 and first["pictures"] == FEWEST
    assert recognition(a, b + 10)["accuracy"] == 1 and recognition(a, b + 10)["standard_error"] == 0
    with pytest.raises(ValueError, match="equal size"):
        recognition(a[:-1], b)
    with pytest.raises(ValueError, match="at least 64"):
        recognition(a[:9], b[:9])


@pytest.mark.parametrize("size", [(2, 2), (33, 20)])
def test_scattering_is_that_of_the_mirrored_picture(size: tuple[int, int]) -> None:
    """Scattering is invariant to horizontal flips, not to vertical flips or large shifts."""
    planes = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    features = scattering(planes)
    assert features.dtype == torch.float32 and features.isfinite().all()
    torch.testing.assert_close(scattering(planes.flip(3)), features, rtol=1e-3, atol=1e-3)
    assert (scattering(planes.flip(2)) - features).abs().max() > 0.01
    assert scattering(planes, second=0).shape[1] <= features.shape[1]


def test_evaluate_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report recognises noise and not real pictures, and explains why too few pictures are skipped."""
    model = save_plain_model(tmp_path / "model")
    photos = photo_folder(tmp_path / "photos", 180, ("rose", "tulip"), suffix=".jpg")
    data, noise = prepare_small(photos, tmp_path / "data"), tmp_path / "noise"
    noise.mkdir()
    for i in range(70):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(noise / f"{i}.png")
    command = ("evaluate", model, "--data", data, "--metrics", "c2st", "--samples", noise, "--json")
    result = json.loads(run(capsys, *command))
    tests = result["c2st"]
    assert tests["skipped"] == "" and list(tests["views"]) == list(VIEWS)
    for name, view in tests["views"].items():
        assert name == "dc" or view["generated"]["accuracy"] > 0.9
        assert abs(view["real"]["accuracy"] - 0.5) < 0.2 and view["real"]["pictures"] >= FEWEST
    shown = f"{tests['views']['pixels']['generated']['accuracy']:.3f} ±"
    assert shown in as_text(result) and "0.5 is chance" in as_text(result)
    few = json.loads(run(capsys, *command, "--num", "9"))
    assert few["c2st"]["views"] == {} and "only 9 generated" in few["c2st"]["skipped"]
    assert "no classifier two-sample test" in as_text(few)
