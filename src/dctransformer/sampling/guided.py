"""Decoding by two models in step, for autoguidance.

Guidance leads away from what a second set of rows, the twins, predicts. In classifier-free guidance these are the same
model's predictions without the label. In autoguidance (Karras et al. 2024, *Guiding a Diffusion Model with a Bad
Version of Itself*) they are those of a weaker model, the guide: both err alike, the stronger model less, so that the
difference between the two points away from the errors.

Shapes: B rows of the model, then G twins, rows of the guide; K outcomes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.decoder_state import DecoderState, Decoding
from dctransformer.sequence.chunks import ChunkBatch


@dataclasses.dataclass
class GuidedState:
    """The states of both decodings."""

    model: DecoderState
    guide: DecoderState

    def copy_(self, other: GuidedState) -> None:
        """Copy other states of the same shapes into these tensors."""
        self.model.copy_(other.model)
        self.guide.copy_(other.guide)


class GuidedDecoding:
    """Two decodings that look like one `Decoding` of B + G rows to `dctransformer.sampling.stepper`."""

    def __init__(self, model: DCTransformer, guide: DCTransformer, batch: ChunkBatch, twins: int):
        """Encode what is settled.

        Args:
            model: in eval mode.
            guide: likewise; see `dctransformer.model.config.check_guide`.
            batch: B + G chunks, as for a `Decoding`.
            twins: G.
        """
        self.model, self.count = model, len(batch.labels) - twins
        own, others = torch.arange(len(batch.labels), device=batch.labels.device).split([self.count, twins])
        self.parts = Decoding(model, batch.rows(own)), Decoding(guide, batch.rows(others))
        self.state = GuidedState(*(part.state for part in self.parts))

    @property
    def decided_rank(self) -> Tensor:
        """The channels that were entered last: int64 ``[B + G]``."""
        return torch.cat([part.decided_rank for part in self.parts])

    def channel(self) -> Tensor:
        """Return the logits of the next channel, ``[B + G, K]``."""
        return torch.cat([part.channel() for part in self.parts])

    def enter(self, rank: Tensor) -> None:
        """Enter the chosen channels, int64 ``[B + G]``."""
        for part, ranks in zip(self.parts, self._split(rank), strict=True):
            part.enter(ranks)

    def position(self, rank: Tensor, *, entered: bool = False) -> Tensor:
        """Return the logits of the position in the channels chosen (int64 ``[B + G]``), ``[B + G, K]``."""
        ranks = self._split(rank)
        return torch.cat([part.position(r, entered=entered) for part, r in zip(self.parts, ranks, strict=True)])

    def value(self, position: Tensor) -> Tensor:
        """Return the logits of the value at the positions chosen (int64 ``[B + G]``), ``[B + G, K]``."""
        positions = self._split(position)
        return torch.cat([part.value(p) for part, p in zip(self.parts, positions, strict=True)])

    def settle(self, value: Tensor) -> None:
        """Record the triple as decided (values, int64 ``[B + G]``) and go on to the next."""
        for part, values in zip(self.parts, self._split(value), strict=True):
            part.settle(values)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[: self.count], x[self.count :]
