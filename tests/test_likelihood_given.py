"""Tests of conditional code lengths: two parts that add up to a lossless code of the whole."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import gather, ranked
from dctransformer.data import TripleStore, prepare
from dctransformer.model.config import preset
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sequence.chunks import START, Sequence, cut_chunks
from dctransformer.sequence.conditions import NAMES, find_condition
from dctransformer.tasks.likelihood import likelihood
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train
from pictures import photo_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model trained briefly on all conditions, and its data set (80 × 64 pixels: regions have a centre)."""
    folder = tmp_path_factory.mktemp("run")
    photo_folder(folder / "pictures", 24, ("even", "odd"))
    prepare(
        folder / "pictures", folder / "data", size="80x64", quality=10, val_fraction=0.25, workers=1, progress=False
    )
    config = TrainConfig(triples=4000, batch=4, lr=5e-3, warmup=5, sample_every=0, eval_images=2)
    train(folder / "data", folder / "run", preset("tiny"), config, progress=False)
    return folder / "run", folder / "data"


def bytes_per_image(network: DCTransformer, sequences: list[Sequence]) -> float:
    """Code length computed directly from the network, chunk by chunk."""
    nats = 0.0
    for sequence in sequences:
        for k in range(sequence.chunks(network.config.stride)):
            with torch.inference_mode():
                nats += float(network(cut_chunks([sequence], [k], network.config.chunk, network.config.overlap)).sum())
    return nats / math.log(2) / 8 / len(sequences)


@pytest.mark.parametrize("given", [n for n in NAMES if n != "none"])
def test_the_two_parts_are_what_the_network_spends(run: tuple[Path, Path], given: str) -> None:
    """Code lengths of the given part, the rest and the whole equal those computed chunk by chunk."""
    summary = likelihood(*run, given=given)
    parts = {k.removesuffix("_bytes_per_image"): v for k, v in summary["given"].items()}
    assert parts["condition"] == given and parts["trained"] is True
    network, store, grid = DCTransformer.from_pretrained(run[0]), TripleStore.open(run[1], "validation"), Grid(4, 5)
    mask = find_condition(given).mask(grid)
    assert mask is not None
    pictures = [(store.triples(i), int(store.labels[i])) for i in range(len(store))]
    inside, outside = ([], [])
    for triples, label in pictures:
        chosen = mask.flatten()[grid.slot(*ranked(triples)[:2])]
        inside.append(Sequence.from_triples(triples[chosen], grid, label, hidden=~mask))
        full = Sequence.from_triples(triples, grid, label, given=mask)
        assert torch.equal(full.positions[:-1], triples[~chosen, 1].long())
        outside.append(full)
    first, rest = bytes_per_image(network, inside), bytes_per_image(network, outside)
    assert parts["given_first"] == pytest.approx(first, rel=1e-4)
    assert parts["rest_given"] == pytest.approx(rest, rel=1e-4)
    assert parts["sum"] == pytest.approx(first + rest, rel=1e-4)
    whole = bytes_per_image(network, [Sequence.from_triples(triples, grid, label) for triples, label in pictures])
    assert summary["bytes_per_image"] == pytest.approx(whole, rel=1e-4)
    assert parts["given_unconditional"] + parts["rest_unconditional"] == pytest.approx(whole, rel=1e-4)
    assert 0 < parts["given_unconditional"] < whole


@pytest.mark.parametrize("given", ["low2", "luma", "region"])
def test_bits_about_marked_coefficients(run: tuple[Path, Path], given: str) -> None:
    """Bits of marked coefficients equal a brute-force count over all decisions."""
    network = DCTransformer.from_pretrained(run[0])
    triples, grid = TripleStore.open(run[1], "validation").triples(0), Grid(4, 5)
    mask = find_condition(given).mask(grid)
    assert mask is not None
    planes = gather(mask[None], grid)[0]
    places = gather(torch.ones_like(mask)[None], grid)[0]
    marked_places = [int((planes[rank] & places[rank]).sum()) for rank in range(192)]
    all_places = [int(places[rank].sum()) for rank in range(192)]
    expected = 0.0
    sequence = Sequence.from_triples(triples, grid, 2)
    for k in range(sequence.chunks(network.config.stride)):
        batch = cut_chunks([sequence], [k], network.config.chunk, network.config.overlap)
        with torch.inference_mode():
            nats = network(batch)[0]
            context = network.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, grid)
            before = batch.ranks[:, :-1], batch.positions[:, :-1], batch.values[:, :-1]
            stream = network.channel_decoder(network.embed_previous(*before, context), context.memory[0])
            chances = network.channel_head(stream, *before[:2], context)[0].double().softmax(-1).tolist()
        for t in batch.predicted[0].nonzero()[:, 0].tolist():
            earlier, rank, position = int(before[0][0, t]), int(batch.ranks[0, t + 1]), int(batch.positions[0, t + 1])
            is_nonzero = rank < 192 and bool(planes[rank, position])
            for passed in range(0 if earlier == START else earlier, min(rank, 191) + 1):
                left = sum(chances[t][passed:])
                chance = chances[t][passed] / left
                about = -math.log2(chance if passed == rank else 1 - chance) if chance or passed == rank else 0.0
                if marked_places[passed] == all_places[passed] or (marked_places[passed] and is_nonzero):
                    expected += about
            expected += float(nats[t, 1:].double().sum()) / math.log(2) * is_nonzero
    lengths = code_lengths(network, [sequence], marked=mask)
    assert lengths.marked is not None
    assert 0 < expected < float(lengths.bits.sum())
    assert float(lengths.marked[0]) == pytest.approx(expected, rel=1e-4)


def test_the_command_reports_conditional_code_lengths(run: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    """The command prints a table or JSON, and refuses an unknown condition in one sentence."""
    main(["likelihood", *map(str, run), "--given", "luma", "--num", "2"])
    assert "given luma:" in capsys.readouterr().out
    main(["likelihood", *map(str, run), "--given", "region", "--num", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["given"]["condition"] == "region"
    with pytest.raises(SystemExit) as stop:
        main(["likelihood", *map(str, run), "--given", "low3"])
    assert stop.value.code == 2 and "choose one of none, low1" in capsys.readouterr().err


def test_an_untrained_condition_is_marked(run: tuple[Path, Path], tmp_path: Path) -> None:
    """The code length under an untrained condition is exact, with a warning that it is poor."""
    network = DCTransformer.from_pretrained(run[0])
    network.config = dataclasses.replace(network.config, conditions=("none",))
    network.save_pretrained(tmp_path)
    assert likelihood(tmp_path, run[1], given="low4", num=1)["given"]["trained"] is False


def test_probabilities_that_are_not_finite_are_no_result(run: tuple[Path, Path]) -> None:
    """Weights that overflow in use end in a sentence, not in NaN bytes per image."""
    network = DCTransformer.from_pretrained(run[0])
    with torch.no_grad():
        network.value_head.out.weight.fill_(3e38)
    with pytest.raises(ValueError, match="probabilities that are not finite"):
        likelihood(network, run[1])
