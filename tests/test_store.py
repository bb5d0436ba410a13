"""What a run records: nothing lost or doubled, spikes kept, numbers exact, and a full disk survived and owned up to."""

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Matrix, Scalar, Surface
from modalscape.engine.errors import InputError
from modalscape.engine.store import writer as store
from modalscape.engine.store.writer import RunReader, RunWriter, create, thinned
from tests.full_disks import refuse, relent

ROOT = Path(__file__).resolve().parent.parent
EIGHT = {f"grad_norm/modality_{i}": i / 3 for i in range(8)}


@pytest.fixture
def home(tmp_path):
    create(tmp_path)
    return tmp_path


@pytest.fixture
def writer(home):
    writer = RunWriter(home)
    yield writer
    writer.close()


@pytest.mark.parametrize("module", ["store.writer", "store.reader", "store.commands", "client.handle", "store.export"])
def test_it_does_without_torch(module):
    code = f"import sys, engine.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_scalars_come_back_exactly_including_what_is_not_finite(home, writer):
    values = [0.1, float("nan"), float("inf"), -float("inf"), 1e-320, 2**0.5]
    for step, value in enumerate(values):
        writer.scalar(step, "loss/fused", value)
    writer.flush()
    steps, found = RunReader(home).scalars("loss/fused")
    assert steps.tolist() == list(range(6)) and steps.dtype == np.int64
    np.testing.assert_array_equal(found, values)
    writer.scalar(6, "loss/fused", float("nan"))
    writer.flush()
    assert np.isnan(RunReader(home).last()["loss/fused"])


def test_numbers_of_numpy_are_taken(home, writer):
    writer.scalars(np.int64(3), {"a": np.float32(0.5), "b": np.int64(2), "c": np.array(1.5)})
    writer.event(np.int64(3), "note", {"size": np.int64(4), "row": np.arange(2)})
    writer.record(np.int64(3), Bars("b", ["x"], [1.0], display=Display(lines=[1.0], title="t")))
    assert writer.flush()
    assert RunReader(home).last() == {"a": 0.5, "b": 2.0, "c": 1.5}
    assert RunReader(home).events()[0].detail == {"size": 4, "row": [0, 1]}
    assert RunReader(home).latest("b")[1].display == Display(lines=[1.0], title="t")


def test_what_is_no_number_is_refused_at_once(writer):
    with pytest.raises((TypeError, ValueError)):
        writer.scalar(0, "loss", "high")
    assert writer.flush()


def test_a_step_written_again_replaces_and_never_doubles(home):
    for start in (0, 5):
        writer = RunWriter(home)
        for step in range(start, 200):
            writer.scalars(step, {"a": step + start, "b": step})
        writer.record(100, Scalar("a/top", float(start)))
        writer.close()
    reader = RunReader(home)
    for name, late in (("a", 5), ("b", 0)):
        steps, values = reader.scalars(name)
        assert steps.tolist() == list(range(200))
        assert values.tolist() == [float(s + (late if s >= 5 else 0)) for s in range(200)]
    assert reader.history("a/top") == [100] and reader.latest("a/top")[1].value == 5.0


def test_a_mapping_may_be_used_again_by_its_owner(home, writer):
    values = {"a": 1.0}
    writer.scalars(0, values)
    values["a"] = 2.0
    writer.scalars(1, values)
    writer.flush()
    assert RunReader(home).scalars("a")[1].tolist() == [1.0, 2.0]


RECORDS = [
    Scalar("h/max", 1.5, 0.25, n=64, mode="hessian", seconds=0.5),
    Scalar("h/nan", float("nan")),
    Curve("h/spectrum", np.linspace(0, 1, 5), np.array([0, np.nan, np.inf, -np.inf, 1]), display=Display(xlog=True)),
    Curve("h/one", np.arange(3, dtype=np.float32), np.ones(3, np.float32), np.full(3, 0.1)),
    Surface("l/2d", np.arange(3.0), np.arange(2.0), np.arange(6.0).reshape(2, 3)),
    Bars("i/acc", np.array(["Bild", "Wörter"]), np.array([0.5, np.nan])),
    Bars("i/obj", np.array(["a", "bc"], dtype=object), [1, 2]),
    Matrix("m/conflict", ["a", "b"], np.array(["x"]), np.array([[1.0], [-1.0]])),
    Curve("empty", np.zeros(0), np.zeros(0)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
def test_every_kind_of_record_comes_back(home, writer, record):
    writer.record(7, record)
    writer.flush()
    reader = RunReader(home)
    step, found = reader.latest(record.name)
    assert step == 7 and type(found) is type(record)
    for key in record.arrays:
        was, now = getattr(record, key), getattr(found, key)
        assert (was is None) == (now is None)
        if was is not None:
            np.testing.assert_array_equal(np.asarray(now), np.asarray(was))
            assert np.asarray(now).dtype != object
    assert (found.n, found.mode, found.seconds, found.display) == (
        record.n,
        record.mode,
        record.seconds,
        record.display,
    )
    assert reader.names()["records"] == {record.name: record.kind}


def test_a_scalar_record_has_a_curve_too(home, writer):
    for step in (3, 6):
        writer.record(step, Scalar("hessian/lambda_max", step / 2, 0.1))
    writer.flush()
    steps, values = RunReader(home).scalars("hessian/lambda_max")
    assert (steps.tolist(), values.tolist()) == ([3, 6], [1.5, 3.0])


def test_a_record_does_not_change_with_its_arrays(home, writer):
    y = np.zeros(3)
    writer.record(0, Curve("c", np.arange(3), y))
    y[:] = 9
    writer.flush()
    assert RunReader(home).latest("c")[1].y.tolist() == [0, 0, 0]


def test_at_finds_the_newest_at_or_before(home, writer):
    for step in (10, 20):
        writer.record(step, Scalar("a", float(step)))
    writer.flush()
    reader = RunReader(home)
    assert reader.at("a", 9) is None
    assert [reader.at("a", step).value for step in (10, 19, 20, 99)] == [10, 10, 20, 20]
    assert reader.history("a") == [10, 20]
    assert reader.latest("b") is None and reader.history("b") == []


def test_events_keep_their_order_and_kinds(home, writer):
    writer.event(0, "started", {})
    writer.event(4, "applied", {"id": 1, "command": {"do": "pause"}})
    writer.event(5, "note", {"text": "hm"})
    writer.flush()
    reader = RunReader(home)
    assert [(e.id, e.step, e.kind) for e in reader.events()] == [(1, 0, "started"), (2, 4, "applied"), (3, 5, "note")]
    assert [e.kind for e in reader.events(kinds=("note",))] == ["note"]
    assert [e.id for e in reader.events(kinds=("note", "started"))] == [1, 3]
    assert reader.newest("applied", "started").detail["id"] == 1 and reader.newest("failed") is None
    assert abs(reader.events()[0].time - time.time()) < 60


def test_a_heartbeat_and_its_facts_arrive_with_the_flush(home, writer):
    writer.beat("running", 12, {"activity": "measuring hessian"})
    writer.meta("steps", 400)
    reader = RunReader(home)
    assert reader.meta("state") is None and reader.meta("state", "none yet") == "none yet"
    writer.flush()
    assert reader.facts("state", "step", "nothing") == {"state": "running", "step": 12}
    assert [reader.meta(k) for k in ("state", "step", "activity", "steps")] == ["running", 12, "measuring hessian", 400]
    assert 0 <= time.time() - reader.meta("beat") < 60


def test_the_version_grows_with_news_and_rests_without(home):
    reader, writer = RunReader(home), RunWriter(home)
    seen = [reader.version()]

    def flushed():
        writer.flush()
        seen.append(reader.version())
        return seen[-1] > seen[-2]

    writer.scalar(0, "a", 1.0)
    writer.beat("running", 1, {})
    assert flushed()
    before = reader.meta("beat")
    writer.beat("running", 1, {})
    assert not flushed() and reader.meta("beat") > before
    writer.beat("paused", 1, {})
    assert flushed()
    writer.event(1, "paused", {})
    assert flushed()
    writer.close()
    again = RunWriter(home)
    again.scalar(1, "a", 1.0)
    again.close()
    assert reader.version() > seen[-1]


def test_reading_what_is_not_there_gives_nothing(home):
    reader = RunReader(home)
    assert reader.names() == {"scalars": [], "records": {}}
    steps, values = reader.scalars("nothing")
    assert len(steps) == len(values) == 0
    assert reader.last() == {} and reader.events() == [] and reader.version() == 0


def test_a_folder_without_a_run_is_refused_and_a_waiting_run_is_empty(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        RunReader(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    reader = RunReader(tmp_path)
    assert reader.names()["scalars"] == [] and reader.meta("state") is None
    create(tmp_path)
    writer = RunWriter(tmp_path)
    writer.scalar(0, "a", 1.0)
    writer.close()
    assert reader.last() == {"a": 1.0}


def test_since_and_tail_give_only_what_is_new(home, writer):
    for step in range(30):
        writer.scalars(step, {"a": step, "b": -step})
    writer.flush()
    reader = RunReader(home)
    assert reader.scalars("a", since=27)[0].tolist() == [28, 29]
    found = reader.tail(["a", "b"], {"a": 28})
    assert found["a"][0].tolist() == [29] and len(found["b"][0]) == 30


def test_a_reader_cannot_write(home):
    with pytest.raises(store.sqlite3.OperationalError, match="readonly"):
        RunReader(home)._own.all("DELETE FROM meta")


def test_one_reader_serves_several_threads_while_the_engine_writes(home, writer):
    reader, errors, done = RunReader(home), [], threading.Event()

    def look():
        try:
            while not done.is_set():
                steps, _ = reader.scalars("a", points=None)
                assert steps.tolist() == list(range(len(steps))), "a reader saw half a flush"
                assert len(steps) % 50 == 0, "a reader saw half a flush"
        except Exception as error:  # raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for start in range(0, 3000, 50):
        for step in range(start, start + 50):
            writer.scalars(step, {"a": step, "b": step})
        assert writer.flush()
    done.set()
    for thread in threads:
        thread.join(30)
    assert not errors


def test_creating_from_many_threads_makes_one_whole_run(tmp_path):
    errors = []

    def make():
        try:
            create(tmp_path)
            RunReader(tmp_path).names()
        except Exception as error:  # raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert sorted(p.name for p in tmp_path.iterdir() if "-" not in p.name) == ["control.db", "run.db"]
    assert sqlite3.connect(tmp_path / "run.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_creating_again_keeps_what_is_there(home, writer):
    writer.scalar(0, "a", 1.0)
    writer.flush()
    create(home)
    assert RunReader(home).last() == {"a": 1.0}


def test_a_path_with_odd_characters_is_no_trouble(tmp_path):
    home = tmp_path / "50% of #1? yes"
    home.mkdir()
    create(home)
    writer = RunWriter(home)
    writer.scalar(0, "a", 1.0)
    writer.close()
    assert RunReader(home).last() == {"a": 1.0}


def test_a_finished_run_can_be_read_from_a_read_only_disk(home, monkeypatch):
    writer = RunWriter(home)
    writer.scalar(0, "a", 1.0)
    writer.close()
    assert not (home / "run.db-wal").exists()
    monkeypatch.setattr("modalscape.engine.store.reader.os.access", lambda path, mode: False)
    assert RunReader(home).last() == {"a": 1.0}
    assert not (home / "run.db-wal").exists() and not (home / "run.db-shm").exists()


# The disk says no.


def test_a_full_disk_loses_nothing_that_fits_into_memory(home, writer):
    writer.scalar(0, "a", 0.0)
    assert writer.flush()
    refuse(writer)
    for step in range(1, 5000):
        writer.scalars(step, {"a": step})
    writer.event(5, "note", {"text": "kept"})
    assert not writer.flush() and "full" in writer.error
    assert RunReader(home).scalars("a", points=None)[0].tolist() == [0]
    relent(writer)
    assert writer.flush() and writer.error is None and writer.lost == 0
    assert RunReader(home).scalars("a", points=None)[0].tolist() == list(range(5000))
    assert [e.kind for e in RunReader(home).events()] == ["note"]


def test_what_does_not_fit_is_counted_and_said_once(home):
    writer = RunWriter(home, most=100)
    refuse(writer)
    for start in (0, 2000):
        for step in range(start, start + 2000):
            writer.scalars(step, {"a": step, "b": step})
        assert not writer.flush()
    assert writer.lost == 2 * 4000 - 100
    relent(writer)
    assert writer.flush() and writer.flush()
    reader = RunReader(home)
    assert reader.scalars("a", points=None)[0].tolist() == list(range(3950, 4000))
    said = reader.events(kinds=["lost"])
    assert len(said) == 1 and said[0].detail["rows"] == writer.lost and "full" in said[0].detail["error"]
    writer.close()


def test_measurements_wait_in_bounded_memory_too(home, writer, monkeypatch):
    monkeypatch.setattr(store, "MOST_BYTES", 3_000_000)
    refuse(writer)
    noise = np.random.default_rng(0).normal(size=100_000)
    for step in range(8):
        writer.record(step, Curve("c", noise, noise))
    assert not writer.flush()
    held = writer.waiting()
    assert held["bytes"] <= 3_000_000 and writer.lost == 8 - held["measurements"] > 0
    relent(writer)
    assert writer.flush()
    assert RunReader(home).history("c")[-1] == 7


def test_a_locked_file_is_not_waited_for_until_it_is_free(home, writer):
    writer.scalar(0, "a", 1.0)
    other = store.sqlite3.connect(home / "run.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not writer.flush() and "locked" in writer.error
    other.execute("ROLLBACK")
    other.close()
    assert writer.flush() and RunReader(home).last() == {"a": 1.0}


def test_a_disk_that_refuses_is_asked_ever_less_often(writer):
    refuse(writer)
    gaps = []
    for step in range(6):
        writer.scalars(step, {f"{step}/{i}": 1.0 for i in range(3000)})
        writer.flush()
        gaps.append(writer.gap)
    assert gaps == sorted(gaps) and gaps[0] > store.FLUSH_EVERY and gaps[-1] == store.RETRY_EVERY
    relent(writer)
    assert writer.flush() and writer.gap == store.FLUSH_EVERY


def test_due_is_a_gate_in_time(writer, monkeypatch):
    now = [time.monotonic() + 60]
    monkeypatch.setattr(store, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    assert writer.due()
    writer.flush()
    now[0] += store.FLUSH_EVERY - 0.01
    assert not writer.due()
    now[0] += 0.02
    assert writer.due()


@pytest.mark.slow
def test_a_step_side_costs_at_most_five_microseconds(home, writer):
    """Slow, for it is about speed alone: the best of seven, in time of the processor, on a machine that is not full."""
    from modalscape.engine.store.commands import Mailbox

    mailbox, costs = Mailbox(home), []
    for repeat in range(7):
        started = time.process_time()
        for step in range(2000):
            if mailbox.due():
                mailbox.unread(0)
            writer.scalars(repeat * 2000 + step, EIGHT)
            writer.due()
        costs.append((time.process_time() - started) / 2000)
        writer.flush()
    assert min(costs) <= 5e-6, f"{min(costs) * 1e6:.1f} µs a step"


# Thinning.


def slow(y, points):
    """The obvious way: both ends, and the extremes of each bucket, one at a time."""
    buckets, inner = (points - 2) // 2, range(1, len(y) - 1)
    width = -(-len(inner) // buckets)
    keep = {0, len(y) - 1}
    for start in range(0, len(inner), width):
        finite = [i for i in inner[start : start + width] if not np.isnan(y[i])] or [inner[start]]
        keep |= {min(finite, key=lambda i: y[i]), max(finite, key=lambda i: y[i])}
    return sorted(keep)


@pytest.mark.parametrize("count", [12, 13, 99, 1000, 1001])
@pytest.mark.parametrize("points", [4, 5, 10, 11])
def test_thinning_agrees_with_the_obvious_way(count, points):
    rng = np.random.default_rng(count)
    y = rng.normal(size=count)
    y[rng.integers(0, count, count // 3)] = np.nan
    x = np.arange(count)
    kept, values = thinned(x, y, points)
    assert kept.tolist() == slow(y, points)
    assert len(kept) <= points
    np.testing.assert_array_equal(values, y[kept])


@pytest.mark.parametrize("spike", [1e9, -1e9, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 777, 49_998, 49_999])
def test_thinning_keeps_every_spike_and_both_ends(spike, at):
    x, y = np.arange(50_000), np.sin(np.arange(50_000) / 99)
    y[at] = spike
    y[(at + 1) % 50_000] = np.nan
    kept, values = thinned(x, y, 1000)
    assert spike in values and {0, 49_999} <= set(kept.tolist()) and len(kept) <= 1000


@pytest.mark.parametrize("points", [0, 1, 2, 3])
def test_thinning_to_almost_nothing_leaves_both_ends(points):
    assert thinned(np.arange(9), np.arange(9.0), points)[0].tolist() == [0, 8]


def test_thinning_leaves_short_and_constant_series_alone():
    for count in range(5):
        x = np.arange(count)
        assert thinned(x, x * 1.0, 1000)[0].tolist() == x.tolist()
    assert np.isnan(thinned(np.arange(100), np.full(100, np.nan), 10)[1]).all()


def test_a_long_curve_is_thinned_by_the_reader(home, writer):
    for step in range(5000):
        writer.scalar(step, "a", 1e6 if step == 1234 else np.cos(step))
    writer.flush()
    steps, values = RunReader(home).scalars("a", points=200)
    assert len(steps) <= 200 and steps[[0, -1]].tolist() == [0, 4999] and 1234 in steps
    assert values.max() == 1e6
