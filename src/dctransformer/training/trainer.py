"""Training: one loop; a config goes in, a run folder comes out; the same command again resumes it.

A run folder holds

* ``config.json`` and ``model.safetensors``: the model (averaged weights, best validation), for `from_pretrained`;
* ``train.json``: this loop's settings;
* ``checkpoint.safetensors``: weights, average, optimiser state, progress, in one file written beside and renamed;
* ``metrics.jsonl``, ``tensorboard/``: the curves;
* ``samples/``: sheets on the way.

With a budget in triples, a resumed run on a CPU ends with the same weights, to the last bit, as one that was never
stopped, because a step depends on nothing but its number: which chunks it sees, their flips, dropped labels and
dropout all come from (seed, step). (Some sums on a GPU come out in no fixed order, resumed or not.)

Several processes (`dctransformer.training.distributed`) take equal shares of every batch and of the validation
pictures; the first of them writes and prints. What a run learns does not depend on how many they are, but for rounding
and the dropout's noise, so it can be resumed on another number.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.data.store import TripleStore
from dctransformer.files import atomic_write, explained, make_folder, write_tensors, write_text
from dctransformer.hub.pretrained import WEIGHTS, load_model, read_config, save_model, write_config
from dctransformer.likelihood import FIELDS, CodeLengths, code_lengths
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.layers import Layer
from dctransformer.model.precision import out_of_memory, resolve_device, resolve_precision
from dctransformer.sequence.batches import ChunkBatches
from dctransformer.sequence.chunks import ChunkBatch, Sequence
from dctransformer.training.config import DEFAULT_TRIPLES, MAY_CHANGE, TrainConfig
from dctransformer.training.distributed import (
    Processes,
    choose,
    largest_fitting,
    last_pass,
    like,
    own,
    replicate,
    shard,
    whole,
    whole_model,
)
from dctransformer.training.optimizer import learning_rate, make_optimizer

CHECKPOINT, SETTINGS, METRICS = "checkpoint.safetensors", "train.json", "metrics.jsonl"


class Diverged(ValueError):
    """A gradient became infinite or NaN."""


class Steps(ChunkBatches):
    """The batches of a training: `ChunkBatches` as a model and the loop's settings ask for them."""

    def __init__(self, store: TripleStore, model: ModelConfig, config: TrainConfig, rows: range | None = None):
        """Args: rows: those of each batch that are made (a process's share); None for all."""
        super().__init__(
            store, model.chunk, model.overlap, config.batch, seed=config.seed, num_labels=model.num_labels,
            flip=config.flip, label_dropout=config.label_dropout, conditions=config.conditions, rows=rows,
            shuffle=config.shuffle, starts=config.starts,
        )  # fmt: skip


def validation_sequences(store: TripleStore, model: ModelConfig, pictures: Iterable[int]) -> Iterator[Sequence]:
    """Some pictures of a store as the model's sequences, with their labels."""
    grid = Grid.of_size(store.info.size, store.info.size)
    for i in pictures:
        label = int(store.labels[i])
        if not 0 <= label < model.num_labels:
            label = model.null_label
        yield Sequence.from_triples(store.triples(i), grid, label)


@dataclasses.dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    triples: int = 0
    seconds: float = 0.0
    best: float = math.inf
    """Fewest bytes an image on validation so far."""

    finished: bool = False
    """Whether the last validation and sample sheet are made, too."""

    def done(self, config: TrainConfig) -> float:
        """Part of the budget used, 0 to 1 and beyond."""
        return config.done(self.triples, self.seconds)


class Trainer:
    """State of a run and the operations on it; `train` strings them together."""

    def __init__(
        self,
        run: Path,
        model: ModelConfig,
        config: TrainConfig,
        processes: Processes | None = None,
        make: Callable[[ModelConfig], DCTransformer] = DCTransformer,
    ):
        """Args: run: the run folder; model; config; processes; make: what makes a network of ``model``."""
        self.run = run
        self.processes = processes = processes or Processes()
        self.device = processes.device(resolve_device(config.device))
        self.precision = processes.as_first(resolve_precision(config.precision, self.device), ("fp32", "bf16"))
        torch.manual_seed(config.seed)
        self.model = make(model)
        self.parallel = choose(config.parallel, self.model, processes, self.device)
        self.config = config = config.resolved(sharded=self.parallel == "fsdp")
        for layer in self.model.modules():
            if isinstance(layer, Layer):
                layer.checkpoint = config.checkpoint_activations
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        """The model with averaged weights: it is the one that is validated, sampled and saved."""
        if self.parallel == "fsdp":
            shard(self.model, processes, self.device)
            shard(self.average, processes, self.device)
        self.model.to(self.device)
        self.average.to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.rate = 0.0
        """Learning rate of the last step."""
        if config.compile == "on" or (config.compile == "auto" and self.device.type == "cuda"):
            self.model.compile_stacks(by_layer=self.parallel == "fsdp")
        self.replica = replicate(self.model, self.device) if self.parallel == "ddp" else self.model
        """The model as it is called in training."""
        self.micro_batch = config.micro_batch if isinstance(config.micro_batch, int) else None
        self.progress = Progress()

    def start_from(self, name: str) -> None:
        """Take over the weights of another model; classes are matched by name, new ones start as "no label".

        Args:
            name: run folder, saved model's folder, hub id or shipped weights.

        Raises:
            ValueError: there is no such model, or its architecture or quality is another.
        """
        other, own = load_model(name), self.model.config
        before, now = (dataclasses.asdict(c) for c in (other.config, own))
        free = {"dropout", "num_labels", "label_names", "conditions", "size", "chunk", "overlap", "memory"}
        differ = [field for field in now if field not in free and before[field] != now[field]]
        if differ or (own.block == "paper" and before["chunk"] != now["chunk"]):
            raise ValueError(
                f"{name} can't be started from: its {', '.join(differ or ['chunk'])} differs; "
                f"give the settings and the quality it was trained with, or leave --init out"
            )
        state = other.state_dict()
        numbers = {n: i for i, n in enumerate(other.config.label_names)}
        null = other.config.null_label
        rows = [numbers.get(n, null) for n in own.label_names]
        state["label.weight"] = state["label.weight"][[*rows, null]]
        with torch.no_grad():
            for model in (self.model, self.average):
                for name, p in model.named_parameters():
                    p.copy_(like(state[name], p))

    # -- one step -----------------------------------------------------------------------------------------------

    def step(self, batch: ChunkBatch, count: int | None = None) -> Tensor:
        """One optimiser step.

        Args:
            batch: this process's rows of the step's batch.
            count: triples that all processes predict in this step; None if there are no others.

        Returns:
            Nats by field, summed over this process's rows, fp32 ``[3]``, on the device.

        Raises:
            ValueError: training diverged, or a micro-batch does not fit into memory.
        """
        config, progress = self.config, self.progress
        self.rate = learning_rate(config, progress.step, progress.done(config))
        self.optimizer.set_rate(self.rate)
        count = int(batch.predicted.sum()) if count is None else count
        try:
            total = self._accumulate(batch, count)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ValueError(self._too_large(batch)) from error
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        if not torch.isfinite(norm):
            raise Diverged(
                f"training diverged at step {progress.step}; start another run with a lower --lr (now {config.lr:g})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(config.ema, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            pairs = [[own(p) for p in m.parameters()] for m in (self.average, self.model)]
            torch._foreach_lerp_(*pairs, 1 - decay)  # pyright: ignore
        progress.step += 1
        progress.triples += count
        return total

    def _accumulate(self, batch: ChunkBatch, count: int) -> Tensor:
        """Add up the gradients of a step, a micro-batch at a time; returns the nats."""
        torch.manual_seed(self._dropout_seed())
        total: Tensor | None = None
        parts = list(split(batch, self.micro_batch))
        for i, part in enumerate(parts):
            with last_pass(self.replica, i == len(parts) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    nats = self.replica(part.to(self.device)).sum((0, 1))
                # Gradients are averaged over the processes: that makes up for the factor.
                (nats.sum() / (count / self.processes.count)).backward()
            total = nats.detach() if total is None else total + nats.detach()
        assert total is not None
        return total

    def _dropout_seed(self) -> int:
        """Depends on the seed, the step and the process."""
        seed, step, rank = self.config.seed, self.progress.step, self.processes.rank
        if not rank:
            return (seed << 32) + step
        return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)

    # -- memory -------------------------------------------------------------------------------------------------

    def fit(self, batch: ChunkBatch) -> None:
        """Choose the micro-batch that the device's memory holds, if that is asked for.

        Args:
            batch: this process's rows of a batch like those to come.
        """
        if self.config.micro_batch == "auto" and self.device.type == "cuda":
            self.micro_batch = self._fitting(batch)

    def _fitting(self, batch: ChunkBatch) -> int:
        rows = len(batch.labels)
        free, _ = torch.cuda.mem_get_info(self.device)
        there = free + torch.cuda.memory_reserved(self.device)
        states = sum(2 * own(p).nbytes for p in self.model.parameters() if not self.optimizer.began(p))
        limit = 0.9 * there - states  # a part is lost between blocks, and chunks differ
        limit = min(told[0] for told in self.processes.told([limit]))
        return largest_fitting(lambda size: self._peak(batch, size), limit, rows)

    def _peak(self, batch: ChunkBatch, size: int) -> float:
        """Bytes at the peak of a pass over the first ``size`` rows (0 for none): the most of all processes."""
        before, self.micro_batch = self.micro_batch, None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            if size:
                self._accumulate(next(split(batch, size)), 1)
        finally:
            self.micro_batch = before
            peak = torch.cuda.max_memory_allocated(self.device)
            self.optimizer.zero_grad()
        return max(told[0] for told in self.processes.told([peak]))

    def _too_large(self, batch: ChunkBatch) -> str:
        """The sentence for a micro-batch that does not fit."""
        self.optimizer.zero_grad()
        size = min(self.micro_batch or len(batch.labels), len(batch.labels))
        what = f"{size} chunks at once do not fit into the memory of {self.device}"
        if size == 1:
            return f"{what}; try --checkpoint-activations, a smaller preset or, on several GPUs, --parallel fsdp"
        if self.processes.count > 1 or self.device.type != "cuda":
            return f"{what}; give a smaller --micro-batch ({size // 2}, say)"
        return f"{what}; --micro-batch {self._fitting(batch)} does"

    # -- checkpoints --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint beside and rename it (all processes take part, the first writes)."""
        tensors: dict[str, Tensor] = {}
        for (name, p), mean in zip(self.model.named_parameters(), self.average.parameters(), strict=True):
            states = {f"optimizer.{key}.{name}": value for key, value in self.optimizer.state_of(p).items()}
            for key, value in {f"weights.{name}": p.detach(), f"average.{name}": mean, **states}.items():
                value = whole(value)
                if self.processes.first:
                    tensors[key] = value.cpu().contiguous()
        if not self.processes.first:
            return
        state = {**dataclasses.asdict(self.progress), "precision": self.precision}
        write_tensors(self.run / CHECKPOINT, tensors, {"progress": json.dumps(state)})

    def load(self) -> None:
        """Take up the checkpoint of the run folder.

        Raises:
            ValueError: it is damaged.
        """
        path = self.run / CHECKPOINT
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            for (name, p), mean in zip(self.model.named_parameters(), self.average.parameters(), strict=True):
                p.data.copy_(like(tensors[f"weights.{name}"], p))
                mean.copy_(like(tensors[f"average.{name}"], mean))
                for key in ("exp_avg", "exp_avg_sq", "momentum_buffer", "step"):
                    value = tensors.get(f"optimizer.{key}.{name}")
                    if value is not None:  # the number of steps is one for all processes, the rest lies as p does
                        self.optimizer.state_of(p)[key] = value.to(p.device) if key == "step" else like(value, p)
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it to start the run again from its beginning"
            ) from error
        self.precision = state.pop("precision")
        self.progress = Progress(**state)


def split(batch: ChunkBatch, size: int | None) -> Iterator[ChunkBatch]:
    """Rows of a batch in groups of ``size`` (all at once for None)."""
    rows = len(batch.labels)
    if size is None or size >= rows:
        yield batch
        return
    for start in range(0, rows, size):
        yield batch.rows(slice(start, start + size))


def train(
    data: str | Path, run: str | Path, model: ModelConfig, config: TrainConfig, *, progress: bool = True
) -> dict[str, Any]:
    """Train a model, or go on with a run.

    Args:
        data: a folder made by `dctransformer.data.prepare`.
        run: the run folder; made if it does not exist, resumed if it does.
        model: shape of the model; its quality, size and labels are taken from the data.
        config: settings of the loop.
        progress: show a progress bar.

    Returns:
        The final validation's metrics.

    Raises:
        ValueError: the data set is missing or empty, the run folder belongs to another config, the disk is full.
    """
    config.check()
    processes = Processes.join()
    try:
        result = _train(Path(data), Path(run), model, config, processes, progress and processes.first)
        processes.wait()  # nobody leaves while somebody still talks to it
        return result
    finally:
        processes.leave()


def _train(
    data: Path, run: Path, model: ModelConfig, config: TrainConfig, processes: Processes, show: bool
) -> dict[str, Any]:
    with processes.together():
        rows = processes.rows(config.batch)
        with processes.one_after_the_other():
            store, held_out = (TripleStore.open(data, split, progress=show) for split in ("train", "validation"))
        if not len(store):
            raise ValueError(f"{data} has no training pictures; prepare a larger folder or a smaller --val-fraction")
        info = store.info
        names = tuple(info.labels)
        model = dataclasses.replace(
            model, quality=info.quality, size=info.size, num_labels=len(names), label_names=names,
            conditions=config.conditions.names(),
        )  # fmt: skip
        resumed = (run / CHECKPOINT).exists()
        trainer = Trainer(run, model, config, processes)
        if config.init is not None and not resumed:
            trainer.start_from(config.init)
    with processes.together():
        if processes.first:
            _open_run(run, model, trainer.config, info.fingerprint)
    with processes.together():
        if resumed:
            trainer.load()
    if resumed:
        if trainer.progress.finished and trainer.progress.done(config) >= 1:
            if processes.first:
                print(f"{run} is finished; give more --triples or --minutes to go on")
            return {"step": trainer.progress.step, "triples": trainer.progress.triples, "finished": True}
        trainer.progress.finished = False
    try:
        return _run(trainer, Steps(store, trainer.model.config, config, rows), held_out, show)
    except OSError as error:
        raise explained(error, run) from error


def _open_run(run: Path, model: ModelConfig, config: TrainConfig, data: str) -> None:
    """Write the settings of a new run, or compare them with those of the run that is resumed.

    Args:
        run: the run folder.
        model: shape of the model.
        config: settings of the loop.
        data: fingerprint of the data set.

    Raises:
        ValueError: the folder holds something else, or a run of another config or data set.
    """
    now = {**json.loads(json.dumps(dataclasses.asdict(config))), "data": data}
    if (run / CHECKPOINT).exists() and (run / SETTINGS).exists():
        try:
            before = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{run / SETTINGS} is damaged ({error}); choose another run folder") from error
        differ = [k for k in now if k not in MAY_CHANGE and before.get(k, now[k]) != now[k]]
        old = read_config(run).to_dict()
        differ += [k for k, v in model.to_dict().items() if old[k] != v]
        if differ:
            raise ValueError(
                f"{run} is a run of another config (it differs in {', '.join(differ)}); "
                "use the settings and the data it was started with, or another run folder"
            )
    elif not (run / SETTINGS).exists() and run.is_dir() and any(run.iterdir()):
        raise ValueError(f"{run} is a folder with other files in it; choose another run folder")
    make_folder(run)
    write_config(model, run)
    write_text(run / SETTINGS, json.dumps(now, indent=2) + "\n")


class _StopSignal:
    """Remembers that the user or the system asked to stop, so that the step in hand is finished and saved."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _StopSignal:
        self._before: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals stay with their owner
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _run(trainer: Trainer, steps: Steps, held_out: TripleStore, show: bool) -> dict[str, Any]:
    config, state, run, processes = trainer.config, trainer.progress, trainer.run, trainer.processes
    trainer.fit(steps[state.step])
    log = MetricsLog(run, state.step) if processes.first else None
    saved = state.seconds
    bits, counted = torch.zeros(3), 0
    total = 1.0 if config.minutes is not None else config.triples or DEFAULT_TRIPLES
    bar = tqdm(total=total, disable=not show, unit="triples", unit_scale=True, dynamic_ncols=True)
    if config.minutes is not None:
        bar.bar_format = "{percentage:3.0f}%|{bar}| {elapsed} {postfix}"
    bar.n = min(state.done(config), 1.0) * total
    with _StopSignal() as stop, bar:
        loader = DataLoader(
            steps,
            batch_size=None,
            sampler=range(state.step, 1 << 62),  # type: ignore[arg-type]  (endless; the budget ends it)
            num_workers=config.loaders,
            persistent_workers=config.loaders > 0,
        )
        clock = time.perf_counter()
        window = (state.seconds, state.triples)
        stopped = False
        for batch in loader:
            # Whatever is decided by a clock or a signal, all processes decide alike.
            told = processes.told([state.seconds, stop.asked, int(batch.predicted.sum())])
            state.seconds, stopped = told[0][0], any(asked for _, asked, _ in told)
            if state.done(config) >= 1 or stopped:
                break
            if state.seconds - saved >= 60 * config.checkpoint_every:
                saved = state.seconds
                trainer.save()
            counted_now = int(sum(count for *_, count in told))
            bits += trainer.step(batch, counted_now).cpu() / math.log(2)
            counted += counted_now
            state.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            bar.n = min(state.done(config), 1.0) * total  # set, since summing would round past the end
            bar.update(0)
            if state.step % 20 == 0:
                speed = (state.triples - window[1]) / (state.seconds - window[0])
                window = (state.seconds, state.triples)
                fields = {name: float(b) / counted for name, b in zip(FIELDS, processes.total(bits), strict=True)}
                if log is not None:
                    log.write(
                        state, {f"train/{k}": v for k, v in fields.items()}
                        | {"train/bits_per_triple": sum(fields.values()), "triples_per_second": speed,
                           "lr": trainer.rate},
                    )  # fmt: skip
                bar.set_postfix_str(
                    " ".join(f"{k} {v:.3f}" for k, v in fields.items())
                    + f" = {sum(fields.values()):.3f} bits/triple, {speed:,.0f} triples/s"
                )
                bits, counted = torch.zeros(3), 0
            # Counted in triples, so that a resumed run chooses the same best weights.
            if _passed(config.eval_every, state.triples, counted_now):
                if not (run / CHECKPOINT).exists():
                    trainer.save()  # so that a run with saved weights can always be resumed
                _validate(trainer, held_out, log, bar)
            if _passed(config.sample_every, state.triples, counted_now):
                _sample_sheet(trainer)
            clock = time.perf_counter()
    trainer.save()
    if stopped and state.done(config) < 1:
        if processes.first:
            print(f"stopped at step {state.step}; run the same command again to go on")
        return {"step": state.step, "finished": False}
    _validate(trainer, held_out, log, bar)
    metrics = _score_kept(trainer, held_out, log, bar)
    if config.sample_every:
        _sample_sheet(trainer)
    state.finished = True
    trainer.save()
    if log is not None:
        log.close()
    return {"step": state.step, "triples": state.triples, "finished": True, **metrics}


def _passed(every: int, now: int, last: int) -> bool:
    """Whether a multiple of ``every`` lies in the last ``last`` of ``now`` triples."""
    return every > 0 and now // every > (now - last) // every


def _score(model: DCTransformer, store: TripleStore, limit: int | None, processes: Processes) -> dict[str, Any]:
    """Exact code lengths of the first ``limit`` pictures, of which each process scores its share."""
    images = len(store) if limit is None else min(limit, len(store))
    bits = torch.zeros(images, len(order.BANDS) + 1, len(FIELDS), dtype=torch.float64)
    triples, pixels = torch.zeros(images, len(order.BANDS) + 1, dtype=torch.int64), store.info.size**2
    mine = range(processes.rank, images, processes.count)
    if mine:
        part = code_lengths(model, validation_sequences(store, model.config, mine))
        bits[mine.start :: mine.step], triples[mine.start :: mine.step] = part.bits, part.triples
    summary = CodeLengths(processes.total(bits), processes.total(triples), pixels).summary()
    return {
        "bytes_per_image": summary["bytes_per_image"],
        "huffman_bytes_per_image": float(np.mean(store.huffman_bytes[: summary["images"]])),
        **summary["bits_per_triple_by_field"],
        "bits_per_triple": summary["bits_per_triple"],
        "images": summary["images"],
    }


def _report(name: str, metrics: dict[str, Any], trainer: Trainer, log: MetricsLog | None, bar: tqdm) -> None:
    if log is None:
        return
    log.write(trainer.progress, {f"{name}/{k}": v for k, v in metrics.items()})
    bar.write(
        f"step {trainer.progress.step}: {name} {metrics['bytes_per_image']:.1f} bytes an image "
        f"(libjpeg's optimised Huffman {metrics['huffman_bytes_per_image']:.1f}), "
        f"{metrics['bits_per_triple']:.3f} bits a triple, {metrics['images']} images"
    )


def _validate(trainer: Trainer, held_out: TripleStore, log: MetricsLog | None, bar: tqdm) -> None:
    """Exact bytes an image beside libjpeg's; keeps the averaged weights where they are the best so far."""
    model, first = whole_model(trainer.average), trainer.processes.first
    if not len(held_out):
        if first:
            save_model(model, trainer.run)
        return
    metrics = _score(model, held_out, trainer.config.eval_images, trainer.processes)
    if metrics["bytes_per_image"] < trainer.progress.best or not (trainer.run / WEIGHTS).exists():
        trainer.progress.best = metrics["bytes_per_image"]
        if first:
            save_model(model, trainer.run)
    trainer.processes.wait()
    _report("validation", metrics, trainer, log, bar)


def _score_kept(trainer: Trainer, held_out: TripleStore, log: MetricsLog | None, bar: tqdm) -> dict[str, Any]:
    """Score the weights that were kept on all validation pictures."""
    if not len(held_out):
        return {}
    kept = load_model(trainer.run, trainer.device)
    metrics = _score(kept, held_out, None, trainer.processes)
    _report("final", metrics, trainer, log, bar)
    return metrics


def _sample_sheet(trainer: Trainer) -> None:
    from dctransformer.sampling.engine import SampleConfig, sample
    from dctransformer.sheets import contact_sheet

    model = whole_model(trainer.average)
    if trainer.processes.first:
        classes = model.config.num_labels
        labels = [7 * i % classes for i in range(16)] if classes else None
        result = sample(model, 16, SampleConfig(seed=0), labels=labels)
        with atomic_write(trainer.run / "samples" / f"step-{trainer.progress.step:07d}.png") as beside:
            contact_sheet(result.pixels(), columns=4).save(beside, format="PNG")
    trainer.processes.wait()


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard; lines after the step that a run resumes at are dropped."""

    def __init__(self, run: Path, step: int):
        self.path = run / METRICS
        kept: list[str] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("TensorBoard is not installed; curves go to metrics.jsonl only (pip install 'dctransformer[train]')")
            self.board = None
        else:
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, state: Progress, metrics: dict[str, float]) -> None:
        """Append one line."""
        line = {"step": state.step, "triples": state.triples, "seconds": round(state.seconds, 2), **metrics}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, state.step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()
