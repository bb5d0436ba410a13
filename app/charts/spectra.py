"""Charts of the singular values: what of a measurement belongs in one figure, and how its lines are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modalscape.app.charts.labels import matching
from modalscape.app.charts.queries import said
from modalscape.app.charts.request import Drawing
from modalscape.app.figures.singular import Spectrum, ranked
from modalscape.app.theme import Look

STYLES: dict[str, dict[str, Any]] = {
    "changed/singular": {"tone": "ink", "width": 2.0, "dots": True},
    "expected": {"tone": "ink", "width": 1.4, "dash": "dot"},
    "instead": {"tone": "muted", "width": 1.6, "dash": "dash"},
    "kept_by_chance": {"tone": "muted", "width": 1.4, "dash": "dash", "shared": True},
    "noise": {"tone": "muted", "width": 1.4, "dash": "dot", "hidden": True},
    "random": {"tone": "muted", "width": 1.6, "dash": "dash"},
}
"""End of a record's name to how its line is drawn; the others take the colour of their part and dots. What is `shared`
is the same for all modalities of a figure."""

LIMITS = {"edge": "i.i.d. noise ends at", "threshold": "i.i.d. noise hides below", "chance": "unrelated up to"}
"""Name of a limit in a record to the words beside its level."""


def spectrum(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the asked records of the newest measurement in one figure.

    A record that the newest measurement did not make belongs to an earlier state of the run, such as one in which a
    method was still on, and is left out.
    """
    names = matching(reader.names()["records"], args["names"])
    steps = reader.history(_anchor(reader, names)) if names else []
    steps = [s for s in steps if args["step"] is None or s <= args["step"]]
    found = [(n, reader.at(n, steps[-1])) for n in names if steps and steps[-1] in reader.history(n)]
    found = [(n, record) for n, record in found if record is not None and record.kind == "curve"]
    if any(_ends(n, "changed/singular") for n, _ in found):
        found = [(n, record) for n, record in found if not _ends(n, "random")]
    if not found:
        return Drawing(None, empty=args["empty"] or "This has not been measured yet.")
    limits: dict[str, float] = {}
    for _, record in found:
        limits |= {LIMITS.get(key, key): value for key, value in (record.display.limits or {}).items()}
    parts = {_part(name) for name, _ in found}
    lines = [_line(name, record, look, several=len(parts) > 1) for name, record in found]
    lines = list({(line.label, line.colour): line for line in lines}.values())
    told = next((record for name, record in found if _ends(name, "changed/singular")), found[0][1])
    return Drawing(ranked(lines, look, limits=limits), said(steps[-1], told))


def stamp(reader, args: Mapping[str, Any]) -> Any:
    """Return what changes when a measurement brings something new or leaves something out."""
    names = matching(reader.names()["records"], args["names"])
    anchor = [_anchor(reader, names)] if names else []
    return [(name, len(held), held[-1:]) for name in [*anchor, *names] for held in [list(reader.history(name))]]


def _anchor(reader, names: list[str]) -> str:
    """Return the record that every measurement makes which could make those of `names`."""
    known = reader.names()["records"]
    first = names[0].split("/")
    own = "/".join([*first[:2], *(["centred"] if "centred" in first else []), "singular"])
    return own if own in known else names[0]


def _line(name: str, record, look: Look, *, several: bool) -> Spectrum:
    """Return how one record is drawn; of several modalities in one figure each keeps its colour and gives its name."""
    style = next((style for end, style in STYLES.items() if _ends(name, end)), {"tone": "part", "dots": True})
    colour = {"ink": look.ink, "muted": look.muted, "part": look.part(name)}[style["tone"]]
    label = record.display.label or ""
    if several and not style.get("shared"):
        colour = look.part(name)
        label = f"{_part(name)}, {label}" if label else _part(name)
    others = {key: value for key, value in style.items() if key not in ("tone", "shared")}
    return Spectrum(label or _part(name), record, colour, **others)


def _ends(name: str, end: str) -> bool:
    second = name.partition("/")[2].partition("/")[0]
    return name.endswith(f"/{end}") or second.endswith(f"_{end}")


def _part(name: str) -> str:
    """Return the modality, pair or layer that a record of a spectrum is about.

    >>> _part("spectra/audio/centred/snr"), _part("spectra/weights/audio/out")
    ('audio', 'audio/out')
    """
    _, _, rest = name.partition("/")
    first, _, others = rest.partition("/")
    return others if first.startswith(("weights", "canonical")) else first or name
