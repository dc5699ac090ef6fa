"""Tests of the benchmarks of training and cost: batches as `dctransformer train` takes them, operations, memory."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch

import cost
import gpu_train
import measure
import memory
import texture_heads
from dctransformer.codec import order
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.texture_state import TextureState, settle
from dctransformer.sequence.chunks import Sequence
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import new_model

TINY = preset("tiny", size=48, quality=30, texture_from=2)
"""As `small`, whose texture begins with the third band."""


@pytest.mark.parametrize("config", [TINY, preset("tiny", size=48, quality=30), preset("small", size=32, quality=20)])
def test_models_can_score_the_batches(config: ModelConfig) -> None:
    """Every predicted triple is possible, and half of the pictures bring their texture if the model has any."""
    [batch, _] = measure.batches(measure.synthetic(4, config), config, TrainConfig(batch=4), 2)
    nats = new_model(config, 0)(batch)
    total = float(measure.total_nats(nats).detach())
    assert 0 < total < 100 * float(batch.predicted.sum()) + 1e5
    ranks = batch.ranks[:, 1:][batch.predicted]
    assert set(ranks[ranks >= config.texture_rank].tolist()) <= {order.STOP}
    if config.texture_rank == order.NUM_CHANNELS:
        assert batch.texture is None
    else:
        assert batch.texture is not None and batch.texture.labels.shape == (2,) and len(nats) == 2
        assert int(batch.texture.rank.min()) >= config.texture_rank


def test_texture_costs_operations() -> None:
    """The operations of a step include its texture's."""
    [batch] = measure.batches(measure.synthetic(2, TINY), TINY, TrainConfig(batch=2), 1)
    model = new_model(TINY, 0)
    with_texture = measure.step_flops(model, batch)
    batch.texture = None
    assert with_texture > 1.2 * measure.step_flops(model, batch)


def test_impossible_triples_are_noticed() -> None:
    """Triples of texture among those of a chunk end a benchmark instead of being measured."""
    store = measure.synthetic(1, TINY)
    whole = Sequence.from_triples(store.triples(0), store.grid(0), TINY.null_label)
    assert len(whole) > len(measure.sequences(store, TINY)[0])
    model = new_model(TINY, 0)
    measure.step_flops(model, measure.chunks(measure.sequences(store, TINY), TINY, 1))
    with pytest.raises(AssertionError, match="rules out"):
        measure.step_flops(model, measure.chunks([whole] * 4, TINY, 4))


@pytest.mark.parametrize("texture_from", [2, 4])
def test_cost_of_sampling(texture_from: int) -> None:
    """Seconds per image are those of the structure's triples and of the texture's channels."""
    arguments = argparse.Namespace(
        preset="tiny", chunk=64, texture_from=texture_from, pictures=2, batch=2, steps=1, device="cpu"
    )
    row = cost.one_size(32, arguments)
    per_image = row["seconds_per_triple"] * row["structure"] + row["seconds_per_channel"] * row["channels"]
    assert row["sample_seconds"] == pytest.approx(per_image, rel=0.1)
    assert (row["channels"] > 0) == (row["seconds_per_channel"] > 0) == (texture_from == 2)
    assert (row["structure"] < row["triples"]) == (texture_from == 2)


def test_untrained_textures_get_the_rates_of_pictures() -> None:
    """With the rates of pictures, an untrained network uses about as many texture channels as they do."""
    config = preset("tiny", size=64, quality=20, texture_from=2)
    store, model = measure.synthetic(8, config), new_model(config, 0).eval()
    cost.set_rates(model, store)
    with torch.inference_mode():
        [batch] = measure.batches(store, config, TrainConfig(batch=8, conditions=measure.GENERATION, texture=1), 1)
        assert batch.texture is not None
        rates = model.texture.use_rates(TextureState.of(batch.texture))
    used = float((1 - torch.exp(-rates)).sum(1).mean())
    in_store = measure.decisions(store, config.texture_rank) - store.listed(config.texture_rank).mean()
    assert used == pytest.approx(in_store, rel=0.25)


def test_training_on_a_gpu_is_timed_with_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant has its row, with utilisation (here of a CPU)."""
    monkeypatch.setattr(gpu_train, "configuration", lambda name: TINY)
    arguments = argparse.Namespace(presets=["tiny"], batches=[2], modes=["eager", "muon"], steps=2)
    table: list[dict] = []
    gpu_train.fill(table, arguments, torch.device("cpu"), 1e12, float("inf"))
    assert [row["mode"] for row in table] == ["eager", "muon"]
    assert all(row["triples_per_second"] > 0 and row["mfu"] > 0 for row in table)


def test_memory_of_structure_and_texture() -> None:
    """A chunk of the structure keeps less than one of all triples; texture counts where the model has it."""
    small = {"texture_state": 8, "texture_width": 12, "texture_hidden": 16, "texture_blocks": 1}
    counted = []
    for texture_from in (2, 4):
        config = preset("tiny", size=32, chunk=256, overlap=0, texture_from=texture_from, **small)
        counted.append(memory.bytes_per_chunk(DCTransformer(config), config))
    (structure, texture), (everything, none) = counted
    assert 0 < structure < everything and none == 0 < texture


@pytest.mark.parametrize("name", list(texture_heads.VARIANTS))
@torch.inference_mode()
def test_variants_of_the_texture_network(name: str) -> None:
    """Each can be scored, and only the network as it is lets the second colour and the values see what they may."""
    config = dataclasses.replace(TINY, texture_width=12, texture_hidden=16, texture_state=8, texture_blocks=1)
    torch.manual_seed(0)
    model = texture_heads.network(config, texture_heads.VARIANTS[name]).eval()
    for p in model.texture.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    store = measure.synthetic(2, config)
    assert texture_heads.score(model, store, 2)["bytes"] > 0
    [batch] = measure.batches(store, config, TrainConfig(batch=2, conditions=measure.GENERATION), 1)
    assert batch.texture is not None
    texture, grid, row = model.texture, batch.texture.grid, torch.tensor([0])
    channels = texture.begin(TextureState.of(batch.texture), row, torch.tensor([config.texture_rank + 2]))
    everywhere = dataclasses.replace(channels, settled=torch.ones_like(channels.settled), whole=True)
    first = texture.occupancy_logits(channels, 0, grid)[1]
    chosen = torch.ones_like(first, dtype=torch.bool)
    logits, scores = [], []
    for occupied in (chosen, ~chosen):
        logits.append(texture.occupancy_logits(settle(channels, first, chosen, occupied=occupied), 1, grid)[0])
        scores.append(texture.value_scores(settle(everywhere, first, chosen, occupied=occupied), 1, grid)[0])
    assert torch.equal(*logits) == (name == "one pass")
    assert torch.equal(*scores) == (name == "values without occupancy")
