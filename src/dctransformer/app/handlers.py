"""The actions behind the page's buttons: plain functions from form values to HTML, without Gradio.

The slow ones are generators: they yield the page's part for results as it stands, then as it is in the end. Closing
one stops the work at the next chunk.

Shapes: H × W pixels, N MCUs.
"""

from __future__ import annotations

import functools
import queue
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from dctransformer.app import inspection
from dctransformer.app.inspection import BAND_TITLES
from dctransformer.app.limits import Limits
from dctransformer.app.memory import give_back
from dctransformer.app.render import jpeg_uri, parts, png_uri
from dctransformer.app.settings import ANY, Settings
from dctransformer.app.shelf import Picture
from dctransformer.app.uploads import Inspected, Upload
from dctransformer.codec import Codec, DCTImage, order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.codec.resize import check_factor
from dctransformer.data.shapes import parse_size
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import Engine
from dctransformer.sampling.pool import Pool
from dctransformer.sampling.rows import Samples, Snapshot
from dctransformer.sequence import conditions
from dctransformer.sequence.labels import label_number
from dctransformer.sheets import heat_map
from dctransformer.tasks.edit import Edited, Options, colorize, continue_, inpaint, upscale
from dctransformer.tasks.generate import generate

NO_PICTURE = "choose a picture first, or click on one of the examples"


class Studio:
    """A model and what can be done with it. Pictures of all users are generated together."""

    def __init__(self, model: DCTransformer, name: str, limits: Limits | None = None):
        """Set up the tasks of a model.

        Args:
            model: in eval mode, on its device.
            name: the name or path by which it was loaded.
            limits: on requests and results; None for the defaults.
        """
        self.model, self.name, self.config = model, name, model.config
        self.limits = limits or Limits()
        self.codec = Codec(model.config.quality)
        self.side = max(self.limits.max_side, *model.config.trained_shape)
        self._inspecting = threading.Lock()

    @functools.cached_property
    def pool(self) -> Pool:
        """The pool in which the pictures of all users are generated."""
        return Pool(Engine(self.model, SampleConfig(batch=self.limits.batch)))

    def missing(self, condition: str) -> str | None:
        """Return the reason why this model can't do a task; None if it can."""
        try:
            conditions.check_trained(self.config.conditions, condition, self.name)
        except ValueError as error:
            return str(error)
        return None

    def factors(self) -> list[int]:
        """Return the factors by which the model enlarges."""
        return [f for f, c in conditions.BY_FACTOR.items() if c.name in self.config.conditions]

    def labels(self) -> list[str]:
        """Return the names of the classes, sorted; none for a model without classes."""
        if self.config.label_names:
            return sorted(self.config.label_names)
        return [str(i) for i in range(self.config.num_labels)]

    def _in_thread(self, work: Callable[[Callable[[str], None]], str]) -> Iterator[str]:
        """Run slow work in a thread of its own; yields its reports on the way, then its result."""
        messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        left = threading.Event()

        def report(html: str) -> None:
            if left.is_set():
                raise _Left
            messages.put(("report", html))

        def run() -> None:
            try:
                report(parts.progress(0, "starting"))
                messages.put(("result", work(report)))
            except _Left:
                pass
            except BaseException as error:  # whatever it is, the waiting side must get it
                messages.put(("error", error))
            finally:
                give_back()

        threading.Thread(target=run, daemon=True).start()
        try:
            while True:
                kind, value = messages.get()
                if kind == "error":
                    raise value
                yield str(value)
                if kind == "result":
                    return
        finally:
            left.set()

    def _size(self, text: str | None) -> tuple[int, int]:
        """Return the height and width of a size entered as WIDTHxHEIGHT; the model's size for None."""
        if not text:
            return self.config.trained_shape
        width, height = parse_size(str(text)[:40])
        if max(width, height) > self.side:
            raise ValueError(f"size {width}x{height} is too large here; choose at most {self.side} pixels per side")
        return height, width

    def _checked(self, settings: Settings) -> SampleConfig:
        num = settings.whole("number of pictures", settings.num)
        if not 1 <= num <= self.limits.max_num:
            raise ValueError(f"{num} pictures at a time are not made here; choose from 1 to {self.limits.max_num}")
        if settings.label != ANY:
            label_number(self.config, settings.label)
        return settings.sampling()

    # Generate ---------------------------------------------------------------------------------------------------------

    def generate(self, settings: Settings, size: str | None = None) -> Iterator[str]:
        """Generate pictures from nothing; each is shown on its way, next to the heat-map of the places chosen so far.

        Args:
            settings: of the form.
            size: WIDTHxHEIGHT in pixels; the model's own if not given. One that needs tiles is not shown on its way.

        Raises:
            ValueError: a setting is impossible.
        """
        sampling = self._checked(settings)
        num = int(settings.num or 1)
        shape = self._size(size)
        conditions.check_trained(self.config.conditions, "none", self.name)
        latest: dict[int, Snapshot] = {}

        def work(report: Callable[[str], None]) -> str:
            samples, names = generate(
                self.model, num, label=settings.label or None, size=shape, sampling=sampling, pool=self.pool,
                watch=lambda s: latest.__setitem__(s.index, s),
                progress=lambda _, finished: report(self._under_way(latest, Grid.of_size(*shape), finished, num)),
            )  # fmt: skip
            return self._results(samples, names, settings)

        yield from self._in_thread(work)

    def _under_way(self, latest: dict[int, Snapshot], grid: Grid, finished: int, num: int) -> str:
        figures = []
        for index in sorted(latest):
            mcus = latest[index].mcus
            figures.append(parts.figure(
                jpeg_uri(self._dct(mcus, grid)), f"{int(mcus.count_nonzero())} triples",
                alt=f"picture {index + 1} on its way", note=band_words(mcus),
            ))  # fmt: skip
            figures.append(parts.figure(
                png_uri(heat_map(places(mcus, grid)[None])[0]), "chosen places", alt="heat-map of chosen places",
            ))  # fmt: skip
        triples = sum(int(s.mcus.count_nonzero()) for s in latest.values())
        text = f"{triples:,} triples decided, {finished} of {num} finished"
        done = sum(1.0 if s.finished else part_done(s.mcus) for s in latest.values()) / num
        return parts.progress(done, text) + parts.row(figures)

    def _dct(self, mcus: Tensor, grid: Grid) -> DCTImage:
        return DCTImage.from_mcus(mcus[None], grid.rows, grid.cols, self.codec.luma_table, self.codec.chroma_table)

    def _results(self, samples: Samples, names: list[str], settings: Settings) -> str:
        dct, heats, bands = samples.dct(), heat_map(samples.places()), samples.by_band()
        seed = int(settings.seed or 0)
        rows = []
        for i, name in enumerate(names):
            caption = f"seed {seed}" + (f" · picture {i}" if len(names) > 1 else "") + (f" · {name}" if name else "")
            rows.append(parts.row([
                parts.figure(
                    jpeg_uri(dct[i]), caption, alt=f"generated picture {i + 1}",
                    download=f"dctransformer-seed{seed}-{i}.jpg", note=f"{len(samples.triples[i])} triples",
                ),
                parts.figure(
                    png_uri(heats[i]), "chosen places", alt="heat-map of chosen places",
                    note="the brighter, the more coefficients",
                ),
            ]))  # fmt: skip
            rows.append(parts.row(
                [
                    parts.figure(
                        jpeg_uri(self._dct(stage[i], samples.grid)), "+ " * (k > 0) + BAND_TITLES[k],
                        alt=f"the picture after band {BAND_TITLES[k]}",
                    )
                    for k, stage in enumerate(bands)
                ],
                "small",
            ))  # fmt: skip
        size = "" if samples.grid == Grid.of_size(*self.config.trained_shape) else f" --size {samples.grid.size}"
        same = parts.command(f"dctransformer sample {self.name} --out samples {settings.words()}{size}")
        return Markup("").join([*rows, same])

    # Tasks that start from a picture ----------------------------------------------------------------------------------

    def upscale(self, upload: Picture | None, factor: float, settings: Settings) -> Iterator[str]:
        """Enlarge a picture, which is shrunk first where the result would be too large.

        Raises:
            ValueError: there is no picture, or a setting is impossible.
        """
        picture = self._present(upload)
        factor = settings.whole("factor", factor)
        check_factor(factor)
        most = self.side // factor
        pixels = picture.pixels
        note = ""
        if max(pixels.shape[:2]) > most:
            small = Image.fromarray(pixels)
            small.thumbnail((most, most), Image.Resampling.LANCZOS)
            pixels = np.asarray(small)
            note = parts.message(
                f"Results have up to {self.side} pixels per side here: the picture was shrunk to "
                f"{small.width} × {small.height} before it was enlarged.", "note",
            )  # fmt: skip

        words = f"upscale {self.name} small.png --factor {factor}"
        task = functools.partial(upscale, self.model, [pixels], factor)
        yield from self._edit(task, settings, words, "given", note)

    def colorize(self, upload: Picture | None, settings: Settings) -> Iterator[str]:
        """Give a picture new colours.

        Raises:
            ValueError: there is no picture, or a setting is impossible.
        """
        task = functools.partial(colorize, self.model, [self._present(upload).source])
        yield from self._edit(task, settings, f"colorize {self.name} grey.jpg", "given: brightness")

    def inpaint(self, upload: Picture | None, squares: str | None, settings: Settings) -> Iterator[str]:
        """Replace what was brushed over; ``squares`` are those that the brush touched (see `read_squares`).

        Raises:
            ValueError: there is no picture, nothing was brushed over, or a setting is impossible.
        """
        picture = self._present(upload)
        painted = read_squares(squares, (picture.pixels.shape[0], picture.pixels.shape[1]))

        task = functools.partial(inpaint, self.model, [picture.source], mask=painted)
        words = f"inpaint {self.name} photo.jpg --mask mask.png"
        yield from self._edit(task, settings, words, "given: all but the grey")

    def continue_(self, upload: Picture | None, bands: float, settings: Settings) -> Iterator[str]:
        """Keep the first bands of a picture and generate the rest.

        Raises:
            ValueError: there is no picture, or a setting is impossible.
        """
        source = self._present(upload).source
        bands = settings.whole("number of bands", bands)

        task = functools.partial(continue_, self.model, [source], bands=bands)
        caption = f"given: {bands} of {len(order.BANDS)} bands"
        yield from self._edit(task, settings, f"continue {self.name} photo.jpg --bands {bands}", caption)

    def _present(self, upload: Picture | None) -> Upload:
        if not isinstance(upload, Upload):
            raise ValueError(NO_PICTURE)
        return upload

    def _edit(
        self, task: Callable[..., list[Edited]], settings: Settings, words: str, before: str, note: str = ""
    ) -> Iterator[str]:
        """Run an editing task; ``words`` is the same command, ``before`` captions the given part of the picture."""
        sampling = self._checked(settings)
        num, seed = int(settings.num or 1), int(settings.seed or 0)

        def work(report: Callable[[str], None]) -> str:
            options = Options(num, settings.label or None, sampling, pool=self.pool)
            options.progress = lambda done: report(note + parts.progress(done, f"{done:.0%}"))
            edited = task(options=options)[0]
            figures = [parts.figure(png_uri(edited.before), before, alt="what was known")]
            for k, dct in enumerate(edited.results):
                caption = f"seed {seed}" + (f" · alternative {k}" if num > 1 else "")
                figures.append(parts.figure(
                    jpeg_uri(dct), caption, alt=f"result {k + 1}",
                    download=f"dctransformer-seed{seed}-{k}.jpg", note=f"{dct.width} × {dct.height} pixels",
                ))  # fmt: skip
            same = parts.command(f"dctransformer {words} --out results {settings.words()}")
            return note + parts.row(figures) + same

        yield from self._in_thread(work)

    # Inspect ----------------------------------------------------------------------------------------------------------

    def inspect(self, picture: Picture | None, label: str = ANY) -> Iterator[str]:
        """Show what a file holds, and the bits that the model needs for it.

        Raises:
            ValueError: there is no picture, or no such class.
        """
        if not isinstance(picture, Inspected):
            raise ValueError(NO_PICTURE)
        number = self.config.null_label if label == ANY else label_number(self.config, label)

        def work(report: Callable[[str], None]) -> str:
            with self._inspecting:
                found = inspection.needed_bits(self.model, self.codec, self.name, picture, number)
            return inspection.file_facts(picture) + found

        yield from self._in_thread(work)


class _Left(Exception):
    """Raised in work whose result nobody waits for any more."""


def places(mcus: Tensor, grid: Grid) -> Tensor:
    """Count how often each luma block was chosen in a picture that is not finished: int64 ``[2·rows, 2·cols]``.

    Args:
        mcus: int16 ``[N, 6, 64]``; every coefficient that is not zero was chosen.
        grid: of the picture.
    """
    counts = torch.zeros(grid.positions, dtype=torch.int64)
    counts.index_add_(0, grid.block_position.flatten(), (mcus != 0).sum(-1).flatten())
    return counts.view(2 * grid.rows, grid.width)


def part_done(mcus: Tensor) -> float:
    """Return how far down the list of channels a picture is, 0 to 1: a lower bound, as the last ones are rare."""
    used = RANK_OF_SLOT[(mcus != 0).any(0)]
    return 0.0 if not len(used) else int(used.max()) / order.NUM_CHANNELS


def band_words(mcus: Tensor) -> str:
    """Describe the band of the last chosen coefficient."""
    used = (mcus != 0).flatten(0, 1).any(0).nonzero()
    if not len(used):
        return "nothing yet"
    band = int(order.BAND_OF_CHANNEL[int(used.max())])
    return f"band {BAND_TITLES[band]} of zigzag frequencies"


def read_squares(squares: str | None, size: tuple[int, int]) -> np.ndarray:
    """Turn what was brushed over into a mask: uint8 ``[H, W, 3]``, white where it is to be replaced.

    Args:
        squares: numbers of the 16 × 16 squares that the brush touched, row by row from 0, with commas between them.
        size: height and width of the picture under the brush.

    Raises:
        ValueError: there are none, or there are no such squares.
    """
    if not squares or not isinstance(squares, str):
        raise ValueError("brush over what is to be replaced first: nothing is painted yet")
    side = order.MCU
    rows, columns = -(-size[0] // side), -(-size[1] // side)
    words = squares[: 8 * rows * columns + 8].split(",")
    if not all(re.fullmatch(r"\d{1,6}", word, re.ASCII) and int(word) < rows * columns for word in words):
        raise ValueError("what is painted does not fit the picture; paint it again")
    mask = np.zeros((rows * columns, 1), np.uint8)
    mask[[int(word) for word in words]] = 255
    mask = mask.reshape(rows, columns).repeat(side, 0).repeat(side, 1)
    return mask[: size[0], : size[1], None].repeat(3, axis=2)
