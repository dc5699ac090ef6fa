"""What a model reads: sequences of triples, chunks of them, conditions and the batches of a training."""

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
