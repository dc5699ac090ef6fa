"""Tests of conditions: the coefficients that they settle, and sequences under them."""

import dataclasses

import numpy as np
import pytest
import torch

from dctransformer.codec import order
from dctransformer.codec.codec import Codec
from dctransformer.codec.grid import Grid
from dctransformer.codec.resize import FACTORS
from dctransformer.sequence import conditions, masks
from dctransformer.sequence.chunks import Sequence, cut_chunks
from dctransformer.sequence.conditions import Conditions
from pictures import photo

GRID = Grid(3, 4)


def test_low_is_the_corner_of_low_frequencies_of_each_block() -> None:
    """A picture without other frequencies is preserved exactly by the low-frequency corner."""
    for corner in (1, 2, 4):
        mask = masks.low(corner, GRID)
        assert mask.shape == (GRID.mcus, 6, 64)
        raster = torch.zeros(64, dtype=torch.bool)
        raster[torch.from_numpy(order.ZIGZAG)] = mask[0, 0]
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[:corner, :corner] = True
        assert torch.equal(raster.view(8, 8), expected)
        assert bool((mask == mask[0, 0]).all())


def test_luma_and_outside() -> None:
    """The luma condition covers four of six blocks; the outside condition covers whole MCUs."""
    assert masks.luma(GRID).sum((1, 2)).tolist() == [4 * 64] * GRID.mcus
    hole = torch.zeros(3, 4, dtype=torch.bool)
    hole[1, 2] = True
    assert (~masks.outside(hole)).nonzero()[:, 0].unique().tolist() == [1 * 4 + 2]


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 3), Grid(4, 4), Grid(5, 2)])
def test_the_centre_hole_lies_inside_and_is_never_empty(grid: Grid) -> None:
    """The hole lies inside the picture and is not empty, even in pictures of one MCU."""
    hole = masks.centre_hole(grid)
    assert bool(hole.any())
    if min(grid.rows, grid.cols) >= 3:
        assert not bool(hole.all())


def test_conditions_are_drawn_in_proportion_to_their_shares() -> None:
    """Conditions are drawn with their probabilities, and every mask leaves something to predict."""
    mixture = Conditions(none=0.4, low=0.3, luma=0.1, region=0.2, tiled=0, first=0.25)
    noise = np.random.default_rng(0)
    counts = dict.fromkeys(("none", "low1", "low2", "low4", "luma", "region"), 0)
    fixed = {name: conditions.find_condition(name).mask(GRID) for name in counts if name not in ("none", "region")}
    listed_first = 0
    for _ in range(2000):
        given, first = mixture.draw(GRID, noise)
        listed_first += first
        if given is None:
            counts["none"] += 1
            continue
        assert bool((~given).any())
        for name, mask in fixed.items():
            if mask is not None and torch.equal(mask, given):
                counts[name] += 1
                break
        else:
            counts["region"] += 1
    shares = {name: count / 2000 for name, count in counts.items()}
    expected = {"none": 0.4, "low1": 0.1, "low2": 0.1, "low4": 0.1, "luma": 0.1, "region": 0.2}
    for name, share in expected.items():
        assert abs(shares[name] - share) < 0.035, (name, shares)
    assert abs(listed_first / 2000 - 0.6 * 0.25) < 0.03


def test_the_registry_is_complete() -> None:
    """Every share is a field of the mixture, training draws every condition, and every task has one."""
    fields = {f.name for f in dataclasses.fields(Conditions)}
    assert set(conditions.SHARES) == fields - {"factors", "tiled", "first"}
    assert {task.condition for task in conditions.TASKS} == set(conditions.NAMES)
    assert list(conditions.BY_FACTOR) == list(FACTORS)
    with pytest.raises(ValueError, match="low3"):
        conditions.find_condition("low3")


def test_condition_names_are_those_with_a_share() -> None:
    """A model's config lists the conditions that it was trained on."""
    assert Conditions().names() == conditions.NAMES
    assert Conditions(none=1, low=0, luma=0, region=0).names() == ("none",)
    assert Conditions(none=0, low=1, luma=0, region=0, factors=(4,)).names() == ("low2",)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (Conditions(none=-1), "shares"),
        (Conditions(none=0, low=0, luma=0, region=0), "shares"),
        (Conditions(first=2), "first"),
        (Conditions(factors=(3,)), "factors"),
        (Conditions(factors=()), "factors"),
    ],
)
def test_impossible_mixtures_are_refused(mixture: Conditions, message: str) -> None:
    """Invalid mixtures are refused in one sentence."""
    with pytest.raises(ValueError, match=message):
        mixture.check()


@pytest.mark.parametrize("name", [n for n in conditions.NAMES if n != "none"])
def test_the_given_part_and_the_rest_list_a_picture_once(name: str) -> None:
    """The given part, followed by the rest conditioned on it, contains every triple once and in order."""
    dct = Codec(quality=30).encode(photo(48, 64, seed=3))
    triples = dct.to_triples()[0]
    mask = conditions.find_condition(name).mask(GRID)
    assert mask is not None
    first = Sequence.from_triples(triples, GRID, 0, hidden=~mask)
    rest = Sequence.from_triples(triples, GRID, 0, given=mask)
    assert len(first) + len(rest) == len(triples) + 2
    everything = torch.zeros(GRID.mcus * 6 * 64, dtype=torch.int16)
    for sequence in (first, rest):
        ranks = sequence.ranks[:-1]
        key = ranks * GRID.positions + sequence.positions[:-1]
        assert bool((key[1:] > key[:-1]).all())
        slot = GRID.slot(ranks, sequence.positions[:-1])
        everything[slot] = sequence.values[:-1].to(torch.int16)
    assert torch.equal(everything.view(-1, 6, 64), dct.to_mcus()[0])
    assert rest.known is not None
    assert torch.equal(rest.known, torch.where(mask, dct.to_mcus()[0], 0))


def test_what_is_hidden_is_neither_settled_nor_open() -> None:
    """Hidden coefficients are neither settled nor open in any chunk of the sequence."""
    triples = Codec(quality=30).encode(photo(48, 64, seed=3)).to_triples()[0]
    mask = masks.luma(GRID)
    sequence = Sequence.from_triples(triples, GRID, 0, hidden=mask)
    for k in range(sequence.chunks(32)):
        batch = cut_chunks([sequence], [k], 32, 0)
        assert not bool(batch.settled[0][mask].any())
        assert not bool(batch.coefficients[0][mask].any())
        assert bool(batch.closed[0][mask].all()) and not bool(batch.closed[0][~mask].any())
