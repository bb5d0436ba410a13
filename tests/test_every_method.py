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

METHODS = discover("modalscape.engine.methods", Method)
every_method = pytest.mark.parametrize("name", sorted(METHODS))
EARLY = {"modalimmune__warmup": 1, "modalimmune__ramp": 1, "modalimmune__meta_every": 5, "inforeg__period": 4}
"""Knobs that make the slow parts of a method act within a few steps."""

ODD = {
    "nothing odd": lambda folder: {},
    "a batch of one": lambda folder: {"batch": 1},
    "a class that training lacks": lambda folder: {"data": data_file(folder, classes=4, lacking=2)},
    "a modality of zeros": lambda folder: {"data": data_file(folder, dead=("text",)), "steps": 20},
    "a single modality": lambda folder: {"data": data_file(folder, names=("image",))},
    "ten modalities": lambda folder: {"modalities": 10},
    "real targets": lambda folder: {"data": data_file(folder, real=True)},
    "a contrastive objective": lambda folder: {"objective": "info_nce"},
}
"""Odd input to the settings that make it, given a folder for its data."""
HEADLESS = "whatever has no heads"
"""Stands in the table for every odd input of a run without unimodal heads."""

CONTRASTIVE = "needs objective to be auto or cross_entropy or squared_error, not info_nce; set objective=auto"
CLASSLESS = "compares class probabilities, but this problem has no classes; turn it off"
LONELY = "balances modalities, but this problem has only 'image'; turn it off"
COMPARES_PROBABILITIES = {
    "a single modality": LONELY,
    "real targets": CLASSLESS,
    "a contrastive objective": CONTRASTIVE,
}

REFUSED = {
    "agm": COMPARES_PROBABILITIES
    | {"ten modalities": "would need 1023 passes for 10 modalities; use ogm_ge, or at most 5 modalities"},
    "bogc": {"a contrastive objective": CONTRASTIVE},
    "fanoise": {},
    "gani": {},
    "inforeg": COMPARES_PROBABILITIES,
    "isotropic_noise": {},
    "mmpareto": {
        "a contrastive objective": CONTRASTIVE,
        HEADLESS: "needs unimodal to be heads or slices, not none; set unimodal=heads",
    },
    "modalimmune": {
        "a single modality": "leaves one modality of several out, but there is only 'image' here; turn it off",
        "a contrastive objective": CONTRASTIVE,
    },
    "moddrop": {},
    "ogm_ge": COMPARES_PROBABILITIES,
    "opm": COMPARES_PROBABILITIES,
    "pmr": COMPARES_PROBABILITIES,
    "sam": {},
}
"""Method to the odd inputs that it refuses, with what its sentence says; it has to train on all others."""
TABLE = "REFUSED in tests/test_every_method.py"

every_odd_input = pytest.mark.parametrize(
    ("odd", "unimodal"),
    [(odd, heads) for odd in ODD for heads in ("heads", "none") if odd != "a contrastive objective" or heads == "none"],
)
"""Each with a head for every modality and without; a contrastive objective has no logits for heads to make."""

FIRST = 6
"""Tensors that a state may hold only once something happened for the first time; a leak is more, one a report."""


def early(name: str) -> dict:
    return {key: value for key, value in EARLY.items() if key.startswith(f"{name}__")}


def refusal(name: str, odd: str, unimodal: str) -> str | None:
    """What the table says that a method answers to an odd input; None where it has to train."""
    if name not in REFUSED:
        pytest.fail(f"Nothing says what {name} makes of odd inputs; add it to {TABLE}, {{}} if it trains on all.")
    found = REFUSED[name].get(odd)
    return found or (REFUSED[name].get(HEADLESS) if unimodal == "none" else None)


def taken(name: str, steps: int = 8, **settings) -> None:
    """Train for some steps with every report read; theta has moved and is finite."""
    case = training(name, **early(name), **settings)
    start = case.state.theta.clone()
    for _ in range(steps):
        view = case.step()
        reported(case, view)
    assert torch.isfinite(case.state.theta).all() and not torch.equal(case.state.theta, start)


def reported(case, view) -> None:
    for method in case.stack.methods.values():
        for record in method.report(view):
            assert record.name.startswith(f"{method.name}/")


@every_method
@every_odd_input
def test_an_odd_input_trains_or_gets_the_refusal_listed(name, odd, unimodal, tmp_path):
    settings, wanted = {"unimodal": unimodal} | ODD[odd](tmp_path), refusal(name, odd, unimodal)
    if wanted is None:
        taken(name, **settings)
        return
    with pytest.raises(InputError) as caught:
        taken(name, **settings)
        pytest.fail(f"{name} trains on {odd}, which {TABLE} lists as refused; take it out there if that is meant.")
    text = str(caught.value)
    assert re.fullmatch(r"[^\n]{20,200}\.", text) and METHODS[name].title in text and wanted in text


def test_the_table_of_refusals_names_only_methods_and_odd_inputs_that_exist():
    assert set(REFUSED) <= set(METHODS)
    assert {odd for answers in REFUSED.values() for odd in answers} <= {*ODD, HEADLESS}


@every_method
def test_a_loss_that_is_no_number_takes_the_step_back_and_training_goes_on(name, tmp_path):
    case = training(name, **early(name), unimodal="heads")
    home = tmp_path / "run"
    home.mkdir()
    create(home)
    run = Run(case, home, attended=True)
    for _ in range(6):
        assert run.take_step()
    good, theta = case.problem.rows["train"], case.state.theta.clone()
    states = {method.name: method.state for method in case.stack.methods.values()}
    case.problem.rows["train"] = Batch({m: x * float("nan") for m, x in good.x.items()}, good.y)
    assert not run.take_step()
    assert torch.equal(case.state.theta, theta)
    assert all(method.state is states[method.name] for method in case.stack.methods.values())
    case.problem.rows["train"] = good
    run.resume()
    for _ in range(6):
        assert run.take_step()
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
        if record.display.panel:
            shared.setdefault(record.display.panel, set()).add((record.kind, record.display.place))
        assert record.display.place is None or record.display.panel, record.name
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
