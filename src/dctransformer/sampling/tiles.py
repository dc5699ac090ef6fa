"""Pictures larger than the model's own size: tile after tile, each next to its finished neighbours.

The model knows the rows and columns of the pictures on which it was trained. A larger picture is covered by tiles of
that size, half overlapping, in raster order. In each, the MCUs that earlier tiles have finished are given, exactly as
outside the hole of an inpainting, so that content and colour go on across the borders; only the rest is generated.
Tiles that don't touch are generated in one batch, a diagonal front that moves over the picture.

Where all structure is given and only texture is open (upscaling), a model with texture needs no tiles.

Shapes: N MCUs; masks and coefficients are ``[N, 6, 64]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dctransformer.codec import Codec, DCTImage, order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import fill
from dctransformer.sampling.pool import Pool
from dctransformer.sampling.rows import Request


@dataclasses.dataclass
class CompletionJob:
    """A picture to complete.

    Attributes:
        index: which with the seed decides its noise.
        label: class number.
        known: int16, all coefficients that are known, 0 elsewhere.
        given: bool, those of them that are settled from the start.
        kept: bool, those of them that the sequence begins with (everything up to some triple), or None.
    """

    index: int
    label: int
    known: Tensor
    given: Tensor
    kept: Tensor | None = None


def tile_of(config: ModelConfig, grid: Grid) -> Grid:
    """Return the grid of a model's tiles for a picture: the picture's own if the model knows its rows and columns."""
    known = Grid.of_size(*config.trained_extent)
    return grid if grid.within(known) == grid else Grid.of_size(*config.trained_shape)


def tiles(grid: Grid, tile: Grid) -> Iterator[tuple[Grid, Tensor]]:
    """Cover a grid with tiles in raster order, half overlapping, the last ones at the edges.

    Args:
        grid: to cover.
        tile: the tiles' grid; where the picture is smaller than that, they are as small.

    Yields:
        The tile's grid, and the MCUs of the picture that it holds: int64 ``[n]``.
    """
    part = grid.within(tile)
    down, across = max(1, tile.rows // 2), max(1, tile.cols // 2)
    for top in [*range(0, grid.rows - part.rows, down), grid.rows - part.rows]:
        for left in [*range(0, grid.cols - part.cols, across), grid.cols - part.cols]:
            rows, cols = torch.arange(top, top + part.rows), torch.arange(left, left + part.cols)
            yield part, (rows[:, None] * grid.cols + cols).flatten()


def complete(
    model: DCTransformer,
    jobs: list[CompletionJob],
    grid: Grid,
    config: SampleConfig,
    *,
    progress: Callable[[float], None] | None = None,
    pool: Pool | None = None,
) -> Tensor:
    """Generate what is not known of some pictures of one size, whatever that size.

    Args:
        model: in eval mode.
        jobs: the pictures.
        grid: their MCU grid.
        config: seed, temperature and so on.
        progress: called with the part of the work that is done, 0 to 1.
        pool: the model's pool, shared with other callers; None for a new one.

    Returns:
        int16 ``[len(jobs), N, 6, 64]``; what was known is as it was.
    """
    known = torch.stack([job.known for job in jobs])
    given = torch.stack([job.given for job in jobs])
    structure = model.config.texture_rank > RANK_OF_SLOT
    if model.config.texture_rank < order.NUM_CHANNELS and bool(given[:, :, structure].all()):
        # Only texture is open, whose network runs on a picture of any size: no tiles, no seams.
        requests = [Request(job.index, job.label, torch.where(job.given, job.known, 0), job.given) for job in jobs]
        part = None if progress is None else lambda _, finished: progress(finished / len(jobs))
        return fill(model, requests, grid, config, progress=part, pool=pool).mcus
    tile_grid = tile_of(model.config, grid)
    done, total = 0, sum(1 for _ in tiles(grid, tile_grid))
    for wave in waves(grid, tile_grid):
        requests, places = [], []
        for number, tile, mcus in wave:
            for i, job in enumerate(jobs):
                closed = given[i, mcus]
                if not bool(closed.all()):
                    places.append((i, mcus))
                    requests.append(_request(job, number, tile, mcus, known[i, mcus], closed, model.config.quality))
        if requests:

            def share(
                _: int, finished: int, done: int = done, size: int = len(wave), count: int = len(requests)
            ) -> None:
                if progress is not None:
                    progress((done + size * finished / count) / total)

            samples = fill(model, requests, wave[0][1], config, progress=share, pool=pool)
            for (i, mcus), coefficients in zip(places, samples.mcus, strict=True):
                known[i, mcus] = coefficients
                given[i, mcus] = True
        done += len(wave)
    return known


def waves(grid: Grid, tile_grid: Grid) -> list[list[tuple[int, Grid, Tensor]]]:
    """Group the numbered tiles of `tiles` so that the members of a group don't touch and can be generated together.

    Every tile comes after all earlier ones that it overlaps: the picture is the same as tile after tile.
    """
    level = torch.zeros(grid.mcus, dtype=torch.int64)
    groups: dict[int, list[tuple[int, Grid, Tensor]]] = {}
    for number, (tile, mcus) in enumerate(tiles(grid, tile_grid)):
        wave = int(level[mcus].max()) + 1
        level[mcus] = wave
        groups.setdefault(wave, []).append((number, tile, mcus))
    return [groups[wave] for wave in sorted(groups)]


def _request(
    job: CompletionJob, number: int, tile: Grid, mcus: Tensor, known: Tensor, given: Tensor, quality: int
) -> Request:  # fmt: skip
    """Build the request for one tile.

    Kept coefficients are listed, not given, since the model was trained on beginnings in this form; zeros among them
    after the last one listed are given, so that nothing is added there.
    """
    kept = None
    given = given.clone()
    if job.kept is not None:
        prefix = job.kept[mcus] & ~given
        codec = Codec(quality)
        listed = torch.where(prefix, known, 0)[None]
        kept = DCTImage.from_mcus(listed, tile.rows, tile.cols, codec.luma_table, codec.chroma_table).to_triples()[0]
        key = RANK_OF_SLOT * tile.positions + tile.block_position[:, :, None]
        last = int(key[listed[0] != 0].max()) if len(kept) else -1
        given |= prefix & (key > last)
    settled = torch.where(given, known, 0)
    return Request(job.index, job.label, settled, given, kept, number)
