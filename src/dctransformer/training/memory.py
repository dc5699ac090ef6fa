"""Memory: cutting a batch into micro-batches, and finding how large they may be.

The measurement of peaks has run on one GPU (`tests/test_gpu.py`, on an H200), with a batch that fits as a whole; a
smaller micro-batch has not been chosen on one, nor by several processes together. What decides from the peaks
(`largest_fitting`) is tested apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from dctransformer.sequence.chunks import ChunkBatch
from dctransformer.training.distributed import local_shard

if TYPE_CHECKING:
    from dctransformer.training.trainer import Trainer


PASS = 300
"""Cost of another pass through a model on a CPU, in padded triples."""


def split(batch: ChunkBatch, size: int | None) -> Iterator[ChunkBatch]:
    """Yield rows of a batch in groups of ``size`` (all at once for None)."""
    rows = len(batch.labels)
    if size is None or size >= rows:
        yield batch
        return
    for start in range(0, rows, size):
        yield batch.rows(slice(start, start + size))


def by_length(batch: ChunkBatch) -> list[ChunkBatch]:
    """Group the chunks of a batch by length where passes over less padding cost less than one pass over all.

    Chunks end where their pictures end and list only what is not given, so that about half of a batch is padding. The
    groups are those of the least cost: rows times longest row, and `PASS` for each.

    Returns:
        Batches that hold each row once, the longest chunks first, each padded to its own longest; the textures go with
        the last. (Gradients are summed, and with several processes exchanged in the last pass.)
    """
    order = batch.lengths.argsort(descending=True, stable=True)
    lengths = batch.lengths[order].numpy()
    rows = len(lengths)
    cost, cut = np.zeros(rows + 1), np.zeros(rows + 1, np.int64)
    for stop in range(1, rows + 1):
        start = np.arange(stop)
        costs = cost[:stop] + (stop - start) * lengths[:stop] + PASS
        cut[stop] = costs.argmin()
        cost[stop] = costs[cut[stop]]
    if cut[rows] == 0:
        return [batch]
    stops = [rows]
    while stops[-1]:
        stops.append(int(cut[stops[-1]]))
    parts = [batch.rows(order[start:stop]).trimmed() for start, stop in itertools.pairwise(reversed(stops))]
    parts[-1].texture = batch.texture
    return parts


def largest_micro_batch(trainer: Trainer, batch: ChunkBatch) -> int:
    """Return how many chunks the GPUs of all processes hold at once.

    Args:
        trainer: whose model and optimiser states take memory, too.
        batch: this process's rows of a batch like those to come.
    """
    free, _ = torch.cuda.mem_get_info(trainer.device)
    available = free + torch.cuda.memory_reserved(trainer.device)
    states = sum(2 * local_shard(p).nbytes for p in trainer.model.parameters() if not trainer.optimizer.began(p))
    limit = 0.9 * available - states  # a part is lost between blocks, and chunks differ
    limit = min(gathered[0] for gathered in trainer.processes.all_gather([limit]))
    return largest_fitting(lambda size: _peak(trainer, batch, size), limit, len(batch.labels))


def _peak(trainer: Trainer, batch: ChunkBatch, size: int) -> float:
    """Return the bytes at the peak of a pass over the first ``size`` rows (0 for none): the most of all processes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(trainer.device)
    try:
        if size:
            trainer.accumulate(next(split(batch, size)), 1, micro_batch=None)
    finally:
        peak = torch.cuda.max_memory_allocated(trainer.device)
        trainer.optimizer.zero_grad()
    return max(gathered[0] for gathered in trainer.processes.all_gather([peak]))


def too_large(trainer: Trainer, batch: ChunkBatch) -> str:
    """Return the error sentence for a micro-batch that does not fit, with a size that does."""
    trainer.optimizer.zero_grad()
    size = min(trainer.micro_batch or len(batch.labels), len(batch.labels))
    what = f"{size} chunks at once do not fit into the memory of {trainer.device}"
    if size == 1:
        return f"{what}; try --checkpoint-activations, a smaller preset or, on several GPUs, --parallel fsdp"
    if trainer.processes.count > 1 or trainer.device.type != "cuda":
        return f"{what}; give a smaller --micro-batch ({size // 2}, say)"
    return f"{what}; --micro-batch {largest_micro_batch(trainer, batch)} does"


def largest_fitting(peak: Callable[[int], float], limit: float, most: int) -> int:
    """Return the largest size whose peak memory stays under a limit, found by measuring growing sizes.

    Sizes double as long as the line through the last two peaks predicts that the double fits, so that none is tried
    that does not; the answer is where that line meets the limit.

    Args:
        peak: bytes at the peak of a pass over so many chunks; for 0 chunks, the memory in use without a pass.
        limit: bytes available.
        most: largest size that is of use.

    Returns:
        1 to ``most``.
    """
    size, last, before, here = 1, 0, peak(0), peak(1)
    while size < most:
        slope = max((here - before) / (size - last), 1.0)
        fits = min(int(size + max(limit - here, 0.0) / slope), most)
        if fits < min(2 * size, most):
            return fits
        size, last, before = min(2 * size, most), size, here
        here = peak(size)
    return size
