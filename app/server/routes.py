"""What the server answers to the pages' poller: one GET a tick with everything that changed, and the scripts.

Handlers are plain functions on a reader, read-only; commands go through the page's session, never by a route.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modalscape.app import catalog
from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.charts.request import ChartError, Drawing
from modalscape.app.charts.series_cache import Tails
from modalscape.app.runs.acknowledged import controls
from modalscape.app.runs.status import DEAD, Standing, folder, home_of, listed, standing, tag
from modalscape.app.text import harmless
from modalscape.app.theme import Look, look
from modalscape.engine.errors import InputError, sentence
from modalscape.engine.store.files import brief, value_of
from modalscape.engine.store.words import State
from modalscape.engine.store.writer import RunReader

BASE = "/modalscape"
MOST_CHARTS = 96
LONGEST = 200_000
"""Characters of a request for charts."""
FAST, SLOW, RESTING = 250, 1000, 3000
"""Milliseconds to the next tick: while a command or a start waits, while a run lives, when nothing can change."""
REREAD = 0.2
"""Seconds for which it is known how a run stands."""
REDRAW = 0.8
"""Seconds for which a drawing is good enough, however fast the run records."""
NEW = 3.0
"""Seconds after it was first asked for in which a drawing follows its run as fast as it records: both may be new."""
_LOG = logging.getLogger(__name__)
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_NEVER = {"Cache-Control": "no-store"}
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'"
"""A page of this server loads from and talks to this server alone, whatever a text or a chart should ask for."""


class Kept:
    """Values that are expensive to make, each made once: the newest `most` of them, one maker at a time per key."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.values: OrderedDict[Any, tuple[Any, Any, float, float]] = OrderedDict()
        self.locks: dict[Any, threading.Lock] = {}
        self.guard = threading.Lock()

    def get(
        self, key: Any, stamp: Callable[[], Any], make: Callable[[], Any], fresh: float = 0.0, new: float = 0.0
    ) -> Any:
        """Return the value kept under `key` if it is younger than `fresh` seconds or has this stamp; else make it.

        For `new` seconds after it was first asked for, only the stamp counts.
        """
        with self.guard:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            held = self.values.get(key)
            now = time.monotonic()
            first = held[3] if held is not None else now
            if held is not None and now - held[2] < fresh and now - first >= new:
                return held[1]
            mark = stamp()
            value = held[1] if held is not None and held[0] == mark else make()
            with self.guard:
                self.values[key] = (mark, value, now, first)
                self.values.move_to_end(key)
                while len(self.values) > self.most:
                    old, _ = self.values.popitem(last=False)
                    self.locks.pop(old, None)
            return value


class Desk:
    """Answers the poller of every page of one server; a drawing is made once per (run, chart, version)."""

    def __init__(self) -> None:
        self.tails = Tails()
        self.drawings, self.bodies = Kept(400), Kept(200)
        self.standings, self.lists = Kept(200), Kept(2)

    def head(self, run: str, home: Path, known: str = "") -> bytes:
        """Return how a run stands as the start of a tick, read at most five times a second however many look.

        What the run acknowledges to its controls is in it unless the page has it, under the tag `known`.
        """
        head, tag, controls = self.standings.get(run, time.monotonic, lambda: _head(standing(run, home)), fresh=REREAD)
        return head if tag == known else head + controls

    def runs_tag(self) -> str:
        """Return a text that changes when a run appears, goes, changes state or gets visibly further."""
        return self.lists.get("tag", time.monotonic, lambda: tag(roll(folder())), fresh=1.0)

    def drawing(self, run: str, home: Path, name: str, args: dict[str, Any], dark: bool) -> tuple[str, bytes]:
        """Return (version, JSON of figure, caption, empty and steps) of one chart of a run."""
        reader = self.tails.reader(home)
        chart = CHARTS[name]
        key = (run, name, json.dumps(args, sort_keys=True), dark)
        make = lambda: packed(chart.draw(reader, args, looks(reader, dark)))  # noqa: E731  made only when it is needed
        try:
            return self.drawings.get(key, lambda: chart.stamp(reader, args), make, fresh=REDRAW, new=NEW)
        except ChartError:
            raise
        except InputError as error:
            return packed(Drawing(None, empty=str(error)))
        except Exception:  # one chart's fault must not take the others of its page along
            _LOG.exception("The chart %s of %s could not be drawn with %s", name, run, args)
            return packed(Drawing(None, empty="This chart cannot be drawn; why stands in the server's log."))

    def pulse(self, run: str, asked: str, dark: bool, known: str = "") -> bytes:
        """Return one tick as JSON: how the run stands, and of the `asked` charts those that changed.

        `asked` is a JSON list of `[name, arguments, version that the page has]`, `known` the tag of the controls that
        it has.

        Raises:
            ChartError: a request that no page makes.
        """
        wanted = _requests(asked)
        if not run:
            return json.dumps({"next": SLOW, "tags": {"runs": self.runs_tag()}, "status": None, "charts": []}).encode()
        home = home_of(folder(), run)
        if home is None:
            raise ChartError("There is no such run.")
        parts = []
        for name, args, has in wanted:
            now, body = self.drawing(run, home, name, args, dark)
            parts.append(b"null" if now == has else body)
        return self.head(run, home, known) + b',"charts":[' + b",".join(parts) + b"]}"


def _head(stands: Standing) -> tuple[bytes, str, bytes]:
    """Return the start of a tick, and the tag and JSON of what the run acknowledges to its controls."""
    hurry = stands.pending or stands.state == State.STARTING
    wait = FAST if hurry else RESTING if stands.state in DEAD and not stands.busy else SLOW
    head = json.dumps({"next": wait, "tags": stands.tags, "status": stands.to_json()})[:-1].encode()
    found = controls(stands)
    return head, found["tag"], f',"controls":{json.dumps(found)}'.encode()


def roll(runs: Path) -> list[tuple]:
    """Return what the list of runs shows of each: id, state, progress in fiftieths."""
    out = []
    for run, home in listed(runs)[:60]:
        now = standing(run, home)
        out.append((run, now.state, 50 * now.step // max(now.steps, 1)))
    return out


def looks(reader: RunReader, dark: bool) -> Look:
    """Return the colours for a run."""
    return look(dark, reader.meta("modalities", []) or [], sorted(catalog.titles()))


def packed(drawing: Drawing) -> tuple[str, bytes]:
    """Return a drawing as JSON with its version, a hash of what is drawn; arrays travel as base64."""
    figure = "null" if drawing.figure is None else harmless(drawing.figure)
    words = json.dumps({"caption": drawing.caption, "empty": drawing.empty, "steps": [int(s) for s in drawing.steps]})
    mark = hashlib.sha256(figure.encode() + words.encode()).hexdigest()[:16]
    return mark, f'{{"tag":"{mark}","figure":{figure},{words[1:]}'.encode()


def _requests(asked: str) -> list[tuple[str, dict[str, Any], str]]:
    try:
        wanted = value_of(asked[:LONGEST] or "[]")
    except ValueError as error:
        raise ChartError(f"The charts asked for are not JSON ({brief(error)}).") from None
    if not isinstance(wanted, list) or len(wanted) > MOST_CHARTS:
        raise ChartError(f"A page asks for up to {MOST_CHARTS} charts.")
    out = []
    for entry in wanted:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
            raise ChartError("A chart is asked for as [name, arguments, version].")
        out.append((entry[0], checked(entry[0], entry[1]), str(entry[2])))
    return out


def routes() -> list[Route]:
    """Return the server's own routes: GET only, below `/modalscape`."""
    desk = Desk()

    def pulse(request: Request) -> Response:
        query = request.query_params
        try:
            body = desk.pulse(
                query.get("run", ""), query.get("charts", ""), query.get("dark") == "1", query.get("controls", "")
            )
        except (ChartError, InputError) as error:
            return PlainTextResponse(sentence(str(error)), 400, _NEVER)
        if len(body) < 2048 or "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(body, media_type="application/json", headers=_NEVER)
        small = desk.bodies.get(hashlib.sha256(body).digest(), lambda: 0, lambda: gzip.compress(body, 2))
        return Response(small, media_type="application/json", headers=_NEVER | {"Content-Encoding": "gzip"})

    return [
        Route(f"{BASE}/pulse", pulse, methods=["GET"]),
        Route(plotly_path(), lambda request: _script(plotly_script()), methods=["GET"]),
        *[Route(path, _served(name), methods=["GET"]) for name, path in live_paths().items()],
    ]


def plotly_path() -> str:
    """Return where plotly.js is served; the path names its version, so browsers may keep it for good."""
    return f"{BASE}/plotly-{version('plotly')}.js"


def live_path() -> str:
    """Return where the live component's script is served."""
    return live_paths()["live.js"]


def live_paths() -> dict[str, str]:
    """Return name to path of the live component's files; the path names their content, so browsers may keep them."""
    digest = hashlib.sha256(b"".join(live_files().values())).hexdigest()[:12]
    return {name: f"{BASE}/live-{digest}/{name}" for name in live_files()}


@cache
def plotly_script() -> bytes:
    """Return plotly.js, gzipped once; the Python package carries it."""
    return gzip.compress(files("plotly").joinpath("package_data/plotly.min.js").read_bytes(), 9, mtime=0)


@cache
def live_files() -> dict[str, bytes]:
    """Return name to content, gzipped, of the live component's scripts and style sheet."""
    folder = Path(__file__).parent / "js"
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.*s"))}
    found["words.js"] = f"export const STATE = {json.dumps({state.name: state for state in State})};".encode()
    return {name: gzip.compress(content, 9, mtime=0) for name, content in found.items()}


def _served(name: str) -> Callable[[Request], Response]:
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return lambda request: _script(live_files()[name], kind)


def _script(content: bytes, kind: str = "text/javascript") -> Response:
    return Response(content, media_type=kind, headers=_FOREVER | {"Content-Encoding": "gzip"})


def headers() -> Iterable[tuple[bytes, bytes]]:
    """Return the security headers of every answer."""
    return (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"SAMEORIGIN"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"content-security-policy", _POLICY),
    )


class SecurityHeaders:
    """Middleware that adds the security headers to HTTP answers."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on, its answer with the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message):
            if message["type"] == "http.response.start":
                held = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in headers() if n not in held)]
            await send(message)

        await self.app(scope, receive, guarded)
