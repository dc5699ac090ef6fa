"""The plan of a data set: which picture goes into which shard, from the listing of a source alone."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator

from dctransformer.data.info import SPLITS
from dctransformer.data.shapes import Shape
from dctransformer.data.sources import Item, Source, text

UNIT = 64
"""Pictures that one process prepares at a time, and that an interruption can cost each worker."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """Pictures that one process prepares at a time, and the name of the file for them."""

    piece: str
    members: list[int]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A planned Parquet file: ``members`` are indices into the source's items, in the order they are read."""

    split: str
    number: int
    members: list[int]

    @property
    def name(self) -> str:
        """Name of the file without its suffix."""
        return f"{self.split}-{self.number:05d}"

    def units(self) -> list[Unit]:
        """Split the shard into units."""
        return [
            Unit(f"{self.name}-{i:04d}.arrow", self.members[start : start + UNIT])
            for i, start in enumerate(range(0, len(self.members), UNIT))
        ]


def plan(
    source: Source, shape: Shape, val_fraction: float, known: Collection[str] = (), first: dict[str, int] | None = None
) -> list[Shard]:
    """Deal pictures into shards.

    Args:
        source: the listing.
        shape: of the prepared pictures.
        val_fraction: part that is held out if the source has no validation part.
        known: keys of pictures to leave out, because a data set holds them already.
        first: number of the first shard of each split; 0 if not given.
    """
    of_split: dict[str, list[int]] = {split: [] for split in SPLITS}
    ranks = [item.rank for item in source.items]
    if has_validation(source):
        for i, item in enumerate(source.items):
            if item.split in SPLITS:
                of_split[item.split].append(i)
    else:
        candidates = [i for i, item in enumerate(source.items) if item.split != "test"]
        held_out = {i for i in candidates if ranks[i] < val_fraction * 2**64}
        if val_fraction and not held_out and len(candidates) > 1:
            held_out = {min(candidates, key=ranks.__getitem__)}
        if len(held_out) == len(candidates) and held_out:  # never a set without a training part
            held_out.remove(max(held_out, key=ranks.__getitem__))
        for i in candidates:
            of_split["validation" if i in held_out else "train"].append(i)
    length = pictures_per_shard(shape.pixels)
    shards = []
    for split, members in of_split.items():
        members = [i for i in members if text(source.items[i].key) not in known] if known else members
        if not source.sequential:
            members.sort(key=ranks.__getitem__)  # classes mixed, so that any stretch of a shard is a fair sample
        shards += [
            Shard(split, number, members[start : start + length])
            for number, start in enumerate(range(0, len(members), length), (first or {}).get(split, 0))
        ]
    return shards


def has_validation(source: Source) -> bool:
    """Return whether the source itself holds out a part."""
    return any(item.split == "validation" for item in source.items)


def pictures_per_shard(pixels: int) -> int:
    """Return the number of pictures, of so many pixels each, that make shards of some ten megabytes."""
    return min(8192, max(256, 2**28 // pixels))


def fingerprint(source: Source, shape: Shape, quality: int, val_fraction: float) -> str:
    """Return a hash of the settings and of the names, labels and splits of the pictures."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((1, shape.square or str(shape), quality, val_fraction, source.labels)).encode())
    for item in source.items:
        digest.update(f"{text(item.key)}\0{item.label}\0{item.split}\n".encode())
    return digest.hexdigest()


def contents(items: Iterable[Item]) -> str:
    """Return a hash of the pictures' names, sizes and times: it changes when a file does."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(f"{text(item.key)}\0{item.stamp}\n".encode())
    return digest.hexdigest()


def describe_plan(source: Source, shards: list[Shard]) -> Iterator[str]:
    """Yield lines that describe the labels and splits that were found, with counts."""
    counts = collections.Counter(item.label for item in source.items)
    if source.labels:
        most = [f"{source.labels[n]} ({counts[n]:,})" for n in range(min(len(source.labels), 8))]
        more = ", …" if len(source.labels) > len(most) else ""
        without = f"; {counts[None]:,} pictures without" if counts[None] else ""
        yield f"labels: {len(source.labels):,} from {source.labels_from}: {', '.join(most)}{more}{without}"
    else:
        yield "labels: none"
    parts = collections.Counter({split: 0 for split in SPLITS})
    for shard in shards:
        parts[shard.split] += len(shard.members)
    test = sum(item.split == "test" for item in source.items)
    left_out = f"; {test:,} test pictures are left out" if test else ""
    how = "as the source has them" if has_validation(source) else "drawn by name"
    yield "splits: " + ", ".join(f"{split} {count:,}" for split, count in parts.items()) + f" ({how}){left_out}"
    yield from (f"note: {note}" for note in source.notes)
