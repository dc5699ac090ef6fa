"""A run folder: the one place that knows the name and purpose of every file of a training run.

* ``config.json`` and ``model.safetensors``: the model for `from_pretrained` (EMA weights, the best on validation);
* ``train.json``: settings of the loop, and the fingerprint of the data set;
* ``checkpoint.safetensors``: weights, EMA, optimiser state and progress, replaced atomically;
* ``metrics.jsonl`` and ``tensorboard/``: the curves;
* ``samples/``: sheets of samples drawn on the way.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from dctransformer.files import make_folder, write_text
from dctransformer.hub.pretrained import WEIGHTS, read_config, write_config
from dctransformer.model.config import ModelConfig
from dctransformer.training.config import MAY_CHANGE, TrainConfig

SETTINGS, CHECKPOINT, METRICS = "train.json", "checkpoint.safetensors", "metrics.jsonl"
TENSORBOARD, SAMPLES = "tensorboard", "samples"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def weights(self) -> Path:
        """The best EMA weights."""
        return self.path / WEIGHTS

    @property
    def settings(self) -> Path:
        """Settings of the loop."""
        return self.path / SETTINGS

    @property
    def checkpoint(self) -> Path:
        """All that a resumed run needs."""
        return self.path / CHECKPOINT

    @property
    def metrics(self) -> Path:
        """The curves, a JSON object per line."""
        return self.path / METRICS

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / TENSORBOARD

    def sheet(self, step: int) -> Path:
        """Return the sheet of samples drawn after a step."""
        return self.path / SAMPLES / f"step-{step:07d}.png"

    @property
    def resumable(self) -> bool:
        """Whether there is a run to go on with."""
        return self.checkpoint.exists()

    def prepare(self, model: ModelConfig, config: TrainConfig, data: str) -> None:
        """Write the settings of a new run, or compare them with those of the run that is resumed.

        Args:
            model: shape of the model.
            config: settings of the loop.
            data: fingerprint of the data set.

        Raises:
            ValueError: the folder holds other files, or a run of another config or data set.
        """
        now = {**json.loads(json.dumps(dataclasses.asdict(config))), "data": data}
        if self.resumable and self.settings.exists():
            self._compare(model, now)
        elif not self.settings.exists() and self.path.is_dir() and self._other_files():
            raise ValueError(f"{self.path} is a folder with other files in it; choose another run folder")
        make_folder(self.path)
        write_config(model, self.path)
        write_text(self.settings, json.dumps(now, indent=2) + "\n")

    def _other_files(self) -> bool:
        # Names that start with .dctransformer are the lock and temporary files.
        return any(not path.name.startswith(".dctransformer") for path in self.path.iterdir())

    def _compare(self, model: ModelConfig, now: dict[str, object]) -> None:
        try:
            before = json.loads(self.settings.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.settings} is damaged ({error}); choose another run folder") from error
        differ = [k for k in now if k not in MAY_CHANGE and before.get(k, now[k]) != now[k]]
        old = read_config(self.path).to_dict()
        if not old["prepared"]:  # an older version did not record it; the data set is compared anyway
            old["prepared"] = model.prepared
        differ += [k for k, v in model.to_dict().items() if old[k] != v]
        if differ:
            raise ValueError(
                f"{self.path} is a run of another config (it differs in {', '.join(differ)}); "
                "use the settings and the data it was started with, or another run folder"
            )
