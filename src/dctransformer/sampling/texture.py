"""Sampling of texture: whole channels of a batch of pictures, by the distributions of `model.texture`.

Each turn decides on one channel of every picture that is not finished; pictures may be at different channels. The host
reads which channels they are once per turn, and nothing inside a turn.

Shapes: B pictures, P positions, H = P / 2 places of one checkerboard colour, C = 192 ranks, V values.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import rank_slots
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.texture_state import Picture, settle
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.drawing import PredictionCheck, draw_dtype, mix, overflow_error, pick, uniform_on


@dataclasses.dataclass(frozen=True)
class NoiseKey:
    """What decides the noise of a picture: the seed, its number and its tile."""

    seed: int
    index: int
    tile: int

    def which(self, before: int) -> float:
        """The uniform number that decides which channel follows the rank ``before`` (−1 for none)."""
        return float(np.random.default_rng([self.seed, self.index, self.tile, before + 1, 2]).random())

    def places(self, rank: int, positions: int) -> np.ndarray:
        """Uniform numbers for the places of a channel, fp64 ``[3, P]``: occupancy, first occupied place, value."""
        return np.random.default_rng([self.seed, self.index, self.tile, rank, 1]).random((3, positions))


def fill_texture(
    model: DCTransformer, picture: Picture, keys: list[NoiseKey], config: SampleConfig, *, precision: str = "fp32"
) -> tuple[Tensor, list[int]]:
    """Generate the texture of some pictures.

    Args:
        model: with texture, in eval mode, on the pictures' device.
        picture: B pictures; their structure and what else is given are settled. It is not changed.
        keys: what decides the noise of each.
        config: temperature, top-p and guidance.
        precision: that the model computes in, for the error's advice.

    Returns:
        int16 ``[B, N, 6, 64]``, the pictures with texture, and how many channels were decided on in each.

    Raises:
        ValueError: a prediction is not finite, or far too large.
    """
    grid, device, count = picture.grid, picture.labels.device, len(keys)
    guided = config.guidance != 1 and model.config.num_labels > 0
    coefficients = F.pad(picture.coefficients.flatten(1), (0, 1))  # one more, for places that don't exist
    before, decided = [model.config.texture_rank - 1] * count, [0] * count
    active = list(range(count))
    check = PredictionCheck(device)
    while active:
        views = _views(model, picture, coefficients, active, guided)
        uniform = uniform_on(np.array([keys[i].which(before[i]) for i in active]), device)
        rates = [model.texture.use_rates(view) for view in views]
        for rate in rates:  # before they are mixed, which would hide NaN
            check.see(rate, limit=torch.inf)
        following = next_channel(
            _mixed_rates(rates, config.guidance), torch.tensor([before[i] for i in active]).to(device), uniform
        )
        *ranks, sound = torch.cat([following, check.sound[None]]).tolist()
        if not sound:
            raise overflow_error(precision, guided)
        going = [(i, rank) for i, rank in zip(active, ranks, strict=True) if rank < order.STOP]
        if len(going) < len(active):
            active = [i for i, _ in going]
            if not active:
                break
            views = _views(model, picture, coefficients, active, guided)
        rank = torch.tensor([rank for _, rank in going]).to(device)
        noise = np.stack([keys[i].places(rank, grid.positions) for i, rank in going])
        values, opened = _draw_channels(model, views, rank, uniform_on(noise, device), config, check)
        rows, slots = torch.tensor(active).to(device), rank_slots(grid, device)[rank]
        drawn = torch.where(opened, values.to(torch.int16), coefficients[rows].gather(1, slots))
        coefficients[rows] = coefficients[rows].scatter(1, slots, drawn)
        for i, chosen in going:
            before[i] = chosen
            decided[i] += 1
    return coefficients[:, :-1].view_as(picture.coefficients), decided


def _views(
    model: DCTransformer, picture: Picture, coefficients: Tensor, active: list[int], guided: bool
) -> list[Picture]:
    """The pictures still at work, with guidance a second time without labels."""
    rows = torch.tensor(active).to(coefficients.device)
    now = coefficients[rows, :-1].view(len(active), *picture.coefficients.shape[1:])
    view = Picture(now, picture.given[rows], picture.hidden[rows], picture.labels[rows], picture.grid)
    if not guided:
        return [view]
    return [view, dataclasses.replace(view, labels=torch.full_like(view.labels, model.config.null_label))]


def _mixed_rates(rates: list[Tensor], guidance: float) -> Tensor:
    """Rates of the channels in use, with guidance extrapolated from those without a label: fp32 ``[B, C]``."""
    if len(rates) == 1:
        return rates[0]
    # Log-odds of 1 − exp(−λ) against exp(−λ).
    odds = [rate.clamp_min(1e-30).expm1().log().clamp(-60, 60) for rate in (r.clamp(max=60.0) for r in rates)]
    return torch.where(rates[0] > 0, F.softplus(mix(odds, guidance)), 0.0)


def next_channel(rates: Tensor, before: Tensor, uniform: Tensor) -> Tensor:
    """The first channel in use after another, by inverting the cumulative distribution.

    Args:
        rates: fp32 ``[B, C]``, λ of p(in use) = 1 − exp(−λ).
        before: int64 ``[B]``, the ranks to start after.
        uniform: ``[B]`` in [0, 1).

    Returns:
        int64 ``[B]``; `order.STOP` where no other channel is in use.
    """
    dtype = draw_dtype(rates.device)
    later = torch.arange(rates.shape[1], device=rates.device) > before[:, None]
    passed = torch.where(later, rates, 0.0).to(dtype).cumsum(-1)
    # p(none up to c is in use) = exp(−passed).
    return (passed <= -torch.log1p(-uniform.to(dtype))[:, None]).sum(-1)


def _draw_channels(
    model: DCTransformer,
    views: list[Picture],
    rank: Tensor,
    noise: Tensor,
    config: SampleConfig,
    check: PredictionCheck,
) -> tuple[Tensor, Tensor]:
    """Draw what channels in use hold.

    Args:
        model: with texture.
        views: the B pictures; with guidance, a second time without labels.
        rank: int64 ``[B]``, a channel of each.
        noise: ``[B, 3, P]`` in [0, 1), by position.
        config: temperature, top-p and guidance.
        check: sees all predictions.

    Returns:
        fp32 ``[B, P]``, the channels' values: what is given, what is drawn, and 0 where nothing is; and bool
        ``[B, P]``, places that were open.
    """
    texture, grid = model.texture, views[0].grid
    row = torch.arange(len(rank), device=rank.device)
    channels = [texture.begin(view, row, rank) for view in views]
    for colour in (0, 1):
        found = [texture.occupancy_logits(c, colour, grid) for c in channels]
        _, where, opened = found[0]
        must = texture.must_be_occupied(channels[0], colour, opened)
        uniform = noise.gather(2, where[:, None].expand(-1, 3, -1))
        logits = mix([logits for logits, *_ in found], config.guidance)
        check.see(logits, opened)
        holds = draw_occupancy(logits, opened, must, uniform[:, 0], uniform[:, 1, 0], config.temperature)
        channels = [settle(c, where, opened, occupied=holds) for c in channels]
    for colour in (0, 1):
        found = [texture.value_scores(c, colour, grid) for c in channels]
        _, where, due = found[0]
        uniform = noise[:, 2].gather(1, where)
        values = _draw_values(model, [scores for scores, *_ in found], rank, due, uniform, config, check)
        channels = [settle(c, where, due, values=values) for c in channels]
    return channels[0].values, channels[0].opened


def draw_occupancy(
    logits: Tensor, opened: Tensor, must: Tensor, uniform: Tensor, first: Tensor, temperature: float = 1.0
) -> Tensor:
    """Draw independent Bernoullis, in some rows given that they are not all 0.

    A row that must hold something draws its first occupied place, whose distribution is known in closed form, and
    then the places after it, which are independent of that.

    Args:
        logits: fp32 ``[B, H]`` log-odds.
        opened: bool ``[B, H]``, places that may be occupied.
        must: bool ``[B]``, rows that must hold something.
        uniform: ``[B, H]`` in [0, 1), one per place.
        first: ``[B]`` in [0, 1), decides on the first occupied place where one must be.
        temperature: divides the log-odds; 0 takes the likelier outcome (and the likeliest place where one must be).

    Returns:
        bool ``[B, H]``.
    """
    index = torch.arange(logits.shape[1], device=logits.device)
    if temperature == 0:
        best = logits.masked_fill(~opened, -torch.inf).argmax(-1)
        return opened & ((logits > 0) | (must[:, None] & (index == best[:, None])))
    dtype = draw_dtype(logits.device)
    logits = logits.to(dtype) / temperature
    free = opened & (uniform.to(dtype) < logits.sigmoid())
    passed = torch.where(opened, F.softplus(logits), 0.0).cumsum(-1)
    # p(first occupied place is at or before h | one is) = (1 − exp(−passed_h)) / (1 − exp(−passed_H)).
    aim = -torch.log1p(first.to(dtype)[:, None] * torch.expm1(-passed[:, -1:]))
    last = torch.where(opened, index, 0).amax(-1, keepdim=True)
    begin = torch.minimum((passed <= aim).sum(-1, keepdim=True), last)  # rounding could lift it beyond the last
    held = (index == begin) | (free & (index > begin))
    return torch.where(must[:, None], held & opened, free)


def _draw_values(
    model: DCTransformer,
    scores: list[Tensor],
    rank: Tensor,
    due: Tensor,
    uniform: Tensor,
    config: SampleConfig,
    check: PredictionCheck,
) -> Tensor:
    """Values at the places where they are due (bool ``[B, H]``); 0 elsewhere: fp32 ``[B, H]``."""
    limit = model.limits[rank][:, None].expand_as(due)
    drawn = uniform.new_zeros(uniform.shape, dtype=torch.float32)
    for score in scores:
        check.see(score, due)
    if due.device.type == "cpu":  # where finding the places costs nothing, only they are computed
        scores, limit, uniform = [s[due] for s in scores], limit[due], uniform[due]
    logits = mix([model.texture.value_logits(s, limit, model.alphabet) for s in scores], config.guidance)
    check.see(logits.amax(-1), due if logits.ndim > 2 else None)
    chosen = pick(logits.flatten(0, -2), uniform.flatten(), config.temperature, config.top_p)
    values = model.alphabet.decode(chosen).float()
    if due.device.type == "cpu":
        drawn[due] = values
        return drawn
    return torch.where(due, values.view_as(drawn), 0.0)
