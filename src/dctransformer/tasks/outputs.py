"""A folder of results: pictures are written as they are finished, and the same command makes only what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dctransformer.codec import Codec, DCTImage, read_jpeg, write_jpeg
from dctransformer.codec.metadata import Metadata
from dctransformer.files import atomic_write, make_folder, write_text
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.config import SampleConfig

INDEX = "pictures.json"
"""File that maps each picture of a folder to the digest of everything that decides on it."""

_SPEED = ("batch", "workers", "compile", "graphs")
"""Settings that decide how fast pictures are made, not which."""


def identity(*parts: Any) -> str:
    """Return a digest of what decides on a picture: numbers, texts, settings, tensors or a model's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, DCTransformer):
            if part.guide is not None:
                digest.update(identity(part.guide).encode())
            part = {**part.config.to_dict(), **{name: identity(x) for name, x in part.state_dict().items()}}
        elif isinstance(part, SampleConfig):
            part = {k: v for k, v in dataclasses.asdict(part).items() if k not in _SPEED}
        if isinstance(part, Tensor):
            data = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(f"{part.dtype}{list(part.shape)}".encode() + data.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


class Outputs:
    """Pictures in a folder, each as a JPEG and a PNG file.

    Attributes:
        folder: where they are.
        names: of the pictures of this command, without the ending.
    """

    def __init__(self, folder: str | Path, identities: dict[str, str]):
        """Prepare the folder; pictures under this command's names that another command made are removed.

        Args:
            folder: made if needed.
            identities: the name of each picture and its `identity`.

        Raises:
            ValueError: the folder can't be written, or a name is too long.
        """
        longest = max(identities, key=len, default="")
        self.folder = make_folder(folder, [f"{longest}.jpg", f"{longest}.png"])
        self.names = list(identities)
        index = self._index()
        for name, wanted in identities.items():
            if index.get(name) != wanted:
                for path in self.files(name):
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        path.unlink()
        write_text(self.folder / INDEX, json.dumps({**index, **identities}, indent=0, ensure_ascii=False) + "\n")

    def _index(self) -> dict[str, Any]:
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return index if isinstance(index, dict) else {}

    def files(self, name: str) -> tuple[Path, Path]:
        """Return the JPEG and the PNG file of a picture."""
        return self.folder / f"{name}.jpg", self.folder / f"{name}.png"

    def load(self, name: str) -> DCTImage | None:
        """Return a picture that an earlier run of the same command finished; None if there is none."""
        jpeg, png = self.files(name)
        try:
            return read_jpeg(jpeg) if png.is_file() and jpeg.is_file() else None
        except ValueError:
            return None

    def save(self, name: str, dct: DCTImage, metadata: Metadata | None = None) -> None:
        """Write a picture (batch 1), the JPEG file last, because it marks the picture as finished.

        Args:
            name: of the picture.
            dct: the picture.
            metadata: of the source file, for the JPEG file; the PNG file gets the profile only.

        Raises:
            ValueError: the file can't be written.
        """
        jpeg, png = self.files(name)
        with atomic_write(png) as temporary:
            profile = metadata.profile if metadata is not None else b""
            Image.fromarray(Codec().decode(dct)[0].numpy()).save(temporary, format="PNG", icc_profile=profile or None)
        write_jpeg(dct, jpeg, metadata)


def list_paths(folder: str | Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths of pictures as strings: ``files`` (JPEG) and ``pngs``."""
    names = list(names)
    return {
        ending: [str(Path(folder) / f"{name}.{kind}") for name in names]
        for ending, kind in (("files", "jpg"), ("pngs", "png"))
    }
