"""Count the coefficients in which the codec differs from libjpeg's accurate integer DCT. The goal is none.

    python benchmarks/codec_parity.py FOLDER [--limit 200]

Each photograph, whole and cropped to an odd size, in colour and in greyscale, is encoded by Pillow at each quality. The
codec's coefficients must equal those that jpeglib reads from the file, and its decoded pixels those of Pillow. The last
line is JSON.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import jpeglib
import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from dctransformer import Codec, DCTImage
from dctransformer.codec import order, write_jpeg_bytes

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


@dataclasses.dataclass
class Tally:
    """Numbers of compared and differing coefficients, pixels and files."""

    pictures: int = 0
    coefficients: int = 0
    differing_coefficients: int = 0
    pixels: int = 0
    differing_pixels: int = 0
    differing_files: int = 0

    def compare(self, image: Image.Image, quality: int, scratch: Path) -> None:
        """Compare one picture at one quality and add to the counts."""
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        scratch.write_bytes(file.getvalue())
        codec = Codec(quality)
        dct = codec.encode(np.asarray(image))
        self.pictures += 1
        for plane, reference in zip(dct.components, jpeglib_components(scratch), strict=True):
            self.coefficients += reference.size
            same_shape = plane[0].shape == reference.shape
            self.differing_coefficients += int((plane[0].numpy() != reference).sum()) if same_shape else reference.size
        pixels = np.asarray(Image.open(scratch).convert("RGB"))
        self.pixels += pixels.size
        self.differing_pixels += int((codec.decode(dct)[0].numpy() != pixels).sum())
        self.differing_files += write_jpeg_bytes(dct) != file.getvalue()


def jpeglib_components(path: Path) -> list[np.ndarray]:
    """Read coefficients with jpeglib instead of this package: ``[h, w, 64]`` per component, in zigzag order."""
    picture = jpeglib.read_dct(str(path))
    parts = [part for part in (picture.Y, picture.Cb, picture.Cr) if part is not None]
    return [part.reshape(*part.shape[:2], 64)[..., order.ZIGZAG] for part in parts]


def versions(image: Image.Image, rng: random.Random) -> list[Image.Image]:
    """The photograph whole and cropped to an odd size, each in colour and in greyscale."""
    width, height = (max(1, side - rng.randrange(1, 16)) | 1 for side in image.size)
    crops = [image, image.crop((0, 0, width, height))]
    return [crop.convert(mode) for crop in crops for mode in ("RGB", "L")]


def speed(image: Image.Image) -> tuple[float, float]:
    """Encoding and decoding speed in pictures of 256 pixels per second, in batches of 8 at quality 75."""
    codec = Codec(75)
    batch = torch.from_numpy(np.stack([np.asarray(image.convert("RGB").resize((256, 256)))] * 8))

    def rate(work, argument: torch.Tensor | DCTImage) -> float:
        work(argument)
        start = time.perf_counter()
        for _ in range(5):
            work(argument)
        return round(5 * 8 / (time.perf_counter() - start), 1)

    return rate(codec.encode, batch), rate(codec.decode, codec.encode(batch))


def main(
    folder: tyro.conf.Positional[Path],
    limit: int = 200,
    qualities: tuple[int, ...] = (10, 25, 50, 75, 90, 100),
    seed: int = 0,
) -> None:
    """Compare the codec with libjpeg on photographs.

    Args:
        folder: folder of photographs, searched recursively.
        limit: number of photographs, chosen at random.
        qualities: JPEG qualities.
        seed: random seed of the choice and of the crops.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(f"{folder} holds no pictures; name a folder of photographs")
    rng = random.Random(seed)
    paths = rng.sample(paths, min(limit, len(paths)))
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        for path in tqdm(paths, unit="photo"):
            image = Image.open(path).convert("RGB")
            for version in versions(image, rng):
                for quality in qualities:
                    tally.compare(version, quality, Path(scratch) / "picture.jpg")
        encoded, decoded = speed(image)
    result = {
        "benchmark": "codec_parity",
        "ratio": tally.differing_coefficients / tally.coefficients,
        "goal": 0,
        "met": tally.differing_coefficients == 0,
        "photographs": len(paths),
        "qualities": list(qualities),
        **dataclasses.asdict(tally),
        "encode_256px_per_s": encoded,
        "decode_256px_per_s": decoded,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))
    if not result["met"]:
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(main)
