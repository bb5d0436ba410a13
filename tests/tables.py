"""The README's tables, made from the catalogue: `python -m tests.tables --write`; a test fails when they are stale."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from modalscape.app.runs.limits import LIMITS
from modalscape.engine.catalog import catalog

README = Path(__file__).resolve().parent.parent / "README.md"


def tables() -> dict[str, str]:
    """Return table name to Markdown."""
    found = catalog()
    return {
        "methods": _table(
            ("Method", "Name", "Acts at", "Public source", "Knobs"),
            [(m["title"], f"`{m['name']}`", ", ".join(m["points"]), _source(m), _knobs(m)) for m in found["methods"]],
        ),
        "probes": _table(
            ("Probe", "Name", "Cost", "Every", "Shows"),
            [(p["title"], f"`{p['name']}`", p["cost"], f"{p['every']} steps", p["summary"]) for p in found["probes"]],
        ),
        "problems": _table(
            ("Problem", "Name", "Modalities", "What it is", "Source"),
            [
                (p["title"], f"`{p['name']}`", ", ".join(p["modalities"]), p["summary"], p["source"])
                for p in found["problems"]
            ],
        ),
        "lessons": _table(
            ("Lesson", "Name", "Claim"),
            [(entry["title"], f"`{entry['name']}`", entry["claim"]) for entry in found["lessons"]],
        ),
        "limits": _table(
            ("At most", "Usually", "Variable"),
            [(limit.what, limit.words or f"{limit.usual:,}", f"`{limit.variable}`") for limit in LIMITS.values()],
        ),
    }


def filled(text: str) -> str:
    """Return the text with the table between each pair of markers made anew."""
    for name, table in tables().items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md must hold one pair of markers for the table {name!r}.")
    return text


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _source(method: dict) -> str:
    return ("Our reconstruction. " if method["reconstructed"] else "") + method["source"]


def _knobs(method: dict) -> str:
    return ", ".join(f"`{k['name']}`" for k in method["knobs"]) or "none"


if __name__ == "__main__":
    text = filled(README.read_text())
    if "--write" in sys.argv:
        README.write_text(text)
    elif text != README.read_text():
        sys.exit("The README's tables are stale; run `make docs`.")
