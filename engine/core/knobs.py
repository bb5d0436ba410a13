"""Knobs: dataclass fields that say their range and meaning, so that one declaration serves the code, the command line,
the page's widgets and the README. Free of torch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from modalscape.engine.errors import InputError, shown


def knob(default, low=None, high=None, help="", *, log=False, choices=None):
    """Return a dataclass field with a range (inclusive) and a help text.

    The type of the knob is the type of its default: bool, int, float or str. `log` asks for a logarithmic slider;
    `choices` lists the values a string may take.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Params:
    ...     sigma: float = knob(1.0, 0.0, 2.0, "noise scale")
    >>> describe(Params)[0]["high"]
    2.0
    """
    return dataclasses.field(
        default=default, metadata={"low": low, "high": high, "help": help, "log": log, "choices": choices}
    )


def describe(params: type) -> list[dict[str, Any]]:
    """Return the knobs of a dataclass as JSON values, one dict a knob."""
    return [
        {"name": f.name, "type": type(f.default).__name__, "default": f.default, **f.metadata}
        for f in dataclasses.fields(params)
    ]


def assigned(text: str, path: str, low: float, high: float) -> dict[str, float]:
    """Return name to number for the value of a text knob such as `image=0.5, text=0.1`.

    >>> assigned("image=0.5, text=0.1", "moddrop.rates", 0, 1)
    {'image': 0.5, 'text': 0.1}

    Raises:
        InputError: the text has another form, or a number is not between `low` and `high`.
    """
    found = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in entry.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name or not low <= number <= high:
            raise InputError(
                f"{path} has {shown(entry)}; write a name and its number, {low:g} to {high:g}, such as image=0.5."
            )
        found[name] = number
    return found


def checked(knob: dict[str, Any], value: Any, path: str) -> Any:
    """Return `value` converted to the knob's type and checked against its range.

    Strings are parsed, so the command line and the page share one rule.

    Raises:
        InputError: the value has the wrong type, is not finite, or lies out of range; says what is allowed.
    """
    kind = knob["type"]
    try:
        value = {"bool": _boolean, "int": _whole, "float": float}.get(kind, _text)(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path} must be {_named(kind)}, not {shown(value)}.") from None
    if kind == "float" and not math.isfinite(value):
        raise InputError(f"{path} must be a finite number, not {value}.")
    if knob.get("choices") and value not in knob["choices"]:
        raise InputError(f"{path} must be one of {', '.join(map(str, knob['choices']))}, not {shown(value)}.")
    low, high = knob.get("low"), knob.get("high")
    if kind in ("int", "float") and ((low is not None and value < low) or (high is not None and value > high)):
        bound = (
            f"between {low} and {high}"
            if None not in (low, high)
            else f"at {f'least {low}' if high is None else f'most {high}'}"
        )
        raise InputError(f"{path} must be {bound}, not {shown(value)}.")
    return value


_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def _boolean(value) -> bool:
    try:
        return _BOOLEANS[str(value).lower()]
    except KeyError:
        raise ValueError from None


def _whole(value) -> int:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int):
        return value
    try:
        return int(str(value))  # through a float the last digits of a large number would change
    except ValueError:
        found = float(value)
        if found != int(found):
            raise
        return int(found)


def _text(value) -> str:
    if not isinstance(value, str | int | float) or not str(value).isprintable():
        raise ValueError
    return str(value)


def _named(kind: str) -> str:
    return {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(kind, "text on one line")
