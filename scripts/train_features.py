"""Train ``small64``, the feature extractor that ships with the package, and check its distances on distorted pictures.

    python scripts/train_features.py flowers102 imagenette --minutes 12 --out small64
    python scripts/train_features.py imagenette cats --minutes 10 --out features --torchscript

Each folder contains pictures in class folders (optionally below ``train`` and ``val``), or pictures of a single class.
A convolutional network is trained to classify them at 64 × 64 pixels, with random flips, shifts, brightness and
contrast. Pictures whose hash is in the lowest twentieth (as in `dctransformer prepare`) are held out for validation.
The last layer is dropped, batch normalisation is folded into the convolutions, and the weights are written in fp16. The
last line is JSON.

With ``--torchscript`` the extractor is also written as a file for ``--features OUT/features.pt``, with a model card, so
that pictures can be scored by an extractor that was trained on other pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dctransformer.codec import Codec
from dctransformer.data.images import crop_resize, load_image
from dctransformer.data.sources import open_source
from dctransformer.evaluate.metrics import Moments, frechet_distance
from dctransformer.evaluate.small64 import SIDE, WIDTH, Small64, load_small64
from dctransformer.files import write_tensors, write_text

HELD_OUT = 0.05
"""Fraction of the pictures, chosen by hash, that is held out."""


def load(folders: list[Path]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Load all pictures.

    Returns:
        Pictures uint8 ``[n, 64, 64, 3]``, classes int64 ``[n]``, held out bool ``[n]``, and the number of classes.
    """
    pictures, classes, held_out, first = [], [], [], 0
    for folder in folders:
        source = open_source(folder)
        for i, item in enumerate(source.items):
            if item.label is None and source.labels:
                raise SystemExit(f"{item.key} in {folder} lies in no class folder")
            pictures.append(np.asarray(crop_resize(load_image(source.read(i), enough=SIDE), SIDE)))
            classes.append(first + (item.label or 0))
            held_out.append(item.split == "validation" or item.rank < HELD_OUT * 2**64)
        first += max(1, len(source.labels))
    return torch.from_numpy(np.stack(pictures)), torch.tensor(classes), torch.tensor(held_out), first


def augmented(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Augment pictures by random flips, shifts of up to 6 pixels, brightness and contrast: fp32 ``[B, 64, 64, 3]``."""
    count = len(pictures)
    x = pictures.float().permute(0, 3, 1, 2)
    x = F.pad(x, (6, 6, 6, 6), mode="reflect")
    dy, dx = torch.randint(0, 13, (2, count), generator=rng).tolist()
    x = torch.stack([p[:, a : a + SIDE, b : b + SIDE] for p, a, b in zip(x, dy, dx, strict=True)])
    mirrored = torch.rand(count, generator=rng) < 0.5
    x[mirrored] = x[mirrored].flip(-1)
    gain, offset = 0.75 + 0.5 * torch.rand(count, 1, 1, 1, generator=rng), torch.rand(count, 1, 1, 1, generator=rng)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * gain + mean + 60 * (offset - 0.5)).permute(0, 2, 3, 1)


def train(pictures: Tensor, classes: Tensor, number: int, minutes: float, batch: int, seed: int) -> nn.Sequential:
    """Train with a cosine schedule, and return the network and its last layer with EMA weights."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    body, head = Small64(normalised=True), nn.Linear(WIDTH, number)
    model = nn.Sequential(body, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.05)
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    start, step, seen, mean_loss = time.perf_counter(), 0, 0, 0.0
    order = torch.randperm(len(pictures), generator=rng)
    while (done := (time.perf_counter() - start) / (60 * minutes)) < 1:
        if len(order) < batch:
            order = torch.randperm(len(pictures), generator=rng)
        chosen, order = order[:batch], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = 2.5e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        logits = head(F.dropout(body(augmented(pictures[chosen], rng))[0], 0.1))
        loss = F.cross_entropy(logits, classes[chosen], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        step, seen = step + 1, seen + batch
        mean_loss = 0.98 * mean_loss + 0.02 * loss.item()
        if step % 200 == 0:
            print(f"{done:4.0%} step {step}, {seen / len(pictures):.1f} epochs, loss {mean_loss:.3f}", flush=True)
    print(f"{step} steps of {batch}, {seen / len(pictures):.1f} epochs")
    ema_model = ema.module.eval()
    assert isinstance(ema_model, nn.Sequential)
    return ema_model


def fused(body: Small64) -> Small64:
    """Fold batch normalisation into the convolutions, and return the network without it."""
    plain = Small64().eval()
    layers: list[Any] = [body.stem, *body.down, *body.stay]
    targets: list[Any] = [plain.stem, *plain.down, *plain.stay]
    for (conv, norm), (target,) in zip(layers, targets, strict=True):
        target.load_state_dict(fuse_conv_bn_eval(conv, norm).state_dict())
    return plain


@torch.inference_mode()
def features(network: nn.Module, pictures: Tensor, kind: int = 0) -> Tensor:
    """Mean (kind 0) or spatial (kind 1) features of pictures: fp32 ``[n, D]``."""
    return torch.cat([network(part)[kind] for part in pictures.split(256)])


def calibrate(network: Small64, pictures: Tensor) -> None:
    """Scale both kinds of features to a total variance of 100 on the given pictures."""
    network.gain = torch.stack([10 / features(network, pictures, kind).var(0).sum().sqrt() for kind in (0, 1)])


def distortions(pictures: Tensor) -> dict[str, Tensor]:
    """Distort pictures by JPEG, blur and noise of increasing strength."""

    def each(change) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(change(Image.fromarray(p.numpy()))) for p in pictures]))

    rng = np.random.default_rng(0)
    changed = {f"JPEG {q}": Codec(q).decode(Codec(q).encode(pictures)) for q in (80, 50, 20, 10, 5)}
    for radius in (0.5, 1, 2):
        changed[f"blur {radius}"] = each(lambda p, r=radius: p.filter(ImageFilter.GaussianBlur(r)))
    for sigma in (5, 15, 40):
        noisy = pictures.numpy() + rng.normal(0, sigma, pictures.shape)
        changed[f"noise {sigma}"] = torch.from_numpy(noisy.clip(0, 255).round().astype(np.uint8))
    return changed


class AnySize(nn.Module):
    """Resizes pictures uint8 ``[B, 3, H, W]`` to 64 × 64 pixels and returns features and spatial features."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = pictures.float()
        if x.shape[2] != 64 or x.shape[3] != 64:
            x = F.interpolate(x, [64, 64], mode="bilinear", antialias=True, align_corners=False)
        return self.network(x.permute(0, 2, 3, 1))


def write_torchscript(network: Small64, folder: Path, folders: list[Path], result: dict[str, Any]) -> None:
    """Write ``features.pt`` and a model card that lists the training data."""
    traced = torch.jit.trace(network, torch.zeros(1, SIDE, SIDE, 3))
    torch.jit.script(AnySize(traced)).save(folder / "features.pt")
    names = ", ".join(path.name for path in folders)
    write_text(
        folder / "README.md",
        f"""# Features trained on {names}

A feature extractor with the architecture of `small64` (a TorchScript file, {WIDTH} features), for
`dctransformer evaluate MODEL --data DATA --features features.pt`. Compare its distances only with each other.

- Data: {names}, {result["trained_on"]:,} pictures at {SIDE}×{SIDE} pixels; {result["held_out"]:,} more were held out.
  Score other pictures than these with it.
- Recipe: `{result["command"]}`; classification of {result["classes"]} classes with random flips, shifts,
  brightness and contrast; EMA weights.
- {100 * result["accuracy"]:.1f} % of the held-out pictures were classified correctly. The Fréchet distance between
  two halves of them is {result["frechet_two_halves"]}.
""",
    )


def main() -> None:
    """Train, write and check the extractor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for features.safetensors")
    parser.add_argument("--torchscript", action="store_true", help="write OUT/features.pt and a model card, too")
    arguments = parser.parse_args()
    pictures, classes, held_out, number = load(arguments.folders)
    print(f"{len(pictures)} pictures, {int(held_out.sum())} of them held out, {number} classes", flush=True)
    model = train(pictures[~held_out], classes[~held_out], number, arguments.minutes, arguments.batch, arguments.seed)
    body, head = model
    assert isinstance(body, Small64)
    plain = fused(body)
    calibrate(plain, pictures[~held_out][::4])
    tensors = {name: t.half().contiguous() for name, t in plain.state_dict().items()}
    path = arguments.out / "features.safetensors"
    write_tensors(path, tensors, {"format": "pt"})
    network = load_small64(path)
    of_held_out = features(network, pictures[held_out])
    with torch.inference_mode():
        right = float((head(of_held_out / network.gain[0]).argmax(1) == classes[held_out]).float().mean())
    test = pictures[held_out][torch.randperm(int(held_out.sum()), generator=torch.Generator().manual_seed(0))[:1000]]
    real = Moments.of(features(network, test))
    table = {n: frechet_distance(real, Moments.of(features(network, p))) for n, p in distortions(test).items()}
    half = torch.cat([of_held_out[::2], of_held_out[1::2]]).tensor_split(2)
    result = {
        "accuracy": round(right, 4),
        "trained_on": int((~held_out).sum()),
        "held_out": int(held_out.sum()),
        "classes": number,
        "command": " ".join(["python scripts/train_features.py", *sys.argv[1:]]),
        "bytes": path.stat().st_size,
        "variance_held_out": round(float(of_held_out.var(0).sum()), 2),
        "frechet_two_halves": round(frechet_distance(*map(Moments.of, half)), 4),
        "frechet_by_distortion": {name: round(value, 4) for name, value in table.items()},
    }
    if arguments.torchscript:
        write_torchscript(network, arguments.out, arguments.folders, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
