"""Tests of the scan of sampling settings: its measurements, and resuming."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from pictures import photo_folder
from tiny_model import prepare_small, save_plain_model


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch):
    """The module `benchmarks/settings.py`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import settings  # pyright: ignore[reportMissingImports]

    yield settings
    for name in ("settings", "measure"):
        sys.modules.pop(name, None)


def test_edges_are_steps_across_blocks(scan) -> None:
    """The edge ratio is 1 for a ramp, and large for blocks of constant brightness."""
    ramp = torch.arange(32, dtype=torch.uint8)
    ramp = (ramp[:, None] + ramp)[None, :, :, None].expand(-1, -1, -1, 3)
    assert scan.edge_ratio(ramp) == pytest.approx(1)
    noise = torch.randint(0, 256, (4, 4, 4), generator=torch.Generator().manual_seed(0))
    blocks = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., None].expand(-1, -1, -1, 3).to(torch.uint8)
    assert scan.edge_ratio(blocks) > 1e6
    softened = (blocks.float() / 2 + ramp.float()).to(torch.uint8)
    assert 1 < scan.edge_ratio(softened) < 1e6


def test_the_scan(tmp_path: Path, scan, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row per setting after the real pictures; a second run draws nothing; mistakes are refused."""
    data = prepare_small(photo_folder(tmp_path / "photos", 12, ("rose", "tulip")), tmp_path / "data")
    model, out = save_plain_model(tmp_path / "model"), tmp_path / "out"
    arguments = [str(data), "--model", str(model), "--out", str(out), "--num", "4", "--only", "as it is", "top-p 0.9"]
    scan.main(arguments)
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in first["rows"]] == ["real pictures", "as it is", "top-p 0.9"]
    assert first["best"] in ("as it is", "top-p 0.9") and (out / "table.md").read_text().count("\n") == 5
    drawn = [row for row in first["rows"] if row["name"] != "real pictures"]
    assert drawn[0]["triples"] != drawn[1]["triples"] and drawn[0]["seconds"] > 0
    scan.main(arguments)
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["kernel"] for row in second["rows"]] == [row["kernel"] for row in first["rows"]]
    assert second["rows"][1]["seconds"] is None
    with pytest.raises(SystemExit) as stop:
        scan.main([*arguments[:-2], "nothing"])
    assert stop.value.code == 2 and "there are no settings" in capsys.readouterr().err
