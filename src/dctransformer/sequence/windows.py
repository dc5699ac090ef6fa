"""Windows: rectangles of whole MCUs out of larger pictures, cropped in the DCT domain, without loss.

Training gets a window of each picture that is larger than the window's grid. Along a side where a picture is
smaller than that grid, the window is as long as the picture.

Shapes: L triples, P positions; R × C windows that a picture has (one for each place of the top-left MCU).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dctransformer.codec import Codec, jpeg, order
from dctransformer.codec.grid import Grid
from dctransformer.codec.triples import crop_triples
from dctransformer.data.shapes import parse_size
from dctransformer.data.store import TripleStore


def parse_window(text: str) -> Grid:
    """Return the grid of a window from ``"128"`` or ``"128x96"`` (width by height, in pixels).

    Raises:
        ValueError: it is not a size of whole MCUs.
    """
    width, height = parse_size(text, "window")
    return Grid.shared(height // order.MCU, width // order.MCU)


def chunks_by_window(positions: np.ndarray, picture: Grid, window: Grid, stride: int) -> np.ndarray:
    """Return the chunks that predict each window of a picture, the stop included.

    Args:
        positions: of the picture's triples, int ``[L]``.
        picture: its grid.
        window: the grid of the windows, which fits into it.
        stride: triples that a chunk predicts.

    Returns:
        int64 ``[R, C]``, by the row and the column of the window's top-left MCU.
    """
    per_mcu = np.bincount(picture.mcu.numpy()[positions], minlength=picture.mcus)
    above = np.zeros((picture.rows + 1, picture.cols + 1), np.int64)  # triples above and to the left of a corner
    above[1:, 1:] = per_mcu.reshape(picture.rows, picture.cols).cumsum(0).cumsum(1)
    bands = above[window.rows :] - above[: -window.rows]
    inside = bands[:, window.cols :] - bands[:, : -window.cols]
    return -(-(inside + 1) // stride)


def most_chunks(triples: np.ndarray, pictures: np.ndarray, windows: np.ndarray, stride: int) -> np.ndarray:
    """Return a bound on the mean number of chunks in a picture's windows that needs only its number of triples.

    No window has more chunks than the picture. And an MCU lies in at most a share q of the windows (along one side of
    n MCUs, a window of w covers an MCU from at most min(w, n − w + 1) of n − w + 1 places), so that a window has at
    most q·L triples on average, and as chunks are rounded up, fewer than q·L / stride + 1 chunks and the stop's.

    Args:
        triples: int64 ``[n]``, L of each picture.
        pictures: int64 ``[n, 2]``, rows and columns of their grids.
        windows: int64 ``[n, 2]``, those of their windows.
        stride: triples that a chunk predicts.

    Returns:
        int64 ``[n]``.
    """
    places = pictures - windows + 1
    share = (np.minimum(windows, places) / places).prod(1)
    return np.minimum(-(-(triples + 1) // stride), np.ceil(share * triples / stride).astype(np.int64) + 1)


def centre_window(triples: Tensor, picture: Grid, window: Grid | None) -> tuple[Tensor, Grid]:
    """Return the window at the centre of a picture (where `Grid.centre` puts it), and its grid."""
    grid = picture.within(window)
    if grid == picture:
        return triples, picture
    return crop_triples(triples, picture, *picture.centre(grid), grid), grid


def huffman_bytes(store: TripleStore, index: int, window: Grid | None) -> int:
    """Return the bytes of libjpeg's optimised Huffman code for the window at a picture's centre, headers left out."""
    triples, grid = centre_window(store.triples(index), store.grid(index), window)
    if grid == store.grid(index):
        return int(store.huffman_bytes[index])
    dct = Codec(store.info.quality).from_triples(triples, order.MCU * grid.rows, order.MCU * grid.cols)
    return jpeg.huffman_bytes(dct)


def window_grids(store: TripleStore, window: Grid | None) -> np.ndarray:
    """Return the rows and columns of each picture's windows: int64 ``[n, 2]``.

    Raises:
        ValueError: the window is larger than every picture.
    """
    grids = np.stack([store.heights, store.widths], axis=1).astype(np.int64) // order.MCU
    if window is None:
        return grids
    if len(grids) and not ((grids[:, 0] >= window.rows) & (grids[:, 1] >= window.cols)).any():
        largest = max(store.grids, key=lambda grid: grid.mcus).size
        raise ValueError(
            f"a window of {window.size} pixels is larger than every picture (the largest is {largest}); "
            "give a smaller one, or leave it out to train on whole pictures"
        )
    return np.minimum(grids, (window.rows, window.cols))
