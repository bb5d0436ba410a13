"""ModalImmune leaves out, collapses, holds back and tunes as it says, and does nothing else."""

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from engine import networks, objectives
from engine.config import RunSettings
from engine.data import planted
from engine.knobs import InputError
from engine.layout import Layout
from engine.maths import collapse, immunity
from engine.maths.hypergrad import neumann
from engine.maths.krylov import Products
from engine.maths.omission import Omission
from engine.method import Method
from engine.methods.modalimmune import ModalImmune
from engine.problem import Multimodal
from engine.rng import Rng
from engine.step import train_step
from tests import tiny

NOW = {"warmup": 0, "ramp": 0}
NAMES = tuple(tiny.WIDTHS)


def knobs(**values):
    """Attacks from the first step on, no gate and no hyper-gradient unless asked for."""
    return ModalImmune.Params(**({"gate": "off", "meta_every": 0} | NOW | values))


def arms(stack) -> list[int]:
    """The arm of each step, the coming one included."""
    trace = stack.methods["modalimmune"].state["trace"]
    return trace[trace[:, 0] >= 0][:, 1].int().tolist()


def one_step(params, problem=None, steps=1, settings=None):
    """The last view, the method as it was in that step, and the problem."""
    problem = tiny.problem(heads=True) if problem is None else problem
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(params)], settings or tiny.sgd(0.1))
    for _ in range(steps):
        before = copy.copy(stack.methods["modalimmune"])
        state, view = train_step(state, problem, optimizer, stack, rng)
    return view, before, problem


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
    assert torch.equal(view.grads[1:], view.raw[1:])
    assert torch.equal(view.features["image"], view.clean["image"])


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
        features = method.features(view.clean, view.having(step=step))
        found.append((features[name] == 0).all(1).double().mean().item())
        other = next(other for other in NAMES if other != name)
        assert features[other] is view.clean[other]
        if step == 0:
            again = method.features(view.clean, view.having(step=step))
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
    without, full = omission.losses(problem.encode(theta, batch), NAMES, theta, batch)
    assert without[1] == full
    assert without[0] != full


@pytest.mark.parametrize("feedback", [0.0, 0.4])
def test_only_the_attacked_encoder_feels_the_collapse(feedback):
    view, method, problem = one_step(knobs(feedback=feedback, adaptive=False, collapse=0.5))
    row, where = view.grads[-1], problem.layout.slices[NAMES[method.state["arm"]]]
    assert row[where].abs().max() > 0
    outside = torch.ones(len(row), dtype=torch.bool)
    outside[where] = False
    assert row[outside].abs().max() == 0


def test_the_collapse_row_is_the_gradient_of_the_closed_form():
    params = knobs(adaptive=False, floor=0.0, clip=10.0, collapse=1e-3)
    view, method, problem = one_step(params)
    name = NAMES[method.state["arm"]]
    theta = view.theta.clone().requires_grad_()
    z = problem.encode(theta, view.batch)[name]
    zc = z - z.mean(0)
    scale = zc.detach().square().mean().sqrt()
    noise = view.rng.normal("modalimmune", view.step, z)
    values = torch.linalg.eigvalsh(zc.T @ zc / (len(z) - 1))
    wanted = 1e-3 * ((z - 0.5 * scale * noise).square().mean() / scale**2 + 0.1 * values.sum() / values[-1])
    assert view.losses["reg/modalimmune"].item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(view.grads[-1], torch.autograd.grad(wanted, theta)[0], atol=1e-8, rtol=1e-4)


def test_destruction_never_outweighs_learning():
    view, method, problem = one_step(knobs(collapse=10.0, adaptive=False, clip=0.5))
    where = problem.layout.slices[NAMES[method.state["arm"]]]
    assert view.raw[-1].norm() > view.grads[-1].norm()
    assert view.grads[-1].norm().item() == pytest.approx(0.5 * view.grads[:-1, where].sum(0).norm().item())


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
    along = omission.along(theta, "a", None, torch.tensor([0.0, 5.0, 0.0], dtype=torch.float64))
    assert along == pytest.approx(-1.0)


def test_the_gate_sees_the_block_of_the_encoder_that_is_attacked():
    problem = tiny.problem(batch=96)
    theta, batch, omission = problem.init(), problem.batch(0), Omission(problem, 0.5, neutral=False)
    dense = torch.autograd.functional.hessian(lambda at: omission.whole(at, "text", batch), theta)
    where = problem.layout.slices["text"]
    values = torch.linalg.eigvalsh(dense[where, where])
    smallest, largest, residual = omission.curvature(
        theta, "text", batch, problem.layout.mask("text"), 12, torch.Generator()
    )
    assert abs(values - smallest).min() <= residual + 1e-12
    assert smallest >= values[0] - 1e-12
    assert largest == pytest.approx(values[-1].item(), rel=1e-3)


def test_the_floor_stops_the_collapse():
    """Without it the scale goes to nothing; with it, one step's length below the floor."""
    scales = {}
    for floor in (0.0, 0.7):
        params = knobs(collapse=10.0, adaptive=False, floor=floor, share=0.0, explore=1.0, clip=10.0, feedback=0.0)
        state, views, stack = tiny.train(tiny.problem(batch=96), [ModalImmune(params)], 150, tiny.sgd(0.05))
        reference = stack.methods["modalimmune"].state["reference"]
        scales[floor] = (immunity.scales(views[-1].clean) / reference).min().item()
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
    state = immunity.fresh({name: torch.randn(4, 3) for name in NAMES}, torch.zeros(5)) | {"arm": 0}
    without, full = torch.tensor([0.5]), torch.tensor(1.0)
    for gain, moved in (("squared", True), ("signed", False)):
        change = immunity.paid(knobs(gain=gain), state, [0], without, full)
        assert bool(change["weights"].any()) == moved


def test_a_broken_loss_teaches_the_controller_nothing():
    state = immunity.fresh({name: torch.randn(4, 3) for name in NAMES}, torch.zeros(5)) | {"arm": 0}
    assert immunity.paid(knobs(), state, [0], torch.tensor([torch.nan]), torch.tensor(1.0)) == {}
    view, method, _ = one_step(ModalImmune.Params(**NOW, meta_every=1))
    nan = torch.full_like(view.raw, torch.nan)
    broken = {name: torch.tensor(torch.nan, dtype=torch.float64) for name in view.losses}
    features = {name: z * torch.nan for name, z in view.clean.items()}
    after = method.commit(view.having(raw=nan, grads=nan, losses=broken, clean=features, features=features))
    for key in ("weights", "reference", "offset"):
        assert torch.equal(after[key], method.state[key]), key


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


TUNED = {"meta_every": 3, "terms": 40, "damping": 0.3, "adaptive": False, "floor": 0.0}


def trained_loss(problem, view, method):
    """L_train(theta, (log λ, log κ)) written down afresh, its strength held as the method holds it."""
    name, p = NAMES[method.state["arm"]], method.params
    z = problem.encode(view.theta, view.batch)[name]
    noise, scale = view.rng.normal("modalimmune", view.step, z), collapse.rms(z)

    def loss(theta, logs):
        features = problem.encode(theta, view.batch)
        full, _ = problem.objectives(theta, features, view.batch)
        blind, _ = problem.objectives(theta, features | {name: torch.zeros_like(z)}, view.batch)
        weight = p.collapse * logs[0].exp()
        pull = (features[name] - p.target * scale * noise).square().mean() / scale**2
        ratio = collapse.spectral_ratio(features[name])
        others = sum(value for row, value in full.items() if row != "fused")
        main = (1 - p.share) * full["fused"] + p.share * blind["fused"] + others
        return main + weight * (pull + p.ratio * logs[1].exp() * ratio)

    return loss


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
@pytest.mark.parametrize("reading", ["ift", "literal"])
def test_the_closed_form_is_the_generic_mixed_derivative(matrix, reading):
    view, method, problem = one_step(knobs(matrix=matrix, reading=reading, **TUNED))
    method.params = knobs(matrix=matrix, reading=reading, **TUNED)
    found = method._hypergradient(NAMES[method.state["arm"]], view)
    loss = trained_loss(problem, view, method)
    theta, logs = view.theta.clone().requires_grad_(), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(theta, logs), theta, create_graph=True)
    (generic,) = torch.autograd.grad(grad @ found.series.solution, logs)
    factor = 1.0 if reading == "ift" else found.alpha
    torch.testing.assert_close(found.values, -factor * generic, atol=1e-13, rtol=1e-9)


def test_the_hessian_series_solves_the_system_of_the_trained_loss():
    view, method, problem = one_step(knobs(**TUNED), tiny.problem(batch=96))
    method.params = knobs(matrix="hessian", **(TUNED | {"terms": 0}))
    found = method._hypergradient(NAMES[method.state["arm"]], view)
    loss = trained_loss(problem, view, method)
    product = Products(lambda theta: loss(theta, torch.zeros(2, dtype=torch.float64)), view.theta)
    outer = Omission(problem, 0.5, neutral=False)
    theta = view.theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(outer.held_out(theta, method._outer(96, view)), theta)
    again = neumann(lambda v: product(v) + found.damping * v, g, found.alpha, 0)
    torch.testing.assert_close(found.series.residual, again.residual, atol=1e-10, rtol=1e-8)
    assert found.margin > 0


def test_the_certificate_holds_for_the_damped_gauss_newton_matrix():
    view, method, problem = one_step(knobs(**TUNED))
    name = NAMES[method.state["arm"]]
    method.params = knobs(**(TUNED | {"terms": 4}))
    short = method._hypergradient(name, view)
    method.params = knobs(**(TUNED | {"terms": 500}))
    exact = method._hypergradient(name, view)
    assert exact.certificate < 1e-6 * short.certificate
    assert ((short.values - exact.values).abs() <= short.errors + exact.errors).all()
    assert (short.series.solution - exact.series.solution).norm() <= short.certificate + exact.certificate


def test_certified_hyper_gradients_move_the_weights_and_the_rest_is_counted():
    _, _, stack = tiny.train(tiny.problem(), [ModalImmune(knobs(**TUNED))], 40)
    state = stack.methods["modalimmune"].state
    asked = 40 // 3
    assert int(state["accepted"].sum()) + state["counts"]["skipped"] == 2 * asked
    assert state["accepted"].sum() > 0
    assert torch.equal(state["offset"] != 0, state["accepted"] > 0)
    assert (state["offset"].abs() <= 0.2 * asked).all()
    uncertain = knobs(**(TUNED | {"terms": 0, "damping": 1e-4}))
    _, _, stack = tiny.train(tiny.problem(), [ModalImmune(uncertain)], 40)
    state = stack.methods["modalimmune"].state
    assert state["counts"]["skipped"] == 2 * asked
    assert not state["offset"].any()


def test_tuned_weights_stay_in_their_range():
    found = immunity.fresh({name: torch.randn(4, 3) for name in NAMES}, torch.zeros(5))
    assert immunity.weights(knobs(), found) == pytest.approx((0.02, 0.1))
    view, method, _ = one_step(knobs(**TUNED))
    gradient = method._hypergradient(NAMES[method.state["arm"]], view)
    for sign in (1.0, -1.0):
        pressed = dataclasses.replace(gradient, values=sign * torch.ones(2), errors=torch.zeros(2))
        state = found
        for _ in range(30):
            state = state | immunity.tuned(knobs(meta_lr=0.5), state, pressed)
        wanted = (1e-3, 1e-3) if sign > 0 else (0.5, 1.0)
        assert immunity.weights(knobs(), state) == pytest.approx(wanted)


@pytest.mark.parametrize("outer", ["val", "train"])
def test_resume_is_exact_with_hyper_gradients_and_gate(outer, tmp_path):
    params = ModalImmune.Params(**NOW, meta_every=4, gate_every=3, tau=10.0, outer=outer)
    case = tiny.problem(heads=True)
    through, _, whole = tiny.train(case, [ModalImmune(params)], 20)
    half, _, stack = tiny.train(case, [ModalImmune(params)], 11)
    torch.save(stack.methods["modalimmune"].state, tmp_path / "state.pt")
    again = ModalImmune(params, torch.load(tmp_path / "state.pt", weights_only=True))
    _, optimizer, rest, rng = tiny.started(case, [])
    rest = rest.having(again)
    for _ in range(9):
        half, _ = train_step(half, case, optimizer, rest, rng)
    assert torch.equal(half.theta, through.theta)
    assert torch.equal(again.state["offset"], whole.methods["modalimmune"].state["offset"])
    assert again.state["meta"]


def built(unique="2.0,1.0", rows=300, batch=64, change=None, **settings) -> Multimodal:
    """Planted evidence with the built-in networks; `change` acts on the data set."""
    data = planted.planted(planted.Params(unique=unique, rows=rows), Rng(0))
    data = data if change is None else change(data)
    own = RunSettings(**({"width": 8, "hidden": 12, "probe_rows": 16} | settings))
    build = lambda: networks.build(data, own)  # noqa: E731
    objective = objectives.build(own, data)
    return Multimodal("planted", "Planted", data.batches(), build, objective, Rng(0), batch=batch, micro=own.micro)


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
    state, views, stack = tiny.train(problem, [ModalImmune(knobs(gate="hessian"))], 12)
    for view, arm in zip(views, arms(stack), strict=False):
        assert bool(view.raw[-1].any()) == (NAMES[arm] == "image")


def test_the_state_does_not_grow():
    def size(steps):
        _, _, stack = tiny.train(tiny.problem(), [ModalImmune(ModalImmune.Params(**NOW, meta_every=2))], steps)
        state = stack.methods["modalimmune"].state
        return sum(v.numel() for v in state.values() if torch.is_tensor(v))

    assert size(3) == size(30)


def test_the_report_shows_what_the_state_holds():
    params = ModalImmune.Params(**NOW, meta_every=4, tau=10.0, gate_every=2)
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
    batch = views[-1].clean
    for name in NAMES:
        share = collapse.spectral_ratio(batch[name]).item() / collapse.most(batch[name])
        assert records[f"modalimmune/ratio/{name}"].value == pytest.approx(share)
        assert records[f"modalimmune/floor/{name}"].value > 0
        ratio = collapse.spectral_ratio(batch[name])
        top = collapse.most(batch[name])
        weight, kappa = immunity.weights(params, method.state)
        strength = weight * (ratio.item() - 1) / (top - 1)
        assert records[f"modalimmune/strength/{name}"].value == pytest.approx(strength)
        assert records[f"modalimmune/penalty/{name}"].value == pytest.approx(kappa * ratio.item())
        assert records[f"modalimmune/lambda_min/{name}"].error >= 0
        assert records[f"modalimmune/threshold/{name}"].value <= 0
    residual = records["modalimmune/residual"]
    assert residual.draw["ylog"]
    assert (residual.y > 0).all()
    certified = records["modalimmune/certified"]
    facts = method.state["meta"]
    assert certified.y[-1] == pytest.approx(facts["certificate"], rel=1e-6)
    for name in ("lambda", "kappa"):
        record = records[f"modalimmune/hypergradient/{name}"]
        assert "rigorous" in record.mode
        assert record.error == records[f"modalimmune/certificate/{name}"].value
    assert records["modalimmune/push/after"].value <= records["modalimmune/push/descent"].value * (1 + 1e-9)
    assert records["modalimmune/refused/skipped"].value == method.state["counts"]["skipped"]
