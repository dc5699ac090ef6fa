"""Exact code lengths: how many bits a model needs for the DCT images of pictures.

All impossible outcomes have probability 0, so the negative log-likelihood of a sequence of triples, its stop
included, and of the texture channels after it is the length of a lossless code for the DCT image. It is the sum over
the chunks and the channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import BAND_OF_RANK, RANK_OF_SLOT, Grid
from dctransformer.codec.triples import gather
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.legality import open_places
from dctransformer.model.precision import full_fp32
from dctransformer.model.texture import TEXTURE_PLACES
from dctransformer.model.texture_state import TextureState
from dctransformer.sequence.chunks import START, ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.texture import TextureBatch, channels_in_use, texture_batch

FIELDS = ("channel", "position", "value")


Marked = Tensor | Mapping[Grid, Tensor]
"""Marked coefficients, bool ``[N, 6, 64]``, of pictures of one grid or of each grid."""


@dataclasses.dataclass
class CodeLengths:
    """Bits of every picture, by field and band.

    Attributes:
        bits: fp64 ``[n, 5, 3]``: pictures; the bands, low to high, then the stop; channel, position, value. Of texture,
            "channel" is which channels are in use and "position" their occupancy.
        triples: int64 ``[n, 5]``: how many coefficients (or stops) each holds.
        pixels: int64 ``[n]``, pixels of each picture.
        marked: fp64 ``[n]``, the bits that are about marked coefficients; None where none were marked.
    """

    bits: Tensor
    triples: Tensor
    pixels: Tensor
    marked: Tensor | None = None

    def summary(self) -> dict[str, Any]:
        """Return the means over the pictures, ready for JSON.

        ``bits_per_triple`` spreads all bits, the stop's too, over the non-zero coefficients.
        """
        images = len(self.bits)
        per_image = self.bits.sum((1, 2))
        total, count = float(per_image.sum()), int(self.triples[:, :-1].sum())
        names = [*order.BAND_NAMES, "stop"]
        return {
            "images": images,
            "bytes_per_image": total / images / 8,
            "bits_per_image": total / images,
            "bits_per_pixel": total / int(self.pixels.sum()),
            "bits_per_triple": total / max(count, 1),
            "triples_per_image": count / images,
            "bits_per_triple_by_field": {
                name: float(self.bits[:, :, i].sum()) / max(count, 1) for i, name in enumerate(FIELDS)
            },
            "bits_per_image_by_band": {name: float(self.bits[:, i].sum()) / images for i, name in enumerate(names)},
            "bits_per_image_by_band_and_field": {
                name: {f: float(self.bits[:, i, j].sum()) / images for j, f in enumerate(FIELDS)}
                for i, name in enumerate(names)
            },
            "triples_per_image_by_band": {
                name: float(self.triples[:, i].sum()) / images for i, name in enumerate(names[:-1])
            },
            "standard_error_bytes": float(per_image.std() / math.sqrt(images) / 8) if images > 1 else None,
        }


def _of_grid(marked: Marked, grid: Grid) -> Tensor:
    return marked if isinstance(marked, Tensor) else marked[grid]


def chunk_batches(
    sequences: Iterable[Sequence], config: ModelConfig, size: int
) -> Iterator[tuple[list[int], ChunkBatch]]:
    """Yield all chunks of sequences, ``size`` at a time; those of one batch are of one grid.

    Yields:
        The number of the sequence that each chunk belongs to, and the chunks.
    """
    waiting: list[tuple[int, Sequence, int]] = []

    def batch() -> tuple[list[int], ChunkBatch]:
        numbers, group, index = map(list, zip(*waiting, strict=True))
        waiting.clear()
        return numbers, cut_chunks(group, index, config.chunk, config.overlap)

    for i, sequence in enumerate(sequences):
        for k in range(sequence.chunks(config.stride)):
            if waiting and (len(waiting) == size or waiting[0][1].grid != sequence.grid):
                yield batch()
            waiting.append((i, sequence, k))
    if waiting:
        yield batch()


@torch.inference_mode()
@full_fp32()
def code_lengths(
    model: DCTransformer,
    sequences: Iterable[Sequence],
    *,
    batch: int = 32,
    marked: Marked | None = None,
    progress: Any = None,
) -> CodeLengths:
    """Count the exact bits of pictures under a model, in fp32 whatever the training precision.

    Args:
        model: in eval mode.
        sequences: the pictures, of any sizes; those of one size are scored together if they are neighbours.
        batch: chunks at a time.
        marked: bool ``[N, 6, 64]``, coefficients whose bits are counted apart, too (see `_bits_about`); for pictures
            of several sizes one for each grid.
        progress: called with the number of pictures begun so far, now and then.

    Returns:
        Bits by picture, band and field.

    Raises:
        ValueError: there are no pictures.
    """
    bits: list[Tensor] = []
    counts: list[Tensor] = []
    apart: list[Tensor] = []
    pixels: list[int] = []
    textures = _TextureScores(model, marked)
    for numbers, chunks in chunk_batches(textures.watching(sequences), model.config, batch):
        nats, by_channel = _chunk_nats(model, chunks, split=marked is not None)
        predicted = chunks.predicted
        band = BAND_OF_RANK[chunks.ranks[:, 1:]]
        for row, i in enumerate(numbers):
            while len(bits) <= i:
                bits.append(torch.zeros(len(order.BANDS) + 1, 3, dtype=torch.float64))
                counts.append(torch.zeros(len(order.BANDS) + 1, dtype=torch.int64))
                apart.append(torch.zeros((), dtype=torch.float64))
                pixels.append(chunks.grid.mcus * order.MCU**2)
            which = band[row][predicted[row]]
            bits[i].index_add_(0, which, nats[row][predicted[row]].double() / math.log(2))
            counts[i].index_add_(0, which, torch.ones_like(which))
            if marked is not None and by_channel is not None:
                apart[i] += _bits_about(_of_grid(marked, chunks.grid), chunks, row, nats[row], by_channel[row])
        if progress is not None:
            progress(len(bits))
    if not bits:
        raise ValueError("there are no pictures to score; give some")
    for i, (texture, triples, about) in enumerate(textures.scores()):
        bits[i][:-1] += texture
        counts[i][:-1] += triples
        apart[i] += about
    marked_bits = None if marked is None else torch.stack(apart)
    return CodeLengths(torch.stack(bits), torch.stack(counts), torch.tensor(pixels), marked_bits)


def require_finite(bits: Tensor, name: str) -> None:
    """Raise ValueError if bits are NaN or infinite."""
    if not torch.isfinite(bits).all():
        raise ValueError(
            f"the model {name} gives probabilities that are not finite (damaged or overflowing weights); use others"
        )


class _TextureScores:
    """Scores the textures of sequences that pass by, several pictures at a time."""

    def __init__(self, model: DCTransformer, marked: Marked | None):
        self.model, self.marked = model, marked
        self.first = model.config.texture_rank
        self.waiting: list[Sequence] = []
        self.done: list[tuple[Tensor, Tensor, float]] = []

    def watching(self, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
        """Yield the sequences themselves; their textures are scored when enough of one grid have passed."""
        for sequence in sequences:
            yield sequence.structure(self.first)
            if self.first == order.NUM_CHANNELS:
                continue
            if self.waiting and self.waiting[0].grid != sequence.grid:
                self._flush()
            self.waiting.append(sequence)
            if len(self.waiting) * sequence.grid.positions >= TEXTURE_PLACES // 16:
                self._flush()

    def scores(self) -> list[tuple[Tensor, Tensor, float]]:
        """Return per sequence fp64 bits ``[4, 3]`` by band and field, int64 ``[4]`` coefficients, and marked bits."""
        self._flush()
        return self.done

    def _flush(self) -> None:
        if not self.waiting:
            return
        sequences, self.waiting = self.waiting, []
        used = [channels_in_use(s, self.first) for s in sequences]
        nats = torch.zeros(len(sequences), len(order.BANDS), 3, dtype=torch.float64)
        for batch in texture_slices(sequences, used):
            nats += self.model.texture(batch.to(self.model.device)).cpu().double()
        band = BAND_OF_RANK[:-1]
        for i, sequence in enumerate(sequences):
            assert sequence.coefficients is not None
            listed = (sequence.coefficients != 0) & ~sequence.closed & (self.first <= RANK_OF_SLOT)
            triples = torch.bincount(band[RANK_OF_SLOT.expand(listed.shape)[listed]], minlength=len(order.BANDS))
            about = 0.0
            if self.marked is not None:
                mask = _of_grid(self.marked, sequence.grid)
                about = _texture_bits_about(mask, self.model, sequence, used[i])
            self.done.append((nats[i] / math.log(2), triples, about))


def texture_slices(sequences: list[Sequence], used: list[Tensor]) -> Iterator[TextureBatch]:
    """Yield batches that together hold every texture decision of some pictures once, each small enough for memory.

    Args:
        sequences: pictures of one grid.
        used: int64, channels in use of each.
    """
    count = max(1, TEXTURE_PLACES // (sequences[0].grid.positions * len(sequences)))
    for start in range(0, max(1, *(len(u) for u in used)), count):
        part = [u[start : start + count] for u in used]
        yield texture_batch(sequences, part, [torch.ones(len(p)) for p in part], use=start == 0)


@torch.inference_mode()
@full_fp32()
def place_nats(model: DCTransformer, sequence: Sequence, used: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the nats of a picture's texture, place by place.

    Args:
        model: with texture, in eval mode.
        sequence: the picture.
        used: int64 ``[T]``, its channels in use.

    Returns:
        fp64 on the CPU: ``[192]`` of which channels are in use; ``[T, P]`` of the occupancy and ``[T, P]`` of the
        values; ``[T]``, the correction for knowing that the channel is in use (negative).
    """
    picture = TextureState.of(texture_batch([sequence], [used], [torch.ones(len(used))]).to(model.device))
    parts = [
        model.texture.channel_nats(picture, torch.zeros_like(rank), rank)
        for rank in used.to(model.device).split(max(1, TEXTURE_PLACES // sequence.grid.positions))
    ]
    occupancy, values, saved = (torch.cat(part) for part in zip(*parts, strict=True)) if parts else (
        torch.zeros(0, sequence.grid.positions), torch.zeros(0, sequence.grid.positions), torch.zeros(0))  # fmt: skip
    use = model.texture.use_nats(picture)[0]
    return use.cpu().double(), occupancy.cpu().double(), values.cpu().double(), saved.cpu().double()


def _texture_bits_about(marked: Tensor, model: DCTransformer, sequence: Sequence, used: Tensor) -> float:
    """Compute the part of a picture's texture bits that is about the marked coefficients.

    What belongs to a place counts where it is marked. What belongs to a channel counts by the part that is marked of
    its coefficients, or of its open places if it is not in use.
    """
    assert sequence.coefficients is not None
    use, occupancy, values, saved = place_nats(model, sequence, used)
    opened = open_places(gather(sequence.closed[None], sequence.grid), sequence.grid)[0]
    inside = gather(marked[None], sequence.grid)[0] & opened
    held = (gather(sequence.coefficients[None], sequence.grid)[0] != 0) & opened
    counted = torch.where(held.any(-1, keepdim=True), held, opened)
    share = ((counted & inside).sum(-1) / counted.sum(-1).clamp_min(1)).double()
    by_place = ((occupancy + values) * inside[used]).sum()
    return float(by_place + use @ share + saved @ share[used]) / math.log(2)


def _texture_triple_nats(model: DCTransformer, sequence: Sequence) -> tuple[Tensor, Tensor]:
    """Compute the nats of a picture's texture, coefficient by coefficient.

    Returns:
        fp64 ``[L, 3]``: the coefficients in order, each with an equal share of what its channel costs as a whole;
        and fp64 (a scalar), what the channels cost that are not in use.
    """
    assert sequence.coefficients is not None
    used = channels_in_use(sequence, model.config.texture_rank)
    use, occupancy, values, saved = place_nats(model, sequence, used)
    opened = open_places(gather(sequence.closed[None], sequence.grid), sequence.grid)[0]
    held = ((gather(sequence.coefficients[None], sequence.grid)[0] != 0) & opened)[used]
    count = held.sum(-1).clamp_min(1)
    empty = (torch.where(held, 0.0, occupancy).sum(-1) + saved) / count
    fields = torch.stack([(use[used] / count)[:, None].expand_as(held), occupancy + empty[:, None], values], -1)
    return fields[held], use.sum() - use[used].sum()


@torch.inference_mode()
@full_fp32()
def triple_bits(model: DCTransformer, sequence: Sequence, *, batch: int = 32) -> Tensor:
    """Count the exact bits of every triple of one picture.

    Args:
        model: in eval mode.
        sequence: the picture.
        batch: chunks at a time.

    Returns:
        fp64 ``[L, 3]``: all coefficients that are generated, texture too, in order, and then the stop; channel,
        position, value. What a texture channel's empty places cost is spread over its coefficients; what channels
        cost that are not in use belongs to the stop.
    """
    config = model.config
    parts = []
    for _, chunks in chunk_batches([sequence.structure(config.texture_rank)], config, batch):
        parts.append(_chunk_nats(model, chunks)[0][chunks.predicted].double())
    nats = torch.cat(parts)
    if config.texture_rank < order.NUM_CHANNELS:
        texture, unused = _texture_triple_nats(model, sequence)
        nats = torch.cat([nats[:-1], texture, nats[-1:]])
        nats[-1, 0] += unused
    return nats / math.log(2)


def _bits_about(marked: Tensor, chunks: ChunkBatch, row: int, nats: Tensor, by_channel: Tensor) -> Tensor:
    """Compute the part of a chunk's bits that is about the marked coefficients, fp64.

    Position and value belong to the coefficient that is listed. A channel decision passes over several channels, which
    hold nothing more, and takes one: each part belongs to its channel if that is marked as a whole or not at all, and
    to the coefficient listed where the channel is marked in places (to none at the stop).
    """
    place = open_places(torch.zeros(1, order.NUM_CHANNELS, chunks.grid.positions, dtype=torch.bool), chunks.grid)[0]
    inside = gather(marked[None], chunks.grid)[0] & place
    mixed = inside.any(-1) & (place & ~inside).any(-1)
    whole = inside.any(-1) & ~mixed

    predicted = chunks.predicted[row]
    rank, position = chunks.ranks[row, 1:][predicted], chunks.positions[row, 1:][predicted]
    nats, by_channel = nats[predicted].double(), by_channel[predicted].double()
    here = F.pad(inside, (0, 0, 0, 1))[rank, position]
    about = by_channel[:, :-1] @ whole.double() + here * (by_channel[:, :-1] @ mixed.double() + nats[:, 1:].sum(-1))
    return about.sum() / math.log(2)


def _chunk_nats(model: DCTransformer, chunks: ChunkBatch, *, split: bool = False) -> tuple[Tensor, Tensor | None]:
    """Compute `DCTransformer.forward`; with ``split``, also the channel decisions' nats by channel: see `_split`."""
    batch = chunks.to(model.device)
    nats = model(batch).cpu()
    if not split:
        return nats, None
    context = model.encode(batch.coefficients, batch.settled, batch.closed, batch.labels, batch.grid)
    rank, position, value = batch.ranks[:, :-1], batch.positions[:, :-1], batch.values[:, :-1]
    stream = model.channel_decoder(model.embed_previous(rank, position, value, context), context.memory[0])
    logits = model.channel_head(stream, rank, position, context)
    return nats, _split(logits, rank, batch.ranks[:, 1:]).cpu()


def _split(logits: Tensor, before: Tensor, rank: Tensor) -> Tensor:
    """Split the nats of channel decisions by the channels that they are about.

    By the chain rule, −log p(c) is −log p(c is next | none before it is), and the same of passing over each before.

    Args:
        logits: fp32 ``[B, L, C]``.
        before: int64 ``[B, L]``, ranks of the triples before.
        rank: int64 ``[B, L]``, the ranks decided on.

    Returns:
        fp32 ``[B, L, C]``, of which the sum over channels is the decision's negative log-likelihood.
    """
    log_p = logits.log_softmax(-1)
    left = log_p.flip(-1).logcumsumexp(-1).flip(-1)  # log p(c or a later one)
    index = torch.arange(logits.shape[-1], device=logits.device)
    first = torch.where(before == START, 0, before)
    passed = (index >= first[..., None]) & (index < rank[..., None])
    return torch.where(
        passed, left - F.pad(left[..., 1:], (0, 1)), torch.where(index == rank[..., None], left - log_p, 0.0)
    )
