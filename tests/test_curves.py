"""Tests of the training curves that ship with the package, and of TensorBoard output."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dctransformer.cli import main
from dctransformer.evaluate.plots import loss_curves, svg
from dctransformer.hub.curves import (
    CURVES,
    OF_HUFFMAN,
    curves_of_weights,
    shipped_curves,
    trains_structure,
    validation_score,
)
from dctransformer.hub.pretrained import shipped_names
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
    assert (
        curve.name == "flowers64"
        and trains_structure(curve.lines)
        and len(validations) > 5
        and len(curve.lines) > len(validations)
    )
    assert validations[-1]["validation/bytes_per_image"] < 0.95 * validations[0]["validation/bytes_per_image"]
    assert all({"validation/structure", "validation/texture"} <= line.keys() for line in validations)


@pytest.mark.parametrize("change", [{"size": 128}, {"quality": 30}, {"texture_from": 1}])
def test_other_trainings_do_not_compare(change: dict[str, int]) -> None:
    """Curves of another size, quality or texture setting are not shown, as their units differ."""
    assert shipped_curves(dataclasses.replace(FLOWERS, **change)) == []


def test_every_shipped_model_has_the_curves_of_its_trainings() -> None:
    """Texture that was trained after the structure has a curve of its own, for trainings of texture alone."""
    of = {name: [curve.name for curve in curves_of_weights(name)] for name in shipped_names()}
    assert sorted(of.pop("cats128")) == ["cats128", "cats128-structure", "cats128-texture"]
    together = {"flowers64": ["flowers64-together-1", "flowers64-together-2"], "photos": ["photos-together"]}
    assert {name: sorted(names) for name, names in of.items()} == {
        name: sorted([name, f"{name}-texture", *names]) for name, names in together.items()
    }
    (texture,) = shipped_curves(FLOWERS, structure=False)
    assert texture.name == "flowers64-texture" and not trains_structure(texture.lines)
    structure = [line["validation/structure"] for line in texture.validations()]
    assert len({*structure}) == 2  # of its two data sets' pictures: structure was kept
    assert [line["triples"] for line in texture.lines] == sorted(line["triples"] for line in texture.lines)
    assert trains_structure([{"triples": 1.0}])


def test_a_report_of_shipped_weights_shows_their_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run folder lies next to shipped weights, but their curves come with the package."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dctransformer.evaluate.report._Work.sections", lambda work: iter([work._curves()]))
    main(["report", "flowers64", "--out", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 4 and "No curves" not in text
    assert all(phrase in text for phrase in ("flowers64-texture", "96 chunks per step", "35 on flowers", "305.1 bytes"))


def test_bytes_are_relative_to_huffman_codes() -> None:
    """A training on other pictures is compared by its part of the Huffman bytes; absolute bytes stay readable."""
    pytest.importorskip("matplotlib")
    line = {"triples": 2e6, "validation/bytes_per_image": 268.1, "validation/huffman_bytes_per_image": 383.0}
    assert validation_score(line, OF_HUFFMAN) == pytest.approx(0.7)
    others = shipped_curves(FLOWERS)
    (axis,) = [a for a in loss_curves([line], others).axes if a.get_title() == "validation"]
    assert "Huffman" in axis.get_ylabel()
    assert "last: 268.1 bytes per image, 70.0 %" in [text.get_text() for text in axis.texts]
    ours = [y for curve in axis.lines for y in curve.get_ydata()]
    assert len(ours) == 1 + len(others[0].validations()) and all(60 < y < 80 for y in ours)
    without = loss_curves([{"triples": 2e6, "validation/bytes_per_image": 268.1}], others)
    assert "flowers64" not in svg(without) and "bytes per image" in svg(without)


def test_the_chart_shows_them_behind_the_run() -> None:
    """The shipped curve is labelled, and is shown even if the run has no validation yet."""
    lines = [
        {"triples": 1e6, "validation/bytes_per_image": 400.0, "validation/huffman_bytes_per_image": 450.0},
        {"triples": 2e6, "validation/bytes_per_image": 350.0, "validation/huffman_bytes_per_image": 450.0},
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
        scores = {"bytes_per_image": 400.0, "huffman_bytes_per_image": 500.0, "structure": 4.0}
        log.write(state, {f"validation/{name}": score for name, score in scores.items()})
        log.picture(state, "samples", torch.zeros(8, 12, 3, dtype=torch.uint8))
        log.close()

    def events(place: Path):
        events = accumulator.EventAccumulator(str(place))
        events.Reload()
        return events

    root, run, shipped = (events(folder.tensorboard / name) for name in ("", "this run", "shipped flowers64"))
    tag = "over triples/bytes_of_huffman"
    assert [event.step for event in run.Scalars(tag)] == [3000, 7000]
    assert [event.value for event in run.Scalars(tag)] == pytest.approx([0.8, 0.8])
    assert [event.value for event in root.Scalars("validation/bytes_per_image")] == [400, 400]
    assert [event.step for event in root.Scalars("validation/structure")] == [3, 7]
    assert [(image.width, image.height) for image in root.Images("samples")] == [(12, 8)] * 2
    (curve,) = shipped_curves(FLOWERS)
    assert [event.step for event in shipped.Scalars(tag)] == [line["triples"] for line in curve.validations()]
    assert len(list((folder.tensorboard / "shipped flowers64").iterdir())) == 1
