"""A disk that refuses, a mailbox that cannot be read, a folder that is gone: training goes on, or ends with a word."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from modalscape.engine.actions import UNWRITTEN, replay, resume
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.runtime import checkpoint, recorder
from modalscape.engine.store import writer as store
from modalscape.engine.store.commands import Measure, Note, Pause, Resume, Toggle, post
from modalscape.engine.store.writer import RunReader
from tests.full_disks import refuse, relent
from tests.homes import SMALL, small, trained, wait_for
from tests.kills import forked

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def disk(tmp_path):
    """A disk of its own of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {mounted.stderr.strip() if mounted else 'no mount'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, spare: int = 0) -> Path:
    """Leave `spare` bytes on the disk; return the file that takes the room."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for block in (1 << 16, 4096):
            try:
                while shutil.disk_usage(folder).free > spare:
                    file.write(b"x" * block)
            except OSError:
                continue
    return filler


def kinds(home):
    return [event.kind for event in RunReader(home).events()]


def prompt(monkeypatch):
    """Let the disk be asked at every step."""
    monkeypatch.setattr(store.RunWriter, "due", lambda writer: True)
    monkeypatch.setattr(recorder, "RETRY_MOST", 0.0)


def whole(home):
    """Check that a run has all it should have, and repeats."""
    assert RunReader(home).scalars("loss/fused", points=None)[0].tolist() == list(range(60))
    assert checkpoint.steps(home)[-1] == 60 and replay(home)["identical"]


def test_a_disk_that_is_full_for_a_while_costs_nothing_and_is_said_once(tmp_path, disk, monkeypatch):
    prompt(monkeypatch)
    plain = trained(tmp_path / "plain", small(steps=60))
    seen = []

    def full():
        for command in (Toggle("gani", False), Note("meanwhile")):
            post(disk / "run", command)
        fill(disk)

    def look():
        seen.append(RunHandle(disk / "run").status())

    run = trained(disk / "run", small(), {10: full, 35: look, 47: look, 52: (disk / "filler").unlink})
    assert [(s.state, s.step, s.alive) for s in seen] == [("running", 34, True), ("running", 46, True)]
    for status in seen:
        assert status.error.startswith("The disk is full: ") and status.error.count(". ") == 1
        assert "numbers" in status.error and "events" in status.error and "a checkpoint (" in status.error
        assert "; free at least 1 MB. Training goes on." in status.error and status.age < 5
    whole(run.home)
    assert RunReader(run.home).meta("theta") == RunReader(plain.home).meta("theta")
    assert RunHandle(run.home).status().error is None and RunHandle(run.home).status().state == "finished"
    found = kinds(run.home)
    assert found.count("unsaved") == 1 and found.count("mended") == 1 and "lost" not in found and "failed" not in found
    assert found.count("note") == 1 and found.count("checkpoint") == 3  # of steps 0, 60 and one that was owed
    names = [sorted(path.name for path in (r.home / "path").iterdir()) for r in (run, plain)]
    assert names[0] == names[1]


def test_a_checkpoint_that_does_not_fit_waits_while_numbers_are_written(disk, monkeypatch):
    prompt(monkeypatch)
    seen = []

    def look():
        seen.append(RunHandle(disk / "run").status())
        (disk / "filler").unlink()

    run = trained(
        disk / "run",
        small(settings={"width": 64, "hidden": 128, "checkpoint": 10}),
        {19: lambda: fill(disk, 400_000) and None, 21: look},
    )
    assert "a checkpoint (" in seen[0].error and "numbers" not in seen[0].error and seen[0].state == "running"
    whole(run.home)
    found = kinds(run.home)
    assert found.count("unsaved") == 1 and found.count("mended") == 1
    assert checkpoint.steps(run.home)[:2] == [0, 10] and not list(run.home.glob("*/*.partial"))


def test_a_run_that_ends_while_the_disk_is_full_says_what_is_missing_and_resume_makes_up_for_it(disk, monkeypatch):
    prompt(monkeypatch)
    monkeypatch.setattr(recorder, "PATIENCE", 0.3)
    run = trained(disk / "run", small(), {10: lambda: fill(disk) and None})
    status = RunHandle(run.home).status()
    assert (status.state, status.step, status.alive) == ("finished", 60, False)
    assert "could not be written before the run ended; resume makes up for it." in status.error
    assert status.error == run.keeping.unwritten
    (disk / "filler").unlink()
    assert RunReader(run.home).meta("step") <= 11
    assert resume(run.home) == 0
    whole(run.home)
    assert RunHandle(run.home).status().error is None and "failed" not in kinds(run.home)


def test_memory_is_bounded_while_the_disk_is_full_and_what_is_lost_is_counted(disk, monkeypatch):
    prompt(monkeypatch)
    built = store.RunWriter.__init__
    monkeypatch.setattr(store.RunWriter, "__init__", lambda self, home: built(self, home, most=200))
    run = trained(disk / "run", small(), {10: lambda: fill(disk) and None, 50: (disk / "filler").unlink})
    lost = RunReader(run.home).events(kinds=("lost",))
    assert len(lost) == 1 and lost[0].detail["rows"] == run.writer.lost > 0
    assert f"{run.writer.lost:,} rows were given up" in lost[0].detail["error"]
    steps = RunReader(run.home).scalars("loss/fused", points=None)[0].tolist()
    assert len(steps) < 60 and steps[:9] == list(range(9)) and steps[-1] == 59
    assert replay(run.home)["identical"]


def test_events_that_a_replay_needs_are_never_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_EVENTS", 5)
    monkeypatch.setattr(store, "MOST_NEEDED", 3)
    store.create(tmp_path)
    writer = store.RunWriter(tmp_path)
    refuse(writer)
    for step in range(20):
        writer.event(step, "probe", {"name": "x" * 400})
        assert not writer.crowded
    for number in range(3):
        writer.event(20, "applied", {"id": number, "command": {"do": "note", "text": "x" * 3000}})
    assert not writer.flush() and writer.crowded
    relent(writer)
    assert writer.flush() and writer.flush() and not writer.crowded
    found = RunReader(tmp_path).events()
    assert [e.step for e in found if e.kind == "probe"] == list(range(15, 20))
    assert [e.detail["id"] for e in found if e.kind == "applied"] == [0, 1, 2]
    assert [e.detail["rows"] for e in found if e.kind == "lost"] == [15]
    writer.close()


def test_a_run_on_a_disk_without_any_room_is_refused_in_one_sentence(disk):
    fill(disk)
    process = engine(["run", "--problem=planted", "--steps=5", f"--home={disk / 'run'}"], disk / "log.txt")
    assert process.wait(60) == 2
    assert not (disk / "run").exists()


def engine(words, log: Path) -> subprocess.Popen:
    """Start an engine that prints into `log`."""
    with log.open("ab") as file:
        line = [sys.executable, "-m", "engine", *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)


def test_output_into_a_full_disk_ends_nothing(tmp_path):
    home = tmp_path / "run"
    words = [f"--set={key}={value}" for key, value in SMALL.items()]
    process = engine(["run", "--problem=planted", "--steps=60", f"--home={home}", "--json", *words], Path("/dev/full"))
    assert process.wait(120) == 0
    whole(home)


def test_other_errors_of_output_are_not_hidden(tmp_path):
    read, write = os.pipe()
    os.close(read)
    code = "from modalscape.engine.runtime.streams import guard; guard(); print('x', flush=True)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert process.returncode and "BrokenPipeError" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False])
def test_an_engine_with_its_home_and_log_on_a_full_disk_goes_on_and_ends_in_order(disk, room):
    home, log = disk / "run", disk / "log.txt"
    words = [f"--set={key}={value}" for key, value in SMALL.items()]
    process = engine(["run", "--problem=planted", "--steps=4000", f"--home={home}", *words], log)
    handle = RunHandle(home)
    try:
        wait_for(lambda: (home / "run.db").exists() and handle.status().step > 50, 90, "the first steps")
        filler = fill(disk)
        status = wait_for(lambda: (s := handle.status()).error and s, 30, "the sentence")
        assert "The disk is full" in status.error and status.state == "running"
        step = status.step
        wait_for(lambda: handle.status().step > step + 100, 60, "training that goes on")
        if room:
            filler.unlink()
            wait_for(lambda: handle.status().error is None, 30, "the end of the trouble")
        assert process.wait(200) == (0 if room else UNWRITTEN)
    finally:
        process.kill()
        process.wait()
    status = handle.status()
    assert (status.state, status.step) == ("finished", 4000)
    assert "Traceback" not in log.read_text()
    if not room:
        assert "could not be written before the run ended" in status.error
        filler.unlink()
        assert engine(["resume", home], log).wait(200) == 0
    assert RunReader(home).scalars("loss/fused", points=None)[0].tolist() == list(range(4000))
    found = kinds(home)
    assert found.count("unsaved") <= 1 and "failed" not in found
    assert replay(home)["identical"]


# A folder that is no longer there.


USUAL = {("deleted", "training"), ("moved", "paused"), ("replaced", "measuring")}
"""Those of the cases below that are not slow together."""


def lost(home, how):
    """Take the folder away from under an engine."""
    if how == "deleted":
        wait_for(lambda: shutil.rmtree(home, ignore_errors=True) or not home.exists(), 5, "the deletion")
    else:
        home.rename(home.with_name("elsewhere"))
    if how == "replaced":
        other = RunHandle(home)
        other.prepare(small().to_json())
        other.send(Note("of another run"))


@pytest.mark.parametrize(
    ("how", "at"),
    [
        pytest.param(how, at, marks=[pytest.mark.slow] * ((how, at) not in USUAL))
        for how in ("deleted", "moved", "replaced")
        for at in ("training", "paused", "measuring")
    ],
)
def test_an_engine_whose_folder_is_lost_ends_within_five_seconds(tmp_path, how, at):
    home = tmp_path / "run"
    words = ["--problem=planted", "--steps=1000000", *(f"--set={key}={value}" for key, value in SMALL.items())]
    process = forked("run", "--home", home, *words, log=tmp_path / "log")
    try:
        wait_for(lambda: (home / "run.db").exists() and RunReader(home).meta("step", 0) > 10, 60, "the first steps")
        if at != "training":
            post(home, Pause())
            wait_for(lambda: RunReader(home).meta("state") == "paused", 30, "the pause")
        if at == "measuring":
            post(home, Measure("hessian", {"steps": 300, "k": 50, "probes": 200, "part_steps": 300}))
            wait_for(lambda: RunReader(home).meta("activity"), 30, "the measurement")
        lost(home, how)
        process.join(5)
        assert process.exitcode == 5
    finally:
        process.kill()
        process.join()
    lines = [line for line in (tmp_path / "log").read_text().split("\n") if line.startswith("Error: ")]
    assert len(lines) == 1 and "deleted, moved or replaced" in lines[0] and str(home) in lines[0]
    assert "Traceback" not in (tmp_path / "log").read_text()
    if how == "deleted":
        assert not home.exists()
    if how == "moved":
        assert not home.exists()
        status = RunHandle(home.with_name("elsewhere")).status()
        assert status.state == "failed" and "deleted, moved or replaced" in status.error
        assert resume(home.with_name("elsewhere"), RunReader(home.with_name("elsewhere")).meta("step") + 5) == 0
    if how == "replaced":
        assert RunReader(home).events() == [] and [c.text for _, c in RunHandle(home).pending()] == ["of another run"]
        assert not (home / "checkpoints").exists() and not (home / "path").exists()
        assert resume(home) == 0 and whole(home) is None


# Records first, then the checkpoint.


def test_no_checkpoint_is_written_before_its_records_and_an_owed_one_follows(tmp_path):
    home, held, seen = tmp_path / "run", [], []

    def hold():
        post(home, Toggle("gani", True))
        held.append(sqlite3.connect(home / "run.db", isolation_level=None))
        held[0].execute("BEGIN IMMEDIATE")

    def let_go():
        seen.append((checkpoint.steps(home), RunReader(home).meta("step"), kinds(home)))
        held[0].execute("ROLLBACK")
        held[0].close()

    trained(home, small(), {15: hold, 45: let_go})
    steps, step, before = seen[0]
    assert steps == [0] and step <= 15 and "applied" not in before
    whole(home)
    assert [e.step for e in RunReader(home).events() if e.kind == "applied"] == [15]
    assert kinds(home).count("unsaved") == kinds(home).count("mended") == 1


@pytest.mark.parametrize("lacks", ["event", "theta", "both"])
def test_what_a_kill_left_out_after_a_checkpoint_got_its_name_is_made_up_for(tmp_path, lacks):
    run = trained(tmp_path / "run", small())
    theta = RunReader(run.home).meta("theta")
    with closing(sqlite3.connect(run.home / "run.db")) as db, db:
        if lacks != "theta":
            db.execute("DELETE FROM event WHERE kind = 'checkpoint' AND step = 60")
        if lacks != "event":
            db.execute("UPDATE meta SET value = ? WHERE key = 'theta'", (json.dumps({"step": 40, "sha256": "x"}),))
    assert resume(run.home) == 0
    assert RunReader(run.home).meta("theta") == theta
    assert [e.step for e in RunReader(run.home).events(kinds=("checkpoint",))] == [0, 20, 40, 60]


def test_a_checkpoint_says_which_commands_of_its_step_it_holds(tmp_path):
    """Repeated on top of what they led to, these would be refused: bogc and mmpareto cannot be on together."""
    orders = [Toggle("bogc", True), Toggle("bogc", False), Toggle("mmpareto", True), Pause(), Resume()]
    config = small(settings={"unimodal": "heads"})
    run = trained(tmp_path / "run", config, {23: orders})
    assert checkpoint.load(run.home, 30)["step"] == 23
    for step in (40, 60):
        (run.home / "checkpoints" / checkpoint.named(step)).unlink()
    assert resume(run.home) == 0
    whole(run.home)
    assert torch.equal(checkpoint.load(run.home)["theta"], run.training.state.theta)


def test_a_measurement_of_a_step_that_is_repeated_is_not_made_twice(tmp_path):
    run = trained(tmp_path / "run", small(probes={"imbalance": 5}, settings={}))
    before = [(e.detail["name"], e.step) for e in RunReader(run.home).events(kinds=("probe",))]
    for step in (40, 60):
        (run.home / "checkpoints" / checkpoint.named(step)).unlink()
    assert resume(run.home) == 0
    after = [(e.detail["name"], e.step) for e in RunReader(run.home).events(kinds=("probe",))]
    assert after[: len(before)] == before and len(set(after)) == len(after)
    assert len(before) > 2
