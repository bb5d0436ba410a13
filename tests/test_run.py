"""The loop: commands, recording, divergence, resume and replay, in this process."""

import json

import pytest
import torch

from modalscape.engine.actions import probe, replay, resume
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.errors import InputError
from modalscape.engine.methods.gani import Gani
from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.loop import Run
from modalscape.engine.runtime.replay import recreated
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.commands import Measure, Note, Pause, Resume, Stop, Toggle, Tune, Watch
from modalscape.engine.store.writer import RunReader, create
from tests.homes import small, trained

STEER = {
    5: [Toggle("gani", True)],
    12: [Tune("gani", "rho", 0.5), Toggle("ogm_ge", True)],
    20: [Measure("hessian"), Toggle("sam", True)],
    33: [Toggle("gani", False), Tune("optimizer", "lr", 0.01)],
    41: [Toggle("gani", True), Note("again")],
}


def theta(home):
    return RunReader(home).meta("theta")


def test_a_run_records_what_it_promises(tmp_path):
    run = trained(tmp_path / "a", small())
    reader = RunReader(run.home)
    names = reader.names()["scalars"]
    modalities = run.training.problem.modalities
    parts = [*modalities, "shared"]
    for name in ("loss/fused", "accuracy/train", "accuracy/val", "loss/val", "lr"):
        assert name in names
    assert {f"accuracy/val/{m}" for m in modalities} <= set(names)
    assert {f"grad_norm/{p}" for p in parts} <= set(names)
    steps, _ = reader.scalars("loss/fused", points=10**6)
    assert steps.tolist() == list(range(60))
    assert RunHandle.attach(run.home).status().state == "finished"


def test_probes_leave_no_trace(tmp_path):
    plain = trained(tmp_path / "a", small())
    probed = trained(tmp_path / "b", small(probes={"imbalance": 7, "hessian": 10, "landscape": 20}, settings={}))
    assert torch.equal(plain.training.state.theta, probed.training.state.theta)
    assert {"hessian/spectrum", "landscape/2d"} <= set(RunReader(probed.home).names()["records"])


def test_replay_is_exact_after_toggles_tuning_and_probes(tmp_path):
    run = trained(tmp_path / "a", small(probes={"imbalance": 9}), STEER)
    events = [e for e in RunReader(run.home).events() if e.kind == "applied"]
    assert len(events) == sum(map(len, STEER.values()))
    assert set(run.training.stack.methods) == {"gani", "ogm_ge", "sam"}
    result = replay(run.home)
    assert result["identical"] and result["step"] == 60
    plain = trained(tmp_path / "b", small())
    assert checkpoint.sha256(plain.training.state.theta) != result["theta"]


def test_replay_notices_another_trajectory(tmp_path):
    run = trained(tmp_path / "a", small(), STEER)
    config = json.loads((run.home / "config.json").read_text())
    (run.home / "config.json").write_text(json.dumps(config | {"seed": 1}))
    assert not replay(run.home)["identical"]


@pytest.mark.parametrize("at", [7, 20, 47])
def test_stop_and_resume_equals_never_stopping(tmp_path, at):
    whole = trained(tmp_path / "a", small(), STEER)
    early = {step: commands for step, commands in STEER.items() if step < at}
    late = {step: commands for step, commands in STEER.items() if step >= at}
    part = trained(tmp_path / "b", small(), early | {at: [*late.pop(at, []), Stop()]})
    assert part.training.state.step == at
    from modalscape.engine.store.commands import post

    for _step, commands in late.items():
        for command in commands:
            post(part.home, command)
    if not late:
        resume(part.home)
        assert theta(part.home)["sha256"] == theta(whole.home)["sha256"]
        assert replay(part.home)["identical"]
    else:
        resume(part.home)
        assert replay(part.home)["identical"]
    steps, _ = RunReader(part.home).scalars("loss/fused", points=10**6)
    assert steps.tolist() == list(range(60))


def test_resume_repeats_the_steps_after_the_last_checkpoint(tmp_path):
    whole = trained(tmp_path / "a", small(), STEER)
    lost = trained(tmp_path / "b", small(), STEER)
    for step in checkpoint.steps(lost.home):
        if step > 20:
            (lost.home / "checkpoints" / f"{step:08d}.pt").unlink()
    before = RunReader(lost.home).scalars("loss/fused", points=10**6)[1]
    resume(lost.home)
    after = RunReader(lost.home).scalars("loss/fused", points=10**6)[1]
    assert before.tolist() == after.tolist()
    assert theta(lost.home)["sha256"] == theta(whole.home)["sha256"]


def test_a_finished_run_goes_on_to_a_new_length(tmp_path):
    run = trained(tmp_path / "a", small())
    resume(run.home, 90)
    assert theta(run.home)["step"] == 90
    assert replay(run.home)["identical"]
    with pytest.raises(InputError, match="has come to step 90"):
        resume(run.home, 50)


def test_pause_single_step_and_go_on(tmp_path):
    run = trained(tmp_path / "a", small(), {10: [Pause(), Resume(1), Pause(), Resume()]})
    kinds = [(e.kind, e.step) for e in RunReader(run.home).events() if e.kind in ("paused", "finished")]
    assert kinds[-1] == ("finished", 60) and ("paused", 10) in kinds


def test_single_steps_that_are_asked_for_together_add_up(tmp_path):
    steps = [Pause(), Resume(1), Resume(1), Resume(3)]
    run = trained(tmp_path / "a", small(), {10: steps, 15: [Resume()]})
    paused = [e.step for e in RunReader(run.home).events() if e.kind == "paused"]
    assert paused == [10, 15]


def test_a_refused_command_says_why_and_training_goes_on(tmp_path):
    run = trained(
        tmp_path / "a", small(), {3: [Toggle("gnai", True), Tune("gani", "beta", 7), Watch("nothing", True, 5)]}
    )
    refused = [e.detail["error"] for e in RunReader(run.home).events() if e.kind == "refused"]
    assert len(refused) == 3 and "did you mean gani" in refused[0] and "between" in refused[1]
    assert run.training.state.step == 60


def test_divergence_takes_the_step_back_and_ends_an_unattended_run(tmp_path):
    run = trained(
        tmp_path / "a", small(settings={"optimizer.name": "sgd", "optimizer.lr": 100.0, "objective": "squared_error"})
    )
    assert run.diverged and torch.isfinite(run.training.state.theta).all()
    said = [e.detail["error"] for e in RunReader(run.home).events() if e.kind == "diverged"]
    assert len(said) == 1 and "optimizer.lr" in said[0]
    assert replay(run.home)["identical"]


def test_a_method_that_cannot_go_on_pauses_an_attended_run_where_it_is_and_ends_another(tmp_path, monkeypatch):
    commit = Gani.commit

    def refusing(self, view):
        if view.step == 5:
            raise InputError("the averages are full; switch gani off.")
        return commit(self, view)

    with monkeypatch.context() as patch:
        patch.setattr(Gani, "commit", refusing)
        with pytest.raises(InputError, match="averages are full"):
            trained(tmp_path / "unattended", small(methods=("gani",)))
        home = tmp_path / "attended"
        home.mkdir()
        create(home)
        run = Run(Training(small(methods=("gani",))), home, attended=True)
        run.begin()
        for _ in range(5):
            assert run.take_step()
        theta, states = run.training.state.theta, {name: m.state for name, m in run.training.stack.methods.items()}
        assert not run.take_step()
        run.writer.flush()
    assert run.paused and run.training.state.step == 5 and run.training.state.theta is theta
    assert all(m.state is states[name] for name, m in run.training.stack.methods.items())
    said = [e.detail["error"] for e in RunReader(home).events() if e.kind == "diverged"]
    assert said == ["Step 6 could not be taken: the averages are full; switch gani off."]
    run.resume()
    assert run.take_step() and run.training.state.step == 6


def test_an_error_in_the_loop_fails_the_run_with_its_traceback(tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("the moon is in the wrong house")

    monkeypatch.setattr(Training, "step", broken)
    with pytest.raises(RuntimeError):
        trained(tmp_path / "a", small())
    status = RunHandle.attach(tmp_path / "a").status()
    assert status.state == "failed" and "moon" in status.error
    assert "Traceback" in next(e.detail["traceback"] for e in RunReader(tmp_path / "a").events() if e.kind == "failed")


def test_a_broken_probe_is_recorded_and_training_goes_on(tmp_path, monkeypatch):
    from modalscape.engine.probes.imbalance import Imbalance

    def broken(self, snap):
        raise RuntimeError("cannot measure")
        yield

    monkeypatch.setattr(Imbalance, "measure", broken)
    run = trained(tmp_path / "a", small(probes={"imbalance": 10}))
    failed = [e for e in RunReader(run.home).events() if e.kind == "probe failed"]
    assert failed and "cannot measure" in failed[0].detail["error"] and run.training.state.step == 60


def test_any_step_can_be_measured_afterwards(tmp_path):
    run = trained(tmp_path / "a", small(), STEER)
    assert recreated(run.home, 37).state.step == 37
    result = probe(run.home, "hessian", 37, {})
    assert result["step"] == 37 and any(r["name"] == "hessian/lambda_max" for r in result["records"])
    with pytest.raises(InputError, match="come to step 60"):
        probe(run.home, "hessian", 61, {})


def test_a_checkpoint_older_than_a_plug_in_is_still_measured(tmp_path):
    run = trained(tmp_path / "a", small())
    content = checkpoint.load(run.home)
    content["settings"] = {key: v for key, v in content["settings"].items() if not key.startswith("hessian.")}
    checkpoint.save(run.home, content)
    assert probe(run.home, "hessian", 60, {})["records"]
