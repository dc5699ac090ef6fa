"""From pictures to sequences: preparing data sets, reading their triples, cutting chunks; knows the codec only."""

from dctransformer.data.batches import ChunkBatches, ChunkSampler
from dctransformer.data.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.data.conditions import Conditions
from dctransformer.data.dataset import DCTImageDataset, ToTriples, collate
from dctransformer.data.info import DatasetInfo
from dctransformer.data.prepare import prepare
from dctransformer.data.store import TripleStore

__all__ = [
    "ChunkBatch",
    "ChunkBatches",
    "ChunkSampler",
    "Conditions",
    "DCTImageDataset",
    "DatasetInfo",
    "Sequence",
    "ToTriples",
    "TripleStore",
    "collate",
    "cut_chunks",
    "prepare",
]
