"""The model's input for texture: the channels that are decided as a whole, after the triples.

Shapes: B pictures, K channels of each, N MCUs, C = 192 ranks, P positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import RANK_OF_SLOT, Grid
from dctransformer.sequence.chunks import Sequence


@dataclasses.dataclass
class TextureBatch:
    """The texture of B pictures, and the weights of some channels of each.

    Attributes:
        coefficients: int16 ``[B, N, 6, 64]``, the whole pictures; 0 where hidden.
        given: bool ``[B, N, 6, 64]``, settled from the start.
        hidden: bool ``[B, N, 6, 64]``, neither known nor to be generated.
        labels: int64 ``[B]``.
        rank: int64 ``[B, K]``, channels in use whose occupancy and values are scored.
        weight: fp32 ``[B, K]``, how often each counts; 0 for padding.
        use_weight: fp32 ``[B]``, how often the decisions about which channels are in use count.
        grid: the MCU grid, one for all.
        pictures: pictures in a whole training step, of which these may be a part.
        first: rank of the first texture channel.
    """

    coefficients: Tensor
    given: Tensor
    hidden: Tensor
    labels: Tensor
    rank: Tensor
    weight: Tensor
    use_weight: Tensor
    grid: Grid
    pictures: int = 0
    first: int = 0

    def to(self, device: torch.device | str) -> TextureBatch:
        """Return the batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> TextureBatch:
        """Return some of the pictures."""
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> TextureBatch:
        kept = ("grid", "pictures", "first")
        changed = {f.name: change(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in kept}
        return TextureBatch(**changed, grid=self.grid, pictures=self.pictures, first=self.first)


def channels_in_use(sequence: Sequence, first: int) -> Tensor:
    """Return the texture channels with a coefficient that is to be generated.

    Args:
        sequence: a picture, made by `Sequence.from_triples`.
        first: rank of the first texture channel.

    Returns:
        int64 ranks, ascending.
    """
    assert sequence.coefficients is not None, "the sequence knows its picture"
    rank = RANK_OF_SLOT.expand(sequence.coefficients.shape)[(sequence.coefficients != 0) & ~sequence.closed]
    used = torch.zeros(order.NUM_CHANNELS, dtype=torch.bool)
    used[rank] = True
    used[:first] = False
    return used.nonzero()[:, 0]


def texture_batch(
    sequences: list[Sequence], ranks: list[Tensor], weights: list[Tensor], *, use: bool = True, channels: int = 0
) -> TextureBatch:
    """Batch the textures of pictures.

    Args:
        sequences: B pictures of one grid.
        ranks: int64, the channels of each that are scored.
        weights: how often each of them counts.
        use: whether the decisions about which channels are in use count, too.
        channels: K, for a batch of a fixed shape; 0 for the most channels of a picture.
    """
    count = max(channels, 1, *(len(r) for r in ranks))
    rank = torch.full((len(sequences), count), order.NUM_CHANNELS - 1)
    weight = torch.zeros(len(sequences), count)
    for row, (r, w) in enumerate(zip(ranks, weights, strict=True)):
        rank[row, : len(r)], weight[row, : len(r)] = r, w
    none = torch.zeros(sequences[0].grid.mcus, order.BLOCKS_PER_MCU, 64, dtype=torch.bool)
    coefficients = [s.coefficients for s in sequences if s.coefficients is not None]
    assert len(coefficients) == len(sequences), "every sequence knows its picture"
    return TextureBatch(
        coefficients=torch.stack(coefficients),
        given=torch.stack([none if s.given is None else s.given for s in sequences]),
        hidden=torch.stack([none if s.hidden is None else s.hidden for s in sequences]),
        labels=torch.tensor([s.label for s in sequences]),
        rank=rank,
        weight=weight,
        use_weight=torch.full((len(sequences),), float(use)),
        grid=sequences[0].grid,
    )


def sample_texture(sequences: list[Sequence], uniform: Tensor, channels: int, first: int) -> TextureBatch:
    """Build a training batch: some channels of each picture, weighted so that they stand for all that are in use.

    The channels are equally spaced among those in use, from a random start, so that low and high ones both occur and
    each is as likely as the others.

    Args:
        sequences: B pictures of one grid.
        uniform: ``[B]`` numbers in [0, 1), the random starts.
        channels: K, most channels per picture.
        first: rank of the first texture channel.
    """
    ranks, weights = [], []
    for sequence, start in zip(sequences, uniform.tolist(), strict=True):
        used = channels_in_use(sequence, first)
        count = min(channels, len(used))
        spacing = len(used) / max(count, 1)
        index = ((torch.arange(count, dtype=torch.float64) + start) * spacing).long()
        ranks.append(used[index.clamp(max=len(used) - 1)])  # a start just below 1 can be rounded up
        weights.append(torch.full((count,), spacing))
    return texture_batch(sequences, ranks, weights, channels=channels)
