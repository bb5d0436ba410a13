"""What every method stands, alone on a small training: odd data trains or is refused in a sentence, nothing leaks."""

import gc
import re

import psutil
import pytest
import torch

from modalscape.engine.core.method import Method
from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.registry import discover
from modalscape.engine.runtime.loop import Run
from modalscape.engine.store.writer import RunReader, create
from tests.methods.several import data_file, training

METHODS = sorted(discover("modalscape.engine.methods", Method))
every_method = pytest.mark.parametrize("name", METHODS)
with_or_without_heads = pytest.mark.parametrize("unimodal", ["heads", "none"])
EARLY = {"modalimmune__warmup": 1, "modalimmune__ramp": 1, "modalimmune__meta_every": 5, "inforeg__period": 4}
"""Knobs that make the slow parts of a method act within a few steps."""


FIRST = 6
"""Tensors that a state may hold only once something happened for the first time; a leak is more, one a report."""


def early(name: str) -> dict:
    return {key: value for key, value in EARLY.items() if key.startswith(f"{name}__")}


def taken(name: str, steps: int = 8, **settings):
    """The training after some steps with every report read, or None where it was refused, which takes a sentence."""
    try:
        case = training(name, **early(name), **settings)
    except InputError as refusal:
        assert re.fullmatch(r"[^\n]{20,200}\.", str(refusal)), refusal
        return None
    for _ in range(steps):
        view = case.step()
        reported(case, view)
    assert torch.isfinite(case.state.theta).all()
    return case


def reported(case, view) -> None:
    for method in case.stack.methods.values():
        for record in method.report(view):
            assert record.name.startswith(f"{method.name}/")


@every_method
@with_or_without_heads
def test_the_ordinary_case_trains_or_names_the_setting_it_needs(name, unimodal):
    assert taken(name, unimodal=unimodal) or unimodal == "none"


@every_method
@with_or_without_heads
def test_a_batch_of_one_trains_or_is_refused_in_a_sentence(name, unimodal):
    taken(name, batch=1, unimodal=unimodal)


@every_method
@with_or_without_heads
def test_a_class_that_training_lacks_trains_or_is_refused_in_a_sentence(name, unimodal, tmp_path):
    taken(name, data=data_file(tmp_path, classes=4, lacking=2), unimodal=unimodal)


@every_method
@with_or_without_heads
def test_a_modality_of_zeros_trains_or_is_refused_in_a_sentence(name, unimodal, tmp_path):
    taken(name, data=data_file(tmp_path, dead=("text",)), unimodal=unimodal, steps=20)


@every_method
@with_or_without_heads
def test_a_single_modality_trains_or_is_refused_in_a_sentence(name, unimodal, tmp_path):
    taken(name, data=data_file(tmp_path, names=("image",)), unimodal=unimodal)


@every_method
@with_or_without_heads
def test_ten_modalities_train_or_are_refused_in_a_sentence(name, unimodal):
    taken(name, modalities=10, unimodal=unimodal)


@every_method
def test_real_targets_train_or_are_refused_in_a_sentence(name, tmp_path):
    taken(name, data=data_file(tmp_path, real=True), unimodal="heads")


@every_method
def test_contrastive_training_goes_or_is_refused_in_a_sentence(name):
    taken(name, objective="info_nce")


@every_method
def test_a_loss_that_is_no_number_takes_the_step_back_and_training_goes_on(name, tmp_path):
    case = training(name, **early(name), unimodal="heads")
    home = tmp_path / "run"
    home.mkdir()
    create(home)
    run = Run(case, home, attended=True)
    for _ in range(6):
        assert run._step()
    good, theta = case.problem.rows["train"], case.state.theta.clone()
    states = {method.name: method.state for method in case.stack.methods.values()}
    case.problem.rows["train"] = Batch({m: x * float("nan") for m, x in good.x.items()}, good.y)
    assert not run._step()
    assert torch.equal(case.state.theta, theta)
    assert all(method.state is states[method.name] for method in case.stack.methods.values())
    case.problem.rows["train"] = good
    run.resume()
    for _ in range(6):
        assert run._step()
    assert torch.isfinite(case.state.theta).all()
    run.writer.flush()
    (event,) = RunReader(home).events(kinds=("diverged",))
    assert "no longer finite" in event.detail["error"]


def alive() -> tuple[int, int]:
    """The number of live tensors and their bytes."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(tensors), sum(t.numel() * t.element_size() for t in tensors)


def going_on(name: str, first: int, then: int) -> tuple[tuple, tuple]:
    """What is alive after `first` steps and after `then` more; reports are read on the way."""
    case = training(name, **early(name), unimodal="heads")
    found = []
    for steps in (first, then):
        for _ in range(steps):
            view = case.step()
            if view.step % 10 == 0:
                reported(case, view)
        found.append((*alive(), psutil.Process().memory_info().rss))
    return found[0], found[1]


@every_method
def test_records_that_ask_for_one_chart_are_of_one_kind_and_place(name):
    case = training(name, **early(name), unimodal="heads")
    for _ in range(12):
        view = case.step()
    shared = {}
    for record in case.stack.methods[name].report(view):
        if "panel" in record.draw:
            shared.setdefault(record.draw["panel"], set()).add((record.kind, record.draw.get("place")))
        assert "place" not in record.draw or "panel" in record.draw, record.name
    assert shared and all(len(kinds) == 1 for kinds in shared.values()), shared


@every_method
def test_hundreds_of_steps_leave_no_tensor_behind(name):
    (count, size, _), (later, more, _) = going_on(name, 40, 160)
    assert later <= count + FIRST and more <= size + 4096


@pytest.mark.slow
@pytest.mark.timeout(1200)
@every_method
def test_five_thousand_steps_leak_no_memory(name):
    (count, size, before), (later, more, after) = going_on(name, 1000, 4000)
    assert later <= count + FIRST and more <= size + 4096
    assert after - before < 8 * 2**20, "the process grew by more than 8 MiB"
