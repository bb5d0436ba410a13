"""The tables of what claims came to, from the results that `claim … --json` printed and that were kept, one a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modalscape.engine.core.lesson import Lesson
from modalscape.engine.registry import discover

DATA = {
    "avdigits.npz": "spoken and written digits",
    "mfeat.npz": "six views of digits",
    "wikipedia.npz": "wikipedia, image and text",
    "mosi.npz": "mosi, three modalities",
    "emoji.npz": "emoji, image and words",
    "emoji_names": "emoji with their names",
    None: "built in",
}
VERDICTS = {True: "holds", False: "false", None: "undecided"}


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the results that a folder keeps, in the order of the lessons on Start."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda result: (lesson_of(result).place, lesson_of(result).name))


def lesson_of(found: Mapping[str, Any]) -> type[Lesson]:
    """Return the lesson whose claim was tried."""
    return discover("modalscape.engine.lessons", Lesson)[found["lesson"]]


def in_short(found: Sequence[Mapping[str, Any]]) -> str:
    """Return one table of all results: of each the number that its claim is about."""
    head = (
        "| Lesson | Data | Number | First arm | Against its control [95 %] | Against the others | Claim |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    return "\n".join([*head, *map(line, found)])


def in_full(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each result: every number of every arm."""
    return "".join(map(section, found)).rstrip()


def line(found: Mapping[str, Any]) -> str:
    """Return the row of one result in the short table."""
    lesson, own = lesson_of(found), found["difference"]
    first, control = own["of"], own["to"]
    others = {arm: value for arm, value in found["differences"].items() if arm != control}
    cells = [
        lesson.title,
        where(found),
        lesson.number or lesson.scalar,
        f"{spoken(first)} {found['arms'][first]['mean']:.3g}",
        f"{spoken(control)} {found['arms'][control]['mean']:.3g}: {shown(own, '+')}",
        "; ".join(f"{spoken(arm)} {shown(value, '+')}" for arm, value in others.items()),
        VERDICTS[found["holds"]],
    ]
    return "| " + " | ".join(cells) + " |"


def section(found: Mapping[str, Any]) -> str:
    """Return the table of one result, under a heading that says on what it was taken."""
    lesson, (first, last) = lesson_of(found), found["seeds"]
    lines = [
        f"\n### {lesson.title} · {where(found)}\n",
        f"{found['claim']} **{VERDICTS[found['holds']].capitalize()}.** Seeds {first} to {last}.\n",
        "| Number | Arm | Mean [95 %] | First arm minus this one, paired [95 %] |",
        "| --- | --- | --- | --- |",
    ]
    for words, number in {f"**{lesson.number or lesson.scalar}**": found, **found["further"]}.items():
        lines += rows(words, number)
    return "\n".join(lines) + "\n"


def where(found: Mapping[str, Any]) -> str:
    """Return the data of a result, and the settings that all arms had beside their own."""
    settings = [f"`{key}={value}`" for key, value in found["settings"].items()]
    return ", ".join([DATA[found["data"]], *settings])


def rows(words: str, number: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for each arm, and one for each pair of arms that belong together."""
    for arm, value in number["arms"].items():
        difference = number["differences"].get(arm)
        told = "" if difference is None else shown(difference, "+")
        yield f"| {words} | {spoken(arm)} | {shown(value)} | {told} |"
        words = ""
    for arm, value in number["pairs"].items():
        yield f"| | {spoken(arm)} minus {spoken(value['to'])} | {shown(value, '+')} | |"


def shown(value: Mapping[str, Any], sign: str = "") -> str:
    """Return a mean with its interval."""
    low, high = value["low"], value["high"]
    bounds = "" if low is None else f" [{low:{sign}.3g}, {high:{sign}.3g}]"
    return f"{value['mean']:{sign}.3g}{bounds}"


def spoken(arm: str) -> str:
    """Return the name of an arm in words."""
    return arm.replace("_", " ")
