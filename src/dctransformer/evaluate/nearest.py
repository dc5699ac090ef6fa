"""Test for memorisation: the nearest training pictures of generated ones, and of pictures that were held out."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dctransformer.evaluate.metrics import distances

_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The nearest training pictures of n others.

    Attributes:
        index: int64 ``[n, k]``, nearest first.
        distance: fp64 ``[n, k]``, in the extractor's feature space.
    """

    index: Tensor
    distance: Tensor


def nearest(features: Tensor, training: Tensor, k: int = 3) -> Nearest:
    """Find the nearest training pictures of each picture.

    Args:
        features: fp32 ``[n, D]``.
        training: fp32 ``[m, D]``.
        k: how many to find (no more than m).
    """
    found = [
        distances(part, training).topk(min(k, len(training)), largest=False, sorted=True)
        for part in features.split(_ROWS)
    ]
    return Nearest(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))


def memorisation(generated: Nearest, held_out: Nearest) -> dict[str, Any]:
    """Compare the distances of generated and of held-out real pictures to their nearest training pictures.

    A model that copies puts its pictures nearer than new real ones are. ``suspicious`` is the part of the generated
    pictures that lie nearer to a training picture than all but 1 % of the held-out ones: about 0.01 for a model that
    is as new as new photographs.
    """
    near, real = generated.distance[:, 0], held_out.distance[:, 0]
    limit = real.quantile(0.01)
    return {
        "generated_median": float(near.median()),
        "held_out_median": float(real.median()),
        "limit": float(limit),
        "suspicious": float((near < limit).double().mean()),
        "held_out": len(real),
    }
