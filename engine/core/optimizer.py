"""Any `torch.optim` optimiser and learning-rate schedule on the flat parameter, its step returned as a value."""

from __future__ import annotations

import dataclasses
from array import array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from modalscape.engine.core.knobs import knob
from modalscape.engine.core.stability import edge_of_stability


@dataclass(frozen=True)
class Rate:
    """What a method may need to know of the optimiser at one step."""

    lr: float
    """Learning rate of this step."""
    momentum: float
    """Heavy-ball coefficient, 0 where the optimiser has none."""
    nesterov: bool
    optimizer: str
    """Name, such as `sgd`."""
    horizon: int = 1
    """Steps over which the run was planned; what is scheduled ends there."""


@dataclass(frozen=True)
class Settings:
    """What the optimiser does; keys `optimizer.*` of a run."""

    name: str = knob(
        "adam", help="Rule that turns a gradient into a step.", choices=("sgd", "adam", "adamw", "rmsprop")
    )
    lr: float = knob(0.002, 1e-6, 100.0, "Learning rate at the top of the schedule.", log=True)
    momentum: float = knob(0.9, 0.0, 0.999, "Heavy-ball momentum of sgd and rmsprop; beta1 of adam and adamw.")
    nesterov: bool = knob(False, help="Nesterov's look-ahead; sgd only.")
    weight_decay: float = knob(0.0, 0.0, 1.0, "Weight decay, as the chosen torch optimiser applies it.", log=True)
    schedule: str = knob("constant", help="How the learning rate goes on.", choices=("constant", "step", "cosine"))
    warmup: int = knob(0, 0, 100_000, "Steps of linear warm-up.")
    drop_every: int = knob(0, 0, 10_000_000, "Steps between drops of the `step` schedule; 0 for a third of the run.")
    drop_to: float = knob(0.1, 1e-4, 1.0, "Factor of each drop of the `step` schedule.", log=True)


_BUILD = {
    "sgd": lambda p, s: torch.optim.SGD(
        p, s.lr, momentum=s.momentum, nesterov=s.nesterov and s.momentum > 0, weight_decay=s.weight_decay, foreach=False
    ),
    "adam": lambda p, s: torch.optim.Adam(
        p, s.lr, betas=(s.momentum, 0.999), weight_decay=s.weight_decay, foreach=False
    ),
    "adamw": lambda p, s: torch.optim.AdamW(
        p, s.lr, betas=(s.momentum, 0.999), weight_decay=s.weight_decay, foreach=False
    ),
    "rmsprop": lambda p, s: torch.optim.RMSprop(
        p, s.lr, momentum=s.momentum, weight_decay=s.weight_decay, foreach=False
    ),
}
_HEAVY_BALL = ("sgd", "rmsprop")
RESCALING = ("adam", "adamw", "rmsprop")
"""Rules that divide each entry of the gradient by its running size, so that a constant factor on it has no effect."""


class Optimizer:
    """A `torch.optim` rule as a pure function of gradient, memory and theta.

    torch steps in place. Here the step is taken on a copy and returned as the difference, so that methods can act on it
    and nothing that was seen before changes; theta + update equals torch's own result to the rounding of one addition.
    """

    def __init__(self, settings: Settings, horizon: int) -> None:
        """Prepare the rule; `horizon` is the number of steps over which the schedule runs."""
        self.settings = settings
        self.horizon = max(horizon, 1)
        self._slot = nn.Parameter(torch.empty(0))
        self._rule = _BUILD[settings.name]([self._slot], settings)
        self._factors = _factors(settings, self.horizon)
        # One number a step that the schedule has come to, so a constant one ends with its warm-up.
        self._changing = min(settings.warmup, self.horizon) if settings.schedule == "constant" else self.horizon
        self._known = array("d", [next(self._factors)])

    def tuned(self, lr: float) -> Optimizer:
        """Return the optimiser with another learning rate at the top of its schedule."""
        return Optimizer(dataclasses.replace(self.settings, lr=lr), self.horizon)

    def rate(self, step: int) -> Rate:
        """Return the learning rate and momentum at `step`; after the horizon the last value holds."""
        s = self.settings
        place = min(step, self._changing)
        while len(self._known) <= place:
            self._known.append(next(self._factors))
        momentum = s.momentum if s.name in _HEAVY_BALL else 0.0
        return Rate(s.lr * self._known[place], momentum, s.nesterov, s.name, self.horizon)

    def edge(self, step: int) -> float:
        """Return the largest eigenvalue of the preconditioned Hessian at which the rule is stable at `step`."""
        s = self.settings
        return edge_of_stability(s.name, self.rate(step).lr, s.momentum, nesterov=s.nesterov and s.name == "sgd")

    def preconditioner(self, moments: dict[str, Any], theta: Tensor) -> Tensor:
        """Return what the rule divides the gradient's average by, (P,): 1 for sgd, and before the first step.

        For adam (1 - β₁ᵗ)(√(v/(1 - β₂ᵗ)) + ε), so that the bias correction of the average is in it as well (Cohen et
        al., arXiv 2207.14484, equation 2).
        """
        group, slots = self._rule.param_groups[0], moments["slots"]
        if "exp_avg_sq" in slots:
            first, second = (1 - beta ** moments["step"] for beta in group["betas"])
            return first * ((slots["exp_avg_sq"] / second).sqrt() + group["eps"])
        if "square_avg" in slots:
            return slots["square_avg"].sqrt() + group["eps"]
        return torch.ones_like(theta)

    def init(self) -> dict[str, Any]:
        """Return the memory before the first step."""
        return {"step": 0, "slots": {}}

    def update(self, grad: Tensor, moments: dict[str, Any], theta: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return what to add to theta (P,) for the gradient (P,), and the next memory."""
        slot = self._slot
        if slot.shape == theta.shape and slot.dtype == theta.dtype and slot.device == theta.device:
            slot.data.copy_(theta)  # scratch that is used again: a fresh large block costs more than the step itself
        else:
            slot.data = theta.clone()
        slot.grad = grad
        slots = {key: value.clone() if torch.is_tensor(value) else value for key, value in moments["slots"].items()}
        self._rule.state[slot] = slots
        self._rule.param_groups[0]["lr"] = self.rate(moments["step"]).lr
        self._rule.step()
        after = {"step": moments["step"] + 1, "slots": dict(self._rule.state[slot])}
        slot.grad = None
        return slot.data - theta, after


def _factors(settings: Settings, horizon: int):
    """Yield lr / top lr for steps 0, 1, …, from torch's own schedulers."""
    rule = torch.optim.SGD([nn.Parameter(torch.empty(0))], lr=1.0)
    warm = min(settings.warmup, horizon)
    rest = max(horizon - warm, 1)
    after = {
        "constant": lambda: lr_scheduler.LambdaLR(rule, lambda step: 1.0),
        "step": lambda: lr_scheduler.StepLR(rule, settings.drop_every or max(rest // 3, 1), settings.drop_to),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(rule, rest),
    }[settings.schedule]
    if warm:
        start = lr_scheduler.LinearLR(rule, 1.0 / (warm + 1), 1.0, warm)
        schedule = lr_scheduler.SequentialLR(rule, [start, after()], [warm])
    else:
        schedule = after()
    while True:
        yield rule.param_groups[0]["lr"]
        rule.step()
        schedule.step()
