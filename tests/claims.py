"""The tables of claims in README.md and docs/claims.md, from what `python -m engine claim … --json` printed.

`python -m tests.claims` writes them. Each file in docs/claims is one such result; a test fails where a page is stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modalscape.engine.core.lesson import Lesson
from modalscape.engine.registry import discover

ROOT = Path(__file__).resolve().parent.parent
README, PAGE, RESULTS = ROOT / "README.md", ROOT / "docs/claims.md", ROOT / "docs/claims"
START, END = "<!-- claims -->\n", "<!-- end -->"
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


def results() -> list[dict[str, Any]]:
    """Return the results that were kept, in the order of the lessons on Start."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(found, key=lambda result: (lesson_of(result).place, lesson_of(result).name))


def lesson_of(found: Mapping[str, Any]) -> type[Lesson]:
    """Return the lesson whose claim was tried."""
    return discover("modalscape.engine.lessons", Lesson)[found["lesson"]]


def readme() -> str:
    """Return the README with its table made anew: the number that each claim is about."""
    head = (
        "| Lesson | Data | Number | First arm | Against its control [95 %] | Against the others | Claim |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    return _between(README.read_text(), "\n".join([*head, *map(line, results())]) + "\n")


def page() -> str:
    """Return the page of claims with its tables made anew: every number of every arm."""
    return _between(PAGE.read_text(), "".join(map(section, results())))


def line(found: Mapping[str, Any]) -> str:
    """Return the row of one result in the README."""
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


def _between(text: str, tables: str) -> str:
    before, start, rest = text.partition(START)
    inside, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"There must be one pair of markers, {START.strip()} and {END}.")
    return before + start + tables + end + after


if __name__ == "__main__":
    README.write_text(readme())
    PAGE.write_text(page())
