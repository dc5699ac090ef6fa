"""Tests of exact bits, compared with classical coders and by place."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.codec import Codec, DCTImage
from dctransformer.codec.jpeg import huffman_bytes, read_jpeg_bytes
from dctransformer.evaluate import coders
from dctransformer.evaluate.bits import exact_bits, surprise
from dctransformer.evaluate.pictures import open_reference
from dctransformer.model.config import preset
from dctransformer.sampling.likelihood import code_lengths
from pictures import photo, photo_folder


@pytest.fixture(scope="module")
def model() -> DCTransformer:
    """An untrained tiny model of 32-pixel pictures; several chunks per picture, with overlap."""
    torch.manual_seed(0)
    return DCTransformer(preset("tiny", size=32, quality=30)).eval()


def coded(size: int = 64, quality: int = 20) -> DCTImage:
    """The coefficients of a picture."""
    return Codec(quality).encode(photo(size, size, 4))


def test_every_coder_holds_the_very_same_coefficients() -> None:
    """Files given to the coders, and files restored by them, have the same coefficients."""
    dct = coded()
    arithmetic = coders.rewritten(dct, ["+ARITH_CODE"])
    assert b"\xff\xc9" in arithmetic[:400] and read_jpeg_bytes(arithmetic).equal(dct)
    standard = coders.rewritten(dct)
    assert read_jpeg_bytes(standard).equal(dct)
    lepton = pytest.importorskip("lepton_jpeg_python")
    assert lepton.decompress_bytes(coders.lepton(standard)) == standard
    pytest.importorskip("pillow_jxl")
    # JPEG XL has another inverse transform, so its pixels differ slightly from libjpeg's.
    decoded = np.asarray(Image.open(io.BytesIO(coders.jpeg_xl(standard))).convert("RGB")).astype(int)
    assert np.abs(decoded - np.asarray(Image.open(io.BytesIO(standard)).convert("RGB"))).mean() < 4


def test_headers_do_not_count() -> None:
    """A blank picture takes 0 bytes, and libjpeg's figure equals that of `likelihood`."""
    dct = coded()
    for row in coders.compare([coders.blank(dct)]):
        assert row["missing"] or row["bytes_per_image"] == 0
    rows = {row["coder"]: row["bytes_per_image"] for row in coders.compare([dct, dct])}
    assert rows["libjpeg, optimised Huffman"] == huffman_bytes(dct)
    assert len(rows) == 4 and all(size is None or 100 < size < 500 for size in rows.values())


def test_a_missing_coder_is_listed_with_install_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing coder keeps its row without a figure, with instructions to install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    rows = coders.compare([coded()])
    missing = [row for row in rows if row["missing"]]
    assert [row["coder"] for row in missing] == ["Lepton", "JPEG XL, lossless"]
    assert all(row["bytes_per_image"] is None and "pip install" in row["missing"] for row in missing)


def test_the_table_is_the_likelihood(model: DCTransformer, tmp_path: Path) -> None:
    """The model's row is its exact code length, and its parts add up."""
    reference = open_reference(photo_folder(tmp_path / "p", 5, ("a", "b")), model.config)
    bits = exact_bits(model, "mine", reference)
    lengths = code_lengths(model, reference.sequences())
    total = float(lengths.bits.sum()) / 5
    assert bits["images"] == 5 and bits["table"][0]["coder"] == "mine"
    assert bits["table"][0]["bytes_per_image"] * 8 == pytest.approx(total)
    by_both = sum(sum(fields.values()) for fields in bits["bits_per_image_by_band_and_field"].values())
    assert by_both == pytest.approx(total)
    for row in bits["table"]:
        if not row["missing"]:
            assert row["bits_per_pixel"] == pytest.approx(8 * row["bytes_per_image"] / 32**2)
            assert row["bits_per_triple"] == pytest.approx(8 * row["bytes_per_image"] / bits["triples_per_image"])


def test_the_heat_map_holds_all_bits(model: DCTransformer, tmp_path: Path) -> None:
    """The heat map has all bits except the stop's, at the right place, for any batch size."""
    reference = open_reference(photo_folder(tmp_path / "p", 3, ("a", "b")), model.config)
    maps = surprise(model, reference.sequences(), batch=4)
    assert maps.shape == (3, 4, 4)
    lengths = code_lengths(model, reference.sequences())
    torch.testing.assert_close(maps.sum((1, 2)), lengths.bits[:, :-1].sum((1, 2)), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(surprise(model, reference.sequences(), batch=32), maps, rtol=1e-4, atol=1e-3)


def test_nan_is_refused(tmp_path: Path) -> None:
    """Weights that give NaN are refused."""
    model = DCTransformer(preset("tiny", size=32, quality=30)).eval()
    with torch.no_grad():
        model.channel_head.out.weight.fill_(torch.nan)
    reference = open_reference(photo_folder(tmp_path / "p", 2, ("a", "b")), model.config)
    with pytest.raises(ValueError, match="the model mine gives probabilities that are not finite"):
        exact_bits(model, "mine", reference)
