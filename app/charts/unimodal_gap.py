"""What a modality reaches when it is trained alone, beside what it reaches in company: which runs say so, and the gap.

Two runs are compared that differ in their modalities alone: the same data, seed, length and settings of training, and
no method in the run of one modality that is not in the other. Free of Streamlit.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modalscape.app.charts.labels import spoken
from modalscape.app.charts.queries import MOST_DRAWN, marked, marks
from modalscape.app.charts.request import Drawing
from modalscape.app.figures.curves import Line, series
from modalscape.app.runs.status import folder, home_of, listed
from modalscape.app.theme import Look
from modalscape.engine.client.handle import UNREADABLE, RunHandle
from modalscape.engine.config import RunConfig, read, resolved
from modalscape.engine.errors import InputError
from modalscape.engine.store.words import EventKind
from modalscape.engine.store.writer import RunReader

NEWEST = 200
"""Newest runs among which those of one modality are looked for."""
MEASURING = ("probe_rows", "report", "checkpoint", "budget", "measure", "observers", "pace")
"""Settings that change what is recorded of a run, and nothing that two runs are compared by."""
SEVERAL = "These runs have not been evaluated at the same step yet."


def companions(run: str, catalogue: Mapping[str, Any]) -> dict[str, str]:
    """Return modality to the newest run that was trained on it alone and otherwise as `run`, a run of several."""
    home = home_of(folder(), run)
    modalities = _modalities(home) if home else []
    if len(modalities) < 2:
        return {}
    own, found = read(home), {}
    for other, there in listed(folder())[:NEWEST]:
        try:
            theirs = read(there)
            alone = str(theirs.settings.get("modalities", "")).replace(",", " ").split()
            if len(alone) != 1 or alone[0] not in modalities or alone[0] in found or other == run:
                continue
            if _alike(own, theirs, catalogue) and not _changed(there):
                found[alone[0]] = other
        except InputError:  # a damaged run is no run's companion
            continue
    return {name: found[name] for name in modalities if name in found}


def config_of(run: str, modality: str, catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration, as JSON values, of a run that is as `run`, but of one modality and without methods."""
    own, elsewhere = read(folder() / run), {*_owners(catalogue), *MEASURING}
    settings = {key: value for key, value in own.settings.items() if key.partition(".")[0] not in elsewhere}
    return replace(own, methods=(), probes={}, settings=settings | {"modalities": modality}).to_json()


def with_heads(run: str, catalogue: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a run that is as `run`, but with a loss for each modality.

    None where `run` has such losses, or cannot have them: it trains on one modality, or by an objective without logits.
    """
    own = read(folder() / run)
    values = resolved(own, catalogue)
    one_loss = values["unimodal"] == "none" and values["objective"] != "info_nce"
    if not one_loss or len(_modalities(folder() / run)) < 2:
        return None
    settings = {key: value for key, value in own.settings.items() if key not in MEASURING or key == "pace"}
    return replace(own, settings=settings | {"unimodal": "heads"}, fork=None).to_json()


def command(config: Mapping[str, Any]) -> str:
    """Return the line that trains a configuration from a shell.

    >>> command({"problem": "planted", "data": None, "steps": 50, "seed": 1, "settings": {"modalities": "audio"}})
    'python -m engine run --problem planted --steps 50 --seed 1 --set modalities=audio'
    """
    what = ["--data", str(config["data"])] if config["data"] else ["--problem", str(config["problem"])]
    words = ["python", "-m", "engine", "run", *what, "--steps", str(config["steps"]), "--seed", str(config["seed"])]
    for key, value in config["settings"].items():
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def gap(reader: RunReader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return how much better each modality scores on held-out rows trained alone than in this run, at common steps."""
    score, rows = reader.meta("score", "accuracy"), (reader.meta("rows", {}) or {}).get("val", 0)
    lines, runs = [], []
    for name, other in _readers(reader, args):
        here, joint = reader.scalars(f"{score}/val/{name}", points=None)
        there, alone = other.scalars(f"{score}/val", points=None)
        steps, i, j = np.intersect1d(here, there, return_indices=True)
        if not len(steps):
            continue
        joint, alone = joint[i], alone[j]
        values, error = (joint - alone if score == "error" else alone - joint), None
        if score == "accuracy" and rows:
            error = np.sqrt(np.clip(alone * (1 - alone) + joint * (1 - joint), 0, None) / rows)
        every = slice(None, None, -(-len(steps) // MOST_DRAWN))
        error = None if error is None else error[every]
        lines.append(Line(name, steps[every], values[every], look.part(name), error, sparse=True))
        runs.append(f"{name} alone: {spoken(other.path.parent.name)}")
    if not lines:
        return Drawing(None, empty=args["empty"] or SEVERAL)
    y = "error in company − alone" if score == "error" else f"{score} alone − in company"
    figure = series(lines, look, y=y, marks=marks(reader, look), levels=[(0.0, "")])
    figure.update_layout(showlegend=True)
    caption = f"through step {max(int(line.steps[-1]) for line in lines):,} · n = {rows:,} held-out rows, one run each"
    caption += f" · in company: {reader.meta('protocol', '') or 'its own score'} · {', '.join(runs)}"
    if lines[0].error is not None:
        caption += " · band: one standard error, as if both runs were scored on rows of their own"
    return Drawing(figure, caption)


def stamp(reader: RunReader, args: Mapping[str, Any]) -> Any:
    """Return what changes when one of the runs is evaluated anew."""
    score = reader.meta("score", "accuracy")
    names = [(reader, f"{score}/val")] + [(other, f"{score}/val") for _, other in _readers(reader, args)]
    return [[int(step) for step in known.scalars(name, points=2)[0][-1:]] for known, name in names], marked(reader)


def _readers(reader: RunReader, args: Mapping[str, Any]) -> list[tuple[str, RunReader]]:
    """Return (modality, reader) of the runs that are named, as far as each trains on one modality of this run."""
    homes = [home for name in args["names"] if (home := home_of(reader.path.parent.parent, name)) is not None]
    alone = [(_modalities(home), home) for home in homes if RunHandle(home).status().state != UNREADABLE]
    own = reader.meta("modalities", []) or []
    return [(names[0], RunReader(home)) for names, home in alone if len(names) == 1 and names[0] in own]


def _modalities(home: Path) -> list[str]:
    return list(RunReader(home).meta("modalities", []) or [])


def _owners(catalogue: Mapping[str, Any]) -> set[str]:
    """Return the first words of settings that belong to a method or a probe."""
    return {entry["name"] for kind in ("methods", "probes") for entry in catalogue[kind]}


def _alike(own: RunConfig, alone: RunConfig, catalogue: Mapping[str, Any]) -> bool:
    """Return whether two runs differ in their modalities alone, as far as training goes."""
    if not set(alone.methods) <= set(own.methods):
        return False
    elsewhere = {*_owners(catalogue), *MEASURING, "evaluate", "modalities"} - set(alone.methods)

    def trained(config: RunConfig) -> tuple:
        some = config.settings | {"modalities": alone.settings["modalities"]}  # defaults may depend on them
        settings = resolved(replace(config, settings=some), catalogue)
        kept = {k: v for k, v in settings.items() if k.partition(".")[0] not in elsewhere}
        data = str(Path(config.data).resolve()) if config.data else None
        return config.problem, data, config.seed, config.steps, kept

    return trained(own) == trained(alone)


def _changed(home: Path) -> bool:
    """Return whether methods or values were changed while the run trained, or it goes on from a step of another."""
    if read(home).fork:
        return True
    applied = RunReader(home).events(kinds=(EventKind.APPLIED,))
    return any(event.detail.get("command", {}).get("do") in ("toggle", "tune") for event in applied)
