"""Errors of a command line as one sentence, and a check of its numbers."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

_RULE = re.compile(r"[╭╰]|│\s*─{3}|\s*-{3,}\s*$")


def usage_sentence(box: str, command: str) -> str:
    """Make one sentence of the box that tyro prints about arguments it can't parse.

    Args:
        box: the printed text.
        command: name of the command for the hint at the end; empty if there is none of that name.
    """
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        if _RULE.match(line):
            paragraphs.append([])
        elif line.startswith("│"):
            paragraphs[-1].append(line.strip("│").rstrip()[1:])
        elif len(paragraphs) > 1:  # a terminal without box characters; what is before the first rule is a title
            paragraphs[-1].append(line[2:].rstrip())
    paragraphs = [lines for lines in paragraphs if any(lines)]
    if not paragraphs:
        return " ".join(box.split()) or "the arguments can't be read; see dctransformer --help"
    first = paragraphs[0]
    if "" in first:
        first = first[: first.index("")]  # the rest lists what was tried
    # What is indented once are options, more deeply their help.
    head = " ".join(line for line in first if not line.startswith(" "))
    options = ", ".join(line.strip() for line in first if re.match(r" {4}\S", line))
    head = re.sub(r"^Error parsing [^-]\S*: ", "", head)  # the place in our classes tells a user nothing
    sentence = f"{head} {options}".strip().rstrip(".")
    for lines in paragraphs[1:]:
        meant = [line.split()[0] for line in lines if re.match(r" {4}-", line)]
        if lines[0].startswith("Perhaps") and meant:
            sentence += f"; perhaps you meant {' or '.join(dict.fromkeys(meant))}"
    return f"{sentence[:1].lower()}{sentence[1:]}; see {' '.join(('dctransformer', command)).strip()} --help"


def check_numbers(options: Any) -> None:
    """Check that all numbers among a command's options are finite and fit 64 bits.

    Args:
        options: the command, or a dataclass of options in it.

    Raises:
        ValueError: one does not.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = field.name.strip("_").replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_numbers(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} can't be {value}; give a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} {value} has too many digits; give a smaller number")
