"""Stories of the command line: engines killed and resumed, and every bad input answered by a sentence."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from modalscape.engine.client.handle import RunHandle
from modalscape.engine.store.commands import Toggle, Tune, post
from modalscape.engine.store.writer import RunReader
from tests.homes import SMALL, engine, json_of, reader_of, said, wait_for

PLANTED = [f"--set={key}={value}" for key, value in SMALL.items()]
RARE = [f"--set={key}={value}" for key, value in (SMALL | {"checkpoint": 150}).items()]


def test_run_show_list_replay_export(tmp_path):
    home = tmp_path / "runs" / "first"
    ran = json_of(
        "run",
        "--problem",
        "planted",
        "--steps",
        50,
        "--home",
        home,
        "--method",
        "gani",
        "--probe",
        "hessian:25",
        *PLANTED,
    )
    assert ran["state"] == "finished" and ran["step"] == 50 and len(ran["theta"]) == 64
    assert {"home", "state", "step", "seconds", "theta", "scalars", "records", "events"} <= set(ran)
    assert {"loss/fused", "accuracy/val", "hessian/lambda_max"} <= set(ran["scalars"])
    assert ran["records"]["hessian/spectrum"] == 50
    assert json_of("show", home) == ran
    listed = json_of("list", "--runs", home.parent)["runs"]
    assert [r["home"] for r in listed] == [str(home)]
    assert json_of("replay", home)["identical"] is True
    said("export", home, "--to", "csv", tmp_path / "tables")
    assert (tmp_path / "tables" / "scalars.csv").read_text().startswith("name,step,value")


@pytest.mark.parametrize("draw", [1, 2, 3])
def test_kill_at_a_random_step_and_resume_is_exact(tmp_path, draw):
    at = random.Random(draw).randrange(100, 900)
    home = tmp_path / "killed"
    process = engine("run", "--problem", "planted", "--steps", 1500, "--home", home, "--probe", "imbalance:100", *RARE)

    def reached(step):
        assert process.poll() is None, process.communicate()
        reader = reader_of(home)
        return reader and reader.meta("step", 0) >= step

    wait_for(lambda: reached(1), what="the first step")
    post(home, Toggle("gani", True))
    post(home, Tune("optimizer", "lr", 0.005))
    wait_for(lambda: reached(at), what=f"step {at}")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    recorded = RunReader(home).scalars("loss/fused", points=10**7)
    assert RunHandle.attach(home).status().state == "crashed"
    resumed = json_of("resume", home)
    assert resumed["state"] == "finished" and resumed["step"] == 1500
    steps, values = RunReader(home).scalars("loss/fused", points=10**7)
    assert steps.tolist() == list(range(1500))
    assert values[: len(recorded[1])].tolist() == recorded[1].tolist()
    assert json_of("replay", home)["identical"] is True


def test_a_second_engine_is_refused(tmp_path):
    home = tmp_path / "one"
    first = engine("run", "--problem", "planted", "--steps", 10**7, "--home", home, *PLANTED)
    try:
        wait_for(lambda: reader_of(home) and reader_of(home).meta("step", 0) > 0, what="the first step")
        _, err = said("resume", home, code=3)
        assert "already" in err and err.count("\n") == 1
        _, err = said("run", "--problem", "planted", "--home", home, code=3)
        assert "already" in err and "Traceback" not in err
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=30)
        assert first.returncode == 0
    finally:
        first.kill()
        first.communicate()
    status = RunHandle.attach(home).status()
    assert status.state == "stopped"
    assert json_of("replay", home)["identical"] is True


def bad_files(folder):
    """Yield (name, file, what the sentence must mention)."""
    rng = np.random.default_rng(0)
    good = {
        "a": rng.normal(size=(60, 4)).astype("f4"),
        "b": rng.normal(size=(60, 3)).astype("f4"),
        "labels": np.arange(60) % 3,
    }

    def saved(name, **arrays):
        np.savez(folder / f"{name}.npz", **{k: v for k, v in (good | arrays).items() if v is not None})
        return folder / f"{name}.npz"

    nan = good["a"].copy()
    nan[3, 1] = np.nan
    yield "missing", folder / "nowhere.npz", "nowhere.npz"
    cut = folder / "cut.npz"
    cut.write_bytes(saved("whole").read_bytes()[:400])
    yield "truncated", cut, "cut.npz"
    text = folder / "text.npz"
    text.write_text("hello")
    yield "no archive", text, "text.npz"
    yield "a folder", folder, str(folder)
    yield "pickled", saved("pickled", a=np.array([{"x": 1}] * 60, dtype=object)), "a"
    yield "nan", saved("nan", a=nan), "finite"
    yield "lengths", saved("lengths", b=good["b"][:50]), "50"
    yield "one class", saved("single", labels=np.zeros(60, int)), "class"
    yield "no labels", saved("unlabelled", labels=None), "labels"


def test_bad_files_are_answered_by_one_sentence(tmp_path):
    for name, file, mention in bad_files(tmp_path):
        home = tmp_path / "home"
        _, err = said("run", "--data", file, "--home", home, "--steps", 5, code=2)
        assert mention in err and "Traceback" not in err, (name, err)
        assert err.startswith("Error: ") and err.strip().count("\n") == 0, (name, err)
        assert not home.exists(), name


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["--problem", "plantd"], "did you mean planted"),
        (["--problem", "planted", "--method", "gnai"], "did you mean gani"),
        (["--problem", "planted", "--set", "optimizer.rl=1"], "did you mean optimizer.lr"),
        (["--problem", "planted", "--set", "gani.beta=7"], "between"),
        (["--problem", "planted", "--set", "batch=many"], "whole number"),
        (["--problem", "planted", "--set", "batch"], "KEY=VALUE"),
        (["--problem", "planted", "--device", "warp"], "--device"),
        (["--problem", "planted", "--device", "cuda:99"], "--device"),
        (["--problem", "planted", "--probe", "hessian:often"], "EVERY"),
        (["--problem", "planted", "--steps", "0"], "steps"),
        ([], "problem"),
        (["--problem", "planted", "--home", "/proc/none/here"], "--home"),
    ],
)
def test_bad_options_are_answered_by_one_sentence(tmp_path, arguments, mention):
    home = [] if "--home" in arguments else ["--home", tmp_path / "home"]
    _, err = said("run", *arguments, *home, code=2)
    assert mention in err and "Traceback" not in err and err.strip().count("\n") == 0, err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", [["show"], ["replay"], ["resume"], ["probe"]])
def test_a_folder_without_a_run_is_answered_by_one_sentence(tmp_path, command):
    arguments = [tmp_path, "hessian"] if command == ["probe"] else [tmp_path]
    _, err = said(*command, *arguments, code=2)
    assert "holds no run" in err and "Traceback" not in err


def test_a_damaged_checkpoint_is_answered_by_one_sentence(tmp_path):
    home = tmp_path / "run"
    said("run", "--problem", "planted", "--steps", 40, "--home", home, *PLANTED)
    newest = sorted((home / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    _, err = said("resume", home, "--steps", 60)
    lines = [line for line in err.splitlines() if "checkpoint" in line]
    assert len(lines) == 1 and newest.name in lines[0] and "Traceback" not in err
    assert json_of("replay", home)["identical"] is True


def test_the_program_itself_ends_with_these_codes(tmp_path):
    for arguments, code in ((["run", "--problem", "plantd"], 2), (["show", tmp_path], 2)):
        process = engine(*arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code and err.startswith("Error: ") and not out


def test_show_and_list_do_without_torch():
    code = "import sys, modalscape.engine.cli, modalscape.engine.client.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(os.path.dirname(__file__))).returncode == 0


def test_the_catalogue_is_json():
    found = json_of("catalog")
    assert {"methods", "probes", "problems", "lessons"} <= set(found)
    gani = next(m for m in found["methods"] if m["name"] == "gani")
    assert {"name", "title", "points", "knobs", "source"} <= set(gani)
    assert json.dumps(found)
    assert sqlite3.sqlite_version_info >= (3, 24)
