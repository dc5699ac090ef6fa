"""Settings of an evaluation; apart from the rest, so that the command line starts without loading all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from dctransformer.sampling.config import SampleConfig

DISTANCES = ("fid", "sfid", "precision", "recall", "kid")
"""Metrics of an extractor's features."""

METRICS = (*DISTANCES, "c2st", "bits")


Count = Annotated[int, Ge(1)]


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What to measure, and how."""

    num: Count = 5000
    """Number of pictures to generate; also the most pictures whose bits are counted."""
    metrics: str = ",".join(METRICS)
    """Which of fid, sfid, precision, recall, kid, c2st (classifier two-sample test) and bits, separated by commas."""
    features: str = "inception"
    """The extractor: inception (downloaded once), small64-imagenette (comes with the package; trained on Imagenette and
    cats), small64 (likewise; Imagenette and flowers), or a TorchScript or .onnx file."""
    split: str = "train"
    """Part of a prepared data set to compare with. (Bits are counted on its validation part, if it has one.)"""
    reference: Count | None = None
    """Compare with the first so many real pictures only."""
    neighbours: Count = 10_000
    """Precision, recall and the kernel distance look at the first so many real pictures only; so evaluating against
    millions keeps few features in memory."""
    originals: Path | None = None
    """Folder that a prepared data set was made from, if it is no longer where it was."""
    samples: Path | None = None
    """Score the pictures in this folder instead of generating some."""
    kid_subset: Count = 1000
    """Pictures in each of the 100 subsets of the kernel distance."""
    c2st_pictures: Count = 1000
    """The most pictures on each side of the classifier two-sample test: about a minute of one core for 1,000 of 64
    pixels."""
    few: bool = False
    """Allow Fréchet distances from no more pictures than there are features. They are then far too large."""
    sampling: SampleConfig = dataclasses.field(default_factory=lambda: SampleConfig(batch=64))
    """How pictures are generated. The seed is that of the kernel distance's subsets, too."""
    device: str = "auto"
    """cpu, cuda, …"""
    cache: Path | None = None
    """Where features of the real pictures are kept; $DCTRANSFORMER_CACHE or the user's cache folder if not given."""

    def wanted(self) -> tuple[str, ...]:
        """Return the metrics asked for, in their usual order.

        Raises:
            ValueError: one is not known, or none is asked for.
        """
        names = [name.strip().lower() for name in self.metrics.split(",") if name.strip()]
        for name in names:
            if name not in METRICS:
                raise ValueError(f"there is no metric {name!r}; choose among {', '.join(METRICS)}")
        if not names:
            raise ValueError(f"no metric is asked for; choose among {', '.join(METRICS)}")
        return tuple(name for name in METRICS if name in names)
