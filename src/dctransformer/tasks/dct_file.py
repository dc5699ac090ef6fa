"""The file of a compressed picture: a header of seven bytes or more, then the bits of `dctransformer.sampling.coding`.

| bytes | what |
|---|---|
| 1 | format and version (the upper five bits) and which of the optional fields follow (the lower three) |
| 2 | the model: the first bytes of `fingerprint` |
| 4 | checksum of the coefficients, keyed with the whole fingerprint |
| 1 | rows of the batch less one, and the picture's row, four bits each |
| 1 + n | name of the model, if it is none of those that come with the package |
| 2 | MCU rows and columns less one, if they are not those that the model was trained on |
| 1 or 5 | class number, if there is one: a byte, or 255 and four |

The fingerprint covers the quality, so that it needs no field of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path

from torch import Tensor

from dctransformer.codec.grid import Grid
from dctransformer.files import check_regular
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer

SUFFIX = ".dct"

MAX_BYTES = 1 << 26
"""Largest file that is read."""

_MAGIC = 0xD8
"""Format and version: the upper five bits of the first byte."""
_NAMED, _SIZED, _LABELLED = 1, 2, 4

MAX_SIDE = 256
"""Most MCUs along a side."""

ID, CHECKSUM = 2, 4
"""Bytes of the model's number and of the checksum."""


def fingerprint(model: DCTransformer) -> bytes:
    """Return a SHA-256 of a model's weights and its quality."""
    digest = hashlib.sha256(f"quality {model.config.quality}".encode())
    for name, weights in sorted(model.state_dict().items()):
        data = weights.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {data.dtype.str} {list(data.shape)}".encode() + data.tobytes())
    return digest.digest()


def checksum(mcus: Tensor, grid: Grid, label: int, model: bytes) -> bytes:
    """Return the checksum of a picture (int16 ``[N, 6, 64]``) under a model's `fingerprint`."""
    digest = hashlib.blake2b(struct.pack("<3q", grid.rows, grid.cols, label), digest_size=CHECKSUM, key=model)
    digest.update(mcus.numpy().astype("<i2").tobytes())
    return digest.digest()


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a compressed picture.

    Attributes:
        model: the first bytes of the model's fingerprint.
        checksum: from `checksum`.
        batch: rows of the batch.
        row: of the picture in it.
        name: of the model; empty for one that comes with the package, which its fingerprint finds.
        grid: the MCU grid; None for the one that the model was trained on.
        label: class number; None for none.
    """

    model: bytes
    checksum: bytes
    batch: int
    row: int
    name: str = ""
    grid: Grid | None = None
    label: int | None = None

    @classmethod
    def of(
        cls, mcus: Tensor, grid: Grid, label: int, place: tuple[int, int], config: ModelConfig, model: bytes, name: str
    ) -> Header:
        """Return the header of a picture: its coefficients, grid and class, its (batch, row), and its model."""
        return cls(
            model[:ID],
            checksum(mcus, grid, label, model),
            *place,
            name,
            None if grid == Grid.of_size(*config.trained_shape) else grid,
            None if label == config.null_label else label,
        )

    def same_picture(self, other: Header) -> bool:
        """Return whether another header is of the same picture and model, whatever its place in a batch."""
        return dataclasses.replace(self, batch=other.batch, row=other.row) == other

    def pack(self) -> bytes:
        """Return the header as bytes."""
        name = self.name.encode()
        sized, labelled = self.grid is not None, self.label is not None
        flags = bool(name) * _NAMED + sized * _SIZED + labelled * _LABELLED
        data = bytes([_MAGIC | flags]) + self.model + self.checksum + bytes([(self.batch - 1) << 4 | self.row])
        if name:
            data += bytes([len(name)]) + name
        if self.grid is not None:
            data += bytes([self.grid.rows - 1, self.grid.cols - 1])
        if self.label is not None:
            data += bytes([self.label]) if self.label < 255 else b"\xff" + struct.pack("<I", self.label)
        return data

    @classmethod
    def parse(cls, data: bytes) -> tuple[Header, bytes]:
        """Split a file into its header and its bits.

        Raises:
            ValueError: it is no such file; the sentence goes on after the file's name.
        """
        if not data or data[0] & 0xF8 != _MAGIC:
            raise ValueError("is not a picture that this version of `dctransformer compress` wrote; give other files")
        fields, data = data[0] & 7, data[1:]
        try:
            model, check, place, data = data[:ID], data[ID : ID + CHECKSUM], data[ID + CHECKSUM], data[7:]
            name, grid, label = "", None, None
            if fields & _NAMED:
                name, data = data[1 : 1 + data[0]].decode(), data[1 + data[0] :]
            if fields & _SIZED:
                grid, data = Grid.shared(data[0] + 1, data[1] + 1), data[2:]
            if fields & _LABELLED:
                label, data = data[0], data[1:]
                if label == 255:
                    (label,), data = struct.unpack("<I", data[:4]), data[4:]
        except (IndexError, struct.error, UnicodeDecodeError):
            raise ValueError(DAMAGED) from None
        header = cls(model, check, (place >> 4) + 1, place & 15, name, grid, label)
        if header.row >= header.batch or not (name or not fields & _NAMED):
            raise ValueError(DAMAGED)
        return header, data


DAMAGED = "is damaged; copy it again or compress the picture again"


def read_file(path: Path) -> tuple[Header, bytes]:
    """Read a file.

    Raises:
        ValueError: it can't be read, or is no such file; the sentence goes on after the file's name.
    """
    try:
        check_regular(path)
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("is too large to be a compressed picture; give other files")
        return Header.parse(path.read_bytes())
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror}); check its permissions") from error


def can_be_named(name: str) -> bool:
    """Return whether a file can hold a model's name: it is Unicode of at most 255 bytes."""
    try:
        return len(name.encode()) < 256
    except UnicodeEncodeError:
        return False
