"""What the tests of ModalImmune share: knobs for short runs, one step, and the built-in networks on planted data."""

import copy

import torch

from modalscape.engine import networks
from modalscape.engine.config import _FORMER, RunSettings
from modalscape.engine.core import objectives
from modalscape.engine.core.problem import Batch, Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import train_step
from modalscape.engine.data import planted
from modalscape.engine.methods.modalimmune.method import ModalImmune
from tests import tiny

NOW = {"warmup": 0, "ramp": 0}
NAMES = tuple(tiny.WIDTHS)
FORMER = {key.partition(".")[2]: value for key, value in _FORMER[2].items() if key.startswith("modalimmune.")}
"""What is left of the defaults of older versions, under which the collapse fades with what a batch can have."""


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


def built(unique="2.0,1.0", rows=300, batch=64, change=None, double=False, **settings) -> Multimodal:
    """Planted evidence with the built-in networks, perhaps in float64; `change` acts on the data set."""
    data = planted.planted(planted.Params(unique=unique, rows=rows), Rng(0))
    data = data if change is None else change(data)
    own = RunSettings(**({"unimodal": "none", "width": 8, "hidden": 12, "probe_rows": 16} | settings))
    build = lambda: networks.build(data, own).to(torch.float64 if double else torch.float32)  # noqa: E731
    objective, parts = objectives.build(own, data), data.batches()
    if double:
        parts = {part: Batch({m: x.double() for m, x in batch.x.items()}, batch.y) for part, batch in parts.items()}
    return Multimodal("planted", "Planted", parts, build, objective, Rng(0), batch=batch, micro=own.micro)
