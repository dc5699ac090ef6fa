"""Tests of autoguidance: a model with a weaker one, its guide."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.evaluation import weights_hash
from dctransformer.model.config import preset
from dctransformer.model.legality import NEVER
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.decoder_state import Decoding
from dctransformer.sampling.drawing import Draws
from dctransformer.sampling.engine import Engine, fill, sample
from dctransformer.sampling.guided import GuidedDecoding
from dctransformer.sampling.likelihood import triple_bits
from dctransformer.sampling.pool import Pool
from dctransformer.sampling.rows import Request
from dctransformer.sampling.stepper import Stepper
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.tasks.dct_file import fingerprint
from dctransformer.tasks.info import describe
from dctransformer.tasks.outputs import identity
from tiny_model import lively

GRID = Grid(2, 3)
SIZE = (32, 48)


def make(seed: int, **fields) -> DCTransformer:
    """A tiny model with long samples."""
    torch.manual_seed(seed)
    return lively(DCTransformer(preset("tiny", **{"chunk": 24, "overlap": 8, **fields})).eval())


def make_pair(**fields) -> DCTransformer:
    """A model with a narrower guide."""
    model = make(0, **fields)
    model.attach_guide(make(1, width=16, heads=2, hidden=24, **fields))
    return model


def sequence_of(model: DCTransformer, triples: torch.Tensor) -> Sequence:
    """The sequence of a picture that begins with these triples."""
    engine = Engine(model, SampleConfig())
    (row,) = engine.begin([Request(0, 0, kept=triples)], GRID, SampleConfig())
    return row.sequence()


def begun(model: DCTransformer, rows: int) -> ChunkBatch:
    """Chunks of samples whose first chunk is complete."""
    stride = model.config.stride
    pictures = fill(model, [Request(i, 0) for i in range(rows)], GRID, SampleConfig(1, workers=1)).triples
    sequences = [sequence_of(model, triples[:stride]) for triples in pictures]
    return cut_chunks(sequences, [1] * rows, model.config.chunk, model.config.overlap)


@torch.inference_mode()
def test_two_decodings_in_step_equal_each_alone() -> None:
    """The rows are the model's, the twins the guide's, step after step, behind a chunk's overlap."""
    model = make_pair()
    batch = begun(model, 3)
    twins = torch.tensor([0, 2])
    both = batch.rows(torch.cat([torch.arange(3), twins]))
    guided = GuidedDecoding(model, model.guide, both, 2)
    alone = Decoding(model, batch), Decoding(model.guide, batch.rows(twins))
    for _ in range(5):
        logits = guided.channel()
        assert torch.equal(logits, torch.cat([part.channel() for part in alone]))
        rank = logits[:3, : order.STOP].argmax(-1)
        rank = torch.cat([rank, rank[twins]])
        guided.enter(rank)
        places = guided.position(rank, entered=True)
        expected = [part.position(r) for part, r in zip(alone, rank.split([3, 2]), strict=True)]
        assert torch.equal(places, torch.cat(expected))
        assert not torch.equal(places[:3][twins], places[3:])
        position = places[:3].argmax(-1)
        position = torch.cat([position, position[twins]])
        values = guided.value(position)
        expected = [part.value(p) for part, p in zip(alone, position.split([3, 2]), strict=True)]
        assert torch.equal(values, torch.cat(expected))
        value = model.alphabet.decode(torch.cat([values[:3], values[:3][twins]]).argmax(-1))
        guided.settle(value)
        for part, v in zip(alone, value.split([3, 2]), strict=True):
            part.settle(v)


@torch.inference_mode()
def test_guidance_extrapolates_from_the_guide() -> None:
    """What is drawn from is guide + g · (model − guide), in log-probabilities; what is impossible stays so."""
    model, g = make_pair(), 1.7
    batch = begun(model, 2)
    both = batch.rows(torch.tensor([0, 1, 0, 1]))
    draws = Draws.of([SampleConfig(guidance=g)] * 2, model.device, guided=model.guidable)
    stepper = Stepper(GuidedDecoding(model, model.guide, both, 2), torch.zeros(2, 16, 3, dtype=torch.float64), draws)
    mixed = stepper._mix(stepper.decoding.channel())
    own, other = Decoding(model, batch).channel(), Decoding(model.guide, batch).channel()
    possible = own > NEVER / 2
    expected = other.log_softmax(-1) + g * (own.log_softmax(-1) - other.log_softmax(-1))
    torch.testing.assert_close(mixed[possible], expected[possible])
    assert torch.equal(mixed[~possible], own[~possible]) and bool((~possible).any())


@pytest.mark.parametrize("texture_from", [2, 4])
def test_a_guide_changes_pictures_unless_it_is_the_model(texture_from: int) -> None:
    """Without guidance the guide is not used; a guide with the model's own weights changes nothing."""
    model = make_pair(texture_from=texture_from)
    plain, guided = (sample(model, 2, SampleConfig(1, guidance=g, workers=1), size=SIZE).mcus for g in (1.0, 2.0))
    assert not torch.equal(plain, guided)
    model.attach_guide(None)
    assert not model.guidable
    assert torch.equal(sample(model, 2, SampleConfig(1, guidance=2.0, workers=1), size=SIZE).mcus, plain)
    model.attach_guide(make(0, texture_from=texture_from))
    same = sample(model, 2, SampleConfig(1, guidance=2.0, workers=1), size=SIZE).mcus
    assert torch.equal(same, plain)


def test_twins_keep_their_label() -> None:
    """A guide with the model's weights changes nothing in a model with classes either: it is given the label."""
    model = make(0, num_labels=3)
    request = [Request(i, i) for i in range(3)]
    plain = fill(model, request, GRID, SampleConfig(2, workers=1)).mcus
    by_label = fill(model, request, GRID, SampleConfig(2, guidance=2.0, workers=1)).mcus
    model.attach_guide(make(0, num_labels=3))
    by_guide = fill(model, request, GRID, SampleConfig(2, guidance=2.0, workers=1)).mcus
    assert torch.equal(by_guide, plain) and not torch.equal(by_label, plain)


def test_a_guided_picture_does_not_depend_on_the_others() -> None:
    """Pictures with and without guidance share a pool's batches, and processes; each is as it is alone."""
    model = make_pair(texture_from=2)
    settings = [SampleConfig(1, guidance=1.5), SampleConfig(1), SampleConfig(3, guidance=2.5, min_p=0.05)]
    requests = [Request(i, 0) for i in range(3)]
    alone = [fill(model, requests, GRID, dataclasses.replace(config, workers=1)) for config in settings]
    spread = [fill(model, requests, GRID, dataclasses.replace(config, workers=2)) for config in settings]
    with torch.inference_mode():
        pool = Pool(Engine(model, SampleConfig(batch=2)))
        pooled = [fill(model, requests, GRID, config, pool=pool) for config in settings]
    for one, two, three in zip(alone, spread, pooled, strict=True):
        assert torch.equal(one.mcus, two.mcus) and torch.equal(one.mcus, three.mcus)


def test_a_guided_step_is_one_graph_without_the_host() -> None:
    """A guided step captured as one graph equals the eager step, and can be loaded with another chunk's state."""
    model = make_pair()
    noise = torch.rand(2, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        draws = Draws.of([SampleConfig(min_p=0.02, guidance=2.0)] * 2, noise.device)
        batch = begun(model, 2).rows(torch.tensor([0, 1, 0, 1]))
        eager = Stepper(GuidedDecoding(model, model.guide, batch, 2), noise, draws)
        decoding = GuidedDecoding(model, model.guide, batch, 2)
        for part in decoding.parts:
            part.static = True
        captured = Stepper(decoding, noise, draws)
        step = torch.compile(lambda: captured._step(), backend="eager", fullgraph=True)
        for _ in range(6):
            eager.step()
            step()
        assert torch.equal(eager.decisions, captured.decisions)
        assert int(eager.decisions[:, :6, 2].count_nonzero()) > 8
        decoding.state.copy_(GuidedDecoding(model, model.guide, batch, 2).state)
        assert [int(part.state.index) for part in decoding.parts] == [8, 8]


def test_a_guide_is_saved_and_loaded_with_its_model(tmp_path: Path) -> None:
    """It lies in a folder of the model's; pictures are the same again, likelihoods and compressed files unaffected."""
    model = make_pair()
    model.save_pretrained(tmp_path / "model")
    loaded = DCTransformer.from_pretrained(tmp_path / "model")
    assert isinstance(loaded.guide, DCTransformer) and loaded.guide.config == model.guide.config
    config = SampleConfig(1, guidance=1.5, workers=1)
    one, two = (sample(m, 2, config, size=SIZE) for m in (model, loaded))
    assert torch.equal(one.mcus, two.mcus)
    facts = describe(tmp_path / "model")
    assert facts["guide_parameters"] == sum(p.numel() for p in model.guide.parameters())
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())

    unguided = make(0)
    unguided.save_pretrained(tmp_path / "unguided")
    assert fingerprint(unguided) == fingerprint(loaded)
    assert identity(unguided) != identity(loaded)
    assert weights_hash(tmp_path / "unguided") != weights_hash(tmp_path / "model")
    assert describe(tmp_path / "unguided")["guide_parameters"] == 0
    sequence = sequence_of(unguided, one.triples[0])
    assert torch.equal(triple_bits(unguided, sequence), triple_bits(loaded, sequence))


def test_a_guide_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """The sentence names what differs; an incomplete folder, in which a guide may be in training, is left alone."""
    model = make(0)
    for fields, words in (
        ({"quality": 31}, "quality of the guide"),
        ({"texture_from": 2}, "texture_from of the guide"),
        ({"chunk": 16}, "chunk of the guide"),
        ({"num_labels": 2}, "num_labels of the guide"),
        ({"size": 32}, "trained on smaller pictures"),
    ):
        with pytest.raises(ValueError, match=words):
            model.attach_guide(make(1, **fields))
    with pytest.raises(ValueError, match="conditions low2, luma; train it on them"):
        make(0, conditions=("none", "low2", "luma")).attach_guide(make(1))
    model.save_pretrained(tmp_path)
    make(1, quality=31).save_pretrained(tmp_path / "guide")
    with pytest.raises(ValueError, match=r"guide can't guide this model \(quality .*, or remove the folder"):
        DCTransformer.from_pretrained(tmp_path)
    (tmp_path / "guide" / "model.safetensors").unlink()
    assert DCTransformer.from_pretrained(tmp_path).guide is None
