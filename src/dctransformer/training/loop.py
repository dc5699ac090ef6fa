"""The training loop: a data set and settings go in, a run folder comes out; the same command again resumes it.

With a budget in triples, a resumed run on a CPU ends with the same weights, to the last bit, as one that was never
stopped, because chunks, flips, dropped labels and dropout all come from (seed, step). (Some sums on a GPU come out in
no fixed order.) Several processes take equal shares of every batch: see `dctransformer.training.distributed`.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dctransformer.data.store import TripleStore
from dctransformer.files import check_place, locked_folder, printable, write_error
from dctransformer.model.config import ModelConfig
from dctransformer.training.bands import count_by_band
from dctransformer.training.checkpoint import start_from
from dctransformer.training.config import TrainConfig
from dctransformer.training.distributed import Processes
from dctransformer.training.log import Log
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.setup import Steps, freeze_untrained, new_model, shape_for
from dctransformer.training.signals import StopSignal, leave_signals_to_the_trainer
from dctransformer.training.trainer import Trainer
from dctransformer.training.validation import draw_sheet, is_due, save_ema, score_kept, validate, what_is_scored


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
        The final validation's metrics; ``finished`` is False, and ``signal`` its number, if a signal ended the run.

    Raises:
        ValueError: the data set is missing or empty, the run folder is in use or of another config, the disk is full,
            the GPU failed.
    """
    config.check()
    processes, folder = Processes.join(), RunFolder(Path(run))
    try:
        with contextlib.ExitStack() as lock:
            result = _train(data, folder, model, config, processes, progress and processes.first, lock)
            processes.wait()  # no process leaves while another still sends to it
            return result
    finally:
        processes.leave()


def _train(
    data: str | Path, folder: RunFolder, model: ModelConfig, config: TrainConfig, processes: Processes, show: bool,
    lock: contextlib.ExitStack,
) -> dict[str, Any]:  # fmt: skip
    with processes.fail_together():
        if processes.first:
            check_place(folder.checkpoint)  # before the data's triples are derived
        rows = processes.rows(config.batch)
        with processes.one_after_another():
            store, held_out = (TripleStore.open(data, split, progress=show) for split in ("train", "validation"))
        if not len(store):
            raise ValueError(f"{data} has no training pictures; prepare a larger folder or a smaller --val-fraction")
        network, resumed = new_model(shape_for(store, model, config), config.seed), folder.resumable
        if config.init is not None and not resumed:
            start_from(network, config.init, new_texture=not config.structure)
        freeze_untrained(network, config)
        trainer = Trainer(network, config, processes)
        steps = Steps(store, network.config, config, rows)
    with processes.fail_together():
        if processes.first:
            lock.enter_context(locked_folder(folder.path))
            folder.prepare(network.config, trainer.config, store.info.fingerprint)
        if resumed:
            trainer.load(folder.checkpoint)
    if trainer.progress.finished and trainer.progress.done(config) >= 1:
        if processes.first:
            print(f"{printable(folder.path)} is finished; give more --triples or --minutes to go on")
        return {"step": trainer.progress.step, "triples": trainer.progress.triples, "finished": True}
    try:
        return training_loop(trainer, steps, held_out, folder, show)
    except OSError as error:
        raise write_error(error, folder.path) from error
    except torch.AcceleratorError as error:
        raise ValueError(
            f"{trainer.device} failed ({str(error).splitlines()[0]}); run the same command again: it goes on from the "
            "last checkpoint, if there is one" + (", or without --graphs" if config.graphs else "")
        ) from error


def training_loop(
    trainer: Trainer, steps: Steps, held_out: TripleStore, folder: RunFolder, show: bool
) -> dict[str, Any]:
    """Take steps until the budget is used or a signal comes; validate, draw samples and save on the way."""
    config, state, processes = trainer.config, trainer.progress, trainer.processes
    state.finished = False
    trainer.fit_memory(steps[state.step])
    log = Log(trainer, folder, show)
    log.note(what_is_scored(held_out, config))
    endless: Any = range(state.step, 1 << 62)  # the budget ends it
    workers = config.loader_processes(trainer.device.type, processes.local_count)
    loader = DataLoader(
        steps, batch_size=None, sampler=endless, num_workers=workers, persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_trainer,
    )  # fmt: skip
    signal, saved = 0, state.seconds
    with StopSignal() as stop:
        clock = time.perf_counter()
        for batch in loader:
            # What a clock or a signal decides, all processes decide alike.
            facts = [state.seconds, stop.number, int(batch.predicted.sum()), *count_by_band(batch)]
            seconds, numbers, predicted, *bands = zip(*processes.all_gather(facts), strict=True)
            state.seconds, signal, count = seconds[0], int(max(numbers)), int(sum(predicted))
            if state.done(config) >= 1 or signal:
                break

            # Save a checkpoint.
            if state.seconds - saved >= 60 * config.checkpoint_every:
                saved = state.seconds
                trainer.save(folder.checkpoint)

            # Take a step.
            log.add(trainer.step(batch, count), [sum(band) for band in bands])
            state.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            log.report()

            # Validate and draw samples: counted in triples, so that a resumed run keeps the same best weights.
            if is_due(config.eval_every, state.triples, count):
                if not folder.checkpoint.exists():
                    trainer.save(folder.checkpoint)  # so that a run with saved weights can always be resumed
                validate(trainer, held_out, folder, log)
            if is_due(config.sample_every, state.triples, count):
                draw_sheet(trainer, folder, log)
            clock = time.perf_counter()

    # Finish, or leave the rest to the next call.
    trainer.save(folder.checkpoint)
    if state.done(config) < 1:
        save_ema(trainer, folder, replace=False)
        log.close()
        if processes.first:
            print(f"stopped at step {state.step}; run the same command again to go on")
        return {"step": state.step, "finished": False, "signal": signal}
    validate(trainer, held_out, folder, log)
    scores = score_kept(trainer, held_out, folder, log)
    if config.sample_every:
        draw_sheet(trainer, folder, log)
    state.finished = True
    trainer.save(folder.checkpoint)
    log.close()
    return {"step": state.step, "triples": state.triples, "finished": True, **scores}
