"""Bytes per image: a model's exact code length next to classical coders of the very same coefficients.

    python benchmarks/likelihood.py DATA [--model flowers64]

DATA is a data set made by `dctransformer prepare`, of the model's size and quality; its validation pictures are scored.
Beside the model stand libjpeg's optimised Huffman coding (headers subtracted) and a static histogram: the entropy of
each channel's values, zero included, under frequencies counted on the training pictures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from dctransformer.codec import order
from dctransformer.data import TripleStore
from dctransformer.tasks.likelihood import likelihood

GOAL = 367.0
"""Bytes per image at 64 px, quality 20, that a first sketch of the method reached on flowers."""


def histogram_bytes(train: TripleStore, held_out: TripleStore) -> float:
    """Mean bytes of a static code for every coefficient, a frequency table a channel, counted on ``train``."""
    bits = 0.0
    blocks = np.where(np.arange(order.NUM_CHANNELS) < order.CB, 4, 1) * (train.info.side // order.MCU) ** 2
    for channel in range(order.NUM_CHANNELS):
        seen, coded = (s.values[s.channels == channel].astype(np.int64) for s in (train, held_out))
        largest = max(np.abs(seen).max(initial=1), np.abs(coded).max(initial=1))
        counts = np.bincount(seen + largest, minlength=2 * largest + 1).astype(float)
        counts[largest] = blocks[channel] * len(train) - len(seen)
        length = -np.log2((counts + 0.01) / (counts + 0.01).sum())
        bits += length[coded + largest].sum() + length[largest] * (blocks[channel] * len(held_out) - len(coded))
    return float(bits / len(held_out) / 8)


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="flowers64")
    arguments = parser.parse_args()
    scores = likelihood(arguments.model, arguments.data)
    histogram = histogram_bytes(*(TripleStore.open(arguments.data, s) for s in ("train", "validation")))
    mine, huffman = scores["bytes_per_image"], scores["huffman_bytes_per_image"]
    print(f"{scores['images']} pictures, {scores['triples_per_image']:.0f} triples each; bytes per image:")
    print(f"  {arguments.model:28s}{mine:7.1f} ± {scores['standard_error_bytes'] or 0:.1f}")
    print(f"  {'static histogram':28s}{histogram:7.1f}")
    print(f"  {'libjpeg, optimised Huffman':28s}{huffman:7.1f}")
    result = {"bytes_per_image": mine, "histogram": histogram, "huffman": huffman, "images": scores["images"]}
    # Less is better: the ratio must stay below the goal.
    print(json.dumps({"benchmark": "likelihood", "ratio": mine / GOAL, "goal": 1.0, **result}))
    raise SystemExit(mine >= GOAL)


if __name__ == "__main__":
    main()
