"""The input of a model: sequences of triples, chunks of them, conditions and the batches of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dctransformer import lazy_names

if TYPE_CHECKING:
    from dctransformer.sequence.batches import ChunkBatches
    from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
    from dctransformer.sequence.conditions import Conditions
    from dctransformer.sequence.dataset import DCTImageDataset, ToTriples, by_grid, collate
    from dctransformer.sequence.sampler import ChunkSampler

__all__ = [
    "ChunkBatch",
    "ChunkBatches",
    "ChunkSampler",
    "Conditions",
    "DCTImageDataset",
    "Sequence",
    "ToTriples",
    "by_grid",
    "collate",
    "cut_chunks",
]

__getattr__ = lazy_names(
    __name__,
    {
        "batches": ["ChunkBatches"],
        "chunks": ["ChunkBatch", "Sequence", "cut_chunks"],
        "conditions": ["Conditions"],
        "dataset": ["DCTImageDataset", "ToTriples", "by_grid", "collate"],
        "sampler": ["ChunkSampler"],
    },
)
