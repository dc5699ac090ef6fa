"""Texture a channel at a time against all triples: decisions, seconds per picture, training speed, bits.

    python benchmarks/texture.py DATA [--minutes 2] [--num 16] [--batch 16]

DATA is a data set made by `dctransformer prepare`. Two models of the same preset, one with texture and one without, are
trained on it for the same time, one after the other; each is scored on validation pictures and samples some. After a
short training samples are shorter or longer than real pictures, so seconds are counted per decision and scaled to the
decisions of a validation picture; models that were trained for seconds still give no meaningful ``seconds_ratio``. The
last line is JSON: ``decisions`` and ``decisions_triples`` (per validation picture), ``seconds_ratio`` (per picture, all
triples over texture), ``pictures_ratio`` (trained per second, texture over all triples), bytes per image of both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.data import TripleStore
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.training.config import TrainConfig
from dctransformer.training.loop import train
from measure import machine


def decisions(store: TripleStore, texture: int) -> float:
    """Sequential decisions per picture, the mean: triples of ranks below ``texture``, and channels above in use."""
    counts = []
    for i in range(len(store)):
        rank = order.RANK[store.channels[store.offsets[i] : store.offsets[i + 1]]]
        counts.append((rank < texture).sum() + len(np.unique(rank[rank >= texture])))
    return float(np.mean(counts))


def measure(data: str, texture_from: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train, score and sample one kind."""
    shape = preset(arguments.preset, texture_from=texture_from)
    settings = TrainConfig(
        minutes=arguments.minutes, batch=arguments.batch, sample_every=0, eval_every=1 << 60, seed=arguments.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        scores: dict[str, Any] = train(data, Path(folder) / "run", shape, settings, progress=False)
        model = DCTransformer.from_pretrained(Path(folder) / "run")
    listed = TripleStore.open(data, "train", progress=False).listed(model.config.texture_rank)
    began = time.perf_counter()
    samples = sample(model, arguments.num, SampleConfig(batch=arguments.num, workers=1))
    per_decision = (time.perf_counter() - began) / max(float(samples.decisions().sum()), 1.0)
    real = decisions(TripleStore.open(data, "validation", progress=False), model.config.texture_rank)
    return {
        "bytes_per_image": scores["bytes_per_image"],
        "pictures_per_second": scores["triples"] / float(listed.mean()) / (60 * arguments.minutes),
        "seconds_per_picture": per_decision * real,
    }


def main() -> None:
    """Measure both kinds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, each")
    parser.add_argument("--num", type=int, default=16, help="pictures to sample")
    parser.add_argument("--batch", type=int, default=16, help="chunks per training step")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texture_from = preset(arguments.preset).texture_from
    held_out = TripleStore.open(arguments.data, "validation", progress=False)
    texture, triples = (measure(arguments.data, bands, arguments) for bands in (texture_from, len(order.BANDS)))
    result = {
        "benchmark": "texture",
        "decisions": decisions(held_out, preset(arguments.preset).texture_rank),
        "decisions_triples": decisions(held_out, order.NUM_CHANNELS),
        "seconds_ratio": triples["seconds_per_picture"] / texture["seconds_per_picture"],
        "pictures_ratio": texture["pictures_per_second"] / triples["pictures_per_second"],
        "texture": texture,
        "triples": triples,
        "minutes": arguments.minutes,
        **machine(DCTransformer(preset("tiny")).device),
    }
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
