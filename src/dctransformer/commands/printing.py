"""Text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def print_facts(as_json: bool, facts: dict[str, Any], text: Callable[[], None]) -> None:
    """Print facts as one JSON object, or call ``text`` to print them for people."""
    if as_json:
        print(json.dumps(facts))
    else:
        text()
