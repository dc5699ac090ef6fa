"""Conditional code lengths: two parts that add up to a lossless code for the whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.data import TripleStore, prepare
from dctransformer.data.chunks import Sequence
from dctransformer.data.conditions import NAMES, named
from dctransformer.likelihood import code_lengths
from dctransformer.model.config import preset
from dctransformer.tasks import likelihood
from dctransformer.train import train
from dctransformer.train_config import TrainConfig
from pictures import photo_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model trained for a moment on all conditions, and its data set (64 pixels, so that there is a centre)."""
    folder = tmp_path_factory.mktemp("run")
    photo_folder(folder / "pictures", 24, ("even", "odd"))
    prepare(folder / "pictures", folder / "data", size=64, quality=10, val_fraction=0.25, workers=1, progress=False)
    config = TrainConfig(triples=4000, batch=4, lr=5e-3, warmup=5, sample_every=0, eval_images=2)
    train(folder / "data", folder / "run", preset("tiny"), config, progress=False)
    return folder / "run", folder / "data"


@pytest.mark.parametrize("given", [n for n in NAMES if n != "none"])
def test_parts_add_up(run: tuple[Path, Path], given: str) -> None:
    """The sum is that of the parts; the unconditional parts are those of the unconditional whole."""
    summary = likelihood(*run, given=given)
    parts = {k.removesuffix("_bytes_per_image"): v for k, v in summary["given"].items()}
    assert parts["condition"] == given and parts["trained"] is True
    assert parts["sum"] == pytest.approx(parts["given_first"] + parts["rest_given"])
    whole = parts["given_unconditional"] + parts["rest_unconditional"]
    assert whole == pytest.approx(summary["bytes_per_image"])
    assert min(parts["given_first"], parts["rest_given"], parts["rest_unconditional"]) > 0


def test_marked_bits_are_those_of_the_marked_triples(run: tuple[Path, Path]) -> None:
    """Counted by brute force, triple by triple."""
    network = DCTransformer.from_pretrained(run[0])
    store = TripleStore.open(run[1], "validation")
    from dctransformer.codec.grid import Grid
    from dctransformer.data.chunks import cut_chunks

    grid = Grid(4, 4)
    mask = named("low2", grid)
    assert mask is not None
    triples = store.triples(0)
    sequence = Sequence.from_triples(triples, grid, 2)
    lengths = code_lengths(network, [sequence], marked=mask)
    expected = torch.zeros((), dtype=torch.float64)
    count = 0
    for k in range(sequence.chunks(network.config.stride)):
        batch = cut_chunks([sequence], [k], network.config.chunk, network.config.overlap)
        with torch.inference_mode():
            nats = network(batch)[0][batch.predicted[0]]
        for row in nats:
            if count < len(triples):
                channel, position, _ = triples[count].long()
                if mask.flatten()[grid.slot(channel, position)]:
                    expected += row.double().sum() / torch.log(torch.tensor(2.0))
            count += 1
    assert lengths.marked is not None
    torch.testing.assert_close(lengths.marked[0], expected, rtol=1e-5, atol=1e-3)


def test_the_command_says_it(run: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    """As a table, as JSON, and in one sentence when there is no such condition."""
    main(["likelihood", *map(str, run), "--given", "luma", "--num", "2"])
    assert "given luma:" in capsys.readouterr().out
    main(["likelihood", *map(str, run), "--given", "region", "--num", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["given"]["condition"] == "region"
    with pytest.raises(SystemExit) as stop:
        main(["likelihood", *map(str, run), "--given", "low3"])
    assert stop.value.code == 2 and "choose one of none, low1" in capsys.readouterr().err


def test_an_untrained_condition_is_marked(run: tuple[Path, Path], tmp_path: Path) -> None:
    """The number is exact still, and said to be poor."""
    network = DCTransformer.from_pretrained(run[0])
    network.config = dataclasses.replace(network.config, conditions=("none",))
    network.save_pretrained(tmp_path)
    assert likelihood(tmp_path, run[1], given="low4", num=1)["given"]["trained"] is False
