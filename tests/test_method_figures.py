"""Tests of the script that draws the figures of docs/method.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.sheets import contact_sheet
from tiny_model import save_tiny_model

ROOT = Path(__file__).resolve().parents[1]


def test_the_figures_of_the_method_page_are_drawn(tmp_path: Path) -> None:
    """The script draws every picture that the page shows, and the one of a training, from any model with texture."""
    pytest.importorskip("matplotlib")
    model = save_tiny_model(tmp_path / "model", texture_from=2)
    network = DCTransformer.from_pretrained(model)
    torch.nn.init.constant_(network.channel_head.after.weight, 4.0)  # every channel, from the first to the last place
    network.save_pretrained(model)
    samples = tmp_path / "run" / "samples"
    samples.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    contact_sheet(pictures, columns=4).save(samples / "step-0000005.png")
    out = tmp_path / "out"
    out.mkdir()
    command = [
        sys.executable, ROOT / "scripts" / "method_figures.py", "--model", model, "--larger", model, "--index", "0",
        "--place", "5", "--larger-index", "1", "--chunk", "1", "--out", out,
        "--run", samples.parent, "--steps", "5", "--times", "a minute",
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(images/([^)]+)\)", page)
    assert {path.name for path in out.iterdir()} == {*shown, "learning.jpg"}
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 250 and len(set(picture.convert("L").tobytes())) > 20
