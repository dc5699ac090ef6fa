"""Pictures that are being generated: the request, the state, and the result.

Shapes: L triples, N MCUs, n pictures.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from dctransformer.codec import Codec, DCTImage, order
from dctransformer.codec.grid import BAND_OF_RANK, RANK_OF_SLOT, Grid
from dctransformer.codec.triples import public, ranked, scatter
from dctransformer.sampling.config import SampleConfig
from dctransformer.sequence.chunks import Sequence, partial_image, settled_before


@dataclasses.dataclass
class Request:
    """One picture to generate.

    Attributes:
        index: its number, which with the seed decides its noise.
        label: class number, `ModelConfig.null_label` for none.
        known: int16 ``[N, 6, 64]``, settled coefficients, 0 elsewhere; None for none.
        given: bool ``[N, 6, 64]``, which are settled; None for none.
        kept: triples that the picture begins with (channel, position, value), int ``[L, 3]`` in generation order.
        tile: which part of a large picture it is; decides its noise, too.
    """

    index: int
    label: int
    known: Tensor | None = None
    given: Tensor | None = None
    kept: Tensor | None = None
    tile: int = 0


@dataclasses.dataclass
class Snapshot:
    """A picture as far as it is generated.

    Attributes:
        index: of its request.
        triples: listed so far.
        mcus: int16 ``[N, 6, 64]``, the coefficients so far.
        finished: whether it has stopped.
    """

    index: int
    triples: int
    mcus: Tensor
    finished: bool


@dataclasses.dataclass
class Samples:
    """Generated pictures.

    Attributes:
        mcus: int16 ``[n, N, 6, 64]``, the DCT images.
        triples: listed triples of each (channel, position, value), int32 ``[L, 3]`` in the order of generation.
        labels: int64 ``[n]``.
        grid: the MCU grid.
        quality: of the codec.
        texture: rank of the first channel that the model decides as a whole.
    """

    mcus: Tensor
    triples: list[Tensor]
    labels: Tensor
    grid: Grid
    quality: int
    texture: int = order.NUM_CHANNELS

    def dct(self) -> DCTImage:
        """Return the pictures as a DCT image of batch n."""
        codec = Codec(quality=self.quality)
        return DCTImage.from_mcus(self.mcus, self.grid.rows, self.grid.cols, codec.luma_table, codec.chroma_table)

    def pixels(self) -> Tensor:
        """Decode the pictures: uint8 ``[n, H, W, 3]``."""
        return Codec(quality=self.quality).decode(self.dct())

    def decisions(self) -> Tensor:
        """Count the decisions that follow one another, structure triples and texture channels in use: int64 ``[n]``."""
        counts = []
        for triples in self.triples:
            rank = ranked(triples)[0]
            texture = rank >= self.texture
            counts.append(int((~texture).sum()) + len(rank[texture].unique()))
        return torch.tensor(counts)

    def by_band(self) -> Tensor:
        """Return the pictures after each band: int16 ``[4, n, N, 6, 64]``; the last are the finished ones."""
        stages = []
        for last in range(len(order.BANDS)):
            mcus = self.mcus.clone()
            for slots, triples in zip(mcus, self.triples, strict=True):
                rank, position, value = ranked(triples)
                later = BAND_OF_RANK[rank] > last
                scatter(rank[later], position[later], 0 * value[later], self.grid, into=slots)
            stages.append(mcus)
        return torch.stack(stages)

    def places(self) -> Tensor:
        """Count how often each luma block position was chosen: int64 ``[n, 2·rows, 2·cols]`` (the paper's figure 1)."""
        counts = [
            torch.bincount(t[:, 1].long(), minlength=self.grid.positions).view(2 * self.grid.rows, self.grid.width)
            for t in self.triples
        ]
        return torch.stack(counts)


@dataclasses.dataclass(eq=False)
class Row:
    """A picture that is being generated."""

    request: Request
    grid: Grid
    config: SampleConfig
    """Its seed, temperature, top-p and guidance."""
    listed: Tensor
    """(rank, position, value) of the structure so far, int64 ``[L, 3]``."""
    first: int
    """Rank of the first texture channel."""
    kept: Tensor
    """(rank, position, value) of the texture that the picture begins with, int64 ``[L, 3]``."""
    stopped: bool = False
    """Whether the structure is complete."""
    texture: Tensor | None = None
    """The finished picture, int16 ``[N, 6, 64]``, if it has texture."""
    channels: int = 0
    """Texture channels that were decided on."""

    @classmethod
    def new(cls, request: Request, grid: Grid, config: SampleConfig, first: int) -> Row:
        """Start a picture: sort its kept triples into structure and texture; ``first`` is the first texture rank."""
        kept = torch.zeros(0, 3) if request.kept is None else request.kept
        kept = torch.stack(ranked(kept), 1)
        texture = kept[:, 0] >= first
        row = cls(request, grid, config, kept[~texture], first, kept[texture])
        structure_given = request.given is not None and bool(request.given[:, first > RANK_OF_SLOT].all())
        row.stopped = first < order.NUM_CHANNELS and (structure_given or len(row.kept) > 0)
        return row

    @property
    def finished(self) -> bool:
        """Whether nothing is left to generate."""
        return self.stopped and (self.texture is not None or self.first == order.NUM_CHANNELS)

    @property
    def decided(self) -> int:
        """Triples of the structure and texture channels so far."""
        return len(self.listed) + self.channels

    def noise(self, chunk: int, stride: int) -> np.ndarray:
        """Return the uniform numbers of a chunk's triples, fp64 ``[stride, 3]``; they depend on their place alone."""
        request = self.request
        return np.random.default_rng([self.config.seed, request.index, request.tile, chunk]).random((stride, 3))

    def sequence(self) -> Sequence:
        """Return the triples so far as a sequence without a stop."""
        request, (rank, position, value) = self.request, self.listed.unbind(1)
        return Sequence(rank, position, value, request.given, request.known, request.label, self.grid)

    def open_coefficients(self) -> int:
        """Return the number of coefficients that are not settled from the start; no list of triples is longer."""
        settled = 0 if self.request.given is None else int(self.request.given.sum())
        return self.grid.mcus * order.BLOCKS_PER_MCU * 64 - settled

    def mcus(self) -> Tensor:
        """Return the picture so far: int16 ``[N, 6, 64]``."""
        if self.texture is not None:
            return self.texture
        coefficients = partial_image(self.sequence(), len(self.listed))[0]
        rank, position, value = self.kept.unbind(1)
        return scatter(rank, position, value, self.grid, into=coefficients)

    def before_texture(self) -> tuple[Tensor, Tensor]:
        """Return the coefficients when the texture begins, int16 ``[N, 6, 64]``, and which of them are given, bool."""
        given = torch.zeros(self.grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.bool)
        if self.request.given is not None:
            given |= self.request.given
        if len(self.kept):  # everything up to the last kept coefficient, zeros too
            given |= settled_before(int(self.kept[-1, 0]), int(self.kept[-1, 1]), self.grid) & (
                self.first <= RANK_OF_SLOT
            )
        return self.mcus(), given

    def triples(self) -> Tensor:
        """Return the triples in generation order, kept ones first: int32 ``[L, 3]`` (channel, position, value)."""
        listed = self.listed
        if self.texture is not None:
            drawn = (self.texture != 0) & (self.first <= RANK_OF_SLOT)
            if self.request.given is not None:
                drawn &= ~self.request.given
            position = self.grid.block_position[:, :, None].expand(drawn.shape)[drawn]
            found = torch.stack([RANK_OF_SLOT.expand(drawn.shape)[drawn], position, self.texture[drawn].long()], 1)
            listed = torch.cat([listed, found[(found[:, 0] * self.grid.positions + position).argsort()]])
        return public(*listed.unbind(1))
