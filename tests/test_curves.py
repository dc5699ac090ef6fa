"""Tests of the training curves that ship with the package, and of TensorBoard output."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dctransformer.evaluate.plots import loss_curves, svg
from dctransformer.hub.curves import CURVES, shipped_curves
from dctransformer.model.config import preset
from dctransformer.training.log import MetricsLog
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.trainer import Progress

FLOWERS = preset("small", size=64, quality=20, texture_from=2)


def test_curves_come_with_the_package() -> None:
    """Curves are small files with falling validation bytes, separate for structure and texture."""
    assert {path.stem for path in CURVES.glob("*.jsonl")} >= {"cats128", "flowers64", "photos"}
    assert all(path.stat().st_size < 60_000 for path in CURVES.glob("*.jsonl"))
    (curve,) = shipped_curves(FLOWERS)
    validations = curve.validations()
    assert curve.name == "flowers64" and len(validations) > 5 and len(curve.lines) > len(validations)
    assert validations[-1]["validation/bytes_per_image"] < 0.95 * validations[0]["validation/bytes_per_image"]
    assert all({"validation/structure", "validation/texture"} <= line.keys() for line in validations)


@pytest.mark.parametrize("change", [{"size": 128}, {"quality": 30}, {"texture_from": 1}])
def test_other_trainings_do_not_compare(change: dict[str, int]) -> None:
    """Curves of another size, quality or texture setting are not shown, as their units differ."""
    assert shipped_curves(dataclasses.replace(FLOWERS, **change)) == []


def test_the_chart_shows_them_behind_the_run() -> None:
    """The shipped curve is labelled, and is shown even if the run has no validation yet."""
    lines = [
        {"triples": 1e6, "validation/bytes_per_image": 400.0},
        {"triples": 2e6, "validation/bytes_per_image": 350.0},
    ]
    assert "flowers64" in svg(loss_curves(lines, shipped_curves(FLOWERS)))
    assert "flowers64" not in svg(loss_curves(lines))
    assert "flowers64" in svg(loss_curves([{"triples": 1e6, "train/value": 2.0}], shipped_curves(FLOWERS)))


def test_tensorboard_has_curves_by_triples_and_sheets(tmp_path: Path) -> None:
    """TensorBoard has the run's validations by triples, the shipped curve as a separate run, and sheets as images."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = RunFolder(tmp_path)
    for step in (-1, 3):  # a resumed run does not write them again
        log = MetricsLog(folder, step, FLOWERS)
        state = Progress(step=step + 4, triples=(step + 4) * 1000)
        log.write(state, {"validation/bytes_per_image": 400.0, "validation/structure": 4.0})
        log.picture(state, "samples", torch.zeros(8, 12, 3, dtype=torch.uint8))
        log.close()

    def events(place: Path):
        events = accumulator.EventAccumulator(str(place))
        events.Reload()
        return events

    root, run, shipped = (events(folder.tensorboard / name) for name in ("", "this run", "shipped flowers64"))
    tag = "over triples/bytes_per_image"
    assert [event.step for event in run.Scalars(tag)] == [3000, 7000]
    assert [event.step for event in root.Scalars("validation/structure")] == [3, 7]
    assert [(image.width, image.height) for image in root.Images("samples")] == [(12, 8)] * 2
    (curve,) = shipped_curves(FLOWERS)
    assert [event.step for event in shipped.Scalars(tag)] == [line["triples"] for line in curve.validations()]
    assert len(list((folder.tensorboard / "shipped flowers64").iterdir())) == 1
