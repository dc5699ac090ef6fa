"""The commands `compress` and `decompress`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from dctransformer.commands.common import listed, print_facts, with_revision
from dctransformer.files import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm


@dataclasses.dataclass
class Compress:
    """Write pictures as files of about as many bits as `likelihood` counts; `decompress` restores each coefficient.

    JPEG files that have the model's quantisation tables and consist of whole MCUs (16 x 16 pixels) are taken by their
    coefficients. Other pictures are first cropped, resized and encoded as the training pictures were, as `likelihood`
    does it, and that is what comes back. It needs pip install 'dctransformer[compress]'.

    Example: dctransformer compress flowers64 ~/photos --out compressed
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    data: tyro.conf.Positional[Path]
    """Prepared data set, folder of pictures, or a picture."""
    out: Path
    """Folder for the files: NAME.dct, in sub-folders like the pictures. Files that exist already are kept."""
    split: str = "validation"
    """Which part of a prepared data set: train or validation."""
    num: int | None = None
    """Compress the first so many pictures only."""
    labels: bool = True
    """Condition on the pictures' labels where their names fit the model's; files hold their labels."""
    batch: int = 16
    """Pictures that are coded together, 16 at most. A single file of a batch takes as long to decode as all of it."""
    verify: bool = True
    """Decode each file before it is written, which doubles the time."""
    device: str = "cpu"
    """cpu, cuda, …: files are decoded on the same kind of device."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    json: bool = False
    """Print a JSON object instead of text."""

    def run(self) -> None:
        """Compress the pictures and print what was written."""
        from tqdm import tqdm

        from dctransformer.tasks.compress import compress

        with tqdm(desc="compressing", unit="picture", disable=self.json, delay=0.01) as bar:
            result = compress(
                with_revision(self.model, self.revision), self.data, self.out,
                split=self.split, num=self.num, use_labels=self.labels, batch=self.batch, verify=self.verify,
                device=self.device, progress=_show(bar),
            )  # fmt: skip
        files, size = [str(path) for path in result.files], result.bytes
        facts = {"files": files, "bytes": size, "skipped": len(result.skipped)}
        text = f"{len(files):,} files of {size:,} bytes ({size / len(files):.1f} each): {printable(files[0])} …"
        print_facts(self.json, facts, lambda: print(text))


@dataclasses.dataclass
class Decompress:
    """Restore the pictures that `compress` wrote: JPEG files with exactly the same coefficients.

    A file decodes with the weights and on the kind of machine that it was made with, or not at all: a checksum decides.
    It needs pip install 'dctransformer[compress]'.

    Example: dctransformer decompress compressed --out pictures
    """

    source: tyro.conf.Positional[str]
    """Folder of compressed pictures, or one of them."""
    out: Path
    """Folder for the pictures: NAME.jpg. Files that exist already are kept."""
    model: str | None = None
    """Where the weights are: run folder, saved model's folder or hf:owner/name (hf:owner/name@revision); the model
    that the files name if not given."""
    device: str = "cpu"
    """cpu, cuda, …, as when they were compressed."""
    json: bool = False
    """Print a JSON object instead of text."""

    def run(self) -> None:
        """Decompress the files and print what was written."""
        from tqdm import tqdm

        from dctransformer.tasks.compress import decompress

        with tqdm(desc="decompressing", unit="picture", disable=self.json, delay=0.01) as bar:
            files = decompress(self.source, self.out, model=self.model, device=self.device, progress=_show(bar))
        paths = [str(path) for path in files]
        print_facts(self.json, {"files": paths}, lambda: print(listed(paths)))


def _show(bar: tqdm) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update
