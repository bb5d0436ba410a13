"""Snapshots of the tiny problem after some training, and proof that measuring one leaves no trace."""

import numpy as np
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.probe import Probe, Record, Snapshot
from tests.tiny import problem, started, train


def snapshot(trained=None, steps: int = 20, **settings) -> Snapshot:
    trained = problem(heads=True, **settings) if trained is None else trained
    state, views, stack = train(trained, [], steps)
    _, _, _, rng = started(trained, [])
    return Snapshot(state.step, state.theta, trained, rng, stack, views[-1] if views else None)


def measured(probe: Probe, snap: Snapshot) -> dict[str, Record]:
    """The last record of each name; fails when the measurement changes anything or is not repeatable."""
    before, random = snap.theta.clone(), torch.get_rng_state()
    records = {r.name: r for r in probe.measure(snap)}
    assert torch.equal(snap.theta, before) and snap.theta.grad is None and not snap.theta.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for owner in _modules(snap.problem) for p in owner.parameters())
    again = {r.name: r for r in probe.measure(snap)}
    assert records.keys() == again.keys()
    for name, record in records.items():
        for field in record.arrays:
            one, other = getattr(record, field), getattr(again[name], field)
            if isinstance(one, float) or one is None:
                assert one == other, name
            else:
                assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name
    return records


def _modules(trained):
    return [f.module for f in (*trained.encoders.values(), trained.trunk)]


def dense(snap: Snapshot) -> torch.Tensor:
    """The Hessian (P, P) of the training loss on the probe rows."""
    batch = snap.problem.probe_batch()
    return torch.autograd.functional.hessian(lambda theta: snap.problem.loss(theta, batch), snap.theta)


def inside(layout: Layout, part: str) -> torch.Tensor:
    return layout.mask(part).bool()
