"""Text that is safe to print on a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: object) -> str:
    """Escape everything that could control a terminal or can't be encoded, such as in names that others chose.

    Control characters, line ends, marks that change the direction of text and undecodable bytes become escapes.
    """
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def printable_lines(text: str) -> str:
    """Escape the same in each line of a text, such as a traceback, whose line ends stay."""
    return "\n".join(map(printable, text.split("\n")))
