"""The size of prepared pictures: one size for all, or one side of it with the aspect ratio kept."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import reprlib

from PIL import Image

from dctransformer.codec import order
from dctransformer.codec.segments import MAX_SIDE

_WORDS = {"size": "size", "long_side": "long side", "short_side": "short side"}


def parse_size(text: str | int, name: str = "size") -> tuple[int, int]:
    """Return the width and height in pixels from ``"192x128"``, or ``"64"`` for a square; both are multiples of 16.

    Args:
        text: the size as a user writes it.
        name: of the setting, for messages.

    Raises:
        ValueError: it is not a size, or not one of whole MCUs.
    """
    match = re.fullmatch(r"\s*(-?\d+)(?:\s*[x×]\s*(-?\d+))?\s*", str(text))
    sides = (0, 0) if match is None else (int(match[1]), int(match[2] or match[1]))
    if min(sides) < order.MCU or any(side % order.MCU for side in sides):
        near = "x".join(str(max(order.MCU, side // order.MCU * order.MCU)) for side in sides)
        choose = near if match is not None and match[2] else "64 or 192x128"
        raise ValueError(
            f"{name} {text} is not a positive multiple of {order.MCU} pixels each way; choose {choose}, say"
        )
    if max(sides) > MAX_SIDE:
        raise ValueError(f"{name} {text} is longer than the {MAX_SIDE:,} pixels that libjpeg writes; choose less")
    return sides


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size that pictures get: ``width`` and ``height``, or one of ``long_side`` and ``short_side``, in pixels.

    With a long or a short side the aspect ratio is kept, and the other side is cropped to whole MCUs (16 pixels).

    Raises:
        ValueError: a side is not a positive multiple of 16, or not exactly one size is given.
    """

    width: int | None = None
    height: int | None = None
    long_side: int | None = None
    short_side: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a size."""
        kinds = [self.width is not None and self.height is not None, self.long_side is not None]
        kinds.append(self.short_side is not None)
        if sum(kinds) != 1 or (self.width is None) != (self.height is None):
            raise ValueError("give one of size, long side and short side")
        for name in ("long_side", "short_side"):
            side = getattr(self, name)
            if side is not None:
                words = _WORDS[name]
                if isinstance(side, bool) or not isinstance(side, int) or side < order.MCU or side % order.MCU:
                    raise ValueError(f"{words} {side} is not a positive multiple of {order.MCU}; choose one, say 384")
                if side > MAX_SIDE:
                    raise ValueError(f"{words} {side} is beyond libjpeg's {MAX_SIDE:,} pixels; choose less")

    @classmethod
    def of(
        cls,
        size: int | str | tuple[int, int] | Shape | None = None,
        long_side: int | None = None,
        short_side: int | None = None,
    ) -> Shape:
        """Return the shape that one of three settings gives; squares of 64 pixels without any.

        Args:
            size: the side of a square, ``"192x128"``, (width, height), or a shape.
            long_side: pixels of the longer side.
            short_side: pixels of the shorter side.

        Raises:
            ValueError: two are given, or one is impossible.
        """
        if isinstance(size, Shape):
            return size
        if sum(setting is not None for setting in (size, long_side, short_side)) > 1:
            raise ValueError("give one of size, long side and short side, not several")
        if long_side is not None or short_side is not None:
            return cls(long_side=long_side, short_side=short_side)
        if size is None:
            size = 64
        if isinstance(size, tuple):
            size = "x".join(map(str, size))
        width, height = parse_size(size)
        return cls(width, height)

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Return the shape that `str` writes: ``"192x128"``, ``"long side 384"`` or ``"short side 80"``.

        Raises:
            ValueError: it is no such text, or an impossible size.
        """
        match = re.fullmatch(r"(long|short) side (\d{1,9})", text)
        return cls(**{f"{match[1]}_side": int(match[2])}) if match is not None else cls.of(text)

    @property
    def square(self) -> int | None:
        """The side of the square that every picture becomes; None if they become something else."""
        return self.width if self.width == self.height else None

    @property
    def settings(self) -> dict[str, int]:
        """The fields that are set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @property
    def pixels(self) -> int:
        """Approximate number of pixels of a picture."""
        if self.width is not None and self.height is not None:
            return self.width * self.height
        return (self.long_side or 0) ** 2 * 3 // 4 or (self.short_side or 0) ** 2 * 4 // 3

    def __str__(self) -> str:
        """Return the shape as users write it: ``64x64``, or ``long side 384``."""
        if self.width is not None:
            return f"{self.width}x{self.height}"
        return f"long side {self.long_side}" if self.long_side is not None else f"short side {self.short_side}"

    def holds(self, width: int, height: int) -> bool:
        """Return whether a prepared picture can have this size."""
        if width % order.MCU or height % order.MCU or min(width, height) < order.MCU:
            return False
        if self.width is not None:
            return (width, height) == (self.width, self.height)
        return self.long_side in (None, max(width, height)) and self.short_side in (None, min(width, height))

    def can_hold(self, width: int, height: int) -> bool:
        """Return whether a prepared picture can be large enough for a window of this size."""
        if self.width is not None and self.height is not None:
            return width <= self.width and height <= self.height
        if self.long_side is not None:
            return max(width, height) <= self.long_side
        assert self.short_side is not None
        return min(width, height) <= self.short_side

    def scale(self, width: int, height: int) -> float:
        """Return the factor by which a picture of this size is enlarged (or, below 1, shrunk)."""
        if self.width is not None and self.height is not None:
            return max(self.width / width, self.height / height)
        if self.long_side is not None:
            return self.long_side / max(width, height)
        assert self.short_side is not None
        return self.short_side / min(width, height)

    def result(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that a picture of this size gets.

        Raises:
            ValueError: a side would be shorter than an MCU.
        """
        if self.width is not None and self.height is not None:
            return self.width, self.height
        # In whole numbers, since a side that comes out at just a multiple of 16 must not lose a row of MCUs.
        numerator = self.long_side or self.short_side or 0
        denominator = max(width, height) if self.long_side is not None else min(width, height)
        sides = [side * numerator // denominator // order.MCU * order.MCU for side in (width, height)]
        if min(sides) < order.MCU:
            shown = min(width, height) * numerator / denominator
            raise ValueError(f"at {self} a {width}x{height} picture has a side of {shown:.0f} pixels, less than an MCU")
        if max(sides) > MAX_SIDE:
            raise ValueError(
                f"at {self} a {width}x{height} picture is longer than libjpeg's {MAX_SIDE:,}; choose a smaller size"
            )
        return sides[0], sides[1]

    def _box(self, width: int, height: int, wide: int, high: int) -> tuple[float, float]:
        """Return the width and height of the part that becomes a picture of ``wide`` × ``high`` pixels."""
        if self.width is not None:
            return (height * wide / high, height) if wide * height <= high * width else (width, width * high / wide)
        if self.long_side is not None:
            numerator, denominator = max(width, height), self.long_side
        else:
            numerator, denominator = min(width, height), self.short_side or 1
        return wide * numerator / denominator, high * numerator / denominator

    def crop_resize(self, image: Image.Image) -> Image.Image:
        """Cut the largest centred rectangle of the right aspect ratio out of a picture and resize it (Lanczos).

        Args:
            image: RGB.

        Returns:
            RGB, of the size that `result` gives.

        Raises:
            ValueError: a side would be shorter than an MCU.
        """
        width, height = image.size
        wide, high = self.result(width, height)
        if (width, height) == (wide, high):
            return image
        across, down = self._box(width, height, wide, high)
        # The box may lie half a pixel off the grid, where resize samples then: a flipped picture gives a flipped
        # result. At its edges the filter sees the pixels beyond.
        left, top = (width - across) / 2, (height - down) / 2
        return image.resize((wide, high), Image.Resampling.LANCZOS, box=(left, top, left + across, top + down))


def prepared_shape(prepared: str, trained: tuple[int, int]) -> Shape:
    """Return the size to which pictures are prepared for a model, from two fields of its config.

    Args:
        prepared: what its training pictures were prepared to, as `Shape` is written; empty for the trained shape.
        trained: height and width in pixels of the pictures or windows that it was trained on.

    Raises:
        ValueError: ``prepared`` is not a size, or one of pictures that are smaller than the trained shape.
    """
    height, width = trained
    if not prepared:
        return Shape.of((width, height))
    with contextlib.suppress(ValueError):
        shape = Shape.parse(prepared)
        if shape.can_hold(width, height):
            return shape
    raise ValueError(
        f"prepared {reprlib.repr(prepared)} is not a size of pictures that hold {width}x{height} pixels; "
        "write 144x144, 'short side 80' or 'long side 384', say"
    )
