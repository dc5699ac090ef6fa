"""The figures that a run measured of its own weights, for the model card."""

from __future__ import annotations

import json
from pathlib import Path

from dctransformer.evaluate.evaluation import RESULT, weights_hash
from dctransformer.evaluate.plots import read_curves
from dctransformer.training.run_folder import METRICS


def run_figures(folder: Path) -> dict[str, float]:
    """Collect a run's final validation and its `evaluate` scores, as far as they are of the weights in the folder.

    Args:
        folder: of a run; any other model folder has no figures.

    Returns:
        Scores by name.
    """
    figures: dict[str, float] = {}
    if (folder / METRICS).is_file():
        finals = [line for line in read_curves(folder / METRICS) if "final/bytes_per_image" in line]
        if finals:
            figures["bytes per image, held-out pictures"] = finals[-1]["final/bytes_per_image"]
            figures["libjpeg's optimised Huffman, the same pictures"] = finals[-1]["final/huffman_bytes_per_image"]
            figures["bits per triple"] = finals[-1]["final/bits_per_triple"]
    if (folder / RESULT).is_file():
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if result["weights"] == weights_hash(folder):
            for compared, scores in result["scores"].items():
                figures |= {f"{metric}, {compared}": value for metric, value in scores.items()}
    return figures
