"""Helpers of the benchmarks: synthetic pictures, floating-point operations of a training step, timers, machine facts.

The spectrum of natural pictures falls with frequency; noise with such a spectrum has about as many non-zero
coefficients (about 700 at 64 px and quality 20), at any size and without a data set.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dctransformer.codec import Codec, order
from dctransformer.data.info import DatasetInfo
from dctransformer.data.shapes import Shape
from dctransformer.data.store import TripleStore
from dctransformer.data.triple_cache import DTYPES, in_memory
from dctransformer.model.config import ModelConfig
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.conditions import Conditions
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import Steps

PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
}
"""Peak dense bf16 FLOP/s from the vendors' data sheets, by a substring of the GPU's name."""


# Pictures ------------------------------------------------------------------------------------------------------------


def pictures(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Synthetic pictures, noise with the spectrum of photographs: uint8 ``[count, size, size, 3]``."""
    draw = np.random.default_rng([seed, size])
    down, right = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    # The largest structures scale with the picture, so that a larger picture shows the same scene.
    amplitude = 1 / np.maximum(np.hypot(down, right) * size, 1) ** 1.4
    rgb = []
    for _ in range(count):
        light, *tints = (np.fft.irfft2(np.fft.rfft2(draw.standard_normal((size, size))) * amplitude) for _ in range(3))
        light, *tints = (x / x.std() for x in (light, *tints))
        y, cb, cr = 120 + 52 * light, 12 * tints[0], 12 * tints[1]
        rgb.append(np.stack([y + 1.402 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.772 * cb], -1))
    return torch.from_numpy(np.stack(rgb).round().clip(0, 255).astype(np.uint8))


def synthetic(count: int, config: ModelConfig) -> TripleStore:
    """Synthetic pictures of a model's size and quality as a data set; other shapes than squares are crops."""
    height, width = config.trained_shape
    cropped = pictures(count, max(height, width))[:, :height, :width].contiguous()
    lists = Codec(quality=config.quality).encode(cropped).to_triples()
    channels, positions, values = torch.cat(lists).numpy().T
    columns = {
        "channels": channels, "positions": positions, "values": values, "lengths": [len(t) for t in lists],
        "labels": [-1] * count, "huffman_bytes": [0] * count, "heights": [height] * count, "widths": [width] * count,
    }  # fmt: skip
    arrays = in_memory([{name: np.array(columns[name], dtype) for name, dtype in DTYPES.items()}])
    info = DatasetInfo.of_shape(Shape.of((width, height)), quality=config.quality, splits={})
    return TripleStore(info, **arrays, skipped=[])


def sequences(store: TripleStore, config: ModelConfig) -> list[Sequence]:
    """Sequences of a store's pictures, without those triples that a model decides as texture."""
    whole = (Sequence.from_triples(store.triples(i), store.grid(i), config.null_label) for i in range(len(store)))
    return [sequence.structure(config.texture_rank) for sequence in whole]


def chunks(pool: list[Sequence], config: ModelConfig, rows: int, seed: int = 0) -> ChunkBatch:
    """A batch of full chunks from random places in random sequences of the pool, without texture."""
    draw = np.random.default_rng([seed, 7])
    chosen = [pool[int(i)] for i in draw.integers(0, len(pool), rows)]
    index = [int(draw.integers(0, max(len(s) // config.stride, 1))) for s in chosen]
    return cut_chunks(chosen, index, config.chunk, config.overlap)


GENERATION = Conditions(none=1, low=0, luma=0, region=0)
"""Nothing is given in any chunk."""


def batches(store: TripleStore, config: ModelConfig, settings: TrainConfig, count: int) -> list[ChunkBatch]:
    """The batches of the first steps of `dctransformer train` with these settings: conditions and texture included."""
    steps = Steps(store, config, settings)
    return [steps[i] for i in range(count)]


IMPOSSIBLE = 1e6
"""Nats of a decision that only an impossible outcome reaches."""


def total_nats(nats: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Sum of what a model's forward pass returns; an impossible outcome means that the batch is not the model's."""
    parts = nats if isinstance(nats, tuple) else (nats,)
    assert all(bool((part < IMPOSSIBLE).all()) for part in parts), "a batch holds outcomes that its model rules out"
    return torch.stack([part.sum() for part in parts]).sum()


def decisions(store: TripleStore, texture: int) -> float:
    """Mean number of sequential decisions per picture: triples of ranks below ``texture``, plus used channels above."""
    counts = []
    for i in range(len(store)):
        rank = order.RANK[store.channels[store.offsets[i] : store.offsets[i + 1]]]
        counts.append((rank < texture).sum() + len(np.unique(rank[rank >= texture])))
    return float(np.mean(counts))


# Floating-point operations --------------------------------------------------------------------------------------------


def _attention(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    batch, heads, length, head = q
    return 4 * batch * heads * length * k[2] * head // (2 if causal else 1)


def _attention_backward(g: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, p: float, causal: bool, **_: Any) -> int:
    return _attention(q, k, v, p, causal) * 5 // 2


def step_flops(model: torch.nn.Module, batch: ChunkBatch) -> int:
    """Floating-point operations of a forward and a backward pass, counted on a CPU.

    Matrix products, convolutions and attention count (causal attention half); recomputation for saving memory and
    elementwise operations do not.
    """
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        total_nats(model(batch)).backward()
    model.zero_grad()
    return counter.get_total_flops()


def product_flops(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """FLOP/s of a large matrix product, ``size`` × ``size``."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), device)


# Clocks and machines --------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of a call, including the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median of the pairwise ratios of two lists of alternating measurements, in which common slowdowns cancel."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def machine(device: torch.device) -> dict[str, Any]:
    """Machine, PyTorch version and commit of a measurement, for the JSON line."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        facts = Path("/proc/cpuinfo")
        lines = facts.read_text().splitlines() if facts.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return {"machine": name, "torch": torch.__version__, "commit": commit.stdout.strip()}
