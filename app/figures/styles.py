"""How lines that share a figure are told apart: by what they are, then by colour, then by dash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modalscape.app.theme import METHOD_HUES, Look
from modalscape.engine.core.display import Display

DASHES = ("solid", "dot", "dashdot", "longdash", "2px,6px", "12px,3px")
"""Dashes of measured lines that share a part's colour."""
ROLES = {"expected": ("dash", 1.5), "limit": ("dot", 1.4), "before": ("solid", 1.4)}
"""What a line is beside the measured one, to its dash and width."""


ORDER = ("before", "", "expected", "limit")
"""Roles in the order in which a legend names them."""


def in_order(display: Display) -> int:
    """Return the place of a line among those of its part, by the role that its record asks for."""
    role = display.role
    return ORDER.index(role) if role in ORDER else ORDER.index("")


@dataclass(frozen=True)
class Style:
    """Colour, dash and width of one line; `points` are marks without a line."""

    colour: str
    dash: str = "solid"
    width: float = 2.0
    points: bool = False


def hue(number: int, look: Look) -> str:
    """Return a colour that is no modality's."""
    return METHOD_HUES[number % len(METHOD_HUES)][look.dark]


def styles(lines: Sequence[tuple[str, Display]], look: Look) -> list[Style]:
    """Return the style of each line, given its colour and how its record asks to be drawn.

    Measured lines of one modality differ by dash, of no modality by colour. Where all lines are of one part, what is
    expected is drawn in ink and what else stands beside the measurement in grey.
    """
    parts = set(look.modalities.values()) | {look.muted}
    single = len({colour for colour, _ in lines}) == 1
    found: list[Style] = []
    for i, (colour, display) in enumerate(lines):
        role = display.role
        if display.hue is not None:
            dash, width = ROLES.get(role, ("solid", 2.0))
            found.append(Style(hue(display.hue, look), dash, width, bool(display.points)))
        elif role in ROLES:
            dash, width = ROLES[role]
            plain = look.ink if role == "expected" else look.muted
            found.append(Style(plain if single else colour, dash, width, bool(display.points)))
        else:
            before = sum(c == colour and d.role not in ROLES and d.hue is None for c, d in lines[:i])
            own = colour if colour in parts or before == 0 else hue(before - 1, look)
            dash = DASHES[before % len(DASHES)] if colour in parts else "solid"
            found.append(Style(own, dash, 2.0, bool(display.points)))
    return found
