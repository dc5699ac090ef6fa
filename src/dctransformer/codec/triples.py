"""Triples: between the paper's channel ids and ranks, between lists and DCT images, mirrored and cropped.

Public lists of triples name a channel by the paper's id (Y 0–63, Cb 64–127, Cr 128–191). Everything inside counts
channels in generation order, by *rank* (`dctransformer.codec.order`); `ranked` and `public` convert.

Shapes: L triples, N MCUs, P positions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import CHANNEL_OF_RANK, RANK_OF_CHANNEL, Grid, rank_slots

ODD_HORIZONTAL = torch.from_numpy(order.ZIGZAG % 2 == 1)
"""Frequencies that change sign when a picture is mirrored left to right: bool ``[64]``, zigzag order."""


def ranked(triples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert public triples, ``[L, 3]`` (channel id, position, value), to ranks, positions, values: int64 ``[L]``."""
    channel, position, value = triples.long().unbind(1)
    return RANK_OF_CHANNEL.to(channel.device)[channel], position, value


def public(rank: Tensor, position: Tensor, value: Tensor) -> Tensor:
    """Convert ranks, positions and values to public triples, int32 ``[L, 3]``: the inverse of `ranked`."""
    return torch.stack([CHANNEL_OF_RANK.to(rank.device)[rank], position, value], 1).int()


def scatter(rank: Tensor, position: Tensor, value: Tensor, grid: Grid, into: Tensor | None = None) -> Tensor:
    """Put triples into a DCT image.

    Args:
        rank: int64 ``[L]``, on the CPU.
        position: int64 ``[L]``.
        value: integers ``[L]``.
        grid: the MCU grid.
        into: ``[N, 6, 64]``, contiguous, changed in place; None for a new one of zeros, int16.

    Returns:
        The image, ``[N, 6, 64]``.
    """
    if into is None:
        into = torch.zeros(grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.int16)
    into.view(-1)[grid.slot(rank, position)] = value.to(into.dtype)
    return into


def gather(slots: Tensor, grid: Grid) -> Tensor:
    """Rearrange ``[B, N, 6, 64]`` to one plane per rank: ``[B, 192, P]``, 0 where a channel has no place."""
    index = rank_slots(grid, slots.device)
    return F.pad(slots.flatten(1), (0, 1)).index_select(1, index.flatten()).unflatten(1, index.shape)


def flip_triples(triples: Tensor, where: Grid) -> Tensor:
    """Mirror a picture's triples left to right, exactly (no re-encoding).

    Args:
        triples: int ``[L, 3]`` (channel, position, value) in generation order.
        where: the picture's grid.

    Returns:
        The mirrored triples, again in generation order.
    """
    rows = triples.numpy()
    if not len(rows):
        return triples.clone()
    channel, position = rows[:, 0], rows[:, 1]
    # A flip reverses the blocks of each channel in each row, which are neighbours in the list.
    line = channel.astype(np.int64) * (2 * where.rows) + position // where.width
    starts = np.flatnonzero(np.diff(line, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    index = np.repeat(starts + ends - 1, ends - starts) - np.arange(len(rows))
    flipped = rows.take(index, axis=0)
    channel, position = (torch.from_numpy(flipped[:, column]) for column in (0, 1))
    flipped[:, 1] = where.mirrored(position, channel).numpy()
    flipped[:, 2] *= 1 - 2 * ODD_HORIZONTAL.numpy().take(flipped[:, 0] % 64).astype(rows.dtype)
    return torch.from_numpy(flipped)


def crop_triples(triples: Tensor, where: Grid, top: int, left: int, window: Grid) -> Tensor:
    """Crop a picture's triples to a rectangle of whole MCUs, exactly (no re-encoding).

    Args:
        triples: int ``[L, 3]`` (channel, position, value) in generation order.
        where: the picture's grid.
        top: first row of MCUs.
        left: first column of MCUs.
        window: the rectangle's grid.

    Returns:
        Those of the triples that lie inside, with positions in the window, again in generation order.

    Raises:
        ValueError: the window does not lie in the picture.
    """
    if not (0 <= top <= where.rows - window.rows and 0 <= left <= where.cols - window.cols):
        raise ValueError(f"a window of {window.size} at MCU row {top}, column {left} is not inside of {where.size}")
    # Raster order inside a rectangle is the picture's, so nothing needs to be sorted.
    rows, width = triples.numpy(), where.width
    moved = np.full((2 * where.rows, width), -1, rows.dtype)
    inside = moved[2 * top : 2 * (top + window.rows), 2 * left : 2 * (left + window.cols)]
    inside[:] = np.arange(window.positions).reshape(inside.shape)
    position = moved.ravel().take(rows[:, 1])
    index = np.flatnonzero(position >= 0)
    cropped = rows.take(index, axis=0)
    cropped[:, 1] = position.take(index)
    return torch.from_numpy(cropped)
