"""Deciding texture by channel compared with triple by triple: decisions, sampling and training speed, bits, distances.

    python benchmarks/texture.py DATA [--minutes 2] [--seeds 0] [--num 16] [--batch 16]
    python benchmarks/texture.py DATA --minutes 40 --seeds 0 1 --samples 1000 --out FOLDER --clock processor

DATA is a data set prepared by `dctransformer prepare`. With each seed, two models of the same preset, one with texture
and one without, are trained on it for generation only and for the same time. Each is scored on validation pictures and
then sampled. After a short training, samples may have fewer or more triples than real pictures, so seconds are measured
per decision and scaled to the decisions of a validation picture; even so, models trained for seconds give no meaningful
``seconds_ratio``. ``--seconds parts`` times a chunk and a texture of validation pictures instead: it needs a minute
where whole pictures take hours. With ``--samples``, that many samples are compared with the training pictures after the
codec, by features. ``--shares`` adds models with another share of texture in training, ``--bands`` models whose texture
starts at another band (1: only DC triple by triple).

The last line is JSON: ``decisions`` and ``decisions_triples`` (per validation picture), ``seconds_ratio`` (seconds per
picture, all triples divided by texture), ``pictures_ratio`` (training pictures per second, texture divided by all
triples), and for every model bytes per image, those of structure (DC and the first band), and distances. With
``--out``, weights and rows are written there, and the same command computes only the missing ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from baselines.loop import CLOCKS, Stage, base_config, fit, remove_checkpoints, step_seconds
from dctransformer import DCTransformer
from dctransformer.codec import order
from dctransformer.codec.grid import RANK_OF_SLOT
from dctransformer.codec.triples import ranked, scatter
from dctransformer.data import TripleStore
from dctransformer.evaluate.config import EvaluateConfig
from dctransformer.evaluate.evaluation import evaluate
from dctransformer.files import write_text
from dctransformer.hub.pretrained import save_model
from dctransformer.model.config import ModelConfig, preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import Engine, sample
from dctransformer.sampling.rows import Request
from dctransformer.training.config import RATES, TrainConfig
from dctransformer.training.setup import Steps
from measure import decisions, machine

Row = dict[str, float]

STRUCTURE = order.BAND_NAMES[:2]
"""Bands of structure, whose bytes are also counted separately."""


def train(store: TripleStore, shape: ModelConfig, share: float, seed: int, folder: Path, args: Any) -> Row:
    """Train one model and write it to a folder.

    Returns:
        The number of steps, and pictures per second, counted by the triples that the Transformer is trained on.
    """
    base = dataclasses.replace(
        base_config(seed=seed), optimizer=TrainConfig().optimizer, texture=share, batch=args.batch
    )
    per_image = float(store.listed(shape.texture_rank).mean())
    stage = Stage("model", lambda: DCTransformer(shape), lambda c: Steps(store, shape, c), lambda _: 0.0, args.batch,
                  per_image)  # fmt: skip
    rate = RATES[base.resolved(sharded=False).optimizer]
    trained = fit(stage, args.minutes, rate, base, folder, step_seconds(stage, base, args.clock), args.clock)
    network = trained.network
    assert isinstance(network, DCTransformer)
    save_model(network, folder)
    remove_checkpoints(folder)
    return {"pictures_per_second": trained.facts["images_per_second"], "steps": trained.facts["steps"]}


def score(folder: Path, args: Any) -> Row:
    """Return bytes per image of a trained model, and distances if samples are asked for."""
    metrics = "fid,kid,precision,recall,bits" if args.samples else "bits"
    config = EvaluateConfig(
        args.samples or args.scored, metrics, args.features, kid_subset=min(1000, args.samples or 1000)
    )
    scores = evaluate(folder, args.data, config)
    bands = scores["bits"]["bits_per_image_by_band"]
    return {
        "bytes_per_image": scores["bits"]["bytes_per_image"],
        "structure_bytes": sum(bands[name] for name in STRUCTURE) / 8,
        **scores["scores"].get("generated, against the codec round trip", {}),
    }


def seconds_by_samples(model: DCTransformer, held_out: TripleStore, args: Any) -> float:
    """Return seconds per picture: those per decision of whole samples, times a validation picture's decisions."""
    clock = CLOCKS[args.clock]
    began = clock()
    samples = sample(model, args.num, SampleConfig(batch=args.num, workers=1))
    per_decision = (clock() - began) / max(float(samples.decisions().sum()), 1.0)
    return per_decision * decisions(held_out, model.config.texture_rank)


@torch.inference_mode()
def seconds_by_parts(model: DCTransformer, held_out: TripleStore, args: Any) -> float:
    """Return seconds per picture: those per decision of parts of validation pictures, times their decisions.

    A part is the chunk in the middle of the structure, or the texture of a picture whose structure is given.
    """
    clock, first = CLOCKS[args.clock], model.config.texture_rank
    engine, grid = Engine(model, SampleConfig(batch=args.num, workers=1)), held_out.grid(0)
    pictures = [held_out.triples(i) for i in range(args.num)]
    structures = [triples[ranked(triples)[0] < first] for triples in pictures]
    stride = model.config.stride
    middle = min(len(triples) for triples in structures) // 2 // stride * stride
    rows = engine.begin([Request(i, model.config.null_label) for i in range(args.num)], grid, engine.config)
    for row, triples in zip(rows, structures, strict=True):
        row.listed = torch.stack(ranked(triples[:middle]), 1)
    began = clock()
    engine.run(rows)
    per_triple = (clock() - began) / max(sum(len(row.listed) - middle for row in rows), 1)
    seconds = per_triple * float(held_out.listed(first).mean())
    if first == order.NUM_CHANNELS:
        return seconds
    given = (first > RANK_OF_SLOT).expand(grid.mcus, -1, -1)
    requests = [
        Request(i, model.config.null_label, scatter(*ranked(triples), grid), given)
        for i, triples in enumerate(structures)
    ]
    rows, batch = engine.begin(requests, grid, engine.config), engine.texture_batch(grid)
    began = clock()
    channels = sum(engine.run_texture(rows[k : k + batch]) for k in range(0, len(rows), batch))
    per_channel = (clock() - began) / max(channels, 1)
    return seconds + per_channel * (decisions(held_out, first) - float(held_out.listed(first).mean()))


def measure(store: TripleStore, texture_from: int, share: float, seed: int, folder: Path, args: Any) -> Row:
    """Train, score and time one model, and return its row."""
    shape = dataclasses.replace(
        preset(args.preset, texture_from=texture_from), quality=store.info.quality, size=store.info.side,
        num_labels=len(store.info.labels), label_names=tuple(store.info.labels),
    )  # fmt: skip
    row = train(store, shape, share, seed, folder, args) | score(folder, args)
    model = DCTransformer.from_pretrained(folder)
    held_out = TripleStore.open(args.data, "validation", progress=False)
    seconds = seconds_by_parts if args.seconds == "parts" else seconds_by_samples
    return row | {"seconds_per_picture": seconds(model, held_out, args)}


def main() -> None:
    """Measure all models and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=2.0, help="training time per model")
    parser.add_argument(
        "--seconds", choices=["samples", "parts"], default="samples",
        help="what is timed: whole samples, or parts of validation pictures, for large ones",
    )  # fmt: skip
    parser.add_argument("--num", type=int, default=16, help="pictures to sample for measuring seconds per picture")
    parser.add_argument("--batch", type=int, default=16, help="chunks per training step")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="every model is trained with each seed")
    parser.add_argument("--shares", type=float, nargs="*", default=[], help="more values of train's --texture")
    parser.add_argument("--bands", type=int, nargs="*", default=[], help="more values of --model.texture-from")
    parser.add_argument("--samples", type=int, default=0, help="samples for distances; 0 to leave distances out")
    parser.add_argument("--scored", type=int, default=350, help="validation pictures for bytes, without --samples")
    parser.add_argument(
        "--features", default="small64", help="feature extractor for distances, see dctransformer evaluate"
    )
    parser.add_argument("--out", type=Path, help="folder for weights and rows, from which the same command continues")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall",
        help="processor measures CPU time, for a machine that runs other jobs (one thread)",
    )  # fmt: skip
    args = parser.parse_args()
    texture_from = preset(args.preset).texture_from
    share = TrainConfig().texture
    kinds = {"texture": (texture_from, share), "triples": (len(order.BANDS), share)}
    kinds |= {f"texture, share {part:g}": (texture_from, part) for part in args.shares}
    kinds |= {f"texture from {bands}": (bands, share) for bands in args.bands}
    store = TripleStore.open(args.data, "train", progress=False)
    rows: dict[str, list[Row]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        for seed in args.seeds:
            for name, (bands, part) in kinds.items():
                folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{args.minutes:g}min-{seed}"
                row_file = folder / "row.json"
                if not row_file.is_file():
                    write_text(row_file, json.dumps(measure(store, bands, part, seed, folder, args)))
                rows[name].append(json.loads(row_file.read_text()))
                print(f"{name}, seed {seed}: {rows[name][-1]}", flush=True)
    mean = {n: {k: statistics.fmean(row[k] for row in all_) for k in all_[0]} for n, all_ in rows.items()}
    held_out = TripleStore.open(args.data, "validation", progress=False)
    texture, triples = mean["texture"], mean["triples"]
    result = {
        "benchmark": "texture",
        "decisions": decisions(held_out, preset(args.preset).texture_rank),
        "decisions_triples": decisions(held_out, order.NUM_CHANNELS),
        "decisions_from": {
            b: decisions(held_out, preset(args.preset, texture_from=b).texture_rank) for b in args.bands
        },
        "seconds_ratio": triples["seconds_per_picture"] / texture["seconds_per_picture"],
        "seconds_ratio_from": {
            b: triples["seconds_per_picture"] / mean[f"texture from {b}"]["seconds_per_picture"] for b in args.bands
        },
        "pictures_ratio": texture["pictures_per_second"] / triples["pictures_per_second"],
        **mean,
        "minutes": args.minutes,
        "seeds": args.seeds,
        **machine(DCTransformer(preset("tiny")).device),
    }
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
