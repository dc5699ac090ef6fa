"""The setup of a training: a network for a data set, and its batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.data.store import TripleStore
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.batches import ChunkBatches
from dctransformer.sequence.windows import parse_window, window_grids
from dctransformer.training.config import TrainConfig


def shape_for(store: TripleStore, shape: ModelConfig, config: TrainConfig) -> ModelConfig:
    """Complete a shape by the quality, sizes and labels of the training pictures, and the conditions of the training.

    Raises:
        ValueError: the window is larger than every picture, or pictures are larger than the model's position tables.
    """
    sides, counts = np.unique(window_grids(store, training_window(config)), axis=0, return_counts=True)
    height, width = (int(side) * order.MCU for side in sides[counts.argmax()])
    extent = tuple(int(side) * order.MCU for side in sides.max(0))
    largest = shape.max_grid * order.BLOCK
    if max(extent) > largest:
        raise ValueError(
            f"the pictures have sides of up to {max(extent)} pixels, and this model can have {largest}; "
            "train on windows (--window), or give a larger --model.max-grid"
        )
    if config.offsets:
        extent = (shape.max_grid // 2 * order.MCU,) * 2
    names = tuple(store.info.labels)
    return dataclasses.replace(
        shape,
        quality=store.info.quality,
        size=min(height, width),
        shape=() if height == width else (height, width),
        extent=() if extent == (height, width) else extent,
        windows=config.window is not None,
        prepared="" if config.window is None else str(store.info.target),
        num_labels=len(names),
        label_names=names,
        conditions=config.conditions.names(),
    )


def training_window(config: TrainConfig) -> Grid | None:
    """Return the grid of the windows to train on; None for whole pictures."""
    return None if config.window is None else parse_window(config.window)


def new_model(shape: ModelConfig, seed: int) -> DCTransformer:
    """Return a model with random weights that the seed decides."""
    torch.manual_seed(seed)
    return DCTransformer(shape)


def freeze_structure(model: DCTransformer) -> None:
    """Exclude the structure's weights from training.

    Raises:
        ValueError: the model has no texture network.
    """
    if model.config.texture_rank == order.NUM_CHANNELS:
        raise ValueError("this model decides everything triple by triple and has no texture to train; train structure")
    model.requires_grad_(False)
    model.texture.requires_grad_(True)


def freeze_untrained(model: DCTransformer, config: TrainConfig) -> None:
    """Exclude from training what the settings leave out, structure or texture, as it gets no gradients.

    Raises:
        ValueError: only texture is to be trained, and the model has no texture network.
    """
    if not config.structure:
        freeze_structure(model)
    elif not config.texture and model.config.texture_rank < order.NUM_CHANNELS:
        model.texture.requires_grad_(False)


class Steps(ChunkBatches):
    """The batches of a training: `ChunkBatches` by the settings of a model and of the loop."""

    def __init__(self, store: TripleStore, model: ModelConfig, config: TrainConfig, rows: range | None = None):
        """Set up the batches; ``rows`` are those of each batch to build (a process's share), None for all."""
        super().__init__(
            store, model.chunk, model.overlap, config.batch, seed=config.seed, num_labels=model.num_labels,
            flip=config.flip, label_dropout=config.label_dropout, conditions=config.conditions, rows=rows,
            shuffle=config.shuffle, starts=config.starts, window=training_window(config),
            texture_from=model.texture_rank, texture=config.texture, texture_channels=config.texture_channels,
            structure=config.structure,
            positions=model.max_grid // 2 if config.offsets else 0,
        )  # fmt: skip
