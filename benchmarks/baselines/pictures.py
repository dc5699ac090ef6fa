"""Pictures of a prepared data set as pixels, and batches for networks that read pixels or tokens.

Shapes: B pictures in a batch, S side in pixels, L predicted tokens or pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.data.images import load_image
from dctransformer.data.info import DatasetInfo, shard_paths
from dctransformer.sequence.sampler import Visits
from dctransformer.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class PictureStore:
    """Decoded pictures of a split, held in memory.

    Attributes:
        info: settings of the data set.
        pixels: uint8 ``[n, S, S, 3]``, the JPEG files as decoded by libjpeg.
        labels: class indices, int64 ``[n]``; the null label, ``len(info.labels)``, for pictures without a class.
    """

    info: DatasetInfo
    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of pictures n."""
        return len(self.labels)

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> PictureStore:
        """Decode a split of a prepared data set.

        Raises:
            ValueError: the folder is not a prepared data set, the split is empty, or a shard is damaged.
        """
        info = DatasetInfo.load(folder)
        pixels: list[np.ndarray] = []
        labels: list[int] = []
        for shard in shard_paths(folder, split):
            try:
                table = pq.read_table(shard, columns=["image", "label"] if info.labels else ["image"])
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"{shard} is damaged ({error}); prepare the data again into a new folder") from error
            pixels += [np.asarray(load_image(image["bytes"])) for image in table["image"].to_pylist()]
            shard_labels = table["label"].to_pylist() if info.labels else [None] * len(table)
            labels += [len(info.labels) if label is None else label for label in shard_labels]
        if not pixels:
            raise ValueError(
                f"{folder} has no {split} pictures; prepare a larger folder or another share with --val-fraction"
            )
        return cls(info, torch.from_numpy(np.stack(pixels)), torch.tensor(labels))


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of inputs with the interface that `dctransformer.training.trainer.Trainer` requires.

    Attributes:
        inputs: tokens or pictures, ``[B, ...]``.
        labels: int64 ``[B]``.
        predicted: bool ``[B, L]``, the predictions that the mean loss is taken over.
    """

    inputs: Tensor
    labels: Tensor
    predicted: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to another device."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.inputs, self.labels, self.predicted)))

    def rows(self, index: Tensor | slice) -> Batch:
        """Select rows of the batch."""
        return Batch(self.inputs[index], self.labels[index], self.predicted[index])


def flat_batch(inputs: Tensor, labels: Tensor, predictions: int | None = None) -> Batch:
    """Create a batch in which everything is predicted: ``predictions`` per row, one per input if None."""
    count = inputs[0].numel() if predictions is None else predictions
    return Batch(inputs, labels, torch.ones(len(labels), count, dtype=torch.bool))


class PictureSteps:
    """Training batches indexed by step number: batch k depends on (seed, k) alone.

    Flips and label dropout use the same random numbers as `dctransformer.training.setup.Steps`.
    """

    def __init__(self, store: PictureStore, config: TrainConfig, convert: Callable[[Tensor, Tensor], Batch]):
        """Set up the sampling of pictures.

        Args:
            store: the training pictures.
            config: settings, of which batch, seed, flip and label dropout are read.
            convert: turns pictures and labels into a batch.
        """
        self.store, self.config, self.convert = store, config, convert
        self.visits = Visits(len(store), config.batch, config.seed, 1)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        c = self.config
        chosen = torch.from_numpy(self.visits(step))
        flip, drop = np.random.default_rng([c.seed, 2, step]).random((c.batch, 2)).T
        pictures, labels = self.store.pixels[chosen], self.store.labels[chosen].clone()
        if c.flip:
            mirrored = torch.from_numpy(flip < 0.5)
            pictures[mirrored] = pictures[mirrored].flip(2)
        labels[torch.from_numpy(drop < c.label_dropout)] = len(self.store.info.labels)
        return self.convert(pictures, labels)


def shrink(pictures: Tensor, side: int) -> Tensor:
    """Downsample by box averaging: uint8 ``[B, S, S, 3]`` to ``[B, side, side, 3]``; ``side`` must divide S."""
    if pictures.shape[1] == side:
        return pictures
    boxes = F.avg_pool2d(pictures.permute(0, 3, 1, 2).float(), pictures.shape[1] // side)
    return boxes.round().to(torch.uint8).permute(0, 2, 3, 1)


def enlarge(pictures: Tensor, side: int) -> Tensor:
    """Upsample bicubically: uint8 ``[B, s, s, 3]`` to ``[B, side, side, 3]``."""
    if pictures.shape[1] == side:
        return pictures
    large = F.interpolate(pictures.permute(0, 3, 1, 2).float(), (side, side), mode="bicubic", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def psnr(pictures: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, averaged over pictures uint8 ``[n, S, S, 3]``; infinite if one is exact."""
    error = (pictures.double() - reference.double()).square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / error)).mean())
