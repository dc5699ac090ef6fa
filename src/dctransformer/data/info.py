"""The description of a prepared data set: the contents of its ``dctransformer.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dctransformer.data.images import SUBSAMPLING
from dctransformer.data.shapes import Shape
from dctransformer.files import check_regular, write_text
from dctransformer.settings import parse_fields

INFO = "dctransformer.json"
"""Written last, so a folder that has it is complete."""

SKIPPED = "skipped.jsonl"
FORMAT = 2
"""Newest layout: 1 holds squares of one size; 2 any other shapes, with a table of the sizes."""
SPLITS = ("train", "validation")


class _Newer(ValueError):
    pass


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Codec settings and counts of a prepared data set."""

    size: int | None
    """Side of every picture in pixels; None if they are not squares of one size."""
    quality: int
    """JPEG quality, 1 to 100."""
    splits: dict[str, int]
    """Pictures in ``train`` and ``validation``."""
    labels: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes, in the order of their numbers; empty without classes."""
    source: str = ""
    """Where the pictures came from: an absolute path, a URL or an id."""
    val_fraction: float = 0.0
    """Part of the pictures that was held out for validation."""
    skipped: int = 0
    """Files that could not be read; ``skipped.jsonl`` lists them."""
    subsampling: str = SUBSAMPLING
    """Chroma subsampling."""
    fingerprint: str = ""
    """Hash of the settings and of the list of pictures."""
    contents: str = ""
    """Hash of the names, sizes and times of the pictures' files."""
    format: int = 1
    """Version of this layout: see `FORMAT`."""
    shape: dict[str, int] = dataclasses.field(default_factory=dict)
    """The shape of the pictures, if they are not squares: the settings of a `Shape`."""
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of pictures of each size (``"96x64"``, width by height), if they are not squares."""

    @classmethod
    def of_shape(cls, shape: Shape, **fields: Any) -> DatasetInfo:
        """Return the settings of pictures of a shape."""
        if shape.square is not None:
            return cls(size=shape.square, **fields)
        return cls(size=None, shape=shape.settings, format=FORMAT, **fields)

    @property
    def target(self) -> Shape:
        """The shape that the pictures were prepared to."""
        return Shape.of(self.size) if self.size is not None else Shape(**self.shape)

    @property
    def size_table(self) -> dict[str, int]:
        """Number of pictures of each size, the commonest first."""
        sizes = self.sizes or {str(self.target): sum(self.splits.values())}
        return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready fields; those that squares do not need are left out for them."""
        fields = dataclasses.asdict(self)
        if self.size is not None:
            del fields["shape"], fields["sizes"]
        return fields

    @property
    def side(self) -> int:
        """Side in pixels of the pictures, where all are squares of one size.

        Raises:
            ValueError: the pictures are not squares of one size.
        """
        if self.size is None:
            raise ValueError("this needs squares of one size; prepare the pictures with --size")
        return self.size

    @classmethod
    def load(cls, folder: str | Path) -> DatasetInfo:
        """Read a prepared data set's settings.

        Raises:
            ValueError: the folder does not hold a complete prepared data set of a format known here.
        """
        path = Path(folder) / INFO
        if not path.is_file():
            what = "there is no folder" if not Path(folder).is_dir() else "no prepared data set lies in"
            raise ValueError(f"{what} {folder}; make one with: dctransformer prepare SOURCE {folder}")
        try:
            return cls.of_fields(json.loads(path.read_text(encoding="utf-8")))
        except _Newer:
            raise ValueError(f"{path} was written by a newer version; update dctransformer") from None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); prepare the data again into a new folder") from error

    @classmethod
    def of_fields(cls, fields: Any) -> DatasetInfo:
        """Return the settings from JSON, with the type and the range of every field checked.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of range.
        """
        if not isinstance(fields, dict) or type(fields.get("format")) is not int:
            raise ValueError("it has no version")
        if fields["format"] > FORMAT:
            raise _Newer
        info = parse_fields(cls, fields, "it")
        if not set(info.splits) <= {*SPLITS, "all"} or min([0, *info.splits.values()], default=0) < 0:
            raise ValueError("splits is not a count of train and validation pictures")
        if not 1 <= info.quality <= 100 or not 0 <= info.val_fraction < 1 or info.skipped < 0 or info.format < 1:
            raise ValueError("a number is out of range")
        if info.subsampling != SUBSAMPLING:
            raise ValueError(f"subsampling is not {SUBSAMPLING}")
        if len(set(info.labels)) < len(info.labels):
            raise ValueError("a label is there twice")
        _ = info.size_table  # the shape is one
        return info

    def save(self, folder: str | Path) -> None:
        """Write ``dctransformer.json`` atomically."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        write_text(Path(folder) / INFO, text + "\n")


def shard_paths(folder: str | Path, split: str) -> list[Path]:
    """Return the Parquet files of a split, in order.

    Raises:
        ValueError: one is a named pipe, a device or a socket, or a link to one.
    """
    paths = sorted(Path(folder).glob(f"{split}-*.parquet"))
    for path in paths:
        check_regular(path)
    return paths
