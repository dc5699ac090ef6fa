"""Settings of the training loop."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from dctransformer.sequence.conditions import Conditions
from dctransformer.settings import check_ranges

Count = Annotated[int, Ge(1)]
Part = Annotated[float, Interval(ge=0, le=1)]

DEFAULT_TRIPLES = 20_000_000
RATES = {"muon": 5e-3, "adamw": 2e-3}
"""Peak learning rates: muon's did best for `small` (docs/results.md, Ablations); auto takes adamw for sharded
models, which are larger and want less."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. The budget is counted in triples or in minutes."""

    triples: Count | None = None
    """Triples to train on; the learning rate falls to its end over them. 20 million if minutes are not given either."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Train for so many minutes instead: the machine's speed then decides the schedule, so that a run which is
    stopped and resumed is no longer equal to the last bit to one that was not."""
    seed: Annotated[int, Interval(ge=0, lt=2**31)] = 0
    """Seed of the weights, the data order, flips and dropout."""

    batch: Count = 16
    """Chunks per step, over all processes."""
    micro_batch: Count | Literal["auto"] | None = "auto"
    """Chunks that go through the model at once in a process (gradients are accumulated); None for all. auto finds
    what a GPU's memory holds, and on a CPU groups chunks of like length, which leaves padding out."""
    checkpoint_activations: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again: less memory, more time."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With several processes (torchrun): ddp gives each all weights, fsdp a share; auto shards large models."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """muon for the matrices of the stacks and of texture's feed-forward layers and adamw for the rest, or adamw for
    everything. auto takes muon, which learns more from the same compute (docs/results.md, Ablations), unless the
    weights are sharded."""
    lr: Annotated[float, Gt(0)] | None = None
    """Peak learning rate of matrices and gains; if not given, 5e-3 with muon and 2e-3 with adamw."""
    table_lr: Annotated[float, Gt(0)] = 5.0
    """Learning rate of embedding tables, as a multiple of ``lr`` (their rows are seen rarely)."""
    warmup: Count = 100
    """Steps of linear warm-up."""
    final_lr: Part = 0.02
    """End of the cosine, as a part of the peak."""
    weight_decay: Annotated[float, Ge(0)] = 0.05
    """Decoupled weight decay of matrices."""
    clip: Annotated[float, Gt(0)] = 1.0
    """Largest gradient norm."""
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.998
    """Decay per step of the EMA of the weights, which is validated, sampled and saved."""
    window: str | None = None
    """Train on random windows of larger pictures: a side in pixels or WIDTHxHEIGHT, multiples of 16. Validation then
    scores the window at the centre of each picture. If not given, on whole pictures, those of one size at a time."""
    offsets: bool = False
    """Put each step's pictures at a random row and column of the model's position tables, so that all of them are
    trained and pictures of any size up to the tables' end are known; where a picture begins is then not known. For
    photographs that have no fixed framing."""
    structure: bool = True
    """Train the structure. Off, its weights stay those of ``init``, and texture alone is trained, that of every picture
    in a step, which takes a fraction of the time (the budget still counts the triples of the structure). Texture
    settings of the model that differ from those of ``init`` then give a new texture network."""
    texture: Part = 0.5
    """Pictures whose texture a step trains, as a part of its chunks (for a model with texture). Structure decides what
    a picture shows; texture learns more slowly, and can be trained on alone (``structure``)."""
    texture_channels: Count = 8
    """Most texture channels of each of those pictures; their weight makes up for the others."""
    flip: bool = True
    """Mirror a picture half of the time, exactly."""
    label_dropout: Part = 0.1
    """Part of the chunks whose label is hidden, so that guidance is possible."""
    conditions: Conditions = dataclasses.field(default_factory=Conditions)
    """Mixture of conditions, which decide what is given from the start; the default trains for every task."""
    init: str | None = None
    """Model to start from (run folder, saved model, hf:owner/name or shipped weights) instead of random weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; auto takes bf16 where it is faster on this device."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile what surrounds the matrix products, which takes a minute or two at the start; auto does so on a GPU,
    unless its passes are recorded (``graphs``).
    (Compiled, a resumed run is equal to one that was not stopped but for rounding.)"""
    graphs: bool = False
    """On a GPU, record the passes of a step as CUDA graphs and replay them, which takes the host out of a small model's
    steps. Only for one process that has memory for a whole batch at once."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    starts: Literal["uniform", "early"] = "uniform"
    """Every chunk once per epoch, or early chunks drawn more often, as the paper does."""
    shuffle: Literal["all", "stretches"] = "all"
    """all: a step's chunks come from anywhere in the data. stretches: every row of the batch has a stretch of the data
    to itself, so that each of several processes reads only its share of the files."""
    loaders: Annotated[int, Ge(0)] | Literal["auto"] = "auto"
    """Processes that cut chunks for the training process; 0 to cut them in it. auto takes 0 on a CPU, which trains more
    slowly than one process cuts, and up to 8 for a GPU."""

    eval_every: Count = 1_000_000
    """Triples between validations."""
    eval_images: Count = 128
    """Validation pictures scored during training, by which the best weights are chosen (all are scored at the end)."""
    sample_every: Annotated[int, Ge(0)] = 5_000_000
    """Triples between sample sheets; 0 for none."""
    checkpoint_every: Annotated[float, Ge(0)] = 2.0
    """Minutes between checkpoints."""

    def check(self) -> None:
        """Check types, ranges, and what fits together.

        Raises:
            ValueError: a setting has the wrong type or is out of range, or two settings don't fit together.
        """
        check_ranges(self)
        self.conditions.check()
        if self.triples is not None and self.minutes is not None:
            raise ValueError("give --triples or --minutes, not both")
        if self.window is not None:
            from dctransformer.data.shapes import parse_size

            parse_size(self.window, "window")
            if self.starts == "early":
                raise ValueError("early starts are for whole pictures; leave --window out, or --starts at uniform")
        if not self.structure and self.init is None:
            raise ValueError("without structure only the texture is trained; give --init, whose structure is kept")
        if self.starts == "early" and self.shuffle != "all":
            raise ValueError("early starts are drawn from the whole set; leave --shuffle at all")
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch must be from 1 to batch ({self.batch})")

    def resolved(self, *, sharded: bool) -> TrainConfig:
        """Choose the optimiser and the learning rate where they are left open.

        Args:
            sharded: whether each process holds a share of the weights, so that muon can't be used.

        Raises:
            ValueError: muon is asked for there.
        """
        if sharded and self.optimizer == "muon":
            raise ValueError("muon needs whole matrices; give --parallel ddp or --optimizer adamw")
        optimizer = ("adamw" if sharded else "muon") if self.optimizer == "auto" else self.optimizer
        return dataclasses.replace(self, optimizer=optimizer, lr=self.lr or RATES[optimizer])

    def loader_processes(self, device: str, processes: int = 1) -> int:
        """Return the processes that cut chunks, per training process.

        Args:
            device: the kind of device that trains, ``cpu`` or ``cuda``.
            processes: that train on this machine.
        """
        if isinstance(self.loaders, int):
            return self.loaders
        return 0 if device == "cpu" else max(1, min(8, (os.cpu_count() or 1) // processes - 1))

    def done(self, triples: int, seconds: float) -> float:
        """Return the part of the budget that is used, 0 to 1 and beyond."""
        if self.minutes is not None:
            return seconds / 60 / self.minutes
        return triples / (self.triples or DEFAULT_TRIPLES)


# Settings that may differ when a run is resumed: budget, intervals of reports and machine, not what is learnt.
MAY_CHANGE = {
    "triples", "minutes", "compile", "init", "device", "loaders", "sample_every", "checkpoint_every", "micro_batch",
    "checkpoint_activations", "parallel", "graphs",
}  # fmt: skip
