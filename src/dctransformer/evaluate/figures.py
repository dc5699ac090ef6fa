"""The figures that a run measured of its own weights, for the model card."""

from __future__ import annotations

import json
from pathlib import Path

from dctransformer.evaluate.evaluation import RESULT, weights_hash
from dctransformer.hub.curves import read_curves
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
        names = {
            "final/bytes_per_image": "bytes per image, held-out pictures",
            "final/huffman_bytes_per_image": "libjpeg's optimised Huffman, the same pictures",
            "final/bits_per_triple": "bits per triple",
        }
        finals = [line for line in read_curves(folder / METRICS) if names.keys() <= line.keys()]
        if finals:
            figures |= {shown: finals[-1][name] for name, shown in names.items()}
    if (folder / RESULT).is_file():
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            if result["weights"] == weights_hash(folder):
                for compared, scores in result["scores"].items():
                    figures |= {f"{metric}, {compared}": float(value) for metric, value in scores.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{folder / RESULT} is damaged; remove it, or run evaluate again") from error
    return figures
