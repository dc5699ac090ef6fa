"""`generate`: pictures from nothing but a label and a seed; `save_samples` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dctransformer.codec import write_jpeg
from dctransformer.files import atomic_write, make_folder
from dctransformer.sampling.engine import SampleConfig, Samples, Snapshot, check_sampling, sample
from dctransformer.sequence.labels import label_name, label_number
from dctransformer.sheets import contact_sheet, heat_map_sheet
from dctransformer.tasks.models import Model, loaded


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
    network = loaded(model, device, "none")
    shape = network.config
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
    return samples, [label_name(shape, i) for i in labels]


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
