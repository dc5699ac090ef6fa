"""Exact bits: compared with classical coders in one table, and place by place as a heat-map.

Shapes: B chunks, L triples of a chunk, h × w luma blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import IS_CHROMA_RANK, Grid
from dctransformer.evaluate.coders import compare
from dctransformer.evaluate.pictures import Reference
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.precision import full_fp32
from dctransformer.sampling.likelihood import chunk_batches, code_lengths, place_nats, require_finite
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.texture import channels_in_use


def exact_bits(
    model: DCTransformer,
    name: str,
    reference: Reference,
    *,
    batch: int = 32,
    progress: Callable[[str, int], Any] | None = None,
) -> dict[str, Any]:
    """Return a model's exact code lengths of real pictures, and those of classical coders of the same coefficients.

    Args:
        model: in eval mode.
        name: of the model, for the table.
        reference: the pictures.
        batch: chunks at a time.
        progress: called with a description of the work and the number of pictures done.

    Returns:
        See `dctransformer.sampling.likelihood.CodeLengths.summary`; besides ``data``, ``split``, ``labelled``
        (pictures whose label the model knows) and ``table``: ``coder``, ``bytes_per_image``, ``bits_per_pixel``,
        ``bits_per_triple``, ``missing`` of each coder, the model first.

    Raises:
        ValueError: the model gives NaN.
    """

    def reporter(what: str) -> Callable[[int], Any] | None:
        return functools.partial(progress, what) if progress is not None else None

    lengths = code_lengths(model, reference.sequences(), batch=batch, progress=reporter("bits"))
    require_finite(lengths.bits, name)
    summary = lengths.summary()
    rows = [{"coder": name, "bytes_per_image": summary["bytes_per_image"], "missing": ""}]
    rows += compare((reference.dct(i, i + 1) for i in range(len(reference))), reporter("classical coders"))
    for row in rows:
        size = row["bytes_per_image"]
        row["bits_per_pixel"] = None if size is None else 8 * size * len(lengths.pixels) / int(lengths.pixels.sum())
        row["bits_per_triple"] = None if size is None else 8 * size / max(summary["triples_per_image"], 1e-9)
    return {
        "data": reference.name,
        "split": reference.split,
        **summary,
        "labelled": sum(label != model.config.null_label for label in reference.labels),
        "table": rows,
    }


@torch.inference_mode()
@full_fp32()
def surprise(model: DCTransformer, sequences: Iterable[Sequence], *, batch: int = 32) -> Tensor:
    """Map the bits that a model needs onto the places of pictures.

    All bits of a triple (its channel, position and value), and those of occupancy and value at each place of a texture
    channel, are counted at their place: at the luma block, or, for chroma, a quarter at each of the four blocks that
    the chroma block lies over. The stop, and which texture channels are in use, have no place.

    Args:
        model: in eval mode.
        sequences: the pictures, one size.
        batch: chunks at a time.

    Returns:
        Bits by luma block, fp64 ``[n, h, w]``.
    """
    maps: list[Tensor] = []
    first = model.config.texture_rank

    def add(flat: Tensor, rank: Tensor, place: Tensor, spent: Tensor, grid: Grid) -> None:
        is_luma = ~IS_CHROMA_RANK[rank]
        flat.index_add_(0, place[is_luma], spent[is_luma])
        for offset in (0, 1, grid.width, grid.width + 1):
            flat.index_add_(0, place[~is_luma] + offset, spent[~is_luma] / 4)

    def add_texture(blocks: Tensor, sequence: Sequence) -> None:
        used = channels_in_use(sequence, first)
        _, occupancy, values, _ = place_nats(model, sequence, used)
        spent = (occupancy + values) / math.log(2)
        channel, place = spent.nonzero().unbind(1)
        add(blocks.view(-1), used[channel], place, spent[channel, place], sequence.grid)

    def structures() -> Iterator[Sequence]:
        for sequence in sequences:
            maps.append(torch.zeros(2 * sequence.grid.rows, sequence.grid.width, dtype=torch.float64))
            if first < order.NUM_CHANNELS:
                add_texture(maps[-1], sequence)
            yield sequence.structure(first)

    for numbers, chunks in chunk_batches(structures(), model.config, batch):
        bits = model(chunks.to(model.device)).cpu().double().sum(-1) / math.log(2)
        for row, picture in enumerate(numbers):
            rank, place = chunks.ranks[row, 1:], chunks.positions[row, 1:]
            counts = chunks.predicted[row] & (rank < order.NUM_CHANNELS)
            add(maps[picture].view(-1), rank[counts], place[counts], bits[row][counts], chunks.grid)
    return torch.stack(maps)
