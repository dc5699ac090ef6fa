"""The model argument of the tasks: a name, or a loaded model."""

from __future__ import annotations

from pathlib import Path

from dctransformer.hub.pretrained import load_model
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import resolve_device
from dctransformer.sequence.conditions import check_trained

Model = str | Path | DCTransformer
"""A run folder, a saved model's folder, ``hf:owner/name``, shipped weights; or a model that is loaded already."""


def resolve_model(model: Model, device: str = "auto", condition: str | None = None) -> DCTransformer:
    """Load a model onto a device; one that is loaded already stays where it is.

    Args:
        model: see `Model`.
        device: cpu, cuda, … or auto.
        condition: on which it must have been trained.

    Raises:
        ValueError: there is no such model or device, or it was not trained on the condition.
    """
    network = model if isinstance(model, DCTransformer) else load_model(model, resolve_device(device))
    if condition is not None:
        check_trained(network.config.conditions, condition, "this model" if network is model else str(model))
    return network
