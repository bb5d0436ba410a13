"""OPM drops rows of the modality that leads, as often as its lead says, and of no other."""

import math

import pytest
import torch

from modalscape.engine.maths.modalities.unimodal import confidence
from modalscape.engine.methods.ogm_ge import alone
from modalscape.engine.methods.opm import Opm, probability, ratios
from tests import tiny

ALWAYS = {"execute": 1.0}


def at(heads=False, batch=16, **knobs):
    problem = tiny.problem(heads=heads, batch=batch)
    _, (view,), stack = tiny.train(problem, [Opm(Opm.Params(**knobs))], 1)
    return stack.methods["opm"], view


def dropped(found, view):
    return {name: ((found[name] == 0) & (view.clean_features[name] != 0)).all(1) for name in found}


def leader(view):
    found = ratios(view.clean_features, view)
    return max(found, key=found.get), min(found, key=found.get), found


def test_the_probability_jumps_where_a_modality_takes_the_lead():
    q = probability(torch.tensor([0.5, 1.0, 1.0 + 1e-12, 3.0], dtype=torch.float64), 0.4, 0.5)
    assert q[:2].tolist() == [0.0, 0.0]
    assert float(q[2]) == pytest.approx(0.4)
    assert float(q[3]) == pytest.approx(0.4 * (1 + 0.5 * math.tanh(2)))


def test_the_probability_is_clipped_to_one():
    assert float(probability(torch.tensor(1e9), 0.9, 5.0)) == 1.0
    assert float(probability(torch.tensor(math.inf), 0.9, 0.0)) == pytest.approx(0.9)


@pytest.mark.parametrize("heads", [False, True])
def test_the_lead_is_ogms_before_the_drop(heads):
    _, view = at(heads=heads, base=0.0)
    scores = {name: confidence(z, view.batch.y) for name, z in alone(view).items()}
    found = ratios(view.clean_features, view)
    assert float(found["image"]) == pytest.approx(float(scores["image"] / scores["text"]))
    assert float(found["image"] * found["text"]) == pytest.approx(1.0)


def test_only_rows_of_the_leader_are_dropped_and_as_often_as_the_probability_says():
    method, view = at(batch=96, **ALWAYS)
    ahead, behind, found = leader(view)
    q = float(probability(found[ahead], 0.4, 0.5))
    lost = torch.zeros(0, dtype=torch.bool)
    for step in range(100):
        mask = dropped(method.features(view.clean_features, view.having(step=step)), view)
        assert not mask[behind].any()
        lost = torch.cat([lost, mask[ahead]])
    assert abs(float(lost.double().mean()) - q) < 5 * math.sqrt(q * (1 - q) / len(lost))


def test_a_share_of_the_batches_is_treated():
    method, view = at(base=1.0, alpha=0.0, execute=0.7)
    treated = [
        method.features(view.clean_features, view.having(step=step)) is not view.clean_features for step in range(2000)
    ]
    assert abs(sum(treated) / 2000 - 0.7) < 5 * math.sqrt(0.7 * 0.3 / 2000)


def test_a_certain_drop_leaves_the_weakest_whole():
    method, view = at(base=1.0, rescale=False, **ALWAYS)
    ahead, behind, _ = leader(view)
    found = method.features(view.clean_features, view)
    assert found[ahead].abs().max() == 0
    assert torch.equal(found[behind], view.clean_features[behind])


def test_rescaling_divides_by_the_mean_share_that_is_kept():
    plain, view = at(rescale=False, **ALWAYS)
    scaled, _ = at(rescale=True, **ALWAYS)
    ahead, _, found = leader(view)
    q = float(probability(found[ahead], 0.4, 0.5))
    one, other = plain.features(view.clean_features, view), scaled.features(view.clean_features, view)
    for name in one:
        torch.testing.assert_close(other[name], one[name] / (1 - q / 2))  # two modalities of one width


def test_rows_that_stay_are_untouched_without_rescaling():
    method, view = at(rescale=False, **ALWAYS)
    found = method.features(view.clean_features, view)
    for name, mask in dropped(found, view).items():
        assert torch.equal(found[name][~mask], view.clean_features[name][~mask])


def test_dropped_rows_send_no_gradient():
    method, view = at(rescale=False, **ALWAYS)
    clean = {name: h.detach().requires_grad_() for name, h in view.clean_features.items()}
    found = method.features(clean, view)
    slopes = torch.autograd.grad(sum(h.sum() for h in found.values()), list(clean.values()))
    for slope, (name, mask) in zip(slopes, dropped(found, view).items(), strict=True):
        assert slope[mask].abs().sum() == 0, name
        assert (slope[~mask] == 1).all()


def test_drops_are_a_function_of_the_step():
    method, view = at(**ALWAYS)
    ahead, _, _ = leader(view)
    first, again, later = (method.features(view.clean_features, view.having(step=step))[ahead] for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_the_window_is_kept():
    params = Opm.Params(start=2, stop=5, **ALWAYS)
    _, views, _ = tiny.train(tiny.problem(), [Opm(params)], 8)
    changed = [any(not torch.equal(v.features[n], v.clean_features[n]) for n in v.clean_features) for v in views]
    assert changed == [False, False, True, True, True, False, False, False]


def test_the_report_says_what_was_dropped():
    method, view = at(batch=96, rescale=False, **ALWAYS)
    ahead, behind, found = leader(view)
    values = {r.name.removeprefix("opm/"): r.value for r in method.report(view)}
    assert values[f"lead/{ahead}"] == pytest.approx(float(found[ahead]))
    assert values[f"probability/{behind}"] == 0.0 and values[f"dropped/{behind}"] == 0.0
    mask = dropped(view.features, view)[ahead]
    assert values[f"dropped/{ahead}"] == pytest.approx(float(mask.double().mean())) and mask.any()
