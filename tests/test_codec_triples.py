"""Tests of DCT images and triples: lossless in both directions, ordered, and exactly flipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dctransformer import Codec, DCTImage
from dctransformer.codec import order, transform
from dctransformer.codec.dct_image import grid_sizes
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import flip_triples
from pictures import photo

STEPS = ((1, 1), (1, 2), (2, 2), (2, 1), (1, 4), (2, 4))


@st.composite
def dct_images(draw, whole_mcus: bool = False) -> DCTImage:
    """A strategy for legal images of every size, sampling, density and magnitude."""
    height, width = (draw(st.integers(1, 70)) for _ in range(2))
    step = draw(st.sampled_from(STEPS))
    grey = draw(st.booleans())
    if whole_mcus:
        height, width, step, grey = 16 * (1 + height // 16), 16 * (1 + width // 16), (2, 2), False
    density = draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]))
    largest = draw(st.sampled_from([1, 3, 1023, 32767]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch = draw(st.integers(1, 3))

    def blocks(grid: tuple[int, int]) -> torch.Tensor:
        shape = (batch, *grid, 64)
        values = rng.integers(-largest, largest, shape, endpoint=True) * (rng.random(shape) < density)
        return torch.from_numpy(values.astype(np.int16))

    luma_grid, chroma_grid = grid_sizes(height, width, step)
    codec = Codec(draw(st.integers(1, 100)))
    if grey:
        return DCTImage(blocks(luma_grid), None, None, codec.luma_table, None, height, width)
    cb, cr = blocks(chroma_grid), blocks(chroma_grid)
    return DCTImage(blocks(luma_grid), cb, cr, codec.luma_table, codec.chroma_table, height, width, step)


def restored(triples, like: DCTImage) -> DCTImage:
    return DCTImage.from_triples(triples, like.height, like.width, like.luma_table, like.chroma_table, like.chroma_step)


@settings(deadline=None, max_examples=150)
@given(dct_images(), st.integers(0, 2**32))
def test_triples_are_lossless(dct, seed):
    triples = dct.to_triples()
    assert len(triples) == len(dct)
    for k, one in enumerate(triples):
        assert one.dtype == torch.int32 and one.shape[1] == 3
        assert len(one) == sum(int(part[k].count_nonzero()) for part in dct.components)
        assert (one[:, 2] != 0).all()
        # Generation order: ranks never go down, positions rise inside a channel.
        key = torch.from_numpy(order.RANK)[one[:, 0].long()] * 10_000 + one[:, 1]
        assert (key.diff() > 0).all()
    decoded = restored(triples, dct)
    assert decoded.equal(dct)
    assert all(torch.equal(a, b) for a, b in zip(decoded.to_triples(), triples, strict=True))
    # The order does not matter for decoding.
    rng = np.random.default_rng(seed)
    shuffled = [one[torch.from_numpy(rng.permutation(len(one)))] for one in triples]
    assert restored(shuffled, dct).equal(dct)


@settings(deadline=None, max_examples=40)
@given(dct_images(whole_mcus=True))
def test_mcus_and_flip_are_lossless(dct):
    rows, cols = dct.height // 16, dct.width // 16
    mcus = dct.to_mcus()
    assert tuple(mcus.shape) == (len(dct), rows * cols, 6, 64) and mcus.dtype == torch.int16
    assert DCTImage.from_mcus(mcus, rows, cols, dct.luma_table, dct.chroma_table).equal(dct)
    flipped = dct.flip()
    assert flipped.flip().equal(dct)
    # Flipping the triples is equivalent.
    for before, after in zip(dct.to_triples(), flipped.to_triples(), strict=True):
        assert torch.equal(flip_triples(before, Grid(rows, cols)), after)


def test_positions_of_chroma():
    codec = Codec(50)
    dct = codec.from_triples(torch.tensor([(128, 18, 3), (84, 6, -2)]), 32, 64)
    assert dct.cr[0, 1, 1, 0] == 3  # Luma block row 2, column 2.
    assert dct.cb[0, 0, 3, 20] == -2


def test_mcu_blocks():
    codec = Codec(50)
    dct = codec.encode(photo(32, 48))
    mcus = dct.to_mcus()
    # MCU 4 is row 1, column 1.
    assert torch.equal(mcus[0, 4, 1], dct.luma[0, 2, 3])
    assert torch.equal(mcus[0, 4, 2], dct.luma[0, 3, 2])
    assert torch.equal(mcus[0, 4, 4], dct.cb[0, 1, 1]) and torch.equal(mcus[0, 4, 5], dct.cr[0, 1, 1])


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        ([(192, 0, 1)], "channel 192"),
        ([(-1, 0, 1)], "channel -1"),
        ([(0, 32, 1)], "position 32"),
        ([(0, -1, 1)], "position -1"),
        ([(64, 1, 1)], "position 1 "),
        ([(64, 8, 1)], "position 8 "),
        ([(0, 0, 0)], "value is 0"),
        ([(0, 0, 40_000)], "beyond 16 bits"),
        ([(3, 0, 5), (3, 0, 6)], "same coefficient"),
        ([(1, 2)], "integers"),
    ],
)
def test_illegal_triples_are_refused(triples, message):
    with pytest.raises(ValueError, match=message):
        Codec().from_triples(torch.tensor(triples), 32, 64)


def test_grey_has_no_chroma_triples():
    with pytest.raises(ValueError, match="channel 64"):
        Codec().from_triples(torch.tensor([(64, 0, 1)]), 16, 16, grey=True)
    with pytest.raises(ValueError, match="integers"):
        Codec().from_triples(torch.zeros(1, 3), 16, 16)


def test_no_triples_is_a_blank_picture():
    codec = Codec()
    dct = codec.from_triples(torch.empty(0, 3, dtype=torch.int32), 20, 30)
    assert (codec.decode(dct) == 128).all() and len(dct.to_triples()[0]) == 0


@pytest.mark.parametrize("grey", [False, True])
def test_flip_decodes_to_the_mirrored_picture(grey):
    codec = Codec(70)
    picture = photo(45, 64, 3)
    dct = codec.encode(picture[..., 0] if grey else picture)
    flipped = dct.flip()
    for part, mirrored, table in zip(dct.components, flipped.components, (*dct.tables, dct.tables[-1]), strict=False):
        samples = transform.inverse_blocks(part, table)
        assert torch.equal(transform.inverse_blocks(mirrored, table), samples.flip(2))
    pixels, mirrored = codec.decode(dct).int(), codec.decode(flipped).int().flip(2)
    # Chroma upsampling rounds up and down in alternate columns, which may show as a level of difference.
    assert (pixels - mirrored).abs().max() <= (0 if grey else 2)


def test_flip_needs_whole_mcus():
    with pytest.raises(ValueError, match="multiple of 16"):
        Codec().encode(photo(16, 40)).flip()
    with pytest.raises(ValueError, match="multiple of 8"):
        Codec().encode(photo(16, 41)[..., 0]).flip()


def test_to_mcus_needs_whole_mcus():
    for picture in (photo(16, 40), photo(15, 16), photo(16, 16)[..., 0]):
        with pytest.raises(ValueError, match="does not divide into 4:2:0 MCUs"):
            Codec().encode(picture).to_mcus()


def test_batches():
    codec = Codec()
    dct = codec.encode(np.stack([photo(16, 32, s) for s in range(4)]))
    assert len(dct[1]) == 1 and dct[-1].equal(dct[3]) and len(dct[1:3]) == 2
    assert DCTImage.cat([dct[0], dct[1:]]).equal(dct)
    assert [len(one) for one in dct] == [1, 1, 1, 1]
    assert not dct[0].equal(dct[1]) and not dct[0].equal(dct)
    with pytest.raises(IndexError):
        dct[4]
    for other in (codec.encode(photo(32, 32)), Codec(60).encode(photo(16, 32)), codec.encode(photo(16, 32)[..., 0])):
        assert not other.equal(dct[0])
        with pytest.raises(ValueError, match="one size"):
            DCTImage.cat([dct, other])
    with pytest.raises(ValueError, match="at least one"):
        DCTImage.cat([])


def test_parts_that_do_not_fit_are_refused():
    dct = Codec().encode(photo(16, 32))
    parts = dict(
        luma=dct.luma, cb=dct.cb, cr=dct.cr,
        luma_table=dct.luma_table, chroma_table=dct.chroma_table, height=16, width=32,
    )  # fmt: skip
    for change in (
        {"height": 40}, {"width": 0}, {"cb": None}, {"luma": dct.luma.int()}, {"cr": dct.cr[:, :0]},
        {"luma_table": dct.luma_table.long()}, {"chroma_step": (1, 1)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"needs|give|has no blocks"):
            DCTImage(**{**parts, **change})
