"""`evaluate`: scores of generated pictures against real ones, and exact bits, with all that makes them reproducible."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dctransformer.evaluate.bits import exact_bits, require_finite
from dctransformer.evaluate.cache import FeatureSet, cached, extract
from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.evaluate.features import Extractor, open_extractor
from dctransformer.evaluate.metrics import (
    KID_SUBSETS,
    NEIGHBOUR,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from dctransformer.evaluate.pictures import Pictures, Reference, of_folder, of_samples, open_reference
from dctransformer.files import write_text
from dctransformer.likelihood import code_lengths
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import resolve_device
from dctransformer.sample import SampleConfig, Samples, sample
from dctransformer.train import SETTINGS

RESULT = "evaluation.json"
"""What `evaluate` leaves in a run folder."""

_DEFAULTS = EvaluateConfig()


def evaluate(
    model: str | Path, data: str | Path, config: EvaluateConfig = _DEFAULTS, *, progress: bool = False
) -> dict[str, Any]:
    """Score a model.

    Generated pictures are compared with real ones twice: with the originals (cropped and resized only) and with their
    codec round trip, which is what the model was trained to imitate. The round trip's own distance to the originals
    is the floor: no model of these coefficients can be expected below it.

    Args:
        model: a run folder, a saved model's folder, a hub id, or shipped weights.
        data: a prepared data set, or a folder of pictures.
        config: what to measure, and how.
        progress: show bars.

    Returns:
        JSON-ready: ``scores`` (by what is compared, then by metric), ``bits``, and under ``settings`` the reference
        set, counts, resize, codec and seed.

    Raises:
        ValueError: something is missing, does not fit or is too little; that is said before the long work.
    """
    wanted = config.wanted()
    sampling = SampleConfig(config.seed, config.temperature, config.top_p, config.guidance, config.batch)
    distances = tuple(name for name in wanted if name != "bits")
    for name, number in (("num", config.num), ("reference", config.reference)):
        if number is not None and number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
    device = resolve_device(config.device)
    network = DCTransformer.from_pretrained(model, device=device)
    extractor = open_extractor(config.features, device) if distances else None
    result: dict[str, Any] = {"model": str(model), "data": str(data), "scores": {}, "bits": None}
    if extractor is not None:
        reference = open_reference(
            data, network.config, split=config.split, originals=config.originals, progress=progress
        ).first(config.reference)
        result["settings"], result["scores"] = _scores(
            network, str(model), extractor, reference, distances, config, sampling, progress
        )
    if "bits" in wanted:
        held_out = open_reference(
            data, network.config, split="validation", find_originals=False, progress=progress
        ).first(config.num)
        with tqdm(total=len(held_out), unit="img", disable=not progress) as bar:

            def tell(what: str, done: int) -> None:
                bar.set_description(what)
                bar.update(done - bar.n)

            result["bits"] = exact_bits(network, str(model), held_out, progress=tell)
    return result


def result_file(model: str | Path) -> Path | None:
    """Where the figures of a run go: into its folder; None for a model that is no training's folder."""
    folder = Path(model)
    return folder / RESULT if (folder / SETTINGS).is_file() else None


def save_result(result: dict[str, Any], path: Path) -> None:
    """Write an evaluation as JSON, beside and renamed."""
    write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _scores(
    network: DCTransformer,
    name: str,
    extractor: Extractor,
    reference: Reference,
    metrics: tuple[str, ...],
    config: EvaluateConfig,
    sampling: SampleConfig,
    progress: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and scores of the distances."""
    generated = of_folder(config.samples, network.config.size).first(config.num) if config.samples else None
    number = config.num if generated is None else len(generated)
    _require_enough(extractor, reference, number, metrics, config)
    real = {"codec round trip": _real(extractor, reference.round_trip, config, progress)}
    if reference.originals is not None:
        real["originals"] = _real(extractor, reference.originals, config, progress)
    if generated is None:
        generated = of_samples(draw_samples(network, name, reference, number, sampling, progress))
    found = extract(extractor, generated, progress=progress)
    scores = {
        f"generated, against the {what}": _compare(extractor, a, found, metrics, config) for what, a in real.items()
    }
    if "originals" in real:
        floor = _compare(extractor, real["originals"], real["codec round trip"], metrics, config)
        scores["floor: codec round trip, against the originals"] = floor
    settings = {
        "extractor": extractor.name,
        "extractor_fingerprint": extractor.fingerprint,
        "resize": extractor.resize,
        "reference": {
            "data": reference.name,
            "split": reference.split,
            "pictures": len(reference),
            "size": network.config.size,
            "crop": "centre square, Lanczos",
            "hash": {what: features.digest for what, features in real.items()},
            "originals_missing": reference.why_not,
        },
        "codec": reference.codec,
        "generated": {
            "pictures": number,
            "folder": str(config.samples) if config.samples else None,
            **({} if config.samples else {
                **dataclasses.asdict(sampling),
                "labels": "those of the reference pictures, in their order" if network.config.num_labels else "none",
            }),
        },
        "neighbour": NEIGHBOUR,
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": config.kid_subset,
        "seed": config.seed,
    }  # fmt: skip
    return settings, scores


def _require_enough(
    extractor: Extractor, reference: Reference, generated: int, metrics: tuple[str, ...], config: EvaluateConfig
) -> None:
    """Refuse what can't be computed, before hours are spent on it.

    Raises:
        ValueError: too few pictures, or no spatial features.
    """
    features, spatial = extractor(reference.round_trip.read(0, 1))
    for metric in metrics:
        needs, why = 2, ""
        if metric in ("fid", "sfid"):
            if metric == "sfid" and spatial is None:
                raise ValueError(f"the extractor {extractor.name} has no spatial features; leave sfid out of --metrics")
            width = (spatial if metric == "sfid" and spatial is not None else features).shape[1]
            if not config.few:
                needs, why = width + 1, f"more than its {width} features, or --few to have it all the same"
        elif metric in ("precision", "recall"):
            needs, why = NEIGHBOUR + 2, f"for its {NEIGHBOUR} nearest neighbours"
        else:
            needs, why = max(2, config.kid_subset), "the size of its subsets (--kid-subset)"
        for what, number in (("generated", generated), ("real", len(reference))):
            if number < needs:
                raise ValueError(f"{extractor.metric(metric)} needs {needs} {what} pictures, {why}; there are {number}")


def _real(extractor: Extractor, pictures: Pictures, config: EvaluateConfig, progress: bool) -> FeatureSet:
    return cached(extractor, pictures, config.cache, progress=progress)


def draw_samples(
    network: DCTransformer, name: str, reference: Reference | None, number: int, sampling: SampleConfig, progress: bool
) -> Samples:
    """Generate pictures whose labels are those of the reference pictures, in their order.

    Args:
        network: in eval mode.
        name: of the model, for messages.
        reference: the real pictures; None for labels drawn evenly from all classes by the seed.
        number: how many to generate.
        sampling: seed, temperature and so on.
        progress: show a bar.

    Raises:
        ValueError: the model gives NaN.
    """
    config = network.config
    if reference is not None:
        # Sampling turns NaN into some picture or other; the likelihood shows it.
        require_finite(code_lengths(network, reference.sequences(1)).bits, name)
        labels = [reference.labels[i % len(reference)] for i in range(number)]
    elif config.num_labels:
        labels = [int(np.random.default_rng([sampling.seed, i, 1]).integers(config.num_labels)) for i in range(number)]
    else:
        labels = [config.null_label] * number
    with tqdm(total=number, desc="sampling", unit="img", disable=not progress) as bar:

        def tell(triples: int, finished: int) -> None:
            bar.set_postfix_str(f"{triples:,} triples")
            bar.update(finished - bar.n)

        return sample(network, number, sampling, labels=labels, progress=tell)


def _compare(
    extractor: Extractor, real: FeatureSet, found: FeatureSet, metrics: tuple[str, ...], config: EvaluateConfig
) -> dict[str, float]:
    """The metrics of one set against another, by the names they have in reports."""
    scores: dict[str, float] = {}
    if "fid" in metrics:
        scores["fid"] = frechet_distance(real.moments, found.moments)
    if "sfid" in metrics:
        assert real.spatial is not None and found.spatial is not None
        scores["sfid"] = frechet_distance(real.spatial, found.spatial)
    if "precision" in metrics or "recall" in metrics:
        scores["precision"], scores["recall"] = precision_recall(real.features, found.features)
    if "kid" in metrics:
        scores["kid"], spread = kernel_distance(
            real.features, found.features, subset_size=config.kid_subset, seed=config.seed
        )
    named = {extractor.metric(name): scores[name] for name in metrics}
    if "kid" in metrics:
        named[extractor.metric("kid") + "-spread"] = spread
    assert all(np.isfinite(value) for value in named.values())
    return named
