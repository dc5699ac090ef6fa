"""The registry of conditions and tasks: which coefficients are given from the start, and for which tasks.

One mask of *given* coefficients carries every task: nothing is given (generate), the low-frequency corner of each
block (upscale), all of luma (colorize), every MCU outside a hole (inpaint). The order, the code and the weights are
the same for all; only what is left to generate differs.

To add a condition, add an entry to `CONDITIONS` and, if training draws it by a share of its own, a field to
`Conditions`. To add a task, add an entry to `TASKS`, a function to `dctransformer.tasks.edit` and a command to
`dctransformer.commands`. The model card, the help texts, the error sentences and the web page follow from the registry.

The module imports no torch, so that ``dctransformer --help`` can list the conditions at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dctransformer.codec.grid import Grid


@dataclasses.dataclass(frozen=True)
class Condition:
    """A part of a picture's coefficients that is settled before anything is listed.

    Attributes:
        name: as in a model's config and after ``--given``.
        given: the given part in words.
        share: the field of `Conditions` that decides how often training draws it.
        mask: the given coefficients of a grid, bool ``[N, 6, 64]``; None for nothing.
        drawn: the same as training draws it, where a draw is random.
        factor: upscaling factor, for those that give a low-frequency corner.
        tiled: whether some training chunks give finished neighbours, too, as in the tiles of a large picture.
    """

    name: str
    given: str
    share: str
    mask: Callable[[Grid], Tensor | None]
    drawn: Callable[[Grid, np.random.Generator], Tensor] | None = None
    factor: int | None = None
    tiled: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A task for users, and the condition on which a model must have been trained for it.

    Attributes:
        name: of its command and its tab on the web page.
        phrase: in sentences and on the model card ("trained to …").
        condition: a name in `CONDITIONS`.
    """

    name: str
    phrase: str
    condition: str


def _masks() -> ModuleType:
    from dctransformer.sequence import masks  # brings torch

    return masks


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("none", "nothing", share="none", mask=lambda grid: None),
        Condition(
            "low1", "the lowest frequency (DC) of each block", share="low", factor=8, tiled=True,
            mask=lambda grid: _masks().low(1, grid),
        ),
        Condition(
            "low2", "the 2×2 lowest frequencies of each block", share="low", factor=4, tiled=True,
            mask=lambda grid: _masks().low(2, grid),
        ),
        Condition(
            "low4", "the 4×4 lowest frequencies of each block", share="low", factor=2, tiled=True,
            mask=lambda grid: _masks().low(4, grid),
        ),
        Condition("luma", "all of luma", share="luma", tiled=True, mask=lambda grid: _masks().luma(grid)),
        Condition(
            "region", "all MCUs outside a hole", share="region",
            mask=lambda grid: _masks().outside(_masks().centre_hole(grid)),
            drawn=lambda grid, noise: _masks().outside(_masks().random_hole(grid, noise)),
        ),
    )
}  # fmt: skip
"""All conditions by name."""

TASKS = (
    Task("generate", "generate", "none"),
    Task("continue", "continue", "none"),
    Task("upscale", "upscale by 2", "low4"),
    Task("upscale", "upscale by 4", "low2"),
    Task("upscale", "upscale by 8", "low1"),
    Task("colorize", "colorize", "luma"),
    Task("inpaint", "inpaint", "region"),
)
"""All tasks; upscaling has a row per factor."""

NAMES = tuple(CONDITIONS)
"""Names of the conditions."""

BY_FACTOR = {c.factor: c for c in reversed(CONDITIONS.values()) if c.factor is not None}
"""The condition of each upscaling factor: 2, 4, 8."""


def find_condition(name: str) -> Condition:
    """Return the condition called ``name``.

    Raises:
        ValueError: there is no such condition.
    """
    if name not in CONDITIONS:
        raise ValueError(f"there is no condition {name!r}; choose one of {', '.join(NAMES)}")
    return CONDITIONS[name]


def abilities(conditions: Iterable[str]) -> str:
    """Return the tasks of a model that was trained on some conditions, in words: "generate, continue, colorize"."""
    trained = set(conditions)
    return ", ".join(task.phrase for task in TASKS if task.condition in trained)


def check_trained(conditions: Iterable[str], condition: str, model: str) -> None:
    """Check that a model was trained on the condition of a task.

    Args:
        conditions: on which the model was trained (`ModelConfig.conditions`).
        condition: the task's.
        model: the model in words, as the sentence's subject.

    Raises:
        ValueError: it was not; the sentence lists what the model can do.
    """
    if condition not in conditions:
        wanted = " or ".join(task.phrase for task in TASKS if task.condition == condition)
        raise ValueError(
            f"{model} was not trained to {wanted} (it can: {abilities(conditions)}); train a model on the condition "
            f"{condition}, which `dctransformer train` includes by default"
        )


SHARES = tuple(dict.fromkeys(condition.share for condition in CONDITIONS.values()))
"""Names of the shares in `Conditions`."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How often training draws each condition; the shares are relative to their sum. The default is for all tasks."""

    none: float = 0.45
    """Nothing is given: generate."""
    low: float = 0.2
    """The low-frequency corner of each block is given: upscale. Each factor gets an equal part."""
    luma: float = 0.1
    """All of luma is given: colorize."""
    region: float = 0.25
    """All outside a random hole is given: inpaint."""
    factors: tuple[int, ...] = (2, 4, 8)
    """Upscaling factors that ``low`` stands for."""
    tiled: float = 0.3
    """Part of the ``low`` and ``luma`` chunks that know some finished neighbours, too, as large pictures need it."""
    first: float = 0.05
    """Part of the conditioned chunks that list what would be given while the rest stays unknown, so that the two code
    lengths add up to that of the picture."""

    def check(self) -> None:
        """Check that the shares and factors are in range.

        Raises:
            ValueError: a share or a factor is out of range.
        """
        shares = [getattr(self, share) for share in SHARES]
        if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            names = ", ".join(f"{name} {getattr(self, name)}" for name in SHARES)
            raise ValueError(f"the conditions' shares must be 0 or more, and one of them greater, not {names}")
        if not 0 <= self.tiled <= 1 or not 0 <= self.first <= 1:
            raise ValueError("the conditions' tiled and first must be from 0 to 1")
        if not set(self.factors) <= set(BY_FACTOR) or (self.low and not self.factors):
            raise ValueError(f"the conditions' factors must be among {', '.join(map(str, BY_FACTOR))}")

    def members(self, share: str) -> list[Condition]:
        """Return the conditions among which a share is divided equally."""
        found = [c for c in CONDITIONS.values() if c.share == share]
        return [BY_FACTOR[f] for f in self.factors] if found[0].factor is not None else found

    def names(self) -> tuple[str, ...]:
        """Return the conditions that are drawn at all, in the order of `NAMES`."""
        drawn = {c.name for share in SHARES if getattr(self, share) for c in self.members(share)}
        return tuple(name for name in NAMES if name in drawn)

    def draw(self, grid: Grid, noise: np.random.Generator) -> tuple[Tensor | None, bool]:
        """Draw a condition.

        Args:
            grid: of the picture.
            noise: source of the draw.

        Returns:
            The mask (None for nothing), and whether the given part is to be listed instead of the rest, which then
            stays unknown.
        """
        weights = [getattr(self, share) for share in SHARES]
        members = self.members(SHARES[int(noise.choice(len(SHARES), p=[w / sum(weights) for w in weights]))])
        condition = members[int(noise.choice(len(members)))] if len(members) > 1 else members[0]
        given = condition.drawn(grid, noise) if condition.drawn is not None else condition.mask(grid)
        if given is None:
            return None, False
        if condition.tiled and noise.random() < self.tiled:
            given |= _masks().outside(_masks().random_hole(grid, noise))
        return given, bool(noise.random() < self.first)
