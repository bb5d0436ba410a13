"""How a record asks to be drawn: axes, marks, the chart it shares with others. Free of torch.

The numbers of a record are what was measured; nothing here is needed to read them. In a run's database a display is
JSON, of which what is empty is left out; what an older or newer version wrote beside it is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from modalscape.engine.store.files import finite, fits, misfit, number, whole

_TEXTS = ("title", "x", "y", "z", "panel", "note", "label", "role")
_FLAGS = ("xlog", "ylog", "log", "signed", "rates", "tall")
_PATH = ("x", "y", "off", "loss", "step")


def _pair(value: Any) -> bool:
    return fits(value, [finite]) and len(value) == 2


def _span(value: Any) -> bool:
    return fits(value, [number]) and len(value) == 2


def _path(value: Any) -> bool:
    shape = {**dict.fromkeys(_PATH[:-1], [number]), "step": [whole]}
    return fits(value, shape) and len({len(value[key]) for key in _PATH}) == 1


SHAPES: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_FLAGS, bool),
    **dict.fromkeys(("place", "checked_error", "barrier", "center", "cosine"), number),
    **dict.fromkeys(("hue", "stack", "evaluations"), whole),
    **dict.fromkeys(("levels", "lines"), ({str: number}, [number])),
    **dict.fromkeys(("within", "range"), _pair),
    "spans": [_span],
    "limits": {str: number},
    "points": (bool, [str]),
    "marks": [{"text": str, "x": finite, "y": finite}],
    "edge": {"lr": finite, "sigma": finite, "momentum": finite, "placement": str},
    "path": _path,
}
"""Field to the shape of its JSON value."""


@dataclass(frozen=True, kw_only=True)
class Display:
    """What a record asks of whoever draws it; every field may be left out.

    Raises:
        TypeError: a field has a value of another shape.
    """

    title: str = ""
    x: str = ""
    """Title of the x axis, with its unit; `y` and `z` likewise, `z` of a surface's height or a matrix's colours."""
    y: str = ""
    z: str = ""
    xlog: bool = False
    ylog: bool = False
    log: bool = False
    """Whether a matrix is coloured by its logarithm."""
    signed: bool = False
    """Whether the colours of a matrix run from -1 to 1."""
    rates: bool = False
    """Whether the rows and columns of a matrix are rates, 0 to 1."""
    tall: bool = False
    """Whether a chart of many bars gets the room to name them."""
    lines: Mapping[str, float] | Sequence[float] = ()
    """Values marked on the x axis, by words or without; `levels` likewise on the y axis."""
    levels: Mapping[str, float] | Sequence[float] = ()
    spans: Sequence[Sequence[float]] | None = None
    """Intervals of the x axis that are shaded; empty where none is, None where there is nothing to shade."""
    limits: Mapping[str, float] | None = None
    """Words to a limit of singular values that chance alone would keep."""
    within: Sequence[float] | None = None
    """Range of values that is worth seeing; what lies beyond is cut off and said."""
    range: Sequence[float] | None = None
    """Fixed range of the y axis."""
    panel: str = ""
    """Title of the chart that this record shares with others of its method."""
    place: float | None = None
    """Number of that chart among those of the method; those without come last, folded."""
    note: str = ""
    """One sentence on what the chart shows where the method works."""
    label: str | None = None
    """Name of the line in a shared chart; empty for none beside that of its modality."""
    role: str = ""
    """What the line is: `expected`, `limit`, `before`; measured where none is given."""
    hue: int | None = None
    """Number of a colour that is no modality's."""
    points: bool | Sequence[str] = False
    """Whether single points are drawn rather than a line, or a name for each."""
    stack: int = 0
    """Rows of a matrix that are shares of a whole over its columns; as many more may follow, 1 where it was drawn."""
    marks: Sequence[Mapping[str, Any]] = ()
    """Points on a plane, each with `text`, `x` and `y`."""
    path: Mapping[str, Any] | None = None
    """The path of training through a plane: `x`, `y`, distance `off` it, `loss` and `step` of each kept step."""
    edge: Mapping[str, Any] | None = None
    """What the edge of stability follows from: `lr`, `sigma`, `momentum`, `placement`."""
    checked_error: float | None = None
    """Largest error of an interpolated plane at checked points, as a share of its range; 0 where all is exact."""
    evaluations: int | None = None
    """Losses that a plane took."""
    barrier: float | None = None
    center: float | None = None
    """The loss at the current parameters."""
    cosine: float | None = None
    """Cosine of the two directions of a plane."""

    def __post_init__(self) -> None:
        """Check every field that is given."""
        given = self.to_json()
        wrong = misfit(given, {key: SHAPES[key] for key in given})
        if wrong:
            raise TypeError(f"{wrong!r} of a record's display is {getattr(self, wrong)!r}.")

    def __or__(self, other: Display) -> Display:
        """Return this display with the given fields of another in place of its own."""
        return replace(self, **other.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return field to value, of the fields that are given."""
        return {key: value for key, value in vars(self).items() if value != _EMPTY[key]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Display:
        """Return the display that `to_json` described; what it does not know is passed over.

        Raises:
            TypeError: a field has a value of another shape.
        """
        return cls(**{key: value for key, value in values.items() if key in _EMPTY and value is not None})


_EMPTY = {field.name: field.default for field in fields(Display)}
