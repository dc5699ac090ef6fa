"""Distances and overlaps of two sets of features: the formulas, and nothing else.

Arrays of features are fp32 or fp64 ``[n, D]``, a row per picture. ``real`` always comes before ``generated``.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

NEIGHBOUR = 3
"""Which nearest neighbour gives the radius in precision and recall (the paper's k)."""

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Number and size of the subsets that torch-fidelity draws by default."""

_ROWS = 1024
"""Rows of a distance matrix that are held at a time."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features, for the Fréchet distance.

    Attributes:
        mean: fp64 ``[D]``.
        covariance: fp64 ``[D, D]``, unbiased (divided by n − 1).
        count: n.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of features ``[n, D]``.

        Raises:
            ValueError: there are fewer than two rows.
        """
        if len(features) < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, not {len(features)}; give more")
        x = features.double()
        mean = x.mean(0)
        x = x - mean
        return cls(mean, x.T @ x / (len(x) - 1), len(x))


def frechet_distance(real: Moments, generated: Moments) -> float:
    """Return the squared Fréchet distance of the Gaussians with these moments (Heusel et al. 2017, equation 6).

    ``|m1 − m2|² + tr(C1 + C2 − 2 (C1 C2)^½)``. The trace of the root is the sum of the roots of the eigenvalues of
    ``C1 C2``, which are those of the symmetric ``R C2 R`` with ``R = C1^½``: symmetric problems stay real and precise
    also where a covariance is singular.

    Args:
        real: moments of one set.
        generated: moments of the other; the order does not matter.

    Returns:
        The distance, at least 0 up to rounding.
    """
    values, vectors = torch.linalg.eigh(real.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ generated.covariance @ root)
    apart = (real.mean - generated.mean).square().sum()
    return float(apart + real.covariance.trace() + generated.covariance.trace() - 2 * product.clamp(min=0).sqrt().sum())


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distances fp64 ``[len(a), len(b)]``.

    They are computed in fp64: the difference of large squares of a matrix product in fp32 is too inexact to rank near
    neighbours.
    """
    return torch.cdist(a.double(), b.double())


def radii(features: Tensor, k: int = NEIGHBOUR) -> Tensor:
    """Return the distance of each row to its k-th nearest other row: fp64 ``[n]``.

    Raises:
        ValueError: there are not more than k rows.
    """
    if len(features) <= k:
        raise ValueError(f"precision and recall need more than {k} pictures on both sides, not {len(features)}")
    # The nearest of all rows is the row itself.
    return torch.cat([distances(part, features).kthvalue(k + 1).values for part in features.split(_ROWS)])


def coverage(points: Tensor, centres: Tensor, radius: Tensor) -> float:
    """Return the part of ``points`` that lie in at least one ball around a centre."""
    inside = [(distances(part, centres) <= radius).any(1) for part in points.split(_ROWS)]
    return float(torch.cat(inside).double().mean())


def precision_recall(real: Tensor, generated: Tensor, k: int = NEIGHBOUR) -> tuple[float, float]:
    """Return the improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    Precision: the part of the *generated* pictures that lie in a ball around a real one (are they realistic?).
    Recall: the part of the *real* pictures that lie in a ball around a generated one (is everything covered?).
    Exchanging the arguments exchanges the two figures, a mistake that several tools have made.

    Args:
        real: ``[n, D]``.
        generated: ``[m, D]``.
        k: a ball reaches to the k-th nearest neighbour in its own set.

    Returns:
        (precision, recall), each from 0 to 1.

    Raises:
        ValueError: a set has no more than k rows.
    """
    return coverage(generated, real, radii(real, k)), coverage(real, generated, radii(generated, k))


def kernel_distance(
    real: Tensor, generated: Tensor, *, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance: unbiased MMD² with the kernel ``(x·y / D + 1)³`` (Bińkowski et al. 2018, section 4).

    It is the mean over random subsets of both sets, as the paper and torch-fidelity have it. The expectation does not
    depend on the subsets' size, so sets of different size compare, unlike with the Fréchet distance.

    Args:
        real: ``[n, D]``.
        generated: ``[m, D]``.
        subsets: how many to draw.
        subset_size: rows of each, without repetition; no more than n and m.
        seed: of the draw.

    Returns:
        Mean and standard deviation over the subsets. The mean of equal distributions scatters around 0.

    Raises:
        ValueError: a set is smaller than the subsets, or these have fewer than 2 rows.
    """
    smallest = min(len(real), len(generated))
    if not 2 <= subset_size <= smallest:
        raise ValueError(
            f"the kernel distance draws subsets of {subset_size} pictures, but there are {smallest}; "
            "give more pictures, or smaller subsets of at least 2"
        )
    rng = np.random.RandomState(seed)  # torch-fidelity's generator, so that the same seed draws the same subsets
    estimates = []
    for _ in range(subsets):
        x = generated[torch.from_numpy(rng.choice(len(generated), subset_size, replace=False))]
        y = real[torch.from_numpy(rng.choice(len(real), subset_size, replace=False))]
        estimates.append(_unbiased_mmd2(x.double(), y.double()))
    return float(np.mean(estimates)), float(np.std(estimates))


def _unbiased_mmd2(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_diagonal(square: Tensor) -> Tensor:
        return (square.sum() - square.trace()) / (len(square) * (len(square) - 1))

    return float(without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())
