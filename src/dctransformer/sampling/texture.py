"""Sampling of texture: whole channels of a batch of pictures, by the distributions of `model.texture`.

Each turn decides on one channel of every picture that is not finished; pictures may be at different channels. On a CPU
the host reads which channels they are once per turn; on other devices it reads once in `TURNS_PER_READ` turns whether
pictures are finished, and nothing else, unless there are so many places that their noise would fill the memory.

Shapes: B pictures, P positions, H = P / 2 places of one checkerboard colour, C = 192 ranks, V values.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.grid import Grid, rank_slots
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.texture_state import Channels, TextureState, settle
from dctransformer.model.texture_values import value_logits
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.drawing import Draws, PredictionCheck, draw_dtype, overflow_error, pick, uniform_on
from dctransformer.sampling.running_texture import LARGE, RunningMix, RunningRates

TURNS_PER_READ = 8
"""Turns between two reads of which pictures are finished, where a read makes the host wait: until then they idle."""

NOISE_BYTES = 1 << 26
"""Most memory for the noise of all channels. Beyond it a turn takes a device so long that a read costs little."""

WINDOW = 32
"""Channels whose rates are computed together in search of the next one in use, where a read costs nothing."""


@dataclasses.dataclass(frozen=True)
class NoiseKey:
    """Key of a picture's noise: the seed, its number and its tile."""

    seed: int
    index: int
    tile: int

    def which(self, before: int) -> float:
        """Return the uniform number that decides which channel follows the rank ``before`` (−1 for none)."""
        return float(np.random.default_rng([self.seed, self.index, self.tile, before + 1, 2]).random())

    def places(self, rank: int, positions: int) -> np.ndarray:
        """Return the uniform numbers of a channel's places, fp64 ``[3, P]``: occupancy, first occupied place, value."""
        return np.random.default_rng([self.seed, self.index, self.tile, rank, 1]).random((3, positions))


class _Noise:
    """The uniform numbers of some pictures, by channel: on a CPU drawn when due, elsewhere beforehand if they fit.

    Attributes:
        when_due: whether those of places are drawn when they are due, so that the host must know the channels.
    """

    def __init__(self, keys: list[NoiseKey], first: int, positions: int, device: torch.device):
        self.keys, self.first, self.positions, self.device = keys, first, positions, device
        before, ranks = range(first - 1, order.NUM_CHANNELS), range(first, order.NUM_CHANNELS)
        size = len(keys) * len(ranks) * 3 * positions * draw_dtype(device).itemsize
        self.when_due = device.type == "cpu" or size > NOISE_BYTES
        if device.type != "cpu":
            self.all_which = self._on_device([[key.which(rank) for rank in before] for key in keys])
        if not self.when_due:
            self.all_places = self._on_device([[key.places(rank, positions) for rank in ranks] for key in keys])

    def _on_device(self, noise: list) -> Tensor:
        return uniform_on(np.array(noise), self.device)

    def which(self, rows: Tensor, before: Tensor) -> Tensor:
        """See `NoiseKey.which`; int64 ``[B]`` each to ``[B]``."""
        if self.device.type == "cpu":
            pairs = zip(rows.tolist(), before.tolist(), strict=True)
            return self._on_device([self.keys[row].which(rank) for row, rank in pairs])
        return self.all_which[rows, (before - self.first + 1).clamp(0, self.all_which.shape[1] - 1)]

    def places(self, rows: Tensor, rank: Tensor, known: list[tuple[int, int]]) -> Tensor:
        """See `NoiseKey.places`; int64 ``[B]`` each to ``[B, 3, P]``; ``known`` to the host if drawn when due."""
        if self.when_due:
            return self._on_device([self.keys[row].places(rank, self.positions) for row, rank in known])
        return self.all_places[rows, rank - self.first]


def fill_texture(
    model: DCTransformer,
    picture: TextureState,
    keys: list[NoiseKey],
    configs: list[SampleConfig],
    *,
    precision: str = "fp32",
) -> tuple[Tensor, list[int]]:
    """Generate the texture of some pictures.

    Args:
        model: with texture, in eval mode, on the pictures' device.
        picture: B pictures; their structure and what else is given are settled. It is not changed.
        keys: of the noise of each picture.
        configs: temperature, top-p and guidance of each.
        precision: of the model's arithmetic, for the error message.

    Returns:
        int16 ``[B, N, 6, 64]``, the pictures with texture, and how many channels were decided on in each.

    Raises:
        ValueError: a prediction is not finite, or far too large.
    """
    grid, device, first = picture.grid, picture.labels.device, model.config.texture_rank
    configs, guided = [config.of_texture() for config in configs], model.config.num_labels > 0
    coefficients = F.pad(picture.coefficients.flatten(1), (0, 1))  # one more, for places that don't exist
    noise = _Noise(keys, first, grid.positions, device)
    before = torch.full((len(keys),), first - 1, device=device)
    decided = torch.zeros_like(before)
    slots = rank_slots(grid, device)
    active, check = list(range(len(keys))), PredictionCheck(device)
    running_rates = RunningRates(model.texture, picture)
    running_mix = RunningMix(model.texture, picture) if device.type == "cpu" and grid.positions >= LARGE else None
    rows, draws = torch.arange(len(keys), device=device), Draws.of(configs, device, guided=guided)
    for turn in itertools.count(1):
        following = _following(running_rates, model, rows, before[rows], noise.which(rows, before[rows]), draws, check)
        known = []
        if noise.when_due or turn % TURNS_PER_READ == 0:
            *ranks, sound = torch.cat([following, check.sound[None]]).tolist()
            if not sound:
                raise overflow_error(precision, len(draws.twins) > 0)
            staying = [k for k, rank in enumerate(ranks) if rank < order.STOP]
            if not staying:
                break
            if len(staying) < len(active):
                active = [active[k] for k in staying]
                rows = torch.tensor(active).to(device, non_blocking=True)
                following = following[torch.tensor(staying).to(device, non_blocking=True)]
                draws = Draws.of([configs[i] for i in active], device, guided=guided)
            known = [(row, ranks[k]) for row, k in zip(active, staying, strict=True)]
        going = following < order.STOP  # finished pictures idle: nothing is open to them
        rank = following.clamp(first, order.NUM_CHANNELS - 1)
        if running_mix is None:
            now = coefficients[rows, :-1].view(len(rows), *picture.coefficients.shape[1:])
            mix = model.texture.mix(now, picture.given[rows], picture.hidden[rows], rank, grid)
        else:
            mix = running_mix.before(rows, rank)
        labels = _labels(model, picture.labels[rows], draws)
        channels = model.texture.begin(
            picture, draws.both(rows), draws.both(rank), mixed=draws.both(mix), labels=labels
        )
        values, opened = _draw_channels(model, channels, going, noise.places(rows, rank, known), grid, draws, check)
        drawn = torch.where(opened, values.to(torch.int16), coefficients[rows].gather(1, slots[rank]))
        running_rates.settle(rows, rank, drawn)
        if running_mix is not None:
            running_mix.settle(rows, rank, drawn)
        coefficients[rows] = coefficients[rows].scatter(1, slots[rank], drawn)
        before[rows] = following
        decided[rows] += going
    return coefficients[:, :-1].view_as(picture.coefficients), decided.tolist()


def _labels(model: DCTransformer, labels: Tensor, draws: Draws) -> Tensor:
    """Append the null label of the twins to the labels of pictures: int64 ``[B]`` to ``[B + G]``."""
    return torch.cat([labels, torch.full_like(draws.twins, model.config.null_label)])


def _following(
    running_rates: RunningRates, model: DCTransformer, rows: Tensor, before: Tensor, uniform: Tensor, draws: Draws,
    check: PredictionCheck,
) -> Tensor:  # fmt: skip
    """Draw the next channel in use of each of some pictures; int64 ``[B]``, `order.STOP` where there is none.

    Args:
        running_rates: of all pictures.
        model: with texture.
        rows: int64 ``[B]``, the pictures.
        before: int64 ``[B]``, the ranks to start after.
        uniform: ``[B]`` in [0, 1).
        draws: guidance of each.
        check: sees the rates before they are mixed, which would hide NaN.
    """
    labels = running_rates.picture.labels[rows]
    if rows.device.type != "cpu":
        rates = running_rates(draws.both(rows), _labels(model, labels, draws))
        check.see(rates, limit=torch.inf)
        return next_channel(_mixed_rates(rates, draws), before, uniform)
    # Usually one of the next few channels is in use, so the other rates need not be computed.
    following, passed = torch.full_like(before, order.STOP), torch.zeros(len(rows), dtype=draw_dtype(rows.device))
    aim = -torch.log1p(-uniform.to(passed.dtype))
    begin, searching = before + 1, torch.arange(len(rows))
    while len(searching := searching[begin[searching] < order.NUM_CHANNELS]):
        ranks = begin[searching, None] + torch.arange(WINDOW)
        settings, existing = draws.of_elements(searching), ranks.clamp(max=order.NUM_CHANNELS - 1)
        rates = running_rates(
            settings.both(rows[searching]), _labels(model, labels[searching], settings), settings.both(existing)
        )
        check.see(rates, limit=torch.inf)
        rates = torch.where(ranks < order.NUM_CHANNELS, _mixed_rates(rates, settings), 0.0)
        sums = passed[searching, None] + rates.to(passed.dtype).cumsum(-1)
        count = (sums <= aim[searching, None]).sum(-1)  # p(none up to c is in use) = exp(−sum up to c)
        found = count < WINDOW
        following[searching[found]] = (begin[searching] + count)[found]
        passed[searching], begin[searching] = sums[:, -1], begin[searching] + WINDOW
        searching = searching[~found]
    return following


def _mixed_rates(rates: Tensor, draws: Draws) -> Tensor:
    """Apply guidance to the rates of the channels in use, by those of the twins without a label: fp32 ``[B, C]``."""
    if not len(draws.twins):
        return rates
    labelled = rates[: len(draws.greedy)]
    # Log-odds of 1 − exp(−λ) against exp(−λ).
    odds = rates.clamp(max=60.0).clamp_min(1e-30).expm1().log().clamp(-60, 60)
    mixed = torch.where(labelled > 0, F.softplus(draws.mix(odds)), 0.0)
    return labelled.index_copy(0, draws.twins, mixed[draws.twins])


def next_channel(rates: Tensor, before: Tensor, uniform: Tensor) -> Tensor:
    """Draw the first channel in use after another, by inverting the cumulative distribution.

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
    channels: Channels,
    going: Tensor,
    noise: Tensor,
    grid: Grid,
    draws: Draws,
    check: PredictionCheck,
) -> tuple[Tensor, Tensor]:
    """Draw what channels in use hold: one of each of the B pictures, and after them those of their twins.

    Of pictures that are not ``going`` (bool ``[B]``) nothing is drawn; the noise is ``[B, 3, P]``, by position.

    Returns:
        fp32 ``[B, P]``, the channels' values: what is given, what is drawn, and 0 where nothing is; and bool
        ``[B, P]``, places that were open.
    """
    texture, count = model.texture, len(going)
    channels = dataclasses.replace(channels, opened=channels.opened & draws.both(going)[:, None])
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
        values = _draw_values(model, scores, channels.rank, due, uniform, draws, check)
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
    """Draw values at the places where they are due: fp32 ``[B, H]``, 0 elsewhere.

    Scores are fp32 ``[B + G, H, …]``, ranks int64 ``[B + G]``, ``due`` is bool ``[B + G, H]``: of the pictures and of
    their twins; the uniform numbers are ``[B, H]``.
    """
    limit, pictures_due = model.limits[rank][:, None].expand_as(due), due[: len(uniform)]
    check.see(scores, due)
    if due.device.type == "cpu":  # where finding the places costs nothing, only they are computed
        logits = value_logits(scores[due], limit[due], model.alphabet)
        draws, uniform = draws.of_elements(pictures_due.nonzero()[:, 0]), uniform[pictures_due]
        logits = draws.mix(logits)
        check.see(logits.amax(-1))
    else:
        logits = draws.mix(value_logits(scores, limit, model.alphabet))
        check.see(logits.amax(-1), pictures_due)
        draws = draws.repeated(uniform.shape[1])
    values = model.alphabet.decode(pick(logits.flatten(0, -2), uniform.flatten(), draws)).float()
    if due.device.type == "cpu":
        drawn = uniform.new_zeros(pictures_due.shape, dtype=torch.float32)
        drawn[pictures_due] = values
        return drawn
    return torch.where(pictures_due, values.view_as(pictures_due), 0.0)
