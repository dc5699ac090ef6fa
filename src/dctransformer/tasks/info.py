"""Descriptions of a model, a data set or an image in plain figures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dctransformer.codec import DCTImage, order, read_jpeg
from dctransformer.data.formats import reason, register_optional_readers
from dctransformer.data.info import INFO, DatasetInfo
from dctransformer.files import check_regular
from dctransformer.hub.pretrained import (
    CONFIG,
    GUIDE,
    WEIGHTS,
    check_header,
    has_guide,
    model_folder,
    read_config,
    shipped_names,
)
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer


def describe(thing: str | Path) -> dict[str, Any]:
    """Describe an image file, a data set or a model.

    Args:
        thing: an image file, a prepared data set, or a model (run folder, saved model, hf:owner/name, shipped weights).

    Returns:
        JSON-ready facts; ``kind`` says which of the three it is.

    Raises:
        ValueError: it is none of them, or damaged.
    """
    path = Path(thing)
    check_regular(path)
    if path.is_file():
        return describe_image(path)
    if (path / INFO).is_file():
        return describe_data(path)
    if path.is_dir() and not (path / CONFIG).is_file():
        raise ValueError(
            f"{path} holds neither a model nor a prepared data set; "
            f"make a data set of a folder of pictures with: dctransformer prepare {path} OUT"
        )
    if not path.is_dir() and str(thing) not in shipped_names() and (path.suffix or str(thing).startswith(("/", "."))):
        raise ValueError(f"there is no file or folder {path}; check the name")
    return describe_model(model_folder(thing))


def describe_image(path: Path) -> dict[str, Any]:
    """Return the facts of an image file; for a JPEG its tables, sampling and triples."""
    try:
        register_optional_readers()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, large pictures: of no concern here
            with Image.open(path) as image:
                kind, width, height, mode = image.format, image.width, image.height, image.mode
    # Pillow's plugins answer damaged files with almost any exception (SyntaxError, IndexError, struct.error, …).
    except Exception as error:
        raise ValueError(f"{path} can't be read as an image ({reason(path, error)}); give an image file") from error
    facts: dict[str, Any] = {"kind": "image", "format": kind, "width": width, "height": height, "mode": mode}
    if kind in ("JPEG", "MPO"):  # MPO: several JPEG pictures in one file, as phones write; the first is described.
        facts |= describe_coefficients(read_jpeg(path))
        facts["file_bytes"] = path.stat().st_size
    return facts


def describe_coefficients(dct: DCTImage) -> dict[str, Any]:
    """Return the facts of a DCT image of batch 1: sampling, triples by band and by component, tables."""
    triples = dct.to_triples()[0]
    band = torch.from_numpy(order.BAND_OF_CHANNEL)[triples[:, 0].long()]
    component = triples[:, 0] // 64
    tables = {"luma_table": dct.luma_table.tolist()}
    if dct.chroma_table is not None:
        tables["chroma_table"] = dct.chroma_table.tolist()
    return {
        "sampling": dct.sampling,
        "triples": len(triples),
        "triples_by_band": {name: int((band == i).sum()) for i, name in enumerate(order.BAND_NAMES)},
        "triples_by_component": {name: int((component == i).sum()) for i, name in enumerate(("Y", "Cb", "Cr"))},
        **tables,
    }


def describe_data(folder: Path) -> dict[str, Any]:
    """Return the facts of a prepared data set."""
    info = DatasetInfo.load(folder)
    return {
        "kind": "data set",
        "size": info.size or str(info.target),
        "sizes": info.size_table,
        "quality": info.quality,
        "subsampling": info.subsampling,
        "pictures": dict(info.splits),
        "skipped": info.skipped,
        "source": info.source,
        "labels": list(info.labels),
    }


def describe_model(folder: Path) -> dict[str, Any]:
    """Return the facts of a saved model: its config, its parameters by part, the size of its file."""
    config = read_config(folder)
    with torch.device("meta"):
        check_header(folder, DCTransformer(config).state_dict())
    parts = parameters_by_part(config)
    elsewhere = ("size", "shape", "extent", "quality", "label_names")
    return {
        "kind": "model",
        "folder": str(folder),
        "size": config.size,
        "shape": "{1}x{0}".format(*config.trained_shape),
        "extent": "{1}x{0}".format(*config.trained_extent),
        "quality": config.quality,
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "file_bytes": (folder / WEIGHTS).stat().st_size,
        "guide_parameters": sum(parameters_by_part(read_config(folder / GUIDE)).values()) if has_guide(folder) else 0,
        "config": {k: v for k, v in config.to_dict().items() if k not in elsewhere},
        "labels": list(config.label_names),
    }


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each top-level part of a model, without making its weights."""
    with torch.device("meta"):
        model = DCTransformer(config)
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
