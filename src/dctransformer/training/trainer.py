"""The trainer: a model, its EMA and its optimiser, and one step of training.

A step depends on nothing but the state and its number: the batch comes from (seed, step), and so does dropout.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dctransformer.model.layers import Layer
from dctransformer.model.precision import out_of_memory, resolve_device, resolve_precision
from dctransformer.sequence.chunks import ChunkBatch
from dctransformer.training.bands import nats_by_band
from dctransformer.training.capture import RecordedPasses
from dctransformer.training.checkpoint import load_checkpoint, save_checkpoint
from dctransformer.training.config import TrainConfig
from dctransformer.training.distributed import (
    Processes,
    choose_parallelism,
    gather_full,
    last_pass,
    local_shard,
    replicate,
    shard,
)
from dctransformer.training.memory import by_length, largest_micro_batch, split, too_large
from dctransformer.training.optimizer import learning_rate, make_optimizer

CHECK_EVERY = 20
"""Steps between checks for divergence on a GPU, which must not wait for the host in every step."""

RECORDED_PART = 0.4
"""Most of a GPU's memory that a pass may take for it to be recorded."""


class Diverged(ValueError):
    """A gradient became infinite or NaN."""


@dataclasses.dataclass
class Progress:
    """Progress of a run."""

    step: int = 0
    triples: int = 0
    seconds: float = 0.0
    best: float = math.inf
    """Fewest bytes per image on validation so far."""

    finished: bool = False
    """Whether the last validation and sample sheet are done, too."""

    def done(self, config: TrainConfig) -> float:
        """Return the part of the budget used, 0 to 1 and beyond."""
        return config.done(self.triples, self.seconds)


def texture_count(batch: ChunkBatch) -> float:
    """Return the divisor of the nats of a step's textures: about their number of coefficients, eight per place.

    Structure and texture have no weights in common, so that their proportion is a matter of the gradient's norm alone.
    """
    assert batch.texture is not None
    return 8.0 * batch.texture.pictures * batch.texture.grid.positions


class Trainer:
    """A model in training: ``step`` changes it, ``save`` and ``load`` are its checkpoints.

    The model is any module whose ``forward(batch)`` gives negative log-likelihoods in nats, ``[B, L, fields]``, or a
    pair of these and the textures' ``[B, bands, fields]``; a batch is anything with ``to(device)``, ``rows(slice)``,
    ``labels`` and ``predicted``, as `ChunkBatch` has them.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, processes: Processes | None = None):
        """Set a model up for training: move it to the device, and shard or replicate it for several processes.

        Args:
            model: on the CPU, with the weights to start from.
            config: settings of the loop.
            processes: those that train together; None for this one alone.

        Raises:
            ValueError: the device, the precision or the optimiser of the settings can't be used.
        """
        self.processes = processes = processes or Processes()
        self.device = processes.device(resolve_device(config.device))
        self.precision = processes.same_as_first(resolve_precision(config.precision, self.device), ("fp32", "bf16"))
        self.model = model
        self.parallel = choose_parallelism(config.parallel, model, processes, self.device)
        self.config = config = config.resolved(sharded=self.parallel == "fsdp")
        for layer in model.modules():
            if isinstance(layer, Layer):
                layer.checkpoint = config.checkpoint_activations
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        """The model with averaged weights: it is the one that is validated, sampled and saved."""
        if self.parallel == "fsdp":
            shard(self.model, processes, self.device)
            shard(self.ema, processes, self.device)
        self.model.to(self.device)
        self.ema.to(self.device)
        self.optimizer = make_optimizer(self.model, config, self._product_dtype)
        self._diverged_at = torch.tensor(-1, device=self.device)
        """The first step with a gradient that was infinite or NaN; −1 for none. Kept on the device."""
        self.rate = 0.0
        """Learning rate of the last step."""
        if config.compile == "on" or (config.compile == "auto" and self.device.type == "cuda" and not config.graphs):
            self.model.compile_stacks(by_layer=self.parallel == "fsdp")  # type: ignore[operator]
        self.replica = replicate(self.model, self.device) if self.parallel == "ddp" else self.model
        """The model as it is called in training."""
        self.recorded: RecordedPasses | None = None
        """Passes that a GPU replays."""
        if config.graphs and self.device.type == "cuda" and processes.count == 1 and not config.checkpoint_activations:
            self.recorded = RecordedPasses(self._pass, model.parameters(), self._has_room)
        self.micro_batch = config.micro_batch if isinstance(config.micro_batch, int) else None
        """Chunks that go through the model at once; None for all."""
        self.progress = Progress()

    def fit_memory(self, batch: ChunkBatch) -> None:
        """Choose the micro-batch that a GPU's memory holds, if that is left to the trainer.

        Args:
            batch: this process's rows of a batch like those to come.
        """
        if self.config.micro_batch == "auto" and self.device.type == "cuda":
            self.micro_batch = largest_micro_batch(self, batch)  # pyright: ignore[reportArgumentType]

    def step(self, batch: ChunkBatch, count: int | None = None) -> Tensor:
        """Take one optimiser step.

        Args:
            batch: this process's rows of the step's batch.
            count: triples that all processes predict in this step; None if there are no others.

        Returns:
            Nats summed over this process's rows, by band and field, fp32 ``[5, 3]`` on the device
            (`dctransformer.training.bands`).

        Raises:
            ValueError: training diverged (which a GPU notices some steps later), or a micro-batch does not fit into
                memory.
        """
        config, progress = self.config, self.progress
        self.rate = learning_rate(config, progress.step, progress.done(config))
        self.optimizer.set_rate(self.rate)
        count = int(batch.predicted.sum()) if count is None else count
        try:
            nats = self.accumulate(batch, count, self.micro_batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ValueError(too_large(self, batch)) from error  # pyright: ignore[reportArgumentType]
        norm = gather_full(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        first = ~torch.isfinite(norm) & (self._diverged_at < 0)
        self._diverged_at.masked_fill_(first, progress.step)
        if self.device.type == "cpu" or progress.step % CHECK_EVERY == 0:
            self.check_finite()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_ema()
        progress.step += 1
        progress.triples += count
        return nats

    def check_finite(self) -> None:
        """Wait for the device and raise `Diverged` if a gradient has been infinite or NaN."""
        if (step := int(self._diverged_at)) >= 0:
            raise Diverged(
                f"training diverged at step {step}; start another run with a lower --lr (now {self.config.lr:g})"
            )

    def accumulate(self, batch: ChunkBatch, count: int, micro_batch: int | None) -> Tensor:
        """Add up the gradients of a batch, a micro-batch at a time, and return the nats by band and field."""
        torch.manual_seed(self._dropout_seed())
        total: Tensor | None = None
        parts = by_length(batch) if micro_batch is None and self._by_length(batch) else list(split(batch, micro_batch))
        if self.recorded is not None and len(parts) == 1:
            padded = parts[0].padded(self.model.config.chunk)  # pyright: ignore
            return self.recorded(padded.to(self.device), count)
        # Weights are cast to bf16 once for all passes; shards are gathered, and then cast, for each.
        with contextlib.nullcontext() if self.parallel == "fsdp" else self._autocast():
            for i, part in enumerate(parts):
                with last_pass(self.replica, i == len(parts) - 1):
                    # Gradients are averaged over the processes: that makes up for the factor.
                    summed = self._pass(part.to(self.device), count / self.processes.count)
                total = summed if total is None else total + summed
        assert total is not None
        return total

    def _pass(self, batch: ChunkBatch, count: float | Tensor) -> Tensor:
        """Add the gradients of some chunks, which are on the device, and return the nats by band and field.

        Args:
            batch: the chunks.
            count: triples that a process predicts in this step, averaged over the processes.
        """
        with self._autocast():
            result = self.replica(batch)
        nats, texture = result if isinstance(result, tuple) else (result, None)
        with torch.autocast(self.device.type, enabled=False):
            loss = nats.sum() / count
            if texture is not None:
                loss = loss + texture.sum() / (texture_count(batch) / self.processes.count)
            loss.backward()
            summed = nats_by_band(nats.detach(), batch)
        if texture is not None:
            summed[: texture.shape[1]] += texture.detach().sum(0)
        return summed

    def _autocast(self) -> torch.autocast:
        """Return a context in which products are computed in the training's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _by_length(self, batch: ChunkBatch) -> bool:
        """Return whether to leave padding out.

        Not where kernels of another shape would have to be compiled, nor where all processes must make equally many
        passes, since each has other chunks.
        """
        is_plain = self.device.type == "cpu" and self.config.compile != "on" and self.parallel != "fsdp"
        return is_plain and self.config.micro_batch == "auto" and isinstance(batch, ChunkBatch) and batch.scored

    def _has_room(self) -> bool:
        """Return whether a pass takes little enough of a GPU's memory for it to be held twice.

        A recording keeps its memory, and validation and passes that are not recorded need memory as well.
        """
        total = torch.cuda.get_device_properties(self.device).total_memory
        return torch.cuda.max_memory_allocated(self.device) < total * RECORDED_PART

    @property
    def _product_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the EMA towards the weights, faster at the start."""
        decay = min(self.config.ema, (1 + self.progress.step) / (10 + self.progress.step))
        means, weights = ([local_shard(p) for p in m.parameters()] for m in (self.ema, self.model))
        torch._foreach_lerp_(means, weights, 1 - decay)  # pyright: ignore

    def _dropout_seed(self) -> int:
        """Return a seed that depends on the run's seed, the step and the process."""
        seed, step, rank = self.config.seed, self.progress.step, self.processes.rank
        if not rank:
            return (seed << 32) + step
        return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)

    def save(self, path: Path) -> None:
        """Write a checkpoint (all processes take part, the first writes).

        Raises:
            Diverged: the state is of no use; the checkpoint before it stays.
            ValueError: the disk is full or the folder can't be written.
        """
        self.check_finite()
        progress = {**dataclasses.asdict(self.progress), "precision": self.precision}
        save_checkpoint(path, self.model, self.ema, self.optimizer, progress, write=self.processes.first)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the file is damaged.
        """
        progress = load_checkpoint(path, self.model, self.ema, self.optimizer)
        self.precision = progress.pop("precision")
        self.optimizer.set_dtype(self._product_dtype)
        self.progress = Progress(**progress)
