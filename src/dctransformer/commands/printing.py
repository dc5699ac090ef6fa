"""Text for the terminal."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import Any


def printable(text: object) -> str:
    """Escape everything that could control a terminal or can't be encoded, such as in names that others chose.

    Control characters, line ends, marks that change the direction of text and undecodable bytes become escapes.
    """
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def print_facts(as_json: bool, facts: dict[str, Any], text: Callable[[], None]) -> None:
    """Print facts as one JSON object, or call ``text`` to print them for people."""
    if as_json:
        print(json.dumps(facts))
    else:
        text()
