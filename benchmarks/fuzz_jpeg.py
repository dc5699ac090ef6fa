"""Fuzz the JPEG reader with damaged and malicious files, with guard pages around libjpeg's buffers.

    python benchmarks/fuzz_jpeg.py [--count 50000] [--seed 0]

Small files of every supported kind are cut, spliced and patched: markers, lengths, headers inside other segments,
sampling factors, sizes, scans. Each must give a DCT image or a `ValueError` of one sentence. A write beyond a buffer,
even by one byte, ends the process with a signal. The last line is JSON. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import itertools
import json
import mmap
import random
import struct
import tempfile
import time
from pathlib import Path

import jpeglib
import numpy as np
from PIL import Image

from dctransformer.codec import DCTImage, check_scans, libjpeg, read_jpeg_bytes
from dctransformer.codec.segments import segments

MAX_PIXELS = 300_000
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(*shape: int, dtype: type[np.generic]) -> np.ndarray:
    """Allocate zeros between two guard pages; the last byte of the array is the last one before the second page."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if _libc.mprotect(ctypes.c_void_p(start + page * mmap.PAGESIZE), mmap.PAGESIZE, 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect failed")
    end = (pages + 1) * mmap.PAGESIZE
    return np.frombuffer(memory, dtype, int(np.prod(shape)), end - size).reshape(shape)


def originals() -> list[bytes]:
    """Intact files of every supported kind, and of some that are refused."""
    y, x = np.mgrid[:41, :59]
    pixels = np.stack([128 + 80 * np.sin(x / 3), 128 + 80 * np.cos(y / 5), (x * 9 + y * 7) % 256], -1).astype(np.uint8)
    files = []
    for mode, options in [
        ("RGB", {}), ("L", {}), ("RGB", {"subsampling": 0}), ("RGB", {"subsampling": 1}),
        ("RGB", {"progressive": True}), ("L", {"progressive": True}),
        ("RGB", {"restart_marker_blocks": 2}), ("RGB", {"optimize": True, "quality": 98}),
        ("RGB", {"comment": b"c" * 90, "icc_profile": bytes(300)}), ("CMYK", {}), ("RGB", {"keep_rgb": True}),
    ]:  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
        files.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jpg")
        for sampling, flags in [
            ("4:2:0", ["+ARITH_CODE"]), ("4:2:0", ["+ARITH_CODE", "+PROGRESSIVE_MODE"]), ("4:1:0", []), ("4:1:1", []),
        ]:  # fmt: skip
            picture = jpeglib.from_spatial(pixels)
            picture.samp_factor = sampling
            picture.write_spatial(str(path), qt=75, flags=flags)
            files.append(path.read_bytes())
    return files


def parts(data: bytes) -> list[bytes]:
    """Split a file before each of its segments; the parts joined are the file."""
    cuts = [0, *(segment.start - 4 for segment in segments(data)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


def mutated(rng: random.Random, files: list[bytes]) -> bytes:
    """Damage a file in one to four ways."""
    pieces = parts(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        k = rng.randrange(1, len(pieces)) if len(pieces) > 1 else 0
        piece = bytearray(pieces[k])
        kind = rng.randrange(13)
        if kind == 0 and len(piece) > 1:  # another marker
            piece[1] = rng.choice((rng.randrange(256), 0, 1, 2, 0xC0, 0xC2, 0xC4, 0xC9, 0xD8, 0xD9, 0xDA, 0xDC, 0xFF))
        elif kind == 1 and len(piece) > 4:  # another length
            length = struct.unpack_from(">H", piece, 2)[0] + rng.choice((-20, -3, -2, -1, 1, 2, 3, 8, 300, 9999))
            struct.pack_into(">H", piece, 2, rng.choice((length % 65536, 0, 1, 2, 65535)))
        elif kind == 2:  # a whole other file in a segment that some parsers skip and others enter
            inner = rng.choice(files)
            if len(inner) < 65_000:
                marker = rng.choice(
                    (0x00, 0x01, 0x02, 0xBF, 0xD0, 0xE1, 0xEE, 0xF0, 0xFE, 0xC8, 0xDC, rng.randrange(256))
                )
                piece = bytearray(struct.pack(">BBH", 0xFF, marker, len(inner) + 2) + inner) + piece
        elif kind == 3:  # other sampling factors, identifiers or tables in a frame
            for other, text in enumerate(pieces):
                if text[1:2] in (b"\xc0", b"\xc1", b"\xc2", b"\xc9", b"\xca") and len(text) > 12:
                    k, piece = other, bytearray(text)
                    at = rng.randrange(9, len(piece))
                    piece[at] = rng.choice(
                        (0x11, 0x12, 0x21, 0x22, 0x14, 0x41, 0x44, 0x42, 0x31, 0x00, 0xFF, 0, 1, 2, 3)
                    )
        elif kind == 4:  # another size in a frame
            for other, text in enumerate(pieces):
                if text[1:2] in (b"\xc0", b"\xc1", b"\xc2", b"\xc9", b"\xca") and len(text) > 12:
                    k, piece = other, bytearray(text)
                    sides = (0, 1, 8, 16, 32, 41, 59, 64, 256, 500, 65_535)
                    struct.pack_into(">HH", piece, 5, rng.choice(sides), rng.choice(sides))
        elif kind == 5:  # a segment twice
            piece += pieces[k]
        elif kind == 6:  # a segment of another file
            piece = bytearray(rng.choice(parts(rng.choice(files))))
        elif kind == 7:  # a segment missing
            piece = bytearray()
        elif kind == 8:  # segments in another order
            other = rng.randrange(len(pieces))
            pieces[k], pieces[other] = pieces[other], pieces[k]
            continue
        elif kind == 9 and piece:  # bytes
            for _ in range(rng.randrange(1, 6)):
                piece[rng.randrange(len(piece))] = rng.choice((0, 0xFF, 0xDA, 0xD9, 0xC0, rng.randrange(256)))
        elif kind == 10:  # stray bytes
            at = rng.randrange(len(piece) + 1)
            piece[at:at] = rng.choice(
                (bytes(rng.randrange(1, 40)), b"\xff" * rng.randrange(1, 9), b"\xff\x00", b"\xff\xd0")
            )
        elif kind == 11:  # cut off
            del piece[rng.randrange(len(piece) + 1) :]
        elif kind == 12:  # many scans
            piece = piece * rng.choice((2, 3, 50, 200))
        pieces[k] = bytes(piece)
    return b"".join(pieces)


def main() -> None:
    """Read all files and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    libjpeg._buffer = guarded
    rng = random.Random(arguments.seed)
    files = originals()
    read, slowest, start = 0, 0.0, time.perf_counter()
    for number in range(arguments.count):
        data = mutated(rng, files)
        began = time.perf_counter()
        try:
            check_scans(data, "the file")
            dct = read_jpeg_bytes(data, MAX_PIXELS, name="the file")
        except ValueError as error:
            if not str(error).startswith("the file ") or "\n" in str(error):
                raise RuntimeError(f"file {number} of seed {arguments.seed}: not a sentence: {error}") from error
        else:
            assert isinstance(dct, DCTImage) and dct.height * dct.width <= MAX_PIXELS
            read += 1
        slowest = max(slowest, time.perf_counter() - began)
    print(
        json.dumps({
            "benchmark": "fuzz_jpeg", "seed": arguments.seed, "files": arguments.count, "read": read,
            "refused": arguments.count - read, "slowest_s": round(slowest, 3),
            "seconds": round(time.perf_counter() - start, 1),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
