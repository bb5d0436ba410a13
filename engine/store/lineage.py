"""Where a fork comes from: the run and the step from which it goes on, and what that run recorded up to there.

Nothing is copied: a reader of a fork reads its ancestors' files too, each as far as it is part of the fork's past. Of
an ancestor from which the line leaves at step N that is

- numbers of steps before N, and those of measurements at N: the loss of step N is of the step that leads away from N,
  which the fork takes itself, while an eigenvalue at N is of the state that both share;
- likewise measurements up to N, and reports of methods before N;
- events up to N, of those of its engine at N only the ones that were there when the fork was made.

Free of torch.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from modalscape.engine.errors import InputError, shown
from modalscape.engine.store.database import Source, readonly
from modalscape.engine.store.files import fits, text_of, value_of, whole

_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
MOST = 64
"""Generations of forks that are followed."""


def _path(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".") and "\0" not in value and len(value) < 4096


def _seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


FORK: dict[str, Any] = {
    "of": _path,
    "step": whole,
    "theta": lambda value: isinstance(value, str) and bool(_SHA256.fullmatch(value)),
    "seed": _seed,
    "event": whole,
    "horizon": lambda value: whole(value) and value > 0,
}
"""What a fork's configuration says of where it comes from, to its shape: `of`, the path of its parent from the folder
that holds the fork, so beside it the parent's id; `step` at which it leaves; `theta`, the SHA-256 of the parameters
there, empty until its engine has first been there; `seed` of the data and the first theta; `event`, number of the
parent's newest event when the fork was made; `horizon`, steps over which the learning rate is scheduled."""


@dataclass(frozen=True)
class Ancestor:
    """A run that trained the first steps of a fork."""

    home: Path
    step: int
    """The step at which the line that leads to the fork leaves it."""
    event: int
    """Number of its newest event that is part of the fork's past."""


def fork_of(home: Path | str) -> dict[str, Any] | None:
    """Return what the run in `home` says of where it comes from, with the fields of FORK; None where it is no fork.

    Raises:
        InputError: its configuration says it in another shape. One that cannot be read at all says nothing.
    """
    path = Path(home) / "config.json"
    try:
        seen = path.stat()
    except (OSError, ValueError):
        return None
    found = _said(path, (seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size))
    if found is None or fits(found, FORK):
        return found
    raise InputError(f"{path} does not say where this fork comes from (fork is {shown(found)}); restore that file.")


@lru_cache(maxsize=2048)
def _said(path: Path, mark: tuple) -> Any:
    try:
        values = value_of(text_of(path))
    except (OSError, ValueError):  # whoever needs the rest of it says so
        return None
    return values.get("fork") if isinstance(values, dict) else None


def parent_of(home: Path | str, fork: Mapping[str, Any]) -> Path:
    """Return the folder of the run from which the fork in `home` comes, whether it is there or not."""
    return Path(os.path.normpath(Path(home).absolute().parent.resolve() / fork["of"]))


def reference(parent: Path, home: Path) -> str:
    """Return how the fork in `home` names its parent: by its path from the folder that holds the fork."""
    return Path(os.path.relpath(Path(parent).resolve(), Path(home).absolute().parent.resolve())).as_posix()


def missing(parent: Path, step: int) -> str:
    """Return the sentence about a parent that is not there any more."""
    return f"The run {parent.name}, from which this one was forked at step {step}, was deleted or moved."


def ancestors(home: Path | str) -> tuple[list[Ancestor], str]:
    """Return the runs that trained the first steps of the run in `home`, parent first, as far as they are there.

    With them comes a sentence where one is missing or its configuration is damaged, else nothing.
    """
    found: list[Ancestor] = []
    here, step, seen = Path(home).absolute(), None, set()
    while True:
        try:
            fork = fork_of(here)
        except InputError as error:
            return found, f"{str(error).rstrip('.')}; what came before is not shown."
        if fork is None:
            return found, ""
        seen.add(here)
        here, step = parent_of(here, fork), fork["step"] if step is None else min(step, fork["step"])
        if here in seen or len(found) >= MOST:
            return found, f"The forks of {Path(home).name} lead in a circle, so what came before is not shown."
        if not os.path.lexists(here / "run.db"):
            return found, missing(here, fork["step"]) + " What it recorded is not shown."
        found.append(Ancestor(here, step, fork["event"]))


_NUMBER = """CREATE TEMP VIEW number AS SELECT name, step, value FROM main.number
    WHERE step >= 0 AND step <= {step} AND typeof(value) IN ('integer', 'real', 'null') AND (step < {step} OR name IN
    (SELECT name.id FROM main.name AS name JOIN temp.array AS held ON held.name = name.name
     WHERE held.step = {step} AND held.kind = 'scalar'))"""
_ARRAY = """CREATE TEMP VIEW array AS SELECT id, name, step, kind, data, about FROM main.array
    WHERE step >= 0 AND step <= {step} AND (step < {step} OR {measured})"""
_NAME = """CREATE TEMP VIEW name AS SELECT id, name FROM main.name AS known
    WHERE EXISTS (SELECT 1 FROM temp.number AS held WHERE held.name = known.id)"""
_EVENT = """CREATE TEMP VIEW event AS SELECT id, step, time, kind, detail FROM main.event
    WHERE step >= 0 AND step <= {step} AND {known}"""
# Records of a probe begin with its name, and so do those of methods, which are reports of the step that leads away.
_PROBED = """substr(name, 1, instr(name || '/', '/') - 1) IN
    (SELECT CASE WHEN json_valid(detail) THEN json_extract(detail, '$.name') END FROM main.event
     WHERE kind = 'probe' AND step = {step})"""


class Inherited(Source):
    """A file of an ancestor as far as it is part of a fork's past; the tables have the names that they have there."""

    def __init__(self, path: Path, ancestor: Ancestor, *, observed: bool) -> None:
        """Read the file at `path`, `observed` where an observer wrote it and not the engine."""
        super().__init__(path)
        step = int(ancestor.step)
        measured = "1" if observed else _PROBED.format(step=step)
        known = "1" if observed else f"id <= {int(ancestor.event)}"
        views = (_ARRAY, _NUMBER, _NAME, _EVENT)
        self._views = [view.format(step=step, measured=measured, known=known) for view in views]

    def opened(self) -> sqlite3.Connection:
        """Return a connection that sees that part and nothing else.

        Raises:
            Unreadable: the file is damaged or gone.
        """
        db = readonly(self.path)
        db.execute("PRAGMA temp_store=MEMORY")
        for view in self._views:
            db.execute(view)
        return db


def within(home: Path | str, step: int) -> Path:
    """Return the run that trained up to `step` on the way to the run in `home`: itself, or one of its ancestors.

    Raises:
        InputError: that one is not there any more, or the fork's configuration is damaged.
    """
    here = Path(home)
    for _ in range(MOST):
        fork = fork_of(here)
        if fork is None or step >= fork["step"]:
            return here
        parent = parent_of(here, fork)
        if not os.path.lexists(parent / "config.json"):
            raise InputError(f"{missing(parent, fork['step'])} Give a step of at least {fork['step']}, or restore it.")
        here = parent
    raise InputError(f"The forks of {Path(home).name} lead in a circle; restore the configuration of the first one.")
