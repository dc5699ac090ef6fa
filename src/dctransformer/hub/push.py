"""`push`: upload a model with its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dctransformer.hub.model import DCTransformer
from dctransformer.hub.pretrained import check_token, is_hub_id, model_folder


def push(
    model: str,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    figures: Callable[[Path], dict[str, float]] | None = None,
) -> str:
    """Upload a model with its card: the folder's own ``README.md``, or one made of the config and the figures.

    Args:
        model: a run folder, a saved model's folder, or shipped weights.
        repo: ``owner/name`` on the hub.
        private: whether a new repository is visible to its owner only; None for the owner's default.
        token: of the hub; None uses that of ``hf auth login`` or ``HF_TOKEN``.
        figures: finds the scores for the card in the model's folder (`dctransformer.evaluate.figures.run_figures`).

    Returns:
        The address of the upload.

    Raises:
        ValueError: there is no such model, no token, or the hub refuses the upload.
    """
    if not is_hub_id(repo):
        raise ValueError(f"{repo!r} is not the name of a model on the hub; give owner/name")
    folder = model_folder(model)
    network = DCTransformer.from_pretrained(folder)
    check_token(token)
    card: dict[str, Any] = {"figures": figures(folder) if figures is not None else None}
    if (folder / "README.md").is_file():
        card = {"text": (folder / "README.md").read_text(encoding="utf-8")}
    return network.push_to_hub(repo, private=private, token=token, model_card_kwargs=card)
