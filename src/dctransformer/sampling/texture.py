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
from dctransformer.sampling.drawing import Draws, PredictionCheck, draw_dtype, overflow_error, pick, uniform_on


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
    model: DCTransformer,
    picture: Picture,
    keys: list[NoiseKey],
    configs: list[SampleConfig],
    *,
    precision: str = "fp32",
) -> tuple[Tensor, list[int]]:
    """Generate the texture of some pictures.

    Args:
        model: with texture, in eval mode, on the pictures' device.
        picture: B pictures; their structure and what else is given are settled. It is not changed.
        keys: what decides the noise of each.
        configs: temperature, top-p and guidance of each.
        precision: that the model computes in, for the error's advice.

    Returns:
        int16 ``[B, N, 6, 64]``, the pictures with texture, and how many channels were decided on in each.

    Raises:
        ValueError: a prediction is not finite, or far too large.
    """
    grid, device, count = picture.grid, picture.labels.device, len(keys)
    configs = [config.of_texture() for config in configs]
    coefficients = F.pad(picture.coefficients.flatten(1), (0, 1))  # one more, for places that don't exist
    before, decided = [model.config.texture_rank - 1] * count, [0] * count
    active = list(range(count))
    check = PredictionCheck(device)
    while active:
        draws = Draws.of([configs[i] for i in active], device, guided=model.config.num_labels > 0)
        view = _view(model, picture, coefficients, active, draws)
        uniform = uniform_on(np.array([keys[i].which(before[i]) for i in active]), device)
        rates = model.texture.use_rates(view)
        check.see(rates, limit=torch.inf)  # before they are mixed, which would hide NaN
        following = next_channel(
            _mixed_rates(rates, draws), torch.tensor([before[i] for i in active]).to(device), uniform
        )
        *ranks, sound = torch.cat([following, check.sound[None]]).tolist()
        if not sound:
            raise overflow_error(precision, len(draws.twins) > 0)
        going = [(i, rank) for i, rank in zip(active, ranks, strict=True) if rank < order.STOP]
        if len(going) < len(active):
            active = [i for i, _ in going]
            if not active:
                break
            draws = Draws.of([configs[i] for i in active], device, guided=model.config.num_labels > 0)
            view = _view(model, picture, coefficients, active, draws)
        rank = torch.tensor([rank for _, rank in going]).to(device)
        noise = np.stack([keys[i].places(rank, grid.positions) for i, rank in going])
        values, opened = _draw_channels(model, view, rank, uniform_on(noise, device), draws, check)
        rows, slots = torch.tensor(active).to(device), rank_slots(grid, device)[rank]
        drawn = torch.where(opened, values.to(torch.int16), coefficients[rows].gather(1, slots))
        coefficients[rows] = coefficients[rows].scatter(1, slots, drawn)
        for i, chosen in going:
            before[i] = chosen
            decided[i] += 1
    return coefficients[:, :-1].view_as(picture.coefficients), decided


def _view(model: DCTransformer, picture: Picture, coefficients: Tensor, active: list[int], draws: Draws) -> Picture:
    """The pictures that are not finished, and after them their twins without a label."""
    rows = draws.both(torch.tensor(active).to(coefficients.device))
    now = coefficients[rows, :-1].view(len(rows), *picture.coefficients.shape[1:])
    labels = picture.labels[rows]
    labels[len(active) :] = model.config.null_label
    return Picture(now, picture.given[rows], picture.hidden[rows], labels, picture.grid)


def _mixed_rates(rates: Tensor, draws: Draws) -> Tensor:
    """Rates of the channels in use, with guidance extrapolated from the twins' without a label: fp32 ``[B, C]``."""
    if not len(draws.twins):
        return rates
    labelled = rates[: len(draws.greedy)]
    # Log-odds of 1 − exp(−λ) against exp(−λ).
    odds = rates.clamp(max=60.0).clamp_min(1e-30).expm1().log().clamp(-60, 60)
    mixed = torch.where(labelled > 0, F.softplus(draws.mix(odds)), 0.0)
    return labelled.index_copy(0, draws.twins, mixed[draws.twins])


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
    model: DCTransformer, view: Picture, rank: Tensor, noise: Tensor, draws: Draws, check: PredictionCheck
) -> tuple[Tensor, Tensor]:
    """Draw what channels in use hold.

    Args:
        model: with texture.
        view: the B pictures, and after them their twins.
        rank: int64 ``[B]``, a channel of each.
        noise: ``[B, 3, P]`` in [0, 1), by position.
        draws: temperature, top-p and guidance of each.
        check: sees all predictions.

    Returns:
        fp32 ``[B, P]``, the channels' values: what is given, what is drawn, and 0 where nothing is; and bool
        ``[B, P]``, places that were open.
    """
    texture, grid, count = model.texture, view.grid, len(rank)
    channels = texture.begin(view, torch.arange(len(view.labels), device=rank.device), draws.both(rank))
    for colour in (0, 1):
        scores, where, opened = texture.occupancy_logits(channels, colour, grid)
        must = texture.must_be_occupied(channels, colour, opened)[:count]
        uniform = noise.gather(2, where[:count, None].expand(-1, 3, -1))
        logits = draws.mix(scores)
        check.see(logits, opened[:count])
        holds = draw_occupancy(logits, opened[:count], must, uniform[:, 0], uniform[:, 1, 0], draws)
        channels = settle(channels, where, opened, occupied=draws.both(holds))
    for colour in (0, 1):
        scores, where, due = texture.value_scores(channels, colour, grid)
        uniform = noise[:, 2].gather(1, where[:count])
        values = _draw_values(model, scores, draws.both(rank), due, uniform, draws, check)
        channels = settle(channels, where, due, values=draws.both(values))
    return channels.values[:count], channels.opened[:count]


def draw_occupancy(
    logits: Tensor, opened: Tensor, must: Tensor, uniform: Tensor, first: Tensor, draws: Draws
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
        draws: the temperature of each row, which divides the log-odds; 0 takes the likelier outcome (and the likeliest
            place where one must be).

    Returns:
        bool ``[B, H]``.
    """
    index = torch.arange(logits.shape[1], device=logits.device)
    dtype, scores = draw_dtype(logits.device), logits
    logits = logits.to(dtype) / draws.temperature[:, None]
    free = opened & (uniform.to(dtype) < logits.sigmoid())
    passed = torch.where(opened, F.softplus(logits), 0.0).cumsum(-1)
    # p(first occupied place is at or before h | one is) = (1 − exp(−passed_h)) / (1 − exp(−passed_H)).
    aim = -torch.log1p(first.to(dtype)[:, None] * torch.expm1(-passed[:, -1:]))
    last = torch.where(opened, index, 0).amax(-1, keepdim=True)
    begin = torch.minimum((passed <= aim).sum(-1, keepdim=True), last)  # rounding could lift it beyond the last
    held = (index == begin) | (free & (index > begin))
    drawn = torch.where(must[:, None], held & opened, free)
    if draws.any_greedy:
        best = scores.masked_fill(~opened, -torch.inf).argmax(-1)
        likeliest = opened & ((scores > 0) | (must[:, None] & (index == best[:, None])))
        drawn = torch.where(draws.greedy[:, None], likeliest, drawn)
    return drawn


def _draw_values(
    model: DCTransformer,
    scores: Tensor,
    rank: Tensor,
    due: Tensor,
    uniform: Tensor,
    draws: Draws,
    check: PredictionCheck,
) -> Tensor:
    """Draw values at the places where they are due.

    Args:
        model: with texture.
        scores: fp32 ``[B + G, H, …]``, of the pictures and of their twins.
        rank: int64 ``[B + G]``, the channels.
        due: bool ``[B + G, H]``.
        uniform: ``[B, H]`` in [0, 1).
        draws: temperature, top-p and guidance of each picture.
        check: sees all predictions.

    Returns:
        fp32 ``[B, H]``; 0 where no value is due.
    """
    limit, pictures_due = model.limits[rank][:, None].expand_as(due), due[: len(uniform)]
    check.see(scores, due)
    if due.device.type == "cpu":  # where finding the places costs nothing, only they are computed
        logits = model.texture.value_logits(scores[due], limit[due], model.alphabet)
        draws, uniform = draws.of_elements(pictures_due.nonzero()[:, 0]), uniform[pictures_due]
        logits = draws.mix(logits)
        check.see(logits.amax(-1))
    else:
        logits = draws.mix(model.texture.value_logits(scores, limit, model.alphabet))
        check.see(logits.amax(-1), pictures_due)
        draws = draws.repeated(uniform.shape[1])
    values = model.alphabet.decode(pick(logits.flatten(0, -2), uniform.flatten(), draws)).float()
    if due.device.type == "cpu":
        drawn = uniform.new_zeros(pictures_due.shape, dtype=torch.float32)
        drawn[pictures_due] = values
        return drawn
    return torch.where(pictures_due, values.view_as(pictures_due), 0.0)
