"""Damage and mistakes on the command line: one sentence each, exit code 2 or 3, and a home is claimed once."""

import ctypes
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, redirect_stderr
from pathlib import Path

import pytest

from modalscape.engine import actions, cli as program
from modalscape.engine.client.handle import Busy, RunHandle, runs
from modalscape.engine.config import DEFAULTS
from modalscape.engine.errors import InputError
from modalscape.engine.store.home import founded, lock
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.writer import RunWriter
from tests.homes import ROOT, SMALL, engine, json_of, said, small, trained, wait_for

PLANTED = ["--problem", "planted", *(f"--set={key}={value}" for key, value in SMALL.items())]
DATABASES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"not a database, but long enough to be looked at" * 200),
}
COMMANDS = (["show"], ["export", "--to", "csv"], ["replay"], ["probe"], ["resume"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("finished") / "run"
    trained(home, small(steps=20))
    return home


@pytest.fixture
def home(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "runs" / "damaged-run"))


def sentence_of(*arguments, code=2):
    """Return the one sentence that a command says; insist on it and on the exit code."""
    _, err = said(*arguments, code=code)
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and len(lines[0]) < 420 and "Traceback" not in err and "fault of the program" not in err, err
    return lines[0]


def given(command, home):
    extra = {"export": [home.parent / "tables"], "probe": ["trajectory"], "resume": ["--steps", 40]}
    return [command[0], home, *command[1:], *extra.get(command[0], [])]


@pytest.mark.parametrize("form", DATABASES)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_damaged_run_db_is_one_sentence(home, form, command):
    DATABASES[form](home / "run.db")
    assert "run.db" in sentence_of(*given(command, home))


@pytest.mark.parametrize("form", DATABASES)
def test_a_damaged_control_db_is_one_sentence(home, form):
    DATABASES[form](home / "control.db")
    for command in ("show", "resume"):
        assert "control.db" in sentence_of(*given([command], home))


@pytest.mark.parametrize("form", DATABASES)
def test_a_damaged_run_is_listed_with_its_reason_beside_the_others(home, finished, form):
    shutil.copytree(finished, home.parent / "good-run")
    DATABASES[form](home / "run.db")
    listed = {Path(entry["home"]).name: entry for entry in json_of("list", "--runs", home.parent)["runs"]}
    assert listed["good-run"]["state"] == "finished" and listed["damaged-run"]["state"] == "unreadable"
    assert "run.db" in listed["damaged-run"]["error"]
    out, _ = said("list", "--runs", home.parent)
    assert "cannot be read" in out and "step 20 of 20" in out


def test_a_status_is_never_refused(home):
    for name in ("run.db", "control.db", "lock"):
        path = home / name
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        status = RunHandle(home).status()
        assert (status.state, status.alive, status.over) == ("unreadable", False, True) and name in status.error
        path.unlink()
        path.write_bytes(kept)
    assert RunHandle(home).status().state == "finished"


def test_a_run_that_an_engine_holds_is_not_over_however_damaged(home):
    DATABASES["foreign"](home / "run.db")
    with lock(home):
        status = RunHandle(home).status()
        assert status.state == "unreadable" and status.alive and not status.over


def test_an_older_database_is_not_trained_on(home):
    with closing(sqlite3.connect(home / "run.db", isolation_level=None)) as db:
        db.execute("ALTER TABLE array RENAME COLUMN about TO notes")
    assert "about" in sentence_of(*given(["resume"], home))


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"methods": 5}, "methods must be a list"),
        ({"probes": [1]}, "probes must be an object"),
        ({"settings": [1]}, "settings must be an object"),
        ({"settings": {"batch": {}}}, "settings must be"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"steps": None}, "steps must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"device": 0}, "device must be a name"),
        ({"problem": ["planted"]}, "problem must be a name"),
        ({"data": {"a": 1}}, "data must be the path"),
        ({"more": 1}, "no field 'more'"),
    ],
)
def test_a_configuration_of_wrong_types_is_one_sentence(home, change, mention):
    values = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps(values | change))
    for command in ("replay", "resume"):
        assert mention in sentence_of(*given([command], home))


NO_CONFIGURATIONS = ["[" * 5000, "9" * 5000, "[]", "null", "\ufeff{}", "", '{"steps": ' + "1" * 5000 + "}"]


@pytest.mark.parametrize("text", NO_CONFIGURATIONS)
def test_a_configuration_that_is_none_is_one_sentence(home, text):
    (home / "config.json").write_text(text)
    sentence_of(*given(["resume"], home))


@pytest.mark.parametrize(
    ("options", "mention"),
    [
        (["--probe", "hessian:²"], "EVERY"),
        (["--probe", f"hessian:{'9' * 5000}"], "EVERY"),
        (["--set", "zzzzqqq=1"], "see `catalog`"),
        (["--set", f"{'x' * 5000}=1"], "no setting"),
        (["--set", f"batch={'9' * 5000}"], "batch"),
        (["--set", "fusion=\udcff"], "fusion must be"),
        (["--steps", "1e400"], "--steps"),
        (["--steps", "9" * 5000], "--steps"),
        (["--steps", "1" + "0" * 30], "steps must be"),
        (["--seed", "-1"], "seed must be"),
        (["--seed", "9" * 5000], "--seed"),
        (["--device", "cuda:99"], "--device"),
        (["--device", "cuda:" + "9" * 5000], "--device"),
        (["--device", "\udcff"], "device"),
        (["--home", "/dev/null"], "cannot be written"),
        (["--home", "/tmp/" + "x" * 5000], "cannot be written"),
        (["--home", "a\0b"], "No file can be named"),
        (["--home", "/proc/none/here"], "cannot be written"),
    ],
)
def test_odd_options_are_one_sentence(options, mention):
    assert mention in sentence_of("run", *PLANTED, *options)


@pytest.mark.parametrize("data", ["/dev/zero", "/dev/null", "a\0b", "x" * 5000, "\udcff.npz", "\ud800.npz"])
def test_odd_data_files_are_one_sentence(tmp_path, data):
    sentence_of("run", "--data", data, "--home", tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_pipe_is_not_waited_for(tmp_path, home):
    os.mkfifo(tmp_path / "pipe.npz")
    assert "pipe" in sentence_of("run", "--data", tmp_path / "pipe.npz")
    (home / "config.json").unlink()
    os.mkfifo(home / "config.json")
    assert "pipe" in sentence_of("resume", home)


@pytest.mark.parametrize("command", ["show", "replay", "resume", "probe", "export", "list"])
def test_odd_homes_are_one_sentence(tmp_path, command):
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / ("x" * 5000), "/dev/null", "a\0b"):
        if command == "list":
            sentence_of("list", "--runs", home)
        else:
            sentence_of(*given([command], home if isinstance(home, Path) else Path(home)))


def test_a_probe_looks_at_no_step_before_the_first(home):
    assert "at least 0" in sentence_of("probe", home, "trajectory", "--step", -1)
    assert "--steps" in sentence_of("resume", home, "--steps", 10**30)


def test_a_name_that_is_no_text_can_be_listed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs" / "not-\udcff-text")
    process = engine("list", "--runs", tmp_path / "runs")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "\\udcff" in out and not err


def test_a_fault_of_the_program_is_a_sentence_that_names_a_file(home, monkeypatch):
    def fault(home):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("modalscape.engine.config.read", fault)
    err = io.StringIO()
    with redirect_stderr(err):
        assert program.entry(["show", str(home)]) == 1
    assert err.getvalue().startswith("Error: This is a fault of the program, ZeroDivisionError (by nothing)")
    path = Path(err.getvalue().rpartition(" ")[2].strip().rstrip("."))
    assert "by nothing" in path.read_text() and "Traceback" in path.read_text()
    path.unlink()


def unprivileged():
    """Give up the right to write where the permissions forbid it, which root has."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_one_sentence(home):
    for path in (*home.rglob("*"), home):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        probe = ("probe", home, "trajectory", "--json")
        for arguments, code in ((("resume", home), 2), (probe, 0), (("show", home), 0)):
            process = engine(*arguments, preexec_fn=unprivileged)
            out, err = process.communicate(timeout=120)
            assert process.returncode == code and "Traceback" not in err, err
            assert code == 0 or (err.startswith("Error: ") and err.count("\n") == 1 and "Permission denied" in err), err
            if arguments[0] == "probe":
                assert json.loads(out.splitlines()[-1])["stored"] is False
    finally:
        for path in (home.parent, home, *home.rglob("*")):
            path.chmod(0o755)


def test_a_lock_that_cannot_be_taken_is_one_sentence(home):
    (home / "lock").unlink()
    (home / "lock").mkdir()
    assert "cannot be locked" in sentence_of(*given(["resume"], home))
    assert json_of("probe", home, "trajectory")["stored"] is False


def test_a_reader_that_goes_away_is_no_fault(home):
    for number in range(40):
        shutil.copytree(home, home.parent / f"more-{number}")
    line = f'"{sys.executable}" -m engine list --runs "{home.parent}" | head -c 1'
    done = subprocess.run(["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr and done.stdout.strip()[1:].strip() in ("0", "1", "141")


@pytest.mark.slow
def test_ctrl_c_is_no_fault(tmp_path):
    process = engine("claim", "edge_of_stability", "--runs", tmp_path / "claims", start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("claims/*/*/run.db")), 120, "the first run of the claim")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (2, 130) and "Traceback" not in err, err


# A home is claimed once.


def test_a_home_that_was_claimed_while_data_were_read_is_left_alone(tmp_path, monkeypatch):
    home, other, real = tmp_path / "home", small(steps=12), actions.Training

    def slow(config):
        trained_now = real(config)
        if not home.exists():  # another process begins and ends a run there meanwhile
            monkeypatch.setattr(actions, "Training", real)
            assert actions.run_new(other, home) == 0
        return trained_now

    monkeypatch.setattr(actions, "Training", slow)
    with pytest.raises(InputError, match="already holds a run"):
        actions.run_new(small(steps=30), home)
    assert json.loads((home / "config.json").read_text())["steps"] == 12
    assert RunReader(home).meta("step") == 12
    assert [event.kind for event in RunReader(home).events()].count("started") == 1


def test_a_home_that_cannot_be_had_is_not_deleted(tmp_path, monkeypatch):
    home, real = tmp_path / "home", actions.Training

    def slow(config):
        made = real(config)
        trained(home, small(steps=5))  # another process
        (home / "lock").unlink()
        (home / "lock").mkdir()
        return made

    monkeypatch.setattr(actions, "Training", slow)
    with pytest.raises(InputError, match="locked"):
        actions.run_new(small(), home)
    assert RunReader(home).meta("step") == 5


def raced(home):
    processes = [engine("run", *PLANTED, "--steps", 40, "--seed", seed, "--home", home) for seed in range(2)]
    ends = [process.communicate(timeout=240) for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes[0] == 0 and codes[1] in (2, 3), (codes, ends)
    (loser,) = [err for process, (_, err) in zip(processes, ends, strict=True) if process.returncode]
    assert "already" in loser and "Traceback" not in loser
    (winner,) = [seed for seed, process in enumerate(processes) if process.returncode == 0]
    assert json.loads((home / "config.json").read_text())["seed"] == winner
    assert [event.kind for event in RunReader(home).events()].count("started") == 1


def test_of_two_engines_on_a_new_home_one_trains(tmp_path):
    raced(tmp_path / "home")


@pytest.mark.slow
def test_of_two_engines_on_a_new_home_one_trains_each_time(tmp_path):
    for number in range(10):
        raced(tmp_path / f"home-{number}")


def test_a_home_is_founded_once_by_many_threads_and_given_back_where_it_fails(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    def found(number):
        try:
            founded(tmp_path / "home", {"steps": number})
        except InputError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(found, range(40)) if number is not None]
    written = json.loads((tmp_path / "home" / "config.json").read_text())
    assert len(winners) == 1 and written == {"defaults": DEFAULTS, "steps": winners[0]}

    def full(home):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modalscape.engine.store.home.create", full)
    with pytest.raises(InputError, match="No space left"):
        founded(tmp_path / "other", {"steps": 1})
    assert not (tmp_path / "other").exists()


def test_a_lock_of_a_folder_that_was_deleted_is_not_held(home):
    """Who waits for the lock of a run that is being deleted must not train in a folder that is gone."""
    with lock(home):
        shutil.rmtree(home)
        home.mkdir()
        with lock(home):
            assert (home / "lock").exists()
    with lock(home), pytest.raises(Busy), lock(home):
        pass


def test_a_run_taken_up_meanwhile_is_not_discarded(tmp_path):
    handle = RunHandle(tmp_path / "waiting-run")
    handle.prepare(small())
    with lock(handle.home), pytest.raises(Busy):
        handle.discard()
    writer = RunWriter(handle.home)
    writer.beat("running", 3, {"activity": ""})
    writer.close()
    assert not handle.discard() and handle.home.exists()


def test_runs_are_listed_whatever_lies_in_their_place(tmp_path):
    for name in ("loop", "folder", "file"):
        (tmp_path / name).mkdir()
    (tmp_path / "loop" / "run.db").symlink_to("run.db")
    (tmp_path / "folder" / "run.db").mkdir()
    (tmp_path / "file" / "run.db").write_text("")
    (tmp_path / "stray").write_text("")
    assert sorted(name for name, _ in runs(tmp_path)) == ["file", "folder", "loop"]
