"""The distribution of a texture coefficient's value: hazards of its magnitude, then its sign.

Shapes: V values of the alphabet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.model.legality import NEVER, ValueAlphabet

MAGNITUDES = 8
"""Magnitudes with a hazard of their own; beyond, the hazard is constant."""

VALUE_OUTPUTS = MAGNITUDES + 2
"""Hazards of the magnitudes; the sign's log-odds, and their slope over the log magnitude."""


def value_log_p(scores: Tensor, limit: Tensor, value: Tensor) -> Tensor:
    """Return log p(value), fp32 ``[…]``: scores fp32 ``[…, MAGNITUDES + 2]``; limit and value (not 0) int64 ``[…]``."""
    hazards = scores[..., :MAGNITUDES]
    magnitude = value.abs()
    capped = magnitude.clamp(1, MAGNITUDES)
    passed = F.softplus(hazards)
    before = F.pad(passed.cumsum(-1), (1, 0)).gather(-1, capped[..., None] - 1)[..., 0]
    before = before + (magnitude - MAGNITUDES).clamp_min(0) * passed[..., -1]
    here = hazards.gather(-1, capped[..., None] - 1)[..., 0]
    log_p = -before + torch.where(magnitude < limit, F.logsigmoid(here), 0.0)
    odds = scores[..., MAGNITUDES] + scores[..., MAGNITUDES + 1] * magnitude.float().log()
    sign = F.logsigmoid(torch.where(value > 0, odds, -odds))
    # A file holds −1,024 … 1,023: the sign of 1,024 is not free.
    return log_p + torch.where(magnitude <= 1023, sign, 0.0)


def value_logits(scores: Tensor, limit: Tensor, alphabet: ValueAlphabet) -> Tensor:
    """Return log p of every value of the alphabet, `NEVER` where it is impossible.

    Args:
        scores: fp32 ``[…, MAGNITUDES + 2]``.
        limit: int64 ``[…]``, largest magnitude.
        alphabet: the V values.

    Returns:
        fp32 ``[…, V]``.
    """
    magnitude = torch.arange(1, alphabet.largest + 1, device=scores.device)
    passed = F.softplus(scores[..., :MAGNITUDES])
    capped = magnitude.clamp(max=MAGNITUDES) - 1
    before = F.pad(passed.cumsum(-1), (1, 0))[..., capped]
    before = before + (magnitude - MAGNITUDES).clamp_min(0) * passed[..., -1:]
    last = magnitude == limit[..., None]
    log_p = torch.where(last, 0.0, F.logsigmoid(scores[..., capped])) - before
    log_p = log_p.masked_fill(magnitude > limit[..., None], NEVER)
    odds = scores[..., MAGNITUDES, None] + scores[..., MAGNITUDES + 1, None] * magnitude.float().log()
    free = magnitude <= 1023
    negative = log_p + torch.where(free, F.logsigmoid(-odds), 0.0)
    positive = (log_p + F.logsigmoid(odds)).masked_fill(~free, NEVER)
    return torch.cat([negative.flip(-1), positive], dim=-1).clamp_min(NEVER)
