"""What a user asks for, in one call each: conditions in, pictures or figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dctransformer.codec import write_jpeg
from dctransformer.codec.grid import Grid
from dctransformer.data.info import INFO, SPLITS
from dctransformer.data.store import TripleStore
from dctransformer.files import atomic_write, make_folder
from dctransformer.hub.pretrained import load_model
from dctransformer.likelihood import code_lengths
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import resolve_device
from dctransformer.sampling.engine import SampleConfig, Samples, Snapshot, check_sampling, sample
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.conditions import check_trained, named
from dctransformer.sheets import contact_sheet, heat_map_sheet

Model = str | Path | DCTransformer
"""A run folder, a saved model's folder, a hub id, shipped weights; or a model that is loaded already."""


def loaded(model: Model, device: str = "auto") -> DCTransformer:
    """The model, on its device; one that is loaded already stays where it is.

    Raises:
        ValueError: there is no such model or device.
    """
    if isinstance(model, DCTransformer):
        return model
    return load_model(model, resolve_device(device))


def label_number(config: ModelConfig, label: str) -> int:
    """The class called ``label`` (a name, in any case, or a number).

    Raises:
        ValueError: the model has no such class; near names are listed.
    """
    if not config.num_labels:
        raise ValueError("this model has no labels; leave --label out")
    names = [name.casefold() for name in config.label_names]
    if label.casefold() in names:
        return names.index(label.casefold())
    if label.isdecimal() and int(label) < config.num_labels:
        return int(label)
    import difflib

    near = difflib.get_close_matches(label.casefold(), names, 3) or names[:5]
    shown = ", ".join(config.label_names[names.index(n)] for n in near)
    raise ValueError(
        f"there is no label {label!r}; did you mean one of: {shown}? (`dctransformer info MODEL` lists all)"
    )


def generate(
    model: Model,
    num: int = 16,
    *,
    label: str | None = None,
    sampling: SampleConfig | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Snapshot], None] | None = None,
) -> tuple[Samples, list[str]]:
    """Generate pictures.

    Args:
        model: a run folder, a saved model's folder, a hub id, shipped weights, or a loaded model.
        num: how many.
        label: class name or number; None gives each picture a class drawn from the seed.
        sampling: seed, temperature and so on; picture i of a seed is always the same.
        device: cpu, cuda, … or auto.
        out: folder that `save_samples` is to write; it is tried before the work.
        progress: called with (triples so far, pictures finished).
        watch: called with every picture on its way, chunk after chunk, before ``progress``.

    Returns:
        The samples and the name of each one's class ("" for an unconditional model).

    Raises:
        ValueError: the model, the label or a number is impossible, or the model was not trained for this.
    """
    sampling = sampling or SampleConfig()
    network = loaded(model, device)
    shape = network.config
    check_trained(shape.conditions, "none", "this model" if network is model else str(model))
    if num < 1:
        raise ValueError(f"num {num} must be at least 1")
    if label is not None:
        labels = [label_number(shape, label)] * num
    elif shape.num_labels:
        # One generator a picture, so that picture i keeps its class whatever num is.
        labels = [int(np.random.default_rng([sampling.seed, i, 1]).integers(shape.num_labels)) for i in range(num)]
    else:
        labels = [shape.null_label] * num
    check_sampling(network, sampling)
    if out is not None:
        make_folder(out)
    samples = sample(network, num, sampling, labels=labels, progress=progress, watch=watch)
    return samples, [_name(shape, i) for i in labels]


def _name(config: ModelConfig, label: int) -> str:
    if label >= config.num_labels:
        return ""
    return config.label_names[label] if config.label_names else str(label)


def save_samples(samples: Samples, names: list[str], out: str | Path) -> dict[str, Any]:
    """Write samples as PNG and JPEG files, a contact sheet and a heat-map of the chosen places.

    Args:
        samples: from `generate`.
        names: class names, for the captions.
        out: folder, made if needed.

    Returns:
        ``files`` (the JPEG files), ``pngs``, ``sheet``, ``heat_map`` as path strings.

    Raises:
        ValueError: the folder can't be written.
    """
    out = Path(out)
    pixels, dct = samples.pixels(), samples.dct()
    files, pngs = [], []
    for i, picture in enumerate(pixels.numpy()):
        name = out / f"sample-{i:04d}"
        write_jpeg(dct[i], name.with_suffix(".jpg"))
        with atomic_write(name.with_suffix(".png")) as beside:
            Image.fromarray(picture).save(beside, format="PNG")
        files.append(str(name.with_suffix(".jpg")))
        pngs.append(str(name.with_suffix(".png")))
    sheet, heat = out / "sheet.png", out / "heat-map.png"
    with atomic_write(sheet) as beside:
        contact_sheet(pixels, captions=names if any(names) else None).save(beside, format="PNG")
    with atomic_write(heat) as beside:
        heat_map_sheet(pixels, samples.places()).save(beside, format="PNG")
    return {"files": files, "pngs": pngs, "sheet": str(sheet), "heat_map": str(heat)}


def likelihood(
    model: str | Path,
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
        model: a run folder, a saved model's folder, a hub id, or shipped weights.
        data: a prepared data set, or a folder of pictures, which are cropped, resized and encoded as `prepare` does it.
        split: which part of a prepared data set.
        num: score the first so many only.
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
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    network = load_model(model, resolve_device(device))
    config = network.config
    if (Path(data) / INFO).is_file():
        store = TripleStore.open(data, split, progress=show)
        if not len(store):
            raise ValueError(f"the {split} split of {data} is empty; choose another with --split")
        if store.info.quality != config.quality:
            raise ValueError(
                f"{data} was prepared at quality {store.info.quality}, the model was trained at {config.quality}; "
                f"prepare the pictures with --quality {config.quality}"
            )
    else:
        store = TripleStore.from_images(data, size=config.size, quality=config.quality, progress=show)
    by_name = {name.casefold(): i for i, name in enumerate(config.label_names)}
    known = [by_name.get(name.casefold(), config.null_label) for name in store.info.labels]
    count = len(store) if num is None else min(num, len(store))
    labels = [
        known[label] if use_labels and 0 <= label < len(known) else config.null_label
        for label in store.labels[:count].tolist()
    ]
    grid = Grid.of_size(store.info.size, store.info.size)

    mask = named(given).mask(grid)
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
