"""Validation of a model in training: exact code lengths of held-out pictures, and sheets of samples."""

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
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.likelihood import FIELDS, CodeLengths, code_lengths
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.windows import centre_window, huffman_bytes
from dctransformer.training.bands import bits_per_triple
from dctransformer.training.config import TrainConfig
from dctransformer.training.distributed import Processes, gather_model
from dctransformer.training.log import Log
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.setup import training_window
from dctransformer.training.trainer import Trainer


def validation_sequences(
    store: TripleStore, model: ModelConfig, pictures: Iterable[int], window: Grid | None = None
) -> Iterator[Sequence]:
    """Yield pictures of a store as labelled sequences; of pictures larger than the window, the window at the centre."""
    for i in pictures:
        label = int(store.labels[i])
        if not 0 <= label < model.num_labels:
            label = model.null_label
        triples, grid = centre_window(store.triples(i), store.grid(i), window)
        yield Sequence.from_triples(triples, grid, label)


def what_is_scored(store: TripleStore, config: TrainConfig) -> str:
    """Return a sentence for the log on the part of the held-out pictures that validation scores."""
    if not len(store):
        return "there are no validation pictures"
    window = training_window(config)
    if window is None:
        sizes = [grid.size for grid in store.grids]
        shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, most often {sizes[0]}"
        return f"validation scores whole pictures ({shown})"
    return f"validation scores the window of {window.size} pixels at the centre of each picture"


def is_due(every: int, now: int, last: int) -> bool:
    """Return whether a multiple of ``every`` (0 for never) lies in the last ``last`` of ``now`` triples."""
    return every > 0 and now // every > (now - last) // every


def save_ema(trainer: Trainer, folder: RunFolder, *, replace: bool = True) -> None:
    """Write the EMA weights as the run folder's model; every process must call it.

    Args:
        trainer: whose weights they are.
        folder: of the run.
        replace: also where there are weights already.
    """
    model = gather_model(trainer.ema)
    if trainer.processes.first and (replace or not folder.weights.exists()):
        save_model(model, folder.path)


def validate(trainer: Trainer, held_out: TripleStore, folder: RunFolder, log: Log) -> None:
    """Score the EMA weights on the first held-out pictures; keep them in the run folder if they are the best so far."""
    trainer.check_finite()
    model = gather_model(trainer.ema)
    if not len(held_out):
        save_ema(trainer, folder)
        return
    scores = score(model, held_out, trainer.config.eval_images, trainer.processes, training_window(trainer.config))
    if scores["bytes_per_image"] < trainer.progress.best or not folder.weights.exists():
        trainer.progress.best = scores["bytes_per_image"]
        save_ema(trainer, folder)
    trainer.processes.wait()
    log.scores("validation", scores)


def score_kept(trainer: Trainer, held_out: TripleStore, folder: RunFolder, log: Log) -> dict[str, Any]:
    """Score the weights that were kept on all held-out pictures."""
    if not len(held_out):
        return {}
    kept = load_model(folder.path, trainer.device)
    scores = score(kept, held_out, None, trainer.processes, training_window(trainer.config))
    log.scores("final", scores)
    return scores


def score(
    model: DCTransformer, store: TripleStore, limit: int | None, processes: Processes, window: Grid | None = None
) -> dict[str, Any]:
    """Count the exact bits of the first ``limit`` pictures (None for all); each process scores its share.

    Args:
        model: in eval mode.
        store: the pictures.
        limit: how many are scored.
        processes: that share the work.
        window: the grid of the window that is scored at the centre of each; None for whole pictures.
    """
    images = len(store) if limit is None else min(limit, len(store))
    bits = torch.zeros(images, len(order.BANDS) + 1, len(FIELDS), dtype=torch.float64)
    triples = torch.zeros(images, len(order.BANDS) + 1, dtype=torch.int64)
    huffman, pixels = torch.zeros(images, dtype=torch.float64), torch.zeros(images, dtype=torch.int64)
    share = range(processes.rank, images, processes.count)
    if share:
        part = code_lengths(model, validation_sequences(store, model.config, share, window))
        rows = slice(share.start, None, share.step)
        bits[rows], triples[rows], pixels[rows] = part.bits, part.triples, part.pixels
        huffman[rows] = torch.tensor([huffman_bytes(store, i, window) for i in share], dtype=torch.float64)
    bits, triples, pixels = (processes.all_reduce(sums) for sums in (bits, triples, pixels))
    summary = CodeLengths(bits, triples, pixels).summary()
    return {
        "bytes_per_image": summary["bytes_per_image"],
        "huffman_bytes_per_image": float(processes.all_reduce(huffman).mean()),
        **summary["bits_per_triple_by_field"],
        **{"structure": 0.0, "texture": 0.0, **bits_per_triple(bits.sum(0), triples.sum(0).tolist())},
        "bits_per_triple": summary["bits_per_triple"],
        "bits_per_pixel": summary["bits_per_pixel"],
        "images": summary["images"],
    }


def draw_sheet(trainer: Trainer, folder: RunFolder, log: Log) -> None:
    """Draw 16 samples of the EMA weights into the run folder, of different classes, always with the same seed.

    They are of the model's own distribution, which is what the loss measures: sharper settings hide the errors whose
    decrease is the progress, and guidance magnifies the noise of an effect of labels that is hardly learnt yet.
    """
    from dctransformer.sampling.config import SampleConfig
    from dctransformer.sampling.engine import sample
    from dctransformer.sheets import contact_sheet

    model = gather_model(trainer.ema)
    if trainer.processes.first:
        classes = model.config.num_labels
        labels = [7 * i % classes for i in range(16)] if classes else None
        result = sample(model, 16, SampleConfig(seed=0), labels=labels, size=model.config.trained_shape)
        sheet = contact_sheet(result.pixels(), columns=4)
        with atomic_write(folder.sheet(trainer.progress.step)) as path:
            sheet.save(path, format="PNG")
        log.sheet(torch.from_numpy(np.array(sheet.convert("RGB"))))
    trainer.processes.wait()
