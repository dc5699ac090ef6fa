"""Helpers of the commands: names of models, and text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dctransformer.files import printable


def with_revision(name: str, revision: str | None) -> str:
    """Return the name of a model together with its ``--revision``.

    Raises:
        ValueError: the model is not one of the hub, or its name has a revision already.
    """
    if revision is None:
        return name
    if not name.startswith("hf:") or "@" in name:
        raise ValueError(f"--revision is for models of the hub, hf:owner/name, not for {name}")
    return f"{name}@{revision}"


def listed(paths: list[str]) -> str:
    """Return how many pictures were written and where: ``8 pictures: out/a.jpg …``."""
    if len(paths) == 1:
        return f"1 picture: {printable(paths[0])}"
    return f"{len(paths):,} pictures: {printable(paths[0])} …"


def print_facts(as_json: bool, facts: dict[str, Any], text: Callable[[], None]) -> None:
    """Print facts as one JSON object, or call ``text`` to print them for people."""
    if as_json:
        print(json.dumps(facts))
    else:
        text()
