"""Settings of the training loop."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. Progress is counted in triples, or in minutes where ``minutes`` is set."""

    triples: int = 20_000_000
    """Triples to train on; the learning rate falls to its end over them."""
    minutes: float | None = None
    """Train for so many minutes instead (then speed decides the schedule, and a resumed run is not bit-equal)."""
    seed: int = 0
    """Seed of the weights, the data order, flips and dropout."""

    batch: int = 16
    """Chunks a step."""
    micro_batch: int | None = None
    """Chunks that go through the model at once (gradients are accumulated); None for the whole batch."""
    lr: float = 2e-3
    """Peak learning rate of matrices and gains."""
    table_lr: float = 5.0
    """Learning rate of embedding tables, as a multiple of ``lr`` (their rows are seen rarely)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    final_lr: float = 0.02
    """Where the cosine ends, as a part of the peak."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.998
    """Decay a step of the weight average that is validated, sampled and saved."""
    flip: bool = True
    """Mirror every other picture, exactly."""
    label_dropout: float = 0.1
    """Part of the chunks whose label is hidden, so that guidance is possible."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; auto takes bf16 where it is faster on this device."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    loaders: int = 0
    """Processes that cut chunks beside the training one."""

    eval_every: int = 1_000_000
    """Triples between validations."""
    eval_images: int = 128
    """Validation pictures scored on the way, and by which the best weights are kept (the end scores all)."""
    sample_every: int = 5_000_000
    """Triples between sample sheets; 0 for none."""
    checkpoint_every: float = 2.0
    """Minutes between checkpoints."""

    def __post_init__(self) -> None:
        """Check what no type can say."""
        for name in ("triples", "batch", "eval_images", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("lr", "clip", "table_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError("minutes must be greater than 0")
        if not 0 <= self.ema < 1 or not 0 <= self.label_dropout <= 1:
            raise ValueError("ema must be in [0, 1) and label_dropout in [0, 1]")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch must be from 1 to batch ({self.batch})")


# What may differ when a run is resumed: the budget and how often one looks, not what is learnt.
MAY_CHANGE = {
    "triples", "minutes", "device", "loaders", "sample_every", "checkpoint_every",
}  # fmt: skip
