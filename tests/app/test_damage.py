"""One damaged run, record or request hurts no other: each says what is wrong in its own place."""

import io
import json
import logging
import os
import shutil
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest

from modalscape.app import catalog
from modalscape.app.charts import unimodal_gap
from modalscape.app.charts.registry import CHARTS
from modalscape.app.runs.status import folder, home_of, standing
from modalscape.app.runs.supervisor import Supervisor, delete, note_of
from modalscape.app.server.routes import BASE, Desk, roll
from modalscape.app.views.log import records_zip
from modalscape.engine.client.handle import RunHandle, lock
from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Matrix, Scalar, Surface
from modalscape.engine.errors import InputError
from modalscape.engine.store.commands import Note
from modalscape.engine.store.writer import RunWriter
from tests.app.test_pages import PAGES, opened, texts
from tests.fixture_run import write_run
from tests.fuzz.inputs import RUN, Faults, client

DAMAGED = "damaged-run"
DATABASES = {
    "truncated": lambda home: (home / "run.db").write_bytes((home / "run.db").read_bytes()[:5000]),
    "empty": lambda home: (home / "run.db").write_bytes(b""),
    "a folder": lambda home: ((home / "run.db").unlink(), (home / "run.db").mkdir()),
    "without a mailbox": lambda home: (home / "control.db").write_bytes(b""),
    "with a pipe as its lock": lambda home: os.mkfifo(home / "lock"),
}


@pytest.fixture
def good():
    return write_run(folder() / RUN)


@pytest.fixture
def damaged(good):
    return write_run(folder() / DAMAGED, steps=4000)


@pytest.fixture
def faults():
    found = Faults()
    logging.getLogger().addHandler(found)
    yield found.found
    logging.getLogger().removeHandler(found)


def pulse(*charts, run=RUN):
    return json.loads(Desk().pulse(run, json.dumps(charts), False))


@pytest.mark.parametrize("form", DATABASES)
def test_a_fresh_dashboard_takes_up_the_others(good, damaged, form):
    DATABASES[form](damaged)
    write_run(folder() / "held-run", state="running")
    with lock(folder() / "held-run"):
        made = Supervisor(1)
        assert made.adopt() == [] and made.working() == ["held-run"]
        assert {run: state for run, state, _ in roll(folder())}[DAMAGED] == "unreadable"
    now = standing(DAMAGED, damaged)
    assert now.state == "unreadable" and "cannot be read" in now.error and len(now.error) <= 400
    assert standing(RUN, good).state == "finished"
    assert home_of(folder(), DAMAGED) == damaged
    delete(DAMAGED)
    assert not damaged.exists()


@pytest.mark.parametrize("page", PAGES[:3])
def test_the_pages_of_a_good_run_are_as_they_were(good, damaged, page):
    DATABASES["truncated"](damaged)
    at = opened(page, RUN)
    assert not at.exception, [e.value for e in at.exception]
    assert "cannot be read" not in texts(at) or page == PAGES[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", DATABASES)
@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_a_good_run_is_as_it_was(good, damaged, page, form):
    DATABASES[form](damaged)
    at = opened(page, RUN)
    assert not at.exception, [e.value for e in at.exception]


@pytest.mark.parametrize(("page", "form"), [(PAGES[1], "truncated"), (PAGES[-1], "without a mailbox")])
def test_a_page_of_the_damaged_run_says_so(good, damaged, page, form):
    DATABASES[form](damaged)
    at = opened(page, DAMAGED)
    assert "cannot be read" in texts(at)


def test_a_chart_of_another_kind_is_refused_and_patterns_take_what_fits(good):
    served = client()
    for name, record in (("top", "hessian/spectrum"), ("density", "hessian/top"), ("between", "hessian/top")):
        answer = served.get(
            f"{BASE}/pulse", params={"run": RUN, "charts": json.dumps([[name, {"names": [record]}, ""]])}
        )
        assert answer.status_code == 400 and record in answer.text and len(answer.text) < 200
    for name in CHARTS:
        answer = served.get(f"{BASE}/pulse", params={"run": RUN, "charts": json.dumps([[name, {"names": ["*"]}, ""]])})
        assert answer.status_code == 200, (name, answer.text)


@pytest.mark.parametrize(
    "charts",
    [
        f'[["series", {{"half": {"1" * 5000}}}, ""]]',
        f'[["record", {{"names": ["hessian/top"], "step": {"9" * 5000}}}, ""]]',
        '[["series", {"level": NaN}, ""]]',
        "[" * 5000,
        '[["series", ' + '{"a": ' * 500 + "1" + "}" * 500 + ', ""]]',
        '[["series", {"names": ["\\ud800"]}, ""]]',
    ],
)
def test_odd_requests_are_refused_in_a_sentence(good, charts):
    answer = client().get(f"{BASE}/pulse", params={"run": RUN, "charts": charts})
    assert answer.status_code == 400 and len(answer.text) <= 400 and "\n" not in answer.text


DAMAGES = {
    "its arrays": ("data = ?", b"PK nonsense"),
    "a cut array": ("data = CAST(substr(data, 1, 200) || ? AS BLOB)", b""),
    "what is known of it": ("about = ?", "{"),
    "its wishes": ("about = ?", '{"n": 1, "mode": "", "seconds": 1, "draw": {"levels": 5}}'),
    "its samples": ("about = ?", '{"n": "many"}'),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_record_is_said_in_its_own_chart(good, faults, what):
    change, value = DAMAGES[what]
    with closing(sqlite3.connect(good / "run.db", isolation_level=None)) as db:
        db.execute(f"UPDATE array SET {change} WHERE name = 'hessian/spectrum'", (value,))
    record, other = (["record", {"names": [name]}, ""] for name in ("hessian/spectrum", "hessian/top"))
    first, second, third = pulse(record, other, ["series", {"names": ["loss/*"]}, ""])["charts"]
    assert first["figure"] is None and "hessian/spectrum cannot be read" in first["empty"]
    assert second["figure"]["data"] and third["figure"]["data"] and not faults
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(records_zip(RUN))).namelist()
    assert "hessian/spectrum.txt" in names and "hessian/top.npz" in names


def test_one_charts_fault_leaves_the_others(good, faults, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(CHARTS, "top", replace(CHARTS["top"], drawn=lambda *all: 1 / 0))
    first, second = pulse(["top", {"names": ["hessian/top"]}, ""], ["series", {"names": ["loss/*"]}, ""])["charts"]
    assert "cannot be drawn" in first["empty"] and second["figure"]["data"]
    assert len(faults) == 1 and "ZeroDivisionError" in faults[0]


NAMES = ("x/a*b", "x/[c]", "x/é🙂", "x/<b>d</b>", "x", "x/ ", "x/'q'\"", "x/%(a)s{0}")
FAMILIES = ("hessian/{}/spectrum", "ggn/{}", "between/{}/line", "spectra/{}/singular", "spectra/weights/{}", "gani/{}")


def odd_records(value, length):
    """Yield a record of each kind filled with `value`, under names by which every chart may look for it."""
    row = np.full(length, value)
    labels = np.array([f"l{i}" for i in range(length)])
    for name in [*NAMES, *(family.format("odd") for family in FAMILIES)]:
        yield Curve(
            f"{name}/curve", row, row, row if length else None, n=3, display=Display(ylog=True, lines=[float(value)])
        )
        yield Surface(f"{name}/surface", np.arange(length), np.arange(length), np.full((length, length), value))
        yield Bars(f"{name}/bars", labels, row, row, display=Display(levels={"": float(value)}))
        yield Matrix(f"{name}/matrix", labels, labels, np.full((length, length), value), display=Display(log=True))
        yield Matrix(f"{name}/rates", row, row, np.full((length, length), value), display=Display(rates=True))
        yield Matrix(
            f"{name}/stack", labels, np.arange(length), np.full((length, length), value), display=Display(stack=1)
        )
        yield Scalar(f"{name}/scalar", float(value), float(value))
        yield Curve(name, row, -row)


VALUES = (np.nan, np.inf, -np.inf, 0.0, 1e300, -1.0)
ODD = [
    pytest.param(value, length, marks=() if (length, value) in ((1, -np.inf), (0, 0.0)) else pytest.mark.slow)
    for value in VALUES
    for length in (0, 1, 2, 40)
]


@pytest.mark.parametrize(("value", "length"), ODD)
def test_every_chart_draws_odd_records(faults, value, length):
    home = write_run(folder() / RUN, records=False)
    with closing(RunWriter(home)) as writer:
        for step in (7, 8):
            for record in odd_records(value, length):
                writer.record(step, record)
    for name in CHARTS:
        for asked in (["*/odd/*", "*/odd"], ["x*"]):
            for more in ({}, {"ylog": True, "xlog": True, "log": True, "as": "surface"}, {"as": "top", "half": 5}):
                body = Desk().pulse(RUN, json.dumps([[name, {"names": asked} | more, ""]]), True)
                json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    reader = RunHandle(home).reader()
    for record in [name for name in reader.names()["records"] if "<" not in name]:
        Desk().pulse(RUN, json.dumps([["record", {"names": [record]}, ""], ["panel", {"names": [record]}, ""]]), False)
    assert not faults, faults[:10]


def test_a_damaged_run_is_no_companion(good, damaged):
    DATABASES["empty"](damaged)
    (damaged / "config.json").write_text("[" * 5000)
    found = catalog.load()
    assert unimodal_gap.companions(RUN, found) == {}
    drawn = pulse(["alone", {"names": [DAMAGED]}, ""])["charts"][0]
    assert drawn["figure"] is None and "evaluated" in drawn["empty"]


def test_a_note_that_is_a_pipe_is_none(damaged):
    os.mkfifo(damaged / "note.txt")
    assert note_of(damaged) == ""


def test_a_damaged_mailbox_takes_no_command(damaged):
    (damaged / "control.db").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match="takes no command"):
        RunHandle(damaged).send(Note("a"))
    with pytest.raises(InputError, match="No engine could be started"):
        RunHandle(damaged).launch()


def test_an_engine_whose_log_is_a_pipe_is_not_waited_for(damaged):
    os.mkfifo(damaged / "log.txt")
    with pytest.raises(InputError, match="No engine could be started"):
        RunHandle(damaged).launch()


def test_a_run_that_is_taken_up_while_it_is_cancelled_stays(monkeypatch):
    config = {"problem": "planted", "steps": 30}
    monkeypatch.setattr(RunHandle, "launch", lambda handle, *words: None)
    made = Supervisor(1)
    made._working.add("another")
    monkeypatch.setattr(made, "_release", lambda: None)
    run = made.begin(config)
    with lock(folder() / run):  # another server's engine is faster
        assert made.cancel(run)
    assert (folder() / run / "config.json").exists()
    made._working.clear()


def test_notes_of_two_at_once_are_whole(damaged):
    from modalscape.app.runs.supervisor import write_note

    errors = []

    def write(text):
        try:
            for _ in range(50):
                write_note(damaged, text)
        except Exception as error:  # raised again below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text * 100,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and note_of(damaged) in ("a" * 100, "b" * 100)
    assert not list(damaged.glob("*.partial"))


def test_a_run_without_its_folder_is_gone(damaged):
    shutil.rmtree(damaged)
    assert home_of(folder(), DAMAGED) is None
