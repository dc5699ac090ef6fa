"""Tests of the losses by band, which add up to the training loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.plots import loss_curves
from dctransformer.model.config import preset
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.texture import TextureBatch
from dctransformer.training.bands import BANDS, bits_per_triple, count_by_band, nats_by_band
from dctransformer.training.config import TrainConfig
from dctransformer.training.log import EVERY, Log
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer

CONFIG = preset("tiny", size=32, quality=30)


def two_chunks() -> ChunkBatch:
    """Two chunks, with triples of all four bands and of one band."""
    grid = Grid.of_size(32, 32)
    lists = [[[0, 0, 5], [0, 3, 1], [1, 2, 2], [70, 0, 1], [20, 1, -1]], [[0, 1, 3]]]
    sequences = [Sequence.from_triples(torch.tensor(triples), grid, CONFIG.null_label) for triples in lists]
    return cut_chunks(sequences, [0, 0], CONFIG.chunk, CONFIG.overlap)


def test_every_triple_counts_once_in_its_band() -> None:
    """Every triple is counted in its band (channel 70 is Cb's frequency 6), and every sequence has a stop."""
    assert dict(zip(BANDS, count_by_band(two_chunks()), strict=True)) == {
        "dc": 3, "1-3": 1, "4-15": 1, "16-63": 1, "stop": 2
    }  # fmt: skip


def test_a_step_reports_the_losses_it_trains_on() -> None:
    """Sums by band equal those of a loop over the triples, with or without micro-batches."""
    batch = two_chunks()
    model = new_model(CONFIG, 0)
    with torch.no_grad():
        nats = model(batch)
    expected = torch.zeros(len(BANDS), 3)
    for row, index in batch.predicted.nonzero().tolist():
        rank = int(batch.ranks[row, index + 1])
        band = 4 if rank == order.STOP else int(order.BAND_OF_CHANNEL[order.GENERATION_ORDER[rank]])
        expected[band] += nats[row, index]
    torch.testing.assert_close(nats_by_band(nats, batch), expected)
    for micro_batch in (None, 1):
        settings = TrainConfig(batch=2, micro_batch=micro_batch, precision="fp32", device="cpu")
        torch.testing.assert_close(Trainer(new_model(CONFIG, 0), settings).step(batch), expected)


def test_structure_and_texture_are_means_over_their_triples() -> None:
    """A band without triples has no mean, and the stop belongs to neither part."""
    bits = torch.tensor([[1.0, 2, 3], [4, 0, 0], [5, 5, 5], [0, 0, 0], [9, 0, 0]])
    means = bits_per_triple(bits, [2, 3, 5, 0, 1])
    assert means == pytest.approx({"dc": 3, "1-3": 4 / 3, "4-15": 3, "structure": 2, "texture": 3})


def test_curves_have_a_chart_by_band_where_the_metrics_have_bands() -> None:
    """There is a chart by band if the metrics have bands; older runs have two charts."""
    old = [{"triples": 1000 * i, "train/channel": 1.0, "train/position": 2.0, "train/value": 3.0} for i in range(3)]
    new = [{**line, "train/dc": 4.0, "train/4-15": 3.0} for line in old]
    assert [axis.get_title() for axis in loss_curves(old).axes][:1] == ["training, by field"]
    assert len(loss_curves(old).axes) == 2
    assert [axis.get_title() for axis in loss_curves(new).axes][:2] == ["training, by field", "training, by band"]


def test_texture_is_counted_with_its_pictures_weight() -> None:
    """With texture by channel, bits per coefficient are right, and structure is not counted twice."""
    config = preset("tiny", size=32, quality=30, texture_from=2)
    batch = two_chunks()
    coefficients = torch.zeros(2, 4, 6, 64, dtype=torch.int16)
    coefficients[0, 0, 0, [0, 5, 20]] = 1  # DC, which is structure, and one coefficient of either texture band
    coefficients[1, 3, 5, 40] = 2
    nothing = torch.zeros_like(coefficients, dtype=torch.bool)
    weight = torch.tensor([1.0, 0.5])
    batch.texture = TextureBatch(
        coefficients, nothing, nothing, batch.labels, torch.full((2, 1), 190), weight[:, None], weight, batch.grid,
        pictures=2, first=config.texture_rank,
    )  # fmt: skip
    extra = [a - b for a, b in zip(count_by_band(batch), count_by_band(two_chunks()), strict=True)]
    assert extra == [0, 0, 1, 1.5, 0]


def test_the_progress_bar_shows_structure_and_texture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar has the mean bits of all triples, of structure and of texture since the last report."""
    trainer = Trainer(new_model(CONFIG, 0), TrainConfig(batch=2, precision="fp32", device="cpu"))
    log = Log(trainer, RunFolder(tmp_path), show=True)
    bits = torch.tensor([[4.0, 3, 2], [1, 0, 0], [0, 5, 1], [0, 2, 0], [1, 0, 0]])
    for step in range(1, EVERY + 1):
        log.add(bits * math.log(2), [3.0, 2.0, 2.0, 0.0, 1.0])
        trainer.progress.step, trainer.progress.seconds, trainer.progress.triples = step, 0.5 * step, 6 * step
        log.report()
    log.close()
    assert "2.375 bits/triple (structure 2.000, texture 4.000), 12 triples/s" in capsys.readouterr().err


def test_steps_without_a_coefficient_are_logged(tmp_path: Path) -> None:
    """Flat pictures whose texture alone is trained have no coefficients to average over."""
    trainer = Trainer(new_model(CONFIG, 0), TrainConfig(batch=2, precision="fp32", device="cpu"))
    log = Log(trainer, RunFolder(tmp_path), show=False)
    trainer.progress.step, trainer.progress.seconds = EVERY, 1.0
    log.add(torch.ones(len(BANDS), 3), [0.0] * len(BANDS))
    log.report()
    log.close()
    (line,) = map(json.loads, RunFolder(tmp_path).metrics.read_text().splitlines())
    assert line["step"] == EVERY and line["train/bits_per_triple"] > 0 and "train/texture" not in line
