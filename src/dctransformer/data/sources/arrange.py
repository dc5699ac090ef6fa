"""Labels and splits from file names: which files are pictures, and which folders are splits, classes or neither."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from dctransformer.data.formats import register_optional_readers
from dctransformer.data.sources.base import SPLIT_NAMES, Item, count_noun, label_notes, number_labels
from dctransformer.data.sources.metadata import METADATA, NoLabels, read_labels

# Pictures that Pillow may not read: listed as skipped rather than passed over in silence.
_OTHER_PICTURES = {".heic", ".heif", ".avif", ".jxl", ".svg"}
_RAW = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"}

_LEFT_OUT = {
    "@eadir", "#recycle", "@recycle", "__macosx", "thumbnails", "lost+found", "$recycle.bin",
    "system volume information",
}  # fmt: skip
"""Folders that systems fill with thumbnails and rubbish (in lower case; hidden ones are left out anyway)."""

_PLAIN = {"images", "image", "imgs", "img", "jpegimages", "jpg", "pictures", "photos", "data"}
"""Folders whose names carry no information about their pictures (in lower case)."""

_ANNOTATIONS = {
    "annotations", "annotation", "labels", "masks", "mask", "trimaps", "segmentation", "segmentations",
    "segmentationclass", "segmentationobject", "depth",
}  # fmt: skip
"""Folders next to ``images`` that hold other things than photographs (in lower case)."""


class File(NamedTuple):
    """A file of a source."""

    path: str
    """Relative, with slashes."""
    stamp: str = ""
    problem: str = ""
    split: str | None = None
    label: str | None = None
    """The label from a file next to it, in archives of samples."""


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """Pictures with their labels and splits."""

    items: list[Item]
    labels: list[str]
    labels_from: str
    notes: list[str]


@functools.cache
def _picture_suffixes() -> set[str]:
    Image.preinit()  # Pillow tries formats in the order in which they are loaded: the common ones first
    register_optional_readers()
    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN} | _OTHER_PICTURES | _RAW


def is_picture(path: str) -> bool:
    """Return whether a file is taken for a picture, by its name."""
    return PurePath(path).suffix.lower() in _picture_suffixes()


def is_left_out(folder: str) -> bool:
    """Return whether a folder is hidden, or one that systems fill with thumbnails and rubbish."""
    return folder.startswith(".") or folder.casefold() in _LEFT_OUT


def drop_hidden(paths: list[File]) -> tuple[list[File], list[str]]:
    """Return the files that are neither hidden nor in folders left out, sorted; and notes."""
    kept, left_out = [], collections.Counter()
    for file in paths:
        *folders, name = file.path.split("/")
        rubbish = next((folder for folder in folders if is_left_out(folder)), None)
        if rubbish is not None and not rubbish.startswith("."):
            left_out[rubbish] += 1
        elif rubbish is None and not name.startswith("."):
            kept.append(file)
    notes = []
    for name, count in sorted(left_out.items()):
        notes.append(f"left out: {count_noun(count, 'file')} in folders named {name}")
    return kept, notes


def arrange(files: list[File], read: Callable[[str], bytes], labels: str | None, skip: int = 0) -> Arrangement:
    """Find labels and splits of the pictures among some files.

    Folders ``train`` and ``val`` or ``test`` (in any case) are splits. Labels come from ``dataset.json``,
    ``metadata.jsonl`` or ``metadata.csv`` if there is one that holds any, else the folders below are classes.

    Args:
        files: all files, none of them hidden.
        read: returns the contents of a file, by its path.
        labels: ``none``, ``folders``, the path of a table here, or a column of a metadata file; None as above.
        skip: levels of folders at the top that are neither splits nor classes.

    Raises:
        ValueError: the labels that were chosen are not there.
    """
    places = [i for i, file in enumerate(files) if is_picture(file.path)]
    notes: list[str] = []
    parts = [files[i].path.split("/") for i in places]
    places, parts, level = _enter(places, parts, skip, notes)
    splits, level = _splits(files, places, parts, level, notes)
    values, source = _labels(files, places, parts, level, read, labels, notes)
    try:
        names, numbers = number_labels(values)
    except ValueError as error:
        if labels is not None:
            raise ValueError(f"the labels from {source} can't be used: there is {error}") from None
        notes.append(f"the labels from {source} are not used: there is {error}")
        names, numbers, source = [], [None] * len(places), "none"
    notes += label_notes(names, len(places), source)
    if names and None in numbers:
        notes.append(f"{numbers.count(None):,} pictures have no label")
    items = [
        Item(files[i].path, number, split, files[i].stamp, files[i].problem or problem or _raw(files[i].path))
        for i, number, (split, problem) in zip(places, numbers, splits, strict=True)
    ]
    return Arrangement(items, names, source if names else "none", notes)


def _raw(path: str) -> str:
    if PurePath(path).suffix.lower() in _RAW:
        return "it is a camera's raw file; develop it into JPEG or PNG first"
    return ""


def _tops(parts: list[list[str]], level: int) -> set[str | None]:
    """Return the names of the folders at a level; None for pictures that lie there themselves."""
    return {p[level] if len(p) > level + 1 else None for p in parts}


def _enter(
    places: list[int], parts: list[list[str]], level: int, notes: list[str]
) -> tuple[list[int], list[list[str]], int]:
    """Go into folders that hold everything and are no classes, and past annotations."""
    while parts:
        tops = _tops(parts, level)
        images = [top for top in tops if top is not None and top.casefold() in _PLAIN]
        others = [top for top in tops if top not in images]
        if len(images) == 1 and others and all(top and top.casefold() in _ANNOTATIONS for top in others):
            keep = [i for i, p in enumerate(parts) if p[level] == images[0]]
            notes.append(f"only {images[0]} is taken, not {', '.join(sorted(map(str, others)))}")
            places, parts = [places[i] for i in keep], [parts[i] for i in keep]
            continue
        (top,) = tops if len(tops) == 1 else (None,)
        if top is None or top.casefold() in SPLIT_NAMES:
            break
        if top.casefold() not in _PLAIN and any(len(p) == level + 2 for p in parts):
            break  # a class
        level += 1
    return places, parts, level


def _splits(
    files: list[File], places: list[int], parts: list[list[str]], level: int, notes: list[str]
) -> tuple[list[tuple[str | None, str]], int]:
    """Return each picture's split, and why it can't be read if it is in none; and the level below the splits."""
    given = [files[i].split for i in places]
    if "train" in given:
        return [(split, "") for split in given], level
    tops = _tops(parts, level)
    known = {top: SPLIT_NAMES.get(top.casefold()) for top in tops if top is not None}
    if "train" not in known.values():
        return [(None, "")] * len(places), level
    if None in known.values():
        if len({split for split in known.values() if split}) > 1:
            folders = sorted(top for top, split in known.items() if split)
            others = sorted(top for top, split in known.items() if not split)
            notes.append(
                f"{', '.join(folders)} are taken for classes, not for splits, because there are other folders next to "
                f"them ({', '.join(others[:3])}{', …' if len(others) > 3 else ''})"
            )
        return [(None, "")] * len(places), level
    folders = ", ".join(sorted(known))
    stray = f"it lies next to the folders {folders}; move it into one of them"
    splits = [(known[p[level]], "") if len(p) > level + 1 else ("train", stray) for p in parts]
    below = [p for p in parts if len(p) > level + 1]
    level += 1
    while (tops := _tops(below, level)) and len(tops) == 1 and str(next(iter(tops))).casefold() in _PLAIN:
        level += 1
    return splits, level


# Labels ---------------------------------------------------------------------------------------------------------------


def _labels(
    files: list[File],
    places: list[int],
    parts: list[list[str]],
    level: int,
    read: Callable[[str], bytes],
    labels: str | None,
    notes: list[str],
) -> tuple[list[Any], str]:
    """Return each picture's label, and where they come from."""
    nothing: list[Any] = [None] * len(places)
    if labels == "none":
        return nothing, "none"
    paths = [files[i].path for i in places]
    if labels not in (None, "folders"):
        if Path(labels).expanduser().is_file():
            path = Path(labels).expanduser()
            table, _ = read_labels(str(path), path.read_bytes())
            return _look_up(table, paths, labels), labels
        found = _metadata(files, paths, read, labels, notes)
        if found is None:
            raise ValueError(
                f"--labels {labels} is neither a file nor a column of {' or '.join(METADATA[1:])} among the pictures; "
                "use none, folders, a file or a column"
            )
        return found
    if labels is None:
        given = [files[i].label for i in places]
        if any(label is not None for label in given):
            return given, "the files next to the pictures"
        found = _metadata(files, paths, read, None, notes)
        if found is not None:
            return found
    return [p[level] if len(p) > level + 1 else None for p in parts], "folders"


def _metadata(
    files: list[File], paths: list[str], read: Callable[[str], bytes], column: str | None, notes: list[str]
) -> tuple[list[Any], str] | None:
    """Return the labels from the metadata files among the pictures; None if there are none."""
    of_path: dict[str, Any] = {}
    sources: list[str] = []
    for file in files:
        path = PurePosixPath(file.path)
        if path.name not in METADATA or file.problem or (column is not None and path.name == METADATA[0]):
            continue
        try:
            table, found = read_labels(file.path, read(file.path), column)
        except NoLabels as error:
            notes.append(f"{error}; --labels COLUMN chooses one")
            continue
        except ValueError:
            # Other tools have a dataset.json, too.
            if path.name == METADATA[0]:
                continue
            raise
        sources.append(file.path if path.name == METADATA[0] else f"{file.path}, column {found}")
        of_path |= {_joined(path.parent, name): label for name, label in table.items()}
    if not sources:
        return None
    values = [of_path.get(unicodedata.normalize("NFC", path)) for path in paths]
    if of_path and all(value is None for value in values):
        notes.append(f"{sources[0]} names none of the pictures and is not used")
        return None
    return values, sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"


def _joined(folder: PurePosixPath, name: str) -> str:
    return unicodedata.normalize("NFC", os.path.normpath((folder / name.replace("\\", "/")).as_posix()))


def _look_up(table: dict[str, Any], paths: list[str], name: str) -> list[Any]:
    """Return the labels of pictures by their paths, by the ends of their paths, or by their names without suffix."""
    table = {_joined(PurePosixPath(), key): value for key, value in table.items()}
    values = []
    for path in paths:
        parts = unicodedata.normalize("NFC", path).split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        ends += [PurePosixPath(parts[-1]).stem]
        values.append(next((table[end] for end in ends if end in table), None))
    if all(value is None for value in values):
        raise ValueError(f"{name} names none of the pictures; give their paths as they are in the source")
    return values
