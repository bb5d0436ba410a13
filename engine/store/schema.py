"""What a run's database may hold: the shapes of facts, events and records, and records unpacked. Free of torch.

The engine writes nothing else; what differs was damaged, and is refused by one error that says where.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from modalscape.engine.core.display import SHAPES, Display
from modalscape.engine.core.records import KINDS, Record
from modalscape.engine.errors import InputError, shown
from modalscape.engine.store.archive import arrays_of
from modalscape.engine.store.files import anything, brief, finite, fits, misfit, moment, value_of, whole
from modalscape.engine.store.words import EventKind

JOB = {"probe": str, "step": int, "asked": bool, "seconds": finite, "what": str, "done": whole, "planned": whole}
"""What an observer says of a measurement under way, to its shape."""


def _observing(value: Any) -> bool:
    jobs = value.get("jobs", []) if isinstance(value, dict) else None
    return (
        isinstance(jobs, list)
        and all(isinstance(job, dict) and "probe" in job and not misfit(job, JOB) for job in jobs)
        and fits(value.get("costs", {}), {str: finite})
        and fits(value.get("steps", {}), {str: int})
    )


FACTS = {
    **dict.fromkeys(("state", "activity", "waiting", "title", "protocol", "score", "device", "measure"), str),
    **dict.fromkeys(("step", "steps", "version", "parameters", "threads", "batch", "read_up_to", "first_step"), whole),
    **dict.fromkeys(("seconds", "learning_rate", "pace"), finite),
    **dict.fromkeys(("modalities", "parts"), [str]),
    **dict.fromkeys(("settings", "measuring", "config", "versions", "trying"), dict),
    "observing": _observing,
    "ends": {str: whole},
    "beat": moment,
    "rows": {str: whole},
    "methods": {str: dict},
    "idle": {str: str},
    "probes": {str: whole},
    "layout": {str: [whole]},
    "pipeline": {str: [str]},
    "theta": {"step": whole, "sha256": str},
    "optimizer": {str: anything},
    "launched": moment,
    "exit_code": lambda value: isinstance(value, int) and abs(value) < 1000,
}
"""Facts that are relied upon, to their shape."""

DETAIL = {"id": whole, "error": str, "traceback": str, "seconds": finite}
"""What an event may say of itself, to its shape."""

COMMANDS = {
    "toggle": {"method": str, "on": bool},
    "tune": {"method": str, "knob": str, "value": (str, int, float)},
    "watch": {"probe": str, "on": bool},
    "measure": {"probe": str},
    "note": {"text": str},
}
"""What pages say of a command that was answered and a replay obeys, by what the command does."""

SIZES = {
    "curve": ("y", ("x",)),
    "surface": ("z", ("y", "x")),
    "bars": ("values", ("labels",)),
    "matrix": ("values", ("rows", "cols")),
}
"""Kind of record to its values and to the fields along which they lie."""
_NUMBERS, _NAMES = "biuf", "biufU"


class Unreadable(InputError):
    """What a run recorded is damaged, or its folder half copied."""

    def __init__(self, what: object, reason: object) -> None:
        super().__init__(f"{what} cannot be read ({reason}); it is damaged or half copied: restore it or do without.")


def facts(path: object, rows: list[tuple[str, str]]) -> dict[str, Any]:
    """Return key to fact of `rows` of a database.

    Raises:
        Unreadable: a fact is damaged.
    """
    try:
        found = {key: value_of(value) for key, value in rows}
    except ValueError as error:
        raise Unreadable(path, brief(error)) from None
    wrong = misfit(found, FACTS)
    if wrong:
        raise Unreadable(path, f"its fact {wrong!r} is {shown(found[wrong])}")
    return found


def detail(what: str, kind: Any, text: str) -> dict[str, Any]:
    """Return the detail of an event of that kind; `what` names it.

    Raises:
        Unreadable: it is damaged.
    """
    try:
        found = value_of(text)
    except ValueError as error:
        raise Unreadable(what, brief(error)) from None
    held = isinstance(found, dict) and not misfit(found, DETAIL)
    if held and kind in (EventKind.APPLIED, EventKind.REFUSED):
        command = found.get("command")
        held = isinstance(command, dict) and fits(command, COMMANDS.get(str(command.get("do")), dict))
    if not held:
        raise Unreadable(what, shown(found))
    return found


def unpacked(name: str, kind: str, data: bytes, about: str) -> Record:
    """Return the record that was stored.

    Raises:
        InputError: the record was written by a version with more kinds than this one.
        Unreadable: it is damaged.
    """
    if kind not in KINDS:
        raise InputError(f"The record {name} is of the unknown kind {kind!r}; read it with the version that wrote it.")
    known = said(name, about)
    try:
        values = arrays_of(io.BytesIO(data))
        values = {key: float(value) if value.ndim == 0 else value for key, value in values.items()}
        record = KINDS[kind](name=name, **values, **known)
    except (TypeError, ValueError) as error:
        raise Unreadable(f"The record {name}", brief(error)) from None
    if not _whole(record):
        raise Unreadable(f"The record {name}", "its arrays do not belong together")
    return record


def said(name: str, about: str) -> dict[str, Any]:
    """Return what is known of the record `name` beside its arrays.

    Raises:
        Unreadable: it is damaged.
    """
    try:
        known = value_of(about)
    except ValueError as error:
        raise Unreadable(f"The record {name}", brief(error)) from None
    if not isinstance(known, dict) or misfit(known, {"n": whole, "mode": str, "seconds": finite, "draw": dict}):
        raise Unreadable(f"The record {name}", shown(known))
    draw = known.pop("draw", None) or {}
    wrong = misfit(draw, SHAPES)
    if wrong:
        raise Unreadable(f"The record {name}", f"its {wrong!r} is {shown(draw[wrong])}")
    return known | {"display": Display.from_json(draw)}


def _whole(record: Record) -> bool:
    """Return whether the arrays of a record are numbers and names of matching lengths."""
    if record.kind not in SIZES:
        return all(value is None or isinstance(value, float) for value in (record.value, record.error))
    field, along = SIZES[record.kind]
    values, axes = getattr(record, field), [getattr(record, axis) for axis in along]
    kinds = _NAMES if record.kind in ("bars", "matrix") else _NUMBERS
    if any(np.ndim(axis) != 1 or np.asarray(axis).dtype.kind not in kinds for axis in axes):
        return False
    if np.shape(values) != tuple(len(axis) for axis in axes) or values.dtype.kind not in _NUMBERS:
        return False
    error = getattr(record, "error", None)
    if error is None:
        return True
    fitting = {np.shape(values), (), (1,) * np.ndim(values)}
    return np.shape(error) in fitting and np.asarray(error).dtype.kind in _NUMBERS
