"""Tests of the counted-table coder: normalised, causal, and better than a histogram."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dctransformer.codec import Codec, DCTImage, order
from pictures import photo, photo_folder
from tiny_model import prepare_small, save_plain_model


@pytest.fixture(scope="module")
def photographs() -> DCTImage:
    """32 pictures of 32 × 48 pixels."""
    return Codec(30).encode(np.stack([photo(32, 48, seed) for seed in range(32)]))


@pytest.fixture(scope="module")
def modules() -> Iterator[None]:
    """Put the benchmarks on the import path."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    for name in ("counted_tables", "coders", "measure"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tables(photographs: DCTImage, modules: None):
    """Tables counted on the first 24 pictures."""
    from counted_tables import CountedTables  # pyright: ignore[reportMissingImports]

    return CountedTables(photographs[:24])


def test_probabilities_are_normalised(tables) -> None:
    """Every table sums to 1 over all possible values and gives each a positive probability."""
    assert len(tables.tables) == order.NUM_CHANNELS
    for channel, table in tables.tables.items():
        assert table.probability.shape[1] == 2 * tables.bounds[channel] + 1
        assert (table.probability > 0).all()
        np.testing.assert_allclose(table.probability.sum(1), 1, rtol=1e-12)


def test_contexts_look_back_only(tables, photographs: DCTImage) -> None:
    """Changing a coefficient changes the bits of no coefficient that is coded earlier."""
    pictures = photographs[24:26]
    before = tables.bits(pictures)
    for channel, row, column in ((0, 1, 2), (5, 2, 3), (64, 0, 1), (130, 1, 1), (40, 3, 0)):
        parts = [part.clone() for part in pictures.components]
        parts[channel // 64][0, row, column, channel % 64] += 1
        changed = dataclasses.replace(pictures, luma=parts[0], cb=parts[1], cr=parts[2])
        after = tables.bits(changed)
        for other in order.GENERATION_ORDER.tolist():
            if order.RANK[other] < order.RANK[channel]:
                np.testing.assert_array_equal(after[other], before[other])
        place = row * before[channel].shape[2] + column
        flat = [bits[channel][0].reshape(-1) for bits in (before, after)]
        np.testing.assert_array_equal(flat[0][:place], flat[1][:place])
        assert flat[0][place] != flat[1][place]
        np.testing.assert_array_equal(after[channel][1], before[channel][1])


def test_it_beats_the_histogram(tables, photographs: DCTImage) -> None:
    """Tables beat the histogram on held-out pictures; the histogram's bits on its own pictures are its entropy."""
    from coders import histogram_bits  # pyright: ignore[reportMissingImports]

    held_out = photographs[24:]
    counted = sum(places.sum() for places in tables.bits(held_out).values()) / len(held_out)
    histogram, _ = histogram_bits(photographs[:24], held_out)
    assert counted < 0.99 * histogram.sum()
    itself, _ = histogram_bits(held_out, held_out)
    values = held_out.luma[..., 3].numpy().reshape(-1)
    share = np.unique(values, return_counts=True)[1] / len(values)
    assert itself[3] == pytest.approx(-(share * np.log2(share)).sum() * len(values) / len(held_out), rel=0.02)


def test_larger_values_than_pixels_give_are_refused(tables, photographs: DCTImage) -> None:
    """Coefficients that 8-bit pixels can't produce are refused in one sentence."""
    luma = photographs.luma[:1].clone()
    luma[0, 0, 0, 9] = 900
    wrong = dataclasses.replace(photographs[:1], luma=luma)
    with pytest.raises(ValueError, match="channel 9 is larger"):
        tables.bits(wrong)


@pytest.fixture
def coders(modules: None) -> Callable[[list[str]], None]:
    """The entry point of the benchmark."""
    import coders as benchmark  # pyright: ignore[reportMissingImports]

    return benchmark.main


def test_the_table(tmp_path: Path, coders, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row per coder; structure and texture add up; a model that loses gives a non-zero exit status."""
    photos = photo_folder(tmp_path / "photos", 16, ("rose", "tulip"), suffix=".jpg")
    data, model = prepare_small(photos, tmp_path / "data"), save_plain_model(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        coders([str(data), "--model", str(model), "--num", "2"])
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert stop.value.code == 1 and result["ratio"] > 1 and result["images"] == 2
    names = [one["coder"] for one in result["rows"]]
    assert names[:4] == [
        "model, with labels", "model, without labels", "counted tables", "static histogram of each channel",
    ]  # fmt: skip
    assert "libjpeg, optimised Huffman" in names and "| coder | bytes per image |" in printed
    for one in result["rows"]:
        if one["bytes_per_image"] is not None:
            assert one["bytes_per_image"] == pytest.approx(one["structure_bytes"] + one["texture_bytes"])
            assert one["structure_bytes"] > 0 and one["texture_bytes"] > 0
    with pytest.raises(SystemExit) as stop:
        coders([str(tmp_path / "none"), "--model", "none"])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("coders: there is no folder")
