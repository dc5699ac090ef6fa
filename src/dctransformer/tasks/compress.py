"""`compress` and `decompress`: pictures as files of as many bits as `likelihood` counts, and back, bit for bit."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dctransformer.codec import Codec, DCTImage, order, read_jpeg, write_jpeg
from dctransformer.codec.adapt import mcu_grid
from dctransformer.codec.grid import Grid
from dctransformer.data.coefficients import Coefficients, PictureSource
from dctransformer.files import atomic_write, check_place, make_folder
from dctransformer.hub.pretrained import HUB, SHIPPED, load_model, model_folder, shipped_names
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import resolve_device
from dctransformer.sampling.bits import require_constriction
from dctransformer.sampling.coding import MAX_BATCH, CodingTask, PictureCoder
from dctransformer.sequence.labels import model_labels
from dctransformer.settings import check_positive
from dctransformer.tasks.dct_file import (
    DAMAGED,
    ID,
    MAX_SIDE,
    SUFFIX,
    Header,
    can_be_named,
    checksum,
    fingerprint,
    read_file,
)  # fmt: skip
from dctransformer.tasks.models import Model, resolve_model

Progress = Callable[[int, int], None]
"""Called with the number of pictures done, and their total."""


@dataclasses.dataclass
class Compressed:
    """The result of `compress`.

    Attributes:
        files: one per picture, those of an earlier run included.
        skipped: (picture, reason) of those that could not be taken.
    """

    files: list[Path]
    skipped: list[tuple[str, str]]

    @property
    def bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(path.stat().st_size for path in self.files)


@dataclasses.dataclass
class _Waiting:
    """A picture to be compressed: its name, its file, its class and its coefficients."""

    name: str
    path: Path
    label: int
    picture: Coefficients


def compress(
    model: Model,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "validation",
    num: int | None = None,
    use_labels: bool = True,
    batch: int = MAX_BATCH,
    verify: bool = True,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Compressed:
    """Write each picture as a file from which `decompress` gets the same coefficients.

    Files are written as they are finished. Those that are there already, of the same picture and model, stay.

    Args:
        model: a run folder, a saved model's folder, ``hf:owner/name``, shipped weights, or a loaded model.
        data: a prepared data set, a folder of pictures, or a picture. JPEG files that have the model's tables and
            consist of whole MCUs are taken by their coefficients; others are first cropped, resized and encoded as the
            training pictures were, and of those that are then larger than the model knows the centre is taken.
        out: folder for the files, ``NAME.dct``; made if needed.
        split: which part of a prepared data set.
        num: compress the first so many pictures only.
        use_labels: condition on the pictures' labels where the model has a class of the same name; a file holds its
            label.
        batch: pictures that are coded together, at most `MAX_BATCH`.
        verify: decode each file before it is written.
        device: cpu, cuda, …: files are decoded on the same kind of device.
        progress: called after each batch.

    Returns:
        The files. Pictures that can't be read, or are larger than the model handles, are left out with a warning.

    Raises:
        ValueError: constriction is not installed, the model or the data is missing or doesn't fit, no picture can be
            read, the folder can't be written, or a file does not decode to its picture on this machine.
    """
    check_positive(num=num, batch=batch)
    require_constriction()
    network = resolve_model(model, device)
    config, name = network.config, _stored_name(model)
    pictures = PictureSource(data, split, config, exclude=Path(out))
    count = len(pictures) if num is None else min(num, len(pictures))
    labels = [config.null_label] * count
    if use_labels:
        labels = model_labels(config, pictures.label_names, pictures.labels[:count])
    folder = Path(out)
    check_place(folder / f"{max(pictures.names[:count], key=len)}{SUFFIX}")
    work = _Compression(network, name, folder, batch, verify)
    result = Compressed([], [])
    for i in range(count):
        try:
            picture = pictures.read(i)
            _check_grid(network, picture.grid)
        except ValueError as error:
            result.skipped.append((pictures.names[i], str(error)))
            warnings.warn(f"{pictures.names[i]} is left out: {error}", stacklevel=2)
            continue
        path = folder / f"{pictures.names[i]}{SUFFIX}"
        result.files.append(path)
        work.add(_Waiting(pictures.names[i], path, labels[i], picture))
        if progress is not None:
            progress(len(result.files) - work.waiting, count)
    work.finish()
    if not result.files:
        why = f"; the first: {result.skipped[0][1]}" if result.skipped else ""
        raise ValueError(f"there are no pictures that can be compressed{why}")
    if progress is not None:
        progress(count, count)
    return result


def _largest(network: DCTransformer) -> int:
    """Return the largest number of MCUs along a side that a model and the file format allow."""
    return min(network.config.max_grid // 2, MAX_SIDE)


def _check_grid(network: DCTransformer, grid: Grid) -> None:
    largest = _largest(network)
    if max(grid.rows, grid.cols) > largest:
        raise ValueError(
            f"it is {grid.size}, and this model handles pictures of up to {largest * order.MCU} pixels per side; "
            "shrink or crop it"
        )


def _stored_name(model: Model) -> str:
    """Return the name of a model as a file holds it: empty if it comes with the package, or is known in memory only."""
    if isinstance(model, DCTransformer):
        return ""
    if str(model) in shipped_names() and model_folder(model).parent == SHIPPED:
        return ""
    return str(model) if can_be_named(str(model)) else ""


_MOST_WAITING = 16 * MAX_BATCH
"""Pictures that wait for others of their grid before the largest group is coded as it is."""


class _Compression:
    """Pictures that are being compressed: those of one grid are coded together as soon as they fill a batch."""

    def __init__(self, network: DCTransformer, name: str, folder: Path, batch: int, verify: bool):
        self.network, self.name, self.folder, self.batch, self.verify = network, name, folder, batch, verify
        self.model = fingerprint(network)
        self.coder = PictureCoder(network)
        self.groups: dict[Grid, list[_Waiting]] = {}

    @property
    def waiting(self) -> int:
        """Number of pictures that are not yet written."""
        return sum(map(len, self.groups.values()))

    def add(self, item: _Waiting) -> None:
        """Add a picture, unless its file is written already."""
        if self._is_written(item):
            return
        grid = item.picture.grid
        self.groups.setdefault(grid, []).append(item)
        if self.waiting == _MOST_WAITING:
            grid = max(self.groups, key=lambda key: len(self.groups[key]))
        if len(self.groups[grid]) == self.coder.batch(self.batch, grid) or self.waiting == _MOST_WAITING:
            self._write(self.groups.pop(grid))

    def finish(self) -> None:
        """Write the pictures that are waiting."""
        while self.groups:
            self._write(self.groups.popitem()[1])

    def _header(self, item: _Waiting, place: tuple[int, int]) -> Header:
        mcus, grid = item.picture.mcus, item.picture.grid
        return Header.of(mcus, grid, item.label, place, self.network.config, self.model, self.name)

    def _is_written(self, item: _Waiting) -> bool:
        if not item.path.is_file():
            return False
        try:
            return read_file(item.path)[0].same_picture(self._header(item, (1, 0)))
        except ValueError:
            return False

    def _write(self, group: list[_Waiting]) -> None:
        grid = group[0].picture.grid
        encoded = self.coder.run([CodingTask(item.label, item.picture.mcus) for item in group], grid)
        decoded = encoded
        if self.verify:
            bits = [b"" if coded is None else coded.data for coded in encoded]
            decoded = self.coder.run(
                [CodingTask(i.label, data=data) for i, data in zip(group, bits, strict=True)], grid
            )
        make_folder(self.folder)
        for row, (item, coded, again) in enumerate(zip(group, encoded, decoded, strict=True)):
            if coded is None or again is None or not torch.equal(again.coefficients, item.picture.mcus):
                raise ValueError(
                    f"{item.name} can't be compressed: what was coded does not decode to the same picture, so this "
                    "machine does not compute the same twice; try --batch 1, or another machine"
                )
            with atomic_write(item.path) as temporary:
                temporary.write_bytes(self._header(item, (len(group), row)).pack() + coded.data)


# Decompression --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _File:
    """A compressed picture: its file, header and bits, and the path of the JPEG file to write."""

    path: Path
    header: Header
    data: bytes
    target: Path


def decompress(
    source: str | Path,
    out: str | Path,
    *,
    model: Model | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Path]:
    """Write the pictures of compressed files as JPEG files with exactly their coefficients.

    Files are written as they are finished; those that are there already, with the same coefficients, stay.

    Args:
        source: a folder that `compress` wrote, or one of its files.
        out: folder for the pictures, ``NAME.jpg``; made if needed.
        model: where the weights are; None for the models that the files name.
        device: cpu, cuda, …, as when they were compressed.
        progress: called after each batch.

    Returns:
        The JPEG files.

    Raises:
        ValueError: constriction is not installed, there are no such files, their model is not here, the folder can't be
            written; or a file is damaged, of another model, or decodes to something else on this machine. All others
            are written then.
    """
    require_constriction()
    resolve_device(device)
    network = None if model is None else resolve_model(model, device)
    work = _Decompression(source, out, device, progress)
    for key, files in work.by_model(network, str(model)).items():
        work.decode(key, files)
    if work.problems:
        path, problem = work.problems[0]
        more = len(work.problems) - 1
        raise ValueError(f"{path} {problem}" + (f" ({more} other file{'s' * (more > 1)} failed, too)" if more else ""))
    return work.targets


class _Decompression:
    """Files that are being decompressed."""

    def __init__(self, source: str | Path, out: str | Path, device: str, progress: Progress | None):
        if not str(source).strip():
            raise ValueError("nothing is named as the source; give a folder that compress wrote")
        source = Path(source)
        paths = [source] if source.is_file() else sorted(source.rglob(f"*{SUFFIX}"))
        if not paths:
            raise ValueError(f"{source} holds no compressed pictures (*{SUFFIX}); give a folder that compress wrote")
        root = source.parent if source.is_file() else source
        names = [str(path.relative_to(root).with_suffix(".jpg")) for path in paths]
        self.folder = Path(out)
        self.device, self.progress, self.done = device, progress, 0
        self.problems: list[tuple[Path, str]] = []
        self.targets = [self.folder / name for name in names]
        check_place(max(self.targets, key=lambda path: len(str(path))))
        self.files: list[_File] = []
        for path, target in zip(paths, self.targets, strict=True):
            try:
                self.files.append(_File(path, *read_file(path), target))
            except ValueError as error:
                self.problems.append((path, str(error)))
        self.networks: dict[tuple[bytes, str], tuple[DCTransformer, bytes]] = {}

    def by_model(self, network: DCTransformer | None, place: str) -> dict[tuple[bytes, str], list[_File]]:
        """Return the files by their model, which is loaded."""
        groups: dict[tuple[bytes, str], list[_File]] = {}
        given = None if network is None else (network, fingerprint(network))
        for file in self.files:
            key = (file.header.model, "" if given else file.header.name)
            if given and given[1][:ID] != key[0]:
                self.problems.append((file.path, f"was compressed with other weights than those of {place}; give them"))
                continue
            groups.setdefault(key, []).append(file)
        for key in list(groups):
            try:
                self.networks[key] = given or _find(*key, self.device)
            except ValueError as error:
                self.problems += [(file.path, str(error)) for file in groups.pop(key)]
        return groups

    def decode(self, key: tuple[bytes, str], files: list[_File]) -> None:
        """Decode the files of a model: those of one grid and one size of batch together."""
        network, model = self.networks[key]
        coder, trained = PictureCoder(network), Grid.of_size(*network.config.trained_shape)
        groups: dict[tuple[Grid, int], list[_File]] = {}
        for file in files:
            grid, batch = file.header.grid or trained, file.header.batch
            if self._is_written(file, grid, network, model):
                self._advance(1)
            elif max(grid.rows, grid.cols) > _largest(network) or coder.batch(batch, grid) != batch:
                self.problems.append((file.path, DAMAGED))
            else:
                groups.setdefault((grid, batch), []).append(file)
        for (grid, batch), members in groups.items():
            for together in _in_rows(members):
                try:
                    self._decode_batch(coder, grid, together, batch, model)
                except ValueError as error:
                    self.problems += [(file.path, f"can't be restored: {error}") for file in together.values()]
                self._advance(len(together))

    def _advance(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, len(self.targets))

    def _decode_batch(
        self, coder: PictureCoder, grid: Grid, together: dict[int, _File], batch: int, model: bytes
    ) -> None:
        labels = {row: _label(file, coder.model) for row, file in together.items()}
        tasks = [
            CodingTask(labels[row], data=together[row].data) if row in together and labels[row] >= 0 else None
            for row in range(batch)
        ]
        codec = Codec(coder.model.config.quality)
        for row, coded in enumerate(coder.run(tasks, grid)):
            file = together.get(row)
            if file is None:
                continue
            if coded is None or checksum(coded.coefficients, grid, labels[row], model) != file.header.checksum:
                self.problems.append((file.path, _DIVERGED))
                continue
            make_folder(self.folder)
            tables = codec.luma_table, codec.chroma_table
            write_jpeg(DCTImage.from_mcus(coded.coefficients[None], grid.rows, grid.cols, *tables), file.target)

    @staticmethod
    def _is_written(file: _File, grid: Grid, network: DCTransformer, model: bytes) -> bool:
        if not file.target.is_file():
            return False
        try:
            dct = read_jpeg(file.target)
            if mcu_grid(dct) != grid or not torch.equal(dct.luma_table, Codec(network.config.quality).luma_table):
                return False
            return checksum(dct.to_mcus()[0], grid, _label(file, network), model) == file.header.checksum
        except ValueError:
            return False


_DIVERGED = (
    "can't be restored: it is damaged, was compressed with other weights, or this machine computes otherwise than the "
    "one that compressed it; nothing was written for it"
)


def _label(file: _File, network: DCTransformer) -> int:
    """Return the class of a file's picture; −1 if the model has none of this number."""
    label = file.header.label
    if label is None:
        return network.config.null_label
    return label if label < network.config.num_labels else -1


def _in_rows(files: list[_File]) -> Iterator[dict[int, _File]]:
    """Yield batches in which each file has its own row."""
    batches: list[dict[int, _File]] = []
    used = [0] * MAX_BATCH  # batches in which a row is taken already
    for file in files:
        row = file.header.row
        if used[row] == len(batches):
            batches.append({})
        batches[used[row]][row] = file
        used[row] += 1
    yield from batches


def _find(number: bytes, name: str, device: str) -> tuple[DCTransformer, bytes]:
    """Load the model that a file names; returns it with its fingerprint.

    Nothing is downloaded because a file names it: models of the hub are looked for in the local cache.

    Raises:
        ValueError: it is not here; the sentence goes on after the file's name.
    """
    where = resolve_device(device)
    for candidate in [name] if name else shipped_names():
        try:
            options: dict[str, Any] = {"local_files_only": True} if candidate.startswith(HUB) else {}
            network = load_model(candidate, where, **options)
        except ValueError:
            continue
        full = fingerprint(network)
        if full[:ID] == number:
            return network, full
    called = f"the model {name}" if name else "a model of which it holds no name"
    raise ValueError(f"was compressed with {called}, whose weights are not here; name them with --model")
