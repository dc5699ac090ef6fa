"""Settings of the sampling engine."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dctransformer.settings import check_positive

MIN_TEMPERATURE = 1e-3
"""Lower temperatures count as 0: logits divided by them could overflow."""

MAX_GUIDANCE = 1000.0

SHOWN_MIN_P, SHOWN_GUIDANCE = 0.05, 1.5
"""Settings of pictures that are there to be looked at: they measured best (docs/evaluation.md)."""

SHOWN_GUIDANCE_BY_GUIDE = 1.3
"""The same for models with a guide, without min-p."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Settings of sampling."""

    seed: int = 0
    """Picture i of a seed is the same whatever the batch size and the number of pictures: its noise depends on i."""
    _: dataclasses.KW_ONLY
    temperature: float = 1.0
    """Divides the logits of positions, occupancy and values (not those of channels): below 1 fewer unusual outcomes,
    at 0 the likeliest. Less than 0.001 counts as 0."""
    top_p: float = 1.0
    """Keep the likeliest positions and values that make up this probability (occupancy of texture is not cut)."""
    min_p: float = 0.0
    """Leave out positions and values of triples that are less likely than this part of the likeliest (Nguyen et al.
    2024); 0.05 gave the best pictures (docs/evaluation.md). Texture that is decided by channel is not cut."""
    guidance: float = 1.0
    """Guidance: 1 is none, more magnifies the difference to predictions without the label (classifier-free guidance;
    twice the work) or, if the model has a guide, to those of this weaker model (autoguidance; of the structure)."""
    texture_temperature: float | None = None
    """Temperature of texture, where the model decides it one channel at a time; the structure's if not given."""
    texture_top_p: float | None = None
    """Top-p of the values of texture, likewise."""
    texture_guidance: float | None = None
    """Guidance of texture, likewise; 1 guides the structure alone."""
    batch: int = 16
    """Pictures at a time (in each process)."""
    workers: int | None = None
    """Processes with a thread each, on a CPU under Linux; as many as there are threads if not given."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto is bf16 on a GPU and fp32 on a CPU. Draws are made in fp64 either way (in fp32
    on a device that has no fp64)."""
    compile: bool = False
    """Compile the steps (a CPU needs a C++ compiler): about half a minute at first, then faster; for many pictures."""
    graphs: bool = True
    """On a GPU, replay steps as CUDA graphs."""

    @property
    def is_default(self) -> bool:
        """Whether temperature, top-p, min-p and guidance are left at their defaults, the model's own distribution."""
        names = ("temperature", "top_p", "guidance")
        as_it_is = all(getattr(self, name) == 1 and getattr(self, f"texture_{name}") is None for name in names)
        return as_it_is and self.min_p == 0

    def for_show(self, by_label: bool, by_guide: bool = False) -> SampleConfig:
        """Return the settings of structure whose pictures are the best; see docs/evaluation.md.

        Args:
            by_label: whether the label can guide the model: it has classes, and was trained with hidden ones, too.
            by_guide: whether it has a guide, which goes first.
        """
        if by_guide:
            return dataclasses.replace(self, guidance=SHOWN_GUIDANCE_BY_GUIDE, texture_guidance=1.0)
        guidance = {"guidance": SHOWN_GUIDANCE, "texture_guidance": 1.0} if by_label else {}
        return dataclasses.replace(self, min_p=SHOWN_MIN_P, **guidance)

    def of_texture(self) -> SampleConfig:
        """Return the settings by which texture is drawn, as temperature, top-p and guidance."""
        given = {
            "temperature": self.texture_temperature, "top_p": self.texture_top_p, "guidance": self.texture_guidance,
        }  # fmt: skip
        return dataclasses.replace(
            self, texture_temperature=None, texture_top_p=None, texture_guidance=None, min_p=0.0,
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip

    def __post_init__(self) -> None:
        """Check that the settings are in range."""
        if (self.texture_temperature, self.texture_top_p, self.texture_guidance) != (None, None, None):
            try:
                self.of_texture()
            except ValueError as error:
                raise ValueError(f"texture's {error}") from None
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed {self.seed} must be from 0 to {2**31 - 1}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature {self.temperature} must be a finite number of at least 0; 1 samples from the model as it "
                "is"
            )
        if self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p} must be greater than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min-p {self.min_p} must be from 0 to 1; 0 leaves nothing out")
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance {self.guidance} must be from 0 to {MAX_GUIDANCE}; 1 switches it off")
        check_positive(batch=self.batch, workers=self.workers)
