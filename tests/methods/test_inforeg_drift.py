"""How far an encoder drifts under InfoReg: closed forms under a constant gradient, and a story on planted data."""

import math

import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.layout import Layout
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.step import train_step
from modalscape.engine.errors import InputError
from modalscape.engine.lessons.inforeg_window import InfoRegWindow
from modalscape.engine.methods.inforeg.method import InfoReg
from modalscape.engine.runtime.session import Training
from tests import tiny

ALPHA = math.exp(0.9 * math.tanh(1 / (1 + math.exp(-1)) - 0.5))
"""Of the left modality, which gives the true class a probability of 0.73 where the right one gives 0.5."""


def inforeg(**knobs) -> InfoReg:
    return InfoReg(InfoReg.Params(**knobs))


class Constant:
    """Two encoders under constant gradients; the logits always prefer the left modality."""

    name, title, modalities, micro = "constant", "Constant", ("left", "right"), 0
    layout = Layout(
        {"encoders.left.w": (3,), "encoders.right.w": (2,)}, {"encoders.left.w": "left", "encoders.right.w": "right"}
    )
    slope = torch.tensor([1.0, -2.0, 0.5, 3.0, 4.0], dtype=torch.float64)

    def init(self):
        return torch.zeros(5, dtype=torch.float64)

    def batch(self, step):
        return Batch({name: torch.zeros(4, 1) for name in self.modalities}, torch.zeros(4, dtype=torch.int64))

    def encode(self, theta, batch):
        return {name: theta[None, where].expand(len(batch), -1) for name, where in self.layout.slices.items()}

    def objectives(self, theta, features, batch):
        x = torch.cat([value[0] for value in features.values()])
        logits = {
            "left": torch.tensor([1.0, 0.0]),
            "right": torch.tensor([0.0, 0.0]),
            "fused": torch.tensor([1.0, 0.0]),
        }
        return {"fused": self.slope @ x}, {name: z.double().expand(len(batch), 2) for name, z in logits.items()}


def trained(problem, method, steps, settings):
    """The thetas before each step and after the last, the views, and the method."""
    state, optimizer, stack, rng = tiny.started(problem, [method], settings)
    thetas, views = [state.theta], []
    for _ in range(steps):
        state, view = train_step(state, problem, optimizer, stack, rng)
        thetas.append(state.theta)
        views.append(view)
    return thetas, views, stack.methods["inforeg"]


def values(method, view) -> dict[str, float]:
    return {record.name: record.value for record in method.report(view) if record.kind == "scalar"}


def test_drift_under_a_constant_gradient_follows_its_closed_form():
    problem, lr, steps = Constant(), 0.05, 40
    thetas, _, _ = trained(problem, inforeg(when="always", period=100), steps, tiny.sgd(lr))
    g = problem.slope
    for b, theta in enumerate(thetas):
        torch.testing.assert_close(theta[:3], -(g[:3] / ALPHA) * (1 - (1 - lr * ALPHA) ** b), rtol=0, atol=1e-13)
        torch.testing.assert_close(theta[3:], -lr * b * g[3:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_drift_settles_at_the_gradient_over_alpha(momentum):
    problem = Constant()
    thetas, views, method = trained(problem, inforeg(when="always", period=600), 600, tiny.sgd(0.05, momentum))
    torch.testing.assert_close(thetas[-1][:3], -problem.slope[:3] / ALPHA, rtol=1e-9, atol=0)
    found = values(method, views[-1])
    assert found["inforeg/drift/left"] == pytest.approx(found["inforeg/drift_limit/left"], rel=1e-9)
    assert found["inforeg/room"] == pytest.approx(600 * 0.05 / (1 - momentum))
    assert "inforeg/drift_limit/right" not in found
    assert found["inforeg/batch_cosine/left"] == pytest.approx(1.0)
    assert found["inforeg/penalty/left"] == pytest.approx(ALPHA / 2 * found["inforeg/drift/left"] ** 2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_pull_is_stable_up_to_two_times_one_plus_momentum_over_alpha(momentum):
    edge = 2 * (1 + momentum) / ALPHA
    for lr, stable in ((0.95 * edge, True), (1.05 * edge, False)):
        thetas, _, _ = trained(Constant(), inforeg(when="always", period=1000), 400, tiny.sgd(lr, momentum))
        assert (float(thetas[-1][:3].norm()) < 100) == stable


def test_a_larger_dose_leaves_less_drift():
    drifts = []
    for strength in (0.0, 1.0, 4.0, 16.0):
        thetas, _, _ = trained(Constant(), inforeg(when="always", period=100, strength=strength), 50, tiny.sgd(0.02))
        drifts.append(float(thetas[-1][:3].norm()))
    assert drifts == sorted(drifts, reverse=True) and len(set(drifts)) == 4


def test_a_problem_of_unknown_length_asks_for_a_period():
    with pytest.raises(InputError, match="no length of an epoch of Constant; set inforeg.period"):
        tiny.started(Constant(), [inforeg()])
    _, _, method = trained(Constant(), inforeg(period=5), 5, tiny.sgd(0.1))
    assert InfoReg(InfoReg.Params(period=0), method.state)._period() == 5


@pytest.mark.slow
def test_in_the_window_it_wakes_the_weak_modality_more_than_outside():
    """The lesson's arms on seeds beside those it was found on; the window is open for ten epochs or so and closes."""
    alone = {arm: [] for arm in ("window", "joint", "outside")}
    traces = {arm: [] for arm in alone}
    for arm in alone:
        for seed in range(20, 24):
            config = RunConfig.from_json(InfoRegWindow.arms[arm] | {"seed": seed})
            run = Training(validated(config, catalog()))
            where, total = run.problem.layout.slices["audio"], 0.0
            for _ in range(config.steps):
                total += float(run.step().raw_grads[0, where].square().sum())
            found = run.problem.evaluate(run.state.theta, "test")
            assert found["accuracy/test"] > 0.97
            alone[arm].append(found["accuracy/test/audio"])
            traces[arm].append(total)
            if arm == "window":
                state = run.stack.methods["inforeg"].state
                opened = state["opened"][-state["periods"] :, 0].tolist()
                assert all(opened[:9]) and sum(opened[12:]) < 0.1 * len(opened)
    gain = {arm: [a - b for a, b in zip(alone[arm], alone["joint"], strict=True)] for arm in ("window", "outside")}
    assert min(gain["window"]) > 0.03
    assert sum(gain["window"]) > sum(gain["outside"]) + 4 * 0.03
    assert all(a > b for a, b in zip(traces["window"], traces["joint"], strict=True))
