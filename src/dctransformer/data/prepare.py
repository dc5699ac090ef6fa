"""Preparing: any pictures go in, Parquet shards of small JPEG files come out, in Hugging Face's image convention.

The work is cut into *units* of `UNIT` pictures. Whichever process prepares a unit leaves it as a *piece* in the
hidden folder ``.partial``; once all pieces of a shard lie there, they become one Parquet file. Which picture goes
where depends on the source and the settings alone, so neither the number of workers nor an interruption changes the
result, and a run that was stopped goes on with the pieces that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from dctransformer.data.images import check_quality, prepare_image
from dctransformer.data.info import INFO, SKIPPED, SPLITS, DatasetInfo
from dctransformer.data.on_ray import on_ray
from dctransformer.data.shapes import Shape
from dctransformer.data.sources import Source, _text, is_url, open_source
from dctransformer.files import atomic_write, sweep, write_text
from dctransformer.processes import cores, in_parallel

PARTIAL = ".partial"
"""Folder of pieces, inside the output; gone when the data set is complete."""

UNIT = 64
"""Pictures that one process prepares at a time: what an interruption can cost each worker."""

ROW_GROUP = 1024
"""Pictures of a shard that are read at a time."""

_SETTINGS = "settings.json"


def prepare(
    source: Any,
    out: str | Path,
    size: int | str | tuple[int, int] | None = None,
    quality: int = 20,
    val_fraction: float = 0.05,
    workers: int | None = None,
    progress: bool = True,
    engine: Literal["local", "ray"] = "local",
    *,
    long_side: int | None = None,
    short_side: int | None = None,
) -> DatasetInfo:
    """Turn pictures into a data set: cropped around the centre, resized, stored as JPEG files at the codec's quality.

    The same call again continues an interrupted run, or returns at once if the data set is complete. Pictures that
    can't be read are left out and listed in ``skipped.jsonl``. Where the source is split already (folders ``train``
    and ``val``, a data set's splits) its training and validation parts are kept and its test part is left out;
    otherwise a hash of each picture's name decides.

    Args:
        source: a folder of pictures (sub-folders are labels), a Parquet file or folder of them, the URL of such a
            folder in an object store, a `datasets` id, or what the `datasets` library has loaded.
        out: a folder to be made.
        size: the side of squares in pixels, or ``"192x128"`` or (width, height), multiples of 16; 64 if no shape is
            given.
        quality: JPEG quality, 1 to 100.
        val_fraction: part held out for validation, 0 to below 1.
        workers: processes; None for one a core.
        progress: whether to show a bar.
        engine: ``local`` processes, or ``ray``: Ray's workers, here or on a cluster's machines, each of which must
            be able to read the source; this process writes. The result is the same.
        long_side: keep the aspect ratio: the longer side in pixels, a multiple of 16; the other is cropped to one.
        short_side: the same for the shorter side.

    Returns:
        What the data set holds.

    Raises:
        ValueError: an argument is out of range, the source holds no readable pictures, ``out`` holds something else
            or a run with other settings, or the disk is full.
    """
    shape = Shape.of(size, long_side, short_side)
    check_quality(quality)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction {val_fraction} is not in [0, 1); choose one, say 0.05")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} is less than 1; leave it out for one a core")
    if engine not in ("local", "ray"):
        raise ValueError(f"engine {engine!r} is neither local nor ray; choose one")
    out = Path(out).expanduser()
    named = isinstance(source, (str, Path))
    if named and not is_url(source) and out.exists() and out.resolve() == Path(source).expanduser().resolve():
        raise ValueError(f"{out} is both source and output; choose another folder for the output")

    listing = open_source(source, exclude=out)
    shards = _plan(listing, shape, val_fraction)
    info = DatasetInfo.of_shape(
        shape,
        quality=quality,
        splits=dict.fromkeys(SPLITS, 0),
        labels=listing.labels,
        source=str(source) if named else f"{type(source).__name__} loaded by datasets",
        val_fraction=val_fraction,
        fingerprint=_fingerprint(listing, shape, quality, val_fraction),
    )
    finished = _begin(out, info)
    if finished is None:
        _make_shards(listing, shards, out, info, workers, progress, engine)
        finished = _finish(shards, out, info)
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return finished


# What goes where ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One Parquet file to be: ``members`` are indices into the source's items, in the order they are read."""

    split: str
    number: int
    members: list[int]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    def units(self) -> list[_Unit]:
        return [
            _Unit(f"{self.name}-{i:04d}.arrow", self.members[start : start + UNIT])
            for i, start in enumerate(range(0, len(self.members), UNIT))
        ]


@dataclasses.dataclass(frozen=True)
class _Unit:
    piece: str
    members: list[int]


def _plan(source: Source, shape: Shape, val_fraction: float) -> list[_Shard]:
    """Which picture goes into which shard."""
    ranks = [item.rank for item in source.items]
    names = {item.split for item in source.items}
    of_split: dict[str, list[int]] = {split: [] for split in SPLITS}
    if "validation" in names:
        for i, item in enumerate(source.items):
            if item.split in SPLITS:
                of_split[item.split].append(i)
    else:
        ours = [i for i, item in enumerate(source.items) if item.split != "test"]
        held_out = {i for i in ours if ranks[i] < val_fraction * 2**64}
        if val_fraction and not held_out and len(ours) > 1:
            held_out = {min(ours, key=ranks.__getitem__)}
        for i in ours:
            of_split["validation" if i in held_out else "train"].append(i)
    length = _pictures_a_shard(shape.pixels)
    shards = []
    for split, members in of_split.items():
        if not source.sequential:
            members.sort(key=ranks.__getitem__)  # classes mixed, so that any stretch of a shard is a fair sample
        shards += [
            _Shard(split, number, members[start : start + length])
            for number, start in enumerate(range(0, len(members), length))
        ]
    return shards


def _pictures_a_shard(pixels: int) -> int:
    """Number of pictures, of so many pixels each, that make shards of some ten megabytes."""
    return min(8192, max(256, 2**28 // pixels))


def _fingerprint(source: Source, shape: Shape, quality: int, val_fraction: float) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((1, shape.square or str(shape), quality, val_fraction, source.labels)).encode())
    for item in source.items:
        digest.update(f"{_text(item.key)}\0{item.label}\0{item.split}\n".encode())
    return digest.hexdigest()


# The output folder ----------------------------------------------------------------------------------------------------


def _begin(out: Path, info: DatasetInfo) -> DatasetInfo | None:
    """Make the output folder or recognise what it holds: the finished data set, if it is that."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for the output")
    settings = out / PARTIAL / _SETTINGS
    if (out / INFO).is_file():
        there = DatasetInfo.load(out)
        _require_same(there, info, f"{out} holds a data set")
        return there
    if settings.is_file():
        try:
            there = DatasetInfo(**json.loads(settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{settings} is damaged ({error}); delete {out} and start again") from error
        _require_same(there, info, f"{out} holds an unfinished data set")
        return None
    if out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise ValueError(f"{out} holds other files; choose a new or empty folder for the output")
    write_text(settings, json.dumps(info.to_dict()))
    return None


def _require_same(there: DatasetInfo, wanted: DatasetInfo, what: str) -> None:
    if there.fingerprint == wanted.fingerprint:
        return
    if there.target != wanted.target:
        old, new = (info.size or info.target for info in (there, wanted))
        raise ValueError(f"{what} with size {old}, not {new}; choose another folder or delete it")
    for name in ("quality", "val_fraction"):
        old, new = getattr(there, name), getattr(wanted, name)
        if old != new:
            raise ValueError(f"{what} with {name} {old}, not {new}; choose another folder or delete it")
    raise ValueError(f"{what} made from other pictures (source {there.source}); choose another folder or delete it")


def _finish(shards: list[_Shard], out: Path, info: DatasetInfo) -> DatasetInfo:
    """Count, list what was skipped, and write what describes the whole."""
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    skipped: list[dict[str, str]] = []
    sizes: Counter[str] = Counter()
    for shard in shards:
        if info.size is None:
            sides = pq.read_table(_shard_path(out, shard), columns=["width", "height"])
            sizes.update(f"{w}x{h}" for w, h in zip(*(c.to_pylist() for c in sides.columns), strict=True))
        metadata = pq.read_metadata(_shard_path(out, shard))
        counts[shard.split] += metadata.num_rows
        skipped += json.loads(metadata.metadata[_SKIPPED_KEY])
    skipped.sort(key=lambda line: line["path"])
    write_text(out / SKIPPED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped))
    if not sum(counts.values()):
        for shard in shards:
            _shard_path(out, shard).unlink(missing_ok=True)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        reason = skipped[0]["reason"]
        (out / SKIPPED).unlink()
        raise ValueError(f"none of the {len(skipped)} pictures of {info.source} can be used; the first: {reason}")
    sweep(out, older_than=0)
    info = dataclasses.replace(info, splits=counts, skipped=len(skipped), sizes=dict(sorted(sizes.items())))
    write_text(out / "README.md", _card(info))
    info.save(out)
    return info


def _card(info: DatasetInfo) -> str:
    """A data set card, which tells Hugging Face's tools where the splits are."""
    files = "\n".join(
        f"  - split: {split}\n    path: {split}-*.parquet" for split, count in info.splits.items() if count
    )
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---

Pictures prepared for DCTransformer: {_size_words(info)} pixels, JPEG quality {info.quality}, {info.subsampling}.

    from datasets import load_dataset
    data = load_dataset("path/to/this/folder")

`dctransformer.json` holds the settings, counts and label names; `{SKIPPED}` lists the files that could not be read.
"""


def _size_words(info: DatasetInfo) -> str:
    sizes = list(info.size_table)
    if len(sizes) == 1:
        return sizes[0].replace("x", "×")
    return f"{len(sizes)} sizes ({info.target})"


# Making shards --------------------------------------------------------------------------------------------------------

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


def _shard_path(out: Path, shard: _Shard) -> Path:
    return out / f"{shard.name}.parquet"


def _make_shards(
    source: Source,
    shards: list[_Shard],
    out: Path,
    info: DatasetInfo,
    workers: int | None,
    progress: bool,
    engine: str,
) -> None:
    """Prepare the pieces that are missing; join those of a shard as soon as it has them all."""
    todo: list[_Unit] = []
    missing: dict[str, int] = {}  # shard name -> pieces still to be made
    done = 0
    ready = []
    for shard in shards:
        if _shard_path(out, shard).is_file():
            done += len(shard.members)
            continue
        units = [unit for unit in shard.units() if not (out / PARTIAL / unit.piece).is_file()]
        done += len(shard.members) - sum(len(unit.members) for unit in units)
        missing[shard.name] = len(units)
        todo += units
        if not units:
            ready.append(shard)
    of_name = {shard.name: shard for shard in shards}
    job = _Job(source, out / PARTIAL, info.target, info.quality)
    total = sum(len(shard.members) for shard in shards)
    skipped = 0
    bar = tqdm(total=total, initial=done, desc="prepare", unit="img", disable=not progress)
    with bar:
        for shard in ready:
            _join(shard, out, info)
        local = engine == "local"
        made = in_parallel(job, todo, min(workers or cores(), len(todo))) if local else _by_ray(job, todo, workers)
        for unit, failures in made:
            skipped += failures
            if skipped:
                bar.set_postfix(skipped=skipped, refresh=False)
            bar.update(len(unit.members))
            name = unit.piece.rsplit("-", 1)[0]
            missing[name] -= 1
            if not missing[name]:
                _join(of_name[name], out, info)


def _by_ray(job: _Job, todo: list[_Unit], workers: int | None) -> Iterator[tuple[_Unit, int]]:
    for unit, (piece, failures) in on_ray(job.made, todo, workers):
        job.keep(unit, piece)
        yield unit, failures


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a process needs to prepare any unit."""

    source: Source
    folder: Path
    shape: Shape
    quality: int

    def __call__(self, unit: _Unit) -> int:
        """Prepare a unit into its piece; returns how many of its pictures could not be read."""
        piece, failures = self.made(unit)
        self.keep(unit, piece)
        return failures

    def made(self, unit: _Unit) -> tuple[bytes, int]:
        """A unit's piece, and how many of its pictures could not be read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd metadata, large pictures: of no concern here
            rows = [self._row(index) for index in unit.members]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _PIECE_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=_PIECE_SCHEMA))
        return sink.getvalue().to_pybytes(), sum(row["reason"] is not None for row in rows)

    def keep(self, unit: _Unit, piece: bytes) -> None:
        """Write a piece."""
        with atomic_write(self.folder / unit.piece) as beside:
            beside.write_bytes(piece)

    def _row(self, index: int) -> dict[str, Any]:
        item = self.source.items[index]
        data = reason = width = height = None
        try:
            data = prepare_image(self.source.read(index), self.shape, self.quality)
            width, height = self._size(data)
        except (ValueError, OSError, pa.ArrowException) as error:
            reason = _text(str(error))
        return {
            "image": {"bytes": data, "path": _text(item.key)},
            "label": item.label,
            "width": width,
            "height": height,
            "rank": item.rank,
            "reason": reason,
        }

    def _size(self, data: bytes) -> tuple[int, int]:
        """Width and height of a prepared picture."""
        if self.shape.width is not None and self.shape.height is not None:
            return self.shape.width, self.shape.height
        with Image.open(io.BytesIO(data)) as image:
            return image.size


def _join(shard: _Shard, out: Path, info: DatasetInfo) -> None:
    """Make a shard's pieces one Parquet file, in the order of their hashes, and remove them."""
    pieces = [out / PARTIAL / unit.piece for unit in shard.units()]
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
    columns = ["image", "label", "width", "height"] if info.labels else ["image", "width", "height"]
    table = table.filter(reason.is_null()).select(columns)
    metadata = {"huggingface": json.dumps(_features(info)), _SKIPPED_KEY: json.dumps(skipped, ensure_ascii=False)}
    table = table.replace_schema_metadata(metadata)
    path = _shard_path(out, shard)
    with atomic_write(path) as beside, beside.open("wb") as file:
        # JPEG bytes neither compress nor repeat.
        pq.write_table(table, file, compression="none", use_dictionary=False, row_group_size=ROW_GROUP)
    for piece in pieces:
        piece.unlink(missing_ok=True)


def _features(info: DatasetInfo) -> dict[str, Any]:
    """What the `datasets` library needs to show pictures and names of labels."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if info.labels:
        features["label"] = {"names": info.labels, "_type": "ClassLabel"}
    features["width"] = features["height"] = {"dtype": "int32", "_type": "Value"}
    return {"info": {"features": features}}
