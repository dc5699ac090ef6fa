"""The sampling engine: pictures from a model, step by step with key/value caches.

It calls the same parts of the model that training uses, the three distributions above all, on chunks that are cut by
the same function. Rows run in step inside a chunk, without waiting for the host; when the next chunk begins, rows that
have stopped leave the batch and pictures still waiting take their places (see `dctransformer.sampling.pool`).

Shapes: B rows in the batch, L triples, N MCUs, P positions.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.legality import NEVER
from dctransformer.model.precision import resolve_precision
from dctransformer.model.texture import TEXTURE_PLACES
from dctransformer.model.texture_state import TextureState
from dctransformer.processes import deal, useful_workers
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.decoder_state import Decoding, for_steps
from dctransformer.sampling.drawing import Draws, overflow_error, uniform_on
from dctransformer.sampling.guided import GuidedDecoding
from dctransformer.sampling.pool import GiveWay, Pool, Progress, Watch
from dctransformer.sampling.rows import Request, Row, Samples, Snapshot
from dctransformer.sampling.stepper import Stepper, compilable_numbers
from dctransformer.sampling.texture import NoiseKey, fill_texture
from dctransformer.sequence.chunks import ChunkBatch, cut_chunks
from dctransformer.settings import check_positive

_COMPILERS = (os.environ.get("CXX", "g++"), "clang++")


@torch.inference_mode()
def sample(
    model: DCTransformer,
    num: int,
    config: SampleConfig | None = None,
    *,
    labels: list[int] | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    pool: Pool | None = None,
) -> Samples:
    """Generate pictures.

    Args:
        model: in eval mode.
        num: how many.
        config: seed, temperature and so on.
        labels: class of each picture; None for the null label.
        size: height and width in pixels, multiples of 16; None for `ModelConfig.trained_shape`.
        progress: called after each chunk with (decisions so far, pictures finished).
        watch: called after each chunk with every picture that was worked on, as far as it is.
        pool: the model's, in which others generate pictures; None for a pool of this call's own.

    Returns:
        The samples, in order.

    Raises:
        ValueError: ``num`` is not positive, a label or the size is impossible.
    """
    config = config or SampleConfig()
    check_positive(num=num)
    height, width = size or model.config.trained_shape
    labels = [model.config.null_label] * num if labels is None else labels
    assert len(labels) == num
    for label in labels:
        if not 0 <= label <= model.config.num_labels:
            raise ValueError(f"label {label} is not one of the model's {model.config.num_labels} labels")
    requests = [Request(i, label) for i, label in enumerate(labels)]
    return fill(model, requests, Grid.of_size(height, width), config, progress=progress, watch=watch, pool=pool)


@torch.inference_mode()
def fill(
    model: DCTransformer,
    requests: list[Request],
    grid: Grid,
    config: SampleConfig,
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
    pool: Pool | None = None,
) -> Samples:
    """Generate what is not settled of some pictures.

    Args:
        model: in eval mode.
        requests: the pictures.
        grid: their MCU grid.
        config: seed, temperature and so on.
        progress: called after each chunk with (decisions so far, pictures finished).
        watch: called after each chunk with every picture that was worked on, as far as it is.
        pool: the model's, in which others generate pictures: its configuration decides on batches and precision. None
            for a pool of this call's own.

    Returns:
        The samples, in the order of the requests.

    Raises:
        ValueError: the device can't do the precision, there is no compiler for what is to be compiled, or memory does
            not suffice for one picture at a time.
    """
    workers = 1 if pool is not None else useful_workers(config.workers, len(requests), model.device)
    if pool is None:
        share = -(-len(requests) // workers)
        pool = Pool(Engine(model, dataclasses.replace(config, batch=min(config.batch, share))))
    if workers == 1:
        rows = pool.fill(requests, grid, config, progress, watch)
    else:
        rows = _spread_rows(pool.engine, requests, grid, workers, progress, watch)
    return Samples(
        torch.stack([row.mcus() for row in rows]),
        [row.triples() for row in rows],
        torch.tensor([row.request.label for row in rows]),
        grid,
        model.config.quality,
        model.config.texture_rank,
    )


def check_sampling(model: DCTransformer, config: SampleConfig) -> None:
    """Check that a model can be sampled so, before any work is done.

    Raises:
        ValueError: the device can't do the precision, or there is no compiler for what is to be compiled.
    """
    if config.precision != "auto":  # auto takes what there is
        resolve_precision(config.precision, model.device)
    if config.compile and model.device.type == "cpu" and not any(map(shutil.which, _COMPILERS)):
        raise ValueError("compiling for a CPU needs a C++ compiler, g++ or clang++; install one, or leave compile out")


def _spread_rows(
    engine: Engine, requests: list[Request], grid: Grid, workers: int, progress: Progress | None, watch: Watch | None
) -> list[Row]:
    """Generate pictures in several processes; they are the same as from one, since noise belongs to a picture.

    All of them read one copy of the weights, which the cores' common cache then holds once.
    """
    done_by_worker = [(0, 0)] * workers

    def receive(worker: int, message: Any) -> None:
        if isinstance(message, tuple):
            done_by_worker[worker] = message
            if progress is not None:
                progress(*map(sum, zip(*done_by_worker, strict=True)))
        elif watch is not None:
            watch(dataclasses.replace(message, mcus=torch.from_numpy(message.mcus)))

    def work(items: Iterable[int], send: Callable[[Any], None]) -> list[tuple[np.ndarray, np.ndarray | None, int]]:
        def show(snapshot: Snapshot) -> None:
            send(dataclasses.replace(snapshot, mcus=snapshot.mcus.numpy()))

        with torch.inference_mode():
            share = [requests[i] for i in items]
            shown = None if watch is None else show
            rows = Pool(engine).fill(share, grid, engine.config, lambda *done: send(done), shown)
        return [
            (row.listed.numpy(), None if row.texture is None else row.texture.numpy(), row.channels) for row in rows
        ]

    results_by_worker = deal(work, len(requests), workers, receive)
    rows = engine.begin(requests, grid, engine.config)
    for worker, results in enumerate(results_by_worker):
        for row, (listed, texture, channels) in zip(rows[worker::workers], results, strict=True):
            row.listed, row.stopped, row.channels = torch.from_numpy(listed), True, channels
            row.texture = None if texture is None else torch.from_numpy(texture)
    return rows


class Engine:
    """Runs chunks of batches: encode once, then triple by triple, all rows in step."""

    def __init__(self, model: DCTransformer, config: SampleConfig):
        """Prepare a model for steps; of ``config``, seed, temperature, top-p and guidance are left to the rows."""
        self.config, self.device = config, model.device
        check_sampling(model, config)
        # Small products gain nothing from bf16 on a CPU.
        precision = "fp32" if config.precision == "auto" and self.device.type == "cpu" else config.precision
        self.precision = resolve_precision(precision, self.device)
        self.model = for_steps(model, self.precision)
        self.guide = None if model.guide is None else for_steps(model.guide.to(self.device), self.precision)
        self.steppers: dict[tuple, Stepper] = {}

    def with_batch(self, batch: int) -> Engine:
        """Return the same engine for another batch size; the weights are shared."""
        other = copy.copy(self)
        other.config, other.steppers = dataclasses.replace(self.config, batch=batch), {}
        return other

    def begin(self, requests: list[Request], grid: Grid, config: SampleConfig) -> list[Row]:
        """Create the rows of pictures; ``config`` has their seed, temperature, top-p and guidance."""
        return [Row.new(request, grid, config, self.model.config.texture_rank) for request in requests]

    def texture_batch(self, grid: Grid) -> int:
        """Return how many pictures' texture is generated together: fewer of large ones, which need more memory."""
        return max(1, min(self.config.batch, TEXTURE_PLACES // grid.positions))

    def run_texture(self, rows: list[Row]) -> int:
        """Generate the texture of pictures whose structure is complete; returns how many channels were in use."""
        parts = [row.before_texture() for row in rows]
        given = torch.stack([part[1] for part in parts]).to(self.device, non_blocking=True)
        picture = TextureState(
            torch.stack([part[0] for part in parts]).to(self.device, non_blocking=True), given, torch.zeros_like(given),
            torch.tensor([row.request.label for row in rows]).to(self.device, non_blocking=True), rows[0].grid,
        )  # fmt: skip
        keys = [NoiseKey(row.config.seed, row.request.index, row.request.tile) for row in rows]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            configs = [row.config for row in rows]
            coefficients, decided = fill_texture(self.model, picture, keys, configs, precision=self.precision)
        for row, texture, channels in zip(rows, coefficients.cpu(), decided, strict=True):
            row.texture, row.channels = texture, channels
        return sum(decided)

    def run(self, rows: list[Row], give_way: GiveWay | None = None) -> bool:
        """Generate to the end of the rows' chunks, or to their stops.

        Args:
            rows: pictures of one grid, equally far in their chunks.
            give_way: called before each step with the number of steps so far; if it returns True, the steps are
                dropped and the rows stay as they were.

        Returns:
            Whether the chunks were completed.

        Raises:
            ValueError: the predictions are not finite, or list more coefficients than a picture has.
        """
        stride = self.model.config.stride
        sequences = [row.sequence() for row in rows]
        chunk = [len(row.listed) // stride for row in rows]
        steps = stride - len(rows[0].listed) % stride
        noise = np.zeros((len(rows), stride, 3))
        for row, k, row_noise in zip(rows, chunk, noise, strict=True):
            row_noise[:steps] = row.noise(k, stride)[-steps:]
        batch = cut_chunks(sequences, chunk, self.model.config.chunk, self.model.config.overlap)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            uniform = uniform_on(noise, self.device)
            decisions = self._decode(batch, uniform, [row.config for row in rows], steps, give_way)
        if decisions is None:
            return False
        stops = (decisions[:, :, 0] == order.STOP).int()
        counts = torch.where(stops.any(1), stops.argmax(1), decisions.shape[1]).tolist()
        for row, count in zip(rows, counts, strict=True):
            if len(row.listed) + count > row.open_coefficients():
                raise ValueError("the model lists more triples than the picture has coefficients; use other weights")
        for row, triples, count in zip(rows, decisions.unbind(0), counts, strict=True):
            row.stopped = count < len(triples)
            row.listed = torch.cat([row.listed, triples[:count]])
        return True

    def _decoding(self, batch: ChunkBatch, twins: int) -> Decoding | GuidedDecoding:
        """Encode chunks, the last ``twins`` of them for guidance."""
        if twins and self.guide is not None:
            return GuidedDecoding(self.model, self.guide, batch, twins)
        return Decoding(self.model, batch)

    def _decode(
        self, batch: ChunkBatch, noise: Tensor, configs: list[SampleConfig], steps: int, give_way: GiveWay | None
    ) -> Tensor | None:
        """Decide ``steps`` triples per row: int64 ``[B, steps, 3]`` on the CPU, arbitrary after a stop.

        None if ``give_way`` ended the steps early.
        """
        rows = len(batch.labels)
        graphs = self.device.type == "cuda" and self.config.graphs
        fixed = graphs or self.config.compile
        if fixed:  # one shape, so that one graph serves all; spare rows repeat the others
            spare = torch.arange(self.config.batch) % rows
            batch, noise, configs = batch.rows(spare), noise[spare], [configs[i] for i in spare.tolist()]
        draws = Draws.of(configs, self.device, guided=self.model.guidable, all_twins=fixed)
        if len(draws.twins):
            batch = batch.rows(torch.cat([torch.arange(len(noise)), draws.twins.cpu()]))
            if self.guide is None:
                batch.labels[len(noise) :] = self.model.config.null_label
        grid, batch = batch.grid, batch.to(self.device)
        decoding = self._decoding(batch, len(draws.twins))
        key = (grid, draws.kind) if fixed else ()
        stepper = self.steppers.get(key)
        if stepper is None:
            stepper = self.steppers[key] = Stepper(decoding, noise.clone(), draws, compile=self.config.compile)
            if graphs:  # recording takes steps, so that the chunk has to begin anew
                stepper.capture()
                decoding = self._decoding(batch, len(draws.twins))
        stepper.load(decoding, noise, draws)
        with compilable_numbers() if self.config.compile else contextlib.nullcontext():
            for k in range(steps):
                if give_way is not None and give_way(k):
                    return None
                stepper.step()
                if self.device.type == "cpu" and k % 4 == 3 and bool((stepper.decisions[:, k, 0] == order.STOP).all()):
                    steps = k + 1
                    break
        # NaN, infinity, and numbers so large that legal outcomes look impossible all fail this comparison.
        if not bool((stepper.peak < (NEVER / 2) ** 2).all()):
            raise overflow_error(self.precision, len(draws.twins) > 0)
        return stepper.decisions[:rows, :steps].cpu()
