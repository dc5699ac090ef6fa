"""What a training starts with: a network for a data set, and its batches."""

from __future__ import annotations

import dataclasses

import torch

from dctransformer.data.info import DatasetInfo
from dctransformer.data.store import TripleStore
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.batches import ChunkBatches
from dctransformer.training.config import TrainConfig


def shape_for(data: DatasetInfo, shape: ModelConfig, config: TrainConfig) -> ModelConfig:
    """The shape with the quality, size and labels of a data set, and the conditions that are trained on."""
    names = tuple(data.labels)
    return dataclasses.replace(
        shape, quality=data.quality, size=data.size, num_labels=len(names), label_names=names,
        conditions=config.conditions.names(),
    )  # fmt: skip


def new_model(shape: ModelConfig, seed: int) -> DCTransformer:
    """A model with random weights that the seed decides."""
    torch.manual_seed(seed)
    return DCTransformer(shape)


class Steps(ChunkBatches):
    """The batches of a training: `ChunkBatches` as a model and the loop's settings ask for them."""

    def __init__(self, store: TripleStore, model: ModelConfig, config: TrainConfig, rows: range | None = None):
        """Args: rows: those of each batch that are made (a process's share); None for all."""
        super().__init__(
            store, model.chunk, model.overlap, config.batch, seed=config.seed, num_labels=model.num_labels,
            flip=config.flip, label_dropout=config.label_dropout, conditions=config.conditions, rows=rows,
            shuffle=config.shuffle, starts=config.starts,
        )  # fmt: skip
