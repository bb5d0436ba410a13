"""Ids of runs, the names of their folders. Free of torch."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

LONGEST = 61
"""Characters of an id."""
RUN_ID = re.compile(rf"^[a-z0-9][a-z0-9-]{{2,{LONGEST - 1}}}$")
"""What an id looks like."""

_LONGEST_STEM = 24
_FORKED = re.compile(r"(-fork-\d+-[0-9a-f]{4})+$")


def new_id(problem: str | None, data: str | None = None) -> str:
    """Return an id for a run: its problem or the name of its file of data, the time, four digits against collisions.

    >>> new_id("planted")[:8], new_id(None, "/any where/My Data.npz")[:8]
    ('planted-', 'my-data-')
    """
    stem = _plain(Path(data).stem if data else problem or "")[:_LONGEST_STEM].rstrip("-")
    return f"{stem}-{time.strftime('%y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def fork_id(parent: str, step: int, four: str | None = None) -> str:
    """Return an id for a fork: its parent's, the step and four hexadecimal digits, new ones where none are given.

    >>> fork_id("planted-261128-050112-ab12", 200, "0f3c"), fork_id("a" * 80, 7, "0f3c")[-16:]
    ('planted-261128-050112-ab12-fork-200-0f3c', 'aaaa-fork-7-0f3c')
    """
    end = f"-fork-{step}-{four or secrets.token_hex(2)}"
    return _plain(_FORKED.sub("", parent.lower()))[: LONGEST - len(end)].rstrip("-") + end


def _plain(text: str) -> str:
    """Return a text as words of lower-case letters and digits with hyphens between, or "run" where it has none."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "run"
