"""Tests of micro-batches that fit into memory, devices and precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dctransformer.codec.grid import Grid
from dctransformer.model import precision
from dctransformer.model.config import ModelConfig, preset
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.training.config import TrainConfig
from dctransformer.training.memory import PASS, by_length, largest_fitting, too_large
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Diverged, Trainer

CONFIG = preset("tiny", size=32, quality=30, dropout=0.1)


def batch_of(rows: int, config: ModelConfig = CONFIG) -> ChunkBatch:
    """Chunks of a few triples each."""
    grid = Grid.of_size(config.size, config.size)
    lists = [[[0, p, 1 + p] for p in range(4 + row)] + [[1, 3, -1]] for row in range(rows)]
    sequences = [Sequence.from_triples(torch.tensor(triples), grid, config.null_label) for triples in lists]
    return cut_chunks(sequences, [0] * rows, config.chunk, config.overlap)


def trainer(folder: Path, **settings) -> Trainer:
    """A trainer of a tiny model."""
    return Trainer(new_model(CONFIG, 0), TrainConfig(**{"batch": 4, "device": "cpu", "precision": "fp32", **settings}))


class Small(nn.Module):
    """A model on a device whose memory is enough for two chunks."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: ChunkBatch) -> torch.Tensor:
        """Raise PyTorch's out-of-memory error for large batches."""
        if len(batch.labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.model(batch)


@pytest.mark.parametrize(
    ("limit", "most", "fits"), [(1000, 64, 18), (1000, 8, 8), (150, 64, 1), (50, 64, 1), (210, 64, 2)]
)
def test_the_largest_micro_batch_is_found_without_trying_a_larger_one(limit: int, most: int, fits: int) -> None:
    """Sizes double, and a line through the memory peaks gives the largest that fits."""
    tried = []

    def peak(size: int) -> float:
        tried.append(size)
        return 100 + 50 * size

    assert largest_fitting(peak, limit, most) == fits
    assert max(tried) <= max(fits, 1)
    assert len(tried) <= 8


def test_growth_that_is_not_linear_is_followed() -> None:
    """The last two peaks determine the slope, not the first."""
    fits = largest_fitting(lambda size: 10 + size**1.5, 100, 1000)
    assert fits > 10 and 10 + fits**1.5 <= 110


def test_a_batch_too_large_for_memory_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names a size that fits, and micro-batches of that size work."""
    whole = trainer(tmp_path, micro_batch=None)
    whole.replica = Small(whole.model)
    with pytest.raises(ValueError, match=r"^4 chunks at once do not fit into the memory of cpu; .*--micro-batch \(2"):
        whole.step(batch_of(4))
    monkeypatch.setattr("dctransformer.training.memory.largest_micro_batch", lambda *_: 3)
    monkeypatch.setattr(whole, "device", torch.device("cuda"))
    assert too_large(whole, batch_of(4)).endswith("--micro-batch 3 does")
    single = trainer(tmp_path, micro_batch=1)
    assert "--checkpoint-activations" in too_large(single, batch_of(4))
    parts = trainer(tmp_path, micro_batch=2)
    parts.replica = Small(parts.model)
    assert torch.isfinite(parts.step(batch_of(4))).all()
    first, second = next(whole.model.parameters()), next(parts.model.parameters())
    assert not whole.optimizer.began(first) and parts.optimizer.began(second)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    """Other errors are raised unchanged."""
    broken = trainer(tmp_path)
    broken.replica = nn.Identity()
    with pytest.raises(AttributeError):
        broken.step(batch_of(2))


def test_activation_checkpointing_takes_the_same_steps(tmp_path: Path) -> None:
    """Steps are the same, including dropout, whose noise is drawn again."""
    plain, saving = trainer(tmp_path), trainer(tmp_path, checkpoint_activations=True)
    for _ in range(3):
        torch.testing.assert_close(plain.step(batch_of(4)), saving.step(batch_of(4)), rtol=0, atol=0)
    for a, b in zip(plain.model.parameters(), saving.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_no_micro_batch_is_chosen_on_a_cpu(tmp_path: Path) -> None:
    """Memory is not measured on a CPU."""
    automatic = trainer(tmp_path)
    automatic.fit_memory(batch_of(4))
    assert automatic.config.micro_batch == "auto" and automatic.micro_batch is None


def test_a_precision_that_the_device_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal lists the available precisions."""
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: False)
    with pytest.raises(ValueError, match="cuda does not compute in bf16; choose fp32"):
        precision.resolve_precision("bf16", torch.device("cuda"))
    assert precision.resolve_precision("auto", torch.device("cuda")) == "fp32"
    with pytest.raises(ValueError, match="cpu does not compute in fp16; choose fp32 or bf16"):
        precision.resolve_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: True)
    assert precision.resolve_precision("auto", torch.device("cuda")) == "bf16"
    assert precision.resolve_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_missing_gpu_falls_back_to_the_cpu_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warning is on standard error, so that JSON output stays valid."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.resolve_device("cuda") == torch.device("cpu")
    assert capsys.readouterr().err == "no CUDA device here; using the CPU\n"


def test_a_diverged_state_is_never_saved(tmp_path: Path) -> None:
    """If the check is asynchronous, as on a GPU, saving performs it; the sentence names the step."""
    diverging = trainer(tmp_path, micro_batch=None)
    diverging.step(batch_of(4))
    diverging.device = torch.device("meta")  # not a CPU: checked every few steps only
    diverging.accumulate = lambda *_: _spoil(diverging.model)  # type: ignore[method-assign]
    diverging.step(batch_of(4), 4)
    diverging.step(batch_of(4), 4)
    with pytest.raises(Diverged, match=r"diverged at step 1; .*lower --lr"):
        diverging.save(tmp_path / "checkpoint.safetensors")
    assert not (tmp_path / "checkpoint.safetensors").exists()


def _spoil(model: nn.Module) -> torch.Tensor:
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    return torch.zeros(5, 3)


def uneven(lengths: list[int], config: ModelConfig = CONFIG) -> ChunkBatch:
    """Chunks of the given lengths, stops included, each with another first value."""
    grid = Grid.of_size(config.size, config.size)
    # The 16 luma places, channel by channel.
    lists = [[[c // 16, c % 16, 1 + row] for c in range(length - 1)] for row, length in enumerate(lengths)]
    sequences = [Sequence.from_triples(torch.tensor(t).view(-1, 3), grid, config.null_label) for t in lists]
    return cut_chunks(sequences, [0] * len(lists), 1024, 0)


def test_chunks_of_like_length_go_through_the_model_together() -> None:
    """Every chunk is in one group, cropped to its longest; the groups have the least cost."""
    lengths = [1, 200, 3, 190, 80, 2, 75, 199]
    batch = uneven(lengths)
    parts = by_length(batch)
    assert [sorted(p.lengths.tolist()) for p in parts] == [[190, 199, 200], [1, 2, 3, 75, 80]]
    rows = [(int(n), p.values[r, : n + 1].tolist()) for p in parts for r, n in enumerate(p.lengths)]
    assert sorted(rows) == sorted((n, batch.values[r, : n + 1].tolist()) for r, n in enumerate(lengths))
    assert all(part.ranks.shape[1] == int(part.lengths.max()) + 1 for part in parts)
    assert int(sum(part.predicted.sum() for part in parts)) == sum(lengths)

    def cost(parts: list[ChunkBatch]) -> int:
        return sum(part.predicted.numel() + PASS for part in parts)

    assert cost(parts) < cost([batch])
    alike = uneven([60, 58, 59, 60])
    assert by_length(alike) == [alike], "another pass would cost more than the padding"
