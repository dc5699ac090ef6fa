"""Open pictures to be scored by a model: a split of a prepared data set, or a plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dctransformer.codec.grid import Grid
from dctransformer.data.info import INFO, SPLITS
from dctransformer.data.shapes import Shape
from dctransformer.data.store import TripleStore


class Trained(Protocol):
    """The part of a `ModelConfig` that describes the pictures on which the model was trained."""

    @property
    def quality(self) -> int:
        """JPEG quality."""
        ...

    @property
    def windows(self) -> bool:
        """Whether they were windows of larger pictures."""
        ...

    @property
    def trained_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...


def is_prepared(data: str | Path) -> bool:
    """Return whether a folder is a prepared data set."""
    return (Path(data) / INFO).is_file()


def open_pictures(
    data: str | Path, split: str, config: Trained, *, any_size: bool = False, progress: bool = False
) -> TripleStore:
    """Open pictures as triples in the tables of a model.

    Args:
        data: a prepared data set, or a folder of pictures, which are cropped, resized and encoded as `prepare` does it.
        split: of a prepared data set.
        config: of the model.
        any_size: accept a data set that was prepared at another size.
        progress: show a bar while pictures are read.

    Raises:
        ValueError: there is no such data or split, it is empty, its quality is another, or none of its pictures has
            the size on which the model was trained.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    height, width = config.trained_shape
    if not is_prepared(data):
        return TripleStore.from_images(data, Shape.of((width, height)), config.quality, progress=progress)
    store = TripleStore.open(data, split, progress=progress)
    if not len(store):
        raise ValueError(f"the {split} split of {data} is empty; choose another with --split")
    if store.info.quality != config.quality:
        raise ValueError(
            f"{data} was prepared at quality {store.info.quality}, the model was trained at {config.quality}; "
            f"prepare the pictures with --quality {config.quality}"
        )
    grid = Grid.of_size(height, width)
    if not any_size and not any(picture.within(window_of(config)) == grid for picture in store.grids):
        found, needed = store.info.size or store.info.target, height if height == width else grid.size
        raise ValueError(
            f"{data} was prepared at size {found}, the model was trained at {needed}; "
            f"prepare the pictures with --size {needed}"
        )
    return store


def window_of(config: Trained) -> Grid | None:
    """Return the grid of the windows on which a model was trained; None if it was trained on whole pictures."""
    return Grid.of_size(*config.trained_shape) if config.windows else None
