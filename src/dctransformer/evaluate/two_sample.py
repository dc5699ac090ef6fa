"""Classifier two-sample test (Lopez-Paz and Oquab, 2017): how often is a generated picture recognised as such?

A classifier is trained on pictures of two sets, in equal numbers, and its accuracy is measured on other pictures of
them. 0.5 is chance: the sets can't be distinguished. The same test of real pictures against other real ones shows what
chance looks like at this number of pictures. No feature extractor is needed. The classifier's input is one of:

- ``dc``: the planes of the DC coefficients;
- ``dc, 1-3``: those of the bands DC and 1–3, and the picture that they make, at half its size;
- ``all``: the planes of all coefficients;
- ``pixels``: the whole picture, averaged down to at most 64 pixels, and, if it is larger, its centre at full size.

The classifier is a kernel ridge regression (Gaussian kernel) on scattering coefficients (`scattering`). With a
thousand pictures on each side it recognises more than a small convolutional network, in a fraction of the time, and
gives the same result each time. Strength of the ridge: by leave-one-out error within the training part.

Shapes: n pictures on each side, D features, h × w luma blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import Codec, DCTImage
from dctransformer.evaluate.pictures import Reference
from dctransformer.evaluate.scattering import scattering

VIEWS = ("dc", "dc, 1-3", "all", "pixels")

FEWEST = 64
"""Fewer pictures than these on a side are not tested: the standard error would be larger than most differences."""

SEEDS = 3
"""Splits into training and test part; their test parts, a quarter of the pictures each, are disjoint."""

RIDGES = (0.03, 0.2)
"""Strengths of the ridge that are tried."""

_BLOCKS, _SIDE = 16, 64
"""Extent of the planes in blocks, and of the views in pixels."""

_STRUCTURE = 4
"""Frequencies of DC and of band 1–3."""

_BATCH = 32


def recognition(real: Tensor, generated: Tensor) -> dict[str, Any]:
    """Train and test a classifier on each of three splits.

    Args:
        real: features of one set, fp32 ``[n, D]``.
        generated: of the other, as many.

    Returns:
        JSON-ready: ``accuracy`` (balanced, the mean of the splits), ``standard_error`` of it (binomial, of the pictures
        tested), ``seeds`` (the accuracy of each split) and ``pictures`` n.

    Raises:
        ValueError: the sets differ in size or hold fewer than `FEWEST` pictures.
    """
    count = len(real)
    if len(generated) != count or count < FEWEST:
        raise ValueError(
            f"give two sets of equal size, of at least {FEWEST} pictures, not {count} and {len(generated)}"
        )
    part = torch.arange(count)[torch.randperm(count, generator=torch.Generator().manual_seed(0)).argsort()] % 4
    part, is_real = part.repeat(2), torch.arange(2 * count) < count
    features = torch.cat([real, generated]).float()
    right = [_recognised(features, is_real, part == seed) for seed in range(SEEDS)]
    tested = [is_real[part == seed] for seed in range(SEEDS)]
    by_class = [
        [float(r[t == side].double().mean()) for side in (True, False)] for r, t in zip(right, tested, strict=True)
    ]
    rates = [sum(one[side] for one in by_class) / SEEDS for side in (0, 1)]
    tests = sum(int(t.sum()) for t in tested)
    return {
        "accuracy": sum(rates) / 2,
        "standard_error": math.sqrt(sum(rate * (1 - rate) / tests for rate in rates)) / 2,
        "seeds": [sum(one) / 2 for one in by_class],
        "pictures": count,
    }


def _recognised(features: Tensor, is_real: Tensor, test: Tensor) -> Tensor:
    """Train a classifier on all but the test part; returns whether it is right for each picture of that part: bool."""
    training = features[~test]
    mean, scale = training.mean(0), training.std(0) + 1e-6
    training, tested = (training - mean) / scale, (features[test] - mean) / scale
    target = is_real[~test].float() * 2 - 1
    kernel = _kernel(training, training)
    best, best_weights = math.inf, torch.zeros(0)
    for ridge in RIDGES:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + ridge * torch.eye(len(kernel))))
        weights = inverse @ target
        # Leave-one-out residuals of a ridge regression, in closed form.
        error = float((weights / inverse.diagonal()).square().mean())
        if error < best:
            best, best_weights = error, weights
    return (_kernel(tested, training) @ best_weights > 0) == is_real[test]


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return torch.exp(-squares / (4 * a.shape[1]))


def describe(pictures: DCTImage, codec: Codec) -> dict[str, Tensor]:
    """Return the features of pictures in each of the `VIEWS`.

    Args:
        pictures: any number, at 4:2:0.
        codec: of the pictures' quality.

    Returns:
        By view, fp32 ``[n, D]``.
    """
    parts = [_views(pictures[start : start + _BATCH], codec) for start in range(0, len(pictures), _BATCH)]
    found = {name: torch.cat([part[name] for part in parts]) for name in VIEWS}
    return {name: features.sign() * features.abs().sqrt() for name, features in found.items()}


def _views(batch: DCTImage, codec: Codec) -> dict[str, Tensor]:
    planes = _planes(batch)
    low = scattering(planes[:, : 3 * _STRUCTURE])
    parts = [part.clone() for part in batch.components]
    for part in parts:
        part[..., _STRUCTURE:] = 0
    soft = dataclasses.replace(batch, **dict(zip(("luma", "cb", "cr"), parts, strict=True)))
    pixels, structure = (_colours(codec.decode(image)) for image in (batch, soft))
    found = {
        "dc": scattering(planes[:, :3]),
        "dc, 1-3": torch.cat([low, scattering(_fitting(F.avg_pool2d(structure, 2), _SIDE // 2))], 1),
        "all": torch.cat([low, scattering(planes[:, 3 * _STRUCTURE :], cells=2, second=0)], 1),
        "pixels": scattering(_fitting(pixels, _SIDE)),
    }
    if max(pixels.shape[2:]) > _SIDE:
        found["pixels"] = torch.cat([found["pixels"], scattering(_centre(pixels, _SIDE))], 1)
    return found


def _planes(batch: DCTImage) -> Tensor:
    """Return the coefficients in units of a typical magnitude: fp32 ``[n, 192, h, w]`` by frequency, then Y, Cr, Cb.

    Chroma is repeated to luma's blocks; of many blocks the middle ones are taken.
    """
    luma, cb, cr = (part.permute(0, 3, 1, 2).float() for part in batch.components)
    chroma = [F.interpolate(part, luma.shape[2:]) for part in (cr, cb)]
    planes = torch.stack([luma, *chroma], 2).flatten(1, 2)
    # DC steps are a hundredth of the range or so, and high frequencies hardly ever more than one step.
    planes[:, :3] /= 8
    return _centre(planes, _BLOCKS)


def _colours(pixels: Tensor) -> Tensor:
    """Return the brightness and two differences of colours: fp32 ``[n, 3, H, W]`` of uint8 ``[n, H, W, 3]``."""
    red, green, blue = pixels.float().unbind(3)
    return torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], 1) / 255


def _centre(planes: Tensor, side: int) -> Tensor:
    top, left = (max(0, (size - side) // 2) for size in planes.shape[2:])
    return planes[:, :, top : top + side, left : left + side]


def _fitting(planes: Tensor, side: int) -> Tensor:
    """Average planes down to at most ``side`` on both sides."""
    step = -(-max(planes.shape[2:]) // side)
    return F.avg_pool2d(planes, step, ceil_mode=True) if step > 1 else planes


def two_sample_test(
    reference: Reference,
    generated: DCTImage | Tensor,
    most: int = 1000,
    *,
    progress: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Test generated against real pictures, and real against other real ones, in all `VIEWS`.

    Args:
        reference: the real pictures, after the codec.
        generated: coefficients, or pixels uint8 ``[n, H, W, 3]``. Pixels are encoded by the reference's codec, and then
            real pictures are decoded and encoded again, too, so that this makes no difference.
        most: the most pictures on a side.
        progress: called with a description of each step.

    Returns:
        JSON-ready: ``chance`` 0.5, ``skipped`` (why there is no result, "" if there is one), and ``views``: by view
        ``generated`` and ``real``, each as `recognition` has it; ``real`` is None with too few real pictures.
    """
    count = min(most, len(generated), len(reference))
    if count < FEWEST:
        few = f"{len(generated):,} generated and {len(reference):,} real pictures"
        return {"chance": 0.5, "skipped": f"there are only {few}; it needs {FEWEST} on each side", "views": {}}
    codec = Codec(reference.store.info.quality)
    report = progress or (lambda _what: None)
    report("features of the generated pictures")
    again = not isinstance(generated, DCTImage)
    coded = generated if isinstance(generated, DCTImage) else codec.encode(generated)
    drawn = describe(coded[:count], codec)
    report("features of the real pictures")
    known = _real(reference, min(2 * count, len(reference)), codec, again)
    half = min(count, len(next(iter(known.values()))) // 2)
    views: dict[str, Any] = {}
    for name in VIEWS:
        report(name)
        real = known[name]
        views[name] = {
            "generated": recognition(real[:count], drawn[name]),
            "real": recognition(real[:half], real[half : 2 * half]) if half >= FEWEST else None,
        }
    return {"chance": 0.5, "skipped": "", "views": views}


def _real(reference: Reference, number: int, codec: Codec, again: bool) -> dict[str, Tensor]:
    """Return the features of the first real pictures, of a few at a time."""
    parts = []
    for start in range(0, number, _BATCH):
        batch = reference.dct(start, min(start + _BATCH, number))
        parts.append(describe(codec.encode(codec.decode(batch)) if again else batch, codec))
    return {name: torch.cat([part[name] for part in parts]) for name in VIEWS}
