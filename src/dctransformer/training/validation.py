"""Looking at a model in training: exact code lengths of held-out pictures, and sheets of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.data.store import TripleStore
from dctransformer.files import atomic_write
from dctransformer.hub.pretrained import load_model, save_model
from dctransformer.likelihood import FIELDS, CodeLengths, code_lengths
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.chunks import Sequence
from dctransformer.training.distributed import Processes, full_model
from dctransformer.training.log import Log
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.trainer import Trainer


def validation_sequences(store: TripleStore, model: ModelConfig, pictures: Iterable[int]) -> Iterator[Sequence]:
    """Some pictures of a store as the model's sequences, with their labels."""
    grid = Grid.of_size(store.info.size, store.info.size)
    for i in pictures:
        label = int(store.labels[i])
        if not 0 <= label < model.num_labels:
            label = model.null_label
        yield Sequence.from_triples(store.triples(i), grid, label)


def is_due(every: int, now: int, last: int) -> bool:
    """Whether a multiple of ``every`` (0 for never) lies in the last ``last`` of ``now`` triples."""
    return every > 0 and now // every > (now - last) // every


def validate(trainer: Trainer, held_out: TripleStore, folder: RunFolder, log: Log) -> None:
    """Score the EMA weights on the first held-out pictures; keep them in the run folder if they are the best so far."""
    model, first = full_model(trainer.ema), trainer.processes.first
    if not len(held_out):
        if first:
            save_model(model, folder.path)
        return
    scores = score(model, held_out, trainer.config.eval_images, trainer.processes)
    if scores["bytes_per_image"] < trainer.progress.best or not folder.weights.exists():
        trainer.progress.best = scores["bytes_per_image"]
        if first:
            save_model(model, folder.path)
    trainer.processes.wait()
    log.scores("validation", scores)


def score_kept(trainer: Trainer, held_out: TripleStore, folder: RunFolder, log: Log) -> dict[str, Any]:
    """Score the weights that were kept on all held-out pictures."""
    if not len(held_out):
        return {}
    kept = load_model(folder.path, trainer.device)
    scores = score(kept, held_out, None, trainer.processes)
    log.scores("final", scores)
    return scores


def score(model: DCTransformer, store: TripleStore, limit: int | None, processes: Processes) -> dict[str, Any]:
    """Exact code lengths of the first ``limit`` pictures (None for all), of which each process scores its share."""
    images = len(store) if limit is None else min(limit, len(store))
    bits = torch.zeros(images, len(order.BANDS) + 1, len(FIELDS), dtype=torch.float64)
    triples, pixels = torch.zeros(images, len(order.BANDS) + 1, dtype=torch.int64), store.info.size**2
    share = range(processes.rank, images, processes.count)
    if share:
        part = code_lengths(model, validation_sequences(store, model.config, share))
        bits[share.start :: share.step], triples[share.start :: share.step] = part.bits, part.triples
    summary = CodeLengths(processes.all_reduce(bits), processes.all_reduce(triples), pixels).summary()
    return {
        "bytes_per_image": summary["bytes_per_image"],
        "huffman_bytes_per_image": float(np.mean(store.huffman_bytes[: summary["images"]])),
        **summary["bits_per_triple_by_field"],
        "bits_per_triple": summary["bits_per_triple"],
        "images": summary["images"],
    }


def draw_sheet(trainer: Trainer, folder: RunFolder) -> None:
    """Draw 16 samples of the EMA weights into the run folder, of different classes, always with the same seed."""
    from dctransformer.sampling.engine import SampleConfig, sample
    from dctransformer.sheets import contact_sheet

    model = full_model(trainer.ema)
    if trainer.processes.first:
        classes = model.config.num_labels
        labels = [7 * i % classes for i in range(16)] if classes else None
        result = sample(model, 16, SampleConfig(seed=0), labels=labels)
        with atomic_write(folder.sheet(trainer.progress.step)) as path:
            contact_sheet(result.pixels(), columns=4).save(path, format="PNG")
    trainer.processes.wait()
