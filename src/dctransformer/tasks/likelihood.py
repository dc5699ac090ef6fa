"""`likelihood`: the exact bits of pictures under a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dctransformer.codec.grid import Grid
from dctransformer.data.opening import open_pictures
from dctransformer.sampling.likelihood import CodeLengths, code_lengths, require_finite
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.conditions import find_condition
from dctransformer.sequence.labels import model_labels
from dctransformer.sequence.windows import centre_window, huffman_bytes
from dctransformer.settings import check_positive
from dctransformer.tasks.models import Model, resolve_model


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
    """Count the exact bits of pictures under a model.

    Args:
        model: a run folder, a saved model's folder, ``hf:owner/name``, shipped weights, or a loaded model.
        data: a prepared data set, or a folder of pictures, which are cropped, resized and encoded as the model's
            training pictures were prepared. Pictures of several sizes are scored each at its own; of those of which the
            model does not know all rows and columns, the window at the centre that it knows.
        split: which part of a prepared data set.
        num: score the first so many pictures only.
        use_labels: condition on the pictures' labels where the model has a class of the same name.
        given: a condition (`dctransformer.sequence.conditions.NAMES`) under which the pictures are scored, too.
        batch: chunks at a time.
        device: cpu, cuda, … or auto.
        progress: called with the number of pictures so far.
        show: show a bar while pictures of a folder are read.

    Returns:
        See `dctransformer.sampling.likelihood.CodeLengths.summary`; and ``huffman_bytes_per_image``, what libjpeg's
        optimised Huffman coding needs for the same coefficients, ``labelled``, how many pictures had a known label, and
        ``windows``, of how many only the window at the centre was scored. With a
        condition, ``given`` holds bytes per image: of the given part listed first (the rest unknown), of the rest when
        that part is given, their sum, and what the unconditional model spends on either's coefficients.

    Raises:
        ValueError: the model or the data is missing or doesn't fit, or the model's probabilities are not finite.
    """
    check_positive(num=num, batch=batch)
    condition = find_condition(given)
    network = resolve_model(model, device)
    config = network.config
    store = open_pictures(data, split, config, any_size=True, progress=show)
    count = len(store) if num is None else min(num, len(store))
    labels = [config.null_label] * count
    if use_labels:
        labels = model_labels(config, store.info.labels, store.labels[:count].tolist())
    known = Grid.of_size(*config.trained_extent)
    grids = [store.grid(i).within(known) for i in range(count)]
    cut = sum(grid != store.grid(i) for i, grid in enumerate(grids))
    masks = {grid: condition.mask(grid) for grid in {*grids}}
    for grid, mask in masks.items():
        if mask is not None and not bool((~mask).any()):
            raise ValueError(f"pictures of {grid.size} pixels are too small for the condition {given}; leave it out")

    def sequences(part: str = "") -> Iterator[Sequence]:
        for i, label in enumerate(labels):
            triples, grid = centre_window(store.triples(i), store.grid(i), known)
            mask = masks[grid]
            options = {} if mask is None or not part else {"hidden": ~mask} if part == "hidden" else {"given": mask}
            yield Sequence.from_triples(triples, grid, label, **options)

    marked = {grid: mask for grid, mask in masks.items() if mask is not None} or None
    lengths = code_lengths(network, sequences(), batch=batch, marked=marked, progress=progress)
    require_finite(lengths.bits, str(model) if isinstance(model, str | Path) else "in memory")
    summary = lengths.summary()
    if lengths.marked is not None:
        first, rest = (code_lengths(network, sequences(part), batch=batch) for part in ("hidden", "given"))
        bytes_by_part = _bytes_by_part(lengths, lengths.marked, first, rest)
        summary["given"] = {"condition": given, "trained": given in config.conditions, **bytes_by_part}
    return {
        **summary,
        "huffman_bytes_per_image": float(np.mean([huffman_bytes(store, i, known) for i in range(count)])),
        "labelled": sum(label != config.null_label for label in labels),
        "skipped": store.info.skipped,
        "quality": config.quality,
        "size": store.info.size or str(store.info.target),
        "windows": cut,
    }


def _bytes_by_part(
    unconditional: CodeLengths, marked: Tensor, first: CodeLengths, rest: CodeLengths
) -> dict[str, float]:
    """Return mean bytes per image of the given part and of the rest, under a condition and without one.

    Args:
        unconditional: of the whole pictures.
        marked: fp64 ``[n]``, the bits in ``unconditional`` that are about the given part.
        first: of the given part, listed first while the rest is unknown.
        rest: of the rest when that part is given.
    """
    whole, first_bits, rest_bits = (lengths.bits.sum((1, 2)) for lengths in (unconditional, first, rest))
    parts = {
        "given_first": first_bits, "rest_given": rest_bits, "sum": first_bits + rest_bits,
        "given_unconditional": marked, "rest_unconditional": whole - marked,
    }  # fmt: skip
    return {f"{name}_bytes_per_image": float(bits.mean()) / 8 for name, bits in parts.items()}
