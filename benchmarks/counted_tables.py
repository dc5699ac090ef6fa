"""A context coder of DCT coefficients without any network: counted tables, given two quantised linear predictions.

Coefficients are coded channel by channel in the generation order, in raster order within a channel. Two linear
predictions are made of each from what was coded before it: its value, from signed neighbours, and its magnitude, from
their magnitudes. Neighbours are the same channel to the left and above, lower frequencies of the same block and of all
blocks around it, the DC gradient, and, for chroma, the luma blocks that it lies over. Both predictions are quantised,
and the training pictures' values are counted for each pair. A table of few counts leans on the coarser table above
it (a Dirichlet prior whose weight is chosen by leave-one-out likelihood), so every probability is positive and every
table sums to 1.

Shapes: n pictures, h × w blocks of a component, F features, K values of the alphabet.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dctransformer.codec import order
from dctransformer.codec.dct_image import DCTImage

MAGNITUDES = 16
"""Levels of the predicted magnitude."""

STEPS = {True: (2, 64), False: (4, 12)}
"""Levels per unit of the predicted value, and the largest level; of DC and of other frequencies."""

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Weights of a prior that are tried, in counts."""

_AROUND = ((0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
_BEFORE = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
_ROW, _COLUMN = np.divmod(order.ZIGZAG, 8)


def planes_of(image: DCTImage) -> dict[int, np.ndarray]:
    """Coefficients by component, frequency first: int16 ``[64, n, h, w]``."""
    if image.is_grey or image.chroma_step != (2, 2):
        raise ValueError("counted tables need pictures at 4:2:0; prepare them with dctransformer prepare")
    parts = zip((order.LUMA, order.CB, order.CR), image.components, strict=True)
    return {component: np.ascontiguousarray(part.permute(3, 0, 1, 2).numpy()) for component, part in parts}


def _shifted(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    """The neighbour of every block, 0 beyond the border: float32 ``[n, h, w]``."""
    height, width = plane.shape[1:]
    out = np.zeros(plane.shape, np.float32)
    rows = slice(max(0, -down), height - max(0, down))
    columns = slice(max(0, -across), width - max(0, across))
    source_rows = slice(max(0, down), height + min(0, down))
    source_columns = slice(max(0, across), width + min(0, across))
    out[:, rows, columns] = plane[:, source_rows, source_columns]
    return out


def _near(frequency: int, count: int) -> list[int]:
    """Lower frequencies, nearest first."""
    lower = np.arange(frequency)
    distance = np.abs(_ROW[lower] - _ROW[frequency]) + np.abs(_COLUMN[lower] - _COLUMN[frequency])
    return lower[np.argsort(distance, kind="stable")][:count].tolist()


def features(planes: dict[int, np.ndarray], channel: int) -> np.ndarray:
    """What is known of every place of a channel before it is coded: float32 ``[F, n·h·w]``, a constant last."""
    component, frequency = channel // 64 * 64, channel % 64
    own = planes[component]
    found = [_shifted(own[frequency], *offset) for offset in _BEFORE]
    found += [own[lower].astype(np.float32) for lower in _near(frequency, 12)]
    for lower in _near(frequency, 4):
        found += [_shifted(own[lower], *offset) for offset in _AROUND[:4]]
    if 0 < frequency < 10:
        found += [_shifted(own[0], *offset) for offset in _AROUND]
    if component != order.LUMA:
        luma = planes[order.LUMA]
        for lower in {0, 1, 2, frequency} if frequency < 16 else {frequency - 48 if frequency >= 48 else 1, frequency}:
            found += [luma[lower][:, i::2, j::2].astype(np.float32) for i in (0, 1) for j in (0, 1)]
    if component == order.CB:
        red = planes[order.CR][frequency]
        found += [red.astype(np.float32), *(_shifted(red, *offset) for offset in _AROUND)]
    rows = [plane.reshape(-1) for plane in found]
    return np.stack([*rows, np.ones_like(rows[0])])


def _regress(inputs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with a little ridge: float32 ``[F]``."""
    gram = (inputs @ inputs.T).astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1e-4 * inputs.shape[1]
    return np.linalg.solve(gram, (inputs @ target).astype(np.float64)).astype(np.float32)


def smoothed(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probabilities from counts that lean on a prior.

    Args:
        counts: float64 ``[contexts, K]``.
        prior: probabilities of the coarser tables, ``[contexts, K]``.

    Returns:
        float64 ``[contexts, K]``; each row sums to 1.
    """
    total = counts.sum(1, keepdims=True)

    def left_out(weight: float) -> float:
        rest = np.maximum(counts - 1, 0) + weight * prior
        return float((counts * np.log(rest / np.maximum(total - 1 + weight, weight))).sum())

    weight = max(WEIGHTS, key=left_out)
    return (counts + weight * prior) / (total + weight)


@dataclasses.dataclass
class Table:
    """All that codes a channel.

    Attributes:
        value: weights of the predicted value, float32 ``[F]``.
        magnitude: weights of the predicted magnitude, float32 ``[F]``.
        edges: that separate the levels of the predicted magnitude, float32.
        steps: levels per unit of the predicted value, and the largest level.
        probability: float64 ``[contexts, K]``, of the values −K // 2 to K // 2.
        occurred: number of pairs of context and value that were counted.
    """

    value: np.ndarray
    magnitude: np.ndarray
    edges: np.ndarray
    steps: tuple[int, int]
    probability: np.ndarray
    occurred: int = 0

    def contexts(self, inputs: np.ndarray) -> np.ndarray:
        """Number of the table of each place: int64 ``[n·h·w]``."""
        step, largest = self.steps
        level = np.clip(np.rint(step * (self.value @ inputs)), -largest, largest).astype(np.int64) + largest
        return np.searchsorted(self.edges, self.magnitude @ np.abs(inputs)) * (2 * largest + 1) + level

    @classmethod
    def counted(cls, inputs: np.ndarray, values: np.ndarray, bound: int, frequency: int, sample: int) -> Table:
        """Fit the predictions on the first ``sample`` places, and count all."""
        some, target = inputs[:, :sample], values[:sample].astype(np.float32)
        value, magnitude = _regress(some, target), _regress(np.abs(some), np.abs(target))
        levels = np.quantile(magnitude @ np.abs(some), np.linspace(0, 1, MAGNITUDES + 1)[1:-1])
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
    """The coder: a `Table` for each channel."""

    def __init__(self, train: DCTImage, fitted_on: int = 1500):
        """Count.

        Args:
            train: the pictures that are counted.
            fitted_on: of so many of them the linear predictions are fitted.

        Raises:
            ValueError: the pictures are not at 4:2:0.
        """
        planes = planes_of(train)
        steps = np.concatenate([train.luma_table.numpy(), *[train.tables[-1].numpy()] * 2])
        self.bounds = (1024 + steps - 1) // steps
        """The largest magnitude of each channel that pixels can give: int ``[192]``."""
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
        """Number of pairs of context and value that were counted, all channels together."""
        return sum(table.occurred for table in self.tables.values())

    def _check(self, channel: int, plane: np.ndarray) -> None:
        if np.abs(plane).max(initial=0) > self.bounds[channel]:
            raise ValueError(f"a coefficient of channel {channel} is larger than pixels can give; use photographs")

    def bits(self, pictures: DCTImage) -> dict[int, np.ndarray]:
        """Code lengths of every coefficient.

        Args:
            pictures: of the same tables.

        Returns:
            By channel, bits of each place: float64 ``[n, h, w]``.

        Raises:
            ValueError: a coefficient is larger than pixels can give.
        """
        planes, found = planes_of(pictures), {}
        for channel, table in self.tables.items():
            plane = planes[channel // 64 * 64][channel % 64]
            self._check(channel, plane)
            contexts = table.contexts(features(planes, channel))
            chosen = table.probability[contexts, plane.reshape(-1).astype(np.int64) + self.bounds[channel]]
            found[channel] = -np.log2(chosen).reshape(plane.shape)
        return found
