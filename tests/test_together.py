"""The five methods at once: they train, resume and replay bit for bit, and do not undo each other."""

import pytest
import torch

from modalscape.engine.actions import replay, resume
from modalscape.engine.runtime import checkpoint
from modalscape.engine.store.commands import Stop, Toggle, Tune
from modalscape.engine.store.writer import RunReader
from tests.homes import small, trained

FIVE = ("bogc", "fanoise", "gani", "inforeg", "modalimmune")
HEADS = {"unimodal": "heads", "gani.warmup": 2, "inforeg.period": 5}


def theta(home):
    return RunReader(home).meta("theta")["sha256"]


def test_all_five_train_and_replay(tmp_path):
    run = trained(tmp_path / "a", small(methods=FIVE, settings=HEADS))
    assert run.training.state.step == 60 and torch.isfinite(run.training.state.theta).all()
    assert replay(run.home)["identical"]
    pipeline = RunReader(run.home).meta("pipeline")
    assert pipeline["fuse"] == ["bogc"] and "gani" in pipeline["update"] and "fanoise" in pipeline["features"]
    assert {"inforeg", "modalimmune"} <= set(pipeline["gradients"] + pipeline["losses"])


def test_all_five_and_sam_resume_where_they_stopped(tmp_path):
    methods = (*FIVE, "sam")
    whole = trained(tmp_path / "a", small(methods=methods, settings=HEADS))
    part = trained(tmp_path / "b", small(methods=methods, settings=HEADS), {23: [Stop()]})
    assert part.training.state.step == 23
    resume(part.home)
    assert theta(part.home) == theta(whole.home)


def test_five_toggled_and_tuned_one_after_the_other_replay(tmp_path):
    steps = {5 * (i + 1): [Toggle(name, True)] for i, name in enumerate(FIVE)}
    steps |= {5 * (i + 6): [Toggle(name, False)] for i, name in enumerate(FIVE)}
    steps[12] = [Tune("fanoise", "alpha", 0.3), Tune("gani", "sigma", 0.5)]
    run = trained(tmp_path / "a", small(settings=HEADS), steps)
    assert not run.training.stack.methods
    assert [e.kind for e in RunReader(run.home).events() if e.kind == "refused"] == []
    assert replay(run.home)["identical"]


def test_two_owners_of_fuse_are_refused_and_training_goes_on(tmp_path):
    run = trained(tmp_path / "a", small(methods=("bogc",), settings=HEADS), {9: [Toggle("mmpareto", True)]})
    refused = [e.detail["error"] for e in RunReader(run.home).events() if e.kind == "refused"]
    assert refused == ["bogc and mmpareto both replace the gradient; turn one off."]
    assert list(run.training.stack.methods) == ["bogc"] and run.training.state.step == 60


@pytest.mark.parametrize("name", FIVE)
def test_resume_is_exact_for_each_alone(tmp_path, name):
    whole = trained(tmp_path / "a", small(methods=(name,), settings=HEADS))
    part = trained(tmp_path / "b", small(methods=(name,), settings=HEADS), {31: [Stop()]})
    for step in checkpoint.steps(part.home):
        if step > 20:
            (part.home / "checkpoints" / f"{step:08d}.pt").unlink()
    resume(part.home)
    assert theta(part.home) == theta(whole.home)
