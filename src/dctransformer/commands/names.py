"""Names of models on the command line."""

from __future__ import annotations


def with_revision(name: str, revision: str | None) -> str:
    """The name of a model together with its ``--revision``.

    Raises:
        ValueError: the model is not one of the hub, or its name has a revision already.
    """
    if revision is None:
        return name
    if not name.startswith("hf:") or "@" in name:
        raise ValueError(f"--revision is for models of the hub, hf:owner/name, not for {name}")
    return f"{name}@{revision}"
