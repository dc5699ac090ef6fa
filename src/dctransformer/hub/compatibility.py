"""Compatibility with files of older versions: the only module that lists changes of configs and weights."""

from __future__ import annotations

import reprlib
from typing import Any

RETIRED: dict[str, tuple[Any, str]] = {
    "norm": ("layer", "3940652"),
    "legality": (True, "3940652"),
    "pointer": (True, "3940652"),
    "gathered": (True, "3940652"),
    "settled_input": (True, "3940652"),
    "ordinal_values": (False, "324a6b1"),
}
"""Fields that configs no longer have: the value that is built in now, and the last commit that has the field."""


def without_retired(fields: dict[str, Any], local_context: bool = True) -> dict[str, Any]:
    """Drop retired fields from a model config.

    Args:
        fields: as read from a file.
        local_context: the value if it is not among the fields; `survival` could differ from it.

    Returns:
        The fields without retired ones.

    Raises:
        ValueError: a retired field has another value than the one that is built in now.
    """
    built_in = {**RETIRED, "survival": (fields.get("local_context", local_context), "3940652")}
    for name, (value, commit) in built_in.items():
        if name in fields and fields[name] != value:
            raise ValueError(
                f"models with {name} {reprlib.repr(fields[name])} are no longer supported; "
                f"check out commit {commit}, the last that can load one"
            )
    return {name: value for name, value in fields.items() if name not in built_in}


RENAMED = {
    "channel_out": "channel_head.out",
    "channel_after": "channel_head.after",
    **{
        name: f"position_head.{name}"
        for name in (
            "pointer_query", "pointer_key", "place_query", "place_key", "place_readout", "place_bias",
            "neighbour_gate", "neighbour_bias",
        )
    },
    "value_out": "value_head.out",
    "value_after": "value_head.after",
    "encoder_at_place": "value_head.encoder_at_place",
    "value_context": "value_head.context",
}  # fmt: skip
"""Modules of the network that had other names: before, now."""


ADDED = ("local.hidden_table", "local.given_mix")
"""Parameters that older files don't have; with zeros the network computes what it did without them."""


def current_name(parameter: str) -> str:
    """Return the name that a parameter of a file has in the network now."""
    module, dot, rest = parameter.partition(".")
    return f"{RENAMED.get(module, module)}{dot}{rest}"


def current_shape(parameter: str, shape: list[int]) -> list[int]:
    """The shape that a parameter of a file has in the network now, by its present name."""
    return [1] if parameter.endswith(".gate") and not shape else shape  # scalars can't be sharded
