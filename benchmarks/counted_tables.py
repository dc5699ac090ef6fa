"""A context coder of DCT coefficients without a network: tables of counts indexed by two quantised linear predictions.

Coefficients are coded channel by channel in the generation order, in raster order within a channel. For each one, two
linear predictions are made from coefficients coded earlier: its value from signed neighbours, and its magnitude from
their magnitudes. Neighbours are the same channel to the left and above, lower frequencies of the same block and of the
blocks around it, the DC gradient, and, for chroma, the co-located luma blocks. Both predictions are quantised, and the
values in the training pictures are counted for each pair of levels. Counts are smoothed towards the next coarser table
(a Dirichlet prior whose weight maximises the leave-one-out likelihood), so every probability is positive and every
table sums to 1.

Shapes: n pictures, h × w blocks per component, F features, alphabet size K.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dctransformer.codec import order
from dctransformer.codec.dct_image import DCTImage

MAGNITUDES = 16
"""Number of quantisation levels of the predicted magnitude."""

STEPS = {True: (2, 64), False: (4, 12)}
"""Quantisation levels per unit of the predicted value, and the largest level: for DC (True) and other frequencies."""

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Candidate weights of the prior, in counts."""

_AROUND = ((0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
_BEFORE = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
_ROW, _COLUMN = np.divmod(order.ZIGZAG, 8)


def planes_of(image: DCTImage) -> dict[int, np.ndarray]:
    """Coefficients by component, with the frequency as the first axis: int16 ``[64, n, h, w]``."""
    if image.is_grey or image.chroma_step != (2, 2):
        raise ValueError("counted tables need pictures at 4:2:0; prepare them with dctransformer prepare")
    parts = zip((order.LUMA, order.CB, order.CR), image.components, strict=True)
    return {component: np.ascontiguousarray(part.permute(3, 0, 1, 2).numpy()) for component, part in parts}


def _shifted(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    """Shift a plane so that every block holds its neighbour's value, 0 outside the picture: float32 ``[n, h, w]``."""
    height, width = plane.shape[1:]
    out = np.zeros(plane.shape, np.float32)
    rows = slice(max(0, -down), height - max(0, down))
    columns = slice(max(0, -across), width - max(0, across))
    source_rows = slice(max(0, down), height + min(0, down))
    source_columns = slice(max(0, across), width + min(0, across))
    out[:, rows, columns] = plane[:, source_rows, source_columns]
    return out


def _near(frequency: int, count: int) -> list[int]:
    """Up to ``count`` lower frequencies, nearest first."""
    lower = np.arange(frequency)
    distance = np.abs(_ROW[lower] - _ROW[frequency]) + np.abs(_COLUMN[lower] - _COLUMN[frequency])
    return lower[np.argsort(distance, kind="stable")][:count].tolist()


def features(planes: dict[int, np.ndarray], channel: int) -> np.ndarray:
    """Features of every block of a channel from coefficients coded earlier: float32 ``[F, n·h·w]``, a constant last."""
    component, frequency = channel // 64 * 64, channel % 64
    component_planes = planes[component]
    neighbours = [_shifted(component_planes[frequency], *offset) for offset in _BEFORE]
    neighbours += [component_planes[lower].astype(np.float32) for lower in _near(frequency, 12)]
    for lower in _near(frequency, 4):
        neighbours += [_shifted(component_planes[lower], *offset) for offset in _AROUND[:4]]
    if 0 < frequency < 10:
        neighbours += [_shifted(component_planes[0], *offset) for offset in _AROUND]
    if component != order.LUMA:
        luma = planes[order.LUMA]
        for lower in {0, 1, 2, frequency} if frequency < 16 else {frequency - 48 if frequency >= 48 else 1, frequency}:
            neighbours += [luma[lower][:, i::2, j::2].astype(np.float32) for i in (0, 1) for j in (0, 1)]
    if component == order.CB:
        red = planes[order.CR][frequency]
        neighbours += [red.astype(np.float32), *(_shifted(red, *offset) for offset in _AROUND)]
    rows = [plane.reshape(-1) for plane in neighbours]
    return np.stack([*rows, np.ones_like(rows[0])])


def _regress(inputs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of a least-squares regression with slight ridge regularisation: float32 ``[F]``."""
    gram = (inputs @ inputs.T).astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1e-4 * inputs.shape[1]
    return np.linalg.solve(gram, (inputs @ target).astype(np.float64)).astype(np.float32)


def smoothed(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Estimate probabilities from counts with a Dirichlet prior.

    Args:
        counts: float64 ``[contexts, K]``.
        prior: probabilities of the coarser table for each context, ``[contexts, K]``.

    Returns:
        float64 ``[contexts, K]``; each row sums to 1.
    """
    total = counts.sum(1, keepdims=True)

    def leave_one_out(weight: float) -> float:
        rest = np.maximum(counts - 1, 0) + weight * prior
        return float((counts * np.log(rest / np.maximum(total - 1 + weight, weight))).sum())

    weight = max(WEIGHTS, key=leave_one_out)
    return (counts + weight * prior) / (total + weight)


@dataclasses.dataclass
class Table:
    """Predictors and probabilities of one channel.

    Attributes:
        value: weights of the predicted value, float32 ``[F]``.
        magnitude: weights of the predicted magnitude, float32 ``[F]``.
        edges: boundaries between the levels of the predicted magnitude, float32.
        steps: levels per unit of the predicted value, and the largest level.
        probability: probabilities of the values −K // 2 to K // 2, float64 ``[contexts, K]``.
        occurred: number of pairs of context and value with a non-zero count.
    """

    value: np.ndarray
    magnitude: np.ndarray
    edges: np.ndarray
    steps: tuple[int, int]
    probability: np.ndarray
    occurred: int = 0

    def contexts(self, inputs: np.ndarray) -> np.ndarray:
        """Context index of every block: int64 ``[n·h·w]``."""
        step, largest = self.steps
        level = np.clip(np.rint(step * (self.value @ inputs)), -largest, largest).astype(np.int64) + largest
        return np.searchsorted(self.edges, self.magnitude @ np.abs(inputs)) * (2 * largest + 1) + level

    @classmethod
    def counted(cls, inputs: np.ndarray, values: np.ndarray, bound: int, frequency: int, sample: int) -> Table:
        """Fit the predictors to the first ``sample`` blocks, and count the values of all blocks."""
        fitted, target = inputs[:, :sample], values[:sample].astype(np.float32)
        value, magnitude = _regress(fitted, target), _regress(np.abs(fitted), np.abs(target))
        levels = np.quantile(magnitude @ np.abs(fitted), np.linspace(0, 1, MAGNITUDES + 1)[1:-1])
        steps, size = STEPS[frequency == 0], 2 * bound + 1
        table = cls(value, magnitude, np.unique(levels).astype(np.float32), steps, np.zeros(0))
        contexts = (len(table.edges) + 1) * (2 * steps[1] + 1)
        index = table.contexts(inputs) * size + values.astype(np.int64) + bound
        counts = np.bincount(index, minlength=contexts * size).reshape(-1, 2 * steps[1] + 1, size).astype(float)
        coarse = counts.sum(1)
        everywhere = smoothed(coarse.sum(0, keepdims=True), np.full((1, size), 1 / size))
        by_magnitude = smoothed(coarse, np.broadcast_to(everywhere, coarse.shape))
        fine = counts.reshape(-1, size)
        table.probability = smoothed(fine, np.repeat(by_magnitude, counts.shape[1], 0))
        table.occurred = int((fine > 0).sum())
        return table


class CountedTables:
    """A context coder with one `Table` per channel."""

    def __init__(self, train: DCTImage, fitted_on: int = 1500):
        """Fit the tables.

        Args:
            train: pictures to count.
            fitted_on: number of pictures that the linear predictors are fitted to.

        Raises:
            ValueError: the pictures are not at 4:2:0.
        """
        planes = planes_of(train)
        steps = np.concatenate([train.luma_table.numpy(), *[train.tables[-1].numpy()] * 2])
        self.bounds = (1024 + steps - 1) // steps
        """Largest possible magnitude by channel for coefficients of 8-bit pixels: int ``[192]``."""
        self.tables: dict[int, Table] = {}
        for channel in order.GENERATION_ORDER.tolist():
            plane = planes[channel // 64 * 64][channel % 64]
            self._check(channel, plane)
            sample = min(fitted_on, len(train)) * plane[0].size
            self.tables[channel] = Table.counted(
                features(planes, channel), plane.reshape(-1), int(self.bounds[channel]), channel % 64, sample
            )

    @property
    def occurred(self) -> int:
        """Number of pairs of context and value with a non-zero count, over all channels."""
        return sum(table.occurred for table in self.tables.values())

    def _check(self, channel: int, plane: np.ndarray) -> None:
        if np.abs(plane).max(initial=0) > self.bounds[channel]:
            raise ValueError(f"a coefficient of channel {channel} is larger than pixels can give; use photographs")

    def bits(self, pictures: DCTImage) -> dict[int, np.ndarray]:
        """Code length of every coefficient.

        Args:
            pictures: pictures with the quantisation tables of the training pictures.

        Returns:
            Bits of every block by channel: float64 ``[n, h, w]``.

        Raises:
            ValueError: a coefficient is larger than pixels can give.
        """
        planes, lengths = planes_of(pictures), {}
        for channel, table in self.tables.items():
            plane = planes[channel // 64 * 64][channel % 64]
            self._check(channel, plane)
            contexts = table.contexts(features(planes, channel))
            chosen = table.probability[contexts, plane.reshape(-1).astype(np.int64) + self.bounds[channel]]
            lengths[channel] = -np.log2(chosen).reshape(plane.shape)
        return lengths
