"""The tables in a checkout's documents, made from the catalogue and from results: `python -m modalscape.documentation`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, once in all documents.
"""

from __future__ import annotations

import re
from pathlib import Path

from modalscape.app.runs.limits import LIMITS
from modalscape.engine.catalog import catalog
from modalscape.engine.runtime import claim_tables

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "docs/methods.md", ROOT / "docs/server.md", ROOT / "docs/claims.md")


def tables() -> dict[str, str]:
    """Return table name to Markdown."""
    found, results = catalog(), claim_tables.results(ROOT / "docs/claims")
    return {
        "claims": claim_tables.in_short(results),
        "claims in full": claim_tables.in_full(results),
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


def filled() -> dict[Path, str]:
    """Return each document with its tables made anew.

    Raises:
        ValueError: a table has no place, or several.
    """
    texts = {page: page.read_text() for page in PAGES}
    for name, table in tables().items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        count = 0
        for page, text in texts.items():
            texts[page], n = re.subn(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
            count += n
        if count != 1:
            raise ValueError(f"The table {name!r} has {count} places in the documents and must have one.")
    return texts


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _source(method: dict) -> str:
    return ("Our reconstruction. " if method["reconstructed"] else "") + method["source"]


def _knobs(method: dict) -> str:
    return ", ".join(f"`{k['name']}`" for k in method["knobs"]) or "none"


def write() -> None:
    """Write the documents whose tables are stale, and say which."""
    for page, text in filled().items():
        if text != page.read_text():
            page.write_text(text)
            print(f"{page.relative_to(ROOT)} is written anew.")


if __name__ == "__main__":
    write()
