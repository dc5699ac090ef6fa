"""`likelihood`: the exact bits of pictures under a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dctransformer.codec.grid import Grid
from dctransformer.data.opening import open_pictures
from dctransformer.likelihood import code_lengths
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.conditions import named
from dctransformer.sequence.labels import model_labels
from dctransformer.tasks.models import Model, loaded


def likelihood(
    model: Model,
    data: str | Path,
    *,
    split: str = "validation",
    num: int | None = None,
    use_labels: bool = True,
    given: str = "none",
    batch: int = 32,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
    show: bool = False,
) -> dict[str, Any]:
    """Exact bits of pictures under a model.

    Args:
        model: a run folder, a saved model's folder, a hub id, shipped weights, or a loaded model.
        data: a prepared data set, or a folder of pictures, which are cropped, resized and encoded as `prepare` does it.
        split: which part of a prepared data set.
        num: score the first so many pictures only.
        use_labels: give the model the pictures' labels where it has a class of the same name.
        given: a condition (`dctransformer.sequence.conditions.NAMES`) under which the pictures are scored, too.
        batch: chunks at a time.
        device: cpu, cuda, … or auto.
        progress: called with the number of pictures so far.
        show: show a bar while pictures of a folder are read.

    Returns:
        See `dctransformer.likelihood.CodeLengths.summary`; and ``huffman_bytes_per_image``, what libjpeg's optimised
        Huffman coding needs for the same coefficients, and ``labelled``, how many pictures had a known label. With a
        condition, ``given`` holds bytes an image: of the given part listed first (the rest unknown), of the rest when
        that part is given, their sum, and what the unconditional model spends on either's coefficients.

    Raises:
        ValueError: the model or the data is missing or doesn't fit.
    """
    for name, number in (("num", num), ("batch", batch)):
        if number is not None and number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
    condition = named(given)
    network = loaded(model, device)
    config = network.config
    store = open_pictures(data, split, size=config.size, quality=config.quality, any_size=True, progress=show)
    count = len(store) if num is None else min(num, len(store))
    labels = [config.null_label] * count
    if use_labels:
        labels = model_labels(config, store.info.labels, store.labels[:count].tolist())
    grid = Grid.of_size(store.info.size, store.info.size)

    mask = condition.mask(grid)
    if mask is not None and not bool((~mask).any()):
        raise ValueError(f"pictures of {store.info.size} pixels are too small for the condition {given}; leave it out")

    def sequences(**masks: Tensor) -> Iterator[Sequence]:
        for i, label in enumerate(labels):
            yield Sequence.from_triples(store.triples(i), grid, label, **masks)

    lengths = code_lengths(network, sequences(), batch=batch, marked=mask, progress=progress)
    summary = lengths.summary()
    if mask is not None:
        assert lengths.marked is not None
        first = code_lengths(network, sequences(hidden=~mask), batch=batch).bits.sum((1, 2))
        rest = code_lengths(network, sequences(given=mask), batch=batch).bits.sum((1, 2))
        whole = lengths.bits.sum((1, 2))
        parts = {
            "given_first": first, "rest_given": rest, "sum": first + rest,
            "given_unconditional": lengths.marked, "rest_unconditional": whole - lengths.marked,
        }  # fmt: skip
        summary["given"] = {"condition": given, "trained": given in config.conditions} | {
            f"{name}_bytes_per_image": float(bits.mean()) / 8 for name, bits in parts.items()
        }
    return {
        **summary,
        "huffman_bytes_per_image": float(np.mean(store.huffman_bytes[:count])),
        "labelled": sum(label != config.null_label for label in labels),
        "skipped": store.info.skipped,
        "quality": config.quality,
        "size": store.info.size,
    }
