"""Tests of texture: the distribution over whole channels is exact, causal and legal, and samples follow it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dctransformer import DCTransformer, read_jpeg, write_jpeg
from dctransformer.codec import order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.legality import NEVER
from dctransformer.model.texture_state import TextureState, checkerboard
from dctransformer.model.texture_values import MAGNITUDES, value_log_p, value_logits
from dctransformer.sampling import drawing, tiles
from dctransformer.sampling import likelihood as likelihood_module
from dctransformer.sampling import texture as texture_sampling
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.drawing import Draws
from dctransformer.sampling.engine import Engine, fill, sample
from dctransformer.sampling.likelihood import code_lengths, triple_bits
from dctransformer.sampling.rows import Request
from dctransformer.sampling.running_texture import RunningMix, RunningRates
from dctransformer.sampling.texture import NoiseKey, draw_occupancy, fill_texture, next_channel
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.texture import channels_in_use, sample_texture, texture_batch
from test_model_distribution import triples_of

GRID = Grid(2, 3)
"""32 × 48 pixels: not square, so that rows and columns can't be mixed up unnoticed."""

SMALL = {"texture_state": 8, "texture_width": 12, "texture_hidden": 16, "texture_blocks": 1}


def make_model(seed: int = 0, texture_from: int = 2, **overrides) -> DCTransformer:
    """A tiny model with non-zero weights, and texture from band 4–15."""
    torch.manual_seed(seed)
    model = DCTransformer(preset("tiny", num_labels=3, texture_from=texture_from, **{**SMALL, **overrides})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        model.texture.use_bias.weight += 3
        model.channel_head.after.weight += 2
    return model


def random_picture(seed: int, density: float = 0.08, grid: Grid = GRID, top: int = 9) -> Tensor:
    """A random legal DCT image: int16 ``[N, 6, 64]``."""
    g = torch.Generator().manual_seed(seed)
    shape = (grid.mcus, order.BLOCKS_PER_MCU, 64)
    values = torch.randint(1, top, shape, generator=g) * (1 - 2 * torch.randint(0, 2, shape, generator=g))
    return (values * (torch.rand(shape, generator=g) < density)).to(torch.int16)


def sequence_of(picture: Tensor, model: DCTransformer, grid: Grid = GRID, **masks: Tensor) -> Sequence:
    """The picture as a sequence of the model."""
    return Sequence.from_triples(triples_of(picture, grid), grid, 1, **masks).structure(model.config.texture_rank)


def random_mask(seed: int, share: float, grid: Grid = GRID) -> Tensor:
    return torch.rand(grid.mcus, 6, 64, generator=torch.Generator().manual_seed(seed)) < share


def whole(sequence: Sequence, model: DCTransformer) -> tuple[TextureState, Tensor]:
    """The picture as input of the texture network, and its used channels."""
    used = channels_in_use(sequence, model.config.texture_rank)
    return TextureState.of(texture_batch([sequence], [used], [torch.ones(len(used))])), used


@pytest.mark.parametrize(
    ("texture_from", "slots"),
    [
        (1, [(0, 1, 20), (0, 2, 20), (0, 5, 4)]),
        (2, [(0, 0, 0), (0, 2, 20), (0, 5, 4)]),
        (1, [(0, 0, 30), (0, 1, 30)]),
    ],
    ids=["texture", "structure and texture", "both colours of a channel"],
)
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_probabilities_of_all_pictures_sum_to_one(
    texture_from: int, slots: list[tuple[int, int, int]], masked: bool
) -> None:
    """Probabilities sum to 1 over all pictures with a few open coefficients."""
    model = make_model(quality=1, texture_from=texture_from)
    grid = Grid(1, 1)
    opened = torch.zeros(1, 6, 64, dtype=torch.bool)
    for slot in slots:
        opened[slot] = True
    known = random_picture(1, 0.2, grid, top=3) * ~opened
    hidden = random_mask(2, 0.3, grid) & ~opened if masked else torch.zeros_like(opened)
    limits = [int(model.limits[RANK_OF_SLOT[block, frequency]]) for _, block, frequency in slots]
    sequences = []
    for values in itertools.product(*(range(-limit, limit + 1) for limit in limits)):
        picture = known.clone()
        for slot, value in zip(slots, values, strict=True):
            picture[slot] = value
        mask = ~opened & ~hidden
        sequence = sequence_of(picture * ~hidden, model, grid, given=mask)
        sequence.hidden = hidden
        sequences.append(sequence)
    assert len(sequences) > 100
    bits = code_lengths(model, sequences, batch=256).bits.sum((1, 2))
    assert float((-bits * math.log(2)).exp().sum()) == pytest.approx(1, abs=1e-6)


def passes(model: DCTransformer, run: Callable[[], Any]) -> list[Tensor]:
    """Collect what the texture network predicts during a call, pass by pass.

    Returns:
        For each channel, or turn of sampling, four: log-odds at the open places of either colour of the checkerboard,
        and scores of the values due in either.
    """
    predictions: list[Tensor] = []

    def recorded(method: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Any]:
        def call(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
            scores, where, counted = method(*args)
            predictions.append(scores[counted])
            return scores, where, counted

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("occupancy_logits", "value_scores"):
            patch.setattr(model.texture, name, recorded(getattr(model.texture, name)))
        run()
    return predictions


def scored_passes(model: DCTransformer, picture: TextureState, rank: Tensor) -> list[Tensor]:
    """The four predictions about a channel (an int64 scalar) of a finished picture."""
    return passes(model, lambda: model.texture.channel_nats(picture, torch.tensor([0]), rank[None]))


@pytest.mark.parametrize("chroma", [False, True], ids=["luma", "chroma"])
@torch.inference_mode()
def test_a_changed_coefficient_changes_no_earlier_decision(chroma: bool) -> None:
    """Changing a coefficient leaves higher channels and earlier decisions of its channel bit for bit."""
    model = make_model()
    coefficients = random_picture(1, 0.4)
    picture, used = whole(sequence_of(coefficients, model), model)
    rank = used[model.texture.is_chroma[used] == chroma][10]
    row, col = GRID.block_position // GRID.width, GRID.block_position % GRID.width
    colour = ((row // 2 + col // 2 if chroma else row + col) % 2)[..., None]
    here, held = rank == RANK_OF_SLOT.expand(coefficients.shape), coefficients != 0
    for k in (0, 1):
        assert bool((here & held & (colour == k)).any()) and bool((here & ~held & (colour == k)).any())
    rates, expected = model.texture.use_rates(picture), scored_passes(model, picture, rank)
    for kept, changed, value in (
        (1, here & (colour == 0), torch.where(held, 0, 3)),  # decided first: the first colour's occupancy
        (2, here & (colour == 1), torch.where(held, 0, 3)),
        (3, here & (colour == 0), -coefficients),
        (4, here & (colour == 1), -coefficients),
    ):
        others = coefficients.masked_fill(random_mask(3, 0.5) & (rank < RANK_OF_SLOT), 5)
        other, _ = whole(sequence_of(torch.where(changed, value, others).to(torch.int16), model), model)
        predictions = zip(expected, scored_passes(model, other, rank), strict=True)
        assert [a.shape == b.shape and torch.equal(a, b) for a, b in predictions] == [k < kept for k in range(4)]
        other_rates = model.texture.use_rates(other)
        assert torch.equal(rates[:, :rank], other_rates[:, :rank])
        # A sum with the channel minus the channel: equal but for rounding.
        torch.testing.assert_close(rates[:, rank], other_rates[:, rank], rtol=1e-5, atol=0)
        assert not torch.equal(rates[:, rank + 1 :], other_rates[:, rank + 1 :])


@torch.inference_mode()
def test_decoding_equals_the_teacher_forced_pass() -> None:
    """Sampling predicts, channel by channel, what the likelihood computes from the finished picture."""
    model = make_model()
    given = random_mask(9, 0.2) | (model.config.texture_rank > RANK_OF_SLOT)
    known = (random_picture(4, 0.1) * given)[None]
    state = TextureState(known, given[None], torch.zeros_like(given)[None], torch.tensor([1]), GRID)
    filled = []
    drawn = passes(model, lambda: filled.append(fill_texture(model, state, [NoiseKey(0, 0, 0)], [SampleConfig()])[0]))
    picture, used = whole(sequence_of(filled[0][0], model, given=given), model)
    assert len(used) > 20 and len(drawn) == 4 * len(used)
    for i in range(0, len(used), 3):
        for a, b in zip(drawn[4 * i : 4 * i + 4], scored_passes(model, picture, used[i]), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_samples_follow_the_likelihood() -> None:
    """Pictures with two open places are drawn as often as they are likely, and cost the entropy on average."""
    model, grid, count = make_model(quality=1, texture_from=1), Grid(1, 1), 3000
    opened = torch.zeros(1, 6, 64, dtype=torch.bool)
    opened[0, :2, 30] = True  # one of either colour
    limit = int(model.limits[RANK_OF_SLOT[0, 30]])
    pairs = list(itertools.product(range(-limit, limit + 1), repeat=2))
    known = random_picture(1, 0.2, grid, top=3) * ~opened
    pictures = known.repeat(len(pairs), 1, 1, 1)
    pictures[:, opened] = torch.tensor(pairs, dtype=torch.int16)
    sequences = [sequence_of(picture, model, grid, given=~opened) for picture in pictures]
    bits = code_lengths(model, sequences, batch=256).bits.sum((1, 2))

    given = (~opened).expand(count, 1, 6, 64)
    state = TextureState(known.expand_as(given), given, torch.zeros_like(given), torch.full((count,), 1), grid)
    keys = [NoiseKey(0, i, 0) for i in range(count)]
    filled, _ = fill_texture(model, state, keys, [SampleConfig()] * count)
    drawn = torch.tensor([pairs.index((a, b)) for a, b in filled[:, opened].tolist()])
    p, frequency = (-bits).exp2(), drawn.bincount(minlength=len(pairs)) / count
    assert bool(((frequency - p).abs() < 4.5 * (p / count).sqrt() + 2 / count).all())
    entropy = float(p @ bits)
    deviation = float(p @ (bits - entropy).square()) ** 0.5
    assert float(bits[drawn].mean()) == pytest.approx(entropy, abs=4 * deviation / count**0.5)


def test_both_colours_cover_every_place_once() -> None:
    """The checkerboard covers every luma position and MCU once, with neighbours in different colours."""
    for grid in (GRID, Grid(1, 1), Grid(3, 3)):
        index = checkerboard(grid, torch.device("cpu"))
        assert sorted(index[0].flatten().tolist()) == list(range(grid.positions))
        chroma = [set(part.tolist()) & set(grid.chroma_position.tolist()) for part in index[1]]
        assert chroma[0] | chroma[1] == set(grid.chroma_position.tolist()) and not chroma[0] & chroma[1]
        assert all(len(set(part.tolist())) == len(part) for kind in index for part in kind)


@pytest.mark.parametrize("limit", [1, 5, MAGNITUDES, 40, 1024])
def test_values_are_normalised(limit: int) -> None:
    """`value_logits` are log-probabilities that sum to 1, equal `value_log_p`, and exclude values beyond the limit."""
    model = make_model(quality=100)
    scores = torch.randn(3, MAGNITUDES + 2, generator=torch.Generator().manual_seed(0)) * 2
    log_p = value_logits(scores, torch.full((3,), limit), model.alphabet)
    assert torch.allclose(log_p.double().exp().sum(-1), torch.ones(3).double(), atol=1e-5)
    possible = (model.alphabet.values.abs() <= limit) & (model.alphabet.values <= 1023)
    assert torch.equal(log_p[0] > NEVER / 2, possible)
    for value in (1, -1, min(limit, 1023), -limit, -min(limit, 9)):
        log_p_of_value = value_log_p(scores, torch.tensor(limit), torch.full((3,), value))
        index = int(model.alphabet.encode(torch.tensor(value)))
        torch.testing.assert_close(log_p_of_value, log_p[:, index], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("must", [False, True])
def test_occupancy_is_drawn_from_its_distribution(must: bool) -> None:
    """Frequencies of all patterns of three among five open places match their exact probabilities."""
    logits = torch.tensor([-1.0, 9.0, 0.3, -0.5, 9.0])
    opened = torch.tensor([True, False, True, True, False])
    count = 40_000
    g = torch.Generator().manual_seed(0)
    uniform, first = torch.rand(count, 5, generator=g, dtype=torch.float64), torch.rand(count, generator=g).double()
    drawn = draw_occupancy(
        logits.expand(count, -1), opened.expand(count, -1), torch.full((count,), must), uniform, first,
        Draws.of([SampleConfig()] * count, logits.device),
    )  # fmt: skip
    assert not drawn[:, ~opened].any()
    p = logits[opened].sigmoid().double()
    empty = float((1 - p).prod())
    for pattern in itertools.product((False, True), repeat=3):
        bits = torch.tensor(pattern)
        exact = float(torch.where(bits, p, 1 - p).prod())
        if must:
            exact = exact / (1 - empty) if bits.any() else 0.0
        frequency = float((drawn[:, opened] == bits).all(-1).double().mean())
        assert frequency == pytest.approx(exact, abs=0.01)
    greedy = Draws.of([SampleConfig(temperature=0)], logits.device)
    likeliest = draw_occupancy(logits[None] - 9, opened[None], torch.tensor([must]), uniform[:1], first[:1], greedy)
    assert likeliest.sum() == must and not likeliest[0, ~opened].any()


def test_the_next_channel_is_drawn_from_its_distribution() -> None:
    """Frequencies of the next channel, and of none, match their probabilities."""
    rates = torch.zeros(1, order.NUM_CHANNELS)
    rates[0, [20, 30, 40, 50]] = torch.tensor([5.0, 0.5, 0.2, 0.9])
    count = 40_000
    uniform = (torch.arange(count).double() + 0.5) / count
    chosen = next_channel(rates.expand(count, -1), torch.full((count,), 20), uniform)
    used = {rank: 1 - math.exp(-float(rates[0, rank])) for rank in (30, 40, 50)}
    passed = 1.0
    for rank, p in used.items():
        assert float((chosen == rank).double().mean()) == pytest.approx(passed * p, abs=1e-3)
        passed *= 1 - p
    assert float((chosen == order.STOP).double().mean()) == pytest.approx(passed, abs=1e-3)


@pytest.mark.parametrize("texture_from", [1, 2, 3])
def test_untrained_models_draw_legal_pictures(texture_from: int, tmp_path) -> None:
    """Pictures fit into JPEG files, triples are in order, and the batch size has no effect."""
    model = make_model(5, texture_from=texture_from)
    samples = sample(model, 3, SampleConfig(seed=2, batch=3, workers=1), labels=[0, 1, 3], size=(32, 48))
    alone = sample(model, 2, SampleConfig(seed=2, batch=1, workers=1), labels=[0, 1], size=(32, 48))
    assert torch.equal(samples.mcus[:2], alone.mcus)
    decisions = samples.decisions()
    for i, triples in enumerate(samples.triples):
        assert torch.equal(triples, triples_of(samples.mcus[i]))
        ranks = torch.from_numpy(order.RANK)[triples[:, 0].long()]
        assert len(ranks[ranks >= model.config.texture_rank]) > 20
        structure = int((ranks < model.config.texture_rank).sum())
        channels = len(ranks[ranks >= model.config.texture_rank].unique())
        assert int(decisions[i]) == structure + channels < len(triples)
        assert bool((triples[:, 2].abs() <= model.limits[ranks]).all())
        write_jpeg(samples.dct()[i], tmp_path / "sample.jpg")
        assert read_jpeg(tmp_path / "sample.jpg").equal(samples.dct()[i])
    second = sample(model, 3, SampleConfig(seed=2, batch=3, workers=2), labels=[0, 1, 3], size=(32, 48))
    assert torch.equal(second.mcus, samples.mcus)


def test_given_and_kept_coefficients_are_preserved() -> None:
    """Given coefficients are preserved, and so is a prefix that ends inside a texture channel."""
    model = make_model(5)
    picture, given = random_picture(1, 0.1), random_mask(2, 0.4)
    known = picture * given
    triples = triples_of(random_picture(3, 0.1))
    kept = triples[: int(0.8 * len(triples))]
    request = Request(0, 1, known, given)
    done, begun = (fill(model, [r], GRID, SampleConfig(workers=1)) for r in (request, Request(0, 1, kept=kept)))
    assert torch.equal(done.mcus[0][given], known[given])
    assert not torch.equal(done.mcus[0][~given], torch.zeros_like(known)[~given])
    assert torch.equal(begun.triples[0][: len(kept)], kept) and len(begun.triples[0]) > len(kept)
    structure_given = RANK_OF_SLOT.expand(given.shape) < model.config.texture_rank
    only_texture = fill(
        model, [Request(0, 1, picture * structure_given, structure_given)], GRID, SampleConfig(workers=1)
    )
    assert torch.equal(only_texture.mcus[0][structure_given], picture[structure_given])


def test_guidance_and_temperature_reach_texture() -> None:
    """Guidance, temperature and seed change the texture."""
    model = make_model(5)
    with torch.no_grad():
        for table in (model.texture.label, model.texture.use_label):
            table.weight.add_(torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(1)))
    structure = RANK_OF_SLOT.expand(GRID.mcus, 6, 64) < model.config.texture_rank
    request = Request(0, 1, random_picture(1, 0.1) * structure, structure)

    def draw(**settings) -> Tensor:
        return fill(model, [request], GRID, SampleConfig(workers=1, **settings)).mcus

    plain = draw()
    assert not torch.equal(plain, draw(guidance=3.0)) and not torch.equal(plain, draw(temperature=0.5))
    assert not torch.equal(plain, draw(seed=1))


def test_min_p_leaves_texture_alone() -> None:
    """Texture whose structure is given is the same with and without min-p."""
    model = make_model(5)
    structure = RANK_OF_SLOT.expand(GRID.mcus, 6, 64) < model.config.texture_rank
    request = Request(0, 1, torch.where(structure, random_picture(1, 0.05), 0), structure)
    pictures = [fill(model, [request], GRID, SampleConfig(workers=1, min_p=p)).mcus for p in (0.0, 0.9)]
    assert torch.equal(*pictures) and int(pictures[0][:, ~structure].count_nonzero()) > 0


def test_texture_has_settings_of_its_own() -> None:
    """Structure uses the general settings, and texture its own if they are set."""
    model = make_model(5)
    with torch.no_grad():
        for table in (model.texture.label, model.texture.use_label, model.label):
            table.weight.add_(torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(1)))
    structure = RANK_OF_SLOT.expand(GRID.mcus, 6, 64) < model.config.texture_rank

    def draw(**settings) -> Tensor:
        return fill(model, [Request(0, 1), Request(1, 0)], GRID, SampleConfig(workers=1, **settings)).mcus

    plain = draw()
    for name, value in (("temperature", 0.5), ("top_p", 0.5), ("guidance", 3.0)):
        changed = draw(**{f"texture_{name}": value})
        assert torch.equal(changed[:, structure], plain[:, structure]) and not torch.equal(changed, plain), name
        both = draw(**{name: value})
        assert torch.equal(draw(**{name: value, f"texture_{name}": value}), both)
        apart = draw(**{name: value, f"texture_{name}": 1.0})
        assert torch.equal(apart[:, structure], both[:, structure])
        assert not torch.equal(apart[:, structure], plain[:, structure]) and not torch.equal(apart, both)
    assert not torch.equal(draw(min_p=0.9)[:, structure], plain[:, structure])
    with pytest.raises(ValueError, match="texture's top-p 0 must be"):
        SampleConfig(texture_top_p=0)


@torch.inference_mode()
def test_likelihood_in_slices_and_by_coefficient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits do not depend on the slice size, and bits by coefficient add up to the picture's."""
    model = make_model()
    sequences = [sequence_of(random_picture(i, 0.05 * i), model) for i in range(4)]
    lengths = code_lengths(model, sequences)
    monkeypatch.setattr(likelihood_module, "TEXTURE_PLACES", 3 * GRID.positions)
    torch.testing.assert_close(code_lengths(model, sequences).bits, lengths.bits, atol=1e-3, rtol=1e-5)
    for i, sequence in enumerate(sequences):
        bits = triple_bits(model, sequence)
        assert len(bits) == len(triples_of(random_picture(i, 0.05 * i))) + 1 == int(lengths.triples[i].sum())
        assert float(bits.sum()) == pytest.approx(float(lengths.bits[i].sum()), rel=1e-5)
    given = (model.config.texture_rank > RANK_OF_SLOT).expand(GRID.mcus, 6, 64)
    sequences = [sequence_of(random_picture(i, 0.05 * i), model, given=given) for i in range(4)]
    lengths, marked = code_lengths(model, sequences), random_mask(7, 0.4)
    parts = [code_lengths(model, sequences, marked=m).marked for m in (marked, ~marked)]
    assert parts[0] is not None and parts[1] is not None
    texture = torch.stack([lengths.bits[i, 2:4].sum() for i in range(4)])
    torch.testing.assert_close(parts[0] + parts[1], texture, atol=1e-3, rtol=1e-6)


@torch.inference_mode()
def test_sampled_channels_stand_for_all() -> None:
    """The loss on sampled channels is an unbiased estimate of the loss on the whole picture."""
    model = make_model()
    sequence = sequence_of(random_picture(2, 0.01), model)
    used = channels_in_use(sequence, model.config.texture_rank)
    exact = model.texture(texture_batch([sequence], [used], [torch.ones(len(used))]))[0]
    starts = (torch.arange(60) + 0.5) / 60
    estimates = torch.stack(
        [model.texture(sample_texture([sequence], u[None], 3, model.config.texture_rank))[0] for u in starts]
    )
    assert len(used) > 3
    torch.testing.assert_close(estimates.mean(0), exact, rtol=0.05, atol=0.1)


def test_the_last_start_below_one_takes_the_last_channel() -> None:
    """A random start that addition rounds up to 1 does not point past the last channel in use."""
    sequence, first = Sequence.from_triples(triples_of(random_picture(1, 0.2)), GRID, 1), 30
    used = channels_in_use(sequence, first)
    batch = sample_texture([sequence], torch.tensor([1 - 2.0**-53], dtype=torch.float64), 8, first)
    assert len(used) > 8 and batch.rank[0, -1] == used[-1]


def test_a_config_without_texture_means_off() -> None:
    """Older configs without the field load with texture off, and invalid values are refused."""
    fields = preset("tiny").to_dict()
    fields.pop("texture_from")
    assert ModelConfig.from_dict(fields).texture_rank == order.NUM_CHANNELS
    assert not hasattr(DCTransformer(ModelConfig.from_dict(fields)), "texture")
    with pytest.raises(ValueError, match="texture_from 5"):
        preset("tiny", texture_from=5)
    with pytest.raises(ValueError, match="texture_width"):
        preset("tiny", texture_from=2, texture_width=0)


def test_texture_of_a_large_picture_needs_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given structure, a large picture is filled at once, and given coefficients are preserved."""
    model = make_model(5, size=32, max_grid=4)
    grid = Grid(6, 9)
    given = RANK_OF_SLOT.expand(grid.mcus, 6, 64) < model.config.texture_rank
    known = random_picture(1, 0.1, grid) * given
    monkeypatch.setattr(tiles, "waves", None)
    done = tiles.complete(model, [tiles.CompletionJob(0, 3, known, given)], grid, SampleConfig(workers=1))
    assert torch.equal(done[0][given], known[given]) and bool((done[0][~given] != 0).any())


@torch.inference_mode()
@pytest.mark.parametrize("rank", [20, 30], ids=["luma", "chroma"])
def test_texture_features_are_local(rank: int) -> None:
    """Features of places inside a window equal those in the whole picture, away from the border."""
    model = make_model(1)
    picture = random_picture(1, 0.1, Grid(7, 7))
    square = picture.view(7, 7, 6, 64)
    window = square[1:6, 1:6].reshape(25, 6, 64)
    parts = []
    for coefficients, grid in ((picture, Grid(7, 7)), (window, Grid(5, 5))):
        none = torch.zeros(1, grid.mcus, 6, 64, dtype=torch.bool)
        batch = TextureState(coefficients[None], none, none, torch.tensor([1]), grid)
        channels = model.texture.begin(batch, torch.tensor([0]), torch.tensor([rank]))
        per_mcu = 1 if channels.kind else 2
        parts.append(channels.features.view(per_mcu * grid.rows, per_mcu * grid.cols, -1))
    in_picture, in_window = (slice(per_mcu * mcu, per_mcu * (mcu + 1)) for mcu in (3, 2))
    torch.testing.assert_close(parts[0][in_picture, in_picture], parts[1][in_window, in_window], atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(3, 3)], ids=["even", "odd"])
def test_channels_of_one_kind_cost_less_and_change_nothing(
    grid: Grid, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of luma, of chroma and of both give the same nats."""
    model = make_model(2, texture_blocks=blocks)
    pictures = torch.stack([random_picture(k, 0.3, grid) for k in range(2)])
    none = torch.zeros_like(pictures, dtype=torch.bool)
    batch = TextureState(pictures, none, none, torch.tensor([0, 2]), grid)
    rows = torch.tensor([0, 1, 1])
    for ranks, kind in ((torch.tensor([12, 20, 60]), 0), (torch.tensor([30, 130, 170]), 1)):
        seen = model.texture.begin(batch, rows, ranks)
        assert seen.kind == kind and seen.features.shape[1] == (grid.mcus if kind else grid.positions)
        nats = model.texture.channel_nats(batch, rows, ranks)
        with monkeypatch.context() as patch:
            patch.setattr(model.texture, "_kind", lambda rank: None)
            expected = model.texture.channel_nats(batch, rows, ranks)
        for a, b in zip(nats, expected, strict=True):
            assert bool((b != 0).any()) or a is nats[2]
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(3, 3)], ids=["even", "odd"])
def test_running_sums_equal_recomputed_sums(grid: Grid) -> None:
    """Running sums updated from channel to channel equal those computed from the picture."""
    model = make_model(3)
    texture, first = model.texture, model.config.texture_rank
    pictures = torch.stack([random_picture(k, 0.2, grid) for k in range(2)])
    rank_of = RANK_OF_SLOT.expand_as(pictures)
    given = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    given |= rank_of < first
    hidden, labels = torch.zeros_like(given), torch.tensor([1, 2])

    def as_of(ranks: list[int]) -> TextureState:
        known = given | (rank_of < torch.tensor(ranks)[:, None, None, None])
        return TextureState(torch.where(known, pictures, 0).to(torch.int16), given, hidden, labels, grid)

    whole, rows = TextureState(pictures, given, hidden, labels, grid), torch.arange(2)
    running_rates, mix = (make(texture, as_of([first, first])) for make in (RunningRates, RunningMix))
    path = [(first, first), (first + 7, first), (60, 61), (100, 191)]  # the second picture waits once
    for ranks in path:
        now, rank = as_of(list(ranks)), torch.tensor(ranks)
        rates, ranks_of_rows = texture.use_rates(now), torch.tensor([[3, first, 90], [191, 60, 61]])
        torch.testing.assert_close(running_rates(rows, labels), rates, atol=1e-5, rtol=1e-4)
        picked = running_rates(rows, labels, ranks_of_rows)
        torch.testing.assert_close(picked, rates.gather(1, ranks_of_rows), atol=1e-5, rtol=1e-4)
        updated = texture.begin(now, rows, rank, mixed=mix.before(rows, rank))
        fresh = texture.begin(now, rows, rank)
        torch.testing.assert_close(updated.features, fresh.features, atol=2e-5, rtol=1e-4)
        assert torch.equal(updated.values, fresh.values) and torch.equal(updated.opened, fresh.opened)
        following = torch.tensor(path[min(path.index(ranks) + 1, len(path) - 1)])
        for row in range(2):  # channels up to the next one become settled, in order
            for r in range(int(rank[row]), int(following[row])):
                for running in (running_rates, mix):
                    running.settle(rows[row : row + 1], torch.tensor([r]), whole.planes[row, r][None])


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_large_pictures_are_drawn_alike(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running and recomputed sums give the same picture."""
    model = make_model(4)
    config = SampleConfig(batch=2, workers=1, guidance=guidance)
    few = sample(model, 2, config, labels=[0, 1], size=(32, 48))
    monkeypatch.setattr(texture_sampling, "LARGE", 1)
    running = sample(model, 2, config, labels=[0, 1], size=(32, 48))
    assert torch.equal(few.mcus, running.mcus) and bool((few.mcus != 0).any())


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("window", [1, 7, 500])
def test_channels_are_searched_in_windows(window: int, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, however many channels are looked at together."""
    model = make_model(5)
    config = SampleConfig(batch=3, workers=1, guidance=guidance)
    expected = sample(model, 3, config, labels=[0, 1, 2], size=(32, 48))
    monkeypatch.setattr(texture_sampling, "WINDOW", window)
    samples = sample(model, 3, config, labels=[0, 1, 2], size=(32, 48))
    assert torch.equal(samples.mcus, expected.mcus) and torch.equal(samples.decisions(), expected.decisions())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("value", [math.nan, 3e38])
@pytest.mark.parametrize(
    "name",
    ["texture.use_out.weight", "texture.occupancy_out.weight", "texture.value_out.weight", "texture.luma_mix.weight"],
)
def test_predictions_of_texture_that_are_not_finite_end_in_a_sentence(name: str, value: float, guidance: float) -> None:
    """Non-finite predictions are reported, even if structure does not use the weight."""
    model = make_model()
    sampling = SampleConfig(guidance=guidance, workers=1)
    engine = Engine(model, sampling)
    with torch.no_grad():
        engine.model.get_parameter(name).fill_(value)
    rows = engine.begin([Request(0, 1), Request(1, 2)], GRID, sampling)
    for row in rows:
        row.stopped = True
    with pytest.raises(ValueError, match="predictions are not finite, or far too large"), torch.inference_mode():
        engine.run_texture(rows)


@pytest.mark.parametrize("which", ["last", "first"])
def test_one_prediction_of_texture_that_is_not_finite_is_enough(which: str) -> None:
    """A single non-finite value bias is detected, also in the last channel."""
    model = make_model()
    whole_picture = sample(model, 1, SampleConfig(workers=1), size=(32, 48))
    ranks = torch.from_numpy(order.RANK)[whole_picture.triples[0][:, 0].long()]
    rank = int(ranks.max() if which == "last" else ranks[ranks >= model.config.texture_rank].min())
    engine = Engine(model, SampleConfig(workers=1))
    with torch.no_grad():
        engine.model.texture.value_bias.weight[rank, 0] = math.nan
    (row,) = engine.begin([Request(0, model.config.null_label)], GRID, SampleConfig())
    with pytest.raises(ValueError, match="predictions are not finite"), torch.inference_mode():
        while not row.stopped:
            engine.run([row])
        engine.run_texture([row])


def test_sampling_needs_no_fp64_on_a_device_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `draw_dtype` is fp32, no tensor operation has an fp64 result."""

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if func is torch.ops.aten.lift_fresh.default:  # values from NumPy, still on the host
                    continue
                assert not isinstance(tensor, Tensor) or tensor.dtype != torch.float64, func
            return result

    for module in (drawing, texture_sampling):
        monkeypatch.setattr(module, "draw_dtype", lambda device: torch.float32)
    with NoFloat64():
        samples = sample(make_model(), 2, SampleConfig(workers=1, top_p=0.9), size=(32, 32))
    assert int(samples.mcus.count_nonzero()) > 20
    almost_one = np.array([1 - 2.0**-53])
    assert float(drawing.uniform_on(almost_one, torch.device("cpu"))) < 1


def test_likelihood_computes_convolutions_in_full_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 of cuDNN is off during the likelihood, and the setting is restored."""
    model = make_model()
    seen = []
    around = model.texture.channel_nats
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(
        model.texture, "channel_nats", lambda *a: (seen.append(torch.backends.cudnn.allow_tf32), around(*a))[1]
    )
    sequence = sequence_of(random_picture(0), model)
    code_lengths(model, [sequence])
    triple_bits(model, sequence)
    assert len(seen) >= 2 and not any(seen) and torch.backends.cudnn.allow_tf32


def test_compiled_texture_is_one_graph_per_grid() -> None:
    """Nothing interrupts the compiled network, and two grids with equally many places give their own results."""
    model = make_model(texture_from=1)
    compiled = torch.compile(model.texture.nats, backend="eager", fullgraph=True, dynamic=False)
    for grid in (Grid(2, 2), Grid(1, 4), Grid(2, 2)):
        sequences = [sequence_of(random_picture(k, 0.1, grid), model, grid) for k in range(2)]
        batch = sample_texture(sequences, torch.tensor([0.2, 0.7]), 3, model.config.texture_rank)
        assert torch.equal(compiled(batch), model.texture(batch))
