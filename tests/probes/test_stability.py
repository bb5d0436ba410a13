"""The edge of stability: against dense matrices, real optimisers on quadratics, and what Adam does on whole batches."""

import numpy as np
import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.optimizer import Optimizer, Settings
from modalscape.engine.core.stability import edge_of_stability
from modalscape.engine.errors import InputError
from modalscape.engine.lessons.edge_of_stability import EdgeOfStability
from modalscape.engine.probes.stability import Stability
from modalscape.engine.runtime.session import Training
from tests.probes.snapshots import dense, measured, snapshot

RULES = [
    {"name": "sgd", "momentum": 0.0},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adam", "momentum": 0.9},
    {"name": "adamw", "momentum": 0.5},
    {"name": "rmsprop", "momentum": 0.0},
    {"name": "rmsprop", "momentum": 0.8},
]


def small(**settings) -> Training:
    own = {"planted.rows": 400, "width": 4, "hidden": 4, "dtype": "float64", "probe_rows": 64}
    return Training(
        validated(RunConfig(problem="planted", steps=500, device="cpu", settings=own | settings), catalog())
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_the_preconditioned_hessian_has_the_eigenvalue_of_the_dense_one(rule):
    training = small(**{f"optimizer.{key}": value for key, value in rule.items()})
    for _ in range(30):
        training.step()
    snap = training.snapshot()
    found = measured(Stability(Stability.Params(steps=60)), snap)
    scale = training.optimizer.preconditioner(training.state.moments, snap.theta)
    narrow = scale.rsqrt()
    exact = torch.linalg.eigvalsh(narrow[:, None] * dense(snap) * narrow)[-1].item()
    top = found["stability/lambda_max"]
    assert abs(top.value - exact) <= top.error + 1e-9 * exact and top.error < 0.02 * exact
    edge = found["stability/edge"].value
    assert edge == training.optimizer.edge(30) and found["stability/ratio"].value == top.value / edge
    assert top.n == 64 and top.seconds > 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_the_preconditioner_is_what_the_step_was_divided_by(rule):
    optimizer = Optimizer(Settings(lr=0.01, **rule), 100)
    theta, moments = torch.randn(5, dtype=torch.float64), optimizer.init()
    generator = torch.Generator().manual_seed(1)
    for _ in range(7):
        before = moments
        grad = torch.randn(5, dtype=torch.float64, generator=generator)
        update, moments = optimizer.update(grad, before, theta)
        theta = theta + update
    scale, slots = optimizer.preconditioner(moments, theta), moments["slots"]
    # What the rule averages: adam the gradient, rmsprop and sgd the preconditioned gradient (heavy ball), or nothing.
    averaged = slots.get("exp_avg", slots.get("momentum_buffer"))
    if rule["name"] in ("adam", "adamw"):
        assert torch.allclose(update, -0.01 * averaged / scale, rtol=1e-9, atol=0)
    elif rule["name"] == "rmsprop":
        buffer = 0.0 if not rule["momentum"] else before["slots"]["momentum_buffer"]
        assert torch.allclose(update, -0.01 * (rule["momentum"] * buffer + grad / scale), rtol=1e-9, atol=1e-15)
    else:
        assert torch.equal(scale, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES[:3], ids=lambda rule: "-".join(map(str, rule.values())))
def test_descent_on_a_quadratic_shrinks_below_the_edge_and_grows_beyond_it(rule):
    for factor, shrinks in ((0.98, True), (1.02, False)):
        optimizer = Optimizer(Settings(lr=0.1, **rule), 1000)
        theta, moments = torch.ones(1, dtype=torch.float64), optimizer.init()
        for _ in range(1000):
            update, moments = optimizer.update(factor * optimizer.edge(0) * theta, moments, theta)
            theta = theta + update
        assert (theta.abs().item() < 1e-3) is shrinks


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_a_moving_average_of_gradients_is_stable_up_to_the_edge(beta):
    def radius(curvature: float) -> float:
        # m' = βm + (1 - β)λx, x' = x - m', with lr = 1 and P = 1
        step = np.array([[beta, (1 - beta) * curvature], [-beta, 1 - (1 - beta) * curvature]])
        return np.abs(np.linalg.eigvals(step)).max()

    edge = edge_of_stability("adam", 1.0, beta)
    assert radius(0.99 * edge) < 1 < radius(1.01 * edge)


def test_where_no_optimiser_is_known_there_is_one_sentence():
    with pytest.raises(InputError, match="No optimiser is known here"):
        list(Stability().measure(snapshot()))


@pytest.mark.parametrize(("name", "lr", "momentum"), [("sgd", 0.4, 0.0), ("adam", 0.01, 0.9)])
def test_training_on_whole_batches_climbs_to_the_edge_and_stays_there(name, lr, momentum):
    own = EdgeOfStability.arms["full_batch"]["settings"] | {
        "optimizer.name": name,
        "optimizer.lr": lr,
        "optimizer.momentum": momentum,
    }
    config = RunConfig(problem="digits_captions", steps=1000, device="cpu", settings=own)
    training, ratios = Training(validated(config, catalog())), []
    looks = (20, 700, 750, 800) if name == "sgd" else (20, 200, 250, 300)
    for step in range(1, looks[-1] + 1):
        training.step()
        if step in looks:
            found = {r.name: r for r in Stability().measure(training.snapshot())}
            ratios.append(found["stability/ratio"].value)
    assert ratios[0] < 0.6 and all(0.9 < ratio < 1.15 for ratio in ratios[1:]), ratios
