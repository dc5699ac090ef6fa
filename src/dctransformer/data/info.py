"""What a prepared data set is: the contents of its ``dctransformer.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dctransformer.data.images import SUBSAMPLING
from dctransformer.files import write_text

INFO = "dctransformer.json"
"""Written last, so a folder that has it is complete."""

SKIPPED = "skipped.jsonl"
FORMAT = 1
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Codec settings and counts of a prepared data set."""

    size: int
    """Side of every picture in pixels."""
    quality: int
    """JPEG quality, 1 to 100."""
    splits: dict[str, int]
    """Pictures in ``train`` and ``validation``."""
    labels: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes, in the order of their numbers; empty without classes."""
    source: str = ""
    """Where the pictures came from, as it was given."""
    val_fraction: float = 0.0
    """Part of the pictures that was held out for validation."""
    skipped: int = 0
    """Files that could not be read; ``skipped.jsonl`` lists them."""
    subsampling: str = SUBSAMPLING
    """Chroma subsampling."""
    fingerprint: str = ""
    """Hash of the settings and of the list of pictures."""
    format: int = FORMAT
    """Version of this layout."""

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
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if fields["format"] > FORMAT:
                raise ValueError(f"{path} was written by a newer version; update dctransformer")
            return cls(**fields)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); prepare the data again into a new folder") from error

    def save(self, folder: str | Path) -> None:
        """Write ``dctransformer.json``, beside and renamed."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        write_text(Path(folder) / INFO, text + "\n")


def shard_paths(folder: str | Path, split: str) -> list[Path]:
    """The Parquet files of a split, in order."""
    return sorted(Path(folder).glob(f"{split}-*.parquet"))
