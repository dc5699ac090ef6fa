"""Curves of trainings: those of a run, and those that come with the package for comparison."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dctransformer.model.config import ModelConfig

CURVES = Path(__file__).parent.parent / "curves"
"""Curves of the trainings that this project ran, a file each: first what was trained, then lines of ``metrics.jsonl``.

``weights`` names the shipped weights that it made or, with others, helped to make; ``structure`` is false if it trained
texture alone; ``continues`` is true if it went on with trained structure.
"""

OF_HUFFMAN = "bytes_of_huffman"
"""Name of a validation's bytes as a part of those that libjpeg's optimised Huffman code takes for the same pictures."""

OVER_TRIPLES = (OF_HUFFMAN, "bits_per_triple", "structure", "texture")
"""Scores of a validation that trainings of equal size and quality are compared by, whatever their pictures."""


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


def shipped_curves(config: ModelConfig, structure: bool = True) -> list[Curve]:
    """Return the curves that come with the package and that a training of a shape can be compared with.

    Those of trainings that went on with a trained structure are left out.

    Args:
        config: of the model that is trained. Height, width and JPEG quality must agree, so that bytes compare, and
            where texture begins, so that triples are counted alike.
        structure: whether structure is trained; a training of texture alone counts the triples of texture.
    """
    wanted = {"shape": list(config.trained_shape), "quality": config.quality, "texture_from": config.texture_from}
    wanted |= {"structure": structure, "continues": False}
    return [curve for facts, curve in _shipped() if all(facts.get(k, False) == value for k, value in wanted.items())]


def curves_of_weights(name: str) -> list[Curve]:
    """Return the curves of the trainings that made the shipped weights of a name, the first training first."""
    return [curve for facts, curve in _shipped() if facts["weights"] == name]


def _shipped() -> Iterator[tuple[dict[str, Any], Curve]]:
    for path in sorted(CURVES.glob("*.jsonl"), key=lambda path: path.stem):
        with path.open(encoding="utf-8") as file:
            facts = json.loads(file.readline())
        yield facts, Curve(facts["name"], facts["about"], read_curves(path))


def trains_structure(lines: list[dict[str, Any]]) -> bool:
    """Return whether the lines of ``metrics.jsonl`` are of a training of more than texture."""
    return not any("train/texture" in line for line in lines) or any("train/structure" in line for line in lines)


def validation_score(line: dict[str, Any], name: str) -> float | None:
    """Return a score (one of `OVER_TRIPLES`, say) of a line with a validation; None if the line does not have it."""
    if name != OF_HUFFMAN:
        return line.get(f"validation/{name}")
    needed, huffman = (line.get(f"validation/{part}bytes_per_image") for part in ("", "huffman_"))
    return needed / huffman if needed is not None and huffman else None


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
