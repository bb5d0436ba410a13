"""AGM scales the gradient that enters each modality's response, by how its lead differs from its usual one."""

import math

import pytest
import torch
from torch.nn import functional as F

from modalscape.engine.core.step import View, gradient, train_step
from modalscape.engine.maths.modalities.unimodal import places
from modalscape.engine.methods.agm import Agm, coefficient, cut, measured, ratio, score, shares
from tests import tiny
from tests.methods.several import training

BARE = {"clip": 0.0}


def at(heads=False, micro=0, mean=(0.6, 1.4), **knobs):
    """The method with usual scores of its own, and the view of the first step with its graph."""
    problem = tiny.problem(heads=heads, micro=micro)
    state, optimizer, stack, rng = tiny.started(problem, [Agm(Agm.Params(**(BARE | knobs)))])
    method = stack.methods["agm"]
    method.state |= {"mean": torch.tensor(mean, dtype=torch.float64), "steps": 5}
    view = View(0, state.theta, problem.batch(0), problem, rng, optimizer.rate(0))
    return method, gradient(state.theta, view, stack)


@pytest.mark.parametrize("absent", ["inputs", "features"])
def test_two_responses_are_those_of_zeroed_inputs_and_sum_to_the_fused_logits(absent):
    method, view = at(absent=absent)
    problem, theta, batch = view.problem, view.theta, view.batch
    gone = {}
    for name in problem.modalities:
        features = problem.encode(theta, problem.without(batch, name))
        if absent == "features":
            features = view.features | {name: torch.zeros_like(view.features[name])}
        gone[name] = problem.logits(theta, features)["fused"]
    whole, found = view.logits["fused"], shares(view, method.params.absent)
    torch.testing.assert_close(found["image"], 0.5 * (whole - gone["image"] + gone["text"]))
    torch.testing.assert_close(found["image"] + found["text"], whole)


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_responses_sum_to_the_fused_logits_for_any_fusion(modalities, fusion):
    case = training("agm", modalities=modalities, fusion=fusion)
    view = case.step()
    torch.testing.assert_close(sum(shares(view, "inputs").values()), view.logits["fused"])


def test_the_score_is_the_cross_entropy_with_a_floor():
    z = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    assert float(score(z, y)) == pytest.approx(float(F.cross_entropy(z, y)))
    assert float(score(1000 * z, torch.tensor([0, 1]))) == pytest.approx(-math.log(1e-8))


def test_two_ratios_are_each_others_inverse_and_equal_scores_are_balance():
    found = ratio(torch.tensor([0.3, 1.1], dtype=torch.float64))
    assert float(found[0]) == pytest.approx(math.exp(0.8))
    assert float(found[0] * found[1]) == pytest.approx(1.0)
    assert ratio(torch.full((4,), 1.7)).tolist() == pytest.approx([1.0] * 4)


def test_three_ratios_are_means_of_differences():
    s = torch.tensor([0.2, 1.0, 1.5], dtype=torch.float64)
    expected = [math.exp(sum(float(s[j] - s[m]) for j in range(3) if j != m) / 2) for m in range(3)]
    assert ratio(s).tolist() == pytest.approx(expected)


def test_the_coefficient_is_capped_and_one_at_no_strength():
    usual, now = torch.tensor([2.0, 1.0, 99.0]), torch.tensor([1.0, 3.0, 1.0])
    assert coefficient(usual, now, 0.5).tolist() == pytest.approx([math.exp(0.5), math.exp(-1.0), math.exp(5.0)])
    assert coefficient(usual, now, 0.0).tolist() == [1.0] * 3


@pytest.mark.parametrize("mean", [(0.1, 9.0), (9.0, 0.1)])
def test_who_leads_by_less_than_usual_is_sped_up_and_the_other_slowed(mean):
    method, view = at(mean=mean)
    kappa = dict(
        zip(view.problem.modalities, measured(view, method.state["mean"], method.params)[3].tolist(), strict=True)
    )
    usual = "image" if mean[0] < mean[1] else "text"
    other = "text" if usual == "image" else "image"
    assert kappa[usual] > 1 > kappa[other]


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("absent", ["inputs", "features"])
def test_the_fused_row_is_what_hooks_on_the_responses_give(heads, absent):
    method, view = at(heads=heads, absent=absent, alpha=0.8)
    factors = measured(view, method.state["mean"], method.params)[3]
    theta = view.theta.detach().requires_grad_()
    here = view.having(theta=theta, features=view.problem.encode(theta, view.batch))
    parts = list(shares(here, method.params.absent).values())
    for part, k in zip(parts, factors, strict=True):
        part.register_hook(lambda slope, k=k: k * slope)
    (wanted,) = torch.autograd.grad(F.cross_entropy(sum(parts), view.batch.y), theta)
    torch.testing.assert_close(view.grads[0], wanted)
    assert not torch.allclose(view.grads[0], view.raw_grads[0])
    assert torch.equal(view.grads[1:], view.raw_grads[1:])


def test_a_linear_fusion_of_zeroed_features_scales_encoder_slice_and_half_of_the_bias():
    method, view = at(absent="features", alpha=0.8)
    layout, kappa = view.problem.layout, measured(view, method.state["mean"], method.params)[3]
    raw, found = layout.unpack(view.raw_grads[0]), layout.unpack(view.grads[0])
    for k, name in zip(kappa, view.problem.modalities, strict=True):
        for key in raw:
            if key.startswith(f"encoders.{name}."):
                torch.testing.assert_close(found[key], k * raw[key])
    weight = raw["trunk.fused.weight"] * kappa.repeat_interleave(4)
    torch.testing.assert_close(found["trunk.fused.weight"], weight)
    torch.testing.assert_close(found["trunk.fused.bias"], kappa.mean() * raw["trunk.fused.bias"])


def test_the_encoder_route_scales_encoders_and_nothing_else():
    method, view = at(heads=True, route="encoders", alpha=0.8)
    expected = view.raw_grads.clone()
    for k, name in zip(measured(view, method.state["mean"], method.params)[3], view.problem.modalities, strict=True):
        for where in places(view.problem.layout, name):
            expected[:, where] *= k
    torch.testing.assert_close(view.grads, expected)


@pytest.mark.parametrize("route", ["responses", "encoders"])
def test_pieces_give_the_same_rows(route):
    _, whole = at(heads=True, route=route)
    _, pieces = at(heads=True, micro=5, route=route)
    assert not any(h.requires_grad for h in pieces.features.values())
    torch.testing.assert_close(pieces.grads, whole.grads)


def test_means_run_over_all_steps_before():
    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [Agm()])
    method, scores = stack.methods["agm"], []
    for step in range(6):
        state, _ = train_step(state, problem, optimizer, stack, rng)
        last = method.state["last"]
        usual = ratio(torch.stack(scores).mean(0)) if scores else torch.ones(2, dtype=torch.float64)
        torch.testing.assert_close(last[2], usual)
        torch.testing.assert_close(last[3], coefficient(usual, last[1], 1.0))
        scores.append(last[0])
        torch.testing.assert_close(method.state["mean"], torch.stack(scores).mean(0))
        assert method.state["steps"] == step + 1


def test_steep_rows_are_cut_to_the_norm_and_flat_ones_are_not():
    rows = torch.tensor([[3.0, 0.0, 0.5], [1.0, 0.0, 0.4]])
    head = slice(2, 3)
    assert torch.equal(cut(rows, head, 1.0), rows)
    steep = rows + torch.tensor([0.0, 0.0, 1.0])
    found = cut(steep, head, 1.0)
    assert float(found.sum(0).norm()) == pytest.approx(1.0)
    torch.testing.assert_close(found * steep.sum(0).norm(), steep)
    assert torch.equal(cut(steep, head, 0.0), steep)
    assert torch.equal(cut(0.1 * steep + torch.tensor([0.0, 0.0, -9.0]), head, 99.0)[0, 2], 0.1 * steep[0, 2] - 9)


def test_regularisers_are_left_alone():
    method, view = at(heads=True, clip=1e-3)
    rows = torch.cat([100 * view.raw_grads, torch.ones_like(view.raw_grads[:1])])
    changed = method.gradients(rows, view.having(losses=view.losses | {"reg/other": torch.zeros(())}))
    assert torch.equal(changed[-1], rows[-1])
    assert float(changed[:-1].sum(0).norm()) == pytest.approx(1e-3)


def test_neutral_dose_and_the_window_return_the_rows_as_they_are():
    method, view = at(alpha=0.0)
    assert method.gradients(view.raw_grads, view) is view.raw_grads
    _, views, _ = tiny.train(tiny.problem(), [Agm(Agm.Params(start=2, stop=5))], 8)
    changed = [not torch.equal(view.grads, view.raw_grads) for view in views]
    assert changed == [False, False, True, True, True, False, False, False]


def test_the_report_says_what_was_done():
    _, views, stack = tiny.train(tiny.problem(), [Agm()], 4)
    values = {r.name.removeprefix("agm/"): r.value for r in stack.methods["agm"].report(views[-1])}
    for what in ("ratio", "usual"):
        assert values[f"{what}/image"] * values[f"{what}/text"] == pytest.approx(1.0)
    for name in tiny.WIDTHS:
        expected = math.exp(values[f"usual/{name}"] - values[f"ratio/{name}"])
        assert values[f"coefficient/{name}"] == pytest.approx(expected)
