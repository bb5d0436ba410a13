"""PMR draws the slower encoder, and no other part, to the mean features of each class."""

import math

import pytest
import torch
from torch.nn import functional as F

from modalscape.engine.core.step import train_step
from modalscape.engine.maths.modalities.unimodal import confidence
from modalscape.engine.methods.pmr import Pmr, blended, prototypical, similarity, strength
from tests import tiny

KNOWN = torch.ones(tiny.CLASSES, dtype=torch.bool)


def at(problem=None, steps=1, **knobs):
    problem = tiny.problem() if problem is None else problem
    _, views, stack = tiny.train(problem, [Pmr(Pmr.Params(**knobs))], steps)
    return stack.methods["pmr"], views


def means(problem, theta, batches):
    """Class means by loops."""
    pieces = [(problem.encode(theta, b), b.y) for b in batches]
    return {
        name: torch.stack([torch.cat([h[name][y == c] for h, y in pieces]).mean(0) for c in range(tiny.CLASSES)])
        for name in problem.modalities
    }


def test_the_first_pass_gives_class_means_of_the_share():
    problem = tiny.problem()
    for share, count in ((0.1, 1), (0.5, 3), (1.0, 6)):
        state = tiny.started(problem, [Pmr(Pmr.Params(share=share))])[2].methods["pmr"].state
        expected = means(problem, problem.init(), [problem.batch(i) for i in range(count)])
        assert state["epoch"] == 6
        for name, value in expected.items():
            torch.testing.assert_close(state["prototypes"][name], value)


def test_later_passes_come_after_each_epoch_and_keep_momentum():
    problem = tiny.problem()
    method, views = at(problem, steps=6, momentum=0.2)
    batch = problem.batch(6)
    old = means(problem, problem.init(), [problem.batch(0)])
    new = means(problem, views[-1].theta + views[-1].applied_update, [batch])
    for name, value in method.state["prototypes"].items():
        torch.testing.assert_close(value, 0.2 * old[name] + 0.8 * new[name])


@pytest.mark.parametrize(("every", "expected"), [(0, [5, 11]), (4, [3, 7, 11])])
def test_passes_keep_to_their_interval(every, expected):
    problem, params = tiny.problem(), Pmr.Params(every=every)
    state, optimizer, stack, rng = tiny.started(problem, [Pmr(params)])
    found, before = [], stack.methods["pmr"].state
    for step in range(12):
        state, _ = train_step(state, problem, optimizer, stack, rng)
        if stack.methods["pmr"].state is not before:
            found.append(step)
        before = stack.methods["pmr"].state
    assert found == expected


def test_blending_guards_classes_that_a_pass_or_all_passes_missed():
    old = torch.tensor([[1.0], [2.0], [0.0], [0.0]])
    known, counts = torch.tensor([True, True, False, False]), torch.tensor([2, 0, 4, 0])
    sums = torch.tensor([[6.0], [0.0], [8.0], [0.0]])
    found = blended(old, known, sums, counts, 0.2).flatten().tolist()
    assert found == pytest.approx([0.2 * 1 + 0.8 * 3, 2.0, 2.0, 0.0])


def test_similarity_is_minus_the_distance():
    h, p = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    assert similarity(h, p, KNOWN).tolist() == [[-5.0, 0.0, -4.0]]
    assert similarity(h, p, torch.tensor([True, False, True]))[0, 1] == -math.inf


def test_a_class_without_prototype_has_no_probability_and_its_rows_do_not_count():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(6, 4, generator=draw, dtype=torch.float64).requires_grad_()
    p = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    known, y = torch.tensor([True, False, True]), torch.tensor([0, 1, 2, 1, 0, 2])
    similar = similarity(h, p, known)
    assert similar.softmax(-1)[:, 1].abs().max() == 0
    loss = prototypical(similar, y, known)
    rows = y != 1
    two = -(h[rows][:, None] - p[[0, 2]]).norm(dim=-1)
    torch.testing.assert_close(loss, F.cross_entropy(two, y[rows] // 2))
    (slope,) = torch.autograd.grad(loss, h)
    assert torch.isfinite(slope).all()
    assert slope[~rows].abs().max() == 0 and slope[rows].abs().min() > 0


def test_without_any_prototype_there_is_no_loss():
    h = torch.randn(4, 2, requires_grad=True)
    unknown = torch.zeros(3, dtype=torch.bool)
    loss = prototypical(similarity(h, torch.zeros(3, 2), unknown), torch.tensor([0, 1, 2, 0]), unknown)
    assert loss.item() == 0.0


def test_features_on_their_prototype_have_a_finite_gradient():
    h = torch.zeros(2, 3, requires_grad=True)
    loss = prototypical(similarity(h, torch.zeros(3, 3), KNOWN), torch.tensor([0, 1]), KNOWN)
    assert float(loss) == pytest.approx(math.log(3))
    assert torch.isfinite(torch.autograd.grad(loss, h)[0]).all()


def test_strength_is_a_switch_or_graded():
    lead = torch.tensor([0.25, 0.8, 1.0, 1.25])
    assert strength(lead, False).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert strength(lead, True).tolist() == pytest.approx([1.0, 0.25, 0.0, 0.0])
    assert strength(torch.tensor([0.0, math.inf, math.nan]), True).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("weights", ["switch", "graded"])
def test_the_term_is_the_cross_entropy_of_the_slower_modality_alone(weights):
    problem = tiny.problem()
    method, (view,) = at(problem, alpha=0.7, weights=weights)
    y, p = view.batch.y, method.state["prototypes"]
    similar = {n: -(h[:, None] - p[n]).norm(dim=-1) for n, h in view.clean_features.items()}
    scores = {n: float(confidence(z, y)) for n, z in similar.items()}
    slow, fast = min(scores, key=scores.get), max(scores, key=scores.get)
    beta = 1.0 if weights == "switch" else min(scores[fast] / scores[slow] - 1, 1.0)
    assert float(method.losses(view)) == pytest.approx(0.7 * beta * float(F.cross_entropy(similar[slow], y)))
    row = dict(zip(view.losses, view.raw_grads, strict=True))["reg/pmr"]
    parts = problem.layout.split(row)
    assert parts[slow].norm() > 0
    assert parts[fast].abs().max() == 0 and parts["shared"].abs().max() == 0


def test_no_dose_or_a_step_outside_the_window_gives_an_empty_row():
    for knobs in ({"alpha": 0.0}, {"start": 3}, {"stop": 1, "start": 1}):
        _, (view,) = at(**knobs)
        assert float(view.losses["reg/pmr"]) == 0.0
        assert view.raw_grads[-1].abs().max() == 0
    _, (view,) = at(start=0, stop=1)
    assert float(view.losses["reg/pmr"]) > 0


def test_training_with_it_brings_the_slower_modality_nearer_to_its_prototypes():
    problem = tiny.problem()
    plain, _ = at(problem, steps=60, alpha=1e-9)
    drawn, _ = at(problem, steps=60, alpha=2.0)
    rows = next(problem.held_out("train", 96))

    def accuracy(method, theta):
        h = problem.encode(theta, rows)
        p = means(problem, theta, [rows])
        return sum(float((similarity(h[n], p[n], KNOWN).argmax(-1) == rows.y).double().mean()) for n in h)

    without = tiny.train(problem, [], 60)[0].theta
    with_it = tiny.train(problem, [Pmr(Pmr.Params(alpha=2.0))], 60)[0].theta
    assert accuracy(drawn, with_it) > accuracy(plain, without)


def test_the_report_says_who_is_behind():
    method, (view,) = at()
    values = {r.name.removeprefix("pmr/"): r.value for r in method.report(view)}
    assert values["lead/image"] * values["lead/text"] == pytest.approx(1.0)
    assert sorted(values[f"weight/{n}"] for n in tiny.WIDTHS) == [0.0, 1.0]
    assert values["classes"] == tiny.CLASSES
