"""The pictures that are compared: real ones, before and after the codec, and generated ones.

A `Pictures` reads a batch when it is asked for, so a set never lies in memory as a whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import Codec, DCTImage
from dctransformer.codec import order as codec_order
from dctransformer.codec.grid import Grid
from dctransformer.codec.jpeg import read_jpeg_bytes
from dctransformer.data.images import SUBSAMPLING, crop_resize, load_image, prepare_image
from dctransformer.data.info import DatasetInfo, shard_paths
from dctransformer.data.opening import is_prepared, open_pictures, window_of
from dctransformer.data.shapes import Shape
from dctransformer.data.shards import keys_of
from dctransformer.data.sources import Source, open_source, text
from dctransformer.data.store import TripleStore
from dctransformer.model.config import ModelConfig
from dctransformer.sampling.rows import Samples
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.labels import model_labels
from dctransformer.sequence.windows import centre_window

_CHECKED = 8
"""Originals whose coefficients are compared with those of the prepared set."""

SHEETS = {"sheet.png", "heat-map.png"}
"""What `dctransformer sample` writes next to the pictures themselves."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A list of equally large pictures.

    Attributes:
        name: of the set, for reports and messages.
        count: number of pictures.
        read: returns the pictures from one index to before another, uint8 ``[n, H, W, 3]``.
    """

    name: str
    count: int
    read: Callable[[int, int], Tensor]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.count

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all pictures in order, ``size`` at a time."""
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))

    def select(self, places: list[int]) -> Pictures:
        """Return some of the pictures, by their numbers."""
        read = self.read
        return Pictures(self.name, len(places), lambda a, b: torch.cat([read(i, i + 1) for i in places[a:b]]))

    def first(self, number: int) -> Pictures:
        """Return the first ``number`` pictures (all, if there are no more)."""
        return dataclasses.replace(self, count=min(number, self.count))

    def digest(self) -> str:
        """Return a hash of every pixel, of the order and of the size."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.batches(256):
            digest.update(repr(tuple(batch.shape[1:])).encode())
            digest.update(batch.numpy().tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real pictures in all the forms that an evaluation needs.

    Attributes:
        store: their triples.
        order: int64 ``[n]``, which picture of the store comes at which place (a fixed random order).
        labels: the model's class of each, in that order; its null label where it has none.
        originals: before the codec (cropped and resized only), or None.
        why_not: why there are no originals, "" if there are.
        name: the data set, for reports.
        split: part of it.
        window: grid of the window at the centre of each picture that stands for it; None for whole pictures.
    """

    store: TripleStore
    order: np.ndarray
    labels: list[int]
    originals: Pictures | None
    why_not: str
    name: str
    split: str
    window: Grid | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.order)

    @property
    def crop(self) -> str:
        """How pictures were cropped, for reports."""
        prepared = "centre, Lanczos" if self.store.info.size is None else "centre square, Lanczos"
        return prepared if self.window is None else f"{prepared}, of larger ones the window at the centre"

    def grid(self, index: int) -> Grid:
        """Return the grid of a picture as it is compared."""
        return self.store.grid(int(self.order[index])).within(self.window)

    def of_grid(self, grid: Grid) -> Reference:
        """Return the pictures of one grid."""
        places = [i for i in range(len(self)) if self.grid(i) == grid]
        labels = [self.labels[i] for i in places]
        originals = None if self.originals is None else self.originals.select(places)
        return dataclasses.replace(self, order=self.order[places], labels=labels, originals=originals)

    @property
    def codec(self) -> str:
        """The codec's settings, for reports."""
        return f"JPEG quality {self.store.info.quality}, {SUBSAMPLING}"

    def dct(self, start: int, stop: int) -> DCTImage:
        """Return the DCT images from one index to before another, which must be of one grid."""
        parts = [self._centred(int(i)) for i in self.order[start:stop]]
        grid = parts[0][1]
        height, width = codec_order.MCU * grid.rows, codec_order.MCU * grid.cols
        return Codec(self.store.info.quality).from_triples([triples for triples, _ in parts], height, width)

    def triples(self) -> list[Tensor]:
        """Return the triples of every picture as it is compared: int32 ``[L, 3]``."""
        return [self._centred(int(i))[0] for i in self.order]

    def _centred(self, picture: int) -> tuple[Tensor, Grid]:
        return centre_window(self.store.triples(picture), self.store.grid(picture), self.window)

    @property
    def round_trip(self) -> Pictures:
        """The pictures after the codec."""
        codec = Codec(self.store.info.quality)
        return Pictures("codec round trip", len(self), lambda a, b: codec.decode(self.dct(a, b)))

    def sequences(self, number: int | None = None) -> Iterator[Sequence]:
        """Yield the first pictures as the model's sequences, with their labels."""
        for i, label in list(zip(self.order, self.labels, strict=True))[:number]:
            triples, grid = self._centred(int(i))
            yield Sequence.from_triples(triples, grid, label)

    def first(self, number: int | None) -> Reference:
        """Return the first ``number`` pictures; None for all."""
        if number is None or number >= len(self):
            return self
        originals = None if self.originals is None else self.originals.first(number)
        return dataclasses.replace(self, order=self.order[:number], labels=self.labels[:number], originals=originals)


def open_reference(
    data: str | Path,
    config: ModelConfig,
    *,
    split: str = "train",
    originals: str | Path | None = None,
    find_originals: bool = True,
    progress: bool = False,
) -> Reference:
    """Open real pictures of the size that a model generates: whole, or windows at their centres for a model of windows.

    Args:
        data: a prepared data set, or a folder of pictures (encoded as the model's training pictures were).
        config: of the model.
        split: which part of a prepared set.
        originals: the folder that a prepared set was made from; None for the one it names itself, if it is there.
        find_originals: look for the originals of a prepared set at all.
        progress: show bars.

    Raises:
        ValueError: the data is missing, empty, of another size or quality, or does not belong to ``originals``.
    """
    if not is_prepared(data) and originals is not None:
        raise ValueError(f"{data} is a folder of pictures, the originals themselves; leave --originals out")
    store = open_pictures(data, split, config, progress=progress)
    grid, window = Grid.of_size(*config.trained_shape), window_of(config)
    if not is_prepared(data):
        return _of_folder(data, store, config, window).of_grid(grid)
    found, why_not = None, ""
    fitting = [picture for picture in store.grids if picture.within(window) == grid]
    chosen = np.sort(np.concatenate([store.members(picture) for picture in fitting]))
    try:
        if find_originals:
            found = _originals_of(data, split, originals or store.info.source, store, chosen, grid)
    except ValueError as error:
        if originals is not None:
            raise
        why_not = f"{error}; name the folder they were prepared from with --originals"
    return Reference(store, chosen, _labels(store, chosen, config), found, why_not, str(data), split, window)


def open_held_out(
    data: str | Path, config: ModelConfig, *, otherwise: str = "train", progress: bool = False
) -> Reference:
    """Open the pictures whose bits are counted: the validation part of a prepared set, without originals.

    They may be of several sizes; a picture with rows or columns that the model does not know is represented by the
    window at its centre.

    Args:
        data: a prepared data set, or a folder of pictures (all of them are taken).
        config: of the model.
        otherwise: the part to take if there is no validation part.
        progress: show bars.

    Raises:
        ValueError: as `open_reference`.
    """
    split, any_size = "validation", True
    if is_prepared(data):
        info = DatasetInfo.load(data)
        split, any_size = split if info.splits.get(split) else otherwise, info.size is None
    store = open_pictures(data, split, config, any_size=any_size, progress=progress)
    known = Grid.of_size(*config.trained_extent)
    if not is_prepared(data):
        return _of_folder(data, store, config, known)
    everything = np.arange(len(store))
    labels = _labels(store, everything, config)
    return Reference(store, everything, labels, None, "", str(data), split, known)


def _of_folder(data: str | Path, store: TripleStore, config: ModelConfig, window: Grid | None) -> Reference:
    source = open_source(data)
    unread = {key for key, _ in store.skipped}
    places = [i for i, item in enumerate(source.items) if item.key not in unread]
    assert len(places) == len(store)
    # By the hash of their names, as `prepare` does, so that the first pictures are a fair sample.
    order = np.array(sorted(range(len(places)), key=lambda i: source.items[places[i]].rank))
    chosen = [places[i] for i in order]
    originals = _read_from(source, chosen, store.info.target, window)
    return Reference(store, order, _labels(store, order, config), originals, "", str(data), "all", window)


def _originals_of(
    data: str | Path, split: str, folder: str | Path, store: TripleStore, pictures: np.ndarray, grid: Grid
) -> Pictures:
    """Find the source pictures of some pictures (int64, numbers in the store) of a prepared set, by their names.

    What lies around ``grid`` is cut. Some are checked by their coefficients.

    Raises:
        ValueError: they are not there, or are other pictures.
    """
    if not folder or not Path(folder).expanduser().exists():
        raise ValueError(f"the originals are not at hand (no folder {str(folder)!r} here)")
    source = open_source(folder, labels="none")
    index = {text(item.key): i for i, item in enumerate(source.items)}
    chosen = []
    for key in (key for shard in shard_paths(data, split) for key in keys_of(shard)):
        if key not in index:
            raise ValueError(f"{folder} is not what {data} was prepared from: it has no {key}")
        chosen.append(index[key])
    for place in sorted({round(i) for i in np.linspace(0, len(chosen) - 1, min(_CHECKED, len(chosen)))}):
        jpeg = prepare_image(source.read(chosen[place]), store.info.target, store.info.quality)
        if not torch.equal(read_jpeg_bytes(jpeg).to_triples()[0], store.triples(place)):
            raise ValueError(
                f"{folder} is not what {data} was prepared from: {source.items[chosen[place]].key} is another picture"
            )
    return _read_from(source, [chosen[i] for i in pictures], store.info.target, grid)


def _read_from(source: Source, chosen: list[int], shape: Shape, grid: Grid | None = None) -> Pictures:
    """Return source pictures, shaped as `prepare` does it; with ``grid``, the window at the centre of larger ones.

    Only pictures that come out equally large can be read together.
    """

    def read(start: int, stop: int) -> Tensor:
        pictures = [crop_resize(load_image(source.read(i), enough=shape), shape) for i in chosen[start:stop]]
        return torch.from_numpy(np.stack([_window(np.asarray(picture), grid) for picture in pictures]))

    return Pictures("originals", len(chosen), read)


def _window(picture: np.ndarray, window: Grid | None) -> np.ndarray:
    """Return the pixels of the window at a picture's centre, where `centre_window` puts it."""
    grid = Grid.of_size(*picture.shape[:2])
    inner = grid.within(window)
    top, left = (codec_order.MCU * place for place in grid.centre(inner))
    return picture[top : top + codec_order.MCU * inner.rows, left : left + codec_order.MCU * inner.cols]


def _labels(store: TripleStore, order: np.ndarray, config: ModelConfig) -> list[int]:
    """Return the model's class of each picture, by the classes' names."""
    return model_labels(config, store.info.labels, store.labels[order].tolist())


def of_samples(samples: Samples) -> Pictures:
    """Return the generated pictures."""
    codec = Codec(samples.quality)
    dct = samples.dct()
    return Pictures("generated", len(dct), lambda a, b: codec.decode(dct[a:b]))


def of_folder(folder: str | Path, size: int | tuple[int, int]) -> Pictures:
    """Return the pictures that somebody generated before, say with `dctransformer sample`.

    Contact sheets are left out; of a picture that lies there as PNG and as JPEG, the PNG file is taken.

    Args:
        folder: image files.
        size: height and width in pixels, or the side of squares; others are cropped and resized.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """
    source = open_source(folder)
    best: dict[str, int] = {}
    for i, item in enumerate(source.items):
        path = Path(item.key)
        stem = path.with_suffix("").as_posix()
        if path.name not in SHEETS and (stem not in best or path.suffix.lower() == ".png"):
            best[stem] = i
    if not best:
        raise ValueError(f"{folder} holds no pictures but contact sheets; give a folder of single pictures")
    height, width = (size, size) if isinstance(size, int) else size
    shape = Shape.of((width, height))
    pictures = _read_from(source, [best[stem] for stem in sorted(best)], shape)
    return dataclasses.replace(pictures, name="generated")
