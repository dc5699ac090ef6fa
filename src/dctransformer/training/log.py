"""The curves of a run: ``metrics.jsonl``, TensorBoard and the progress bar."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dctransformer.files import write_text
from dctransformer.hub.curves import OVER_TRIPLES, shipped_curves, validation_score
from dctransformer.model.config import ModelConfig
from dctransformer.sampling.likelihood import FIELDS
from dctransformer.training.bands import BANDS, PARTS, bits_per_triple
from dctransformer.training.config import DEFAULT_TRIPLES
from dctransformer.training.run_folder import RunFolder
from dctransformer.training.trainer import Progress, Trainer

EVERY = 20
"""Steps between two lines of training metrics."""


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard; lines after the step that a run resumes at are dropped.

    In TensorBoard the scores of validations stand under ``over triples``, too, by triples seen instead of steps, next
    to the curves that come with the package: runs with other batches compare there, and, as bytes are relative to those
    of Huffman codes, runs on other pictures. They are a TensorBoard run of their own, since what a resumed run drops
    there is counted in triples.
    """

    def __init__(self, folder: RunFolder, step: int, model: ModelConfig | None = None, structure: bool = True):
        """Open the files.

        Args:
            folder: of the run.
            step: that the run goes on from.
            model: shape of the model, by which shipped curves are chosen; None for none.
            structure: whether structure is trained, likewise.
        """
        self.path = folder.metrics
        kept: list[str] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("TensorBoard is not installed; curves go to metrics.jsonl only (pip install 'dctransformer[train]')")
            self.board = self.by_triples = None
        else:
            self.board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)
            seen = max((json.loads(line).get("triples", 0) for line in kept), default=0)
            self.by_triples = SummaryWriter(str(folder.tensorboard / "this run"), purge_step=seen + 1)
            for curve in [] if model is None else shipped_curves(model, structure):
                place = folder.tensorboard / f"shipped {curve.name}"
                if not place.exists():
                    with SummaryWriter(str(place)) as board:
                        for line in curve.validations():
                            _over_triples(board, line)

    def write(self, state: Progress, metrics: dict[str, float]) -> None:
        """Append one line."""
        line = {"step": state.step, "triples": state.triples, "seconds": round(state.seconds, 2), **metrics}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, state.step)
        if self.by_triples is not None:
            _over_triples(self.by_triples, line)

    def picture(self, state: Progress, name: str, pixels: Tensor) -> None:
        """Show a picture in TensorBoard: uint8 ``[H, W, 3]``."""
        if self.board is not None:
            self.board.add_image(name, pixels, state.step, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard."""
        for board in (self.board, self.by_triples):
            if board is not None:
                board.close()


def _over_triples(board: Any, line: dict[str, Any]) -> None:
    """Write a line's scores of a validation, if it has any, by triples seen."""
    for name in OVER_TRIPLES:
        score = validation_score(line, name)
        if score is not None:
            board.add_scalar(f"over triples/{name}", score, line["triples"])


class Log:
    """The reports of a training: sums over a few steps go to the metrics and to a progress bar."""

    def __init__(self, trainer: Trainer, folder: RunFolder, show: bool):
        """Open the metrics and the progress bar.

        Args:
            trainer: the training.
            folder: of the run; the first process writes the metrics there.
            show: draw a progress bar.
        """
        self.trainer = trainer
        config, state = trainer.config, trainer.progress
        model: Any = trainer.ema
        self.metrics = None
        if trainer.processes.first:
            self.metrics = MetricsLog(folder, state.step, model.config, config.structure)
        self.total = 1.0 if config.minutes is not None else config.triples or DEFAULT_TRIPLES
        self.bar = tqdm(total=self.total, disable=not show, unit="triples", unit_scale=True, dynamic_ncols=True)
        if config.minutes is not None:
            self.bar.bar_format = "{percentage:3.0f}%|{bar}| {elapsed} {postfix}"
        self.bar.n = min(state.done(config), 1.0) * self.total
        self._begin_window()

    def _begin_window(self) -> None:
        state = self.trainer.progress
        self.since = (state.seconds, state.triples)
        self.nats: Tensor | None = None
        self.counts = [0.0] * len(BANDS)

    def note(self, text: str) -> None:
        """Print a line, once, above the progress bar."""
        if self.metrics is not None:
            self.bar.write(text)

    def add(self, nats: Tensor, counts: list[float]) -> None:
        """Add a step to the sums.

        Args:
            nats: from `Trainer.step`.
            counts: from `count_by_band`, summed over all processes.
        """
        self.nats = nats if self.nats is None else self.nats + nats  # on the device: no wait here
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]

    def report(self) -> None:
        """Move the progress bar; every few steps, write the means of the training metrics since the last time."""
        state = self.trainer.progress
        self.bar.n = min(state.done(self.trainer.config), 1.0) * self.total  # set: summing would round past the end
        self.bar.update(0)
        if state.step % EVERY == 0:
            self._write_means()
            self._begin_window()

    def _write_means(self) -> None:
        state = self.trainer.progress
        speed = (state.triples - self.since[1]) / (state.seconds - self.since[0])
        assert self.nats is not None
        bits = self.trainer.processes.all_reduce(self.nats.cpu()) / math.log(2)
        count = max(sum(self.counts), 1.0)  # flat pictures have no texture to count
        fields = {f"train/{k}": b / count for k, b in zip(FIELDS, bits.sum(0).tolist(), strict=True)}
        bands = bits_per_triple(bits, self.counts)
        total = float(bits.sum()) / count
        if self.metrics is not None:
            training = {**fields, **{f"train/{k}": v for k, v in bands.items()}, "train/bits_per_triple": total}
            self.metrics.write(state, {**training, "triples_per_second": speed, "lr": self.trainer.rate})
        parts = ", ".join(f"{name} {bands[name]:.3f}" for name in PARTS if name in bands)
        self.bar.set_postfix_str(f"{total:.3f} bits/triple ({parts}), {speed:,.0f} triples/s")

    def scores(self, name: str, scores: dict[str, Any]) -> None:
        """Report the scores of a validation."""
        if self.metrics is None:
            return
        state = self.trainer.progress
        self.metrics.write(state, {f"{name}/{k}": v for k, v in scores.items()})
        self.bar.write(
            f"step {state.step}: {name} {scores['bytes_per_image']:.1f} bytes per image "
            f"(libjpeg's optimised Huffman {scores['huffman_bytes_per_image']:.1f}), "
            f"{scores['bits_per_triple']:.3f} bits per triple (structure {scores['structure']:.3f}, "
            f"texture {scores['texture']:.3f}), {scores['images']} images"
        )

    def sheet(self, pixels: Tensor) -> None:
        """Show a sheet of samples in TensorBoard: uint8 ``[H, W, 3]``."""
        if self.metrics is not None:
            self.metrics.picture(self.trainer.progress, "samples", pixels)

    def close(self) -> None:
        """End the progress bar and flush TensorBoard."""
        self.bar.close()
        if self.metrics is not None:
            self.metrics.close()
