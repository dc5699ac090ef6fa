"""Files that hold the labels of pictures: StyleGAN's dataset.json, metadata.jsonl and .csv, or any such table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import PurePosixPath
from typing import Any

from dctransformer.data.sources.base import LABEL_COLUMNS

METADATA = ("dataset.json", "metadata.jsonl", "metadata.csv")
"""Names of files that are looked for among the pictures (StyleGAN's, and those of Hugging Face's image folders)."""

_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image", "image_path", "filepath", "img", "name", "id")


class NoLabels(ValueError):
    """A table without labels; the message is for people."""


def read_labels(name: str, data: bytes, column: str | None = None) -> tuple[dict[str, Any], str]:
    """Return the labels by file name.

    Args:
        name: of the file; ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` (a list of [name, label] under ``"labels"``, as
            StyleGAN has it, a list of objects, or an object of names and labels).
        data: its contents.
        column: the column of labels; None for the first that is called ``label`` or the like.

    Returns:
        The labels, and the column that they come from.

    Raises:
        NoLabels: it has no labels, or none in that column.
        ValueError: it can't be read.
    """
    try:
        content = data.decode("utf-8-sig")
        suffix = PurePosixPath(name).suffix.lower()
        if suffix == ".json":
            table = json.loads(content)
            if isinstance(table, dict) and "labels" in table and column is None:
                return _stylegan(name, table["labels"])
            if isinstance(table, dict):
                return dict(table), "label"
            rows = table
        elif suffix == ".jsonl":
            rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(content), delimiter="\t" if suffix == ".tsv" else ","))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("not a table")
    except (UnicodeDecodeError, ValueError, csv.Error, RecursionError) as error:
        if isinstance(error, NoLabels):
            raise
        raise ValueError(f"{name} can't be read ({error}); correct it, or use --labels none") from error
    columns = list(dict.fromkeys(key for row in rows[:1000] for key in row if isinstance(key, str)))
    file = next((c for c in _FILE_COLUMNS if c in columns), None)
    if column is None:
        column = next((c for c in LABEL_COLUMNS if c in columns), None)
    if column is None or column not in columns:
        wanted = "called label" if column is None else column
        raise NoLabels(f"{name} has no column {wanted} (there are: {', '.join(columns) or 'none'})")
    if file is None:
        raise NoLabels(f"{name} has no column of file names, such as file_name (there are: {', '.join(columns)})")
    return {str(row[file]): row.get(column) for row in rows if row.get(file)}, column


def _stylegan(name: str, labels: Any) -> tuple[dict[str, Any], str]:
    if labels is None:
        return {}, "labels"
    if not isinstance(labels, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in labels):
        raise ValueError("labels is not a list of [name, label]")
    if any(isinstance(label, (list, dict)) for _, label in labels):
        raise NoLabels(f"the labels in {name} are lists of numbers, not classes")
    return {str(file): label for file, label in labels}, "labels"
