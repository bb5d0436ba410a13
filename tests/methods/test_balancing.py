"""What every balancing method stands: odd data, odd batches, being switched on in the middle."""

import gc

import pytest
import torch

from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.methods.agm import Agm
from modalscape.engine.methods.mmpareto import MMPareto
from modalscape.engine.methods.opm import Opm
from modalscape.engine.methods.pmr import Pmr
from tests import tiny
from tests.methods.several import data_file, training

KINDS = {"agm": Agm, "mmpareto": MMPareto, "opm": Opm, "pmr": Pmr}
every = pytest.mark.parametrize("name", KINDS)
ON = {"opm__execute": 1.0}


def stepped(case, steps=6):
    """The reports' values after some steps; theta stays finite."""
    for _ in range(steps):
        view = case.step()
    assert torch.isfinite(case.state.theta).all()
    return {r.name: r.value for method in case.stack.methods.values() for r in method.report(view)}


@every
def test_a_batch_of_one_trains(name):
    stepped(training(name, batch=1, unimodal="heads", **ON))


@every
def test_a_dead_modality_trains(name, tmp_path):
    stepped(training(name, data=data_file(tmp_path, dead=("text",)), unimodal="heads", **ON), 20)


@every
def test_a_class_missing_from_training_trains(name, tmp_path):
    case = training(name, data=data_file(tmp_path, classes=4, lacking=2), unimodal="heads", **ON)
    assert case.step().logits["fused"].shape[1] == 4
    assert stepped(case, 12).get("pmr/classes", 3.0) == 3.0


@every
@pytest.mark.parametrize("fusion", ["sum", "gated"])
def test_other_fusions_train(name, fusion):
    stepped(training(name, fusion=fusion, unimodal="heads", **ON))


@pytest.mark.parametrize("name", ["mmpareto", "opm", "pmr"])
def test_ten_modalities_train(name):
    stepped(training(name, modalities=10, unimodal="heads", **ON))


def test_agm_takes_five_modalities_and_refuses_six_with_a_sentence():
    values = stepped(training("agm", modalities=5))
    assert len([v for v in values if v.startswith("agm/coefficient/")]) == 5
    with pytest.raises(
        InputError, match="AGM would need 63 passes for 6 modalities; use ogm_ge, or at most 5 modalities."
    ):
        training("agm", modalities=6)


@pytest.mark.parametrize("name", ["agm", "opm", "pmr"])
def test_one_modality_and_real_targets_are_refused_when_switched_on(name, tmp_path):
    case = training(data=data_file(tmp_path, names=("image",)))
    with pytest.raises(InputError, match="has only 'image'; turn it off"):
        case.toggle(name, True)
    case = training(data=data_file(tmp_path, real=True))
    with pytest.raises(InputError, match="has no classes; turn it off"):
        case.toggle(name, True)
    assert not case.stack.methods
    stepped(case)


def test_mmpareto_trains_on_one_modality_and_on_real_targets(tmp_path):
    stepped(training("mmpareto", data=data_file(tmp_path, names=("image",)), unimodal="heads"))
    stepped(training("mmpareto", data=data_file(tmp_path, real=True), unimodal="heads"))


@every
def test_numbers_that_are_not_finite_raise_nothing(name):
    problem = tiny.problem(heads=True)
    _, _, stack = tiny.train(problem, [KINDS[name]()], 2)
    problem.rows["train"] = Batch(
        {m: x * float("nan") for m, x in problem.rows["train"].x.items()}, problem.rows["train"].y
    )
    _, (view,), _ = tiny.train(problem, [KINDS[name]()], 1)
    assert not torch.isfinite(view.grad).all()


@every
def test_switched_on_mid_run_it_starts_from_fresh_state(name):
    case = training(unimodal="heads", **ON)
    stepped(case, 5)
    case.toggle(name, True)
    first = case.stack.methods[name].state
    stepped(case, 5)
    case.toggle(name, False)
    assert name not in case.stack.methods
    case.toggle(name, True)
    again = case.stack.methods[name].state
    assert again.keys() == first.keys()
    assert again.get("steps", 0) == 0
    assert again.get("first", 10) == 10


@every
def test_no_step_leaves_tensors_behind(name):
    case = training(name, unimodal="heads", **ON)

    def alive():
        gc.collect()
        return sum(torch.is_tensor(o) for o in gc.get_objects())

    stepped(case, 8)
    before = alive()
    stepped(case, 20)
    assert alive() <= before + 2


@every
def test_pieces_train(name):
    stepped(training(name, micro=5, unimodal="heads", **ON))


@every
def test_all_four_but_one_owner_of_fuse_go_together(name):
    others = [n for n in KINDS if n != name]
    stepped(training(*others, "ogm_ge", "sam", unimodal="heads", **ON))
