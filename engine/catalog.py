"""All plug-ins described as JSON, so that pages, command line and README need no torch and no second list."""

from __future__ import annotations

import inspect
import re
from typing import Any

from modalscape.engine.config import RunSettings
from modalscape.engine.core.knobs import describe
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.core.method import Method
from modalscape.engine.core.optimizer import RESCALING, Settings
from modalscape.engine.core.probe import Probe
from modalscape.engine.data.dataset import Source
from modalscape.engine.registry import discover


def catalog() -> dict[str, Any]:
    """Return methods, probes, problems, lessons and general settings as JSON values.

    `rescaling` lists the optimisers that divide gradients by their running size.
    """
    return {
        "methods": [_method(c) for c in discover("modalscape.engine.methods", Method).values()],
        "probes": [_probe(c) for c in discover("modalscape.engine.probes", Probe).values()],
        "problems": [_problem(c) for c in discover("modalscape.engine.problems", Source).values()],
        "lessons": [
            _lesson(c) for c in sorted(discover("modalscape.engine.lessons", Lesson).values(), key=lambda c: c.place)
        ],
        "settings": describe(RunSettings) + [k | {"name": f"optimizer.{k['name']}"} for k in describe(Settings)],
        "rescaling": list(RESCALING),
    }


def section(doc: str, title: str) -> str:
    r"""Return one section of a plug-in's docstring: the text after `*title*` up to the next such heading.

    >>> section("x\\n\\n*Acts at*: update.\\n\\n*Source*: a paper.", "Source")
    'a paper.'
    """
    found = re.search(rf"\*{title}\*:?\s*(.*?)(?=\n\s*\n?\*[A-Z][a-z ]+\*|\Z)", doc, re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""


def _method(method: type[Method]) -> dict[str, Any]:
    doc = _doc(method)
    return {
        "name": method.name,
        "title": method.title,
        "points": list(method.points()),
        "after": list(method.after),
        "neutral": method.neutral,
        "needs": [need.to_json() for need in method.needs],
        "modalities": list(method.modalities),
        "knobs": method.knobs(),
        "summary": doc.split("\n\n")[0].replace("\n", " "),
        "source": section(doc, "Source"),
        "doc": doc,
        "reconstructed": method.reconstructed,
        "rescaled": method.rescaled,
        "judged": method.judged,
        "shown_by": list(method.shown_by),
    }


def _probe(probe: type[Probe]) -> dict[str, Any]:
    doc = _doc(probe)
    return {
        "name": probe.name,
        "title": probe.title,
        "every": probe.every,
        "cost": probe.cost,
        "usual": probe.usual,
        "needs": probe.needs,
        "knobs": probe.knobs(),
        "summary": doc.split("\n\n")[0].replace("\n", " "),
        "doc": doc,
    }


def _problem(source: type[Source]) -> dict[str, Any]:
    doc = _doc(source)
    return {
        "name": source.name,
        "title": source.title,
        "modalities": list(source.modalities),
        "defaults": source.defaults,
        "knobs": describe(source.Params),
        "summary": doc.split("\n\n")[0].replace("\n", " "),
        "source": section(doc, "Source"),
        "doc": doc,
    }


def _lesson(lesson: type[Lesson]) -> dict[str, Any]:
    return {key: getattr(lesson, key) for key in ("name", "title", "words", "claim", "arms", "control", "show")}


def _doc(plug_in: type) -> str:
    return inspect.cleandoc(inspect.getmodule(plug_in).__doc__ or plug_in.__doc__ or "")
