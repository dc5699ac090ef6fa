"""Settings from the forms of the page."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Any

from dctransformer.sampling.config import SHOWN_MIN_P, SampleConfig

ANY = ""
"""The label of a picture of no particular class."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that every task's form has.

    Attributes:
        label: class name, or `ANY`.
        seed: decides the result, together with the other settings.
        num: pictures, or alternatives of one.
        temperature: of the structure; see `dctransformer.sampling.config.SampleConfig`, as the next two. Texture keeps
            the model's own distribution, unless the temperature is 0.
        min_p: likewise; the default did best in docs/evaluation.md.
        guidance: likewise, of the structure.
    """

    label: str = ANY
    seed: float | None = 1
    num: float | None = 1
    temperature: float = 1.0
    min_p: float = SHOWN_MIN_P
    guidance: float = 1.0

    @classmethod
    def of(cls, *values: Any) -> Settings:
        """Check what a form sent, which may be anything, and return it as settings.

        Raises:
            ValueError: a value is missing or of the wrong kind.
        """
        label, *numbers = values
        names = ("seed", "number of pictures", "temperature", "min-p", "guidance")
        for name, number in zip(names, numbers, strict=True):
            if not _is_number(number):
                raise ValueError(f"the {name} must be a number; enter one")
        return cls(ANY if label is None else str(label), *map(float, numbers))

    def whole(self, name: str, value: float | None) -> int:
        """Return a form's number as an int.

        Raises:
            ValueError: it is missing or not whole.
        """
        if value is None or not _is_number(value) or not float(value).is_integer():
            raise ValueError(f"the {name} must be a whole number; enter one")
        return int(value)

    def sampling(self) -> SampleConfig:
        """Return the settings of the engine.

        Raises:
            ValueError: a setting is impossible.
        """
        seed = self.whole("seed", self.seed)
        return SampleConfig(
            seed=seed, temperature=self.temperature, min_p=self.min_p, guidance=self.guidance,
            texture_temperature=1.0 if self.temperature else None, texture_guidance=1.0,
        )  # fmt: skip

    def words(self) -> str:
        """Return the options of the command line that do the same."""
        words = [f"--num {self.num:g} --seed {self.seed:g}"]
        if self.label != ANY:
            words.append(f"--label {shlex.quote(self.label)}")
        for name, value in (("temperature", self.temperature), ("guidance", self.guidance)):
            if value != 1:
                words.append(f"--{name} {value:g}")
                if value:
                    words.append(f"--texture-{name} 1")
        if self.min_p:
            words.append(f"--min-p {self.min_p:g}")
        return " ".join(words)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
