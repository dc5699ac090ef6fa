"""Features of a set of pictures, and those of real pictures kept between evaluations.

A cached file is named after the extractor and a hash of every pixel; inside stands the extractor's fingerprint.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from dctransformer.evaluate.features import Extractor
from dctransformer.evaluate.metrics import Moments
from dctransformer.evaluate.pictures import Pictures
from dctransformer.files import write_tensors

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of n pictures.

    Attributes:
        features: fp32 ``[n, D]``.
        spatial: moments of the spatial features, or None if the extractor has none.
        digest: hash of the pictures, "" if it was not taken.
    """

    features: Tensor
    spatial: Moments | None
    digest: str = ""

    @functools.cached_property
    def moments(self) -> Moments:
        """Of the features."""
        return Moments.of(self.features)

    def __len__(self) -> int:
        """Number n of pictures."""
        return len(self.features)


class _Sums:
    """Moments of rows that come in batches, without keeping the rows."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        if not self.count:
            # Far from 0, sums of squares would lose what the covariance is made of.
            self.shift = rows.mean(0)
            self.sum = torch.zeros_like(self.shift)
            self.squares = rows.new_zeros(rows.shape[1], rows.shape[1])
        rows = rows - self.shift
        self.sum += rows.sum(0)
        self.squares.addmm_(rows.T, rows)
        self.count += len(rows)

    def moments(self) -> Moments:
        mean = self.sum / self.count
        covariance = (self.squares - self.count * torch.outer(mean, mean)) / max(self.count - 1, 1)
        return Moments(mean + self.shift, covariance, self.count)


def extract(extractor: Extractor, pictures: Pictures, *, progress: bool = False) -> FeatureSet:
    """Features of pictures.

    Args:
        extractor: the network.
        pictures: at least one.
        progress: show a bar.

    Raises:
        ValueError: the extractor fails on them, or gives NaN.
    """
    rows: list[Tensor] = []
    sums: _Sums | None = None
    with tqdm(total=len(pictures), desc=f"features, {pictures.name}", unit="img", disable=not progress) as bar:
        for batch in pictures.batches(extractor.batch):
            features, spatial = extractor(batch)
            rows.append(features)
            if spatial is not None:
                sums = sums or _Sums()
                sums.add(spatial)
            bar.update(len(batch))
    return FeatureSet(torch.cat(rows), sums.moments() if sums is not None else None)


def cache_folder() -> Path:
    """Where features of real pictures are kept: ``$DCTRANSFORMER_CACHE``, or the user's cache folder."""
    own = os.environ.get("DCTRANSFORMER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dctransformer")


def cached(
    extractor: Extractor, pictures: Pictures, folder: Path | None = None, *, progress: bool = False
) -> FeatureSet:
    """`extract`, or what it gave for the same pictures before.

    Args:
        extractor: the network.
        pictures: at least one.
        folder: of the cache; None for `cache_folder`.
        progress: show a bar.

    Raises:
        ValueError: the cached file is damaged or holds another extractor's features, or the folder can't be written.
    """
    digest = pictures.digest()
    path = (folder or cache_folder()) / "features" / f"{extractor.name}-{digest}.safetensors"
    if path.exists():
        return _read(path, extractor, digest, len(pictures))
    found = extract(extractor, pictures, progress=progress)
    tensors = {"features": found.features}
    if found.spatial is not None:
        tensors |= {"spatial.mean": found.spatial.mean, "spatial.covariance": found.spatial.covariance}
    facts = {
        "format": FORMAT,
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "pictures": digest,
        "resize": extractor.resize,
    }
    write_tensors(path, tensors, {"dctransformer": json.dumps(facts)})
    return dataclasses.replace(found, digest=digest)


def _read(path: Path, extractor: Extractor, digest: str, count: int) -> FeatureSet:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["dctransformer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        features = tensors["features"]
        whose = (facts["extractor"], facts["fingerprint"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, it is made anew") from error
    if whose != (extractor.name, extractor.fingerprint):
        raise ValueError(
            f"{path} holds features of another extractor ({whose[0]}, weights {whose[1]}, not {extractor.name}, "
            f"{extractor.fingerprint}); delete it, it is made anew"
        )
    if facts.get("pictures") != digest or len(features) != count or not torch.isfinite(features).all():
        raise ValueError(f"{path} is damaged (its features are not those of the pictures); delete it, it is made anew")
    spatial = None
    if "spatial.mean" in tensors:
        spatial = Moments(tensors["spatial.mean"], tensors["spatial.covariance"], count)
    return FeatureSet(features, spatial, digest)
