"""Sampling speed: the engine against itself without caches, and against Hugging Face's GPT-2 `generate`.

Two ratios, from one run on one machine:

* ``no_cache``: pictures per second of the engine over those of the same weights when every step runs the decoders over
  the whole chunk so far, both on chunks of 896 triples. The slow side is timed at evenly spaced fillings of a chunk.
* ``gpt2``: steps per second of the engine, its steps compiled or not (a step is a triple: one pass through all decoder
  layers and three draws), over those of `transformers`' GPT-2 of the same width, heads, number of layers, batch and
  number of steps (512 tokens). The engine's are on chunks of 128 triples.

Weights that decide texture a channel at a time decide it triple by triple here, so that a step is a triple everywhere.

Ends in one JSON line. Example: python benchmarks/sampling.py
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
import tyro

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.model.dctransformer import DCTransformer as Model
from dctransformer.processes import useful_workers
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import Engine, sample
from dctransformer.sampling.rows import Request
from dctransformer.sequence.chunks import Sequence, cut_chunks


@dataclasses.dataclass
class Args:
    """Time sampling."""

    model: str = "flowers64"
    """Weights of the `small` preset's shape."""
    batch: int = 16
    """Pictures at a time."""
    steps: int = 256
    """Steps to time against GPT-2."""
    rounds: int = 3
    """Rounds in turns; the median counts."""
    threads: int | None = None
    """Threads, and so the engine's processes; PyTorch's default if not given."""


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_triples(model: Model, chunk: int) -> Model:
    """The same weights on chunks of another length, every triple decided by its own step, also those of texture."""
    config = dataclasses.replace(model.config, chunk=chunk, overlap=0, texture_from=len(order.BANDS))
    other = Model(config).eval()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("texture.")})
    return other


def uncached_step(model: Model, sequences: list[Sequence], filled: int) -> Callable[[], object]:
    """One step without caches: the decoders over ``filled`` triples of a chunk whose context is there."""
    begun = [Sequence(s.ranks[:filled], s.positions[:filled], s.values[:filled], None, None, s.label, s.grid)
             for s in sequences]  # fmt: skip
    batch = cut_chunks(begun, [0] * len(begun), model.config.chunk, 0)
    context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)

    def step() -> None:
        places = model.places_of_chunk(batch, context)
        channel, position, value = model.streams(batch, context, places)
        last = slice(-1, None)
        rank = batch.ranks[:, -1:].clamp(max=191)
        model.channel_head(channel[:, last], rank, batch.positions[:, -1:], context).softmax(-1)
        here = dataclasses.replace(places, of_triple=places.of_triple[:, last])
        model.position_head(position[:, last], rank, batch.positions[:, -1:] * 0 - 1, here, context).softmax(-1)
        model.value_head(value[:, last], rank).softmax(-1)

    return step


def gpt2(model: Model, batch: int, steps: int) -> Callable[[], object]:
    """`generate` of a GPT-2 as wide and deep as the decoders together."""
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    c = model.config
    layers = len(c.channel) + len(c.position) + len(c.value)
    config = GPT2Config(
        vocab_size=512, n_positions=1024, n_embd=c.width, n_head=c.heads, n_layer=layers, bos_token_id=0,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    network = GPT2LMHeadModel(config).eval()
    first = torch.zeros(batch, 1, dtype=torch.int64)
    mask = torch.ones_like(first)

    def work() -> object:
        return network.generate(  # pyright: ignore
            first, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=steps, min_new_tokens=steps
        )

    return work


class EngineSteps:
    """``steps`` steps of a batch of pictures, chunk after chunk, dealt to forked processes as `sample` does.

    The processes stay for all rounds, so that setting up and compiling, which happen once, are timed apart.
    """

    def __init__(self, model: Model, batch: int, steps: int, compiled: bool, workers: int):
        self.model, self.batch, self.steps, self.workers = model, batch, steps, workers
        self.grid = Grid.of_size(model.config.size, model.config.size)
        self.engine = Engine(model, SampleConfig(batch=-(-batch // workers), compile=compiled))
        context = multiprocessing.get_context("fork")
        self.gate = context.Barrier(workers + 1)
        self.processes = [context.Process(target=self._work, args=(i,), daemon=True) for i in range(workers)]
        for process in self.processes:
            process.start()
        self.set_up = seconds(self.gate.wait)

    def __call__(self) -> None:
        """A round."""
        self.gate.wait()
        self.gate.wait()

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.terminate()
            process.join()

    def _work(self, worker: int) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            self._run(worker, self.model.config.stride)
            self.gate.wait()
            while True:
                self.gate.wait()
                self._run(worker, self.steps)
                self.gate.wait()

    def _run(self, worker: int, steps: int) -> None:
        pictures = range(worker, self.batch, self.workers)
        requests = [Request(i, i % self.model.config.num_labels) for i in pictures]
        rows = self.engine.begin(requests, self.grid, self.engine.config)
        for _ in range(steps // self.model.config.stride):
            self.engine.run(rows)


@torch.inference_mode()
def main(args: Args) -> None:
    """Time all, in turns."""
    if args.threads:
        torch.set_num_threads(args.threads)
    weights = DCTransformer.from_pretrained(args.model)
    model, long = by_triples(weights, 128), by_triples(weights, 896)
    config = SampleConfig(seed=1, batch=args.batch)
    labels = [i % model.config.num_labels for i in range(args.batch)]
    made = sample(long, args.batch, config, labels=labels)
    triples = statistics.fmean(map(len, made.triples))
    longest = max(map(len, made.triples))
    sequences = [Sequence.from_triples(t, made.grid, 0) for t in made.triples]
    fillings = [f for f in range(64, min(map(len, sequences)), 128)]
    workers = useful_workers(None, args.batch, model.device)
    engines = {c: EngineSteps(model, args.batch, args.steps, c, workers) for c in (False, True)}
    gpt2_steps = gpt2(model, args.batch, args.steps)
    gpt2_steps()  # warm up
    cached, slow, rival = [], [], []
    engine: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(args.rounds):
        cached.append(seconds(lambda: sample(long, args.batch, config, labels=labels)))
        steps = [seconds(uncached_step(long, sequences, f)) for f in fillings]
        slow.append(statistics.fmean(steps) * longest)
        for compiled, ours in engines.items():
            engine[compiled].append(seconds(ours))
        rival.append(seconds(gpt2_steps))
    for ours in engines.values():
        ours.close()
    no_cache = statistics.median(s / c for s, c in zip(slow, cached, strict=True))
    ratios = {c: [r / e for r, e in zip(rival, times, strict=True)] for c, times in engine.items()}
    eager, gpt = (statistics.median(ratios[c]) for c in (False, True))
    speed = {c: args.steps / statistics.median(times) for c, times in engine.items()}
    rival_speed = args.steps / statistics.median(rival)
    print(
        f"with caches {args.batch / statistics.median(cached):.2f} pictures per second, "
        f"without {args.batch / statistics.median(slow):.3f}: {no_cache:.1f} times (goal 20)\n"
        f"engine, compiled in {engines[True].set_up:.0f} s: {speed[True]:.0f} steps per second, "
        f"GPT-2 {rival_speed:.0f}: {gpt:.2f} times (goal 1.5); as it is {speed[False]:.0f}: {eager:.2f} times"
    )
    print(json.dumps({
        "benchmark": "sampling", "ratio": round(gpt, 3), "goal": 1.5, "eager_ratio": round(eager, 3),
        "no_cache_ratio": round(no_cache, 2), "no_cache_goal": 20,
        "images_per_second": round(args.batch / statistics.median(cached), 3),
        "steps_per_second": round(speed[True], 1), "eager_steps_per_second": round(speed[False], 1),
        "gpt2_steps_per_second": round(rival_speed, 1), "compile_seconds": round(engines[True].set_up, 1),
        "ratios": [round(ratio, 3) for ratio in ratios[True]], "triples_per_image": triples, "batch": args.batch,
        "threads": torch.get_num_threads(), "workers": workers,
    }))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
