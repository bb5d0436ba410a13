import json
import re

import pytest

from modalscape.app.runs import supervisor
from modalscape.app.runs.status import RUN_ID, folder, standing
from modalscape.app.runs.supervisor import Supervisor, delete, note_of, write_note
from modalscape.engine.client.handle import Busy, RunHandle, lock
from modalscape.engine.errors import InputError
from modalscape.engine.store.ids import new_id
from modalscape.engine.store.writer import RunWriter
from tests.fixture_run import write_run
from tests.homes import wait_for

CONFIG = {"problem": "planted", "methods": [], "probes": {}, "steps": 30, "seed": 0, "device": "cpu", "settings": {}}
SMALL = CONFIG | {"settings": {"planted.rows": 600, "batch": 32, "width": 8, "hidden": 8}}


class Engines:
    """Engines that only say how they stand, in place of real processes."""

    def __init__(self, monkeypatch):
        self.launched, self.locks = [], {}
        monkeypatch.setattr(RunHandle, "launch", lambda handle, *command: self.begin(handle.home, command))

    def begin(self, home, command):
        self.launched.append((home.name, *command))
        held = lock(home)
        held.__enter__()
        self.locks[home.name] = held
        self.say(home, "running")

    def end(self, run, state="finished"):
        self.say(folder() / run, state)
        self.locks.pop(run).__exit__(None, None, None)

    def say(self, home, state):
        writer = RunWriter(home)
        writer.beat(state, 10, {"activity": ""})
        writer.close()


@pytest.fixture
def engines(monkeypatch):
    return Engines(monkeypatch)


def test_no_more_engines_than_cores_but_one(monkeypatch):
    for cores, most in ((1, 1), (2, 1), (8, 7), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert supervisor.parallel() == most


def test_a_run_waits_until_another_has_ended(engines):
    made = Supervisor(1)
    first, second = made.begin(CONFIG), made.begin(CONFIG)
    assert [run for run, _ in engines.launched] == [first]
    assert made.waiting() == [second] and standing(second, folder() / second).state == "queued"
    engines.end(first)
    wait_for(lambda: made.working() == [second], 10, "the second engine")
    engines.end(second)
    assert made.settle(10) and made.waiting() == []


def test_a_waiting_run_that_is_cancelled_leaves_nothing(engines):
    made = Supervisor(1)
    first, second = made.begin(CONFIG), made.begin(CONFIG)
    assert made.cancel(second) and not (folder() / second).exists()
    assert not made.cancel(first)
    engines.end(first)
    assert made.settle(10) and len(engines.launched) == 1


def test_a_restarted_server_takes_up_what_waited_and_counts_what_runs(engines):
    before = Supervisor(1)
    first, second = before.begin(CONFIG), before.begin(CONFIG)
    after = Supervisor(1)
    assert after.adopt() == [second]
    assert after.working() == [first] and after.waiting() == [second]
    before.cancel(second)
    engines.end(first)
    assert after.settle(10) and before.settle(10)


def test_resume_of_an_ended_run_goes_through_the_queue(engines):
    write_run(folder() / "ended-run", state="stopped")
    made = Supervisor(1)
    made.resume("ended-run", 2000)
    made.resume("ended-run")
    assert engines.launched == [("ended-run", "resume", "--steps", "2000")]
    engines.end("ended-run")
    assert made.settle(10)


def test_resume_pressed_the_moment_a_run_has_ended_is_not_lost(engines, monkeypatch):
    monkeypatch.setattr(supervisor, "_LOOK", 60.0)
    made = Supervisor(1)
    run = made.begin(CONFIG)
    engines.end(run, "stopped")
    made.resume(run)
    assert engines.launched == [(run, "run"), (run, "resume")]
    engines.end(run)


def test_an_engine_that_cannot_start_says_why_and_frees_its_place(monkeypatch):
    def refuse(handle, *command):
        raise OSError("no more processes")

    monkeypatch.setattr(RunHandle, "launch", refuse)
    made = Supervisor(1)
    run = made.begin(CONFIG)
    assert made.settle(10) and "no more processes" in made.problems[run]


def test_runs_of_one_second_that_draw_the_same_digits_have_homes_of_their_own(monkeypatch):
    ids = iter(["planted-261128-050112-0f3c", "planted-261128-050112-0f3c", "planted-261128-050112-1a2b"])
    monkeypatch.setattr("modalscape.app.runs.supervisor.new_id", lambda problem, data: next(ids))
    monkeypatch.setattr(Supervisor, "_enqueue", lambda self, run, start: None)
    supervisor = Supervisor(1)
    assert [supervisor.begin(CONFIG)[-4:] for _ in range(2)] == ["0f3c", "1a2b"]


def test_ids_are_well_formed():
    assert RUN_ID.fullmatch(new_id(None, "/any where/My Données.npz"))
    assert re.match(r"planted-\d{6}-\d{6}-", new_id("planted"))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODALSCAPE_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(InputError, match="cannot be written"):
        Supervisor(1).begin(CONFIG)


def test_only_a_run_without_an_engine_is_deleted():
    home = write_run(folder() / "some-run")
    with lock(home), pytest.raises(Busy):
        delete("some-run")
    assert home.exists()
    delete("some-run")
    assert not home.exists()


def test_a_note_stays_with_its_run():
    home = write_run(folder() / "some-run")
    write_note(home, "  why is it flat?  ")
    assert note_of(home) == "why is it flat?"
    assert json.loads((home / "config.json").read_text())["problem"]


def test_a_real_engine_is_started_reaped_and_its_exit_code_kept():
    made = Supervisor(1)
    run = made.begin(SMALL, note="a real one")
    assert made.settle(90)
    home = folder() / run
    wait_for(lambda: RunHandle.attach(home).status().exit_code == 0, 20, "the exit code")
    now = standing(run, home)
    assert (now.state, now.step, note_of(home)) == ("finished", 30, "a real one")
