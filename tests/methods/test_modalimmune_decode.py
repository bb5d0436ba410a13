"""The decoder term of ModalImmune: what it adds and where, that it is off unless asked for, and what it does."""

import pytest
import torch

from modalscape.engine.core.probe import Snapshot
from modalscape.engine.core.problem import Batch, Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import gradient, train_step
from modalscape.engine.methods.modalimmune import decoders
from modalscape.engine.methods.modalimmune.method import ModalImmune
from modalscape.engine.probes.reconstruction import Reconstruction
from tests import tiny
from tests.methods.immune import NAMES, arms, knobs, one_step
from tests.tiny import WIDTHS

DECODE = 0.7


def slope(problem, view, method):
    """The gradient (P,) of the term by itself, from its definition."""
    theta = view.theta.detach().clone().requires_grad_()
    found = decoders.term(problem.encode(theta, view.batch), method.state["decoders"], method.state["arm"])
    return found.item(), DECODE * torch.autograd.grad(found, theta)[0]


@pytest.mark.parametrize("micro", [0, 5])
def test_the_row_is_the_term_and_touches_only_the_encoders_that_are_not_attacked(micro):
    params = knobs(collapse=0.0, share=0.0, decode=DECODE)
    view, method, problem = one_step(params, tiny.problem(heads=True, micro=micro), steps=4)
    value, expected = slope(problem, view, method)
    assert view.losses["reg/modalimmune"].item() == pytest.approx(DECODE * value)
    torch.testing.assert_close(view.grads[-1], expected, atol=1e-13, rtol=1e-9)
    lost = NAMES[method.state["arm"]]
    for part, piece in problem.layout.split(view.grads[-1]).items():
        assert bool(piece.any()) == (part in NAMES and part != lost), part


@pytest.mark.parametrize("values", [{}, {"fill": "neutral"}, {"feedback": 0.4}, {"omission": "batch"}, {"share": 0.0}])
def test_whatever_else_acts_the_whole_gradient_is_that_without_the_term_and_the_term(values):
    """The gate and the clip of the collapse leave it alone, on whichever row it ends."""
    params = knobs(**({"decode": DECODE, "adaptive": False, "clip": 0.3} | values))
    view, method, problem = one_step(params, steps=5)
    found = []
    for decode in (DECODE, 0.0):
        plain = ModalImmune(knobs(**({"adaptive": False, "clip": 0.3, "decode": decode} | values)), method.state)
        _, _, stack, _ = tiny.started(problem, [])
        again = gradient(view.theta, view.having(rng=Rng(7)), stack.having(plain))
        found.append(again.grad)
    _, expected = slope(problem, view, method)
    torch.testing.assert_close(found[0] - found[1], expected, atol=1e-12, rtol=1e-8)


def test_without_weight_nothing_is_remembered_and_nothing_changes():
    problem = tiny.problem(heads=True)
    off, views, stack = tiny.train(problem, [ModalImmune(knobs())], 12)
    assert "decoders" not in stack.methods["modalimmune"].state
    on, _, other = tiny.train(problem, [ModalImmune(knobs(decode=DECODE))], 12)
    assert not torch.equal(on.theta, off.theta)
    kept = other.methods["modalimmune"].state["decoders"]
    assert {key: value.shape for key, value in kept.items()} == {"weight": (), "mean": (8,), "covariance": (8, 8)}
    assert not any(value.requires_grad for value in kept.values())


def test_a_state_of_before_the_term_goes_on_and_the_first_batch_begins_the_moments():
    problem = tiny.problem(heads=True)
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(knobs(collapse=0.0, share=0.0))])
    for _ in range(3):
        state, _ = train_step(state, problem, optimizer, stack, rng)
    method = stack.methods["modalimmune"].tuned("decode", DECODE)
    stack = stack.having(method)
    state, view = train_step(state, problem, optimizer, stack, rng)
    assert not view.grads[-1].any(), "no decoder yet"
    torch.testing.assert_close(
        method.state["decoders"]["mean"], torch.cat(list(view.clean_features.values()), 1).mean(0)
    )
    state, view = train_step(state, problem, optimizer, stack, rng)
    assert view.grads[-1].any()
    method = method.tuned("decode", 0.0)
    train_step(state, problem, optimizer, stack.having(method), rng)
    assert method.state["decoders"] is None, "they would be old when the term returns"


def test_no_attack_no_term():
    view, _, _ = one_step(knobs(collapse=0.0, share=0.0, decode=DECODE, intervene=0.0), steps=5)
    assert not view.grads[-1].any()


def correlated() -> Multimodal:
    """The tiny network on modalities that are two noisy views of one hidden vector, of which the class is a part."""
    parts = {}
    for i, (part, rows) in enumerate({"train": 96, "val": 200, "test": 8}.items()):
        draw = torch.Generator().manual_seed(i)
        hidden = torch.randn(rows, 3, generator=draw, dtype=torch.float64)
        x = {
            m: hidden @ torch.randn(3, w, generator=torch.Generator().manual_seed(w)).double()
            for m, w in WIDTHS.items()
        }
        x = {m: v + 0.3 * torch.randn(v.shape, generator=draw, dtype=torch.float64) for m, v in x.items()}
        parts[part] = Batch(x, (hidden[:, 0] > 0).long())
    build = lambda: tiny.Net(False).double()  # noqa: E731
    return Multimodal("views", "Views", parts, build, tiny.CrossEntropy(), Rng(1000), batch=16, probe_rows=96)


def explained(decode: float) -> float:
    """Held-out R² within the classes after training, mean of both modalities."""
    problem = correlated()
    state, views, stack = tiny.train(problem, [ModalImmune(knobs(decode=decode))], 300, tiny.sgd(0.2))
    assert len(set(arms(stack))) == 2
    snap = Snapshot(state.step, state.theta, problem, Rng(7), stack, views[-1])
    records = {r.name: r for r in Reconstruction().measure(snap)}
    return sum(records[f"reconstruction/within/{m}"].value for m in NAMES) / 2


def test_features_reconstruct_each_other_better_with_the_term_than_without():
    without, little, much = (explained(decode) for decode in (0.0, 0.1, 1.0))
    assert min(little, much) > without + 0.1, (without, little, much)
