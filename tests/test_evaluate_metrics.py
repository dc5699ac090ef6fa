"""Tests of distances, precision and recall against torch-fidelity and plain NumPy on fixed features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dctransformer.evaluate.cache import extract
from dctransformer.evaluate.features import Extractor
from dctransformer.evaluate.metrics import Moments, frechet_distance, kernel_distance, precision_recall
from dctransformer.evaluate.nearest import memorisation, nearest
from dctransformer.evaluate.pictures import Pictures
from torch_fidelity_metrics import metric_module

_RNG = np.random.default_rng(0)
REAL = _RNG.normal(size=(60, 8))
GENERATED = 0.8 * _RNG.normal(size=(50, 8)) + 0.3

# Figures of torch-fidelity 0.4.0 (kernel distance: 10 subsets of 20, seed 3), used if it is not installed.
FRECHET, PRECISION, RECALL, KERNEL, KERNEL_SPREAD = 1.9311376573037489, 0.94, 32 / 60, 0.3543871270461317, 0.19661222747

REAL_T, GENERATED_T = torch.from_numpy(REAL), torch.from_numpy(GENERATED)


def numpy_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance by its definition, with the eigenvalues of the (non-symmetric) product."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * root)


def numpy_coverage(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    """Fraction of points within some centre's distance to its k-th nearest neighbour, computed one by one."""
    hits = 0
    for point in points:
        hits += any(
            np.linalg.norm(point - centre) <= sorted(np.linalg.norm(centres - centre, axis=1))[k] for centre in centres
        )
    return hits / len(points)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two sets of features."""
    return frechet_distance(Moments.of(a), Moments.of(b))


def test_frechet_distance_is_torch_fidelitys() -> None:
    """It equals the recorded figure, the NumPy formula and torch-fidelity."""
    distance = frechet(REAL_T, GENERATED_T)
    assert distance == pytest.approx(FRECHET, rel=1e-9)
    assert distance == pytest.approx(numpy_frechet(REAL, GENERATED), rel=1e-9)
    reference = metric_module("metric_fid")
    statistics = [reference.fid_features_to_statistics(t) for t in (REAL_T, GENERATED_T)]
    assert distance == pytest.approx(
        reference.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    )


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal covariances have a closed form; equal sets are at distance 0; it is symmetric."""
    mean, s1, s2 = torch.tensor([1.0, -2, 0]), torch.tensor([4.0, 1, 0]), torch.tensor([1.0, 9, 0.25])
    a = Moments(torch.zeros(3).double(), s1.double().diag(), 9)
    b = Moments(mean.double(), s2.double().diag(), 9)
    expected = float((mean**2).sum() + ((s1.sqrt() - s2.sqrt()) ** 2).sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)
    assert frechet(REAL_T, REAL_T) == pytest.approx(0, abs=1e-9)
    assert frechet(REAL_T, GENERATED_T) == pytest.approx(frechet(GENERATED_T, REAL_T), rel=1e-9)


def test_frechet_distance_with_singular_covariances() -> None:
    """With fewer rows than features it is real, and given by the singular values of the cross product."""
    a, b = REAL_T[:5], GENERATED_T[:4]
    c1, c2 = a - a.mean(0), b - b.mean(0)
    root = torch.linalg.svdvals(c1 @ c2.T).sum() / np.sqrt(4 * 3)
    trace = (c1**2).sum() / 4 + (c2**2).sum() / 3
    expected = float(((a.mean(0) - b.mean(0)) ** 2).sum() + trace - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    """They equal the recorded figures, NumPy and torch-fidelity (where generated pictures come first)."""
    precision, recall = precision_recall(REAL_T, GENERATED_T)
    assert (precision, recall) == pytest.approx((PRECISION, RECALL))
    assert precision == pytest.approx(numpy_coverage(GENERATED, REAL, 3))
    assert recall == pytest.approx(numpy_coverage(REAL, GENERATED, 3))
    assert precision_recall(GENERATED_T, REAL_T) == (recall, precision)
    reference = metric_module("metric_prc")
    metrics = reference.prc_features_to_metric(GENERATED_T, REAL_T, verbose=False)
    assert (precision, recall) == pytest.approx((metrics["precision"], metrics["recall"]))


def test_precision_and_recall_are_not_swapped() -> None:
    """A few perfect pictures give precision; covering everything with some rubbish gives recall."""
    rng = np.random.default_rng(1)
    real = torch.from_numpy(rng.normal(size=(200, 2)))
    collapsed = real[:1] + 0.01 * torch.from_numpy(rng.normal(size=(200, 2)))
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.95 and recall < 0.1
    everything = torch.cat([real + 0.01, torch.from_numpy(rng.uniform(30, 300, size=(200, 2)))])
    precision, recall = precision_recall(real, everything)
    assert precision == pytest.approx(0.5, abs=0.05) and recall == 1


def test_kernel_distance_is_torch_fidelitys() -> None:
    """It equals the recorded figures, torch-fidelity with the same seed, and NumPy on whole sets."""
    distance = kernel_distance(REAL_T, GENERATED_T, subsets=10, subset_size=20, seed=3)
    assert distance == pytest.approx((KERNEL, KERNEL_SPREAD), rel=1e-9)
    x, y = GENERATED, REAL[:50]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 8 + 1) ** 3

    off = ~np.eye(50, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    whole, spread = kernel_distance(torch.from_numpy(y), torch.from_numpy(x), subsets=2, subset_size=50)
    assert whole == pytest.approx(expected, rel=1e-9) and spread == pytest.approx(0, abs=1e-9)
    reference = metric_module("metric_kid").kid_features_to_metric(
        GENERATED_T, REAL_T, kid_subsets=10, kid_subset_size=20, rng_seed=3, verbose=False
    )
    assert distance == pytest.approx(tuple(reference.values()), rel=1e-9)


def test_too_few_rows_are_refused() -> None:
    """Too few rows are refused with a sentence."""
    with pytest.raises(ValueError, match="at least 2 pictures"):
        Moments.of(REAL_T[:1])
    with pytest.raises(ValueError, match="more than 3 pictures"):
        precision_recall(REAL_T, GENERATED_T[:3])
    for size in (1, 51):
        with pytest.raises(ValueError, match=f"subsets of {size}"):
            kernel_distance(REAL_T, GENERATED_T, subset_size=size)


def test_moments_of_batches_are_those_of_the_whole() -> None:
    """Moments accumulated by batch are accurate even far from 0; NaN is refused."""
    rows = torch.from_numpy(REAL).float() + 1000
    pictures = Pictures("numbers", 60, lambda a, b: torch.arange(a, b, dtype=torch.uint8))
    extractor = Extractor("rows", "", "", lambda x: (rows[x.long()], rows[x.long()]), batch=7)
    features = extract(extractor, pictures)
    assert torch.equal(features.features, rows) and features.spatial is not None
    whole = Moments.of(rows)
    torch.testing.assert_close(features.spatial.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(features.spatial.covariance, whole.covariance, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(whole.covariance.numpy(), np.cov(rows.double().numpy(), rowvar=False), rtol=1e-6)
    rows[33] = torch.nan
    with pytest.raises(ValueError, match="rows gives NaN"):
        extract(extractor, pictures)


def test_copies_are_noticed() -> None:
    """Copies of training pictures are closer to them than new pictures."""
    training = torch.from_numpy(REAL).float()
    new = torch.from_numpy(np.random.default_rng(2).normal(size=(100, 8))).float()
    held_out = nearest(new, training)
    brute = np.linalg.norm(new.numpy()[:, None] - REAL[None], axis=2)
    assert np.array_equal(held_out.index[:, 0].numpy(), brute.argmin(1))
    np.testing.assert_allclose(held_out.distance.numpy(), np.sort(brute, 1)[:, :3], rtol=1e-5)
    copies = nearest(training[::2] + 1e-3, training)
    assert copies.index[:, 0].tolist() == list(range(0, 60, 2))
    figures = memorisation(copies, held_out)
    assert figures["suspicious"] == 1 and figures["generated_median"] < 0.1 * figures["held_out_median"]
    assert memorisation(held_out, held_out)["suspicious"] <= 0.02
