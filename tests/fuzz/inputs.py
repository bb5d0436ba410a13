"""What comes from outside, odd in every way a seed can draw: data files, configurations, options, commands, requests.

`cases(kind)` yields what to try; `attempt` says how it ended: with a result, refused by one sentence, or with a leak.
"""

from __future__ import annotations

import io
import json
import logging
import random
import signal
import sqlite3
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from starlette.applications import Starlette
from starlette.testclient import TestClient

from modalscape.app.charts.registry import CHARTS
from modalscape.app.charts.request import ChartError
from modalscape.app.server import routes
from modalscape.engine import config as configuration
from modalscape.engine.catalog import catalog
from modalscape.engine.cli import _intervals, _settings
from modalscape.engine.client.handle import mailbox
from modalscape.engine.config import RunConfig, resolved, settings_known, validated
from modalscape.engine.core.rng import Rng
from modalscape.engine.data import npz
from modalscape.engine.errors import InputError
from modalscape.engine.store import commands as control
from modalscape.engine.store.writer import RunReader
from tests.fuzz.values import NUMBERS, WORDS, bytes_of, changed, odd, text

LONGEST = 420
"""Characters of a sentence."""
SECONDS = 10.0
"""Seconds after which a case has hung."""
RUN = "digits-captions-fixture"


class Hung(BaseException):
    """A case that did not end in time."""


@contextmanager
def within(seconds: float):
    """End what does not end by itself."""

    def late(number, frame):
        raise Hung

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(case: Callable[[], object]) -> tuple[str, str]:
    """Return (how, what): `result`, `refused` with its sentence, or `leak` with where."""
    try:
        with within(SECONDS):
            case()
    except (InputError, ChartError) as error:
        fault = badly_said(str(error))
        return ("leak", fault) if fault else ("refused", str(error))
    except Hung:
        return "leak", f"no end within {SECONDS} s"
    except Exception as error:  # what is looked for
        where = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename][-1:]
        place = f"{Path(where[0].filename).name}:{where[0].name}" if where else "tests"
        return "leak", f"{type(error).__name__} in {place}: {str(error)[:120]}"
    return "result", ""


def badly_said(words: str) -> str:
    """Return what is wrong with a sentence, or nothing."""
    if not words.strip() or len(words) > LONGEST:
        return f"a sentence of {len(words)} characters: {words[:80]}"
    if not words.isprintable():
        return f"a sentence that does not print: {words[:200]!r}"
    if words.rstrip()[-1] not in ".?!…)":
        return f"no sentence: {words[-60:]!r}"
    return ""


# Data files.

GOOD = {
    "image": np.linspace(-1, 1, 40 * 4, dtype=np.float32).reshape(40, 4),
    "text": (np.arange(40 * 3) % 7).reshape(40, 3),
    "labels": np.arange(40) % 3,
}
METADATA = {"title": "A title", "modalities": ["image", "text"], "tokens": ["text"], "task": "classification"}


def data_files(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Return the reading of a data file with something odd in it."""
    path = folder / "case.npz"
    what, arrays = rng.randrange(6), dict(GOOD)
    if what < 3:
        metadata = METADATA if rng.random() < 0.5 else changed(rng, METADATA)
        arrays["metadata"] = np.array(text(rng, metadata) if rng.random() < 0.9 else rng.choice(ODD_ARRAYS))
    if what in (1, 2, 3):
        arrays[rng.choice((*arrays, "split", "class_names", *WORDS[:40]))] = rng.choice(ODD_ARRAYS)
    path.write_bytes(archive(rng, arrays, by_hand=what == 4))
    if what == 5:
        path.write_bytes(bytes_of(rng, path.read_bytes()))
    split = rng.choice(("split_b", *WORDS[:30])) if rng.random() < 0.1 else "split"
    return lambda: npz.read(path, Rng(0), split).batches()


ODD_ARRAYS = (
    *(np.array(x) for x in (0, 1.5, "a", b"\xff", True, 1j, np.datetime64("2020-01-01"), [], [[]], np.nan)),
    *(np.zeros(shape) for shape in ((40,), (40, 0), (0, 4), (39, 2), (40, 2, 2, 2), (40, 1, 1, 1, 1), (1, 40))),
    *(np.full(40, v) for v in (np.nan, np.inf, 1e300, -1, 2**62, 3.5, "1", b"1")),
    *(
        np.arange(40).astype(t)
        for t in ("u1", "u8", "i1", "f2", "f8", "f16", "S3", "U3", "M8[s]", "m8[s]", "c16", ">i4")
    ),
    np.zeros(40, dtype=[("a", "i4"), ("b", "f8")]),
    np.zeros(40, dtype="V7"),
    np.array([{"x": 1}] * 40, dtype=object),
    np.where(np.arange(80).reshape(40, 2) == 7, np.nan, 1.0),
    np.full((40, 2), 1e39),
    np.arange(80).reshape(40, 2) + 10**6,
    -np.arange(80).reshape(40, 2),
)
HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 1000000), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (40.5,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 40, }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (40,), }",
    "{'descr': [('a', [('b', '<f4')])], 'fortran_order': False, 'shape': (40,), }",
    "{'descr': 'nonsense', 'fortran_order': False, 'shape': (40, 4), }",
    "{'descr': {}, 'fortran_order': 7, 'shape': None, }",
    "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (40,), }",
    "{'shape': (40, 4)",
    "(" * 3000,
    "[" * 9000,
    "__import__('os').getcwd()",
    "{'descr': '<f4'}" * 1000,
    "'" * 500,
    "\0" * 64,
    "  \n   x\n y",
    "",
)


def archive(rng: random.Random, arrays: dict[str, np.ndarray], *, by_hand: bool) -> bytes:
    """Return an `.npz` file; one made `by_hand` has a member with an odd header, or one name twice."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as bundle:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(values), allow_pickle=True)
            bundle.writestr(f"{name}.npy".replace("\0", "_").encode("utf-8", "replace").decode(), content.getvalue())
        if by_hand:
            header = rng.choice(HEADERS).encode("latin1") + b"\n"
            size = rng.choice((len(header), len(header), 0, 60000, 7)).to_bytes(2, "little")
            magic = rng.choice(
                (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x09\x00", b"")
            )
            body = magic + size + header + bytes(rng.choice((0, 640, 10**5)))
            name = rng.choice(("extra.npy", "extra", "labels.npy", "image.npy", "../up.npy", "é.npy"))
            if f"{name}" not in bundle.namelist() or rng.random() < 0.5:
                bundle.writestr(name, body)
    return made.getvalue()


# Configurations and options.

CONFIG = {
    "problem": "planted",
    "data": None,
    "methods": ["gani", "sam"],
    "probes": {"hessian": 100},
    "steps": 100,
    "seed": 0,
    "device": "cpu",
    "settings": {"optimizer.lr": 0.1, "batch": 32, "fusion": "sum", "gani.sigma": 0.5, "corrupt": "audio=1"},
}


def _settled(config: RunConfig) -> None:
    checked = validated(config, catalog())
    resolved(checked, catalog())
    assert validated(RunConfig.from_json(json.loads(json.dumps(checked.to_json()))), catalog()) == checked


def configurations(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Return the reading and checking of a `config.json`."""
    values = changed(rng, CONFIG)
    content = text(rng, changed(rng, values) if rng.random() < 0.3 else values).encode("utf-8", "surrogatepass")
    (folder / "config.json").write_bytes(bytes_of(rng, content) if rng.random() < 0.15 else content)
    return lambda: _settled(configuration.read(folder))


def options(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Return the checking of `--set` and of the other options of a run."""
    known = settings_known(RunConfig(), catalog())
    names = sorted(known)

    def pair() -> str:
        key = rng.choice(names)
        if rng.random() < 0.5:
            return f"{key}={known[key]['default']}"
        key = rng.choice((key, key, rng.choice(WORDS), key[:-1]))
        return f"{key}{rng.choice(('=', '=', '=', '=', '', '=='))}{rng.choice((*WORDS, *map(repr, NUMBERS)))}"

    pairs = tuple(pair() for _ in range(rng.choice((1, 1, 2, 3))))
    own = {"problem": "planted", "steps": 10, "seed": 0, "device": "cpu"}
    own |= {rng.choice(sorted(own)): odd(rng, 1)} if rng.random() < 0.2 else {}
    return lambda: _settled(RunConfig.from_json(own | {"settings": _settings(pairs)}))


def probes(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Return the checking of `--probe`."""
    names = [entry["name"] for entry in catalog()["probes"]]

    def one() -> str:
        name, every = rng.choice(names), rng.choice((*WORDS, *map(repr, NUMBERS)))
        if rng.random() < 0.4:
            return f"{name}:{rng.choice((1, 50, 10**8))}"
        return rng.choice((name, name, rng.choice(WORDS))) + rng.choice((":", ":", ":", "", "::")) + every

    asked = tuple(one() for _ in range(rng.choice((1, 1, 2))))
    return lambda: _settled(RunConfig(problem="planted", probes=_intervals(asked)))


COMMANDS = (
    {"do": "pause"},
    {"do": "resume", "steps": 3},
    {"do": "toggle", "method": "gani", "on": True},
    {"do": "tune", "method": "optimizer", "knob": "lr", "value": 0.1},
    {"do": "watch", "probe": "hessian", "on": True, "every": 50},
    {"do": "measure", "probe": "hessian", "settings": {"k": 5}},
    {"do": "cancel", "probe": "hessian"},
    {"do": "save"},
    {"do": "note", "text": "a note"},
)


def commands(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Return the reading of a command as the engine and as the page read it, and its way into a mailbox and out."""
    command = changed(rng, rng.choice(COMMANDS)) if rng.random() < 0.85 else odd(rng)
    body = text(rng, command)

    number = _posted(rng, folder, body)

    def read() -> None:
        with mailbox(folder) as found:
            (_, found), *_ = found.unread(number - 1)
        assert isinstance(found, control.Command)
        json.dumps(found.to_json())
        try:
            control.from_json(command)
        except InputError as error:
            fault = badly_said(str(error))
            assert not fault, fault
        if isinstance(found, control.Garbled):
            found.apply(None)  # refuses, with its sentence

    return read


def _posted(rng: random.Random, folder: Path, body: str) -> int:
    """Put a body into the mailbox as another program might; return its number."""
    if not (folder / "control.db").exists():
        control.create(folder)
    kind = rng.choice(("TEXT",) * 8 + ("BLOB", "INTEGER"))
    with closing(sqlite3.connect(folder / "control.db", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        insert = f"INSERT INTO command(time, who, body) VALUES (0, '', CAST(? AS {kind}))"
        return db.execute(insert, (body.encode("utf-8", "surrogatepass"),)).lastrowid


# Requests.


def client() -> TestClient:
    """Return a client of the server's own routes."""
    return TestClient(Starlette(routes=routes.routes()), base_url="http://localhost", raise_server_exceptions=False)


class Faults(logging.Handler):
    """What the server wrote down as faults of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        last = traceback.extract_tb(record.exc_info[2])[-1] if record.exc_info else None
        where = f" in {Path(last.filename).name}:{last.name}: {record.exc_info[1]!r}" if last else ""
        self.found.append(record.getMessage()[:80] + where)


def requests(rng: random.Random, folder: Path, served: TestClient, home: Path) -> Callable[[], object]:
    """Return one GET of the poller's route."""
    names = RunReader(home).names()
    known = [*names["records"], *names["scalars"]]

    def name(kinds: tuple[str, ...] = ()) -> str:
        fit = [name for name in known if names["records"].get(name, "number") in (*kinds, "number")]
        whole = rng.choice(fit if rng.random() < 0.6 else known)
        place = rng.randrange(len(whole))
        part = rng.choice((f"{whole[:place]}*", "*", "*/" + whole.partition("/")[2], rng.choice(WORDS)))
        return whole if rng.random() < 0.8 else part

    def chart() -> list:
        drawn = rng.choice(sorted(CHARTS))
        args = {"names": [name(CHARTS[drawn].kinds) for _ in range(rng.choice((1, 1, 2, 4)))]}
        for key in rng.sample(("shade", "half", "level", "step", "as", "y", "empty", "xlog", "ylog", "log"), 2):
            args[key] = rng.choice((odd(rng, 0), 50, 1.5, True, [name()], "surface", "seconds", "top"))
        return [drawn, args, ""]

    asked = [chart() for _ in range(rng.choice((1, 1, 2, 5)))]
    asked = changed(rng, asked) if rng.random() < 0.4 else asked
    plain = json.dumps(asked)
    charts = (plain if rng.random() < 0.8 else text(rng, asked))[:20_000]  # the client takes no longer address
    run = RUN if rng.random() < 0.9 else rng.choice(WORDS)
    params = {"run": run, "charts": charts, "dark": rng.choice(("0", "1", *WORDS))}
    if rng.random() < 0.05:
        params.pop(rng.choice(sorted(params)))
    query = urlencode(params, errors="surrogatepass")

    def get() -> None:
        faults = Faults()
        logging.getLogger().addHandler(faults)
        try:
            answer = served.get(f"{routes.BASE}/pulse?{query}")
        finally:
            logging.getLogger().removeHandler(faults)
        assert answer.status_code < 500, f"{answer.status_code} for {charts[:200]}"
        assert not faults.found, f"{faults.found[0]} for {charts[:120]}"
        if answer.status_code != 200:
            raise ChartError(answer.text)
        json.loads(answer.text, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(f"{name} in JSON")))

    return get


KINDS = {"npz": data_files, "configuration": configurations, "--set": options, "--probe": probes, "command": commands}


def cases(kind: str, count: int, seed: int, folder: Path, **more) -> Iterator[Callable[[], object]]:
    """Yield `count` cases of a kind, each from a seed of its own."""
    make = requests if kind == "route" else KINDS[kind]
    for number in range(count):
        yield make(random.Random(f"{kind}/{seed}/{number}"), folder, **more)


def tried(kind: str, count: int, seed: int, folder: Path, **more) -> tuple[Counter, Counter]:
    """Return how the cases of a kind ended, and the leaks by where they were."""
    ends, leaks = Counter(), Counter()
    for case in cases(kind, count, seed, folder, **more):
        how, what = attempt(case)
        ends[how] += 1
        if how == "leak":
            leaks[what] += 1
    return ends, leaks


def timed(kind: str, count: int, seed: int, folder: Path, **more) -> tuple[str, Counter]:
    """Return a line with the counts of a kind, and its leaks."""
    started = time.monotonic()
    ends, leaks = tried(kind, count, seed, folder, **more)
    told = ", ".join(f"{ends[how]} {how}" for how in ("result", "refused", "leak"))
    return f"{kind}: {count} cases, {told} in {time.monotonic() - started:.0f} s", leaks
