"""The optimiser as a value equals torch's own, step by step, and so do its schedules."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from modalscape.engine.core.optimizer import Optimizer, Settings
from modalscape.engine.core.rng import Rng

RULES = {
    "sgd": (Settings(name="sgd", lr=0.1, momentum=0.0), lambda p: torch.optim.SGD(p, 0.1)),
    "decay": (
        Settings(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.05),
    ),
    "momentum": (Settings(name="sgd", lr=0.1, momentum=0.8), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
    "nesterov": (
        Settings(name="sgd", lr=0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
    ),
    "adam": (
        Settings(name="adam", lr=0.01, momentum=0.85, weight_decay=0.02),
        lambda p: torch.optim.Adam(p, 0.01, betas=(0.85, 0.999), weight_decay=0.02),
    ),
    "adamw": (
        Settings(name="adamw", lr=0.01, momentum=0.85, weight_decay=0.02),
        lambda p: torch.optim.AdamW(p, 0.01, betas=(0.85, 0.999), weight_decay=0.02),
    ),
    "rmsprop": (
        Settings(name="rmsprop", lr=0.01, momentum=0.5),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
    ),
}


def slope(theta: torch.Tensor, step: int) -> torch.Tensor:
    """A gradient that depends on theta and on the step."""
    noise = Rng(3).normal("gradient", step, theta)
    return torch.linspace(0.1, 3.0, len(theta), dtype=theta.dtype) * theta.detach() + 0.1 * noise


def start() -> torch.Tensor:
    return Rng(1).normal("start", 0, torch.empty(12, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_updates_equal_a_torch_loop(rule):
    settings, build = RULES[rule]
    theta = start()
    parameter = nn.Parameter(theta.clone())
    slow = build([parameter])
    optimizer = Optimizer(settings, 100)
    moments = optimizer.init()
    for step in range(30):
        update, moments = optimizer.update(slope(theta, step), moments, theta)
        theta = theta + update
        parameter.grad = slope(parameter, step)
        slow.step()
    assert (theta - start()).abs().min() > 1e-3
    torch.testing.assert_close(theta, parameter.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_an_update_changes_neither_memory_nor_theta(rule):
    settings, _ = RULES[rule]
    theta = start()
    optimizer = Optimizer(settings, 100)
    _, moments = optimizer.update(slope(theta, 0), optimizer.init(), theta)
    kept = {key: value.clone() for key, value in moments["slots"].items() if torch.is_tensor(value)}
    first = optimizer.update(slope(theta, 1), moments, theta)[0]
    again = optimizer.update(slope(theta, 1), moments, theta)[0]
    assert torch.equal(first, again)
    assert torch.equal(theta, start())
    assert moments["step"] == 1
    for key, value in kept.items():
        assert torch.equal(moments["slots"][key], value), key


@pytest.mark.parametrize("rule", RULES)
def test_memory_survives_a_checkpoint(rule, tmp_path):
    settings, _ = RULES[rule]
    theta = start()
    optimizer = Optimizer(settings, 100)
    _, moments = optimizer.update(slope(theta, 0), optimizer.init(), theta)
    torch.save(moments, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    went_on = Optimizer(settings, 100).update(slope(theta, 1), loaded, theta)[0]
    assert torch.equal(went_on, optimizer.update(slope(theta, 1), moments, theta)[0])


SCHEDULES = {
    "constant": (Settings(), lambda rule: lr_scheduler.LambdaLR(rule, lambda step: 1.0)),
    "step": (Settings(schedule="step", drop_every=7, drop_to=0.2), lambda rule: lr_scheduler.StepLR(rule, 7, 0.2)),
    "thirds": (Settings(schedule="step", drop_to=0.2), lambda rule: lr_scheduler.StepLR(rule, 13, 0.2)),
    "cosine": (Settings(schedule="cosine"), lambda rule: lr_scheduler.CosineAnnealingLR(rule, 40)),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_equal_torch_schedules(schedule):
    settings, build = SCHEDULES[schedule]
    settings = dataclasses.replace(settings, name="sgd", lr=0.3)
    slow = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    torch_schedule = build(slow)
    optimizer = Optimizer(settings, 40)
    for step in range(40):
        assert optimizer.rate(step).lr == pytest.approx(slow.param_groups[0]["lr"], rel=1e-12), step
        slow.step()
        torch_schedule.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_climbs_in_a_line_and_then_the_schedule_starts(schedule):
    settings = dataclasses.replace(SCHEDULES[schedule][0], lr=0.3, warmup=4)
    rates = [Optimizer(settings, 44).rate(step).lr for step in range(44)]
    assert rates[:4] == pytest.approx([0.3 * k / 5 for k in (1, 2, 3, 4)])
    after = [Optimizer(dataclasses.replace(settings, warmup=0), 40).rate(step).lr for step in range(40)]
    assert rates[4:] == pytest.approx(after)


def test_rates_do_not_depend_on_the_order_of_asking():
    settings = Settings(schedule="cosine", warmup=3)
    one, other = Optimizer(settings, 20), Optimizer(settings, 20)
    assert [one.rate(s) for s in range(20)] == [other.rate(s) for s in reversed(range(20))][::-1]
    assert one.rate(500) == one.rate(20)


def test_tuned_rate_keeps_the_schedule():
    optimizer = Optimizer(Settings(lr=0.1, schedule="cosine"), 20)
    assert optimizer.tuned(0.2).rate(7).lr == pytest.approx(2 * optimizer.rate(7).lr)


def test_momentum_is_told_only_where_there_is_a_heavy_ball():
    assert Optimizer(Settings(name="sgd", momentum=0.7), 1).rate(0).momentum == 0.7
    assert Optimizer(Settings(name="adam", momentum=0.7), 1).rate(0).momentum == 0.0


@pytest.mark.parametrize("warmup", [0, 7])
def test_a_constant_schedule_takes_no_memory_for_its_steps(warmup):
    optimizer = Optimizer(Settings(warmup=warmup), 10**6)
    rates = [optimizer.rate(step).lr for step in [*range(20), 10**5, 10**6 - 1, 10**6, 2 * 10**6]]
    assert rates[warmup:] == [optimizer.settings.lr] * (24 - warmup)
    assert len(optimizer._known) == warmup + 1
