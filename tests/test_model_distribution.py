"""Tests of the distribution: legal, normalised, and equal in chunks, whole and step by step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import ranked
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.context import States, neighbour_table
from dctransformer.model.heads import PositionHead, hazard_logits
from dctransformer.model.legality import NEVER
from dctransformer.model.ops import coarse
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.decoder_state import Decoding
from dctransformer.sampling.drawing import Draws, pick
from dctransformer.sampling.engine import fill, sample
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sampling.rows import Request
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from tiny_model import lively

GRID = Grid(2, 3)
"""32 × 48 pixels: not square, so that rows and columns can't be mixed up unnoticed."""


def make_model(seed: int = 0, **overrides) -> DCTransformer:
    """A tiny model with non-zero weights (heads and residual branches are initialised close to zero)."""
    torch.manual_seed(seed)
    model = DCTransformer(preset("tiny", num_labels=3, **overrides)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def make_lively(seed: int = 3, **overrides) -> DCTransformer:
    """A model whose samples are long: it prefers close channels, and rarely stops."""
    torch.manual_seed(seed)
    return lively(DCTransformer(preset("tiny", num_labels=3, **overrides)).eval())


def random_slots(seed: int, density: float, model: DCTransformer, grid: Grid = GRID) -> Tensor:
    """A random legal DCT image: int16 ``[N, 6, 64]``."""
    g = torch.Generator().manual_seed(seed)
    shape = (grid.mcus, order.BLOCKS_PER_MCU, 64)
    values = torch.randint(1, 9, shape, generator=g) * (1 - 2 * torch.randint(0, 2, shape, generator=g))
    return (values * (torch.rand(shape, generator=g) < density)).to(torch.int16)


def triples_of(slots: Tensor, grid: Grid = GRID) -> Tensor:
    """Triples of a DCT image by brute force: int32 ``[L, 3]``."""
    triples = []
    for mcu, block, frequency in slots.nonzero().tolist():
        channel = (0, 0, 0, 0, 64, 128)[block] + frequency
        position = int(grid.block_position[mcu, block])
        triples.append((int(order.RANK[channel]), position, channel, int(slots[mcu, block, frequency])))
    return torch.tensor([(c, p, v) for _, p, c, v in sorted(triples)], dtype=torch.int32).view(-1, 3)


def make_sequence(
    seed: int, model: DCTransformer, density: float = 0.08, given: Tensor | None = None, grid: Grid = GRID
) -> Sequence:
    """A random sequence."""
    return Sequence.from_triples(triples_of(random_slots(seed, density, model, grid), grid), grid, seed % 3, given)


VARIANTS = {
    "tiny": {},
    "no overlap": {"overlap": 0},
    "paper blocks": {"block": "paper", "local_context": False},
    "paper blocks with local context": {"block": "paper"},
    "several feed-forwards": {"encoder": (2, 1), "value": (1, 3)},
    "coarse memory": {"memory": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("given", [False, True])
def test_step_by_step_equals_teacher_forcing(variant: str, given: bool) -> None:
    """Logits of cached decoding equal those of the whole chunk within 1e-4, for every chunk."""
    model = make_model(**VARIANTS[variant])
    mask = torch.rand(GRID.mcus, 6, 64, generator=torch.Generator().manual_seed(5)) < 0.3 if given else None
    sequence = make_sequence(1, model, density=0.18, given=mask)
    assert sequence.chunks(model.config.stride) >= 3
    for k in range(sequence.chunks(model.config.stride)):
        batch = cut_chunks([sequence], [k], model.config.chunk, model.config.overlap)
        with torch.inference_mode():
            whole = model(batch)[0]
            first = k * model.config.stride
            # Start at the beginning of the chunk, and in its middle, as for a continued picture.
            for begun in (0, min(7, int(batch.lengths[0] - batch.context[0]) - 1)):
                _follow(model, sequence, batch, whole, k, first + begun)


def _follow(model: DCTransformer, sequence: Sequence, batch: ChunkBatch, whole: Tensor, chunk: int, known: int) -> None:
    """Decode a chunk whose first triples are known, and compare with the nats of the whole chunk ``[L, 3]``."""
    listed = (x[:known] for x in (sequence.ranks, sequence.positions, sequence.values))
    partial = Sequence(*listed, sequence.given, sequence.known, sequence.label, sequence.grid)
    steps = Decoding(model, cut_chunks([partial], [chunk], model.config.chunk, model.config.overlap))
    begun = known - chunk * model.config.stride + int(batch.context[0])
    for index in range(begun, int(batch.lengths[0])):
        rank, position, value = (x[0, index + 1 : index + 2] for x in (batch.ranks, batch.positions, batch.values))
        nats = [-steps.channel().log_softmax(-1)[0, rank]]
        if int(rank) != order.STOP:
            nats.append(-steps.position(rank).log_softmax(-1)[0, position])
            nats.append(-steps.value(position).log_softmax(-1)[0, model.alphabet.encode(value)])
            steps.settle(value)
        torch.testing.assert_close(torch.cat(nats), whole[index, : len(nats)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["tiny", "paper blocks"])
def test_likelihood_is_the_sum_over_chunks_and_batches(variant: str) -> None:
    """Bits of a picture are the sum over its chunks, and equal in batches of 1 and 16."""
    model = make_model(**VARIANTS[variant])
    sequences = [make_sequence(i, model, density=0.03 * i) for i in range(5)]
    lengths = code_lengths(model, sequences, batch=16)
    torch.testing.assert_close(code_lengths(model, sequences, batch=1).bits, lengths.bits, atol=1e-3, rtol=1e-5)
    for i, sequence in enumerate(sequences):
        total = 0.0
        for k in range(sequence.chunks(model.config.stride)):
            with torch.inference_mode():
                total += float(model(cut_chunks([sequence], [k], model.config.chunk, model.config.overlap)).sum())
        assert float(lengths.bits[i].sum()) == pytest.approx(total / math.log(2), rel=1e-5)
        assert int(lengths.triples[i].sum()) == len(sequence)


def test_the_encoder_tells_a_known_zero_from_an_unknown_coefficient() -> None:
    """The encoder reads which coefficients are settled, not only their values."""
    model = make_model()
    nothing, all_known = (torch.full((1, GRID.mcus, 6, 64), known) for known in (False, True))
    blank, labels = torch.zeros(1, GRID.mcus, 6, 64, dtype=torch.int16), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        a, b = (model.encode(blank, settled, nothing, labels, GRID).encoded for settled in (nothing, all_known))
    assert not torch.equal(a, b)


def test_hazards_are_the_chances_of_the_first_outcome_taken() -> None:
    """Log-probabilities equal products of hazards, and sum to 1 with the probability of none."""
    g = torch.Generator().manual_seed(0)
    score, legal = 2 * torch.randn(50, 7, generator=g), torch.rand(50, 7, generator=g) < 0.7
    first, none = hazard_logits(score, legal)
    left = torch.ones(50)
    for k in range(7):
        hazard = torch.where(legal[:, k], score[:, k].sigmoid(), 0.0)
        torch.testing.assert_close(first[:, k].exp(), left * hazard)
        left = left * (1 - hazard)
    torch.testing.assert_close(none[:, 0].exp(), left)


def test_given_coefficients_of_the_channel_are_seen_on_all_sides() -> None:
    """A given neighbour on any side changes a place's features; a given zero does not."""
    local = make_model().local
    positions = torch.arange(GRID.positions)
    for rank, step in ((0, 1), (int(order.RANK[order.CR]), 2)):
        near = neighbour_table(GRID, torch.device("cpu"))[None, step - 1]
        middle = 2 * GRID.width + 2
        down, right = (positions // GRID.width - 2) // step, (positions % GRID.width - 2) // step
        around = (down.abs() <= 1) & (right.abs() <= 1) & (positions != middle)
        around &= (positions // GRID.width % step == 0) & (positions % GRID.width % step == 0)
        states = States(torch.zeros(1, GRID.positions, 8), torch.zeros(1, GRID.mcus, 8))

        def features(*given: float, rank=rank, middle=middle, near=near, states=states) -> Tensor:
            coefficients = torch.zeros(1, GRID.positions, 2)
            coefficients[0, middle] = torch.tensor(given)
            encoded = torch.zeros(1, GRID.positions, 32)
            return local.features(states, encoded, (coefficients, near), torch.tensor([rank]), GRID)[0]

        with torch.no_grad():
            nothing, zero, three = features(0, 0), features(0, 1), features(3, 1)
        assert torch.equal((nothing != zero).any(-1), around) and torch.equal((zero != three).any(-1), around)


def test_a_given_zero_differs_from_a_hidden_coefficient() -> None:
    """The encoder and the local context distinguish a given zero from a hidden coefficient."""
    model = make_model()
    closed = torch.rand(1, GRID.mcus, 6, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    blank, labels = torch.zeros(1, GRID.mcus, 6, 64, dtype=torch.int16), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        given, hidden = (model.encode(blank, settled, closed, labels, GRID) for settled in (closed, closed & False))
    assert given.states is not None and hidden.states is not None
    assert not torch.equal(given.encoded, hidden.encoded)
    assert not torch.equal(given.states.luma, hidden.states.luma)
    assert not torch.equal(given.states.chroma, hidden.states.chroma)
    assert bool(given.given.any()) and not bool(hidden.given.any())


def test_the_empty_picture_has_a_likelihood() -> None:
    """A grey picture is a sequence of the stop alone."""
    model = make_model()
    lengths = code_lengths(model, [make_sequence(0, model, density=0.0)])
    assert int(lengths.triples.sum()) == 1
    assert 0 < float(lengths.bits.sum()) < 20


def legal_next(listed: list[tuple[int, int, int]], given: Tensor, model: DCTransformer) -> set[tuple[int, int, int]]:
    """All triples (rank, position, value) that may follow, by the definition."""
    before = listed[-1][:2] if listed else (-1, -1)
    values = {}
    triples = set()
    for mcu in range(GRID.mcus):
        for block in range(6):
            position = int(GRID.block_position[mcu, block])
            for frequency in range(64):
                rank = int(order.RANK[(0, 0, 0, 0, 64, 128)[block] + frequency])
                if given[mcu, block, frequency] or (rank, position) <= before:
                    continue
                limit = int(model.limits[rank])
                values.setdefault(limit, [v for v in range(-limit, limit + 1) if v])
                triples |= {(rank, position, v) for v in values[limit]}
    return triples


@pytest.mark.parametrize("variant", ["tiny", "paper blocks"])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_over_legal_outcomes_sum_to_one(variant: str, seed: int) -> None:
    """Legal triples and the stop, enumerated in full, have probability 1 in total, and all others 0."""
    model = make_model(**VARIANTS[variant])
    given = torch.rand(GRID.mcus, 6, 64, generator=torch.Generator().manual_seed(seed)) < 0.4
    sequence = make_sequence(seed, model, density=0.02, given=given)
    keep = (0, len(sequence) // 2, len(sequence) - 1)[seed]
    listed = list(
        zip(
            sequence.ranks[:keep].tolist(),
            sequence.positions[:keep].tolist(),
            sequence.values[:keep].tolist(),
            strict=True,
        )
    )
    if keep == 0:
        assert sequence.given is not None
    begun = (x[:keep] for x in (sequence.ranks, sequence.positions, sequence.values))
    part = Sequence(*begun, given, sequence.known, 0, GRID)
    expected = legal_next(listed, given, model)
    total = torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        start = Decoding(model, cut_chunks([part], [0], model.config.chunk, 0))
        channel = start.channel()[0].double().softmax(-1)
        stream = start.stream
        total += channel[order.STOP]
        for rank in range(order.NUM_CHANNELS):
            pairs = {(p, v) for r, p, v in expected if r == rank}
            if not pairs:
                assert channel[rank] == 0
                continue
            start.stream = stream
            place = start.position(torch.tensor([rank]))[0].double().softmax(-1)
            inner = start.stream
            assert {p for p in range(GRID.positions) if place[p] > 0} <= {p for p, _ in pairs}
            for position in {p for p, _ in pairs}:
                start.stream = inner
                value_p = start.value(torch.tensor([position]))[0].double().softmax(-1)
                classes = model.alphabet.encode(torch.tensor([v for p, v in pairs if p == position]))
                total += channel[rank] * place[position] * value_p[classes].sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_of_an_untrained_model_are_legal(variant: str) -> None:
    """Samples are ordered, inside the grid, disjoint from given coefficients, and have possible values."""
    chunks = {"chunk": 16, "overlap": 0 if variant == "no overlap" else 4}
    model = make_lively(**{**VARIANTS[variant], **chunks})
    given = torch.rand(GRID.mcus, 6, 64, generator=torch.Generator().manual_seed(1)) < 0.5
    known = random_slots(9, 0.05, model) * given
    requests = [Request(i, i % 4, known, given) if i % 2 else Request(i, i % 4) for i in range(8)]
    samples = fill(model, requests, GRID, SampleConfig(batch=5))
    lengths = [len(t) for t in samples.triples]
    assert max(lengths) > model.config.chunk, "some sample should need several chunks"
    for request, slots, triples in zip(requests, samples.mcus, samples.triples, strict=True):
        rank, position, _ = ranked(triples)
        assert bool(((rank * GRID.positions + position).diff() > 0).all())
        assert bool((triples[:, 2] != 0).all())
        assert bool((triples[:, 2].abs() <= model.limits[rank]).all())
        slot = GRID.slot(rank, position)
        picture = torch.zeros(slots.numel(), dtype=torch.int16)
        picture[slot] = triples[:, 2].to(torch.int16)
        if request.given is not None:
            assert not bool(request.given.flatten()[slot].any())
            assert torch.equal(slots[given], known[given])
            picture += known.flatten()
        assert torch.equal(slots.flatten(), picture)


def test_a_picture_does_not_depend_on_the_batch() -> None:
    """Picture i of a seed is the same for any batch size and number of pictures."""
    model = make_lively(chunk=16, overlap=4)
    pictures = [
        sample(model, n, SampleConfig(seed=4, batch=b), size=(32, 48)).mcus for n, b in ((4, 1), (4, 4), (3, 2))
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0][:3], pictures[2])
    assert not torch.equal(pictures[0], sample(model, 4, SampleConfig(seed=5), size=(32, 48)).mcus)


def test_chunk_boundaries_do_not_move_the_place_features() -> None:
    """The running states at the start of a channel do not depend on where its past is cut into chunks."""
    long, short = make_model(chunk=512, overlap=0), make_model(chunk=16, overlap=0)
    short.load_state_dict(long.state_dict())
    sequence = make_sequence(2, long)
    whole = cut_chunks([sequence], [0], 512, 0)
    compared = 0
    with torch.inference_mode():
        places = long.places_of_chunk(whole, _context(long, whole))
        for k in range(1, sequence.chunks(16)):
            part = cut_chunks([sequence], [k], 16, 0)
            part_places = short.places_of_chunk(part, _context(short, part))
            for index in range(int(part.lengths[0])):
                rank = part.ranks[0, index + 1]
                if rank == order.STOP or rank == part.ranks[0, 1]:
                    continue  # for a channel cut in two, the first part counts
                in_whole, in_part = places.of_triple[0, 16 * k + index], part_places.of_triple[0, index]
                assert places.features is not None and part_places.features is not None
                difference = (places.features[in_whole] - part_places.features[in_part]).abs().max()
                # Later chunks have another encoder output, which is therefore switched off here.
                assert float(difference) < 1e-4
                compared += 1
    assert compared > 20


def _context(model: DCTransformer, batch):
    context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)
    assert context.encoded_places is not None
    return dataclasses.replace(context, encoded_places=torch.zeros_like(context.encoded_places))


def test_pick_follows_the_distribution_and_the_settings() -> None:
    """Frequencies match the probabilities; temperature 0 is the argmax; top-p keeps a nucleus, min-p what is not far
    less likely than the likeliest; masks always hold.
    """
    count = 20_000
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    logits = torch.cat([torch.tensor([NEVER]), logits, torch.tensor([NEVER])]).expand(count, -1)
    uniform = torch.arange(count, dtype=torch.float64) / count

    def shares(**options) -> Tensor:
        draws = Draws.of([SampleConfig(**options)] * count, uniform.device)
        return torch.bincount(pick(logits, uniform, draws), minlength=6) / count

    torch.testing.assert_close(shares(), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.0]), atol=1e-3, rtol=0)
    assert shares(temperature=0)[4] == 1
    nucleus = torch.tensor([0.0, 0.0, 0.0, 3 / 7, 4 / 7, 0.0])
    torch.testing.assert_close(shares(top_p=0.65), nucleus, atol=1e-3, rtol=0)
    floor = torch.tensor([0.0, 0.0, 2 / 9, 3 / 9, 4 / 9, 0.0])
    torch.testing.assert_close(shares(min_p=0.3), floor, atol=1e-3, rtol=0)
    assert shares(min_p=1.0)[4] == 1
    both = torch.tensor([0.0, 0.0, 0.0, 3 / 7, 4 / 7, 0.0])
    torch.testing.assert_close(shares(min_p=0.3, top_p=0.65), both, atol=1e-3, rtol=0)
    hot = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25, 0.0])
    torch.testing.assert_close(shares(temperature=1e12), hot, atol=1e-3, rtol=0)


def test_guidance_leans_towards_the_label() -> None:
    """Guidance 1 is no guidance; more changes the picture, which stays legal; labels have an effect."""
    model = make_lively(chunk=16, overlap=4)
    plain = sample(model, 2, SampleConfig(seed=1), labels=[1, 1], size=(32, 48))
    strong = sample(model, 2, SampleConfig(seed=1, guidance=3.0), labels=[1, 1], size=(32, 48))
    other = sample(model, 2, SampleConfig(seed=1), labels=[2, 2], size=(32, 48))
    assert not torch.equal(plain.mcus, strong.mcus)
    assert not torch.equal(plain.mcus, other.mcus)
    for triples in strong.triples:
        rank = torch.from_numpy(order.RANK)[triples[:, 0].long()]
        assert bool(((rank * GRID.positions + triples[:, 1]).diff() > 0).all())


def test_paper_preset_has_the_papers_size() -> None:
    """The paper preset has 448M parameters (within 1 %), counted without allocating them."""
    from dctransformer.tasks.info import parameters_by_part

    total = sum(parameters_by_part(preset("paper")).values())
    assert abs(total / 448e6 - 1) < 0.01


def test_coarse_memory_is_the_mean_of_squares() -> None:
    """Every MCU is in one square, edge squares are cropped, and there are none if all MCUs fit."""
    grid = Grid(5, 7)
    encoded = torch.randn(2, grid.rows * grid.cols, 3, generator=torch.Generator().manual_seed(0))
    assert coarse(encoded, grid, 0) is encoded
    assert coarse(encoded, grid, 35) is encoded
    memory = coarse(encoded, grid, 11)  # squares of side 2 would be 3 × 4
    by_place = encoded.unflatten(1, (5, 7))
    squares = [by_place[:, down : down + 3, right : right + 3] for down in (0, 3) for right in (0, 3, 6)]
    torch.testing.assert_close(memory, torch.stack([s.flatten(1, 2).mean(1) for s in squares], 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 40}, "multiple of 16"),
        ({"quality": 0}, "1 to 100"),
        ({"quality": 101}, "1 to 100"),
        ({"width": 33}, "even multiple"),
        ({"overlap": 128, "chunk": 128}, "less than chunk"),
        ({"encoder": ()}, "of length 1 or more"),
        ({"dropout": 1.0}, "dropout"),
        ({"memory": -1}, "memory can't be -1; it must be at least 0"),
        ({"num_labels": 2, "label_names": ("rose",)}, "label_names"),
    ],
)
def test_impossible_configs_are_refused(fields: dict, message: str) -> None:
    """Invalid configs are refused with a sentence that names the field."""
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


def test_unknown_fields_and_presets_name_the_nearest() -> None:
    """A misspelt override is refused with the nearest name."""
    with pytest.raises(ValueError, match="did you mean 'width'"):
        preset("tiny", widht=64)
    with pytest.raises(ValueError, match="choose one of tiny"):
        preset("huge")


def test_looking_only_where_neighbours_can_be_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood equals that of a sum over all four neighbours, on grids of any shape."""

    def everywhere(self, score, weight, rank, cursor, places, context):
        near = context.neighbours[self.is_chroma[rank], :4]
        size = torch.nn.functional.pad(places.same, (0, 1)).abs().log1p()[places.of_triple]
        size = size[:, :, None].expand(-1, -1, 4, -1).gather(3, near)
        return score + (weight[..., None] * size * (near <= cursor[..., None, None])).sum(-2)

    model = make_model(5)
    for grid in (Grid(1, 1), Grid(2, 3), Grid(5, 1), Grid(4, 6)):
        sequences = [make_sequence(seed, model, 0.2, grid=grid) for seed in range(3)]
        batch = cut_chunks(sequences, [1] * 3, model.config.chunk, model.config.overlap)
        with torch.no_grad(), monkeypatch.context() as patch:
            narrow = model(batch)
            patch.setattr(PositionHead, "_with_neighbours", everywhere)
            assert torch.allclose(model(batch), narrow, atol=1e-4)
            patch.setattr(PositionHead, "_with_neighbours", lambda self, score, *_: score)
            assert not torch.allclose(model(batch), narrow, atol=1e-4)
