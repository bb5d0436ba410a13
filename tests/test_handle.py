"""The truth about a run, with a small stand-in for the engine: a process that takes the lock, beats, and waits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modalscape.engine.client.handle import (
    LOAD_WITHIN,
    STALL_AFTER,
    START_WITHIN,
    Busy,
    RunHandle,
    Signs,
    held_since,
    is_locked,
    lock,
    runs,
    runs_folder,
)
from modalscape.engine.config import DEFAULTS, RunConfig
from modalscape.engine.errors import InputError
from modalscape.engine.store.commands import Note, Pause, Toggle
from modalscape.engine.store.writer import RunReader, RunWriter, create
from tests.homes import wait_for

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"problem": "planted", "steps": 400}

ENGINE = """
import os, sys
sys.path.insert(0, {root!r})
from modalscape.engine.store.commands import Mailbox
from modalscape.engine.client.handle import lock
from modalscape.engine.store.writer import RunWriter
word, home = sys.argv[1], sys.argv[2]
print("called with", *sys.argv[1:], flush=True)
if os.environ.get("STAND_IN") == "refuses":
    print("Error: there is no such problem.", file=sys.stderr)
    sys.exit(2)
with lock(home):
    writer, mailbox, read = RunWriter(home), Mailbox(home), 0
    threads = os.environ["OMP_NUM_THREADS"]
    writer.event(0, "started", {{"session": os.getsid(0), "threads": threads, "cwd": os.getcwd()}})
    step = 0
    while True:
        for read, command in mailbox.unread(read):
            words = command.to_json()
            if words["do"] == "stop":
                writer.beat("stopped", step, {{"activity": ""}})
                writer.flush()
                sys.exit(0)
            kind = "refused" if words["do"] == "note" else "applied"
            writer.event(step, kind, {{"id": read, "command": words}})
        step += 1
        writer.meta("seconds", step / 100)
        writer.beat("running", step, {{"activity": "measuring hessian"}})
        writer.flush()
"""


@pytest.fixture
def stand_in(tmp_path):
    """A handle class whose engine is the script above, and whose engines end with the test."""
    script = tmp_path / "stand_in.py"
    script.write_text(ENGINE.format(root=str(ROOT)))
    started = []

    class StandIn(RunHandle):
        program = (sys.executable, str(script))

    yield lambda home: started.append(StandIn(home)) or started[-1]
    for handle in started:
        holder = (handle.home / "lock").read_text() if is_locked(handle.home) else ""
        if holder:
            os.kill(int(holder), signal.SIGKILL)
            wait_for(lambda home=handle.home: not is_locked(home), 10, "the stand-in's end")


def begun(handle):
    """Start the stand-in on a fresh home and wait until it runs; return its process id."""
    handle.prepare(CONFIG)
    handle.launch()
    wait_for(lambda: handle.status().state == "running", 30, "the stand-in's first beat")
    return int((handle.home / "lock").read_text())


NOW = 1_000_000.0
ENGINE_BUSY = {"held": NOW - 50, "begun": True, "beat": NOW - 1}
GONE = {"begun": True, "beat": NOW - 90}


@pytest.mark.parametrize(
    ("signs", "state"),
    [
        # Never begun.
        ({}, "queued"),
        ({"launched": NOW - 1}, "starting"),
        ({"launched": NOW - START_WITHIN - 1}, "crashed"),
        ({"launched": NOW - 1, "code": -9}, "crashed"),
        ({"launched": NOW - 1, "code": 2}, "failed"),
        ({"begun": True}, "crashed"),
        # At work.
        *[(ENGINE_BUSY | {"said": said}, said) for said in ("starting", "running", "paused", "stopping")],
        (ENGINE_BUSY | {"said": "running", "launched": NOW - 60}, "running"),
        (ENGINE_BUSY | {"said": "running", "launched": NOW - 0.1, "code": 3}, "running"),
        (ENGINE_BUSY | {"said": "running", "beat": NOW - STALL_AFTER - 1}, "stalled"),
        (ENGINE_BUSY | {"said": "running", "beat": NOW - STALL_AFTER - 1, "activity": "measuring hessian"}, "running"),
        ({"held": NOW - 500, "said": "running", "beat": NOW - LOAD_WITHIN - 1, "activity": "measuring"}, "stalled"),
        # The lock is taken and nothing was said since.
        ({"held": NOW - 1, "begun": True}, "starting"),
        ({"held": NOW - LOAD_WITHIN - 1, "begun": True}, "stalled"),
        ({"held": NOW - 1, "begun": True, "said": "finished", "beat": NOW - 90}, "starting"),
        ({"held": NOW - 1, "begun": True, "said": "running", "beat": NOW - 90, "launched": NOW - 2}, "starting"),
        # The last word is said and the lock not yet released.
        *[(ENGINE_BUSY | {"said": said}, said) for said in ("finished", "stopped", "failed")],
        # Gone.
        *[(GONE | {"said": said}, "crashed") for said in ("starting", "running", "paused", "stopping")],
        *[(GONE | {"said": said}, said) for said in ("finished", "stopped", "failed")],
        (GONE | {"said": "running", "launched": NOW - 95, "code": -9}, "crashed"),
        (GONE | {"said": "running", "launched": NOW - 95}, "crashed"),
        (GONE | {"said": "failed", "launched": NOW - 95, "code": 1}, "failed"),
        # Started again, and not yet heard of.
        (GONE | {"said": "running", "launched": NOW - 1}, "starting"),
        (GONE | {"said": "finished", "launched": NOW - 1}, "starting"),
        (GONE | {"said": "stopped", "launched": NOW - 1, "code": 2}, "failed"),
        (GONE | {"said": "stopped", "launched": NOW - START_WITHIN - 1}, "stopped"),
    ],
)
def test_the_state_follows_from_the_signs(signs, state):
    assert Signs(**signs).state(NOW) == state


def test_a_run_from_queue_to_running_to_killed_to_resumed_to_stopped(tmp_path, stand_in):
    handle = stand_in(tmp_path / "runs" / "first")
    handle.prepare(RunConfig(problem="planted", steps=400))
    queued = handle.status()
    assert (queued.state, queued.step, queued.steps, queued.alive) == ("queued", 0, 400, False)
    handle.launch()
    assert handle.status().state in ("starting", "running")
    wait_for(lambda: handle.status().step > 60, 30, "sixty steps")
    running = handle.status()
    assert running.state == "running" and running.alive and running.age < STALL_AFTER
    assert running.activity == "measuring hessian" and running.error is None
    assert running.rate == pytest.approx(100) and running.eta is not None

    pid = int((handle.home / "lock").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_locked(handle.home), 10, "the lock's release")
    assert RunHandle.attach(handle.home).status().state == "crashed"
    wait_for(lambda: handle.status().exit_code is not None, 10, "the exit code")
    crashed = handle.status()
    assert (crashed.state, crashed.exit_code, crashed.alive, crashed.activity) == ("crashed", -9, False, "")
    assert "signal 9" in crashed.error and "Resume" in crashed.error
    assert crashed.step >= running.step

    handle.resume(500)
    wait_for(lambda: handle.status().state == "running", 30, "the resumed run")
    assert "called with resume" in (handle.home / "log.txt").read_text()
    assert "--steps 500" in (handle.home / "log.txt").read_text()
    from modalscape.engine.store.commands import Stop

    handle.send(Stop())
    wait_for(lambda: handle.status().exit_code is not None, 10, "the exit code")
    stopped = handle.status()
    assert (stopped.state, stopped.exit_code, stopped.alive, stopped.error) == ("stopped", 0, False, None)


def test_a_killed_process_leaves_no_zombie_and_no_pid_is_trusted(tmp_path, stand_in):
    handle = stand_in(tmp_path / "run")
    pid = begun(handle)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: handle.status().exit_code == -9, 10, "the exit code")
    assert not Path(f"/proc/{pid}").exists()


def test_crashed_is_told_at_the_first_look_after_the_kill(tmp_path):
    """Without a reaper, as after a restart of the dashboard: the lock alone tells."""
    home = tmp_path / "run"
    home.mkdir()
    create(home)
    script = ENGINE.format(root=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, "-c", script, "run", str(home)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        handle = RunHandle.attach(home)
        wait_for(lambda: handle.status().state == "running", 30, "the first beat")
    finally:
        process.kill()
        process.wait(10)
    status = handle.status()
    assert (status.state, status.exit_code) == ("crashed", None)


def test_the_engine_has_a_session_of_its_own_one_thread_and_a_log(tmp_path, stand_in, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    handle = stand_in(tmp_path / "run")
    pid = begun(handle)
    facts = handle.reader().newest("started").detail
    assert facts == {"session": pid, "threads": "1", "cwd": str(ROOT)} and os.getsid(0) != pid
    assert (handle.home / "log.txt").read_text().startswith(f"called with run {handle.home} --attended")
    assert json.loads((handle.home / "config.json").read_text()) == {"defaults": DEFAULTS} | CONFIG


def test_an_engine_that_refuses_to_start_says_why(tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN", "refuses")
    handle = stand_in(tmp_path / "run")
    handle.prepare(CONFIG)
    handle.launch()
    wait_for(lambda: handle.status().exit_code is not None, 30, "the exit code")
    status = handle.status()
    assert (status.state, status.exit_code, status.error) == ("failed", 2, "Error: there is no such problem.")


def test_a_late_exit_code_does_not_spoil_a_newer_engine(tmp_path, stand_in):
    handle = stand_in(tmp_path / "run")
    begun(handle)

    class Ended:
        def wait(self):
            return 7

    handle._reap(Ended(), launched=1.0)
    assert handle.status().exit_code is None


def test_pending_is_what_is_neither_applied_nor_refused(tmp_path, stand_in):
    handle = stand_in(tmp_path / "run")
    handle.prepare(CONFIG)
    first, second = handle.send(Toggle("gani", True)), handle.send(Note("refused by the stand-in"))
    assert handle.pending() == [(first, Toggle("gani", True)), (second, Note("refused by the stand-in"))]
    handle.launch()
    wait_for(lambda: not handle.pending(), 30, "the answers")
    assert [(e.kind, e.detail["id"]) for e in handle.reader().events() if "id" in e.detail] == [
        ("applied", first),
        ("refused", second),
    ]
    pid = int((handle.home / "lock").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_locked(handle.home), 10, "the lock's release")
    third = handle.send(Pause())
    assert handle.pending() == [(third, Pause())]


def test_two_threads_send_at_once(tmp_path):
    handle = RunHandle(tmp_path / "run")
    handle.prepare(CONFIG)
    numbers, errors = [], []

    def send(who):
        try:
            numbers.extend(handle.send(Note(who)) for _ in range(50))
        except Exception as error:  # raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=send, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and sorted(numbers) == [number for number, _ in handle.pending()] and len(numbers) == 100


def test_a_home_is_used_once(tmp_path):
    handle = RunHandle(tmp_path / "run")
    handle.prepare(CONFIG)
    with pytest.raises(InputError, match="already holds a run"):
        RunHandle(tmp_path / "run").prepare(CONFIG)
    with pytest.raises(InputError, match="cannot be written"):
        RunHandle("/proc/none/run").prepare(CONFIG)
    with pytest.raises(InputError, match="holds no run"):
        RunHandle.attach(tmp_path / "other")


def test_a_failed_run_tells_its_error_and_a_diverged_one_its_remedy(tmp_path):
    handle = RunHandle(tmp_path / "run")
    handle.prepare(CONFIG)
    writer = RunWriter(handle.home)
    writer.event(0, "started", {})
    writer.event(7, "diverged", {"name": "loss/fused", "error": "Lower the rate."})
    writer.beat("stopped", 7, {})
    writer.flush()
    assert handle.status().error == "Lower the rate."
    writer.event(7, "resumed", {})
    writer.beat("stopped", 20, {})
    writer.flush()
    assert handle.status().error is None
    writer.event(21, "failed", {"error": "The moon is in the wrong house.", "traceback": "…"})
    writer.beat("failed", 21, {})
    writer.close()
    status = handle.status()
    assert (status.state, status.error) == ("failed", "The moon is in the wrong house.")


# The lock.


def test_the_lock_keeps_a_second_engine_out_and_names_the_first(tmp_path):
    assert not is_locked(tmp_path) and not (tmp_path / "lock").exists()
    before = time.time()
    with lock(tmp_path):
        assert is_locked(tmp_path) and held_since(tmp_path) > before - 1
        with (
            pytest.raises(Busy, match=rf"already being trained by another engine \(process {os.getpid()}\)"),
            lock(tmp_path),
        ):
            pass
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_asking_for_the_lock_never_keeps_an_engine_out(tmp_path):
    done, errors = threading.Event(), []
    (tmp_path / "lock").write_text("")

    def ask():
        while not done.is_set():
            is_locked(tmp_path)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            with lock(tmp_path):
                assert is_locked(tmp_path)
    except Busy as error:
        errors.append(error)
    finally:
        done.set()
    for thread in threads:
        thread.join(10)
    assert not errors


def test_an_engine_must_not_be_resumed_twice(tmp_path):
    handle = RunHandle(tmp_path / "run")
    handle.prepare(CONFIG)
    with lock(handle.home), pytest.raises(Busy, match="already being trained"):
        handle.resume()


def test_runs_are_listed_newest_first(tmp_path, monkeypatch):
    assert runs(tmp_path / "nowhere") == []
    for age, name in enumerate(("young", "middle", "old")):
        handle = RunHandle(tmp_path / name)
        handle.prepare(CONFIG)
        os.utime(handle.home / "config.json", (NOW - age, NOW - age))
    (tmp_path / "no-run").mkdir()
    assert runs(tmp_path) == [(name, tmp_path / name) for name in ("young", "middle", "old")]
    monkeypatch.setenv("MODALSCAPE_RUNS", str(tmp_path))
    assert runs_folder() == tmp_path and [name for name, _ in runs()] == ["young", "middle", "old"]
    monkeypatch.delenv("MODALSCAPE_RUNS")
    assert runs_folder() == ROOT / "runs"


def test_readers_of_a_waiting_run_see_an_empty_one(tmp_path):
    handle = RunHandle(tmp_path / "run")
    handle.prepare(CONFIG)
    assert handle.reader().events() == [] and handle.pending() == []
    assert RunReader(handle.home).names() == {"scalars": [], "records": {}}
