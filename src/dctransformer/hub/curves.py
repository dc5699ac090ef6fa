"""Curves of trainings: those of a run, and those that come with the package for comparison."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dctransformer.model.config import ModelConfig

CURVES = Path(__file__).parent.parent / "curves"
"""Curves of the trainings that this project ran, a file each: what was trained, then lines of ``metrics.jsonl``."""

OVER_TRIPLES = ("bytes_per_image", "bits_per_triple", "structure", "texture")
"""Scores of a validation that trainings of equal size and quality are compared by."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A training's curve.

    Attributes:
        name: of the run.
        about: data and batch, for legends.
        lines: of ``metrics.jsonl``, numbers only, as `read_curves` returns them.
    """

    name: str
    about: str
    lines: list[dict[str, Any]]

    def validations(self) -> list[dict[str, Any]]:
        """Return the lines that have the scores of a validation."""
        return [line for line in self.lines if "validation/bytes_per_image" in line]


def shipped_curves(config: ModelConfig) -> list[Curve]:
    """Return the curves that come with the package and that a training of a shape can be compared with.

    Args:
        config: of the model that is trained. Height, width and JPEG quality must agree, so that bytes compare, and
            where texture begins, so that triples are counted alike.
    """
    wanted = {"shape": list(config.trained_shape), "quality": config.quality, "texture_from": config.texture_from}
    found = []
    for path in sorted(CURVES.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            facts = json.loads(file.readline())
        if all(facts[name] == value for name, value in wanted.items()):
            found.append(Curve(facts["name"], facts["about"], read_curves(path)))
    return found


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's ``metrics.jsonl``, numbers only, without those that are cut off or have no triples."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            numbers = {name: value for name, value in line.items() if _is_finite(value)}
            if "triples" in numbers:
                lines.append(numbers)
    return lines


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
