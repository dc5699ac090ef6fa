"""Trains any system for a number of minutes with the package's `Trainer`, and tunes its learning rate.

Only loading batches and training steps count as training time, not validation or writing files. Time is wall-clock
time, or the CPU time of this process on a machine that runs other jobs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from dctransformer.files import write_tensors
from dctransformer.sequence.conditions import Conditions
from dctransformer.training.config import TrainConfig
from dctransformer.training.log import MetricsLog
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.trainer import Diverged, Trainer

WARMUP = 0.05
"""Fraction of the training time used for warmup, limited to the default number of warmup steps."""

RATES = (1e-3, 3e-3, 9e-3)
"""Learning rates to choose from by default."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Clocks that measure training time; ``processor`` is the sum over threads, so it is meant for one thread."""

CHECKPOINT_SECONDS = 120.0
"""Training time between checkpoints."""

_PROBES = 3
"""Steps that are timed to estimate the seconds per step; the first is a warmup."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One network to train.

    Attributes:
        name: name of the stage in folders and reports.
        make: creates the untrained network.
        batches: returns the batches of a config, indexed by step number.
        loss: computes the mean held-out loss of a network in eval mode.
        batch: rows per step.
        per_image: predictions per image, which converts predictions to pictures seen.
        share: fraction of the system's training time.
        rates: learning rates to choose from.
    """

    name: str
    make: Callable[[], nn.Module]
    batches: Callable[[TrainConfig], Any]
    loss: Callable[[Any], float]
    batch: int
    per_image: float
    share: float = 1.0
    rates: tuple[float, ...] = RATES


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained stage.

    Attributes:
        network: the network with EMA weights, in eval mode.
        facts: JSON figures: steps, seconds, pictures seen, pictures per second, learning rate, precision.
    """

    network: nn.Module
    facts: dict[str, Any]


def base_config(*, seed: int = 0, device: str = "auto", precision: str = "auto") -> TrainConfig:
    """Training settings common to all systems: the defaults, without conditions, with AdamW, not compiled."""
    only = Conditions(none=1.0, low=0.0, luma=0.0, region=0.0)
    return TrainConfig(
        seed=seed, optimizer="adamw", device=device, precision=cast(Any, precision), compile="off", conditions=only
    )


def fit(
    stage: Stage, minutes: float, rate: float, base: TrainConfig, run: Path, pace: float, clock: str = "wall"
) -> Trained:
    """Train a stage, or continue a training that was interrupted.

    A checkpoint is written to ``run`` every `CHECKPOINT_SECONDS` and at the end. (What a VQ-VAE draws at random to
    replace unused codes is not part of it.)

    Args:
        stage: what to train.
        minutes: training time, over which the learning rate decays to its final value.
        rate: peak learning rate.
        base: all other settings.
        run: folder for the training curves and the checkpoint.
        pace: seconds per step, from `step_seconds`, from which the number of warmup steps follows.
        clock: one of `CLOCKS`.

    Raises:
        Diverged: the learning rate is too high.
        ValueError: there is not enough memory.
    """
    steps = round(WARMUP * 60 * minutes / pace)
    config = dataclasses.replace(base, minutes=minutes, lr=rate, batch=stage.batch)
    state_file = _StateFile(run, config)
    config = dataclasses.replace(config, warmup=state_file.warmup or min(max(steps, 1), base.warmup))
    trainer = _trainer(stage, config)
    batches = stage.batches(config)
    trainer.fit_memory(batches[0])
    run.mkdir(parents=True, exist_ok=True)
    resumed = state_file.load(trainer)
    state = trainer.progress
    log = MetricsLog(RunFolder(run), state.step if resumed else -1)
    total, counted = 0.0, 0
    now, began = CLOCKS[clock], time.perf_counter() - state_file.wall_seconds
    saved = state.seconds
    while state.done(config) < 1:
        start, before = now(), state.triples
        loss = float(trainer.step(batches[state.step]).sum())  # waits for the device
        state.seconds += now() - start
        total, counted = total + loss, counted + state.triples - before
        if state.step % 20 == 0:
            log.write(state, {"train/loss": total / counted, "lr": trainer.rate})
            total, counted = 0.0, 0
        if state.seconds - saved > CHECKPOINT_SECONDS or state.done(config) >= 1:
            state_file.save(trainer, time.perf_counter() - began)
            saved = state.seconds
    log.close()
    for ema_buffer, buffer in zip(trainer.ema.buffers(), trainer.model.buffers(), strict=True):
        ema_buffer.copy_(buffer)  # the EMA covers parameters only
    elapsed = time.perf_counter() - began
    images = state.triples / stage.per_image
    facts = {
        "steps": state.step, "seconds": state.seconds, "wall_seconds": elapsed, "images": images,
        "images_per_second": images / state.seconds,
        "learning_rate": rate, "warmup": config.warmup, "batch": stage.batch, "precision": trainer.precision,
    }  # fmt: skip
    return Trained(trainer.ema, facts)


class _StateFile:
    """The checkpoint of a stage, and what else its training needs to continue: buffers, warmup steps, wall-clock time.

    Attributes:
        warmup: warmup steps of the interrupted training; None if there is none with these settings.
        wall_seconds: its wall-clock time.
    """

    def __init__(self, run: Path, config: TrainConfig):
        self.checkpoint, self.buffers = RunFolder(run).checkpoint, run / "buffers.safetensors"
        self.settings = json.dumps(dataclasses.asdict(dataclasses.replace(config, warmup=0)), default=str)
        self.warmup: int | None = None
        self.wall_seconds = 0.0
        if self.checkpoint.exists() and self.buffers.exists():
            with safetensors.safe_open(self.buffers, framework="pt") as file:
                notes = file.metadata()
            before, now = json.loads(notes["settings"]), json.loads(self.settings)
            if all(before.get(name, value) == value for name, value in now.items()):  # settings may have been added
                self.warmup, self.wall_seconds = int(notes["warmup"]), float(notes["wall_seconds"])

    def load(self, trainer: Trainer) -> bool:
        """Restore a trainer, and return whether there was anything to restore, of the same network."""
        if self.warmup is None or not self._is_of(trainer.model):
            return False
        trainer.load(self.checkpoint)
        tensors = load_file(self.buffers)
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(tensors[name])
        return True

    def _is_of(self, network: nn.Module) -> bool:
        """Return whether the checkpoint's weights have the names and shapes of a network's."""
        with safetensors.safe_open(self.checkpoint, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith("weights.")]  # noqa: SIM118 (not a dict)
            shapes = {key.removeprefix("weights."): tuple(file.get_slice(key).get_shape()) for key in keys}
        return shapes == {name: tuple(p.shape) for name, p in network.named_parameters()}

    def save(self, trainer: Trainer, wall_seconds: float) -> None:
        """Write the state of a trainer."""
        notes = {"settings": self.settings, "warmup": str(trainer.config.warmup), "wall_seconds": str(wall_seconds)}
        tensors = {name: buffer.cpu().contiguous() for name, buffer in trainer.model.named_buffers()}
        write_tensors(self.buffers, tensors, notes)
        trainer.save(self.checkpoint)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of all stages below a folder, which are large, once their weights are saved."""
    for name in (RunFolder(folder).checkpoint.name, "buffers.safetensors"):
        for path in folder.rglob(name):
            path.unlink()


def tune(
    stage: Stage, minutes: float, base: TrainConfig, run: Path, pace: float, clock: str = "wall"
) -> tuple[float, dict[str, float]]:
    """Choose the learning rate of a stage by the held-out loss after a short training run with each candidate.

    Args:
        stage: what to train.
        minutes: training time with each rate.
        base: all other settings.
        run: folder for the training curves.
        pace: seconds per step, from `step_seconds`.
        clock: one of `CLOCKS`.

    Returns:
        The best rate, and the held-out loss by rate (infinite where training diverged).

    Raises:
        ValueError: training diverged with every rate, or there is not enough memory.
    """
    losses: dict[float, float] = {}
    for rate in stage.rates:
        try:
            loss = stage.loss(fit(stage, minutes, rate, base, run / f"{rate:g}", pace, clock).network)
        except Diverged:
            loss = math.inf
        losses[rate] = loss if math.isfinite(loss) else math.inf
    best = min(losses, key=lambda rate: losses[rate])
    if losses[best] == math.inf:
        raise ValueError(f"{stage.name} diverged with every learning rate of {', '.join(map(str, stage.rates))}")
    return best, {f"{rate:g}": loss for rate, loss in losses.items()}


def step_seconds(stage: Stage, base: TrainConfig, clock: str = "wall") -> float:
    """Seconds per training step of a stage: the fastest of a few steps of a throwaway network."""
    trainer = _trainer(stage, dataclasses.replace(base, minutes=1.0, batch=stage.batch))
    batches = stage.batches(trainer.config)
    trainer.fit_memory(batches[0])
    times: list[float] = []
    for k in range(_PROBES):
        start = CLOCKS[clock]()
        float(trainer.step(batches[k]).sum())
        times.append(CLOCKS[clock]() - start)
    return min(times[1:])


def _trainer(stage: Stage, config: TrainConfig) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(stage.make(), config)


def parameters(network: nn.Module) -> int:
    """Number of trained values of a network: parameters and codebook entries."""
    codes = sum(m.codebook.numel() for m in network.modules() if isinstance(m, VectorQuantize))
    return codes + sum(p.numel() for p in network.parameters())


@torch.inference_mode()
def mean_loss(network: nn.Module, batches: list[Any]) -> float:
    """Mean loss per prediction over batches, in fp32."""
    device = next(network.parameters()).device
    total = sum(float(network(batch.to(device)).sum()) for batch in batches)
    return total / sum(int(batch.predicted.sum()) for batch in batches)
