"""Data sets that the `datasets` library has loaded, saved or can fetch from the Hugging Face hub."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa

from dctransformer.data.sources.base import LABEL_COLUMNS, Item, column_labels, split_of
from dctransformer.data.sources.parquet import picture_of
from dctransformer.files import first_line


class DatasetsSource:
    """The splits of a data set that the `datasets` library has loaded."""

    sequential = True

    def __init__(self, splits: dict[str, Any], name: str, labels: str | None = None, root: Path | None = None):
        import datasets

        self.items: list[Item] = []
        self.notes: list[str] = []
        self._root = root
        self._places: list[tuple[str, int]] = []
        self._data: dict[str, Any] = {}
        known = {s: split_of(s) for s in splits}
        has_train = "train" in known.values()
        column, names = None, []
        values: list[Any] = []
        for split, data in splits.items():
            images = [n for n, f in data.features.items() if isinstance(f, datasets.Image)]
            if not images:
                raise ValueError(f"the data set {name} has no column of pictures; choose another")
            image = next((n for n in images if n in ("image", "img")), images[0])
            column, names = _label_column(datasets, data.features, labels, name)
            values += [None] * len(data) if column is None else list(data[column])
            stamp = str(getattr(data, "_fingerprint", ""))
            for row in range(len(data)):
                self.items.append(Item(f"{split}#{row}", None, known[split] if has_train else None, stamp))
                self._places.append((split, row))
            self._data[split] = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        if not self.items:
            raise ValueError(f"the data set {name} holds no rows; choose another")
        self.labels, numbers, self.labels_from = column_labels(
            values, names, column, len(values), labels is not None, self.notes
        )
        self.items = [item._replace(label=number) for item, number in zip(self.items, numbers, strict=True)]

    def read(self, index: int) -> str | Path | bytes:
        """Return the bytes (or path) of a picture."""
        split, row = self._places[index]
        (cell,) = self._data[split][row].values()
        return picture_of(cell, self._root or Path(), self._root)


def _label_column(library: Any, features: Any, labels: str | None, name: str) -> tuple[str | None, list[str]]:
    """Return the column of labels, and the names of its classes."""
    if labels == "none":
        return None, []
    if labels is not None and labels not in features:
        raise ValueError(
            f"the data set {name} has no column {labels} (there are: {', '.join(features)}); "
            "--labels takes one of them or none"
        )
    classes = [n for n, f in features.items() if isinstance(f, library.ClassLabel)]
    classes.sort(key=lambda n: n not in ("label", "labels"))
    column = labels or next((n for n in (*classes, *LABEL_COLUMNS) if n in features), None)
    return column, list(features[column].names) if column in classes else []


def loaded_source(data: Any, labels: str | None = None) -> DatasetsSource:
    """Open a data set that the `datasets` library has loaded: a ``Dataset`` or a ``DatasetDict``.

    Raises:
        ValueError: it is neither, or has no pictures.
    """
    library = _import_datasets()
    splits = data if isinstance(data, dict) else {"all": data}
    if not splits or not all(isinstance(part, library.Dataset) for part in splits.values()):
        raise ValueError(
            f"a {type(data).__name__} is no source; give a path, a URL, or a data set that was loaded without streaming"
        )
    return DatasetsSource(dict(splits), "given", labels)


def _import_datasets(what: str = "this source") -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{what} needs the `datasets` library; install it with: pip install 'dctransformer[train]'"
        ) from error
    return datasets


def saved_source(path: Path, labels: str | None = None) -> DatasetsSource:
    """Open a folder that `datasets` wrote with ``save_to_disk``; pictures outside of it are not read.

    Raises:
        ValueError: it can't be read, or has no pictures.
    """
    library = _import_datasets()
    try:
        data = library.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be loaded by `datasets` ({error}); save it again") from error
    return DatasetsSource(data if isinstance(data, dict) else {"all": data}, str(path), labels, path)


def hub_source(name: str, labels: str | None = None) -> DatasetsSource:
    """Open a data set by its id; the `datasets` library downloads it into its own cache.

    Args:
        name: ``name``, ``owner/name`` or ``owner/name:config``.
        labels: ``none`` or a column.

    Raises:
        ValueError: the library can't load it, or it has no pictures.
    """
    library = _import_datasets(f"there is no file or folder {name}; as a data set of the hub, it")
    identifier, _, config = name.partition(":")
    try:
        # The library tries an unreachable hub for half a minute; a misspelt path should not wait for that.
        if not Path(library.config.HF_DATASETS_CACHE, identifier.replace("/", "___")).is_dir():
            huggingface_hub.HfApi().dataset_info(identifier, timeout=10)
            warnings.warn(
                f"there is no folder {name} here; fetching the data set {identifier} from the Hugging Face hub",
                stacklevel=2,
            )
        data = library.load_dataset(identifier, config or None)
    # An unknown id, a missing network or a bad file each come as exceptions of several libraries.
    except Exception as error:
        raise ValueError(
            f"{name} is neither a folder here nor a data set that `datasets` can load ({first_line(error)}); "
            "check the name"
        ) from error
    return DatasetsSource(dict(data) if isinstance(data, dict) else {"all": data}, name, labels)
