"""ModalImmune trains on hard cases or refuses them with a sentence, and its report says how it stands."""

import dataclasses

import numpy as np
import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.step import train_step
from modalscape.engine.errors import InputError
from modalscape.engine.methods.modalimmune import collapse, memory
from modalscape.engine.methods.modalimmune.method import ModalImmune
from tests import tiny
from tests.methods.immune import FORMER, NAMES, NOW, arms, built, knobs, one_step


@pytest.mark.parametrize("gate", collapse.GATES)
def test_numbers_that_are_not_finite_reach_the_loss_and_stop_there(gate):
    """The engine pauses on a loss that is not finite; nothing may break before it has seen one."""
    problem = tiny.problem()
    params = ModalImmune.Params(**NOW, gate=gate, gate_every=1, meta_every=1)
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(params)])
    state, _ = train_step(state, problem, optimizer, stack, rng)
    before = stack.methods["modalimmune"].state
    state = dataclasses.replace(state, theta=torch.full_like(state.theta, torch.nan))
    _, view = train_step(state, problem, optimizer, stack, rng)
    assert torch.isnan(view.losses["fused"])
    after = stack.methods["modalimmune"].state
    for key in ("weights", "reference", "offset", "rich", "fisher"):
        assert torch.equal(after[key], before[key]), key
    assert all(torch.equal(after["covariance"][name], before["covariance"][name]) for name in NAMES)


def dead(data):
    return dataclasses.replace(data, x=data.x | {"audio": np.zeros_like(data.x["audio"])})


def one_class_gone(data):
    return dataclasses.replace(data, y=np.where((data.split == 0) & (data.y == 3), 0, data.y))


def real_targets(data):
    return dataclasses.replace(data, y=data.y.astype(np.float32), class_names=())


HARD = {
    "batch of one": {"batch": 1},
    "missing class": {"change": one_class_gone},
    "dead modality": {"change": dead},
    "ten modalities": {"unique": ",".join(["1"] * 10)},
    "regression": {"change": real_targets},
    "squared error": {"objective": "squared_error", "unimodal": "heads"},
    "pieces": {"micro": 20},
    "pieces that leave one row": {"micro": 63},
    "gated fusion": {"fusion": "gated"},
    "slices": {"unimodal": "slices"},
}


@pytest.mark.parametrize("case", HARD.values(), ids=list(HARD))
@pytest.mark.parametrize("fill", ["zero", "neutral"])
def test_it_trains_on_hard_cases(case, fill):
    params = ModalImmune.Params(warmup=2, ramp=2, meta_every=4, gate_every=4, adaptive=fill == "zero", fill=fill)
    state, views, stack = tiny.train(built(**case), [ModalImmune(params)], 14, tiny.sgd(0.05))
    assert torch.isfinite(state.theta).all()
    method = stack.methods["modalimmune"]
    for record in method.report(views[-1]):
        assert np.isfinite(getattr(record, "value", 0.0)), record.name


def test_a_problem_without_several_modalities_or_a_fusion_is_refused_with_a_sentence():
    one = lambda data: dataclasses.replace(data, x={"vision": data.x["vision"]})  # noqa: E731
    with pytest.raises(InputError, match="there is only 'vision' here; turn it off"):
        tiny.train(built(change=one), [ModalImmune()], 1)
    with pytest.raises(InputError, match="the losses are vision-audio; turn it off"):
        tiny.train(built(objective="info_nce"), [ModalImmune()], 1)


def test_a_modality_without_parameters_is_left_out_but_not_collapsed():
    problem = tiny.problem()
    parts = {name: "shared" if part == "text" else part for name, part in problem.layout.parts.items()}
    order = sorted(problem.layout.shapes, key=lambda name: parts[name])
    problem.layout = Layout({name: problem.layout.shapes[name] for name in order}, parts)
    state, views, stack = tiny.train(problem, [ModalImmune(knobs(gate="hessian", tau=10.0, adaptive=False))], 12)
    for view, arm in zip(views, arms(stack), strict=False):
        assert bool(view.grads[-1].any()) == (NAMES[arm] == "image")


def test_the_state_does_not_grow():
    def size(steps):
        _, _, stack = tiny.train(tiny.problem(), [ModalImmune(ModalImmune.Params(**NOW, meta_every=2))], steps)
        state = stack.methods["modalimmune"].state
        return sum(v.numel() for v in state.values() if torch.is_tensor(v))

    assert size(3) == size(30)


def test_a_broken_loss_teaches_the_controller_nothing():
    state = memory.fresh({name: torch.randn(4, 3) for name in NAMES}, torch.zeros(5), torch.ones(2).bool()) | {"arm": 0}
    assert memory.paid(knobs(), state, [0], [torch.nan], 1.0) == {}
    view, method, _ = one_step(ModalImmune.Params(**NOW, meta_every=1))
    nan = torch.full_like(view.raw_grads, torch.nan)
    broken = {name: torch.tensor(torch.nan, dtype=torch.float64) for name in view.losses}
    features = {name: z * torch.nan for name, z in view.clean_features.items()}
    after = method.commit(
        view.having(raw_grads=nan, grads=nan, losses=broken, clean_features=features, features=features)
    )
    for key in ("weights", "reference", "offset", "rich"):
        assert torch.equal(after[key], method.state[key]), key


def test_the_report_shows_what_the_state_holds():
    params = ModalImmune.Params(**NOW, **(FORMER | {"meta_every": 4, "tau": 10.0, "gate_every": 2, "tunes": "all"}))
    _, views, stack = tiny.train(tiny.problem(heads=True), [ModalImmune(params)], 20)
    method = stack.methods["modalimmune"]
    records = {record.name: record for record in method.report(views[-1])}
    chances = [records[f"modalimmune/chance/{name}"].value for name in NAMES]
    assert sum(chances) == pytest.approx(1.0)
    assert sum(records[f"modalimmune/drawn/{name}"].value for name in NAMES) == pytest.approx(1.0)
    matrix = records["modalimmune/controller"].values
    assert matrix.shape == (4, 21)
    np.testing.assert_allclose(matrix[:2].sum(0), 1.0)
    np.testing.assert_allclose(matrix[2:].sum(0), 1.0)
    batch = views[-1].clean_features
    for name in NAMES:
        share = collapse.spectral_ratio(batch[name]).item() / collapse.most(batch[name])
        assert records[f"modalimmune/ratio/{name}"].value == pytest.approx(share)
        assert records[f"modalimmune/floor/{name}"].value > 0
        ratio = collapse.spectral_ratio(batch[name])
        top = collapse.most(batch[name])
        weight, kappa = memory.weights(params, method.state)
        strength = weight * (ratio.item() - 1) / (top - 1)
        assert records[f"modalimmune/strength/{name}"].value == pytest.approx(strength)
        assert records[f"modalimmune/penalty/{name}"].value == pytest.approx(kappa * ratio.item())
        assert records[f"modalimmune/lambda_min/{name}"].error >= 0
        assert records[f"modalimmune/threshold/{name}"].value <= 0
        smallest, largest = (method.state["gate"][key][NAMES.index(name)].item() for key in ("smallest", "largest"))
        shown = records[f"modalimmune/gate/{name}"]
        assert shown.value == pytest.approx(smallest / largest)
        assert [shown.value < level for level in shown.display.levels.values()] == [
            collapse.closed(smallest, largest, params.tau)
        ]
    residual = records["modalimmune/residual"]
    assert residual.display.ylog
    assert (residual.y > 0).all()
    certified = records["modalimmune/certified"]
    facts = method.state["meta"]
    assert certified.y[-1] == pytest.approx(facts["certificate"], rel=1e-6)
    for name in ("lambda", "kappa", "omega"):
        record = records[f"modalimmune/hypergradient/{name}"]
        assert "rigorous" in record.mode
        assert record.error == records[f"modalimmune/certificate/{name}"].value
    assert records["modalimmune/push/after"].value <= records["modalimmune/push/descent"].value * (1 + 1e-9)
    assert records["modalimmune/refused/skipped"].value == method.state["counts"]["skipped"]
