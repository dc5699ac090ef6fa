"""Tasks on unseen photographs: upscale ×2 compared with Lanczos, colorize compared with grey and the mean colour.

Photographs are cropped to whole MCUs (16 × 16 pixels) and passed through the codec at the model's quality. The results
are the true pictures that all figures are relative to. Feature distances are computed on windows of 64 pixels, without
resizing. The last line is JSON: ``checks`` has each figure with its goal, ``ratio`` is the fraction of goals met.

Example: python benchmarks/photos.py imagenette/val --num 24 --megapixels 1 --sheet photos.png

Needs scikit-image and OpenCV: pip install '.[bench]' in a checkout.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from dctransformer import DCTransformer
from dctransformer.codec import Codec, order
from dctransformer.data.images import load_image
from dctransformer.data.sources import open_source
from dctransformer.evaluate.features import open_extractor
from dctransformer.evaluate.metrics import Moments, frechet_distance
from dctransformer.sampling.config import SampleConfig
from dctransformer.sheets import captioned_rows
from dctransformer.tasks.edit import Options, colorize, upscale
from tasks import Pictures, ciede2000, colourfulness, high_energy, luma, mean, psnr, shrunk, table, with_chroma

WINDOW = 64
"""Side of the windows whose features are compared, in pixels."""


@dataclasses.dataclass
class Args:
    """Settings of the benchmark."""

    photos: tyro.conf.Positional[Path]
    """Folder of photographs, searched recursively."""
    model: str = "photos"
    """Model to evaluate."""
    num: int = 24
    """Number of photographs, chosen at random."""
    seed: int = 0
    """Random seed of the choice and of the samples."""
    top_p: float = 1.0
    """Top-p (nucleus) of the samples."""
    min_p: float = 0.0
    """Min-p of the samples."""
    guidance: float = 1.0
    """Guidance of the structure, for a model with a guide."""
    crop: int = 256
    """Longest side in pixels; larger photographs are cropped to their centre."""
    shrink: Literal["lanczos", "dct"] = "lanczos"
    """How the small pictures are made: by Pillow's Lanczos filter, or by the low frequencies of each 8 × 8 block."""
    alternatives: int = 8
    """Number of samples per colorized picture."""
    colorize: bool = True
    """Also colorize."""
    megapixels: float = 0.0
    """Also time the upscaling of one square photograph of this size (a mosaic of the others); 0 to leave it out."""
    sheet: Path | None = None
    """File for a sheet of the first pictures."""


def photographs(args: Args, codec: Codec) -> Pictures:
    """Photographs cropped to whole MCUs and passed through the codec: uint8 ``[H, W, 3]`` each."""
    source = open_source(args.photos)
    pictures: Pictures = []
    for i in np.random.default_rng([args.seed, 0]).permutation(len(source.items))[: args.num]:
        pixels = np.asarray(load_image(source.read(int(i))))
        sides = [min(side, args.crop) // order.MCU * order.MCU for side in pixels.shape[:2]]
        if min(sides) < WINDOW:
            raise SystemExit(f"{source.items[i].key} is smaller than {WINDOW} pixels; leave it out")
        top, left = ((full - crop) // 2 for full, crop in zip(pixels.shape[:2], sides, strict=True))
        cut = np.ascontiguousarray(pixels[top : top + sides[0], left : left + sides[1]])
        pictures.append(codec.decode(codec.encode(cut))[0].numpy())
    return pictures


def block_noise(picture: np.ndarray) -> float:
    """Blockiness: mean step of luma across the borders of 8 × 8 blocks divided by the mean step inside blocks."""
    y = luma(picture)
    across, inside = [], []
    for plane in (y, y.T):
        steps = np.abs(np.diff(plane, axis=0))
        border = np.arange(1, len(plane)) % order.BLOCK == 0
        across.append(steps[border].mean())
        inside.append(steps[~border].mean())
    return float(sum(across) / sum(inside))


def windows(pictures: Pictures) -> torch.Tensor:
    """Cut the centre of each picture into as many windows as fit: uint8 ``[n, 64, 64, 3]``."""
    cuts = []
    for picture in pictures:
        rows, cols = (side // WINDOW for side in picture.shape[:2])
        top, left = (side % WINDOW // 2 for side in picture.shape[:2])
        cut = picture[top : top + rows * WINDOW, left : left + cols * WINDOW]
        cuts.append(cut.reshape(rows, WINDOW, cols, WINDOW, 3).swapaxes(1, 2).reshape(-1, WINDOW, WINDOW, 3))
    return torch.from_numpy(np.concatenate(cuts))


def mosaic(pictures: Pictures, side: int) -> np.ndarray:
    """Tile one square picture with windows of others: uint8 ``[side, side, 3]``."""
    tiles = windows(pictures).numpy()
    count = -(-side // WINDOW)
    chosen = np.resize(np.arange(len(tiles)), count * count)
    rows = tiles[chosen].reshape(count, count, WINDOW, WINDOW, 3).swapaxes(1, 2)
    return np.ascontiguousarray(rows.reshape(count * WINDOW, count * WINDOW, 3)[:side, :side])


def best_single_chroma(pictures: Pictures) -> np.ndarray:
    """Mean Cb and Cr of the pictures, 0 to 255: the best single colour for all of them."""
    r, g, b = np.concatenate([p.reshape(-1, 3) for p in pictures]).mean(0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.array([128 + (b - y) / 1.772, 128 + (r - y) / 1.402])


def main(args: Args) -> None:
    """Run both tasks and print the result."""
    from PIL import Image

    model = DCTransformer.from_pretrained(args.model)
    codec = Codec(model.config.quality)
    truth = photographs(args, codec)
    sampling = SampleConfig(
        seed=args.seed, top_p=args.top_p, min_p=args.min_p, guidance=args.guidance, texture_guidance=1.0
    )
    checks: dict[str, dict[str, float | bool]] = {}
    started = time.perf_counter()

    def check(name: str, value: float, low: float, high: float) -> None:
        checks[name] = {"value": round(value, 4), "low": low, "high": high, "met": low <= value <= high}

    small = shrunk(truth, 2, args.shrink) if args.shrink == "lanczos" else [shrunk([t], 2, "dct")[0] for t in truth]
    upscaled = [edit.pixels()[0] for edit in upscale(model, small, 2, Options(1, None, sampling), args.shrink)]
    extractor = open_extractor("small64")

    def features_of(pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
        features, spatial = extractor(windows(pictures))
        assert spatial is not None  # this extractor has both
        return features, spatial

    true_features = features_of(truth)
    energy = sum(high_energy(t, 4) for t in truth)
    rows: dict[str, list[float]] = {}
    frechet: dict[str, float] = {}
    for name, pictures in {
        "true": truth,
        "bicubic": [enlarged(s, Image.Resampling.BICUBIC) for s in small],
        "Lanczos": [enlarged(s, Image.Resampling.LANCZOS) for s in small],
        "DCTransformer": upscaled,
    }.items():
        features = features_of(pictures)
        distances = [float((a - b).norm(dim=1).mean()) for a, b in zip(features, true_features, strict=True)]
        rows[name] = [
            sum(high_energy(p, 4) for p in pictures) / energy, *distances, mean(block_noise, pictures),
            mean(psnr, pictures, truth) if name != "true" else np.inf,
        ]  # fmt: skip
        if len(true_features[0]) > 2 * true_features[0].shape[1]:
            frechet[name] = frechet_distance(Moments.of(features[0]), Moments.of(true_features[0]))
    columns = ["high-frequency energy / true", "feature distance", "spatial feature distance", "block noise", "PSNR"]
    table("upscale ×2", columns, rows)
    check("upscale_x2_energy", rows["DCTransformer"][0], 0.85, 1.15)
    check("feature_distance_to_lanczos", rows["DCTransformer"][1] / rows["Lanczos"][1], 0.0, 1.0)
    check("spatial_feature_distance_to_lanczos", rows["DCTransformer"][2] / rows["Lanczos"][2], 0.0, 1.0)
    check("block_noise_to_true", rows["DCTransformer"][3] / rows["true"][3], 0.0, 1.05)
    shown = [[enlarged(s, Image.Resampling.LANCZOS), o, t] for s, o, t in zip(small, upscaled, truth, strict=True)]

    if args.colorize:
        grey = [np.repeat(luma(t).round().astype(np.uint8)[..., None], 3, 2) for t in truth]
        coloured = [e.pixels() for e in colorize(model, grey, Options(args.alternatives, None, sampling))]
        flat = [with_chroma(t, best_single_chroma(truth)) for t in truth]
        colour = mean(colourfulness, truth)
        baselines = {"grey": grey, "mean colour": flat, "DCTransformer": [samples[0] for samples in coloured]}
        rows = {name: [mean(ciede2000, p, truth), mean(colourfulness, p) / colour] for name, p in baselines.items()}
        best = [min(samples, key=lambda s, t=t: ciede2000(s, t)) for samples, t in zip(coloured, truth, strict=True)]
        name = f"DCTransformer, best of {args.alternatives}"
        rows[name] = [mean(ciede2000, best, truth), mean(colourfulness, best) / colour]
        table("colorize", ["CIEDE2000", "colourfulness / true"], rows)
        check("colorize_best_to_grey", rows[name][0] / rows["grey"][0], 0.0, 1.0)
        check("colorize_best_to_mean_colour", rows[name][0] / rows["mean colour"][0], 0.0, 1.0)
        for row, g, samples, b in zip(shown, grey, coloured, best, strict=True):
            row += [g, samples[0], samples[1], b]

    seconds = None
    if args.megapixels > 0:
        large = mosaic(truth, round((args.megapixels * 1e6) ** 0.5))
        before = time.perf_counter()
        upscale(model, [large], 2, Options(1, None, sampling))
        seconds = time.perf_counter() - before
        check("seconds_per_megapixel", seconds / args.megapixels, 0.0, 60.0)

    if args.sheet is not None:
        captions = ["Lanczos", "x2", "true", "grey", "colour 0", "colour 1", "best colour"]
        captioned_rows(shown[:8], captions[: len(shown[0])], side=240).save(args.sheet)
    met = [bool(c["met"]) for c in checks.values()]
    print(json.dumps({
        "benchmark": "photos", "ratio": sum(met) / len(met), "goal": 1.0, "checks": checks, "images": len(truth),
        "frechet": frechet, "shrink": args.shrink, "seed": args.seed, "top_p": args.top_p, "min_p": args.min_p,
        "guidance": args.guidance,
        "model": args.model, "megapixels": args.megapixels, "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
    }))  # fmt: skip


def enlarged(picture: np.ndarray, how) -> np.ndarray:
    """Enlarge a picture by 2 with a filter of Pillow."""
    from PIL import Image

    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((2 * width, 2 * height), how))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
