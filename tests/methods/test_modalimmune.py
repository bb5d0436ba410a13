"""ModalImmune leaves out, collapses and chooses as it says, and does nothing else."""

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from modalscape.engine.core.method import Method
from modalscape.engine.core.problem import Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import looked, train_step
from modalscape.engine.methods.modalimmune import collapse, memory
from modalscape.engine.methods.modalimmune.method import ModalImmune
from modalscape.engine.methods.modalimmune.omission import FILLS, OMISSIONS, Omission
from tests import tiny
from tests.methods.immune import NAMES, NOW, arms, built, knobs, one_step


def losses_and_rows(problem, view, name):
    """L_full's and L_without's gradients, from the definition."""
    found = []
    for blind in (False, True):
        theta = view.theta.detach().clone().requires_grad_()
        features = problem.encode(theta, view.batch)
        if blind:
            features = features | {name: torch.zeros_like(features[name])}
        loss = problem.objectives(theta, features, view.batch)[0]["fused"]
        found.append(torch.autograd.grad(loss, theta)[0])
    return found


def test_the_fused_row_is_the_mixture_of_both_losses():
    view, method, problem = one_step(knobs(collapse=0.0, share=0.3))
    full, without = losses_and_rows(problem, view, NAMES[method.state["arm"]])
    torch.testing.assert_close(view.grads[0], 0.7 * full + 0.3 * without, atol=1e-14, rtol=1e-12)
    assert torch.equal(view.grads[1:-1], view.raw_grads[1:-1])
    assert not view.grads[-1].any()
    assert torch.equal(view.features["image"], view.clean_features["image"])


@pytest.mark.parametrize("micro", [0, 5])
@pytest.mark.parametrize("values", [{}, {"feedback": 0.4}, {"collapse": 0.0}, {"share": 1.0, "clip": 0.3}])
def test_one_backward_pass_finds_what_two_find(values, micro):
    """The gradient without a modality rides on the row of the collapse, where the two cannot meet."""
    together, apart = [], []
    for found, own in ((together, True), (apart, False)):
        problem = tiny.problem(heads=True, micro=micro)
        state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(knobs(**({"adaptive": False} | values)))])
        method = stack.methods["modalimmune"]
        assert method.state["apart"].all()
        method.state["apart"] = torch.full((2,), own)
        for _ in range(6):
            state, view = train_step(state, problem, optimizer, stack, rng)
            found.append(view.grads)
    for one, two in zip(together, apart, strict=True):
        torch.testing.assert_close(one, two, atol=1e-13, rtol=1e-10)


class Gated(tiny.Trunk):
    """A factor of the modality's own behind the fusion: what is left out leaves a path to its parameters."""

    def __init__(self):
        super().__init__(4, False)
        self.own = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(3)) for name in NAMES})

    def forward(self, features):
        return {"fused": super().forward(features)["fused"] + sum(self.own.values())}


class GatedNet(tiny.Net):
    def __init__(self):
        super().__init__(False)
        self.trunk = Gated()

    def part_of(self, name):
        return name.split(".")[-1] if ".own." in name else super().part_of(name)


def test_where_the_two_gradients_may_meet_they_are_found_apart():
    case = tiny.problem()
    problem = Multimodal(
        "gated", "Gated", case.rows, lambda: GatedNet().double(), tiny.CrossEntropy(), Rng(0), batch=16
    )
    view, method, _ = one_step(knobs(), problem)
    assert not method.state["apart"].any()
    full, without = losses_and_rows(problem, view, NAMES[method.state["arm"]])
    torch.testing.assert_close(view.grads[0], 0.5 * full + 0.5 * without, atol=1e-14, rtol=1e-12)


def test_pieces_give_the_same_mixture_as_the_whole_batch():
    rows = []
    for micro in (0, 5):
        view, method, _ = one_step(knobs(collapse=0.0), tiny.problem(heads=True, micro=micro))
        rows.append((view.grads, method.state["arm"]))
    assert rows[0][1] == rows[1][1]
    torch.testing.assert_close(rows[0][0], rows[1][0], atol=1e-12, rtol=1e-10)


class Dropper(Method):
    """Zeroes the features of a listed modality at each step: ModDrop for whole batches."""

    name, title = "dropper", "Dropper"

    @dataclass(frozen=True)
    class Params:
        arms: tuple = ()

    def features(self, features, view):
        name = NAMES[self.params.arms[view.step]]
        return features | {name: torch.zeros_like(features[name])}


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize(
    "values",
    [{"gate": gate} for gate in collapse.GATES]
    + [{"omission": omission, "fill": fill} for omission in OMISSIONS for fill in FILLS]
    + [{"controller": "hedge"}, {"adaptive": False, "floor": 0.0}, {"matrix": "hessian", "reading": "literal"}],
    ids=str,
)
def test_the_neutral_dose_is_off_bit_by_bit_whatever_else_is_chosen(values, heads):
    """With attacks drawn from the first step on: a neutral dose that never acted would prove nothing."""
    params = ModalImmune.Params(**NOW, gate_every=2, meta_every=2, **ModalImmune.neutral, **values)
    off, _, _ = tiny.train(tiny.problem(heads=heads), [], 8)
    neutral, _, stack = tiny.train(tiny.problem(heads=heads), [ModalImmune(params)], 8)
    assert all(arm >= 0 for arm in arms(stack))
    assert torch.equal(neutral.theta, off.theta)


@pytest.mark.parametrize(("omission", "exact"), [("batch", True), ("rows", True), ("mixture", False)])
def test_omission_alone_is_batch_wise_moddrop(omission, exact):
    params = knobs(collapse=0.0, share=1.0, controller="uniform", omission=omission)
    found, _, stack = tiny.train(tiny.problem(), [ModalImmune(params)], 30)
    assert len(set(arms(stack))) == 2
    dropped, _, _ = tiny.train(tiny.problem(), [Dropper(Dropper.Params(tuple(arms(stack))))], 30)
    if exact:
        assert torch.equal(found.theta, dropped.theta)
    torch.testing.assert_close(found.theta, dropped.theta, atol=1e-12, rtol=1e-10)


def test_a_share_of_the_rows_is_left_out():
    problem, share, found = tiny.problem(batch=96), 0.3, []
    for step in range(60):
        _, method, _ = one_step(knobs(share=share, omission="rows"), problem)
        view, _, _ = one_step(knobs(share=share, omission="rows"), problem)
        name = NAMES[method.state["arm"]]
        features = method.features(view.clean_features, view.having(step=step))
        found.append((features[name] == 0).all(1).double().mean().item())
        other = next(other for other in NAMES if other != name)
        assert features[other] is view.clean_features[other]
        if step == 0:
            again = method.features(view.clean_features, view.having(step=step))
            assert torch.equal(again[name], features[name])
    assert np.mean(found) == pytest.approx(share, abs=5 * (share * (1 - share) / (60 * 96)) ** 0.5)


def test_what_is_left_out_cannot_be_seen():
    problem = tiny.problem()
    theta, batch = problem.init(), problem.batch(0)
    omission = Omission(problem, 0.5, neutral=False)
    other = dataclasses.replace(batch, x=batch.x | {"text": torch.randn_like(batch.x["text"])})
    values = [omission.loss(problem.encode(theta, b), "text", theta, b) for b in (batch, other)]
    assert torch.equal(*values)
    neutral = Omission(problem, 0.5, neutral=True)
    values = [neutral.loss(problem.encode(theta, b), "text", theta, b) for b in (batch, other)]
    torch.testing.assert_close(*values, atol=1e-15, rtol=0)
    alone = problem.encode(theta, problem.without(batch, "text"))
    torch.testing.assert_close(values[0], problem.objectives(theta, alone, batch)[0]["fused"], atol=1e-14, rtol=0)


def test_a_modality_that_the_fusion_ignores_earns_nothing():
    problem = tiny.problem()
    named = {name: value.clone() for name, value in problem.layout.unpack(problem.init()).items()}
    named["trunk.fused.weight"][:, 4:] = 0
    theta, batch = problem.layout.pack(named), problem.batch(0)
    omission = Omission(problem, 0.5, neutral=False)
    features = problem.encode(theta, batch)
    without, full = (
        omission.losses(features, NAMES, theta, batch),
        problem.objectives(theta, features, batch)[0]["fused"],
    )
    assert without[1] == full
    assert without[0] != full


def three(batch=16, micro=0, **others):
    """Three modalities with the built-in networks, in float64, and the view of a first attack."""
    problem = built("1,1,1", batch=batch, micro=micro, double=True)
    view, method, _ = one_step(knobs(**others), problem)
    return view, method, problem


def left(view, method, problem):
    """The fused loss's gradient where the rows keep what `memory.kept` says, written down afresh."""
    kept = memory.kept(method.params, method.state["arm"], view)
    theta = view.theta.detach().clone().requires_grad_()
    features = problem.encode(theta, view.batch)
    features = {name: z * kept[:, m : m + 1] for m, (name, z) in enumerate(features.items())}
    return torch.autograd.grad(problem.objectives(theta, features, view.batch)[0]["fused"], theta)[0], kept


@pytest.mark.parametrize("micro", [0, 5])
@pytest.mark.parametrize("own", [True, False])
def test_in_the_loss_without_one_the_others_are_missing_too(micro, own):
    """Against the gradient of zeroed features, on the row of the collapse and by itself, in pieces and whole."""
    problem = built("1,1,1", batch=16, micro=micro, double=True)
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(knobs(others=0.5, share=0.4))])
    method = stack.methods["modalimmune"]
    method.state["apart"] = torch.full((3,), own)
    view = looked(state, problem, optimizer, stack, rng)[0]
    without, kept = left(view, method, problem)
    theta = view.theta.clone().requires_grad_()
    features = problem.encode(theta, view.batch)
    full = torch.autograd.grad(problem.objectives(theta, features, view.batch)[0]["fused"], theta)[0]
    torch.testing.assert_close(view.grads[0], 0.6 * full + 0.4 * without, atol=1e-13, rtol=1e-10)
    assert kept.any(1).all() and not kept[:, method.state["arm"]].any()
    assert (kept.sum(1) == 1).any() and (kept.sum(1) == 2).any()


@pytest.mark.parametrize("omission", OMISSIONS)
def test_of_two_modalities_no_other_is_missing_bit_by_bit(omission):
    found = [
        tiny.train(tiny.problem(), [ModalImmune(knobs(others=others, omission=omission))], 12)[0].theta
        for others in (0.0, 0.5, 1.0)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_where_rows_lose_one_they_lose_others_as_well():
    view, method, problem = three(batch=64, omission="rows", share=0.5, others=0.5)
    features = method.features(view.clean_features, view)
    gone = torch.stack([(z == 0).all(1) for z in features.values()], 1)
    attacked, kept = method.state["arm"], memory.kept(method.params, method.state["arm"], view)
    out = gone[:, attacked]
    assert 0 < out.sum() < 64
    assert torch.equal(gone[out], ~kept[out]) and not gone[~out].any()


@pytest.mark.parametrize("micro", [0, 10])
def test_how_many_are_missing_is_reported_as_drawn_and_as_expected(micro):
    """Over 60 steps of 64 rows their mean is 1 + 2(p - p²/2), within five standard errors."""
    problem = built("1,1,1", batch=64, micro=micro)
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(knobs(others=0.3))])
    found = []
    for _ in range(60):
        method = copy.copy(stack.methods["modalimmune"])
        state, view = train_step(state, problem, optimizer, stack, rng)
        records = {r.name: r for r in stack.methods["modalimmune"].report(view)}
        kept = memory.kept(method.params, method.state["arm"], view)
        assert records["modalimmune/missing"].value == pytest.approx((~kept).sum(1).double().mean().item())
        found.append(records["modalimmune/missing"].value)
    expected = records["modalimmune/missing_expected"].value
    assert expected == pytest.approx(1 + 2 * (0.3 - 0.3**2 / 2))
    assert np.mean(found) == pytest.approx(expected, abs=5 * np.std(found) / 60**0.5)
    _, _, stack = tiny.train(problem, [ModalImmune(knobs(share=0.0))], 2)
    assert not any("missing" in r.name for r in stack.methods["modalimmune"].report(view))


@pytest.mark.parametrize("neutral", [False, True])
def test_what_rows_lose_beside_the_attacked_one_is_filled_alike(neutral):
    view, method, problem = three()
    kept = memory.kept(method.params, method.state["arm"], view)
    name = problem.modalities[method.state["arm"]]
    features = Omission(problem, 0.5, neutral, kept).features(view.clean_features, name, view.theta, view.batch)
    blank = view.batch
    for modality in problem.modalities:
        blank = problem.without(blank, modality)
    blank = problem.encode(view.theta, blank)
    for m, (modality, z) in enumerate(features.items()):
        stands = blank[modality] if neutral else torch.zeros_like(z)
        wanted = torch.where(kept[:, m : m + 1], view.clean_features[modality], stands)
        torch.testing.assert_close(z, wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("feedback", [0.0, 0.4])
def test_only_the_attacked_encoder_feels_the_collapse(feedback):
    view, method, problem = one_step(knobs(feedback=feedback, adaptive=False, collapse=0.5))
    row, where = view.grads[-1], problem.layout.slices[NAMES[method.state["arm"]]]
    assert row[where].abs().max() > 0
    outside = torch.ones(len(row), dtype=torch.bool)
    outside[where] = False
    assert row[outside].abs().max() == 0


@pytest.mark.parametrize("pull", collapse.PULLS)
def test_the_collapse_row_is_the_gradient_of_the_closed_form(pull):
    params = knobs(adaptive=False, floor=0.0, clip=10.0, collapse=1e-3, pull=pull, ratio=0.1)
    view, method, problem = one_step(params)
    name = NAMES[method.state["arm"]]
    theta = view.theta.clone().requires_grad_()
    z = problem.encode(theta, view.batch)[name]
    zc = z - z.mean(0)
    scale = zc.detach().square().mean().sqrt()
    noise = view.rng.normal("modalimmune", view.step, z)
    values = torch.linalg.eigvalsh(zc.T @ zc / (len(z) - 1))
    if pull == "rows":
        term = (zc - 0.5 * scale * noise).square().sum(1).mean() / values[-1].detach()
    else:
        term = (z - 0.5 * scale * noise).square().mean() / scale**2
    wanted = 1e-3 * (term + 0.1 * values.sum() / values[-1])
    assert view.losses["reg/modalimmune"].item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(view.grads[-1], torch.autograd.grad(wanted, theta)[0], atol=1e-8, rtol=1e-4)


def test_destruction_never_outweighs_learning():
    view, method, problem = one_step(knobs(collapse=10.0, adaptive=False, clip=0.5))
    where = problem.layout.slices[NAMES[method.state["arm"]]]
    assert view.raw_grads[-1, where].norm() > view.grads[-1].norm()
    assert view.grads[-1].norm().item() == pytest.approx(0.5 * view.grads[:-1, where].sum(0).norm().item())


def test_the_floor_stops_the_collapse():
    """Without it the scale goes to nothing; with it, one step's length below the floor."""
    scales = {}
    for floor in (0.0, 0.7):
        params = knobs(collapse=10.0, adaptive=False, floor=floor, share=0.0, explore=1.0, clip=10.0, feedback=0.0)
        state, views, stack = tiny.train(tiny.problem(batch=96), [ModalImmune(params)], 150, tiny.sgd(0.05))
        reference = stack.methods["modalimmune"].state["reference"]
        now = torch.stack([collapse.rms(z) for z in views[-1].clean_features.values()])
        scales[floor] = (now / reference).min().item()
        if floor:
            assert stack.methods["modalimmune"].state["counts"]["floor"] > 0
    assert scales[0.0] < 0.35
    assert scales[0.7] > 0.55


def test_the_controller_finds_the_modality_that_the_prediction_leans_on():
    problem = built("3.0,0.2", batch=128)
    for controller in ("exp3", "hedge"):
        params = knobs(collapse=0.0, controller=controller, share=0.0)
        _, _, stack = tiny.train(problem, [ModalImmune(params)], 250, tiny.sgd(0.1, 0.9))
        weights = stack.methods["modalimmune"].state["weights"]
        assert weights[0] > weights[1] + 1.0, controller


def test_squared_gains_pay_for_help_by_absence_and_signed_ones_do_not():
    state = memory.fresh({name: torch.randn(4, 3) for name in NAMES}, torch.zeros(5), torch.ones(2).bool()) | {"arm": 0}
    for gain, moved in (("squared", True), ("signed", False)):
        change = memory.paid(knobs(gain=gain), state, [0], [0.5], 1.0)
        assert bool(change["weights"].any()) == moved


def test_the_same_seed_draws_the_same_arms():
    runs = [tiny.train(tiny.problem(), [ModalImmune(ModalImmune.Params(**NOW))], 25)[2] for _ in range(2)]
    assert arms(runs[0]) == arms(runs[1])
    assert set(arms(runs[0])) == {0, 1}


def test_no_attack_before_the_warm_up_ends_wherever_it_is_switched_on():
    params = ModalImmune.Params(warmup=6, ramp=0, meta_every=0)
    state, optimizer, stack, rng = tiny.started(tiny.problem(), [])
    for _ in range(10):
        state, view = train_step(state, tiny.problem(), optimizer, stack, rng)
    method = ModalImmune(params)
    method.state = method.init(view)
    stack = stack.having(method)
    for _ in range(12):
        state, _ = train_step(state, tiny.problem(), optimizer, stack, rng)
    assert [arm >= 0 for arm in arms(stack)] == [False] * 6 + [True] * 7
