"""Drawing from distributions: one uniform number in, one outcome out.

Shapes: B rows, K classes, G rows with guidance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dctransformer.model.legality import NEVER
from dctransformer.sampling.config import SampleConfig


def draw_dtype(device: torch.device) -> torch.dtype:
    """Return the precision in which probabilities are accumulated: fp64, or fp32 on devices without it (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def uniform_on(noise: np.ndarray, device: torch.device) -> Tensor:
    """Move uniform numbers to a device, in its `draw_dtype` and still below 1.

    Args:
        noise: fp64 in [0, 1), of any shape.
        device: of the model.
    """
    dtype = draw_dtype(device)
    return torch.from_numpy(noise).to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2).to(device, non_blocking=True)


def overflow_error(precision: str, guided: bool) -> ValueError:
    """Return the error for predictions that are NaN, infinite, or so large that legal outcomes look impossible."""
    hint = "try --precision fp32" if precision == "bf16" else "use other weights"
    return ValueError(
        "the model's predictions are not finite, or far too large (its weights are damaged, or overflow here"
        f"{' or guidance' if guided else ''}); {hint}"
    )


class PredictionCheck:
    """A flag on the device: whether all predictions so far were sound; the host reads it when it reads anyway."""

    def __init__(self, device: torch.device):
        self.sound = torch.ones((), dtype=torch.bool, device=device)

    def see(self, predictions: Tensor, where: Tensor | None = None, limit: float = -NEVER / 2) -> None:
        """Check some predictions.

        Args:
            predictions: log-odds, log-probabilities or rates, of any shape.
            where: bool, which of them are used (their leading dimensions); None for all.
            limit: what their magnitudes must be below; NaN and infinity never are.
        """
        within = predictions.abs() < limit
        if where is not None:
            within = within | ~where.view(*where.shape, *[1] * (within.ndim - where.ndim))
        self.sound &= within.all()


@dataclasses.dataclass
class Draws:
    """How the outcomes of a batch are drawn; each row has settings of its own.

    Attributes:
        temperature: ``[B]`` in `draw_dtype`; 1 where the likeliest outcome is taken.
        top_p: ``[B]`` in `draw_dtype`; infinite where nothing is left out.
        min_p: ``[B]`` in `draw_dtype`; 0 where nothing is left out.
        greedy: bool ``[B]``, rows that take the likeliest outcome.
        guidance: fp32 ``[B]``.
        twins: int64 ``[G]`` in ascending order, the rows that are computed a second time, without their label or by a
            guide.
        any_cut: whether any row has a top-p below 1.
        any_min_p: whether any row has a min-p above 0.
        any_greedy: whether any row takes the likeliest outcome.
    """

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    greedy: Tensor
    guidance: Tensor
    twins: Tensor
    any_cut: bool
    any_min_p: bool
    any_greedy: bool

    @classmethod
    def of(
        cls, configs: Sequence[SampleConfig], device: torch.device, *, guided: bool = True, all_twins: bool = False
    ) -> Draws:
        """Collect the settings of a batch.

        Args:
            configs: of each row.
            device: of the model.
            guided: whether there is what guidance needs, labels or a guide.
            all_twins: where any row has guidance, compute all rows twice, so that shapes don't depend on the rows.
        """
        dtype = draw_dtype(device)
        guidance = [c.guidance if guided else 1.0 for c in configs]
        twins = [i for i, strength in enumerate(guidance) if strength != 1 or (all_twins and set(guidance) != {1})]
        tensors = [
            torch.tensor([c.temperature or 1.0 for c in configs], dtype=dtype),
            torch.tensor([c.top_p if c.top_p < 1 else torch.inf for c in configs], dtype=dtype),
            torch.tensor([c.min_p for c in configs], dtype=dtype),
            torch.tensor([c.temperature == 0 for c in configs]),
            torch.tensor(guidance, dtype=torch.float32),
            torch.tensor(twins, dtype=torch.int64),
        ]
        return cls(
            *(t.to(device, non_blocking=True) for t in tensors), any_cut=any(c.top_p < 1 for c in configs),
            any_min_p=any(c.min_p > 0 for c in configs), any_greedy=any(c.temperature == 0 for c in configs),
        )  # fmt: skip

    @property
    def kind(self) -> tuple[bool, bool, bool, bool]:
        """What decides on the operations of a draw: whether any row has a top-p, a min-p, is greedy, is guided."""
        return self.any_cut, self.any_min_p, self.any_greedy, len(self.twins) > 0

    def copy_(self, other: Draws) -> None:
        """Copy the settings of another batch of the same size and kind, keeping the tensors."""
        for name in ("temperature", "top_p", "min_p", "greedy", "guidance", "twins"):
            getattr(self, name).copy_(getattr(other, name))

    def repeated(self, times: int) -> Draws:
        """Repeat each row's settings ``times`` times (without twins: their logits are mixed already)."""
        return self._each(lambda x: x.repeat_interleave(times), self.twins[:0])

    def of_elements(self, row: Tensor) -> Draws:
        """Select the settings of elements in the rows ``row``, int64 ``[n]`` in ascending order; on a CPU only."""
        twins = (torch.bincount(self.twins, minlength=len(self.greedy))[row] > 0).nonzero()[:, 0]
        return self._each(lambda x: x[row], twins)

    def _each(self, change: Callable[[Tensor], Tensor], twins: Tensor) -> Draws:
        settings = map(change, (self.temperature, self.top_p, self.min_p, self.greedy, self.guidance))
        kinds = {"any_cut": self.any_cut, "any_min_p": self.any_min_p, "any_greedy": self.any_greedy}
        return Draws(*settings, twins=twins, **kinds)

    def both(self, x: Tensor) -> Tensor:
        """Append the twins to the rows: ``[B, …]`` becomes ``[B + G, …]``."""
        return torch.cat([x, x[self.twins]]) if len(self.twins) else x

    def mix(self, scores: Tensor) -> Tensor:
        """Extrapolate from the twins' scores: ``plain + guidance · (labelled − plain)``.

        Args:
            scores: fp32 ``[B + G, …]``, those of the rows and then those of their twins.

        Returns:
            ``[B, …]``; rows without a twin are as they were.
        """
        if not len(self.twins):
            return scores
        labelled, plain = scores[: len(self.greedy)], scores[len(self.greedy) :]
        guidance = self.guidance[self.twins].view(-1, *[1] * (scores.ndim - 1))
        return labelled.index_copy(0, self.twins, plain + guidance * (labelled[self.twins] - plain))


def pick(logits: Tensor, uniform: Tensor, draws: Draws | None = None) -> Tensor:
    """Draw a class for each row by inverting the cumulative distribution.

    Args:
        logits: fp32 ``[B, K]``, `dctransformer.model.legality.NEVER` where impossible.
        uniform: ``[B]`` in [0, 1).
        draws: temperature and top-p of each row; None for the distribution as it is. Temperature divides the logits,
            0 takes the likeliest class; top-p keeps the likeliest classes that make up this probability, min-p those
            that are at least this part as likely as the likeliest.

    Returns:
        int64 ``[B]``; never a class of probability 0.
    """
    impossible = logits <= NEVER / 2
    p = logits.to(draw_dtype(logits.device))
    if draws is not None:
        p = p / draws.temperature[:, None]
    p = p.masked_fill(impossible, -torch.inf).softmax(-1)
    if draws is not None and draws.any_min_p:
        p = torch.where(p < draws.min_p[:, None] * p.amax(-1, keepdim=True), 0.0, p)
    if draws is not None and draws.any_cut:
        high, index = p.sort(-1, descending=True)
        # A class stays if the likelier ones do not already make up top_p: the first always stays.
        high = torch.where(high.cumsum(-1) - high < draws.top_p[:, None], high, 0.0)
        p = torch.zeros_like(p).scatter(-1, index, high)
    cumulative = p.cumsum(-1)
    total = cumulative[:, -1]
    # Rounding could lift the draw to the total, beyond the last class that is possible.
    aim = torch.minimum(uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = (cumulative <= aim[:, None]).sum(-1).clamp(max=p.shape[-1] - 1)
    if draws is not None and draws.any_greedy:
        drawn = torch.where(draws.greedy, logits.argmax(-1), drawn)
    return drawn
