"""Settings read from files and options: types and ranges are checked by pydantic, mistakes become one sentence.

The settings themselves are plain frozen dataclasses. Ranges stand with the types, ``Annotated[int, Ge(1)]``: the small
library annotated-types has the marks, so that the command line starts without pydantic.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import reprlib
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def parse_fields(cls: type[T], fields: dict[str, Any], where: str) -> T:
    """Make a dataclass of settings from the fields of a file; what is left out keeps its default.

    Args:
        cls: the dataclass.
        fields: as TOML or JSON gives them: lists stand for tuples, tables for nested dataclasses.
        where: description of the owner of the fields, for messages.

    Raises:
        ValueError: a field is unknown (the nearest known one is named), of another type, or out of its range.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_json(json.dumps(fields, default=str))
    except ValidationError as error:
        raise ValueError(_sentence(error, cls, where)) from None


def check_ranges(settings: Any) -> None:
    """Check types and ranges of a dataclass of settings that was made in Python or from options.

    Raises:
        ValueError: a field is of another type, or out of its range.
    """
    from pydantic import ValidationError

    for name, adapter in _field_adapters(type(settings)).items():
        try:
            adapter.validate_python(getattr(settings, name), strict=True)
        except ValidationError as error:
            raise ValueError(_sentence(error, type(settings), "the settings", name)) from None


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers (by name; None passes) that are less than 1.

    Raises:
        ValueError: a number is less than 1.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} {number} must be at least 1")


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse unknown names.

    Args:
        names: to be checked.
        known: the valid names.
        where: description of the owner of the names, for messages.

    Raises:
        ValueError: a name is unknown; the nearest known one is named.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{where} has no field {reprlib.repr(name)}; {hint}")


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(strict=True, extra="forbid"))(cls))


@functools.cache
def _field_adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    from pydantic import TypeAdapter

    return {name: TypeAdapter(hint) for name, hint in typing.get_type_hints(cls, include_extras=True).items()}


_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dataclass_type": "a table",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "of length {min_length} or more",
    "too_long": "of length {max_length} or less",
}
"""The requirement behind each of pydantic's kinds of errors, in a user's words; others keep pydantic's message."""


def _sentence(error: ValidationError, cls: type, where: str, *field: str) -> str:
    """Return the first mistake in validating ``cls`` (or its ``field`` alone), in words.

    A field that may be of several types has an error for each.
    """
    errors: list[Any] = [{**e, "loc": (*field, *e["loc"])} for e in error.errors(include_url=False)]
    if errors[0]["type"] == "value_error":  # raised by the dataclass itself
        return str(errors[0]["ctx"]["error"])
    if errors[0]["type"] == "missing":
        return f"{where} has no {errors[0]['loc'][-1]}"
    names: list[str] = []
    for name in errors[0]["loc"]:
        if not dataclasses.is_dataclass(cls):
            break  # an index, or pydantic's name for one of several types
        hints = typing.get_type_hints(cls)
        if name not in hints:
            check_names([str(name)], hints, ".".join(names) or where)
        names.append(str(name))
        cls = hints[name]
    wanted = {
        str(_WORDS.get(e["type"], e["msg"].removeprefix("Input should be "))).format_map(e.get("ctx", {}))
        for e in errors
        if e["loc"][: len(names)] == tuple(names)
    }
    shown = reprlib.repr(errors[0]["input"])  # it may be of any length
    return f"{'.'.join(names) or where} can't be {shown}; it must be {' or '.join(sorted(wanted))}"
