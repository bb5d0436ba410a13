"""Colours and the plotly template: one colour per modality and one per method, legible in light and dark and to
colour-blind eyes. Free of Streamlit, so that `app/figures` stays pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

FONT = '"Source Sans", "Source Sans Pro", system-ui, sans-serif'

MODALITY_HUES = (
    ("#1F6FB5", "#62AEEB"),
    ("#D0591E", "#F59A62"),
    ("#0E8568", "#3DC3A0"),
    ("#8A4BA6", "#C995DF"),
    ("#8C6D0F", "#D9B644"),
    ("#B83A66", "#F08CAD"),
    ("#2C8C99", "#6FD0DC"),
    ("#6B5B4B", "#BFAE9C"),
)
METHOD_HUES = (
    ("#C2255C", "#F783AC"),
    ("#5F3DC4", "#A99BF5"),
    ("#2B8A3E", "#74D08A"),
    ("#B35900", "#F0A85A"),
    ("#1971A0", "#74C0E8"),
    ("#7A6A00", "#D6C24A"),
    ("#862E9C", "#DA9BEB"),
    ("#A61E4D", "#FAA2C1"),
)
WORDS = {
    "image": 0,
    "vision": 0,
    "visual": 0,
    "pixel": 0,
    "digits": 0,
    "text": 1,
    "caption": 1,
    "captions": 1,
    "language": 1,
    "words": 1,
    "audio": 2,
    "sound": 2,
    "speech": 2,
    "video": 3,
    "motion": 3,
}
"""Hues that well-known modalities keep in every run."""


@dataclass(frozen=True)
class Look:
    """How figures are coloured: for a light or a dark page, with the colours of this run's parts and of all methods."""

    dark: bool
    modalities: Mapping[str, str]
    methods: Mapping[str, str]
    ink: str
    muted: str
    grid: str
    paper: str
    alarm: str
    scale: str = "Cividis"

    def part(self, path: str) -> str:
        """Return the colour of the modality that `path` names in one of its segments, else of the method, or ink."""
        segments = path.split("/")[::-1]
        for segment in segments:
            if segment in self.modalities:
                return self.modalities[segment]
            if segment == "shared":
                return self.muted
            pair = [m for m in self.modalities if segment.startswith((f"{m}-", f"{m} "))]
            if pair:
                return self.modalities[pair[0]]
        # A method last: a quantity may bear a method's name, as `sharpness/audio/sam` does.
        return next((self.methods[segment] for segment in segments if segment in self.methods), self.ink)

    def faint(self, colour: str, alpha: float) -> str:
        """Return `colour` (`#rrggbb`) as an `rgba(…)` of that opacity, 0 to 1."""
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha:g})"


def look(dark: bool, modalities: Iterable[str] = (), methods: Iterable[str] = ()) -> Look:
    """Return the colours for a page and a run; a name keeps its colour whatever else is there, as far as hues go."""
    return _look(bool(dark), tuple(modalities), tuple(methods))


@cache
def _look(dark: bool, modalities: tuple[str, ...], methods: tuple[str, ...]) -> Look:
    shade = int(dark)
    return Look(
        dark,
        {name: MODALITY_HUES[i][shade] for name, i in assigned(modalities, len(MODALITY_HUES), WORDS).items()},
        {name: METHOD_HUES[i][shade] for name, i in assigned(methods, len(METHOD_HUES)).items()},
        ink="#E4E9F0" if dark else "#1C2430",
        muted="#94A0B0" if dark else "#687585",
        grid="#262E39" if dark else "#E8ECF1",
        paper="#11151B" if dark else "#FFFFFF",
        alarm="#FF8787" if dark else "#C92A2A",
    )


def assigned(names: Iterable[str], hues: int, words: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return name to hue index: well-known words first, then by a hash of the name, moved on where it is taken.

    >>> assigned(["audio", "image"], 8, WORDS)
    {'audio': 2, 'image': 0}
    """
    words = words or {}
    names = list(dict.fromkeys(names))
    wanted = {name: words.get(name.lower(), zlib.crc32(name.encode()) % hues) for name in names}
    found: dict[str, int] = {}
    for name in sorted(names, key=lambda name: (name.lower() not in words, name)):
        free = [h % hues for h in range(wanted[name], wanted[name] + hues) if h % hues not in found.values()]
        found[name] = free[0] if free else wanted[name]
    return {name: found[name] for name in names}


def template(look: Look) -> dict:
    """Return the plotly template: transparent ground, quiet grid, one type face, no vertical lines from the frame."""
    axis = {
        "gridcolor": look.grid,
        "linecolor": look.grid,
        "zeroline": False,
        "exponentformat": "power",
        "separatethousands": True,
        "tickcolor": look.grid,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "title": {"font": {"size": 12, "color": look.muted}, "standoff": 8},
        "tickfont": {"size": 11, "color": look.muted},
    }
    scene = {key: axis[key] for key in ("gridcolor", "linecolor", "tickfont")} | {
        "showbackground": False,
        "zeroline": False,
        "title": {"font": {"size": 12, "color": look.muted}},
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 12, "color": look.ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 52, "r": 14, "t": 30, "b": 40},
            "xaxis": axis,
            "yaxis": axis,
            "scene": {"xaxis": scene, "yaxis": scene, "zaxis": scene},
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.0,
                "xanchor": "left",
                "yanchor": "bottom",
                "font": {"size": 12, "color": look.ink},
                "bgcolor": "rgba(0,0,0,0)",
            },
            "hoverlabel": {
                "bgcolor": "#1E252F" if look.dark else "#FFFFFF",
                "bordercolor": look.grid,
                "font": {"family": FONT, "size": 12, "color": look.ink},
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": look.muted, "activecolor": look.ink},
            "colorway": list(look.modalities.values()) or [hue[look.dark] for hue in MODALITY_HUES],
        }
    }
