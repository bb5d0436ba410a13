"""InfoReg holds the leading encoder back while its trace grows, and does nothing else."""

import copy
import math

import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.records import Bars, Curve
from modalscape.engine.core.step import gradient, train_step
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities.unimodal import encoder
from modalscape.engine.methods.inforeg import fisher as maths
from modalscape.engine.methods.inforeg.method import InfoReg
from modalscape.engine.runtime.session import Training
from tests import tiny
from tests.test_method_contract import same

ALWAYS = {"when": "always", "period": 6}
PAPER = {"plain": 2, "smoothing": 1}
"""The paper's window: two plain periods, growth from one period to the next."""
SETTINGS = tiny.sgd(0.1, 0.9)


def inforeg(**knobs) -> InfoReg:
    return InfoReg(InfoReg.Params(**knobs))


def trained(problem, method, steps, settings=SETTINGS):
    """The thetas before each step and after the last, the views, and the method."""
    state, optimizer, stack, rng = tiny.started(problem, [method], settings)
    thetas, views = [state.theta], []
    for _ in range(steps):
        state, view = train_step(state, problem, optimizer, stack, rng)
        thetas.append(state.theta)
        views.append(view)
    return thetas, views, stack.methods["inforeg"]


# --- the trace


@pytest.mark.parametrize("heads", [False, True])
def test_the_recorded_trace_is_the_mean_over_the_periods_batches(heads):
    problem = tiny.problem(heads=heads)
    _, views, method = trained(problem, inforeg(period=4), 9)
    traces, places = method.state["traces"][-2:].tolist(), method.state["places"]
    assert places == [[0, 4], [4, 8]] and not method.state["traces"][:-2].any()
    for (start, end), row in zip(places, traces, strict=True):
        grads = [view.raw_grads.sum(0) for view in views[start:end]]
        for name, value in zip(problem.modalities, row, strict=True):
            where = problem.layout.slices[name]
            assert value == pytest.approx(sum(float(g[where].square().sum()) for g in grads) / 4)


def test_the_trace_is_taken_before_the_pull_and_in_the_codes_form_after():
    problem = tiny.problem()
    for knobs, attribute in ((ALWAYS, "raw_grads"), (ALWAYS | {"trace": "weights"}, "grads")):
        _, views, method = trained(problem, inforeg(**knobs, strength=3.0), 6)
        weigh = maths.weight_squares if attribute == "grads" else None
        rows = [getattr(view, attribute).sum(0) for view in views]
        spans = [encoder(problem.layout, name) for name in problem.modalities]
        found = [weigh(g, problem.layout, problem.modalities) if weigh else maths.squares(g, spans) for g in rows]
        assert method.state["traces"][-1].tolist() == pytest.approx((sum(found) / 6)[:-1].tolist())


def test_the_sample_trace_is_taken_on_the_probe_rows_when_a_period_ends():
    problem = tiny.problem()
    thetas, views, method = trained(problem, inforeg(period=3, trace="samples", rows=10), 3)
    probe, total = problem.probe_batch(), torch.zeros(2, dtype=torch.float64)
    for i in range(10):
        row = torch.func.grad(problem.loss)(views[-1].theta, probe.rows(slice(i, i + 1)))
        total += torch.stack([row[problem.layout.slices[name]].square().sum() for name in problem.modalities])
    assert method.state["traces"][-1].tolist() == pytest.approx((total / 10).tolist())


def test_a_change_of_estimate_starts_the_record_anew():
    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [inforeg(period=2)], SETTINGS)
    for step in range(12):
        if step == 8:
            stack = stack.having(stack.methods["inforeg"].tuned("trace", "weights"))
        state, _ = train_step(state, problem, optimizer, stack, rng)
    state = stack.methods["inforeg"].state
    assert state["periods"] == len(state["places"]) == 2
    assert not state["traces"][:-2].any() and (state["traces"][-2:] > 0).all() and not state["opened"][:-2].any()


# --- the pull


@pytest.mark.parametrize("heads", [False, True])
def test_the_pull_is_the_gradient_of_the_penalty_on_the_leading_encoder_alone(heads):
    problem = tiny.problem(heads=heads)
    thetas, views, method = trained(problem, inforeg(**ALWAYS), 6)
    slices, pulls = problem.layout.slices, 0
    for step, view in enumerate(views):
        logits = {name: value.detach() for name, value in _alone(view).items()}
        score = {name: logits[name].softmax(-1)[range(len(view.batch)), view.batch.y].mean() for name in logits}
        leader, behind = sorted(score, key=score.get, reverse=True)
        alpha = math.exp(0.9 * math.tanh(float(score[leader] - score[behind])))
        w = thetas[step].clone().requires_grad_()
        penalty = alpha / 2 * (w - thetas[0])[slices[leader]].square().sum()
        (expected,) = torch.autograd.grad(penalty, w)
        torch.testing.assert_close((view.grads - view.raw_grads)[0], expected, rtol=0, atol=1e-13)
        assert torch.equal(view.grads[1:], view.raw_grads[1:])
        for part in (behind, "shared"):
            assert torch.equal(view.grads[:, slices[part]], view.raw_grads[:, slices[part]])
        pulls += bool(expected.abs().max() > 0)
    assert torch.equal(views[0].grads, views[0].raw_grads)
    assert pulls == 5


def _alone(view):
    if set(view.problem.modalities) <= view.logits.keys():
        return {name: view.logits[name] for name in view.problem.modalities}
    zero = {name: torch.zeros_like(value) for name, value in view.features.items()}
    call = lambda name: view.problem.objectives(view.theta, zero | {name: view.features[name]}, view.batch)  # noqa: E731
    return {name: call(name)[1]["fused"] for name in view.problem.modalities}


def test_the_first_batch_of_every_period_adds_exactly_nothing():
    _, views, _ = trained(tiny.problem(), inforeg(**ALWAYS), 20)
    same = [torch.equal(view.grads, view.raw_grads) for view in views]
    assert [step for step, value in enumerate(same) if value] == [0, 6, 12, 18]


@pytest.mark.parametrize(
    "knobs", [{"threshold": 1.0}, {"margin": 10.0, "when": "always"}, {"period": 1, "when": "always"}]
)
def test_where_nothing_may_be_pulled_training_is_the_same_to_the_last_bit(knobs):
    off, _, _ = tiny.train(tiny.problem(), [], 30, SETTINGS)
    on, _, _ = tiny.train(tiny.problem(), [inforeg(**knobs)], 30, SETTINGS)
    assert torch.equal(on.theta, off.theta)


def test_drift_under_sam_is_that_of_the_weights_and_not_of_the_perturbed_point():
    from modalscape.engine.methods.sam import Sam

    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [inforeg(**ALWAYS), Sam(Sam.Params(rho=0.5))], SETTINGS)
    start = state.theta
    for _ in range(4):
        state, _ = train_step(state, problem, optimizer, stack, rng)
    torch.testing.assert_close(stack.methods["inforeg"].state["drift"], state.theta - start, rtol=0, atol=1e-14)


def test_regularisers_neither_enter_the_trace_nor_get_the_pull():
    problem = tiny.problem(heads=True)
    state, optimizer, stack, rng = tiny.started(problem, [inforeg(**ALWAYS)], SETTINGS)
    for _ in range(3):
        state, view = train_step(state, problem, optimizer, stack, rng)
    method = stack.methods["inforeg"]
    rows = torch.cat([torch.ones_like(view.raw_grads[:1]), view.raw_grads])
    with_reg = view.having(losses={"reg/other": torch.zeros(())} | view.losses, raw_grads=rows)
    changed = method.gradients(rows, with_reg)
    assert torch.equal(changed[0], rows[0])
    assert not torch.equal(changed[1], rows[1])
    before = method.commit(view)["squares"]
    torch.testing.assert_close(method.commit(with_reg)["squares"], before)


def test_the_answer_that_commit_reuses_belongs_to_the_rows_it_is_asked_for():
    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [inforeg(**ALWAYS)], SETTINGS)
    for _ in range(3):
        state, view = train_step(state, problem, optimizer, stack, rng)
    method = stack.methods["inforeg"]
    fresh = InfoReg(method.params, method.state)
    elsewhere = gradient(state.theta + 0.5, view, tiny.Stack([method]))
    assert not torch.equal(elsewhere.raw_grads, view.raw_grads)
    assert torch.equal(method.commit(view)["alpha"], fresh.commit(view)["alpha"])


# --- periods, knobs and refusals


def test_a_period_of_none_is_an_epoch_of_the_problem():
    _, _, method = trained(tiny.problem(batch=16), inforeg(), 13)
    assert method.state["places"] == [[0, 6], [6, 12]]


def test_switched_on_in_the_middle_it_starts_afresh():
    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [], SETTINGS)
    for _ in range(5):
        state, view = train_step(state, problem, optimizer, stack, rng)
    method = inforeg(period=4)
    method.state = method.init(view)
    stack = stack.having(method)
    for _ in range(4):
        state, _ = train_step(state, problem, optimizer, stack, rng)
    assert stack.methods["inforeg"].state["places"] == [[5, 9]]


def planted(unique="3,1.5", steps=12, methods=("inforeg",), **settings) -> Training:
    given = {"planted.unique": unique, "planted.rows": 160, "optimizer.name": "sgd", "optimizer.lr": 0.05, "width": 8}
    given |= {"hidden": 16} | {key.replace("__", "."): value for key, value in settings.items()}
    config = RunConfig(problem="planted", methods=methods, steps=steps, device="cpu", settings=given)
    return Training(validated(config, catalog()))


@pytest.mark.parametrize("unimodal", ["none", "heads", "slices"])
@pytest.mark.parametrize("unique", ["3,1.5", "3,2,1", ",".join(["2"] * 10)])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_it_trains_with_two_to_ten_modalities(unique, unimodal, preset):
    run = planted(unique, unimodal=unimodal, inforeg__when="always", inforeg__period=4, inforeg__preset=preset)
    for _ in range(9):
        view = run.step()
    assert torch.isfinite(run.state.theta).all()
    method = run.stack.methods["inforeg"]
    assert len(list(method.report(view))) > 10
    assert float((method.state["alpha"] > 0).sum()) >= 1


def test_with_three_modalities_all_but_the_weakest_are_pulled():
    run = planted("3,2,1", inforeg__when="always", inforeg__period=4)
    for _ in range(7):
        view = run.step()
    changed = {
        m: bool((view.grads - view.raw_grads)[0, where].abs().max() > 0)
        for m, where in run.problem.layout.slices.items()
    }
    score = maths.scores(_alone(view), view.batch.y, "mean").tolist()
    weakest = run.problem.modalities[score.index(min(score))]
    assert [name for name, value in changed.items() if not value] == [weakest, "shared"]


def test_a_head_of_a_modality_is_never_regulated():
    run = planted(unimodal="heads", inforeg__when="always", inforeg__period=8)
    for _ in range(5):
        view = run.step()
    touched = {
        name
        for name, block in run.problem.layout.blocks((view.grads - view.raw_grads)[0]).items()
        if block.abs().max() > 0
    }
    assert touched and all(name.startswith("encoders.") for name in touched)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_accumulated_batches_train_as_whole_ones_do(preset):
    knobs = ALWAYS | {"preset": preset}
    whole = tiny.train(tiny.problem(heads=True), [inforeg(**knobs)], 12, SETTINGS)[0]
    pieces = tiny.train(tiny.problem(heads=True, micro=5), [inforeg(**knobs)], 12, SETTINGS)[0]
    torch.testing.assert_close(pieces.theta, whole.theta, rtol=1e-9, atol=1e-12)


def test_a_batch_of_one_trains():
    state, _, _ = tiny.train(tiny.problem(batch=1), [inforeg(**ALWAYS)], 12, tiny.sgd(0.01))
    assert torch.isfinite(state.theta).all()


def test_a_dead_modality_is_never_the_one_held_back():
    problem = tiny.problem()
    for rows in problem.rows.values():
        rows.x["text"].zero_()
    run = trained(problem, inforeg(**ALWAYS), 60)
    assert torch.isfinite(run[0][-1]).all()
    assert run[2].state["last"]["sums"][:, -1].tolist() == [6, 0]


def test_numbers_that_are_not_finite_pull_nothing_and_open_nothing():
    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [inforeg(**ALWAYS)], SETTINGS)
    state, view = train_step(state, problem, optimizer, stack, rng)
    method = stack.methods["inforeg"]
    broken = {name: torch.full_like(value, math.nan) for name, value in view.features.items()}
    nan = view.having(features=broken, raw_grads=view.raw_grads.clone())
    assert torch.equal(method.gradients(nan.raw_grads, nan), nan.raw_grads)


def test_one_modality_or_no_classes_is_refused_with_a_sentence():
    problem = tiny.problem()
    view = tiny.train(problem, [], 1)[1][0]
    numbers = view.having(batch=Batch(view.batch.x, view.batch.y.double()))
    problem.objectives = lambda theta, features, batch: ({}, {"fused": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="no classes"):
        inforeg().init(numbers)
    problem.modalities = ("image",)
    with pytest.raises(InputError, match="has only 'image'"):
        inforeg().init(view)


def test_contrastive_training_is_refused_when_it_is_switched_on():
    run = planted(methods=(), objective="info_nce")
    with pytest.raises(InputError, match="no classes; turn it off"):
        run.toggle("inforeg", True)


# --- memory and report


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(maths, "KEPT", 12)
    _, _, method = trained(tiny.problem(), inforeg(period=2), 40)
    assert [len(method.state[key]) for key in ("traces", "places", "opened")] == [12, 12, 12]
    assert method.state["periods"] == 20
    size = sum(v.numel() for v in method.state.values() if torch.is_tensor(v))
    assert size < 2 * tiny.problem().layout.size + 4 * 12 + 30


def test_the_report_marks_the_window_and_says_who_is_held_back():
    problem = tiny.problem()
    _, views, method = trained(problem, inforeg(**ALWAYS, **PAPER), 31)
    before = copy.deepcopy(method.state)
    records = {record.name: record for record in method.report(views[-1])}
    assert same(method.state, before)
    for name in tiny.WIDTHS:
        assert records[f"inforeg/window/{name}"].value in (0.0, 1.0)
        curve = records[f"inforeg/traces/{name}"]
        assert isinstance(curve, Curve) and curve.x.tolist() == [6, 12, 18, 24, 30]
        opened = method.state["opened"][-5:, list(tiny.WIDTHS).index(name)].tolist()
        shaded = lambda step, curve=curve: any(a <= step < b for a, b in curve.display.spans)  # noqa: E731
        assert [shaded(6 * i + 3) for i in range(5)] == opened
        assert records[f"inforeg/fisher_trace/{name}"].value == curve.y[-1]
        alpha, gap = (records[f"inforeg/{path}/{name}"].value for path in ("alpha", "gap"))
        assert (alpha > 0) == (gap > 0)
    assert method.state["opened"][-5:].any() and not method.state["opened"][-5:].all()
    held = records["inforeg/held_back"]
    assert isinstance(held, Bars) and float(held.values.sum()) == pytest.approx(1.0)
    shares = [records[f"inforeg/trace_share/{name}"].value for name in tiny.WIDTHS]
    assert sum(shares) == pytest.approx(1.0)
    assert records["inforeg/fisher_trace/network"].value > sum(
        records[f"inforeg/fisher_trace/{m}"].value for m in tiny.WIDTHS
    )


def test_the_report_says_when_the_window_never_opened_or_cannot_act():
    problem = tiny.problem()
    _, views, method = trained(problem, inforeg(threshold=1.0), 30, tiny.sgd(0.001))
    records = {record.name: record for record in method.report(views[-1])}
    assert "never open in 5 periods" in records["inforeg/window/image"].mode
    assert "lengthen the period" in records["inforeg/room"].mode
    _, views, method = trained(problem, inforeg(period=1), 3)
    records = {record.name: record for record in method.report(views[-1])}
    assert "period of one step" in records["inforeg/window/image"].mode
