"""Shards: units of pictures become pieces, and the pieces of a shard become one Parquet file."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from dctransformer.data.images import prepare_image
from dctransformer.data.info import DatasetInfo
from dctransformer.data.on_ray import on_ray
from dctransformer.data.plan import Shard, Unit
from dctransformer.data.shapes import Shape
from dctransformer.data.sources import Source, text
from dctransformer.files import atomic_write
from dctransformer.processes import cores, in_parallel

ROW_GROUP = 1024
"""Pictures of a shard that are read at a time."""

_SKIPPED_KEY = b"dctransformer.skipped"

_PIECE_SCHEMA = pa.schema(
    {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "rank": pa.uint64(),
        "reason": pa.string(),  # why the picture was skipped; null if it was not
    }
)


def make_shards(
    job: UnitJob,
    shards: list[Shard],
    path_of: Callable[[Shard], Path],
    labels: list[str],
    workers: int | None,
    progress: bool,
    engine: str,
) -> None:
    """Prepare the pieces that are missing; join those of a shard as soon as it has them all.

    Args:
        job: makes a unit's piece.
        shards: all shards of the data set.
        path_of: returns the path of a shard's file; a shard whose file exists is finished.
        labels: names of the classes.
        workers: processes; None for one per core.
        progress: whether to show a bar.
        engine: ``local`` or ``ray``.
    """
    todo: list[Unit] = []
    missing: dict[str, int] = {}  # shard name -> pieces still to be made
    done = 0
    ready = []
    for shard in shards:
        if path_of(shard).is_file():
            done += len(shard.members)
            continue
        units = [unit for unit in shard.units() if not (job.folder / unit.piece).is_file()]
        done += len(shard.members) - sum(len(unit.members) for unit in units)
        missing[shard.name] = len(units)
        todo += units
        if not units:
            ready.append(shard)
    of_name = {shard.name: shard for shard in shards}
    total = sum(len(shard.members) for shard in shards)
    skipped = 0
    bar = tqdm(total=total, initial=done, desc="prepare", unit="img", disable=not progress)
    with bar:
        for shard in ready:
            join(shard, job.folder, path_of(shard), labels)
        local = engine == "local"
        results = in_parallel(job, todo, min(workers or cores(), len(todo))) if local else _by_ray(job, todo, workers)
        for unit, failures in results:
            skipped += failures
            if skipped:
                bar.set_postfix(skipped=skipped, refresh=False)
            bar.update(len(unit.members))
            name = unit.piece.rsplit("-", 1)[0]
            missing[name] -= 1
            if not missing[name]:
                join(of_name[name], job.folder, path_of(of_name[name]), labels)


def _by_ray(job: UnitJob, todo: list[Unit], workers: int | None) -> Iterator[tuple[Unit, int]]:
    for unit, (piece, failures) in on_ray(job.piece_of, todo, workers):
        job.keep(unit, piece)
        yield unit, failures


@dataclasses.dataclass(frozen=True)
class UnitJob:
    """The job of a worker process: it prepares any unit of a source."""

    source: Source
    folder: Path
    shape: Shape
    quality: int

    def __call__(self, unit: Unit) -> int:
        """Prepare a unit into its piece; returns how many of its pictures could not be read."""
        piece, failures = self.piece_of(unit)
        self.keep(unit, piece)
        return failures

    def piece_of(self, unit: Unit) -> tuple[bytes, int]:
        """Return a unit's piece, and how many of its pictures could not be read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd metadata, large pictures: of no concern here
            rows = [self._row(index) for index in unit.members]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _PIECE_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=_PIECE_SCHEMA))
        return sink.getvalue().to_pybytes(), sum(row["reason"] is not None for row in rows)

    def keep(self, unit: Unit, piece: bytes) -> None:
        """Write a piece."""
        with atomic_write(self.folder / unit.piece) as temporary:
            temporary.write_bytes(piece)

    def _row(self, index: int) -> dict[str, Any]:
        item = self.source.items[index]
        data = reason = width = height = None
        try:
            data = prepare_image(self.source.read(index), self.shape, self.quality)
            width, height = self._size(data)
        except (ValueError, OSError, pa.ArrowException) as error:
            reason = text(str(error))
        return {
            "image": {"bytes": data, "path": text(item.key)},
            "label": item.label,
            "width": width,
            "height": height,
            "rank": item.rank,
            "reason": reason,
        }

    def _size(self, data: bytes) -> tuple[int, int]:
        """Return the width and height of a prepared picture."""
        if self.shape.width is not None and self.shape.height is not None:
            return self.shape.width, self.shape.height
        with Image.open(io.BytesIO(data)) as image:
            return image.size


def join(shard: Shard, folder: Path, path: Path, labels: list[str]) -> None:
    """Join a shard's pieces into one Parquet file, in the order of their hashes, and remove them.

    Raises:
        ValueError: a piece is damaged, or the file can't be written.
    """
    pieces = [folder / unit.piece for unit in shard.units()]
    tables = []
    for piece in pieces:
        try:
            tables.append(pa.ipc.open_file(pa.BufferReader(piece.read_bytes())).read_all())
        except (OSError, pa.ArrowException) as error:
            piece.unlink(missing_ok=True)
            raise ValueError(f"{piece} was damaged ({error}); run the command again, it makes it anew") from error
    table = pa.concat_tables(tables).sort_by("rank")
    reason = pc.field("reason")
    failed = table.filter(reason.is_valid())
    skipped = [
        {"path": image["path"], "reason": why}
        for image, why in zip(failed["image"].to_pylist(), failed["reason"].to_pylist(), strict=True)
    ]
    columns = ["image", "label", "width", "height"] if labels else ["image", "width", "height"]
    _write(table.filter(reason.is_null()).select(columns), path, labels, skipped)
    for piece in pieces:
        piece.unlink(missing_ok=True)


def _write(table: pa.Table, path: Path, labels: list[str], skipped: list[dict[str, str]]) -> None:
    metadata = {"huggingface": json.dumps(_features(labels)), _SKIPPED_KEY: json.dumps(skipped, ensure_ascii=False)}
    table = table.replace_schema_metadata(metadata)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        # JPEG bytes neither compress nor repeat.
        pq.write_table(table, file, compression="none", use_dictionary=False, row_group_size=ROW_GROUP)


def _features(labels: list[str]) -> dict[str, Any]:
    """Return the features by which the `datasets` library shows pictures and names of labels."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels:
        features["label"] = {"names": labels, "_type": "ClassLabel"}
    features["width"] = features["height"] = {"dtype": "int32", "_type": "Value"}
    return {"info": {"features": features}}


def keys_of(path: Path) -> list[str]:
    """Return the names of a shard's pictures within their source.

    Raises:
        ValueError: the shard is damaged.
    """
    try:
        return [cell["path"] for cell in pq.ParquetFile(path).read(columns=["image.path"])["image"].to_pylist()]
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again into a new folder") from error


def labels_of(path: Path) -> list[str]:
    """Return the names of the classes in a shard's metadata."""
    features = json.loads((pq.read_metadata(path).metadata or {}).get(b"huggingface", b"{}"))
    return features.get("info", {}).get("features", {}).get("label", {}).get("names", [])


def skipped_of(path: Path) -> list[dict[str, str]]:
    """Return the pictures that could not be read when a shard was made: ``path`` and ``reason`` of each."""
    return json.loads((pq.read_metadata(path).metadata or {}).get(_SKIPPED_KEY, b"[]"))


def balance(shards: list[Shard], source: Source, path_of: Callable[[Shard], Path], info: DatasetInfo) -> None:
    """Move a picture into a split that was drawn by name if it holds none that can be read.

    No data set ends without training pictures, nor, if a part is held out and there are two pictures or more, without
    validation pictures. An interrupted move is completed.
    """
    planned = {split: [s for s in shards if s.split == split] for split in ("train", "validation")}
    if not all(planned.values()):
        return
    split_of = {text(source.items[i].key): s.split for s in shards for i in s.members}
    rank_of = {text(source.items[i].key): source.items[i].rank for s in shards for i in s.members}
    counts = {split: sum(pq.read_metadata(path_of(s)).num_rows for s in parts) for split, parts in planned.items()}
    for to, other in (("train", "validation"), ("validation", "train")):
        if counts[to] > 1 or counts[to] + counts[other] < (1 if to == "train" else 2):
            continue
        moved = [key for shard in planned[to] for key in keys_of(path_of(shard)) if split_of[key] != to]
        if counts[to] and not moved:
            continue
        if not moved:
            keys = [key for shard in planned[other] for key in keys_of(path_of(shard))]
            moved = [(min if to == "validation" else max)(keys, key=rank_of.__getitem__)]
        for shard in planned[other]:
            path = path_of(shard)
            is_moved = [key == moved[0] for key in keys_of(path)]
            if not any(is_moved):
                continue
            table = pq.read_table(path)
            target = path_of(planned[to][0])
            if not counts[to]:  # first into the one, then out of the other: an interruption loses nothing
                _write(table.filter(pa.array(is_moved)), target, info.labels, skipped_of(target))
            _write(table.filter(pa.array([not moves for moves in is_moved])), path, info.labels, skipped_of(path))
        return
