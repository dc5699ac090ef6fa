"""Tests of the script that trains feature extractors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from dctransformer.evaluate.features import open_extractor
from dctransformer.evaluate.small64 import load_small64
from pictures import photo_folder

ROOT = Path(__file__).resolve().parents[1]


def script():
    """The module `scripts/train_features.py`."""
    spec = importlib.util.spec_from_file_location("train_features", ROOT / "scripts" / "train_features.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_torchscript_file_gives_the_networks_features(tmp_path: Path) -> None:
    """The file gives the network's features, resized as small64 does; the model card names the folders."""
    network = load_small64()
    result = {"trained_on": 5, "held_out": 1, "command": "…", "classes": 2, "accuracy": 0.5, "frechet_two_halves": 1.0}
    script().write_torchscript(network, tmp_path, [Path("/x/imagenette"), Path("/x/cats")], result)
    extractor = open_extractor(str(tmp_path / "features.pt"))
    for height, width in ((64, 64), (48, 96)):
        pictures = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
        extracted, spatial = extractor(pictures)
        features, places = network(pictures)
        torch.testing.assert_close(extracted, features)
        assert spatial is not None
        torch.testing.assert_close(spatial, places)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "imagenette, cats" in card and "Score other pictures than these" in card.replace("\n  ", " ")


def test_a_folder_without_classes_is_one_class(tmp_path: Path) -> None:
    """A folder without classes counts as one class, next to a folder of two."""
    photo_folder(tmp_path / "flowers", 4, ("rose", "tulip"))
    photo_folder(tmp_path / "cats", 3, (".",))
    pictures, classes, _, number = script().load([tmp_path / "flowers", tmp_path / "cats"])
    assert number == 3 and len(pictures) == 7 and sorted(classes.tolist()) == [0, 0, 1, 1, 2, 2, 2]
