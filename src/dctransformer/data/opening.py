"""Open pictures to be scored by a model: a split of a prepared data set, or a plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dctransformer.codec.grid import Grid
from dctransformer.data.info import INFO, SPLITS
from dctransformer.data.shapes import prepared_shape
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

    @property
    def trained_extent(self) -> tuple[int, int]:
        """Height and width in pixels up to which the model knows rows and columns."""
        ...

    @property
    def prepared(self) -> str:
        """Size to which the larger pictures were prepared whose windows they were; empty for their own."""
        ...


def is_prepared(data: str | Path) -> bool:
    """Return whether a folder is a prepared data set."""
    return (Path(data) / INFO).is_file()


def open_pictures(
    data: str | Path, split: str, config: Trained, *, any_size: bool = False, progress: bool = False
) -> TripleStore:
    """Open pictures as triples in the tables of a model.

    Args:
        data: a prepared data set, or a folder of pictures, which are cropped, resized and encoded as the model's
            training pictures were prepared.
        split: of a prepared data set.
        config: of the model.
        any_size: accept pictures of which none has the size on which the model was trained.
        progress: show a bar while pictures are read.

    Raises:
        ValueError: there is no such data or split, it is empty, its quality is another, or none of its pictures has
            the size on which the model was trained.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    if is_prepared(data):
        store = TripleStore.open(data, split, progress=progress)
    else:
        store = TripleStore.from_images(
            data, prepared_shape(config.prepared, config.trained_shape), config.quality, progress=progress
        )
    if not len(store):
        raise ValueError(f"the {split} split of {data} is empty; choose another with --split")
    if store.info.quality != config.quality:
        raise ValueError(
            f"{data} was prepared at quality {store.info.quality}, the model was trained at {config.quality}; "
            f"prepare the pictures with --quality {config.quality}"
        )
    height, width = config.trained_shape
    grid = Grid.of_size(height, width)
    if not any_size and not any(picture.within(window_of(config)) == grid for picture in store.grids):
        found, needed = store.info.size or store.info.target, height if height == width else grid.size
        if not is_prepared(data):
            raise ValueError(f"no picture of {data} is {needed} pixels large at {found}; give pictures of other shapes")
        raise ValueError(
            f"{data} was prepared at size {found}, the model was trained at {needed}; "
            f"prepare the pictures with --size {needed}"
        )
    return store


def window_of(config: Trained) -> Grid | None:
    """Return the grid of the windows on which a model was trained; None if it was trained on whole pictures."""
    return Grid.of_size(*config.trained_shape) if config.windows else None
