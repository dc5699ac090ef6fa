"""Sampling speed of the engine compared with uncached decoding and with Hugging Face's GPT-2 `generate`.

Measures two ratios in one run:

* ``no_cache``: pictures per second of the engine relative to decoding without a KV cache, where every step runs the
  decoders over the whole chunk so far, both with chunks of 896 triples. The uncached step is timed at evenly spaced
  chunk lengths.
* ``gpt2``: steps per second of the engine, compiled and eager, relative to `transformers`' GPT-2 with the same width,
  heads, layers, batch and number of steps, and a vocabulary of 512. A step of the engine is a triple: one pass through
  all decoder layers and three draws. Chunks have 128 triples.

Models that decide texture by channel decide it triple by triple here, so that every step is a triple.

The last line is JSON. Example: python benchmarks/sampling.py
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
    """Settings of the benchmark."""

    model: str = "flowers64"
    """Model with the shape of the `small` preset."""
    batch: int = 16
    """Batch size."""
    steps: int = 256
    """Number of steps timed for the comparison with GPT-2."""
    rounds: int = 3
    """Number of alternating rounds; figures are medians."""
    threads: int | None = None
    """Number of threads, and of processes of the engine; PyTorch's default if not given."""


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_triples(model: Model, chunk: int) -> Model:
    """Copy a model with another chunk length and without texture decisions, so that every triple is a step."""
    config = dataclasses.replace(model.config, chunk=chunk, overlap=0, texture_from=len(order.BANDS))
    copy = Model(config).eval()
    copy.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("texture.")})
    return copy


def uncached_step(model: Model, sequences: list[Sequence], filled: int) -> Callable[[], object]:
    """Return a step without a KV cache: the decoders over ``filled`` triples of a chunk whose context is computed."""
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
    """Return a call of `generate` of a GPT-2 with the width of the decoders and their total number of layers."""
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
    """Runs ``steps`` steps of a batch of pictures, chunk by chunk, in forked processes as `sample` does.

    The processes are reused in all rounds, so that setup and compilation are timed separately.
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
        """Run one round."""
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
    """Time the engine and its rivals alternately, and print the result."""
    if args.threads:
        torch.set_num_threads(args.threads)
    weights = DCTransformer.from_pretrained(args.model)
    model, long = by_triples(weights, 128), by_triples(weights, 896)
    config = SampleConfig(seed=1, batch=args.batch)
    labels = [i % model.config.num_labels for i in range(args.batch)]
    samples = sample(long, args.batch, config, labels=labels)
    triples = statistics.fmean(map(len, samples.triples))
    longest = max(map(len, samples.triples))
    sequences = [Sequence.from_triples(t, samples.grid, 0) for t in samples.triples]
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
        for compiled, steps_of_engine in engines.items():
            engine[compiled].append(seconds(steps_of_engine))
        rival.append(seconds(gpt2_steps))
    for steps_of_engine in engines.values():
        steps_of_engine.close()
    no_cache = statistics.median(s / c for s, c in zip(slow, cached, strict=True))
    ratios = {c: [r / e for r, e in zip(rival, times, strict=True)] for c, times in engine.items()}
    eager, gpt = (statistics.median(ratios[c]) for c in (False, True))
    speed = {c: args.steps / statistics.median(times) for c, times in engine.items()}
    rival_speed = args.steps / statistics.median(rival)
    print(
        f"with caches {args.batch / statistics.median(cached):.2f} pictures per second, "
        f"without {args.batch / statistics.median(slow):.3f}: {no_cache:.1f} times (goal 20)\n"
        f"engine, compiled in {engines[True].set_up:.0f} s: {speed[True]:.0f} steps per second, "
        f"GPT-2 {rival_speed:.0f}: {gpt:.2f} times (goal 1.5); eager {speed[False]:.0f}: {eager:.2f} times"
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
