"""BOGC-MML weighs each encoder's gradients by their evidence, and touches nothing else."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modalscape.engine.config import DEFAULTS, RunConfig
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import View, gradient, train_step
from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients import calibration as maths
from modalscape.engine.maths.gradients.evidence import READINGS
from modalscape.engine.maths.gradients.last_layer import Head
from modalscape.engine.methods.bogc import Bogc
from modalscape.engine.methods.bogc.encoders import through_encoders
from modalscape.engine.methods.ogm_ge import OgmGe, alone, coefficient, confidence, leads
from modalscape.engine.methods.sam import Sam, ascent
from modalscape.engine.reports import calibration
from modalscape.engine.reports.calibration import READING_NOTES
from tests import tiny
from tests.methods.several import data_file, training

AT_ONCE = {"warmup": 0.0}


def at(problem, *methods, theta=None):
    """The stack and the view, still with its graph, of the gradient at the start."""
    state, optimizer, stack, rng = tiny.started(problem, list(methods))
    theta = state.theta if theta is None else theta
    view = View(0, theta, problem.batch(0), problem, rng, optimizer.rate(0))
    return stack, gradient(theta, view, stack)


def bogc(**knobs):
    return Bogc(Bogc.Params(**(AT_ONCE | knobs)))


def found(stack, view):
    return stack.methods["bogc"]._calibrated(view)


def test_the_gradient_through_the_encoders_is_that_of_the_inner_product():
    _, view = at(tiny.problem(heads=True))
    draw = torch.Generator().manual_seed(0)
    incoming = {n: torch.randn(h.shape, generator=draw, dtype=h.dtype) for n, h in view.features.items()}
    theta = view.theta.detach().requires_grad_()
    features = view.problem.encode(theta, view.batch)
    (wanted,) = torch.autograd.grad(sum((incoming[n] * features[n]).sum() for n in incoming), theta)
    torch.testing.assert_close(through_encoders(view, incoming), wanted)
    cut = view.having(features={n: h.detach() for n, h in view.features.items()})
    torch.testing.assert_close(through_encoders(cut, incoming), wanted)


def test_encoders_get_the_calibrated_gradient_and_heads_their_own():
    problem = tiny.problem(heads=True)
    stack, view = at(problem, bogc())
    incoming = {n: f.gradient / len(view.batch) for n, f in found(stack, view).items()}
    wanted = through_encoders(view, incoming)
    shared = problem.layout.slices["shared"]
    wanted[shared] = view.raw_grads.sum(0)[shared]
    torch.testing.assert_close(view.grad, wanted)
    assert not torch.allclose(view.grad, view.raw_grads.sum(0), rtol=1e-2)


@pytest.mark.parametrize("evidence", ["snr", "relative"])
def test_trust_weighs_posterior_means_by_belief(evidence):
    stack, view = at(tiny.problem(heads=True), bogc(evidence=evidence))
    for f in found(stack, view).values():
        assert len(f.sources) == 2
        lam = (f.moments.mean.square() if evidence == "snr" else 1) / f.moments.variance
        e = (lam / lam.median()).sqrt()
        b = e / (1 + e)
        torch.testing.assert_close(f.gradient, 2 * (b * f.moments.mean).sum(0) / b.sum(0))


def test_a_dose_between_mixes_linearly():
    grads = [at(tiny.problem(heads=True), bogc(dose=dose))[1].grad for dose in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(grads[1], 0.75 * grads[0] + 0.25 * grads[2])


def test_a_tight_posterior_with_equal_weights_is_the_plain_sum():
    knobs = {"gamma": 1e-6, "power": 0.0, "reading": "inverse_variance"}
    _, view = at(tiny.problem(heads=True), bogc(**knobs))
    torch.testing.assert_close(view.grad, view.raw_grads.sum(0), rtol=1e-3, atol=1e-5)


def test_matched_norm_changes_direction_only():
    stack, view = at(tiny.problem(heads=True), bogc(size="norm"))
    for f in found(stack, view).values():
        torch.testing.assert_close(f.gradient.norm(), f.moments.plain.sum(0).norm())


def test_a_mask_is_not_undone():
    """Were evidence taken from masked rows, precision would rise by 1/c² and give the weight back."""
    problem = tiny.problem(heads=True)
    stack, masked = at(problem, bogc(), OgmGe(OgmGe.Params(alpha=0.5, ge=False)))
    _, free = at(problem, bogc())
    scores = {n: confidence(z.detach(), masked.batch.y) for n, z in alone(masked).items()}
    factors = {n: float(coefficient(lead, 0.5)) for n, lead in leads(scores).items()}
    assert min(factors.values()) < 0.6 and max(factors.values()) == 1
    for name, factor in factors.items():
        where = problem.layout.slices[name]
        torch.testing.assert_close(masked.grad[where], factor * free.grad[where])
    bare, plain = (found(s, v) for s, v in ((stack, masked), at(problem, bogc())))
    assert all(torch.equal(bare[n].calibration.weights, plain[n].calibration.weights) for n in plain)


def test_one_row_that_is_masked_loses_its_share_alone():
    problem = tiny.problem(heads=True)
    stack, view = at(problem, bogc())
    method, where = stack.methods["bogc"], problem.layout.slices["image"]
    grads = view.raw_grads.clone()
    grads[1, where] = 0.0
    f = found(stack, view)["image"]
    assert f.sources == ["fused", "image"]
    only = through_encoders(view, {"image": f.factor * f.calibration.parts[0] / len(view.batch)})
    torch.testing.assert_close(method.fuse(grads, view)[where], only[where])


def test_regularisers_are_added_as_they_are():
    stack, view = at(tiny.problem(heads=True), bogc())
    extra = torch.randn(1, len(view.grad), generator=torch.Generator().manual_seed(0), dtype=view.grad.dtype)
    rows = torch.cat([view.raw_grads, extra])
    more = view.having(losses=view.losses | {"reg/other": torch.zeros(())}, raw_grads=rows)
    torch.testing.assert_close(stack.methods["bogc"].fuse(rows, more), view.grad + extra[0])


@pytest.mark.parametrize("micro", [5, 7])
def test_a_batch_in_pieces_gives_the_same_gradient(micro):
    _, whole = at(tiny.problem(heads=True), bogc())
    _, pieces = at(tiny.problem(heads=True, micro=micro), bogc())
    assert not pieces.features["image"].requires_grad
    torch.testing.assert_close(pieces.grad, whole.grad)


def test_nothing_flows_into_dropped_features_of_a_batch_in_pieces():
    problem = tiny.problem(heads=True, micro=5)
    _, view = at(problem)
    view = view.having(features=view.features | {"text": torch.zeros_like(view.features["text"])})
    flow = through_encoders(view, {n: torch.ones_like(h) for n, h in view.features.items()})
    assert flow[problem.layout.slices["text"]].abs().max() == 0 < flow[problem.layout.slices["image"]].abs().max()


def test_training_is_plain_until_the_warm_up_is_over():
    problem = tiny.problem(heads=True)
    plain = [torch.equal(v.grad, v.grads.sum(0)) for v in tiny.train(problem, [Bogc(Bogc.Params(warmup=1.0))], 9)[1]]
    assert plain == [True] * 6 + [False] * 3


def test_the_posterior_is_made_anew_every_epoch():
    problem = tiny.problem(heads=True)
    state, optimizer, stack, rng = tiny.started(problem, [bogc()])
    made = []
    for _ in range(14):
        state, _ = train_step(state, problem, optimizer, stack, rng)
        made.append(stack.methods["bogc"].state["made"])
    assert made == [0] * 5 + [6] * 6 + [12] * 3


def test_switched_on_in_mid_run_it_starts_afresh():
    problem = tiny.problem(heads=True)
    state, optimizer, stack, rng = tiny.started(problem, [])
    for _ in range(11):
        state, view = train_step(state, problem, optimizer, stack, rng)
    method = bogc()
    method.state = method.init(
        View(state.step, state.theta, problem.batch(state.step), problem, rng, optimizer.rate(11))
    )
    _, view = train_step(state, problem, optimizer, stack.having(method), rng)
    assert not torch.equal(view.grad, view.raw_grads.sum(0))


@pytest.mark.parametrize(
    "knobs",
    [
        *({"reading": name} for name in ("confident_trust", "sources", "signed", "inverse_variance")),
        *({"evidence": name} for name in ("raw", "power", "relative")),
        *({"form": name} for name in ("full", "kronecker", "diagonal")),
        {"centre": "newton"},
        {"per_batch": True},
        {"per_batch": True, "centre": "newton", "form": "kronecker"},
        {"redraw": True},
        {"average": True},
        {"by_coordinate": True},
        {"by_coordinate": True, "reading": "confident_trust", "size": "norm"},
        {"conflict": 1.0},
        {"size": "mean"},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())),
)
def test_every_choice_trains_and_makes_a_difference(knobs):
    base, _, _ = tiny.train(
        tiny.problem(heads=True), [bogc(form="diagonal" if knobs.get("form") == "full" else "auto")], 15
    )
    state, views, _ = tiny.train(tiny.problem(heads=True), [bogc(**knobs)], 15)
    assert torch.isfinite(state.theta).all()
    assert float(views[-1].losses["fused"]) < 1.2
    if knobs != {"per_batch": True}:
        assert not torch.equal(state.theta, base.theta)


def test_the_newton_mean_of_a_batch_is_one_newton_step_from_the_posterior():
    """Λ = Λ_full + H_batch, mean = θ - Λ⁻¹(∇_batch + Λ_full(θ - mean_full)), against dense algebra."""
    stack, view = at(tiny.problem(heads=True), bogc(centre="newton", per_batch=True, gamma=0.5))
    method = stack.methods["bogc"]
    x = torch.cat([view.features["image"].detach(), torch.ones(16, 1)], 1)
    named = view.problem.layout.unpack(view.theta.detach())
    weight = torch.cat([named["trunk.heads.image.weight"], named["trunk.heads.image.bias"][:, None]], 1)
    p = (x @ weight.T).softmax(-1)
    values = method.state["posterior"]["image"]
    joint = torch.func.vmap(lambda q, r: torch.kron(q.diag() - q.outer(q), r.outer(r)))(p, x).sum(0)
    full = values["curvature"]["matrix"] + 2.0 * torch.eye(15)
    slope = ((p - F.one_hot(view.batch.y, 3)).T @ x).flatten()
    pull = full @ (weight - values["mean"]).flatten()
    wanted = weight.flatten() - torch.linalg.solve(full + joint, slope + pull)
    method._calibrated(view)
    torch.testing.assert_close(method._known[1][0]["image"][0].flatten(), wanted)


@pytest.mark.parametrize(("evidence", "sign"), [("relative", -1), ("snr", 1)])
def test_noise_in_one_modality_lowers_the_weight_of_its_own_loss_by_precision_and_raises_it_by_snr(evidence, sign):
    """Ten paired draws; the mean difference lies more than five of its standard errors on its side of zero."""
    differences = []
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        y = torch.arange(150) % 3
        image, text, noise = (torch.randn(150, 4, generator=draw, dtype=torch.float64) for _ in range(3))
        image, text = (2 * F.one_hot(y, 4) + 0.5 * part for part in (image, text))
        pair = ({"image": h, "text": text} for h in (image, image + 2 * noise))
        clean, noisy = (weight_of_own_loss(features, y, evidence) for features in pair)
        differences.append(sign * (noisy - clean))
    table = torch.tensor(differences)
    assert float(table.mean()) > 5 * float(table.std()) / math.sqrt(len(table))


def weight_of_own_loss(features, y, evidence):
    """Mean weight of the image's own loss on the image, beside the fused one; heads fully trained."""
    heads = {}
    for name, inputs in (("fused", ("image", "text")), ("image", ("image",))):
        x = F.pad(torch.cat([features[m] for m in inputs], 1), (0, 1), value=1.0)
        weight = torch.zeros(3, x.shape[1], dtype=torch.float64, requires_grad=True)
        rule = torch.optim.LBFGS([weight], max_iter=50)

        def loss(x=x, weight=weight, rule=rule):
            rule.zero_grad()
            value = F.cross_entropy(x @ weight.T, y) + 1e-3 * weight.square().sum()
            value.backward()
            return value

        rule.step(loss)
        heads[name] = Head(weight.detach(), inputs, True)
    params = Bogc.Params(gamma=1.0, evidence=evidence)
    posterior, factors = maths.posteriors(heads, features, y, 1.0, params)
    drawn, _ = maths.draws(posterior, params, lambda name, like: Rng(0).normal(name, 0, like), factors=factors)
    return float(maths.calibrated(heads, features, y, drawn, params)["image"].calibration.weights[1].mean())


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("unimodal", ["none", "heads", "slices"])
def test_the_engines_networks_train_calibrated(fusion, unimodal):
    case = training("bogc", fusion=fusion, unimodal=unimodal, bogc__warmup=0.0)
    first = float(case.step().losses["fused"])
    for _ in range(29):
        view = case.step()
    assert float(view.losses["fused"]) < first
    assert not torch.equal(view.grad, view.grads.sum(0))


def test_one_modality_trains_on_its_posterior_mean(tmp_path):
    case = training("bogc", data=data_file(tmp_path, names=("image",)), bogc__warmup=0.0)
    assert found(case.stack, case.step())["image"].sources == ["fused"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fusion": "gated"}, "linear in the features"),
        ({"objective": "info_nce"}, "on features alone"),
        ({"unimodal": "none", "bogc__calibrate": "own"}, "leaves BOGC-MML no loss: there is only fused; choose all"),
    ],
)
def test_what_it_cannot_work_on_is_refused_when_it_is_switched_on(settings, sentence):
    case = training(**settings)
    with pytest.raises(InputError, match=sentence):
        case.toggle("bogc", True)


def test_losses_left_out_keep_their_gradients():
    problem = tiny.problem(heads=True)
    stack, view = at(problem, bogc(calibrate="fused"))
    assert {name: f.sources for name, f in found(stack, view).items()} == {"image": ["fused"], "text": ["fused"]}
    stack, own = at(problem, bogc(calibrate="own"))
    assert {name: f.sources for name, f in found(stack, own).items()} == {"image": ["image"], "text": ["text"]}
    # with equal weights and as many times as there are sources, each source gives the posterior mean of its gradient
    both = at(problem, bogc(power=0.0))[1]
    torch.testing.assert_close(view.grad + own.grad - view.grads.sum(0), both.grad)
    assert not torch.equal(view.grad, both.grad)


def test_sam_takes_both_gradients_calibrated():
    problem = tiny.problem(heads=True)
    _, (view,), stack = tiny.train(problem, [Sam(Sam.Params(rho=0.1)), bogc()], 1)
    _, plain = at(problem, bogc())
    theta = plain.theta.detach()
    sharp = theta + ascent(plain.grad.detach(), theta, 0.1, False)
    start = tiny.started(problem, [bogc()])[2]
    here = gradient(sharp, View(0, sharp, problem.batch(0), problem, Rng(7)), start)
    torch.testing.assert_close(view.grad, here.grad)
    assert not torch.equal(view.grad, plain.grad)


def test_accuracy_changes_are_booked_on_the_step_before():
    former = {"last": 0.5, "kind": "conflict", "conflict": [0, 0.0, 0.0], "other": [0, 0.0, 0.0]}
    for memory, rows in ((maths.no_changes(torch.zeros(1)), CHANGES), (former, CHANGES[1:])):
        for accuracy, conflict in rows:
            memory = maths.noted_change(memory, torch.tensor(accuracy), torch.tensor(conflict))
        found = maths.mean_changes(memory)
        assert found.keys() == {"conflict"} and memory["table"][1, 0] == 1
        check(*found["conflict"])
    assert maths.mean_changes(former) == {}


CHANGES = ((0.5, True), (0.75, False), (0.5, True), (0.75, True), (0.25, False))


def check(mean, error, n):
    assert n == 3
    changes = torch.tensor([0.25, 0.25, -0.5])
    assert mean == pytest.approx(float(changes.mean())) and error == pytest.approx(float(changes.std()) / 3**0.5)


def test_a_scaled_row_is_known_by_its_projection():
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(3, 50, generator=draw, dtype=torch.float64)
    raw[2] = 0
    grads = raw * torch.tensor([[0.3], [1.0], [5.0]], dtype=torch.float64)
    assert maths.kept_shares(grads, raw, [0, 1, 2], [slice(10, 40)]).tolist() == pytest.approx([0.3, 1.0, 1.0])


def test_smallest_cosine_leaves_out_rows_that_vanish():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    assert float(maths.smallest_cosine(rows)) == pytest.approx(-(0.5**0.5))
    assert math.isinf(maths.smallest_cosine(rows[:2]))


def test_cosines_of_vanishing_gradients_are_none_or_right_but_never_beyond_one():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 1000, generator=draw)
    for size in 10.0 ** torch.arange(-24, 1.0):
        found = float(maths.smallest_cosine(rows * torch.tensor([[1.0], [size]])))
        assert math.isinf(found) or found == pytest.approx(float(maths.smallest_cosine(rows)), abs=1e-5)
        told = float(calibration.cosines(rows[0] * size, rows[1:])[0])
        assert told == pytest.approx(float(maths.smallest_cosine(rows)), abs=1e-5)
        assert float(calibration.norms(rows[:1] * size)) == pytest.approx(float(size * rows[0].norm()), rel=1e-5)


def test_the_report_shows_what_was_done():
    problem = tiny.problem(heads=True)
    _, views, stack = tiny.train(problem, [bogc()], 10)
    records = {r.name: r for r in stack.methods["bogc"].report(views[-1])}
    f = found(stack, views[-1])["image"]
    values = {name: r.value for name, r in records.items() if r.kind == "scalar"}
    assert values["bogc/weight/image/fused"] + values["bogc/weight/image/image"] == pytest.approx(1)
    assert records["bogc/weight/image/fused"].error == pytest.approx(float(f.calibration.weights[0].std(correction=0)))
    assert values["bogc/precision/image/fused"] == pytest.approx(float(f.precision[0].log10().quantile(0.5)))
    assert values["bogc/precision_low/text/text"] < values["bogc/precision_high/text/text"]
    plain, g = f.moments.plain.sum(0).flatten(), f.gradient.flatten()
    assert values["bogc/cosine_to_sum/image"] == pytest.approx(float(F.cosine_similarity(plain, g, 0)))
    assert values["bogc/norm_ratio/image"] == pytest.approx(float(g.norm() / plain.norm()))
    rows = views[-1].raw_grads[:, problem.layout.slices["image"]]
    assert values["bogc/cosine/image"] == pytest.approx(float(F.cosine_similarity(rows[0], rows[1], 0)))
    table = records["bogc/precision_map/image"]
    assert table.rows.tolist() == ["fused", "image"] and (table.values[0, :-1] >= table.values[0, 1:]).all()
    assert all(r.mode and (r.n or r.name in ("bogc/jitters", "bogc/posterior_seconds")) for r in records.values())
    assert len({r.display.panel for r in records.values() if r.display.place is not None}) == 12
    assert records["bogc/sign_disagreement/image"].display.note == "There is no conflict mass in reading trust."


@pytest.mark.parametrize("reading", READINGS)
def test_the_chart_of_weights_says_which_reading_is_active(reading):
    _, views, stack = tiny.train(tiny.problem(heads=True), [bogc(reading=reading)], 2)
    records = {r.name: r for r in stack.methods["bogc"].report(views[-1])}
    for name in ("bogc/weight/image/fused", "bogc/weight/text/text"):
        assert records[name].display.note.startswith(READING_NOTES[reading])
        assert reading in records[name].mode and records[name].display.levels == {"equal": 0.5}
    beside = records["bogc/conflict/image"].display.panel == records["bogc/sign_disagreement/image"].display.panel
    assert beside == (reading == "signed"), "a mass that is always zero is folded"


def test_confident_trust_by_coordinate_damps_what_varies_and_says_so():
    knobs = {"reading": "confident_trust", "by_coordinate": True, "size": "norm"}
    run = training("bogc", unimodal="heads", width=32, bogc__warmup=0.0, **{f"bogc__{k}": v for k, v in knobs.items()})
    for _ in range(10):
        view = run.step()
    records = {r.name: r.value for r in run.stack.methods["bogc"].report(view) if r.kind == "scalar"}
    for name, f in found(run.stack, view).items():
        free, damped = maths.gains(f).tolist()
        assert free > 1 > damped
        assert records[f"bogc/gain/{name}/insensitive"] == pytest.approx(free)
        assert records[f"bogc/gain/{name}/sensitive"] == pytest.approx(damped)
        assert records[f"bogc/norm_ratio/{name}"] == pytest.approx(1)


def test_conflict_shortens_the_step_and_its_mass_is_shown():
    problem = tiny.problem(heads=True)
    (_, off), (stack, on) = (at(problem, bogc(conflict=c)) for c in (0.0, 1.0))
    rest = found(stack, on)
    assert any(f.calibration.conflict.max() > 0.05 for f in rest.values())
    for f in rest.values():
        kept = READINGS["trust"](f.moments.mean, f.evidence).parts.sum(0)
        torch.testing.assert_close(f.gradient, 2 * (1 - f.calibration.conflict) * kept)
    incoming = {n: f.gradient / len(on.batch) for n, f in rest.items()}
    shared, wanted = problem.layout.slices["shared"], through_encoders(on, incoming)
    wanted[shared] = on.raw_grads.sum(0)[shared]
    torch.testing.assert_close(on.grad, wanted)
    assert not torch.allclose(on.grad, off.grad, rtol=1e-3)
    records = {r.name: r for r in stack.methods["bogc"].report(on)}
    beside = records["bogc/sign_disagreement/image"].display
    assert records["bogc/conflict/image"].display.panel == beside.panel and not beside.note


def test_a_state_of_before_evidence_by_snr_goes_on():
    """Older checkpoints hold the same state; what an older configuration leaves out keeps evidence by precision."""
    old = {"methods": ["bogc"], "problem": "planted", "settings": {"bogc.size": "norm"}, "defaults": 2}
    assert RunConfig.from_json(old).settings["bogc.evidence"] == "relative"
    assert "bogc.evidence" not in RunConfig.from_json(old | {"defaults": DEFAULTS}).settings


class Unasked(TorchDispatchMode):
    """Refuses whatever needs a number of the device on the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("knobs", [{}, {"reading": "confident_trust", "by_coordinate": True, "size": "norm"}], ids=str)
@pytest.mark.parametrize("conflict", [0.0, 1.0])
def test_a_step_between_two_posteriors_asks_the_device_nothing(knobs, conflict):
    problem = tiny.problem(heads=True)
    state, optimizer, stack, rng = tiny.started(problem, [bogc(conflict=conflict, **knobs)])
    state, _ = train_step(state, problem, optimizer, stack, rng)
    with Unasked():
        after, view = train_step(state, problem, optimizer, stack, rng)
    assert not torch.equal(view.grad, view.raw_grads.sum(0))
    with Unasked(), pytest.raises(AssertionError, match="local_scalar"):
        bool(after.theta.sum() > 0)


def test_a_gradient_that_is_not_finite_is_handed_on_as_it_is():
    problem = tiny.problem(heads=True)
    stack, view = at(problem, bogc())
    rows = view.raw_grads.clone()
    rows[0, 3] = math.inf
    assert torch.equal(stack.methods["bogc"].fuse(rows, view), rows.sum(0))
