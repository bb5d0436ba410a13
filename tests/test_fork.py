"""Forks: the first steps are the parent's bit for bit, then each goes its own way, whatever happens to either."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from modalscape.engine import actions
from modalscape.engine.catalog import catalog
from modalscape.engine.client.forks import planned
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import read
from modalscape.engine.runtime import checkpoint, observer
from modalscape.engine.runtime.loop import Run
from modalscape.engine.runtime.path_history import kept
from modalscape.engine.runtime.replay import recreated
from modalscape.engine.runtime.session import Training, deterministic
from modalscape.engine.store.commands import Measure, Pace, Toggle, Tune, Watch, post
from modalscape.engine.store.home import founded, kept_steps, lock, rewritten
from modalscape.engine.store.writer import RunReader
from tests.homes import engine, json_of, said, small, trained, wait_for

N = 33
"""A step between two checkpoints."""


def series(home, name="loss/fused"):
    steps, values = RunReader(home).scalars(name, points=None)
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def theta(home):
    return RunReader(home).meta("theta")["sha256"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run that was steered on its way: GANI on at 10, another learning rate at 25, SAM on at 40."""
    home = tmp_path_factory.mktemp("forks") / "parent"
    commands = {10: [Toggle("gani", True)], 25: [Tune("optimizer", "lr", 0.01)], 40: [Toggle("sam", True)]}
    trained(home, small(probes={"imbalance": 11}), commands)
    return home


@pytest.fixture
def copied(parent, tmp_path):
    """A parent that a test may damage."""
    return shutil.copytree(parent, tmp_path / "runs" / "parent")


def forked(parent, name="child", step=N, *words):
    home = parent.parent / name
    said("fork", parent, "--step", step, "--home", home, *words)
    return home


def test_a_fork_with_nothing_changed_is_the_run_that_was_never_forked(copied, tmp_path):
    straight = tmp_path / "straight"
    commands = {10: [Toggle("gani", True)], 25: [Tune("optimizer", "lr", 0.01)]}
    trained(straight, small(probes={"imbalance": 11}), commands)
    shown = json_of("fork", copied, "--step", N, "--home", copied.parent / "child")
    child = copied.parent / "child"
    assert (shown["state"], shown["step"], shown["steps"]) == ("stopped", N, 60)
    assert shown["fork"] == {"of": "parent", "step": N}
    assert shown["theta"] == checkpoint.sha256(recreated(copied, N).state.theta) == read(child).fork["theta"]
    said("resume", child)
    assert theta(child) == theta(straight) != theta(copied)
    assert series(child) == series(straight)
    assert series(child, "accuracy/val") == {k: v for k, v in series(straight, "accuracy/val").items()} | {
        N: series(child, "accuracy/val")[N]
    }
    assert series(child, "imbalance/gap") == series(straight, "imbalance/gap")
    assert json_of("replay", child)["identical"] is True
    assert json_of("show", child)["step"] == 60


def test_what_is_changed_parts_the_curves_after_the_step_and_not_before(copied):
    ways = {
        "method": ("--method", "ogm_ge"),
        "without": ("--without", "gani"),
        "lr": ("--set", "optimizer.lr=0.05"),
        "seed": ("--seed", "7"),
    }
    plain = forked(copied, "plain")
    said("resume", plain)
    ends = {theta(plain)}
    for name, words in ways.items():
        child = forked(copied, name, N, *words)
        said("resume", child)
        own = series(child)
        assert {s: v for s, v in own.items() if s < N} == {s: v for s, v in series(copied).items() if s < N}
        assert sorted(own) == list(range(60))
        assert json_of("replay", child)["identical"] is True
        ends.add(theta(child))
    assert len(ends) == 5
    assert read(copied.parent / "method").methods == ("gani", "ogm_ge")
    assert read(copied.parent / "without").methods == ()
    data = [recreated(copied.parent / name, 60).data.y for name in ("plain", "seed")]
    assert all((first == second).all() for first, second in zip(*map(list, data), strict=True))


def test_a_method_switched_on_by_a_fork_begins_as_if_the_parent_had_switched_it_on(copied, tmp_path):
    switched = tmp_path / "switched"
    commands = {10: [Toggle("gani", True)], 25: [Tune("optimizer", "lr", 0.01)], N: [Toggle("sam", True)]}
    trained(switched, small(), commands)
    child = forked(copied, "child", N, "--method", "sam")
    said("resume", child)
    assert theta(child) == theta(switched)


def test_a_fork_of_a_fork_reads_replays_and_measures(copied):
    child = forked(copied, "child", N, "--without", "gani")
    said("resume", child)
    grandchild = forked(child, "grandchild", 47, "--set", "optimizer.lr=0.02")
    said("resume", grandchild, "--steps", 70)
    own = series(grandchild)
    assert sorted(own) == list(range(70))
    assert {s: own[s] for s in range(N)} == {s: series(copied)[s] for s in range(N)}
    assert {s: own[s] for s in range(47)} == {s: series(child)[s] for s in range(47)}
    assert own[50] != series(child)[50]
    assert json_of("replay", grandchild)["identical"] is True
    for step in (12, 40, 60):
        said("probe", grandchild, "imbalance", "--step", step)
        assert step in RunReader(grandchild).history("imbalance/gap")
    said("export", grandchild, "--to", "csv", copied.parent / "tables")
    assert "loss/fused,0," in (copied.parent / "tables" / "scalars.csv").read_text()
    early = forked(grandchild, "early", 20)
    assert read(early).fork["of"] == "parent"
    assert [run["home"] for run in json_of("list", "--runs", copied.parent)["runs"]].count(str(early)) == 1


def test_records_and_events_of_the_past_are_shown_once(copied):
    child = forked(copied, "child", N)
    said("resume", child)
    reader = RunReader(child)
    assert reader.history("imbalance/gap") == [11, 22, 33, 44, 55, 60]
    assert [e.step for e in reader.events(kinds=("probe",))] == [11, 22, 33, 44, 55, 60]
    assert [e.step for e in reader.events(kinds=("started",))] == [0, N]
    applied = [(e.step, e.detail["command"]["do"]) for e in reader.events(kinds=("applied",))]
    assert applied == [(10, "toggle"), (25, "tune")]
    assert reader.at("imbalance/gap", 30) == RunReader(copied).at("imbalance/gap", 22)
    ids = [event.id for event in reader.events()]
    assert len(set(ids)) == len(ids)
    alone = RunReader(child, measured=False)
    assert alone.scalars("loss/fused")[0].min() == N and not alone.events(kinds=("applied",))
    assert RunReader(copied).scalars("loss/fused")[0].max() == 59
    reports = [name for name, kind in reader.names()["records"].items() if name.startswith("gani/")]
    last = RunReader(forked(copied, "last", 40, "--without", "gani"))
    assert any(20 in last.history(name) and 40 in reader.history(name) for name in reports)
    assert not any(40 in last.history(name) for name in reports)  # that of step 40 is of the parent's own way


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_a_parent_that_is_gone_takes_only_its_part_away(copied, harm):
    child = forked(copied, "child", N)
    said("resume", child, "--steps", 50)
    if harm == "deleted":
        shutil.rmtree(copied)
    else:
        (copied / "run.db").write_bytes(b"no database at all" * 100)
        for end in ("-wal", "-shm"):
            (copied / f"run.db{end}").unlink(missing_ok=True)
    reader = RunReader(child)
    assert reader.scalars("loss/fused")[0].min() == N
    assert reader.events(kinds=("started",))[0].step == N
    assert copied.name in reader.damage
    result = json_of("replay", child)
    assert result["identical"] is True and result["step"] == 50
    assert f"own checkpoint of step {N}" in said("replay", child)[1]
    said("resume", child, "--steps", 60)
    assert RunHandle(child).status().state == "finished"
    said("probe", child, "imbalance", "--step", 55)
    if harm == "deleted":
        assert "was deleted or moved" in said("probe", child, "imbalance", "--step", 5, code=2)[1]
    shutil.rmtree(child / "checkpoints")
    assert len(said("resume", child, "--steps", 70, code=2)[1].splitlines()) >= 1


def test_a_parent_that_was_replaced_is_told(copied):
    child = forked(copied, "child", N)
    said("resume", child)
    shutil.rmtree(copied)
    trained(copied, small(seed=5))
    out, err = said("replay", child, code=1)
    assert "are not those that this run was forked from" in err and f"step {N} are different" in out


def test_the_first_checkpoint_is_kept_for_good(copied):
    child = forked(copied, "child", N, "--set", "checkpoint=1", "--steps", 140)
    said("resume", child)
    kept = kept_steps(child)
    assert kept[0] == N and kept[-1] == 140 and len(kept) < 60
    for step in kept[1:]:
        (child / "checkpoints" / checkpoint.named(step)).write_bytes(b"")
    said("resume", child, "--steps", 145)
    assert json_of("replay", child)["identical"] is True


def test_commands_that_come_to_the_parent_later_at_that_step_are_not_the_forks(tmp_path):
    parent, child = tmp_path / "runs" / "parent", tmp_path / "runs" / "child"

    def fork_then_switch():
        run.writer.flush()
        said("fork", parent, "--step", 20, "--home", child)
        return [Toggle("gani", True), Toggle("sam", False)]

    deterministic()
    config = small(methods=("sam",))
    founded(parent, config.to_json())
    run = Run(Training(config), parent)
    run.mailbox.due = lambda: True
    with lock(parent):
        run.begin()
        run.go(lambda step: [post(parent, c) for c in fork_then_switch()] if step == 20 else None)
    assert read(child).methods == ("sam",)
    said("resume", child)
    assert json_of("replay", child)["identical"] is True
    assert not RunReader(child).events(kinds=("applied",))


def test_a_prepared_fork_recreates_its_first_step_when_its_engine_starts(copied):
    child = copied.parent / "prepared"
    RunHandle(child).prepare(planned(copied, N, catalog(), beside=child.parent, methods=("sam",)).to_json())
    assert read(child).fork["theta"] == "" and RunHandle(child).status().state == "queued"
    said("resume", child)
    assert read(child).fork["theta"] == checkpoint.sha256(recreated(copied, N).state.theta)
    assert sorted(series(child)) == list(range(60))
    assert json_of("replay", child)["identical"] is True


def test_a_fork_whose_engine_was_killed_at_its_first_step_begins_there_again(copied):
    child, plain = copied.parent / "killed", forked(copied, "plain")
    said("resume", plain)
    RunHandle(child).prepare(planned(copied, N, catalog(), beside=child.parent).to_json())
    rewritten(child, read(plain).to_json())  # killed before it recorded anything
    said("resume", child, "--steps", 45)
    shutil.rmtree(child / "checkpoints")  # killed before there was a checkpoint
    said("resume", child, "--steps", 60)
    assert theta(child) == theta(plain) and kept_steps(child)[0] == N
    assert json_of("replay", child)["identical"] is True


def test_a_fork_in_another_folder_finds_its_parent_by_a_relative_path(copied, tmp_path):
    child = tmp_path / "elsewhere" / "deep" / "child"
    said("fork", copied, "--step", N, "--home", child)
    assert read(child).fork["of"] == "../../runs/parent"
    (tmp_path / "link").symlink_to(child.parent)
    assert series(tmp_path / "link" / "child").keys() == set(range(N))
    said("resume", child)
    assert json_of("replay", tmp_path / "link" / "child")["identical"] is True


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.6])
def test_a_fork_that_is_killed_leaves_nothing_half_made(copied, moment):
    child = copied.parent / "child"
    process = engine("fork", copied, "--step", N, "--home", child)
    wait_for(lambda: process.poll() is not None or any(copied.parent.glob(".fork-*")), what="the fork")
    time.sleep(moment * random.random() * 0.2)
    process.kill()
    process.communicate()
    if child.exists():
        said("resume", child)
        assert json_of("replay", child)["identical"] is True
    else:
        assert [run["home"] for run in json_of("list", "--runs", copied.parent)["runs"]] == [str(copied)]
    for stage in copied.parent.glob(".fork-*"):
        os.utime(stage, (0, 0))
    forked(copied, "another")
    assert not list(copied.parent.glob(".fork-*"))


def test_a_fork_that_is_killed_while_it_trains_goes_on(copied):
    child = forked(copied, "child", N, "--steps", 3000)
    process = engine("resume", child)
    wait_for(lambda: process.poll() is not None or RunReader(child, measured=False).meta("step", 0) > N + 50)
    process.kill()
    process.communicate()
    before = series(child)
    said("resume", child, "--steps", 3000)
    after = series(child)
    assert sorted(after) == list(range(3000)) and all(after[step] == value for step, value in before.items())
    assert json_of("replay", child)["identical"] is True


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--step", 100), "has come to step 60"),
        (("--step", 100), "nearest step that is kept is 60"),
        (("--step", -3), "nearest step that is kept is 0"),
        (("--step", N, "--set", "width=16"), "width changes the network"),
        (("--step", N, "--set", "planted.rows=700"), "planted.rows changes the data"),
        (("--step", N, "--set", "optimizer.name=sgd"), "optimizer.name changes the rule"),
        (("--step", N, "--set", "sigma=1"), "There is no setting"),
        (("--step", N, "--method", "nonsense"), "There is no method"),
        (("--step", N, "--without", "sam"), "sam is not on at step 33"),
        (("--step", N, "--steps", N), "--steps of at least 34"),
        (("--step", N, "--home", "PARENT"), "already holds something"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(copied, words, told):
    words = [copied if word == "PARENT" else word for word in words]
    before = sorted(copied.parent.iterdir())
    _, err = said("fork", copied, *words, code=2)
    assert told in err and len(err.strip().splitlines()) == 1
    assert sorted(copied.parent.iterdir()) == before


def test_a_run_that_has_not_begun_or_whose_data_are_gone_cannot_be_forked(tmp_path, copied):
    waiting = copied.parent / "waiting"
    RunHandle(waiting).prepare(small())
    assert "No step of waiting is kept yet" in said("fork", waiting, "--step", 0, code=2)[1]
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(values | {"problem": None, "data": str(tmp_path / "gone.npz")}))
    assert "gone.npz, is gone" in said("fork", copied, "--step", N, code=2)[1]


def test_a_parent_whose_checkpoints_are_all_damaged_is_repeated_from_its_start(copied):
    good = checkpoint.sha256(recreated(copied, N).state.theta)
    for step in kept_steps(copied):
        (copied / "checkpoints" / checkpoint.named(step)).write_bytes(b"nothing")
    assert json_of("fork", copied, "--step", N, "--home", copied.parent / "child")["theta"] == good


def test_a_fork_is_observed_and_looks_back_along_the_path_of_its_parent(copied, monkeypatch):
    child = forked(copied, "child", N)
    said("resume", child)
    monkeypatch.setattr(observer, "LINGER", 1.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    number = post(child, Measure("trajectory", {}, 60))
    actions.observe(child)
    answers = [e.detail["id"] for e in RunReader(child, inherited=False).events(kinds=("applied",))]
    assert answers == [number] and not RunHandle(child).pending()
    steps = RunReader(child).latest("trajectory/path")[1].display.path["step"]
    assert steps[0] == 0 and steps[-1] == 60
    points = kept(child, 61, recreated(child).state.theta)
    assert [step for step, _ in points] == sorted({step for step, _ in points}) and points[0][0] == 0
    assert checkpoint.sha256(dict(points)[30]) == checkpoint.sha256(recreated(copied, 30).state.theta)


def test_a_fork_watches_what_its_parent_watched_at_that_step(tmp_path):
    parent = tmp_path / "runs" / "parent"
    commands = {10: [Watch("imbalance", True, 5), Pace(500.0)], 30: [Watch("imbalance", False)]}
    trained(parent, small(probes={"spectra": 20}), commands)
    config = read(forked(parent, "child", 20))
    assert config.probes == {"spectra": 20, "imbalance": 5} and config.settings["pace"] == 500.0
    assert read(forked(parent, "later", 40)).probes == {"spectra": 20}


@pytest.mark.parametrize("fork", [5, {}, {"of": "parent"}, {"of": "", "step": 1}, "x", [1]], ids=str)
def test_a_damaged_origin_is_one_sentence(copied, fork):
    child = forked(copied)
    values = json.loads((child / "config.json").read_text())
    (child / "config.json").write_text(json.dumps(values | {"fork": fork}))
    for command in ("show", "resume", "replay"):
        err = said(command, child, code=2)[1]
        assert "fork must be an object" in err and len(err.strip().splitlines()) == 1
    reader = RunReader(child)
    assert [event.step for event in reader.events(kinds=("started",))] == [N]
    assert "does not say where this fork comes from" in reader.damage
    assert [e for e in json_of("list", "--runs", copied.parent)["runs"] if e["home"] == str(child)]


def test_forks_in_a_circle_end(copied):
    child = forked(copied)
    values = json.loads((child / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps(json.loads((copied / "config.json").read_text()) | {"fork": values["fork"] | {"of": "child"}})
    )
    reader = RunReader(child)
    assert reader.scalars("loss/fused")[0].size and "circle" in reader.damage


def test_the_usual_home_of_a_fork_lies_beside_its_parent(copied):
    home = json_of("fork", copied, "--step", N)["home"]
    assert home.startswith(f"{copied}-fork-{N}-") and len(home) == len(f"{copied}-fork-{N}-") + 4
