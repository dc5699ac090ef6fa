"""The pictures that are compared: real ones, before and after the codec, and generated ones.

A `Pictures` reads a batch when it is asked for, so a set never lies in memory as a whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dctransformer.codec import Codec, DCTImage
from dctransformer.codec.grid import Grid
from dctransformer.data.images import SUBSAMPLING, crop_resize, load_image
from dctransformer.data.info import DatasetInfo, shard_paths
from dctransformer.data.opening import is_prepared, open_pictures
from dctransformer.data.sources import Source, open_source
from dctransformer.data.store import TripleStore
from dctransformer.model.config import ModelConfig
from dctransformer.sampling.engine import Samples
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.labels import model_labels

SHEETS = {"sheet.png", "heat-map.png"}
"""What `dctransformer sample` writes beside the pictures themselves."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A list of equally large pictures.

    Attributes:
        name: what they are, for reports and messages.
        count: how many.
        read: pictures from one index to before another, uint8 ``[n, H, W, 3]``.
    """

    name: str
    count: int
    read: Callable[[int, int], Tensor]

    def __len__(self) -> int:
        """How many."""
        return self.count

    def batches(self, size: int) -> Iterator[Tensor]:
        """All pictures in order, ``size`` at a time."""
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))

    def first(self, number: int) -> Pictures:
        """The first so many (all, if there are no more)."""
        return dataclasses.replace(self, count=min(number, self.count))

    def digest(self) -> str:
        """Hash of every pixel, of the order and of the size."""
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
    """

    store: TripleStore
    order: np.ndarray
    labels: list[int]
    originals: Pictures | None
    why_not: str
    name: str
    split: str

    def __len__(self) -> int:
        """How many."""
        return len(self.order)

    @property
    def codec(self) -> str:
        """The codec's settings, for reports."""
        return f"JPEG quality {self.store.info.quality}, {SUBSAMPLING}"

    def dct(self, start: int, stop: int) -> DCTImage:
        """The DCT images from one index to before another."""
        info = self.store.info
        triples = [self.store.triples(int(i)) for i in self.order[start:stop]]
        return Codec(info.quality).from_triples(triples, info.size, info.size)

    @property
    def round_trip(self) -> Pictures:
        """The pictures after the codec."""
        codec = Codec(self.store.info.quality)
        return Pictures("codec round trip", len(self), lambda a, b: codec.decode(self.dct(a, b)))

    def sequences(self, number: int | None = None) -> Iterator[Sequence]:
        """The first pictures as the model's sequences, with their labels."""
        grid = Grid.of_size(self.store.info.size, self.store.info.size)
        for i, label in list(zip(self.order, self.labels, strict=True))[:number]:
            yield Sequence.from_triples(self.store.triples(int(i)), grid, label)

    def first(self, number: int | None) -> Reference:
        """The first so many."""
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
    """Real pictures for a model.

    Args:
        data: a prepared data set, or a folder of pictures (cropped, resized and encoded as `prepare` does it).
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
    store = open_pictures(data, split, size=config.size, quality=config.quality, progress=progress)
    if not is_prepared(data):
        return _of_folder(data, store, config)
    info = store.info
    found, why_not = None, ""
    try:
        if find_originals:
            found = _originals_of(data, split, originals or info.source, info.size)
    except ValueError as error:
        if originals is not None:
            raise
        why_not = f"{error}; name the folder they were prepared from with --originals"
    return Reference(
        store, np.arange(len(store)), _labels(store, np.arange(len(store)), config), found, why_not, str(data), split
    )


def open_held_out(
    data: str | Path, config: ModelConfig, *, otherwise: str = "train", progress: bool = False
) -> Reference:
    """Pictures whose bits are counted, without originals: the validation part of a prepared set.

    Args:
        data: a prepared data set, or a folder of pictures (all of them are taken).
        config: of the model.
        otherwise: the part to take if there is no validation part.
        progress: show bars.

    Raises:
        ValueError: as `open_reference`.
    """
    split = "validation"
    if is_prepared(data) and not DatasetInfo.load(data).splits.get(split):
        split = otherwise
    return open_reference(data, config, split=split, find_originals=False, progress=progress)


def _of_folder(data: str | Path, store: TripleStore, config: ModelConfig) -> Reference:
    source = open_source(data)
    unread = {key for key, _ in store.skipped}
    places = [i for i, item in enumerate(source.items) if item.key not in unread]
    assert len(places) == len(store)
    # By the hash of their names, as `prepare` does: so that the first so many are a fair sample.
    order = np.array(sorted(range(len(places)), key=lambda i: source.items[places[i]].rank))
    chosen = [places[i] for i in order]
    return Reference(
        store, order, _labels(store, order, config), _read_from(source, chosen, config.size), "", str(data), "all"
    )


def _originals_of(data: str | Path, split: str, folder: str | Path, size: int) -> Pictures:
    """The source pictures of a prepared set, found by their names."""
    if not folder or not Path(folder).expanduser().exists():
        raise ValueError(f"the originals are not at hand (no folder {str(folder)!r} here)")
    source = open_source(folder)
    index = {item.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace"): i
             for i, item in enumerate(source.items)}  # fmt: skip
    chosen = []
    for shard in shard_paths(data, split):
        try:
            keys = pq.ParquetFile(shard).read(columns=["image.path"])["image"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{shard} is damaged ({error}); prepare the data again into a new folder") from error
        for key in keys:
            if key["path"] not in index:
                raise ValueError(f"{folder} is not what {data} was prepared from: it has no {key['path']}")
            chosen.append(index[key["path"]])
    return _read_from(source, chosen, size)


def _read_from(source: Source, chosen: list[int], size: int) -> Pictures:
    def read(start: int, stop: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd metadata: of no concern here
            pictures = [crop_resize(load_image(source.read(i), enough=size), size) for i in chosen[start:stop]]
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))

    return Pictures("originals", len(chosen), read)


def _labels(store: TripleStore, order: np.ndarray, config: ModelConfig) -> list[int]:
    """The model's class of each picture, by the classes' names."""
    return model_labels(config, store.info.labels, store.labels[order].tolist())


def of_samples(samples: Samples) -> Pictures:
    """Generated pictures."""
    codec = Codec(samples.quality)
    dct = samples.dct()
    return Pictures("generated", len(dct), lambda a, b: codec.decode(dct[a:b]))


def of_folder(folder: str | Path, size: int) -> Pictures:
    """Pictures that somebody generated before, say with `dctransformer sample`.

    Contact sheets are left out; of a picture that lies there as PNG and as JPEG, the PNG file is taken.

    Args:
        folder: image files.
        size: side in pixels; others are cropped and resized.

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
    return dataclasses.replace(_read_from(source, [best[stem] for stem in sorted(best)], size), name="generated")
