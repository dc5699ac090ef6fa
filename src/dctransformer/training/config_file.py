"""Settings of a training in a file (``dctransformer train --config FILE``), as ``configs/paper`` has them.

A TOML file with up to four parts, each optional::

    preset = "paper"          # shape of the model

    [model]                   # changes to it: `dctransformer.model.config.Architecture`
    dropout = 0.1

    [train]                   # the loop: `dctransformer.training.config.TrainConfig`
    triples = 300_000_000_000
    conditions.low = 0.0

    [data]                    # what the data set must be like: `DataWanted`
    size = 256                # or "192x128", or long_side or short_side
    quality = 50

The command line takes precedence over the file, the file over the preset.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any

from dctransformer.files import check_regular
from dctransformer.hub.compatibility import without_retired
from dctransformer.model.config import PRESETS, Architecture, ModelConfig, preset
from dctransformer.settings import parse_fields
from dctransformer.training.config import TrainConfig

if typing.TYPE_CHECKING:
    from dctransformer.data.info import DatasetInfo
    from dctransformer.data.shapes import Shape


@dataclasses.dataclass(frozen=True)
class DataWanted:
    """The data set that the settings are meant for; None leaves a property open."""

    size: int | str | None = None
    """Side of squares in pixels, or ``"192x128"``."""
    long_side: int | None = None
    """Pixels of the longer side, the aspect ratio being kept."""
    short_side: int | None = None
    """Pixels of the shorter side, the aspect ratio being kept."""
    quality: int | None = None
    """JPEG quality."""
    labels: int | None = None
    """Number of classes; 0 for none."""

    @property
    def shape(self) -> Shape | None:
        """The shape of the pictures; None if it is left open.

        Raises:
            ValueError: several are given, or one is impossible.
        """
        if self.size is None and self.long_side is None and self.short_side is None:
            return None
        from dctransformer.data.shapes import Shape

        return Shape.of(self.size, self.long_side, self.short_side)

    def check(self, info: DatasetInfo, name: str | Path) -> None:
        """Compare with a prepared data set.

        Args:
            info: of the data set.
            name: its folder.

        Raises:
            ValueError: it is of another size, quality or number of classes.
        """
        shape = self.shape
        pairs = {
            "size": (shape and (shape.square or shape), info.size or info.target),
            "quality": (self.quality, info.quality),
            "labels": (self.labels, len(info.labels)),
        }
        for field, (wanted, has) in pairs.items():
            if wanted is not None and wanted != has:
                raise ValueError(
                    f"the config file is for a data set of {field} {wanted}, but {name} has {has}; "
                    "prepare the data accordingly, or change the file's [data] part"
                )


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The settings of a file."""

    preset: str | None = None
    """Name of a preset."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `Architecture` that differ from the preset's."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """Settings of the loop."""
    data: DataWanted = dataclasses.field(default_factory=DataWanted)
    """What the data set must be like."""

    def architecture(self, name: str | None = None) -> Architecture:
        """Return the model's architecture.

        Args:
            name: a preset to take instead of the file's own.

        Raises:
            ValueError: there is no such preset, or the changes don't fit it.
        """
        return preset(name or self.preset or "small", **self.model)

    def model_config(self) -> ModelConfig:
        """Return the whole shape of the model for the data that the file describes."""
        wanted = {"quality": self.data.quality, "num_labels": self.data.labels}
        known: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        shape = self.data.shape
        if shape is not None:
            width, height = shape.result(4, 3)  # where the aspect ratio is kept, that of most photographs
            known |= {"size": min(width, height), "shape": () if width == height else (height, width)}
            if shape.width is None:
                known["extent"] = (max(width, height),) * 2
        return dataclasses.replace(
            preset(self.preset or "small", **self.model), **known, conditions=self.train.conditions.names()
        )


def read_config_file(path: str | Path) -> ConfigFile:
    """Read settings from a TOML file.

    Raises:
        ValueError: the file can't be read, a name in it is unknown (the nearest known one is given), or a value has the
            wrong type or is out of range.
    """
    check_regular(Path(path).expanduser())
    try:
        with Path(path).expanduser().open("rb") as file:
            fields = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); give a TOML file with --config") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not TOML ({error}); correct it") from error
    try:
        read = parse_fields(ConfigFile, fields, "the file")
        shape = PRESETS.get(str(read.preset), {})
        read = dataclasses.replace(read, model=without_retired(read.model, shape.get("local_context", True)))
        parse_fields(Architecture, read.model, "model")  # whether it fits the preset is checked below
        read.train.check()
        read.model_config()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return read
