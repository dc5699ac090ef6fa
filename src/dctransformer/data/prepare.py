"""Preparation: any pictures go in, Parquet shards of small JPEG files come out, in Hugging Face's image convention.

The work is cut into *units* (see `dctransformer.data.plan`). Whichever process prepares a unit leaves it as a
*piece* in the hidden folder ``.partial``; once all pieces of a shard lie there, they become one Parquet file. Which
picture goes where depends on the source and the settings alone, so neither the number of workers nor an interruption
changes the result, and a run that was stopped goes on with the pieces that are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from tqdm import tqdm

from dctransformer.data.images import check_quality
from dctransformer.data.info import INFO, SKIPPED, SPLITS, DatasetInfo, shard_paths
from dctransformer.data.plan import Shard, contents, describe_plan, fingerprint, has_validation, plan
from dctransformer.data.shapes import Shape
from dctransformer.data.shards import UnitJob, balance, keys_of, labels_of, make_shards, skipped_of
from dctransformer.data.sources import Source, is_url, open_source, text
from dctransformer.files import locked_folder, printable, sweep, write_text

PARTIAL = ".partial"
"""Folder of pieces, inside the output; gone when the data set is complete."""

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
    labels: str | None = None,
    update: bool = False,
) -> DatasetInfo:
    """Turn pictures into a data set: cropped around the centre, resized, stored as JPEG files at the codec's quality.

    The same call again continues an interrupted run, or returns at once if the data set is complete. Pictures that
    can't be read are left out and listed in ``skipped.jsonl``. Where the source is split already (folders ``train``
    and ``val``, a data set's splits) its training and validation parts are kept and its test part is left out;
    otherwise a hash of each picture's name decides.

    Args:
        source: a folder of pictures (sub-folders are labels), a Parquet file or folder of them, the URL of such a
            folder in an object store, a zip or tar file, a `datasets` id, or what the `datasets` library has loaded.
        out: a folder to be made.
        size: the side of squares in pixels, or ``"192x128"`` or (width, height), multiples of 16; 64 if no shape is
            given.
        quality: JPEG quality, 1 to 100.
        val_fraction: part held out for validation, 0 to below 1.
        workers: processes; None for one per core.
        progress: whether to print the labels and splits that were found, and to show a bar.
        engine: ``local`` processes, or ``ray``: Ray's workers, here or on a cluster's machines, each of which must
            be able to read the source; this process writes. The result is the same.
        long_side: keep the aspect ratio: the longer side in pixels, a multiple of 16; the other is cropped to one.
        short_side: the same for the shorter side.
        labels: ``none``, ``folders``, the path of a table of labels, or the name of a column; None to recognise them.
        update: add what the source has in addition to what ``out`` holds, in new shards; the others stay as they are.

    Returns:
        The description of the data set.

    Raises:
        ValueError: an argument is out of range, the source holds no readable pictures, ``out`` holds something else
            or a run with other settings, or the disk is full.
    """
    shape = Shape.of(size, long_side, short_side)
    _check_settings(quality, val_fraction, workers, engine)
    out = Path(out).expanduser()
    named = isinstance(source, (str, Path))
    if named and not is_url(source) and out.exists() and out.resolve() == Path(source).expanduser().resolve():
        raise ValueError(f"{out} is both source and output; choose another folder for the output")

    listing = open_source(source, exclude=out, labels=labels)
    if not named:
        source = f"{type(source).__name__} loaded by datasets"
    elif not is_url(source) and Path(source).expanduser().exists():
        source = os.path.abspath(Path(source).expanduser())
    info = DatasetInfo.of_shape(
        shape,
        quality=quality,
        splits=dict.fromkeys(SPLITS, 0),
        labels=listing.labels,
        source=str(source),
        val_fraction=val_fraction,
        fingerprint=fingerprint(listing, shape, quality, val_fraction),
        contents=contents(listing.items),
    )
    _check_output(out)
    if (out / INFO).is_file() and not update:
        present = DatasetInfo.load(out)
        _require_same(present, info, f"{out} holds a data set")
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        return present
    work = functools.partial(_make, listing, workers=workers, progress=progress, engine=engine)
    with locked_folder(out):
        if (out / INFO).is_file():
            return _update(listing, out, info, work)
        if update and not (out / PARTIAL).is_dir():
            raise ValueError(f"{out} holds no data set to update; leave --update out")
        _begin(out, info)
        finished = work(plan(listing, shape, val_fraction), out, info)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        return finished


def _check_settings(quality: int, val_fraction: float, workers: int | None, engine: str) -> None:
    """Raise ValueError for settings of `prepare` that are out of range."""
    check_quality(quality)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction {val_fraction} is not in [0, 1); choose one, say 0.05")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} is less than 1; leave it out for one per core")
    if engine not in ("local", "ray"):
        raise ValueError(f"engine {engine!r} is neither local nor ray; choose one")


def _check_output(out: Path) -> None:
    """Raise ValueError for an output that is a file, or whose pieces a link would lead elsewhere."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for the output")
    if (out / PARTIAL).is_symlink():
        raise ValueError(f"{out / PARTIAL} is a link; remove it")


def _make(
    listing: Source,
    shards: list[Shard],
    out: Path,
    info: DatasetInfo,
    staged: Path | None = None,
    *,
    workers: int | None,
    progress: bool,
    engine: str,
) -> DatasetInfo:
    """Make shards and finish the data set; with ``staged`` they stay in that folder until all are complete."""

    def path_of(shard: Shard) -> Path:
        path = out / f"{shard.name}.parquet"
        return path if staged is None or path.is_file() else staged / path.name

    if progress:
        for line in describe_plan(listing, shards):
            tqdm.write(printable(line), file=sys.stderr)
    job = UnitJob(listing, out / PARTIAL, info.target, info.quality)
    make_shards(job, shards, path_of, info.labels, workers, progress, engine)
    if staged is None and not has_validation(listing):
        balance(shards, listing, path_of, info)
    for shard in shards if staged is not None else []:
        path_of(shard).replace(out / f"{shard.name}.parquet")
    return _finish(out, info)


# The output folder ----------------------------------------------------------------------------------------------------


def _begin(out: Path, info: DatasetInfo) -> None:
    """Write the settings of a new run, or check that an unfinished run has the same."""
    settings = out / PARTIAL / _SETTINGS
    if settings.is_file():
        _require_same(_read_settings(out)[0], info, f"{out} holds an unfinished data set")
        return
    if any(not p.name.startswith(".") for p in out.iterdir()):
        raise ValueError(f"{out} holds other files; choose a new or empty folder for the output")
    write_text(settings, json.dumps(info.to_dict()))


def _read_settings(out: Path) -> tuple[DatasetInfo, dict[str, int]]:
    """Read the settings of an unfinished run, and how many shards of each split there were before it."""
    path = out / PARTIAL / _SETTINGS
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        first = fields.pop("first", {})
        return DatasetInfo.of_fields(fields), {split: int(first.get(split, 0)) for split in SPLITS}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {out / PARTIAL} and start again") from error


def _require_same(present: DatasetInfo, wanted: DatasetInfo, what: str) -> None:
    if present.fingerprint == wanted.fingerprint:
        if present.contents and present.contents != wanted.contents:
            raise ValueError(
                f"{what} made from files that have changed since (other sizes or times); choose another folder or "
                "delete it"
            )
        return
    _require_settings(present, wanted, what)
    raise ValueError(
        f"{what} made from other pictures (source {present.source}); use --update to add what is new, choose another "
        "folder or delete it"
    )


def _require_settings(present: DatasetInfo, wanted: DatasetInfo, what: str) -> None:
    if present.target != wanted.target:
        old, new = (info.size or info.target for info in (present, wanted))
        raise ValueError(f"{what} with size {old}, not {new}; choose another folder or delete it")
    for name in ("quality", "val_fraction"):
        old, new = getattr(present, name), getattr(wanted, name)
        if old != new:
            raise ValueError(f"{what} with {name} {old}, not {new}; choose another folder or delete it")


def _update(listing: Source, out: Path, info: DatasetInfo, work: Any) -> DatasetInfo:
    """Add what a source has in addition to a finished data set, in new shards."""
    present = DatasetInfo.load(out)
    _require_settings(present, info, f"{out} holds a data set")
    first = {split: len(shard_paths(out, split)) for split in SPLITS}
    if (out / PARTIAL / _SETTINGS).is_file():
        begun, first = _read_settings(out)
        if (begun.fingerprint, begun.contents) != (info.fingerprint, info.contents):
            # The source has changed in between: unfinished shards do not belong to the data set yet.
            for split in SPLITS:
                for path in shard_paths(out, split)[first[split] :]:
                    path.unlink()
            shutil.rmtree(out / PARTIAL)
    known = {key for split in SPLITS for path in shard_paths(out, split)[: first[split]] for key in keys_of(path)}
    failed = {line["path"] for split in SPLITS for path in shard_paths(out, split) for line in skipped_of(path)}
    old = [item for item in listing.items if text(item.key) in known]
    if not old:
        raise ValueError(f"{out} holds none of the pictures of {info.source}; choose another folder for the output")
    if len(old) < len(known):
        listing.notes.append(f"{len(known) - len(old):,} prepared pictures are gone from the source; they stay")
    listed = known | failed
    if present.contents not in ("", contents(item for item in listing.items if text(item.key) in listed)):
        listing.notes.append("files have changed or gone since; the pictures prepared from them stay as they are")
    labels = present.labels and [*present.labels, *(name for name in listing.labels if name not in present.labels)]
    number = {name: i for i, name in enumerate(labels)}
    of_listing = [number.get(name) for name in listing.labels]
    listing.items = [
        item._replace(label=None if item.label is None else of_listing[item.label]) for item in listing.items
    ]
    listing.labels = labels
    info = dataclasses.replace(info, labels=labels)
    shards = plan(listing, info.target, info.val_fraction, known, first)
    write_text(out / PARTIAL / _SETTINGS, json.dumps({**info.to_dict(), "first": first}))
    finished = work(shards, out, info, out / PARTIAL)
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return finished


def _finish(out: Path, info: DatasetInfo) -> DatasetInfo:
    """Count the pictures, list those that were skipped, and write the files that describe the data set."""
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    reasons: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    paths = [(split, path) for split in SPLITS for path in shard_paths(out, split)]
    for split, path in paths:
        if info.size is None:
            sides = pq.read_table(path, columns=["width", "height"])
            sizes.update(f"{w}x{h}" for w, h in zip(*(c.to_pylist() for c in sides.columns), strict=True))
        counts[split] += pq.read_metadata(path).num_rows
        reasons |= {line["path"]: line["reason"] for line in skipped_of(path)}
    if reasons and sum(counts.values()):  # a later update may have read what could not be read at first
        for key in (key for _, path in paths for key in keys_of(path)):
            reasons.pop(key, None)
    lines = [{"path": path, "reason": reason} for path, reason in sorted(reasons.items())]
    if not counts["train"]:
        for _, path in paths:
            path.unlink(missing_ok=True)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        what = f"{len(lines)} pictures" if not sum(counts.values()) else "training pictures"
        why = f"; the first: {lines[0]['reason']}" if lines else ""
        raise ValueError(f"none of the {what} of {info.source} can be used{why}")
    write_text(out / SKIPPED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    sweep(out, older_than=0)
    info = dataclasses.replace(info, splits=counts, skipped=len(lines), sizes=dict(sorted(sizes.items())))
    of_shards = {tuple(labels_of(path)) for _, path in paths}
    write_text(out / "README.md", _card(info, declare=len(of_shards) > 1))
    info.save(out)
    return info


def _card(info: DatasetInfo, declare: bool) -> str:
    """Return a data set card, from which Hugging Face's tools find the splits.

    Args:
        info: the data set.
        declare: name the labels, because the shards have different ones.
    """
    features = ""
    if declare:
        names = "\n".join(f"          '{i}': {json.dumps(name)}" for i, name in enumerate(info.labels))
        features = f"""dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
{names}
  - name: width
    dtype: int32
  - name: height
    dtype: int32
"""
    files = "\n".join(
        f"  - split: {split}\n    path: {split}-*.parquet" for split, count in info.splits.items() if count
    )
    return f"""---
{features}configs:
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
