"""Drawing from distributions: one uniform number in, one outcome out.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dctransformer.model.legality import NEVER


def draw_dtype(device: torch.device) -> torch.dtype:
    """The precision in which probabilities are accumulated: fp64, but fp32 on devices that have no fp64 (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def uniform_on(noise: np.ndarray, device: torch.device) -> Tensor:
    """Move uniform numbers to a device, in its `draw_dtype` and still below 1.

    Args:
        noise: fp64 in [0, 1), of any shape.
        device: of the model.
    """
    dtype = draw_dtype(device)
    return torch.from_numpy(noise).to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2).to(device)


def overflow_error(precision: str, guided: bool) -> ValueError:
    """The error for predictions that are NaN, infinite, or so large that legal outcomes look like impossible ones."""
    hint = "try --precision fp32" if precision == "bf16" else "use other weights"
    return ValueError(
        "the model's predictions are not finite, or far too large (its weights are damaged, or overflow here"
        f"{' or guidance' if guided else ''}); {hint}"
    )


class PredictionCheck:
    """Keeps on the device whether all predictions so far were sound; the host reads it when it reads anyway."""

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


def pick(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Draw a class for each row by inverting the cumulative distribution.

    Args:
        logits: fp32 ``[B, K]``, `dctransformer.model.legality.NEVER` where impossible.
        uniform: ``[B]`` in [0, 1).
        temperature: divides the logits; 0 takes the likeliest class.
        top_p: keep the likeliest classes that make up this probability.

    Returns:
        int64 ``[B]``; never a class of probability 0.
    """
    if temperature == 0:
        return logits.argmax(-1)
    impossible = logits <= NEVER / 2
    p = (logits.to(draw_dtype(logits.device)) / temperature).masked_fill(impossible, -torch.inf).softmax(-1)
    if top_p < 1:
        high, index = p.sort(-1, descending=True)
        # A class stays if the likelier ones do not already make up top_p: the first always stays.
        high = torch.where(high.cumsum(-1) - high < top_p, high, 0.0)
        p = torch.zeros_like(p).scatter(-1, index, high)
    cumulative = p.cumsum(-1)
    total = cumulative[:, -1]
    # Rounding could lift the draw to the total, beyond the last class that is possible.
    aim = torch.minimum(uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative <= aim[:, None]).sum(-1).clamp(max=p.shape[-1] - 1)


def mix(logits: list[Tensor], guidance: float) -> Tensor:
    """Scores extrapolated from those without a label: ``plain + guidance · (labelled − plain)``.

    Args:
        logits: the labelled scores and, with guidance, those without a label; of one shape.
        guidance: 1 for the labelled scores as they are.
    """
    if len(logits) == 1:
        return logits[0]
    labelled, plain = logits
    return plain + guidance * (labelled - plain)
