"""Labels by name: a model and a data set number their classes each in their own order; names connect them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np


class Labelled(Protocol):
    """The part of a `ModelConfig` that describes its classes."""

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in order of their numbers."""
        ...

    @property
    def null_label(self) -> int:
        """Number that stands for "no label given"."""
        ...


def label_number(config: Labelled, label: str) -> int:
    """Return the class called ``label`` (a name, in any case, or a number).

    Raises:
        ValueError: the model has no such class; near names are listed.
    """
    if not config.num_labels:
        raise ValueError("this model has no labels; leave --label out")
    names = [name.casefold() for name in config.label_names]
    if label.casefold() in names:
        return names.index(label.casefold())
    if label.isdecimal() and int(label) < config.num_labels:
        return int(label)
    near = difflib.get_close_matches(label.casefold(), names, 3)
    hint = f"did you mean {' or '.join(repr(config.label_names[names.index(n)]) for n in near)}? " if near else ""
    raise ValueError(f"there is no label {label!r}; {hint}`dctransformer info MODEL` lists all")


def label_name(config: Labelled, number: int) -> str:
    """Return the name of a class; its number if the classes have no names, "" for the null label."""
    if number >= config.num_labels:
        return ""
    return config.label_names[number] if config.label_names else str(number)


def draw_labels(config: Labelled, count: int, seed: int) -> list[int]:
    """Draw a class for each of ``count`` pictures from (seed, its number); the null label if there are no classes."""
    if not config.num_labels:
        return [config.null_label] * count
    return [int(np.random.default_rng([seed, i, 1]).integers(config.num_labels)) for i in range(count)]


def model_labels(config: Labelled, names: Sequence[str], numbers: Iterable[int]) -> list[int]:
    """Translate a data set's labels into a model's.

    Args:
        config: of the model.
        names: of the data set's classes.
        numbers: the pictures' labels in the data set.

    Returns:
        For each picture the model's class of the same name (in any case), or the null label if there is none.
    """
    by_name = {name.casefold(): i for i, name in enumerate(config.label_names)}
    known = [by_name.get(name.casefold(), config.null_label) for name in names]
    return [known[n] if 0 <= n < len(known) else config.null_label for n in numbers]
