"""Tests on a real GPU: parity with the CPU, and code paths that only a GPU has. Skipped elsewhere.

The tests use no fixtures, so that ``scripts/gpu_session.sh`` can run them without pytest. All of them passed on an H200
(torch 2.11, commit 2f43455). `test_devices` runs the same code on any machine, except
graphs, compilation and memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from dctransformer.codec.grid import Grid
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.texture import sample_texture
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer

try:
    import pytest
except ImportError:
    pass
else:
    pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CONFIG = preset("tiny", size=32, quality=30)


def some_sequences(rows: int, stretch: int = 1) -> list[Sequence]:
    """Short sequences with few channels; other values with another ``stretch``."""
    grid = Grid.of_size(CONFIG.size, CONFIG.size)
    lists = [[[0, p, stretch + p] for p in range(4 + row % 8)] + [[64, 2, 2], [1, 3, -1]] for row in range(rows)]
    return [Sequence.from_triples(torch.tensor(triples), grid, CONFIG.null_label) for triples in lists]


def some_chunks(rows: int, stretch: int = 1) -> ChunkBatch:
    """The first chunks of these sequences."""
    return cut_chunks(some_sequences(rows, stretch), [0] * rows, CONFIG.chunk, CONFIG.overlap)


def nats(steps: int, **settings) -> torch.Tensor:
    """Losses of some training steps."""
    trainer = Trainer(new_model(CONFIG, 0), TrainConfig(**{"batch": 8, "warmup": 2, **settings}))
    return torch.stack([trainer.step(some_chunks(8)).cpu() for _ in range(steps)])


def test_a_gpu_trains_as_a_cpu_does() -> None:
    """Losses in fp32 equal those of the CPU, up to TF32 convolutions and six steps, with either optimiser."""
    for optimizer in ("adamw", "muon"):
        cpu, gpu = (nats(6, device=d, precision="fp32", compile="off", optimizer=optimizer) for d in ("cpu", "cuda"))
        torch.testing.assert_close(cpu, gpu, rtol=1e-2, atol=0.1)
    half = nats(6, device="cuda", precision="bf16", compile="off", optimizer="muon")
    torch.testing.assert_close(half, gpu, rtol=0.1, atol=2.0)


def test_a_compiled_step_is_the_eager_one() -> None:
    """A compiled step equals the eager one up to rounding."""
    eager, compiled = (nats(4, device="cuda", precision="fp32", compile=mode) for mode in ("off", "on"))
    torch.testing.assert_close(eager, compiled, rtol=1e-2, atol=0.1)


def test_recorded_steps_are_the_eager_ones() -> None:
    """Steps replayed as a CUDA graph, with dropout and texture, equal steps launched kernel by kernel."""
    config = preset("tiny", size=32, quality=30, texture_from=1, dropout=0.1)
    losses, weights = [], []
    for graphs in (False, True):
        settings = {"batch": 8, "warmup": 2, "precision": "fp32", "compile": "off", "micro_batch": None}
        trainer = Trainer(new_model(config, 0), TrainConfig(device="cuda", graphs=graphs, **settings))
        for step in range(6):
            batch = some_chunks(8, stretch=1 + step % 2).padded(config.chunk)
            batch.texture = sample_texture(some_sequences(8), torch.full((8,), 0.1 * step), 2, config.texture_rank)
            batch.texture.pictures, batch.texture.first = 8, config.texture_rank
            losses.append(trainer.step(batch).cpu())
        weights.append([p.detach().cpu() for p in trainer.model.parameters()])
        if graphs:
            assert trainer.recorded is not None and len(trainer.recorded.recordings) == 1
    torch.testing.assert_close(torch.stack(losses[:6]), torch.stack(losses[6:]), rtol=1e-3, atol=1e-2)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def step_without_reads(trainer: Trainer, batch: ChunkBatch) -> None:
    """Take three steps in which any read by the host is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step(batch, 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_waits_for_the_gpu_only_where_the_model_does() -> None:
    """Clipping, optimiser, EMA and the check for divergence cause no read."""

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, batch: ChunkBatch) -> torch.Tensor:
            return self.weight * batch.predicted[..., None]

    trainer = Trainer(Fixed(), TrainConfig(batch=8, device="cuda", compile="off", optimizer="adamw", micro_batch=None))
    batch = some_chunks(8).to("cuda")
    trainer.step(batch, 8)  # the first step of all allocates, and checks for divergence
    step_without_reads(trainer, batch)


def test_the_host_reads_nothing_in_a_step() -> None:
    """A step with either kind of model causes no read, on batches from the CPU."""
    for texture_from in (1, 4):
        model = new_model(preset("tiny", size=32, quality=30, texture_from=texture_from), 0)
        batch, first = some_chunks(8), model.config.texture_rank
        if texture_from < 4:
            batch.texture = sample_texture(some_sequences(8), torch.full((8,), 0.5), 2, first)
            batch.texture.pictures, batch.texture.first = 8, first
        settings = {"batch": 8, "precision": "bf16", "compile": "off", "optimizer": "adamw", "micro_batch": None}
        trainer = Trainer(model, TrainConfig(device="cuda", **settings))
        trainer.step(batch, 8)  # the first step of all copies tables, and checks for divergence
        step_without_reads(trainer, batch)


def test_a_micro_batch_is_found_and_a_checkpoint_goes_round() -> None:
    """The micro-batch is chosen by measured memory; a checkpoint of a GPU loads on a CPU."""
    settings = {"batch": 8, "precision": "fp32", "compile": "off", "optimizer": "muon"}
    trainer = Trainer(new_model(CONFIG, 0), TrainConfig(device="cuda", **settings))
    trainer.fit_memory(some_chunks(8))
    assert trainer.micro_batch == 8
    trainer.step(some_chunks(8))
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(Path(folder) / "checkpoint.safetensors")
        other = Trainer(new_model(CONFIG, 1), TrainConfig(device="cpu", **settings))
        other.load(Path(folder) / "checkpoint.safetensors")
    for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a.cpu(), b)


def test_a_gpu_counts_the_bits_a_cpu_does() -> None:
    """Code lengths equal those of the CPU up to TF32 convolutions."""
    model = new_model(CONFIG, 0).eval()
    on_cpu = code_lengths(model, iter(some_sequences(4))).bits
    on_gpu = code_lengths(model.to("cuda"), iter(some_sequences(4))).bits
    torch.testing.assert_close(on_cpu, on_gpu, rtol=1e-3, atol=1e-2)


def test_a_gpu_samples() -> None:
    """The same seed gives the same pictures: triples and texture, with and without guidance."""
    for texture_from, guidance in ((4, 1.0), (4, 1.5), (1, 1.5)):
        config = preset("tiny", size=32, quality=30, num_labels=2, texture_from=texture_from)
        model = new_model(config, 0).eval().to("cuda")
        settings = SampleConfig(seed=3, guidance=guidance)
        first, second = (sample(model, 4, settings, labels=[0, 1, 0, 1]) for _ in range(2))
        assert len(first.triples) == 4
        assert all(torch.equal(a, b) for a, b in zip(first.triples, second.triples, strict=True))
