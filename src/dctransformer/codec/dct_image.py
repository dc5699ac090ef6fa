"""The DCT image: what a JPEG file holds before entropy coding, and its sparse form, triples.

Shapes: B batch, h × w luma blocks, i × j chroma blocks, L triples, N MCUs, T coefficients of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import IS_CHROMA_RANK
from dctransformer.codec.triples import ODD_HORIZONTAL, public, ranked

_SAMPLING_NAMES = {
    (1, 1): "4:4:4", (1, 2): "4:2:2", (2, 2): "4:2:0", (2, 1): "4:4:0",
    (1, 4): "4:1:1", (2, 4): "4:1:0", (4, 1): "4:4:1",
}  # fmt: skip


def grid_sizes(height: int, width: int, chroma_step: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the block grids (rows, columns) of luma and chroma, as libjpeg lays out a picture in pixels."""
    down, across = chroma_step
    luma = (-(-height // 8), -(-width // 8))
    return luma, (-(-height // (8 * down)), -(-width // (8 * across)))


@dataclasses.dataclass(frozen=True, eq=False)
class DCTImage:
    """Quantised DCT coefficients of a batch of equally large pictures (paper, section 3.1).

    Attributes:
        luma: int16 ``[B, h, w, 64]``, frequencies in zigzag order.
        cb: int16 ``[B, i, j, 64]``, or None in a grey picture.
        cr: like ``cb``.
        luma_table: int32 ``[64]`` quantisation steps, zigzag order.
        chroma_table: int32 ``[64]``, or None in a grey picture.
        height: pixels; the block grids are rounded up as libjpeg does it.
        width: pixels.
        chroma_step: luma samples per chroma sample, down and across: ``(2, 2)`` is 4:2:0.

    Raises:
        ValueError: the shapes, types or sizes don't fit together.
    """

    luma: Tensor
    cb: Tensor | None
    cr: Tensor | None
    luma_table: Tensor
    chroma_table: Tensor | None
    height: int
    width: int
    chroma_step: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        """Refuse parts that don't fit together."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.width}×{self.height} pixels has no blocks; give positive sizes")
        if len({part is None for part in (self.cb, self.cr, self.chroma_table)}) != 1:
            raise ValueError("give cb, cr and chroma_table all three, or none of them for a grey picture")
        luma_grid, chroma_grid = grid_sizes(self.height, self.width, self.chroma_step)
        batch = self.luma.shape[0] if self.luma.ndim else 0
        for name, part, grid in (
            ("luma", self.luma, luma_grid),
            ("cb", self.cb, chroma_grid),
            ("cr", self.cr, chroma_grid),
        ):
            if part is None:
                continue
            if part.dtype != torch.int16 or tuple(part.shape) != (batch, *grid, 64):
                raise ValueError(
                    f"{name} is {part.dtype} {list(part.shape)}, but a {self.width}×{self.height} picture at "
                    f"{self.sampling} needs torch.int16 {[batch, *grid, 64]}"
                )
        for name, table in (("luma_table", self.luma_table), ("chroma_table", self.chroma_table)):
            if table is not None and (table.dtype != torch.int32 or tuple(table.shape) != (64,)):
                raise ValueError(f"{name} is {table.dtype} {list(table.shape)}; give an int32 tensor [64]")

    # Shape and batch ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number B of pictures."""
        return self.luma.shape[0]

    def __getitem__(self, index: int | slice) -> DCTImage:
        """Return some of the pictures; the batch dimension stays, also for a single index."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"picture {index} of a batch of {len(self)}")
            index = slice(index, index + 1 or None)
        return self._with([part[index] for part in self.components])

    @property
    def components(self) -> tuple[Tensor, ...]:
        """``(luma, cb, cr)``, or ``(luma,)`` of a grey picture."""
        return (self.luma,) if self.cb is None or self.cr is None else (self.luma, self.cb, self.cr)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """``(luma_table, chroma_table)``, or ``(luma_table,)`` of a grey picture."""
        return (self.luma_table,) if self.chroma_table is None else (self.luma_table, self.chroma_table)

    @property
    def is_grey(self) -> bool:
        """Whether there are no chroma coefficients."""
        return self.cb is None

    @property
    def sampling(self) -> str:
        """Chroma subsampling as it is usually written, ``"4:2:0"``, or ``"grey"``."""
        if self.is_grey:
            return "grey"
        return _SAMPLING_NAMES.get(self.chroma_step, "×".join(map(str, self.chroma_step)))

    def to(self, device: torch.device | str) -> DCTImage:
        """Return the same image on ``device``, tables included."""
        return dataclasses.replace(
            self._with([part.to(device) for part in self.components]),
            luma_table=self.luma_table.to(device),
            chroma_table=None if self.chroma_table is None else self.chroma_table.to(device),
        )

    @staticmethod
    def cat(images: Sequence[DCTImage]) -> DCTImage:
        """Join batches of pictures that have the same size, sampling and tables.

        Raises:
            ValueError: there are none, or they differ.
        """
        if not images:
            raise ValueError("no DCT images to join; give at least one")
        first = images[0]
        if not all(first._fits(other) for other in images):
            raise ValueError("only DCT images of one size, sampling and quality join; keep them apart")
        return first._with([torch.cat(part) for part in zip(*(image.components for image in images), strict=True)])

    def equal(self, other: DCTImage) -> bool:
        """Return whether sizes, sampling, tables and every coefficient are the same."""
        pairs = zip(self.components, other.components, strict=False)
        return len(self) == len(other) and self._fits(other) and all(torch.equal(*pair) for pair in pairs)

    def _fits(self, other: DCTImage) -> bool:
        """Return whether ``other`` differs in nothing but its batch of coefficients."""
        same = (self.height, self.width, self.sampling) == (other.height, other.width, other.sampling)
        return same and all(map(torch.equal, self.tables, other.tables))

    def _with(self, components: Sequence[Tensor]) -> DCTImage:
        """Return a picture of the same kind with other coefficients: (luma,) or (luma, cb, cr)."""
        luma, cb, cr = components if len(components) == 3 else (components[0], None, None)
        return dataclasses.replace(self, luma=luma, cb=cb, cr=cr)

    # Exact flip ---------------------------------------------------------------------------------------------------

    def flip(self) -> DCTImage:
        """Mirror the pictures left to right, exactly: no pixel is decoded or encoded again.

        A mirrored cosine changes sign if its horizontal frequency is odd; the blocks change sides.

        Raises:
            ValueError: the width is not a multiple of the MCU's, so the padding would come to the left.
        """
        mcu = 8 if self.is_grey else 8 * self.chroma_step[1]
        if self.width % mcu:
            raise ValueError(f"width {self.width} is not a multiple of {mcu}; crop or resize the picture first")
        odd = ODD_HORIZONTAL.to(self.luma.device)
        return self._with([torch.where(odd, -part, part).flip(2) for part in self.components])

    # MCUs ---------------------------------------------------------------------------------------------------------

    def to_mcus(self) -> Tensor:
        """Return the coefficients MCU by MCU, the form that models use.

        Returns:
            int16 ``[B, N, 6, 64]``: MCUs row by row, each its luma blocks top-left, top-right, bottom-left,
            bottom-right, then Cb and Cr.

        Raises:
            ValueError: the pictures are not 4:2:0 or not made of whole MCUs.
        """
        if self.sampling != "4:2:0" or self.height % order.MCU or self.width % order.MCU:
            raise ValueError(
                f"a {self.width}×{self.height} {self.sampling} picture does not divide into 4:2:0 MCUs; "
                "encode its pixels with Codec at a size that is a multiple of 16"
            )
        assert self.cb is not None and self.cr is not None
        batch, rows, cols = self.cb.shape[:3]
        luma = self.luma.view(batch, rows, 2, cols, 2, 64).transpose(2, 3).reshape(batch, rows * cols, 4, 64)
        return torch.cat([luma, self.cb.reshape(batch, -1, 1, 64), self.cr.reshape(batch, -1, 1, 64)], dim=2)

    @classmethod
    def from_mcus(cls, mcus: Tensor, rows: int, cols: int, luma_table: Tensor, chroma_table: Tensor) -> DCTImage:
        """Build a DCT image from MCUs, the inverse of `to_mcus`.

        Args:
            mcus: integers ``[B, rows · cols, 6, 64]``.
            rows: MCUs down.
            cols: MCUs across.
            luma_table: int32 ``[64]``, zigzag order.
            chroma_table: int32 ``[64]``, zigzag order.

        Raises:
            ValueError: the shape does not fit.
        """
        if mcus.ndim != 4 or tuple(mcus.shape[1:]) != (rows * cols, order.BLOCKS_PER_MCU, 64):
            raise ValueError(
                f"{rows} × {cols} MCUs need [B, {rows * cols}, 6, 64] coefficients, not {list(mcus.shape)}"
            )
        mcus = mcus.to(torch.int16)
        batch = mcus.shape[0]
        luma = mcus[:, :, :4].reshape(batch, rows, cols, 2, 2, 64).transpose(2, 3)
        cb, cr = (mcus[:, :, k].reshape(batch, rows, cols, 64) for k in (4, 5))
        return cls(
            luma=luma.reshape(batch, 2 * rows, 2 * cols, 64), cb=cb, cr=cr,
            luma_table=luma_table, chroma_table=chroma_table,
            height=order.MCU * rows, width=order.MCU * cols,
        )  # fmt: skip

    # Triples ------------------------------------------------------------------------------------------------------

    def to_triples(self) -> list[Tensor]:
        """Return the non-zero coefficients of each picture, in generation order (paper, section 3.2).

        Returns:
            B int32 tensors ``[L, 3]`` of (channel id, position, value). The position is an index into the luma
            block grid in raster order; a chroma coefficient takes that of its MCU's top-left luma block.
        """
        layout = _Layout.of(self.height, self.width, self.chroma_step, self.is_grey)
        coefficients = layout.flatten(self.luma, self.cb, self.cr)
        image, index = coefficients.nonzero(as_tuple=True)
        triples = public(*layout.places(index), coefficients[image, index].long())
        return list(triples.split(image.bincount(minlength=len(self)).tolist()))

    @classmethod
    def from_triples(
        cls,
        triples: Tensor | Sequence[Tensor],
        height: int,
        width: int,
        luma_table: Tensor,
        chroma_table: Tensor | None,
        chroma_step: tuple[int, int] = (2, 2),
    ) -> DCTImage:
        """Build a DCT image from triples in any order, the inverse of `to_triples`.

        Args:
            triples: integers ``[L, 3]``, or a list of them, one per picture.
            height: pixels.
            width: pixels.
            luma_table: int32 ``[64]``, zigzag order.
            chroma_table: int32 ``[64]``, zigzag order, or None for grey pictures.
            chroma_step: luma samples per chroma sample, down and across.

        Raises:
            ValueError: a triple names a channel or a place that the picture does not have, names one twice, or its
                value is 0 or does not fit 16 bits.
        """
        batch = [triples] if isinstance(triples, Tensor) else list(triples)
        for one in batch:
            if one.ndim != 2 or one.shape[1] != 3 or one.is_floating_point():
                raise ValueError(f"triples are integers [L, 3], not {one.dtype} {list(one.shape)}")
        layout = _Layout.of(height, width, chroma_step, chroma_table is None)
        device = batch[0].device if batch else luma_table.device
        lengths = torch.tensor([len(one) for one in batch], device=device)
        joined = torch.cat(batch) if batch else torch.empty(0, 3, device=device)
        value = joined[:, 2]
        if ((value == 0) | (value != value.to(torch.int16))).any():
            raise ValueError("a triple's value is 0 or beyond 16 bits; list only non-zero coefficients")
        index = layout.index(joined)
        image = torch.arange(len(batch), device=device).repeat_interleave(lengths)
        coefficients = torch.zeros(len(batch), layout.size, dtype=torch.int16, device=device)
        coefficients[image, index] = value.to(torch.int16)
        if int(coefficients.count_nonzero()) != len(value):
            raise ValueError("two triples name the same coefficient; list each once")
        luma, cb, cr = layout.unflatten(coefficients)
        return cls(luma, cb, cr, luma_table, chroma_table, height, width, chroma_step)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The T coefficients of a picture as one row in generation order: channel by channel, each in raster order."""

    luma_grid: tuple[int, int]
    chroma_grid: tuple[int, int]
    chroma_step: tuple[int, int]
    grey: bool
    starts: Tensor
    """Where each rank starts in the row, and the end: int64 ``[193]``."""

    @classmethod
    def of(cls, height: int, width: int, chroma_step: tuple[int, int], grey: bool) -> _Layout:
        luma_grid, chroma_grid = grid_sizes(height, width, chroma_step)
        chroma_blocks = 0 if grey else chroma_grid[0] * chroma_grid[1]
        blocks = torch.where(IS_CHROMA_RANK, chroma_blocks, luma_grid[0] * luma_grid[1])
        starts = torch.cat([blocks.new_zeros(1), blocks.cumsum(0)])
        return cls(luma_grid, chroma_grid, chroma_step, grey, starts)

    @property
    def size(self) -> int:
        """Number T of coefficients."""
        return int(self.starts[-1])

    def _pieces(self) -> list[tuple[int, int, int]]:
        """Return the row's stretches: (component, first frequency, end frequency)."""
        components = (order.LUMA,) if self.grey else order.COMPONENT_ORDER
        return [(component, *band) for band in order.BANDS for component in components]

    def flatten(self, luma: Tensor, cb: Tensor | None, cr: Tensor | None) -> Tensor:
        """Flatten block grids ``[B, ·, ·, 64]`` to rows ``[B, T]``."""
        planes = {
            component: part.flatten(1, 2).transpose(1, 2)
            for component, part in ((order.LUMA, luma), (order.CB, cb), (order.CR, cr))
            if part is not None
        }
        return torch.cat([planes[c][:, start:end].flatten(1) for c, start, end in self._pieces()], dim=1)

    def unflatten(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Undo `flatten`."""
        planes: dict[int, list[Tensor]] = {}
        begin = 0
        for component, start, end in self._pieces():
            grid = self.luma_grid if component == order.LUMA else self.chroma_grid
            length = (end - start) * grid[0] * grid[1]
            piece = rows[:, begin : begin + length].reshape(-1, end - start, *grid)
            planes.setdefault(component, []).append(piece)
            begin += length
        # Bands come in rising frequency, so a component's pieces join in zigzag order.
        blocks = {component: torch.cat(parts, dim=1).permute(0, 2, 3, 1) for component, parts in planes.items()}
        luma = blocks[order.LUMA].contiguous()
        if order.CB not in blocks:
            return luma, None, None
        return luma, blocks[order.CB].contiguous(), blocks[order.CR].contiguous()

    def places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ranks and positions of indices into the row (int64, any shape)."""
        starts = self.starts.to(index.device)
        rank = torch.searchsorted(starts, index, right=True) - 1
        block, is_chroma = index - starts[rank], IS_CHROMA_RANK.to(index.device)[rank]
        down, across = self.chroma_step
        row, col = block // self.chroma_grid[1], block % self.chroma_grid[1]
        return rank, torch.where(is_chroma, row * down * self.luma_grid[1] + col * across, block)

    def index(self, triples: Tensor) -> Tensor:
        """Return the index into the row of public triples, ``[L, 3]``: int64 ``[L]``.

        Raises:
            ValueError: there is no such channel or place.
        """
        channel, position, _ = triples.long().unbind(1)
        down, across = self.chroma_step
        legal_channel = (channel >= 0) & (channel < (order.CB if self.grey else order.NUM_CHANNELS))
        row, col = position // self.luma_grid[1], position % self.luma_grid[1]
        legal_place = (position >= 0) & (row < self.luma_grid[0])
        legal_place &= (channel < order.CB) | ((row % down == 0) & (col % across == 0))
        for legal, wrong, what in ((legal_channel, channel, "channel"), (legal_place, position, "position")):
            if not legal.all():
                raise ValueError(
                    f"{what} {int(wrong[~legal][0])} is not one of a picture of {self.luma_grid[1]}×"
                    f"{self.luma_grid[0]} blocks; check that size, sampling and colours are those of the triples"
                )
        rank = ranked(triples)[0]
        block = torch.where(channel < order.CB, position, row // down * self.chroma_grid[1] + col // across)
        return self.starts.to(channel.device)[rank] + block
