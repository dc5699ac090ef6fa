"""Models on their way to the hub: what a run knows of its model goes into the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dctransformer.evaluate.evaluation import RESULT, weights_hash
from dctransformer.evaluate.plots import read_curves
from dctransformer.hub.model import DCTransformer
from dctransformer.hub.pretrained import check_token, model_folder
from dctransformer.training.run_folder import METRICS


def push(model: str, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a model with its card: the folder's own ``README.md``, or one made of the config and the run's figures.

    Args:
        model: a run folder, a saved model's folder, or shipped weights.
        repo: ``owner/name`` on the hub.
        private: whether a new repository is visible to its owner only; None for the owner's default.
        token: of the hub; None takes that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The address of the upload.

    Raises:
        ValueError: there is no such model, no token, or the hub does not take it.
    """
    check_token(token)
    folder = model_folder(model)
    network = DCTransformer.from_pretrained(folder)
    card: dict[str, Any] = {"figures": run_figures(folder)}
    if (folder / "README.md").is_file():
        card = {"text": (folder / "README.md").read_text(encoding="utf-8")}
    return network.push_to_hub(repo, private=private, token=token, model_card_kwargs=card)


def run_figures(folder: Path) -> dict[str, float]:
    """What a run measured of the weights that it holds: the final validation, and its `evaluate` scores."""
    figures: dict[str, float] = {}
    if (folder / METRICS).is_file():
        finals = [line for line in read_curves(folder / METRICS) if "final/bytes_per_image" in line]
        if finals:
            figures["bytes an image, held-out pictures"] = finals[-1]["final/bytes_per_image"]
            figures["libjpeg's optimised Huffman, the same pictures"] = finals[-1]["final/huffman_bytes_per_image"]
            figures["bits a triple"] = finals[-1]["final/bits_per_triple"]
    if (folder / RESULT).is_file():
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if result["weights"] == weights_hash(folder):  # figures of earlier weights are not the model's
            for compared, scores in result["scores"].items():
                figures |= {f"{metric}, {compared}": value for metric, value in scores.items()}
    return figures
