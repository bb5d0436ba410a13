"""The gate of ModalImmune closes where the curvature asks for it, and a closed gate leaves no trace."""

from dataclasses import dataclass

import pytest
import torch

from modalscape.engine.core.step import train_step
from modalscape.engine.methods.modalimmune import collapse
from modalscape.engine.methods.modalimmune.method import ModalImmune
from modalscape.engine.methods.modalimmune.omission import Omission
from tests import tiny
from tests.methods.immune import NOW, arms, built, knobs


def test_a_closed_gate_leaves_the_step_as_if_there_were_no_collapse():
    thetas = []
    for params in (knobs(gate="hessian", gate_every=1000), knobs(collapse=0.0)):
        state, optimizer, stack, rng = tiny.started(tiny.problem(), [ModalImmune(params)])
        gate = stack.methods["modalimmune"].state["gate"]
        shut = {"smallest": torch.tensor([-1.0, -1.0]), "largest": torch.ones(2), "age": torch.zeros(2).long()}
        stack.methods["modalimmune"].state |= {"gate": gate | shut}
        state, view = train_step(state, tiny.problem(), optimizer, stack, rng)
        thetas.append(state.theta)
        held_back = stack.methods["modalimmune"].state["counts"]["gate"]
    assert torch.equal(*thetas)
    assert held_back == 0
    state, optimizer, stack, rng = tiny.started(tiny.problem(), [ModalImmune(knobs(gate="hessian", gate_every=1000))])
    stack.methods["modalimmune"].state |= {"gate": gate | shut}
    train_step(state, tiny.problem(), optimizer, stack, rng)
    assert stack.methods["modalimmune"].state["counts"]["gate"] == 1


@pytest.mark.parametrize("gate", collapse.GATES)
def test_every_gate_trains_and_the_literal_one_never_closes(gate):
    # 96 rows and 58 or 46 parameters an encoder: a Fisher matrix that could have full rank
    problem = tiny.problem(batch=96)
    state, _, stack = tiny.train(problem, [ModalImmune(knobs(gate=gate, gate_every=5, gate_steps=20))], 30)
    memory = stack.methods["modalimmune"].state
    assert torch.isfinite(state.theta).all()
    if gate == "literal":
        assert memory["counts"]["gate"] == 0
        assert (memory["gate"]["largest"] > 0).all()
        assert (memory["gate"]["smallest"] > -1e-12).all()
    if gate == "soft":
        assert memory["fisher"].max() > 0


@dataclass
class Saddle:
    """½(x² - y²) for an encoder with the two parameters x and y, whatever is left out."""

    modalities = ("a", "b")

    def encode(self, theta, batch):
        return {"a": theta[None, :2], "b": theta[None, 2:]}

    def objectives(self, theta, features, batch):
        return {"fused": 0.5 * (theta[0] ** 2 - theta[1] ** 2) + features["b"].sum() ** 2}, {"fused": features["a"]}


def test_the_hessian_gate_closes_on_a_planted_saddle_only():
    theta, omission = torch.tensor([0.3, 0.1, 0.7], dtype=torch.float64), Omission(Saddle(), 0.5, neutral=False)
    for mask, wanted in ((torch.tensor([1.0, 1, 0]), (-1.0, 1.0)), (torch.tensor([1.0, 0, 0]), (1.0, 1.0))):
        smallest, largest, residual = omission.curvature(theta, "a", None, mask, 10, torch.Generator())
        assert (smallest, largest) == pytest.approx(wanted)
        assert residual < 1e-10
        assert collapse.closed(smallest, largest, 0.05) == (wanted[0] < 0)
    along = omission.along(theta, "a", None, slice(0, 2), torch.tensor([0.0, 5.0], dtype=torch.float64))
    assert along == pytest.approx(-1.0)


@pytest.mark.parametrize("neutral", [False, True])
def test_the_gate_sees_the_block_of_the_encoder_that_is_attacked(neutral):
    problem = tiny.problem(batch=96, heads=True)
    theta, batch, omission = problem.init(), problem.batch(0), Omission(problem, 0.5, neutral)
    dense = torch.autograd.functional.hessian(lambda at: omission.whole(at, "text", batch), theta)
    where = problem.layout.slices["text"]
    values = torch.linalg.eigvalsh(dense[where, where])
    smallest, largest, residual = omission.curvature(
        theta, "text", batch, problem.layout.mask("text"), 12, torch.Generator()
    )
    assert abs(values - smallest).min() <= residual + 1e-12
    assert smallest >= values[0] - 1e-12
    assert largest == pytest.approx(values[-1].item(), rel=1e-3)


def test_one_look_in_so_many_steps_in_turn_at_each_modality():
    problem = built("1,1,1", batch=16)
    params = ModalImmune.Params(**NOW, gate="hessian", gate_every=4, gate_steps=2, meta_every=0, explore=1.0)
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(params)])
    ages = []
    for _ in range(40):
        ages.append(stack.methods["modalimmune"].state["gate"]["age"].clone())
        state, _ = train_step(state, problem, optimizer, stack, rng)
    looks = [(step, m) for step in range(1, 40) for m in range(3) if ages[step][m] != ages[step - 1][m]]
    first = [min(step for step, which in looks if which == m) for m in range(3) if ages[0][m] < 0]
    later = [look for look in looks if look[0] > max(first)]
    assert [step for step, _ in later] == list(range(later[0][0], 40, 4))
    turns = [m for _, m in later]
    assert all(sorted(turns[i : i + 3]) == [0, 1, 2] for i in range(len(turns) - 2))
    attacked = {m for m in arms(stack) if m >= 0}
    assert all(ages[-1][m] >= 0 for m in attacked)
