"""Scores of generated pictures against the training pictures, before and after the codec."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from baselines.pictures import psnr
from baselines.systems import Data
from dctransformer.codec import Codec
from dctransformer.evaluate.cache import FeatureSet, cached, extract
from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.evaluate.evaluation import require_enough
from dctransformer.evaluate.features import Extractor, open_extractor
from dctransformer.evaluate.metrics import KID_SUBSET_SIZE, frechet_distance, kernel_distance, precision_recall
from dctransformer.evaluate.pictures import Pictures
from dctransformer.evaluate.two_sample import FEWEST, describe, recognition
from dctransformer.model.precision import resolve_device

C2ST = 1000
"""Maximum number of pictures in each class of the classifier two-sample test."""


class Judge:
    """Scores pictures against the training pictures, before and after the codec."""

    def __init__(
        self, data: Data, features: str, num: int, *, few: bool = False, device: str = "auto", cache: Path | None = None
    ):
        """Open the extractor and compute the features of the real pictures.

        Args:
            data: the real pictures.
            features: name or path of the feature extractor.
            num: number of pictures that will be scored.
            few: allow Fréchet distances from no more pictures than there are features.
            device: device of the extractor.
            cache: folder that caches the features of the real pictures; None for the user's cache folder.

        Raises:
            ValueError: there are too few pictures, or the extractor is not available.
        """
        self.extractor: Extractor = open_extractor(features, resolve_device(device))
        width = self.extractor(data.decoded[:1])[0].shape[1]
        config = EvaluateConfig(few=few)
        for metric in ("fid", "precision"):
            require_enough(self.extractor, metric, (width, None), num, len(data.train), config)
        self.enough = len(data.held_out) > (2 if few else width)
        """Whether there are enough held-out pictures for a Fréchet distance."""
        self.held_out = _pictures("held-out originals", data.held_out.pixels)
        self.real = {
            name: cached(self.extractor, _pictures(name, pixels), cache)
            for name, pixels in (("originals", data.train.pixels), ("round trip", data.decoded))
        }
        self.data, self.codec = data, Codec(data.train.info.quality)
        self.floor: FeatureSet | None = None

    def scores(self, pictures: Tensor) -> dict[str, dict[str, float]]:
        """Recall, precision, Fréchet and kernel distance of pictures uint8 ``[n, S, S, 3]``, by reference set."""
        generated, scores = extract(self.extractor, _pictures("generated", pictures)), {}
        for name, real in self.real.items():
            precision, recall = precision_recall(real.features, generated.features)
            subset = min(KID_SUBSET_SIZE, len(pictures), len(real))
            kernel, _ = kernel_distance(real.features, generated.features, subset_size=subset)
            distance = frechet_distance(real.moments, generated.moments)
            scores[name] = {"recall": recall, "precision": precision, "frechet": distance, "kernel": kernel}
        return scores

    @functools.cached_property
    def real_views(self) -> dict[str, Tensor]:
        """The first training pictures as the classifier two-sample test reads them, by view."""
        return self._described(self.data.decoded[: 2 * C2ST])

    def _described(self, decoded: Tensor) -> dict[str, Tensor]:
        return describe(self.codec.encode(decoded), self.codec)

    def two_sample_test(self, pictures: Tensor, is_decoded: bool) -> dict[str, Any] | None:
        """Classifier two-sample test: accuracy of telling generated from real pictures, by view.

        All pictures, real ones included, are passed through the codec, so that its artefacts give nothing away.

        Args:
            pictures: uint8 ``[n, S, S, 3]``.
            is_decoded: whether the pictures have been through the codec already.

        Returns:
            Results by view, or None if there are too few pictures.
        """
        count = min(C2ST, len(pictures), len(self.data.decoded) // 2)
        if count < FEWEST:
            return None
        pictures = pictures[:count]
        views = self._described(pictures if is_decoded else self.codec.decode(self.codec.encode(pictures)))
        return {view: recognition(real[:count], views[view]) for view, real in self.real_views.items()}

    def real_from_real(self) -> dict[str, Any] | None:
        """The chance level of the classifier two-sample test: real pictures against other real pictures."""
        count = min(C2ST, len(self.data.decoded) // 2)
        if count < FEWEST:
            return None
        return {view: recognition(real[:count], real[count : 2 * count]) for view, real in self.real_views.items()}

    def floors(self, pictures: Tensor) -> dict[str, Any]:
        """Reconstruction error of a representation: distance of reconstructed held-out pictures from the originals.

        Args:
            pictures: the reconstructed held-out pictures, uint8 ``[n, S, S, 3]``.

        Returns:
            ``floor_psnr`` in dB (None if exact) and ``floor_frechet`` (None if there are too few held-out pictures).
        """
        error = psnr(pictures, self.held_out.read(0, len(pictures)))
        distance = None
        if self.enough:
            self.floor = self.floor or extract(self.extractor, self.held_out)
            reconstructed = extract(self.extractor, _pictures("reconstructed", pictures))
            distance = frechet_distance(self.floor.moments, reconstructed.moments)
        return {"floor_psnr": error if math.isfinite(error) else None, "floor_frechet": distance}


def _pictures(name: str, pixels: Tensor) -> Pictures:
    return Pictures(name, len(pixels), lambda a, b: pixels[a:b])
