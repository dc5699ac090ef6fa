"""Pictures of any source as coefficients in a model's tables: a JPEG file's own where they fit, else re-encoded.

Shapes: N MCUs.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from dctransformer.codec import Codec, DCTImage, order, read_jpeg_bytes
from dctransformer.codec.adapt import mcu_grid, read_own_coefficients
from dctransformer.codec.grid import CHANNEL_OF_RANK, RANK_OF_SLOT, Grid
from dctransformer.codec.triples import ranked, scatter
from dctransformer.data.images import prepare_image
from dctransformer.data.info import SPLITS
from dctransformer.data.opening import Trained, is_prepared, open_pictures
from dctransformer.data.shapes import prepared_shape
from dctransformer.data.sources import Source, is_single_picture, open_source, text
from dctransformer.data.sources.arrange import is_picture
from dctransformer.files import check_regular


@dataclasses.dataclass(frozen=True, eq=False)
class Coefficients:
    """Coefficients of one picture.

    Attributes:
        mcus: int16 ``[N, 6, 64]``.
        grid: its MCU grid.
    """

    mcus: Tensor
    grid: Grid


class PictureSource:
    """The pictures of a prepared data set or of any source, one at a time.

    Attributes:
        names: of the pictures, without file name suffixes, no two alike; ``/`` separates folders.
        labels: class number of each, −1 where there is none.
        label_names: of the classes.
    """

    def __init__(self, data: str | Path, split: str, config: Trained, exclude: Path | None = None):
        """List the pictures.

        Args:
            data: a prepared data set, a folder of pictures or anything else that `prepare` takes, or one picture.
            split: of a prepared data set.
            config: of the model.
            exclude: a folder to leave out of the listing.

        Raises:
            ValueError: there is no such data or split, or it does not fit the model.
        """
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        self.codec, self.shape = Codec(config.quality), prepared_shape(config.prepared, config.trained_shape)
        self.known = Grid.of_size(*config.trained_extent)
        self.store, self.source, self.path = None, None, Path(data)
        self.label_names: list[str] = []
        if is_prepared(data):
            self.store = open_pictures(data, split, config, any_size=True)
            self.label_names, self.labels = self.store.info.labels, self.store.labels.tolist()
            self.names = [f"{split}-{i:06d}" for i in range(len(self.store))]
        elif is_single_picture(data):
            self.labels, self.names = [-1], [self.path.stem]
        else:
            self.source: Source | None = open_source(data, exclude)
            self.label_names = self.source.labels
            self.labels = [-1 if item.label is None else item.label for item in self.source.items]
            self.names = _distinct([_name(item.key) for item in self.source.items])

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.names)

    def read(self, index: int) -> Coefficients:
        """Read a picture.

        Returns:
            A JPEG file's own coefficients if it is upright, has the model's tables and is made of whole MCUs; else
            those of the picture cropped, resized and encoded as the model's training pictures were, and of a larger
            one than the model knows the window at its centre.

        Raises:
            ValueError: it can't be read, or a JPEG file's coefficients are larger than an encoder makes them.
        """
        if self.store is not None:
            grid = self.store.grid(index)
            return Coefficients(scatter(*ranked(self.store.triples(index)), grid), grid)
        file = self.path if self.source is None else self.source.read(index)
        if not isinstance(file, bytes):
            check_regular(file)
        dct, window = read_own_coefficients(file), None
        if dct is None or not self._fits(dct):
            dct, window = read_jpeg_bytes(prepare_image(file, self.shape, self.codec.quality)), self.known
        mcus, grid = _centre(dct.to_mcus()[0], mcu_grid(dct), window)
        limits = self.codec.value_limits()[CHANNEL_OF_RANK[RANK_OF_SLOT]]
        if bool(((mcus.abs() > limits) | (mcus > 1023)).any()):
            raise ValueError("its coefficients are larger than an encoder makes them; encode its pixels again")
        return Coefficients(mcus, grid)

    def _fits(self, dct: DCTImage) -> bool:
        """Return whether a JPEG file has the model's tables and whole MCUs."""
        return (
            dct.height % order.MCU == dct.width % order.MCU == 0
            and torch.equal(dct.luma_table, self.codec.luma_table)
            and torch.equal(dct.tables[-1], self.codec.chroma_table)
        )


def _centre(mcus: Tensor, picture: Grid, window: Grid | None) -> tuple[Tensor, Grid]:
    """Return the MCUs of the window at a picture's centre, and its grid."""
    grid = picture.within(window)
    top, left = picture.centre(grid)
    rows = mcus.unflatten(0, (picture.rows, picture.cols))[top : top + grid.rows, left : left + grid.cols]
    return rows.flatten(0, 1), grid


def _name(key: str) -> str:
    """Return the name of a picture from its key: without an ending, and without parts that lead out of a folder."""
    parts = [part for part in PurePosixPath(text(key)).parts if part not in ("/", "..")]
    path = PurePosixPath(*parts or ("picture",))
    return str(path.with_suffix("") if is_picture(path.name) else path).replace("\0", "")


def _distinct(names: list[str]) -> list[str]:
    """Return the names, numbered where they are alike (some file systems ignore case)."""
    used: set[str] = set()
    distinct = []
    for name in names:
        numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        distinct.append(next(candidate for candidate in numbered if candidate.casefold() not in used))
        used.add(distinct[-1].casefold())
    return distinct
