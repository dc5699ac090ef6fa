"""Features of a set of pictures, and those of real pictures kept between evaluations.

A cached file is named after the extractor and a hash of every pixel; inside stands the extractor's fingerprint.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import warnings
from pathlib import Path

import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from dctransformer.evaluate.features import Extractor
from dctransformer.evaluate.metrics import Moments
from dctransformer.evaluate.pictures import Pictures
from dctransformer.files import cache_folder, printable, write_tensors

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of n pictures.

    Attributes:
        features: fp32 ``[k, D]``, those of the first k pictures; of all where no limit was given.
        spatial: moments of the spatial features, or None if the extractor has none.
        digest: hash of the pictures, "" if it was not taken.
        whole: moments of the features of all pictures where k is less than n; None where it is not.
    """

    features: Tensor
    spatial: Moments | None
    digest: str = ""
    whole: Moments | None = None

    @functools.cached_property
    def moments(self) -> Moments:
        """Moments of the features of all pictures."""
        return Moments.of(self.features) if self.whole is None else self.whole

    def __len__(self) -> int:
        """Return the number n of pictures."""
        return len(self.features) if self.whole is None else self.whole.count


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


def extract(extractor: Extractor, pictures: Pictures, *, keep: int | None = None, progress: bool = False) -> FeatureSet:
    """Return the features of pictures.

    Args:
        extractor: the network.
        pictures: at least one.
        keep: features of so many pictures are kept, of the others only their share in the moments: 2,048 features of
            a picture take 8 kB, so that three million pictures would take 25 GB. None for all.
        progress: show a bar.

    Raises:
        ValueError: the extractor fails on them, or gives NaN.
    """
    rows: list[Tensor] = []
    held = 0
    sums: _Sums | None = None
    whole = _Sums() if keep is not None and keep < len(pictures) else None
    title = printable(f"features, {pictures.name}")
    with tqdm(total=len(pictures), desc=title, unit="img", disable=not progress) as bar:
        for batch in pictures.batches(extractor.batch):
            features, spatial = extractor(batch)
            rows.append(features if whole is None else features[: max(0, (keep or 0) - held)].clone())
            held += len(rows[-1])
            if whole is not None:
                whole.add(features)
            if spatial is not None:
                sums = sums or _Sums()
                sums.add(spatial)
            bar.update(len(batch))
    spatial_moments = sums.moments() if sums is not None else None
    return FeatureSet(torch.cat(rows), spatial_moments, whole=whole.moments() if whole is not None else None)


def cached(
    extractor: Extractor,
    pictures: Pictures,
    folder: Path | None = None,
    *,
    keep: int | None = None,
    progress: bool = False,
) -> FeatureSet:
    """Extract features as `extract` does, or read those that were kept for the same pictures.

    A file that is damaged or holds another extractor's features is replaced with a warning; where the folder can't be
    written, a warning is issued and nothing is kept.

    Args:
        extractor: the network.
        pictures: at least one.
        folder: of the cache; None for that of `cache_folder`.
        keep: see `extract`; a file that holds fewer is written again.
        progress: show a bar.

    Raises:
        ValueError: as `extract`.
    """
    digest = pictures.digest()
    home = folder or cache_folder()
    path = None if home is None else home / "features" / f"{extractor.name}-{digest}.safetensors"
    if path is not None and os.path.exists(path):  # unlike pathlib's, False where access is denied
        try:
            found = _read(path, extractor, digest, len(pictures))
            if len(found.features) >= min(len(pictures), len(pictures) if keep is None else keep):
                return found
        except ValueError as error:
            warnings.warn(f"{error}; the features are computed anew", stacklevel=2)
    found = extract(extractor, pictures, keep=keep, progress=progress)
    tensors = {"features": found.features}
    if found.whole is not None:
        tensors |= {"mean": found.whole.mean, "covariance": found.whole.covariance}
    if found.spatial is not None:
        tensors |= {"spatial.mean": found.spatial.mean, "spatial.covariance": found.spatial.covariance}
    facts = {
        "format": FORMAT,
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "pictures": digest,
        "resize": extractor.resize,
    }
    try:
        if path is None:
            raise ValueError("there is no home folder")
        write_tensors(path, tensors, {"dctransformer": json.dumps(facts)})
    except ValueError as error:
        warnings.warn(
            f"{str(error).removesuffix('; choose another folder')}, so the features will be computed again next time; "
            "set DCTRANSFORMER_CACHE to a folder that can be written",
            stacklevel=2,
        )
    return dataclasses.replace(found, digest=digest)


def _read(path: Path, extractor: Extractor, digest: str, count: int) -> FeatureSet:
    """Return the features from a file.

    Raises:
        ValueError: the file is damaged, or holds features of another extractor or of other pictures.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["dctransformer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        features = tensors["features"]
        source = (facts["extractor"], facts["fingerprint"])
        spatial = None
        if "spatial.mean" in tensors:
            spatial = Moments(tensors["spatial.mean"], tensors["spatial.covariance"], count)
        whole = Moments(tensors["mean"], tensors["covariance"], count) if "mean" in tensors else None
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if source != (extractor.name, extractor.fingerprint):
        raise ValueError(f"{path} holds features of another extractor ({source[0]}, weights {source[1]})")
    length = len(features) < count if whole is not None else len(features) == count
    sound = features.ndim == 2 and length and torch.isfinite(features).all()
    if facts.get("pictures") != digest or not sound:
        raise ValueError(f"{path} is damaged (its features are not those of the pictures)")
    return FeatureSet(features, spatial, digest, whole)
