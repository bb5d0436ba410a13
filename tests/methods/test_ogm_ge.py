"""OGM-GE slows the encoder that leads, and nothing else."""

import math

import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities.unimodal import confidence, leads, places
from modalscape.engine.methods.ogm_ge import OgmGe, alone, coefficient
from tests import tiny
from tests.methods.several import data_file, training

MODULATION_ONLY = OgmGe.Params(alpha=0.5, ge=False)


def one_step(problem, params):
    _, (view,), stack = tiny.train(problem, [OgmGe(params)], 1, tiny.sgd(0.1))
    return view, stack.methods["ogm_ge"]


def test_confidence_is_the_batch_sum_of_the_true_class():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]], dtype=torch.float64)
    assert confidence(logits, torch.tensor([1, 0])) == pytest.approx(0.75 + 0.8)


def test_two_leads_are_each_others_inverse():
    found = leads({"image": torch.tensor(3.0), "text": torch.tensor(2.0)})
    assert found["image"] == pytest.approx(1.5)
    assert found["image"] * found["text"] == pytest.approx(1.0)


def test_three_modalities_divide_by_the_smallest():
    found = leads({"a": torch.tensor(6.0), "b": torch.tensor(3.0), "c": torch.tensor(2.0)})
    assert [float(found[name]) for name in "abc"] == pytest.approx([3.0, 1.5, 2 / 3])


def test_the_coefficient_jumps_where_a_modality_takes_the_lead():
    k = coefficient(torch.tensor([0.5, 1.0, 1.0 + 1e-12, 3.0], dtype=torch.float64), 0.3)
    assert k[:2].tolist() == [1.0, 1.0]
    assert float(k[2]) == pytest.approx(1 - math.tanh(0.3))
    assert float(k[3]) == pytest.approx(1 - math.tanh(0.9))


@pytest.mark.parametrize("heads", [False, True])
def test_only_the_leading_encoder_is_scaled(heads):
    problem = tiny.problem(heads=heads)
    view, _ = one_step(problem, MODULATION_ONLY)
    scores = {name: confidence(logits, view.batch.y) for name, logits in alone(view).items()}
    leader = max(scores, key=scores.get)
    behind = min(scores, key=scores.get)
    factor = 1 - math.tanh(0.5 * float(scores[leader] / scores[behind]))
    slices = problem.layout.slices
    torch.testing.assert_close(view.grads[:, slices[leader]], factor * view.raw_grads[:, slices[leader]])
    for part in (behind, "shared"):
        assert torch.equal(view.grads[:, slices[part]], view.raw_grads[:, slices[part]])


def test_heads_give_the_scores_where_there_are_some():
    view, _ = one_step(tiny.problem(heads=True), MODULATION_ONLY)
    for name, logits in alone(view).items():
        assert torch.equal(logits, view.logits[name])


def test_without_heads_the_other_features_are_zero():
    problem = tiny.problem(heads=False)
    view, _ = one_step(problem, MODULATION_ONLY)
    named = problem.layout.unpack(view.theta)
    weight, bias = named["trunk.fused.weight"], named["trunk.fused.bias"]
    found = alone(view)
    torch.testing.assert_close(found["image"], view.features["image"] @ weight[:, :4].T + bias)
    torch.testing.assert_close(found["text"], view.features["text"] @ weight[:, 4:].T + bias)
    # split-head identity: the shares of a linear head sum to the fused logits, one bias too many
    torch.testing.assert_close(found["image"] + found["text"] - bias, view.logits["fused"])


def test_regularisers_are_left_alone():
    problem = tiny.problem(heads=True)
    view, method = one_step(problem, OgmGe.Params(alpha=0.5, ge=True))
    rows = torch.cat([view.raw_grads, torch.ones_like(view.raw_grads[:1])])
    changed = method.gradients(rows, view.having(losses=view.losses | {"reg/other": torch.zeros(())}))
    assert torch.equal(changed[-1], rows[-1])
    assert not torch.equal(changed[0], rows[0])


def test_neutral_dose_returns_the_rows_as_they_are():
    view, _ = one_step(tiny.problem(), OgmGe.Params(**OgmGe.neutral))
    assert torch.equal(view.grads, view.raw_grads)


def test_the_window_is_kept():
    problem = tiny.problem()
    _, views, _ = tiny.train(problem, [OgmGe(OgmGe.Params(alpha=0.5, start=2, stop=5))], 8)
    changed = [not torch.equal(view.grads, view.raw_grads) for view in views]
    assert changed == [False, False, True, True, True, False, False, False]


def test_noise_has_the_size_of_each_unmodulated_tensor():
    problem = tiny.problem(heads=True)
    view, method = one_step(problem, OgmGe.Params(alpha=0.0, ge=True))
    wheres = [where for name in tiny.WIDTHS for where in places(problem.layout, name, False)]
    draws = (
        torch.stack([method.gradients(view.raw_grads, view.having(step=step)) for step in range(4000)]) - view.raw_grads
    )
    assert draws[:, 1:].abs().max() == 0
    assert draws[:, :, problem.layout.slices["shared"]].abs().max() == 0
    for where in wheres:
        noise, wanted = draws[:, 0, where], float(view.raw_grads[:, where].sum(0).std())
        # a standard deviation from n normal draws has the standard error std/√(2n), a mean std/√n; five of each
        n = noise.numel()
        assert float(noise.std()) == pytest.approx(wanted, abs=5 * wanted / math.sqrt(2 * n))
        assert abs(float(noise.mean())) < 5 * wanted / math.sqrt(n)


def test_noise_is_a_function_of_the_step():
    view, method = one_step(tiny.problem(), OgmGe.Params())
    first, again, later = (method.gradients(view.raw_grads, view.having(step=step)) for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_convolutions_are_the_four_dimensional_weights():
    shapes = {
        "encoders.image.a": (2,),
        "encoders.image.b": (1, 2, 3, 3),
        "trunk.heads.image": (5,),
        "encoders.text.c": (4,),
    }
    layout = Layout(shapes, dict(zip(shapes, ("image", "image", "image", "text"), strict=True)))
    assert places(layout, "image", True) == [slice(2, 20)]
    assert places(layout, "image", False) == [slice(0, 2), slice(2, 20)]
    assert places(layout, "text", False) == [slice(25, 29)]


@pytest.mark.parametrize(("made", "words"), [({"real": True}, "no classes"), ({"names": ("image",)}, "only 'image'")])
def test_what_cannot_be_compared_is_refused_when_it_is_switched_on(tmp_path, made, words):
    case = training(data=data_file(tmp_path, **made))
    with pytest.raises(InputError, match=words):
        case.toggle("ogm_ge", True)
    assert not case.stack.methods


def test_the_report_says_what_was_done():
    view, method = one_step(tiny.problem(), MODULATION_ONLY)
    values = {record.name: record.value for record in method.report(view)}
    assert values["ogm_ge/lead/image"] * values["ogm_ge/lead/text"] == pytest.approx(1.0)
    for name in tiny.WIDTHS:
        lead = values[f"ogm_ge/lead/{name}"]
        assert values[f"ogm_ge/coefficient/{name}"] == pytest.approx(1 - math.tanh(0.5 * lead) if lead > 1 else 1.0)


def test_convolutions_alone_are_modulated_where_some_encoders_have_none():
    """A method that finds nothing to modulate in an encoder leaves it alone, and does not end the run."""
    off, on = (training(*names, unimodal="heads", ogm_ge__layers="convolutions") for names in ((), ("ogm_ge",)))
    for _ in range(3):
        off.step(), on.step()
    assert torch.equal(off.state.theta, on.state.theta)
