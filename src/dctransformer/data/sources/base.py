"""The interface of all sources, the numbering of labels, and notes for users about both."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "evaluation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

LABEL_COLUMNS = ("label", "labels", "class", "cls", "class_name", "category", "target")
"""Columns of tables that are taken for labels, the likeliest first."""


class Item(NamedTuple):
    """One picture of a source."""

    key: str
    """Its name within the source: a relative path, or a place such as ``data.parquet#17``."""
    label: int | None
    split: str | None
    """``train``, ``validation`` or ``test`` if the source has splits."""
    stamp: str = ""
    """Changes when the file does: its size and time, or a checksum."""
    problem: str = ""
    """Why it can't be read, if that is known from the listing."""

    @property
    def rank(self) -> int:
        """A 64-bit hash of the key: decides split and order, wherever and whenever the source is read.

        It does not depend on whether a file system composes accents or not (NFC, NFD).
        """
        name = unicodedata.normalize("NFC", text(self.key))
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class Source(Protocol):
    """A list of pictures that can be read; it can be sent to other processes."""

    labels: list[str]
    """Names of the classes; empty if there are none."""
    items: list[Item]
    sequential: bool
    """Whether neighbours should be read together (files of rows) rather than in any order (files of pictures)."""
    labels_from: str
    """Where the labels come from, for people."""
    notes: list[str]
    """What a user should know about the listing, a sentence each."""

    def read(self, index: int) -> str | Path | bytes:
        """Return the file of ``items[index]``, or its bytes.

        Raises:
            ValueError: there is no picture in that place.
        """
        ...


def text(key: str) -> str:
    """Return the key as valid Unicode (file names may hold any bytes)."""
    return os.fsencode(key).decode("utf-8", "replace")


def split_of(name: str) -> str | None:
    """Return the split that the first word of a name stands for, as in ``train-00000-of-00002.parquet``."""
    return SPLIT_NAMES.get(re.split(r"[-._ ]", name)[0].casefold())


def number_labels(values: Iterable[Any]) -> tuple[list[str], list[int | None]]:
    """Number labels by the values that occur: numbers in numeric order, everything else by name.

    None, NaN, empty strings and negative numbers are no label. Names that are equal as people read them (after NFC) are
    one.

    Args:
        values: strings, integers, booleans, or floats that are whole numbers.

    Returns:
        The names of the classes, and each value's number.

    Raises:
        ValueError: a value is none of these.
    """
    names: dict[Any, str | None] = {}
    of_value: list[str | None] = []
    for value in values:
        key = (type(value), value) if isinstance(value, (str, int, float, bytes)) else None
        if key is None and value is not None:
            raise ValueError(f"a {type(value).__name__}")
        if key not in names:
            names[key] = _label_name(value)
        of_value.append(names[key])
    found = {name for name in names.values() if name is not None}
    if all(re.fullmatch(r"-?\d{1,30}", name) for name in found):
        labels = sorted((name for name in found if int(name) >= 0), key=lambda name: (int(name), name))
    else:
        labels = sorted(found)
    number = {name: i for i, name in enumerate(labels)}
    return labels, [None if name is None else number.get(name) for name in of_value]


def _label_name(value: Any) -> str | None:
    if value is None or value != value or value == "":
        return None
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError("a number that is not whole")
        value = int(value)
    name = value.decode("utf-8", "replace") if isinstance(value, bytes) else text(str(value))
    return unicodedata.normalize("NFC", name)


def count_noun(count: int, noun: str) -> str:
    """Put a number before a noun that takes an s in the plural."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def column_labels(
    values: list[Any], names: list[str], column: str | None, rows: int, chosen: bool, notes: list[str]
) -> tuple[list[str], list[int | None], str]:
    """Return the names of the classes of a column, each row's number, and where they come from in words.

    Args:
        values: of the column.
        names: of the classes, if the data set has them: then the values are numbers already.
        column: its name; None for no labels.
        rows: number of rows.
        chosen: whether a user asked for the column, so that values that are no labels are an error.
        notes: for the user; added to.

    Raises:
        ValueError: the column was asked for and can't be used.
    """
    nothing: tuple[list[str], list[int | None], str] = ([], [None] * rows, "none")
    if column is None:
        return nothing
    if names:
        return names, [int(v) if v is not None and 0 <= v < len(names) else None for v in values], f"column {column}"
    try:
        labels, numbers = number_labels(values)
    except ValueError as error:
        if chosen:
            raise ValueError(f"the column {column} can't be used as labels: it holds {error}") from None
        notes.append(f"the column {column} holds {error}: not used as labels")
        return nothing
    notes += label_notes(labels, rows, f"column {column}")
    return labels, numbers, f"column {column}"


def label_notes(labels: Sequence[str], pictures: int, where: str) -> list[str]:
    """Return the warnings about labels that are alike, or so many that they may be something else."""
    notes = []
    alike = collections.defaultdict(list)
    for name in labels:
        alike[name.casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            notes.append(f"the labels {' and '.join(names)} differ in case only: --label can't distinguish them")
    if len(labels) > max(100, pictures // 2):
        notes.append(
            f"{where}: {len(labels):,} labels for {pictures:,} pictures; if these are no classes, use --labels none"
        )
    return notes
