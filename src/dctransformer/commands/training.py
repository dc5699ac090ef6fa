"""The commands `prepare` and `train`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dctransformer.files import printable
from dctransformer.model.config import Architecture, ModelConfig
from dctransformer.training.config import TrainConfig
from dctransformer.training.config_file import ConfigFile, read_config_file


@dataclasses.dataclass
class Prepare:
    """Turn a folder of pictures into a data set: JPEG files of one quality in Parquet shards.

    Sub-folders are labels. Any picture that Pillow reads will do; what can't be read is skipped and listed in
    OUT/skipped.jsonl. An interrupted run goes on where it stopped.

    Example: dctransformer prepare ~/photos data --size 64 --quality 20
    """

    source: tyro.conf.Positional[str]
    """Image folder, Parquet file or folder, the URL of one (s3://…, hf://…), zip or tar file, or a `datasets` id."""
    out: tyro.conf.Positional[Path]
    """Folder for the data set."""
    size: str | None = None
    """Crop to squares of so many pixels, or to WIDTHxHEIGHT, multiples of 16; 64 if no shape is given."""
    long_side: int | None = None
    """Or keep the aspect ratio: pixels of the longer side, a multiple of 16 (the other is cropped to one)."""
    short_side: int | None = None
    """The same for the shorter side."""
    quality: int = 20
    """JPEG quality, 1 to 100: higher means finer pictures and longer sequences."""
    val_fraction: float = 0.05
    """Part of the pictures kept for validation."""
    workers: int | None = None
    """Processes; all cores if not given."""
    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or Ray's workers: here, or on the cluster that RAY_ADDRESS names."""
    labels: str | None = None
    """none, folders, a table of labels (.csv, .jsonl, .json), or a column; recognised automatically if not given."""
    update: bool = False
    """Add pictures that are new in the source to OUT, in new shards."""

    def run(self) -> None:
        """Prepare the data set and print its counts."""
        from dctransformer.data import prepare

        info = prepare(
            self.source, self.out, size=self.size, quality=self.quality, val_fraction=self.val_fraction,
            workers=self.workers, engine=self.engine, long_side=self.long_side, short_side=self.short_side,
            labels=self.labels, update=self.update,
        )  # fmt: skip
        counts = ", ".join(f"{n:,} {split}" for split, n in info.splits.items())
        sizes = list(info.size_table)
        shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, most often {sizes[0]}"
        print(f"{printable(self.out)}: {counts}; {printable(shown)}; {info.skipped} skipped; {len(info.labels)} labels")


@dataclasses.dataclass
class Train:
    """Train a model on a prepared data set. The same command again resumes the run.

    Example: dctransformer train --data data --run runs/flowers --preset small --triples 20000000
    """

    data: Path
    """Folder made by `dctransformer prepare`."""
    run_: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder: weights, settings, curves and samples go there."""
    config: Path | None = None
    """TOML file of settings, as in configs/paper; the command line takes precedence over it."""
    preset: str = "small"
    """Shape of the model: tiny, small, base or paper; that of the model of --init if there is one and none is given."""
    model: Architecture = dataclasses.field(default_factory=Architecture)
    """Changes to the preset."""
    options: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)
    """Settings of the loop."""

    def run(self) -> None:
        """Train the model and print its scores as JSON."""
        from dctransformer.training.loop import train

        if self.config is not None:
            from dctransformer.data.info import DatasetInfo

            read_config_file(self.config).data.check(DatasetInfo.load(self.data), self.data)
        metrics = train(self.data, self.run_, ModelConfig(**dataclasses.asdict(self.model)), self.options)
        if os.environ.get("RANK", "0") == "0":  # one of several processes prints
            print(json.dumps(metrics), flush=True)
        if metrics.get("signal"):  # unfinished: the exit status must not be that of a finished run
            raise SystemExit(128 + metrics["signal"])


def _word_after(option: str, argv: list[str]) -> str | None:
    """Return the value of an option on the command line, before it is parsed."""
    for i, word in enumerate(argv):
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
    return None


def train_defaults(argv: list[str]) -> Train:
    """Return the defaults of the command line, which --help shows: the preset's values and the file's."""
    path, name = _word_after("--config", argv), _word_after("--preset", argv)
    file = ConfigFile() if path is None else read_config_file(path)
    config, options = file.architecture(name), file.train
    init = _word_after("--init", argv)
    if init is not None and name is None and path is None:
        from dctransformer.hub.pretrained import model_folder, read_config

        config = read_config(model_folder(init))
    # A budget on the command line replaces the file's, whichever of the two it is counted in.
    if _word_after("--minutes", argv) is not None:
        options = dataclasses.replace(options, triples=None)
    if _word_after("--triples", argv) is not None:
        options = dataclasses.replace(options, minutes=None)
    chosen = Architecture(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Architecture)})
    return Train(tyro.MISSING, tyro.MISSING, None, name or file.preset or "small", chosen, options)
