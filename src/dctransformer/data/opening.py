"""Open pictures to be scored by a model: a split of a prepared data set, or a plain folder."""

from __future__ import annotations

from pathlib import Path

from dctransformer.data.info import INFO, SPLITS
from dctransformer.data.store import TripleStore


def is_prepared(data: str | Path) -> bool:
    """Whether a folder is a prepared data set."""
    return (Path(data) / INFO).is_file()


def open_pictures(
    data: str | Path, split: str, *, size: int, quality: int, any_size: bool = False, progress: bool = False
) -> TripleStore:
    """Open pictures as triples in the tables of a model.

    Args:
        data: a prepared data set, or a folder of pictures, which are cropped, resized and encoded as `prepare` does it.
        split: of a prepared data set.
        size: side in pixels on which the model was trained.
        quality: JPEG quality on which the model was trained.
        any_size: accept a data set that was prepared at another size.
        progress: show a bar while pictures are read.

    Raises:
        ValueError: there is no such data or split, it is empty, or its quality or size is another.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    if not is_prepared(data):
        return TripleStore.from_images(data, size=size, quality=quality, progress=progress)
    store = TripleStore.open(data, split, progress=progress)
    if not len(store):
        raise ValueError(f"the {split} split of {data} is empty; choose another with --split")
    for name, found, needed in (("quality", store.info.quality, quality), ("size", store.info.size, size)):
        if found != needed and not (any_size and name == "size"):
            raise ValueError(
                f"{data} was prepared at {name} {found}, the model was trained at {needed}; "
                f"prepare the pictures with --{name} {needed}"
            )
    return store
