"""What a method reports about itself, sorted into panels: records that ask for one chart share it, the telling first.

Free of Streamlit: from the names, kinds and wishes of a run's records to a list of panels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modalscape.engine.core.display import Display

MOST = 24
"""Records in one panel."""
LAST = float("inf")


@dataclass
class Panel:
    """One chart: its title, the records in it, what it shows; `place` is infinite for one that may stay folded.

    A `tall` one has many lines of words at its side.
    """

    title: str
    names: list[str] = field(default_factory=list)
    place: float = LAST
    note: str = ""
    tall: bool = False


def panels(kinds: Mapping[str, str], asked: Mapping[str, Display], modalities: Sequence[str] = ()) -> list[Panel]:
    """Return the panels of the records `kinds` (name to kind), each drawn as `asked`; those with a place come first.

    Panels of one place follow the order of the `modalities` that their records are about.

    A record that asks for no panel shares one with the numbers of its group, with the curves of its modality, or has
    one of its own.

    >>> kinds = {"a/b/x": "scalar", "a/b/y": "scalar", "a/c": "bars"}
    >>> found = panels(kinds, {"a/c": Display(panel="C", place=1)})
    >>> [(panel.title, panel.names) for panel in found]
    [('C', ['a/c']), ('B', ['a/b/x', 'a/b/y'])]
    """
    found: dict[str, Panel] = {}
    for name in sorted(kinds):
        display = asked.get(name, Display())
        key = display.panel or _group(name, kinds[name])
        panel = found.setdefault(key, Panel(display.panel or display.title or _words(key)))
        if len(panel.names) < MOST:
            panel.names.append(name)
        panel.place = min(panel.place, LAST if display.place is None else float(display.place))
        panel.note = panel.note or display.note
        panel.tall = panel.tall or display.tall
    return sorted(found.values(), key=lambda panel: (panel.place, _about(panel, modalities), panel.title))


def _about(panel: Panel, modalities: Sequence[str]) -> int:
    """Return the place of the modality that a panel is about among all, -1 where it is about none."""
    parts = panel.names[0].split("/")
    return min((i for i, name in enumerate(modalities) if name in parts), default=-1)


def _group(name: str, kind: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2] if kind == "scalar" else parts[:3] if kind == "curve" else parts)


def _words(key: str) -> str:
    words = key.partition("/")[2].replace("/", ", ").replace("_", " ")
    return words[:1].upper() + words[1:]
