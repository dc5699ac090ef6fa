"""Upscale, colorize and inpaint held-out pictures, compared with conventional methods.

The true pictures are the decoded validation pictures of a prepared data set. The last line is JSON: ``checks`` has each
figure with its goal, ``ratio`` is the fraction of goals met.

Example: python benchmarks/tasks.py prepared/flowers64 --num 128

Needs scikit-image and OpenCV: pip install '.[bench]' in a checkout.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
import tyro
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab  # pyright: ignore[reportMissingImports]
from skimage.metrics import structural_similarity  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from dctransformer.codec import Codec
from dctransformer.codec.grid import Grid
from dctransformer.codec.resize import dct_matrix, shrink
from dctransformer.data.store import TripleStore
from dctransformer.sampling.config import SampleConfig
from dctransformer.tasks.edit import Edited, Options, colorize, inpaint, upscale

Pictures = list[np.ndarray]


@dataclasses.dataclass
class Args:
    """Settings of the benchmark."""

    data: tyro.conf.Positional[Path]
    """Prepared data set."""
    model: str = "flowers64"
    """Model to evaluate."""
    num: int = 128
    """Number of validation pictures."""
    seed: int = 0
    """Random seed of the samples."""
    min_p: float = 0.0
    """Min-p of the samples."""
    top_p: float = 1.0
    """Top-p (nucleus) of the samples."""
    shrink: Literal["lanczos", "box", "dct"] = "dct"
    """How pictures are shrunk before upscaling: to the low frequencies of each 8 × 8 block, which is what upscaling
    inverts (`dctransformer.codec.resize.shrink`), or with Pillow's Lanczos or box filter, which are softer."""
    upscale_only: bool = False
    """Skip colorize and inpaint."""
    sheet: Path | None = None
    """File for a sheet of the first pictures."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two RGB pictures."""
    return float(np.mean(structural_similarity(a, b, channel_axis=2, full=True)[1]))


def luma(picture: np.ndarray) -> np.ndarray:
    """Luma of an RGB picture, fp64 ``[H, W]``."""
    return picture @ np.array([0.299, 0.587, 0.114])


def high_energy(picture: np.ndarray, corner: int) -> float:
    """Energy of the luma's 8 × 8 DCT coefficients outside the low-frequency corner of ``corner`` × ``corner``."""
    height, width = (n // 8 * 8 for n in picture.shape[:2])
    blocks = luma(picture)[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)
    matrix = dct_matrix(8).numpy()
    spectrum = (matrix @ blocks @ matrix.T) ** 2
    spectrum[..., :corner, :corner] = 0
    return float(spectrum.sum())


def colourfulness(picture: np.ndarray) -> float:
    """Colourfulness by Hasler and Süsstrunk (2003)."""
    r, g, b = picture.astype(float).reshape(-1, 3).T
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def ciede2000(a: np.ndarray, b: np.ndarray) -> float:
    """Mean CIEDE2000 colour difference of two RGB pictures."""
    difference: np.ndarray = deltaE_ciede2000(rgb2lab(a), rgb2lab(b))
    return float(difference.mean())


def true_pictures(data: Path, num: int) -> Pictures:
    """Decode the first validation pictures of a data set."""
    store = TripleStore.open(data, "validation")
    size = store.info.side
    codec = Codec(store.info.quality)
    triples = [store.triples(i) for i in range(min(num, len(store)))]
    return list(codec.decode(codec.from_triples(triples, size, size)).numpy())


def mean_chroma(data: Path) -> np.ndarray:
    """Mean Cb and Cr of about 1,000 training pictures, 0 to 255."""
    store = TripleStore.open(data, "train")
    size = store.info.side
    codec = Codec(store.info.quality)
    triples = [store.triples(i) for i in range(0, len(store), max(1, len(store) // 1000))]
    pictures = codec.decode(codec.from_triples(triples, size, size)).numpy().astype(float)
    r, g, b = pictures.mean((0, 1, 2))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.array([128 + (b - y) / 1.772, 128 + (r - y) / 1.402])


def with_chroma(picture: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Replace the chroma of a picture by a constant."""
    y, (cb, cr) = luma(picture), chroma - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.round().clip(0, 255).astype(np.uint8)


def resized(picture: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    """Resize a picture to a square of side ``size`` with a filter of Pillow."""
    return np.asarray(Image.fromarray(picture).resize((size, size), how))


def shrunk(pictures: Pictures, factor: int, how: str) -> Pictures:
    """Shrink pictures by a factor, as the input of upscaling."""
    if how == "dct":
        return list(shrink(torch.from_numpy(np.stack(pictures)), factor).numpy())
    filters = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
    return [resized(p, p.shape[0] // factor, filters[how]) for p in pictures]


def table(title: str, columns: list[str], rows: dict[str, list[float]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |")


def mean(metric: Callable[..., float], *pictures: Pictures) -> float:
    """Mean of a metric over one or more aligned lists of pictures."""
    return float(np.mean([metric(*group) for group in zip(*pictures, strict=True)]))


def main(args: Args) -> None:
    """Run all tasks and print the result."""
    truth = true_pictures(args.data, args.num)
    side = truth[0].shape[0]
    sampling = SampleConfig(seed=args.seed, top_p=args.top_p, min_p=args.min_p)
    checks: dict[str, dict[str, float | bool]] = {}
    shown: list[list[np.ndarray]] = [[] for _ in truth[:6]]
    started = time.perf_counter()

    def check(name: str, value: float, low: float, high: float) -> None:
        checks[name] = {"value": round(value, 4), "low": low, "high": high, "met": low <= value <= high}

    def run(task: str, work: Callable[[Options], list[Edited]], num: int = 1) -> list[Pictures]:
        with tqdm(total=1.0, desc=task, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}") as bar:

            def show(done: float) -> None:
                bar.n = done
                bar.refresh()

            return [edit.pixels() for edit in work(Options(num, None, sampling, progress=show))]

    for factor in (2, 4):
        small = shrunk(truth, factor, args.shrink)
        upscaled = [
            p[0]
            for p in run(f"upscale ×{factor}", lambda o, f=factor, s=small: upscale(args.model, s, f, o, args.shrink))
        ]
        rivals = {
            "bicubic": [resized(s, side, Image.Resampling.BICUBIC) for s in small],
            "Lanczos": [resized(s, side, Image.Resampling.LANCZOS) for s in small],
            "DCTransformer": upscaled,
        }
        energy = sum(high_energy(t, 8 // factor) for t in truth)
        rows = {
            name: [mean(psnr, results, truth), mean(ssim, results, truth),
                   sum(high_energy(p, 8 // factor) for p in results) / energy]
            for name, results in rivals.items()
        }  # fmt: skip
        table(f"upscale ×{factor}", ["PSNR", "SSIM", "high-frequency energy / true"], rows)
        check(f"upscale_x{factor}_energy", rows["DCTransformer"][2], 0.85, 1.15)
        for row, s, u, t in zip(shown, small, upscaled, truth, strict=False):
            row += [resized(s, side, Image.Resampling.NEAREST), u, *([t] if factor == 4 else [])]

    if not args.upscale_only:
        grey = [np.repeat(luma(t).round().astype(np.uint8)[..., None], 3, 2) for t in truth]
        coloured = run("colorize", lambda o: colorize(args.model, grey, o), 8)
        flat = [with_chroma(t, mean_chroma(args.data)) for t in truth]
        colour = mean(colourfulness, truth)
        best = float(
            np.mean([min(ciede2000(s, t) for s in samples) for samples, t in zip(coloured, truth, strict=True)])
        )
        first = [samples[0] for samples in coloured]
        rows = {
            name: [mean(ciede2000, results, truth), mean(colourfulness, results) / colour]
            for name, results in {"grey": grey, "mean colour": flat, "DCTransformer": first}.items()
        }
        every = float(np.mean([colourfulness(s) for samples in coloured for s in samples])) / colour
        rows["DCTransformer, best of 8"] = [best, every]
        table("colorize", ["CIEDE2000", "colourfulness / true"], rows)
        check("colorize_colourfulness", every, 0.85, 1.15)
        check("colorize_best_of_8_below_mean_colour", best / rows["mean colour"][0], 0.0, 1.0)
        for row, g, samples in zip(shown, grey, coloured, strict=False):
            row += [g, samples[0], samples[1]]

        grid = Grid.of_size(side, side)
        start, length = grid.rows // 4 * 16, max(1, grid.rows // 2) * 16
        hole = np.zeros((side, side), dtype=np.uint8)
        hole[start : start + length, start : start + length] = 255
        inside = (slice(start, start + length),) * 2
        box = (start, start, length, length)
        filled = [p[0] for p in run("inpaint", lambda o: inpaint(args.model, truth, box=box, options=o))]
        telea = [cv2.inpaint(np.ascontiguousarray(t), hole, 3, cv2.INPAINT_TELEA) for t in truth]
        cut = [t[inside] for t in truth]
        energy = sum(high_energy(t, 1) for t in cut)
        rows = {
            name: [mean(psnr, [p[inside] for p in results], cut), mean(ssim, [p[inside] for p in results], cut),
                   sum(high_energy(p[inside], 1) for p in results) / energy,
                   mean(colourfulness, [p[inside] for p in results]) / mean(colourfulness, cut)]
            for name, results in {"OpenCV Telea": telea, "DCTransformer": filled}.items()
        }  # fmt: skip
        table("inpaint, in the hole", ["PSNR", "SSIM", "AC energy / true", "colourfulness / true"], rows)
        for row, classical, generated in zip(shown, telea, filled, strict=False):
            row += [classical, generated]

    if args.sheet is not None:
        from dctransformer.sheets import captioned_rows

        captions = ["x2 from", "x2", "x4 from", "x4", "true", "grey", "colour 0", "colour 1", "Telea", "inpaint"]
        captioned_rows(shown, captions, side=128).save(args.sheet)
    met = [bool(c["met"]) for c in checks.values()]
    print(json.dumps({
        "benchmark": "tasks", "ratio": sum(met) / len(met), "goal": 1.0, "checks": checks, "images": len(truth),
        "shrink": args.shrink, "seed": args.seed, "top_p": args.top_p,
        "min_p": args.min_p, "model": args.model,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except ValueError as problem:
        print(f"tasks: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
