"""The shape of a model, and the named presets.

One frozen dataclass holds everything that decides which weights a model has. It is stored as JSON next to
the weights and compared when a run is resumed.
"""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len

from dctransformer.codec import order
from dctransformer.settings import check_ranges, parse_fields

MAX_LAYERS, MAX_FEED_FORWARDS = 128, 16

# Far beyond every useful model: limits on the memory that a stranger's config can make the program allocate.
Width = Annotated[int, Interval(ge=1, le=1 << 14)]
Hidden = Annotated[int, Interval(ge=1, le=1 << 16)]
Layers = Annotated[
    tuple[Annotated[int, Interval(ge=1, le=MAX_FEED_FORWARDS)], ...], Len(min_length=1, max_length=MAX_LAYERS)
]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The settings of a model that do not depend on the data.

    ``encoder``, ``channel``, ``position`` and ``value`` list the attention layers of each stack; an entry is the
    number of feed-forward layers that follow that attention layer (the paper's PAR-style blocks have several,
    a usual Transformer has 1 each).
    """

    width: Annotated[int, Interval(ge=2, le=1 << 14)] = 256
    """Width D of the residual streams."""
    heads: Annotated[int, Interval(ge=1, le=256)] = 4
    """Attention heads; ``width / heads`` is the size of a head."""
    encoder: Layers = (1, 1, 1)
    """Encoder over the MCUs of the partial DCT image."""
    channel: Layers = (1, 1)
    """Channel decoder."""
    position: Layers = (1, 1)
    """Position decoder."""
    value: Layers = (1, 1)
    """Value decoder."""
    hidden: Hidden = 640
    """Width of the feed-forward layers."""
    block: Literal["modern", "paper"] = "modern"
    """``modern``: norms without bias, rotary index, normalised queries and keys, gated feed-forward.
    ``paper``: norms with bias, learned index, ReLU feed-forward, ReZero gates."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout rate of every residual branch."""

    chunk: Width = 256
    """Triples in a target chunk, context included."""
    overlap: Annotated[int, Interval(ge=0, le=1 << 14)] = 0
    """Triples at the start of a chunk that are context only: seen, but not predicted."""

    memory: Annotated[int, Interval(ge=0, le=1 << 16)] = 256
    """Most places of the encoder that the decoders attend to; in a picture of more MCUs each is the mean of a square of
    them, so that a triple costs the same in a larger picture. 0: every MCU, however many."""

    local_context: bool = True
    """Give position and value decisions the coefficients around each place, up to date for every channel, and decide on
    channels and places one after the other (hazards); off, a softmax over all channels and one over all places."""
    state_width: Width = 64
    """Width of the running sum over a place's coefficients (with ``local_context``)."""
    place_width: Width = 96
    """Width of a place's features made from the sums around it (with ``local_context``)."""
    max_grid: Annotated[int, Interval(ge=1, le=1 << 13)] = 128
    """Most luma blocks along a side (128 blocks = 1,024 pixels)."""

    texture_from: int = len(order.BANDS)
    """First band (0 for DC, 1 for 1–3, 2 for 4–15, 3 for 16–63) that is decided one channel at a time; 4: no band."""
    texture_state: Width = 64
    """Width of the projection of a place's settled coefficients (this and the next fields: the texture network's)."""
    texture_width: Width = 96
    """Width of a place's features."""
    texture_hidden: Hidden = 192
    """Width of the feed-forward layers."""
    texture_blocks: Annotated[int, Interval(ge=0, le=128)] = 2
    """Blocks of a 3×3 convolution and a feed-forward layer over the places."""

    def check(self) -> None:
        """Check types, ranges, and what fits together.

        Raises:
            ValueError: a field has the wrong type or is out of range, or two fields don't fit together.
        """
        check_ranges(self)
        if not 1 <= self.texture_from <= len(order.BANDS):
            raise ValueError(
                f"texture_from {self.texture_from} must be 1 (bands 1–3 and up), 2 (4–15 and up), 3 (16–63) or 4 (off)"
            )
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}; change either")
        if self.overlap >= self.chunk:
            raise ValueError(f"overlap {self.overlap} must be less than chunk {self.chunk}")

    @property
    def texture_rank(self) -> int:
        """Rank of the first channel that is decided as a whole; `order.NUM_CHANNELS` if none is."""
        return int((self.texture_from > order.BAND_OF_CHANNEL).sum())

    @property
    def stride(self) -> int:
        """Triples that a chunk predicts."""
        return self.chunk - self.overlap


@dataclasses.dataclass(frozen=True)
class ModelConfig(Architecture):
    """A model's whole shape: its architecture, and the fields that the data set decides."""

    quality: int = 20
    """JPEG quality whose tables quantise the coefficients, 1..100."""
    size: int = 64
    """Side in pixels of the squares the model was trained on; of other shapes the shorter side of the commonest."""
    shape: tuple[int, ...] = ()
    """Height and width of the pictures or windows it was trained on (the commonest, if they differ); empty for
    squares of ``size`` pixels."""
    extent: tuple[int, ...] = ()
    """Most pixels down and across that it was trained on, so that it knows the rows and columns up to there; empty if
    that is the same as the shape."""
    windows: bool = False
    """Whether it was trained on windows of larger pictures."""
    prepared: str = ""
    """Size to which those larger pictures were prepared, as `dctransformer.data.shapes.Shape` writes it: ``144x144``,
    or ``short side 80``; plain folders are prepared so when the model scores them. Empty: to the trained shape."""
    num_labels: Annotated[int, Interval(ge=0, le=1_000_000)] = 0
    """Number of classes; 0 for an unconditional model. One more label, the null label, is always added."""
    label_names: tuple[str, ...] = ()
    """Names of the classes, in order of their numbers."""
    conditions: tuple[str, ...] = ("none",)
    """Conditions that it was trained on (see `dctransformer.sequence.conditions.NAMES`), which decide on its tasks."""

    def __post_init__(self) -> None:
        """Check the ranges of the fields and what fits together."""
        self.check()
        order.check_quality(self.quality)
        if self.size < order.MCU or self.size % order.MCU:
            raise ValueError(f"size {self.size} is not a positive multiple of {order.MCU}; choose 64 or 128, say")
        for name in ("shape", "extent"):
            sides = getattr(self, name)
            if sides and (len(sides) != 2 or any(side < order.MCU or side % order.MCU for side in sides)):
                shown = reprlib.repr(sides)
                raise ValueError(f"{name} {shown} is not a height and a width in multiples of {order.MCU}; give both")
        longest = max((self.size, *self.shape, *self.extent))
        if longest > self.max_grid * order.BLOCK:
            raise ValueError(
                f"size {longest} is more than max_grid {self.max_grid} blocks of {order.BLOCK} pixels; change either"
            )
        if self.label_names and len(self.label_names) != self.num_labels:
            raise ValueError(
                f"{len(self.label_names)} label_names do not fit num_labels {self.num_labels}; give one name per label"
            )

    @property
    def trained_shape(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained on, and that it generates if no others are given."""
        return (self.shape[0], self.shape[1]) if self.shape else (self.size, self.size)

    @property
    def trained_extent(self) -> tuple[int, int]:
        """Height and width in pixels up to which the model knows rows and columns."""
        return (self.extent[0], self.extent[1]) if self.extent else self.trained_shape

    @property
    def null_label(self) -> int:
        """Label index that stands for "no label given"."""
        return self.num_labels

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """Build a config from the fields of `to_dict`.

        Raises:
            ValueError: a field is unknown (the nearest known one is named), of another type, or out of its range.
        """
        return parse_fields(cls, fields, "the model config")


PRESETS: dict[str, dict[str, Any]] = {
    # For tests: everything is there, nothing is large.
    "tiny": {
        "width": 32, "heads": 2, "hidden": 64, "encoder": (1,), "channel": (1,), "position": (1,), "value": (1,),
        "chunk": 64, "overlap": 16, "state_width": 8, "place_width": 16,
    },
    # What two CPU cores train in hours: neither more layers nor width 256 gain what they cost (docs/train-your-own.md).
    "small": {
        "width": 192, "heads": 3, "hidden": 480, "encoder": (1, 1), "channel": (1,), "position": (1,),
        "value": (1,), "chunk": 384, "texture_from": 2,
    },
    # One GPU.
    "base": {
        "width": 512, "heads": 8, "hidden": 1408, "encoder": (1,) * 6, "channel": (1,) * 2, "position": (1,) * 4,
        "value": (1,) * 6, "chunk": 512, "state_width": 96, "place_width": 192, "dropout": 0.1,
        "texture_from": 2, "texture_state": 96, "texture_width": 160, "texture_hidden": 384, "texture_blocks": 3,
    },
    # The 448M layout of the paper's supplement. The encoder's and the value decoder's depths are reported;
    # those of the channel and position decoders are inferred from the total count.
    "paper": {
        "width": 896, "heads": 14, "hidden": 3584, "encoder": (2, 2, 2, 2), "channel": (2,) * 6,
        "position": (2,) * 6, "value": (2, 2, 2, 2, 2, 7), "block": "paper", "chunk": 896, "overlap": 128,
        "memory": 0, "local_context": False, "dropout": 0.1, "quality": 50, "size": 256,
    },
}  # fmt: skip


def preset(name: str, **overrides: Any) -> ModelConfig:
    """Return the config called ``name`` with some fields replaced.

    Raises:
        ValueError: there is no such preset or field.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return ModelConfig.from_dict({**PRESETS[name], **overrides})


def check_guide(config: ModelConfig, guide: ModelConfig) -> None:
    """Check that a model can guide another: both list the same pictures as the same sequences, cut alike.

    Args:
        config: of the model that is guided.
        guide: of the other; its widths and layers are its own.

    Raises:
        ValueError: something that must be the same differs, or the guide knows less.
    """
    for name in ("quality", "texture_from", "chunk", "overlap", "num_labels", "label_names"):
        own, other = getattr(config, name), getattr(guide, name)
        if own != other:
            raise ValueError(
                f"{name} of the guide ({reprlib.repr(other)}) is not that of the model ({reprlib.repr(own)}); "
                "train a guide on the same data with the same chunks"
            )
    if missing := set(config.conditions) - set(guide.conditions):
        raise ValueError(f"the guide was not trained on the conditions {', '.join(sorted(missing))}; train it on them")
    if any(own > other for own, other in zip(config.trained_extent, guide.trained_extent, strict=True)):
        raise ValueError("the guide was trained on smaller pictures than the model; train it on those of the same size")
