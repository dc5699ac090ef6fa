"""`evaluate`: scores of generated pictures against real ones, and exact bits, with all that makes them reproducible."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dctransformer.codec import DCTImage, order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.bits import exact_bits
from dctransformer.evaluate.cache import FeatureSet, cached, extract
from dctransformer.evaluate.config import DISTANCES, EvaluateConfig
from dctransformer.evaluate.features import Extractor, open_extractor
from dctransformer.evaluate.metrics import KID_SUBSETS, NEIGHBOUR, frechet_distance, kernel_distance, precision_recall
from dctransformer.evaluate.pictures import Pictures, Reference, of_folder, of_samples, open_held_out, open_reference
from dctransformer.evaluate.two_sample import two_sample_test
from dctransformer.files import write_text
from dctransformer.hub.pretrained import GUIDE, WEIGHTS, has_guide, load_model, model_folder
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import resolve_device
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import check_sampling, sample
from dctransformer.sampling.likelihood import code_lengths, require_finite
from dctransformer.sampling.rows import Samples
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.labels import draw_labels
from dctransformer.settings import check_ranges
from dctransformer.training.run_folder import SETTINGS

RESULT = "evaluation.json"
"""File that `evaluate` writes into a run folder."""

_DEFAULTS = EvaluateConfig()


def evaluate(
    model: str | Path, data: str | Path, config: EvaluateConfig = _DEFAULTS, *, progress: bool = False
) -> dict[str, Any]:
    """Score a model.

    Generated pictures are compared with real ones twice: with the originals (cropped and resized only) and with their
    codec round trip, which is what the model was trained to imitate. The round trip's own distance to the originals
    is the floor: no model of these coefficients can be expected below it.

    Args:
        model: a run folder, a saved model's folder, ``hf:owner/name``, or shipped weights.
        data: a prepared data set, or a folder of pictures.
        config: what to measure, and how.
        progress: show bars.

    Returns:
        JSON-ready: ``scores`` (by what is compared, then by metric), ``c2st`` (see `two_sample_test`), ``bits``, and
        under ``settings`` the reference set, counts, resize, codec and seed.

    Raises:
        ValueError: something is missing, does not fit or is too little; this is checked before the long work.
    """
    wanted = config.wanted()
    sampling = config.sampling
    distances = tuple(name for name in wanted if name in DISTANCES)
    check_ranges(config)
    # A misspelt path is reported before an extractor is fetched.
    if str(data).startswith(("/", ".", "~")) and not Path(data).expanduser().exists():
        raise ValueError(f"there is no folder {data}; check the path")
    device = resolve_device(config.device)
    network = load_model(model, device)
    check_sampling(network, sampling)
    held_out = None
    if "bits" in wanted:
        held_out = open_held_out(data, network.config, otherwise=config.split, progress=progress).first(config.num)
    extractor = open_extractor(config.features, device) if distances else None
    result: dict[str, Any] = {"model": str(model), "data": str(data), "settings": None, "scores": {}}
    result |= {"c2st": None, "bits": None}
    result["weights"] = weights_hash(model_folder(model))
    if distances or "c2st" in wanted:
        reference = open_reference(
            data, network.config, split=config.split, originals=config.originals, progress=progress
        ).first(config.reference)
        if config.samples is not None:
            found = of_folder(config.samples, network.config.trained_shape).first(config.num)
            facts = {"pictures": len(found), "folder": str(config.samples)}
        else:
            found, facts = None, describe_sampling(config.num, sampling, bool(network.config.num_labels))

        @functools.cache
        def drawn() -> Samples:
            return draw_samples(network, str(model), reference, config.num, sampling, progress)

        if extractor is not None:
            settings, result["scores"] = score(
                extractor, reference, lambda: found or of_samples(drawn()), facts["pictures"], distances, config,
                progress=progress,
            )  # fmt: skip
            result["settings"] = {**settings, "generated": facts}
        if "c2st" in wanted:
            pictures = drawn().dct() if found is None else found.read(0, min(len(found), config.c2st_pictures))
            result["c2st"] = recognise(reference, pictures, config.c2st_pictures, progress)
    if held_out is not None:
        with tqdm(total=len(held_out), unit="img", disable=not progress) as bar:

            def report(what: str, done: int) -> None:
                bar.set_description(what)
                bar.update(done - bar.n)

            result["bits"] = exact_bits(network, str(model), held_out, progress=report)
    return result


def recognise(reference: Reference, pictures: DCTImage | Tensor, most: int, progress: bool) -> dict[str, Any]:
    """Run the classifier two-sample test, with a bar."""
    with tqdm(desc="two-sample test", unit="step", disable=not progress) as bar:

        def report(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        return two_sample_test(reference, pictures, most, progress=report)


def weights_hash(folder: Path) -> str:
    """Return a hash of the weights in a model's folder, those of its guide included."""
    digest = hashlib.blake2b(digest_size=8)
    for path in (folder / WEIGHTS, *([folder / GUIDE / WEIGHTS] if has_guide(folder) else [])):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def result_file(model: str | Path) -> Path | None:
    """Return the path of the figures in a run folder; None for a model that is not a run folder."""
    folder = Path(model)
    return folder / RESULT if (folder / SETTINGS).is_file() else None


def save_result(result: dict[str, Any], path: Path) -> None:
    """Write an evaluation as JSON, atomically."""
    write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def score(
    extractor: Extractor,
    reference: Reference,
    generated: Callable[[], Pictures],
    number: int,
    metrics: tuple[str, ...],
    config: EvaluateConfig,
    *,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare generated pictures with real ones and with their codec round trip, and these two with each other.

    Args:
        extractor: the network behind the metrics.
        reference: the real pictures.
        generated: returns the generated pictures; called when everything else has been checked.
        number: of generated pictures.
        metrics: which of fid, sfid, precision, recall and kid.
        config: how to measure.
        progress: show bars.

    Returns:
        Settings, but for those of the generated pictures; and scores by what is compared, then by metric.

    Raises:
        ValueError: there are too few pictures, or the extractor does not fit.
    """
    widths = feature_widths(extractor, reference)
    for metric in metrics:
        require_enough(extractor, metric, widths, number, len(reference), config)
    options: dict[str, Any] = {"keep": config.neighbours, "progress": progress}
    real = {"codec round trip": cached(extractor, reference.round_trip, config.cache, **options)}
    if reference.originals is not None:
        real["originals"] = cached(extractor, reference.originals, config.cache, **options)
    found = extract(extractor, generated(), progress=progress)
    scores = {
        f"generated, against the {what}": _compare(extractor, features, found, metrics, config)
        for what, features in real.items()
    }
    if "originals" in real:
        floor = _compare(extractor, real["originals"], real["codec round trip"], metrics, config)
        scores["floor: codec round trip, against the originals"] = floor
    grid = reference.grid(0)
    settings = {
        "extractor": extractor.name,
        "extractor_fingerprint": extractor.fingerprint,
        "resize": extractor.resize,
        "reference": {
            "data": reference.name,
            "split": reference.split,
            "pictures": len(reference),
            "size": order.MCU * grid.rows if grid.rows == grid.cols else grid.size,
            "of": len(reference.store),
            "crop": reference.crop,
            "hash": {what: features.digest for what, features in real.items()},
            "originals_missing": reference.why_not,
        },
        "codec": reference.codec,
        "neighbour": NEIGHBOUR,
        "neighbours": min(config.neighbours, len(reference)),
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": config.kid_subset,
        "seed": config.sampling.seed,
    }
    return settings, scores


def describe_sampling(number: int, sampling: SampleConfig, labelled: bool) -> dict[str, Any]:
    """Return the settings of pictures that `draw_samples` generated, for reports."""
    labels = "those of the reference pictures, in their order" if labelled else "none"
    return {"pictures": number, "folder": None, **dataclasses.asdict(sampling), "labels": labels}


def feature_widths(extractor: Extractor, reference: Reference) -> tuple[int, int | None]:
    """Return the numbers of features and of spatial features (None if there are none), by trying one picture."""
    features, spatial = extractor(reference.round_trip.read(0, 1))
    return features.shape[1], None if spatial is None else spatial.shape[1]


def require_enough(
    extractor: Extractor, metric: str, widths: tuple[int, int | None], generated: int, real: int, config: EvaluateConfig
) -> None:
    """Refuse what can't be computed, before hours are spent on it.

    Raises:
        ValueError: too few pictures for a metric, or no spatial features.
    """
    width = widths[1] if metric == "sfid" else widths[0]
    if width is None:
        raise ValueError(f"the extractor {extractor.name} has no spatial features; leave sfid out of --metrics")
    if metric in ("precision", "recall"):
        needs, why = NEIGHBOUR + 1, f"as it looks at the {NEIGHBOUR} nearest neighbours"
    elif metric == "kid":
        needs, why = max(2, config.kid_subset), "the size of its subsets (--kid-subset)"
    elif config.few:
        needs, why = 2, "as a covariance is taken"
    else:
        needs, why = width + 1, f"one more than its {width} features (--few allows fewer, at a large bias)"
    if metric in ("precision", "recall", "kid"):
        real = min(real, config.neighbours)
    for what, number in (("generated", generated), ("real", real)):
        if number < needs:
            raise ValueError(f"{extractor.metric(metric)} needs {needs:,} {what} pictures, {why}; there are {number:,}")


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
    # Sampling turns NaN into an arbitrary picture; the likelihood of any picture reveals it.
    grid = Grid.of_size(*config.trained_shape)
    dot = Sequence.from_triples(torch.tensor([[0, 0, 1]]), grid, config.null_label)
    require_finite(code_lengths(network, [dot] if reference is None else reference.sequences(1)).bits, name)
    if reference is not None:
        labels = [reference.labels[i % len(reference)] for i in range(number)]
    else:
        labels = draw_labels(config, number, sampling.seed)
    with tqdm(total=number, desc="sampling", unit="img", disable=not progress) as bar:

        def report(triples: int, finished: int) -> None:
            bar.set_postfix_str(f"{triples:,} triples")
            bar.update(finished - bar.n)

        return sample(network, number, sampling, labels=labels, size=config.trained_shape, progress=report)


def _compare(
    extractor: Extractor, real: FeatureSet, found: FeatureSet, metrics: tuple[str, ...], config: EvaluateConfig
) -> dict[str, float]:
    """Return the metrics of one set against another, by the names they have in reports."""
    scores: dict[str, float] = {}
    if "fid" in metrics:
        scores["fid"] = frechet_distance(real.moments, found.moments)
    if "sfid" in metrics:
        assert real.spatial is not None and found.spatial is not None
        scores["sfid"] = frechet_distance(real.spatial, found.spatial)
    if "precision" in metrics or "recall" in metrics:
        scores["precision"], scores["recall"] = precision_recall(real.features[: config.neighbours], found.features)
    if "kid" in metrics:
        scores["kid"], spread = kernel_distance(
            real.features[: config.neighbours], found.features, subset_size=config.kid_subset, seed=config.sampling.seed
        )
    named = {extractor.metric(name): scores[name] for name in metrics}
    if "kid" in metrics:
        named[extractor.metric("kid") + "-spread"] = spread
    assert all(np.isfinite(value) for value in named.values())
    return named
