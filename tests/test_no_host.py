"""No method asks the host within a step, nor copies to the device: checked without a GPU, see `tests/no_host.py`."""

import pytest
import torch

from modalscape.engine.core.method import Method
from modalscape.engine.registry import discover
from tests import tiny
from tests.no_host import QUESTIONS, HostCopy, steps_without_numbers

METHODS = discover("modalscape.engine.methods", Method)
ASKING = {
    "modalimmune": "reads losses, scales and norms for its controller, which is on the host",
    "moddrop": "draws on the host and copies the mask",
    "opm": "draws on the host and asks for the number",
    "pmr": "picks the rows that count, whose number depends on data",
}
"""Methods that still ask, and what; one that no longer does fails here until its line is gone."""
BETWEEN = {"bogc": {"warmup": 0.0, "refresh": 1000.0}}
"""Knobs with which no upkeep falls due, for methods whose upkeep asks the host: BOGC-MML's posterior, once an epoch."""


def marked(names):
    return [
        pytest.param(name, marks=pytest.mark.xfail(raises=QUESTIONS, strict=True, reason=ASKING[name]))
        if name in ASKING
        else name
        for name in names
    ]


@pytest.mark.parametrize("name", marked(METHODS))
def test_a_step_asks_the_host_nothing(name):
    method = METHODS[name](METHODS[name].Params(**BETWEEN.get(name, {})))
    steps_without_numbers(tiny.problem(heads=True, dtype=torch.float32), [method], 5)


@pytest.mark.parametrize(
    "knobs",
    [
        {"reading": "confident_trust", "by_coordinate": True, "size": "norm", "conflict": 1.0},
        {"evidence": "relative", "average": True},
        {"centre": "newton", "reading": "sources", "evidence": "raw"},
    ],
    ids=str,
)
def test_a_step_of_bogc_between_two_posteriors_asks_nothing(knobs):
    kind = METHODS["bogc"]
    problem = tiny.problem(heads=True, dtype=torch.float32)
    steps_without_numbers(problem, [kind(kind.Params(**BETWEEN["bogc"], **knobs))], 3)


def test_a_posterior_of_bogc_asks():
    kind = METHODS["bogc"]
    with pytest.raises(QUESTIONS):
        problem = tiny.problem(heads=True, dtype=torch.float32)
        steps_without_numbers(problem, [kind(kind.Params(warmup=0.0, refresh=0.01))], 3)


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"gate": "strongest", "when": "outside"},
        {"trace": "weights", "score": "sum", "plain": 2, "smoothing": 1},
        {"trace": "samples", "rows": 10, "when": "always", "score": "log"},
        {"preset": "released"},
    ],
    ids=str,
)
def test_the_end_of_inforegs_period_asks_nothing_either(knobs, heads):
    kind = METHODS["inforeg"]
    method = kind(kind.Params(period=3, **knobs))
    steps_without_numbers(tiny.problem(heads=heads, dtype=torch.float32), [method], 8)


# --- that it would be seen


def asking(ask):
    """A method that puts a question in one of its points."""

    class Asking(Method):
        name = title = "asking"

        def init(self, view):
            return {"kept": torch.zeros_like(view.theta)}

        def gradients(self, grads, view):
            ask(grads, view)
            return grads

    return Asking()


SEEN = {
    "a number": lambda grads, view: float(grads.sum()),
    "a condition": lambda grads, view: 1 if grads.sum() > 0 else 0,
    "a list": lambda grads, view: grads[0].tolist(),
    "rows by a mask": lambda grads, view: grads[grads > 0],
    "places": lambda grads, view: grads.nonzero(),
}
COPIED = {
    "numbers": lambda grads, view: grads.new_tensor([1.0, 2.0]),
    "one number": lambda grads, view: torch.tensor(1.0, device=grads.device),
    "a list as an index": lambda grads, view: grads[[0]],
    "an index from the host": lambda grads, view: grads[:, torch.zeros(2, dtype=torch.int64)],
    "a draw on the host": lambda grads, view: torch.rand(3, generator=view.rng.generator("asking")).to(grads.device),
    "an operand": lambda grads, view: grads * torch.ones(grads.shape[1]),
    "written in place": lambda grads, view: grads.clone().copy_(torch.ones(grads.shape)),
}
FREE = {
    "a draw on the device": lambda grads, view: view.rng.normal("asking", 0, grads),
    "a generator of the device": lambda grads, view: torch.rand(
        3, generator=view.rng.generator("asking", 0, grads.device), device=grads.device
    ),
    "a number that is known": lambda grads, view: grads * 2.0 + grads.new_full((), 3.0),
    "a choice by element": lambda grads, view: torch.where(grads > 0, grads, torch.zeros_like(grads)),
    "a slice": lambda grads, view: grads[:, 1:3] * grads[0, 0],
    "a number of the host as an operand": lambda grads, view: grads * torch.tensor(2.0),
}


@pytest.mark.parametrize("ask", SEEN.values(), ids=list(SEEN))
def test_a_question_is_seen(ask):
    with pytest.raises(QUESTIONS):
        steps_without_numbers(tiny.problem(dtype=torch.float32), [asking(ask)], 1, 0)


@pytest.mark.parametrize("copy", COPIED.values(), ids=list(COPIED))
def test_a_copy_is_seen(copy):
    with pytest.raises(HostCopy):
        steps_without_numbers(tiny.problem(dtype=torch.float32), [asking(copy)], 1, 0)


@pytest.mark.parametrize("do", FREE.values(), ids=list(FREE))
def test_what_asks_nothing_passes(do):
    steps_without_numbers(tiny.problem(dtype=torch.float32), [asking(do)], 2)
