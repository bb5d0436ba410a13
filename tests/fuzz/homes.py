"""Homes of runs, damaged in every way that a seed can draw, beside a good one; and all that looks at them."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import socket
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from modalscape.app.charts.registry import CHARTS
from modalscape.app.charts.request import ChartError
from modalscape.app.runs.status import listed, standing
from modalscape.app.runs.supervisor import Supervisor, note_of
from modalscape.app.server import routes
from modalscape.app.server.routes import Desk
from modalscape.app.views import log
from modalscape.engine.cli import entry
from modalscape.engine.store.reader import RunReader
from tests.fuzz.inputs import RUN, Faults, badly_said, within
from tests.fuzz.values import NUMBERS, STRANGE, WORDS, bytes_of, odd

DAMAGED = "damaged-run"
SECONDS = 60.0
"""Seconds that a command may take."""
FILES = (
    *("run.db",) * 4,
    *("control.db", "config.json", "observed.db") * 2,
    *("run.db-wal", "run.db-shm", "control.db-wal", "control.db-shm", "run.db-journal"),
    *("observed.db-wal", "observer-1.lock", "snapshot.pt"),
    *("lock", "pulse", "log.txt", "note.txt", "checkpoints", "path", "checkpoints/newest", "path/newest"),
)
KINDS = ("changed", "changed", "missing", "folder", "loop", "dangling", "pipe", "socket")
ODD_TEXTS = ("", "x", "{", "[1]", "{}", "null", "NaN", "1e999", "[" * 5000, "9" * 5000, '{"id": "x"}', '{"command": 5}')


def damage(rng: random.Random, home: Path) -> str:
    """Damage one file of a home; return what was done."""
    name = rng.choice(FILES)
    path = home / name
    if name.endswith("/newest"):
        path = max(path.parent.glob("[0-9]*"))
    if name in ("run.db", "control.db", "observed.db") and rng.random() < 0.5:
        return f"{name}: {_rows(rng, path)}"
    if name == "config.json" and rng.random() < 0.5:
        values = json.loads(path.read_text())
        key = rng.choice(sorted({*values, "fork"}))
        values[key] = odd(rng)
        path.write_text(json.dumps(values))
        return f"config.json: {key} = {values[key]!r:.60}"
    kind = rng.choice(KINDS)
    whole = path.read_bytes() if path.is_file() else rng.randbytes(4096)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "changed":
        path.write_bytes(bytes_of(rng, whole))
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with tempfile.TemporaryDirectory() as short, closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(f"{short}/s")  # a socket's path may have a hundred characters or so
            os.rename(f"{short}/s", path)
    return f"{name}: {kind}"


def _rows(rng: random.Random, path: Path) -> str:
    """Change a database as an older version or a foreign program would; return what was done."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice([name for name in tables if not name.startswith("sqlite_")])
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        column, what = rng.choice(columns), rng.randrange(5)
        db.execute("DROP VIEW IF EXISTS scalar")
        if what == 0:
            db.execute(f"DROP TABLE {table}")
            return f"without the table {table}"
        if what == 1:
            db.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO older")
            return f"without {table}.{column}"
        value = rng.choice((*ODD_TEXTS, *WORDS, *NUMBERS, *STRANGE, rng.randbytes(20)))
        if isinstance(value, int) and abs(value) >= 2**63:
            value = float(value) if abs(value) < 10**300 else None
        value = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        cast = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
        key = {"array": "id", "event": "id", "meta": "key", "command": "id"}.get(table, columns[0])
        some = f"{key} IN (SELECT {key} FROM {table} ORDER BY random() LIMIT {rng.choice((1, 1, 1000))})"
        with suppress(sqlite3.IntegrityError):  # a key that the database itself refuses
            db.execute(f"UPDATE OR IGNORE {table} SET {column} = {cast} WHERE {some}", (value,))
        return f"{table}.{column} = {value!r:.60}"


def wanted(home: Path) -> str:
    """Return a request for every chart of a run, as far as what it recorded can be read."""
    asked = [["series", {"names": ["loss/*"]}, ""], ["panel", {"names": ["*"]}, ""], ["pipeline", {}, ""]]
    asked += [[name, {"names": ["*"]}, ""] for name in sorted(CHARTS)]
    try:
        asked += [["record", {"names": [name]}, ""] for name in list(RunReader(home).names()["records"])[:40]]
    except ValueError:
        return json.dumps(asked)
    return json.dumps([entry for entry in asked if all(map(_plain, entry[1].get("names", [])))])


def _plain(name: str) -> bool:
    return len(name) < 180 and name.isprintable() and not set(name) & set("<>")


def looked_at(runs: Path, home: Path, good: Path, *, thorough: bool) -> list[str]:
    """Look at both runs in every way in which the dashboard does; return what went wrong."""
    faults, wrong = Faults(), []

    def sees(what: str, look: Callable[[], object], held: Callable[[object], bool] = lambda found: True) -> None:
        try:
            with within(SECONDS):
                found = look()
                if not held(found):
                    wrong.append(f"{what}: {found!r:.300}")
        except ChartError as error:
            if badly_said(str(error)):
                wrong.append(f"{what}: {error}")
        except BaseException as error:  # what is looked for
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")

    logging.getLogger().addHandler(faults)
    try:
        sees("adopt", lambda: Supervisor(1).adopt())
        sees("roll", lambda: {run: at for run, at, _ in routes.roll(runs)}, lambda found: found[RUN] == "finished")
        sees("listed", lambda: [run for run, _ in listed(runs)], lambda found: RUN in found)
        stands = []
        sees("standing", lambda: stands.append(standing(DAMAGED, home)) or json.dumps(stands[-1].to_json()))
        if stands and stands[0].state == "unreadable" and badly_said(stands[0].error):
            wrong.append(f"standing: {stands[0].error}")
        sees("printed", lambda: (log.logged(DAMAGED), note_of(home)))
        charts = wanted(home) if thorough else '[["series", {"names": ["loss/*"]}, ""]]'
        sees("charts", lambda: json.loads(Desk().pulse(DAMAGED, charts, False)))
        own = json.dumps([["series", {"names": ["loss/*"]}, ""], ["record", {"names": ["hessian/spectrum"]}, ""]])
        drawn = lambda found: all(chart["figure"] for chart in found["charts"])  # noqa: E731
        sees("charts of the good run", lambda: json.loads(Desk().pulse(RUN, own, False)), drawn)
    finally:
        logging.getLogger().removeHandler(faults)
    return wrong + [f"fault: {fault}" for fault in faults.found]


def commanded(home: Path, *arguments: object) -> tuple[int, str]:
    """Run a command on a home; return its exit code and what is wrong with how it ended."""
    out, err = io.StringIO(), io.StringIO()
    words = [str(word) for word in arguments]
    try:
        with within(SECONDS), redirect_stdout(out), redirect_stderr(err):
            code = entry(words)
    except BaseException as error:  # what is looked for
        return -1, f"{words[0]}: {type(error).__name__}: {str(error)[:300]}"
    said = [line for line in err.getvalue().splitlines() if line.startswith("Error: ")]
    if "Traceback" in err.getvalue() or "fault of the program" in err.getvalue():
        return code, f"{words[0]}: {err.getvalue()[-400:]}"
    if code in (2, 3) and (len(said) != 1 or badly_said(said[0].removeprefix("Error: "))):
        return code, f"{words[0]}: exit {code}, said {err.getvalue()[-400:]!r}"
    if code not in (0, 1, 2, 3, 4, 6) or (code == 1 and words[0] != "replay"):
        return code, f"{words[0]}: exit {code}"
    return code, ""


def tried(
    rng: random.Random, template: Path, runs: Path, tables: Path, *, dearly: float
) -> tuple[str, Counter, list[str]]:
    """Damage a copy of `template` in `runs`, look at it, and give commands on it; return what was done and seen.

    In a share of the cases, `dearly`, an engine tries to train or to measure there, too.
    """
    home, good = runs / DAMAGED, runs / RUN
    if os.path.lexists(home):
        shutil.rmtree(home)
    shutil.copytree(template, home)
    done = damage(rng, home)
    wrong, codes = looked_at(runs, home, good, thorough=rng.random() < 0.3), Counter()
    dear = rng.choice((("replay", home), ("probe", home, "trajectory"), ("resume", home, "--steps", 44)))
    cheap = [("list", "--runs", runs), ("show", home), ("export", home, "--to", "csv", tables)]
    for words in [*cheap, dear] if rng.random() < dearly else cheap:
        code, fault = commanded(home, *words)
        codes[f"{words[0]} {code}"] += 1
        wrong += [fault] if fault else []
    wrong += looked_at(runs, home, good, thorough=False)
    return done, codes, wrong
