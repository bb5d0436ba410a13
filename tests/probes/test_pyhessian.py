"""PyHessian through its probe, against the dense Hessian, PyHessian called directly, and what it must not touch."""

import warnings
from dataclasses import replace

import numpy as np
import pyhessian
import pytest
import torch
from torch import nn

from modalscape.engine.errors import InputError
from modalscape.engine.probes.pyhessian import PyHessian
from tests.probes.snapshots import dense, measured, snapshot
from tests.tiny import problem


def test_both_find_the_eigenvalues_and_the_trace_of_the_dense_hessian():
    snap = snapshot()
    values = torch.linalg.eigvalsh(dense(snap))
    truth = values[values.abs().argsort(descending=True)][:3].numpy()
    records = measured(PyHessian(PyHessian.Params(tol=1e-6, most=250)), snap)
    theirs, ours = records["pyhessian/top"], records["pyhessian/ours/top"]
    np.testing.assert_allclose(theirs.values, truth, rtol=1e-3)
    assert (np.abs(ours.values - truth) <= ours.error).all() and theirs.error is None
    np.testing.assert_allclose(records["pyhessian/difference"].values, theirs.values - ours.values)
    for trace in (records["pyhessian/trace"], records["pyhessian/ours/trace"]):
        assert abs(trace.value - values.sum().item()) <= 4 * trace.error


def test_it_is_the_librarys_own_answer():
    snap = snapshot()
    found = measured(PyHessian(), snap)
    module = nn.Module()
    module.theta = nn.Parameter(snap.theta.clone())
    module.forward = lambda nothing: snap.problem.loss(module.theta, snap.problem.probe_batch())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(snap.rng.key("pyhessian"))
        other = pyhessian.hessian(module, lambda loss, _: loss, data=(None, None), cuda=False)
        values, samples = other.eigenvalues(top_n=3)[0], other.trace()
    assert found["pyhessian/top"].values.tolist() == values
    assert found["pyhessian/trace"].value == np.mean(samples)


def test_largest_by_magnitude_may_be_negative_in_both():
    snap = snapshot()
    turned = replace(snap, problem=Negated(snap.problem))
    truth = torch.linalg.eigvalsh(dense(snap)).flip(0)[:3].numpy()
    records = measured(PyHessian(PyHessian.Params(tol=1e-6, most=250)), turned)
    np.testing.assert_allclose(records["pyhessian/top"].values, -truth, rtol=1e-3)
    np.testing.assert_allclose(records["pyhessian/ours/top"].values, -truth, rtol=1e-6)


class Negated:
    """The problem with its loss turned upside down."""

    def __init__(self, inner):
        self.inner, self.layout = inner, inner.layout
        self.encoders, self.trunk = inner.encoders, inner.trunk

    def probe_batch(self):
        return self.inner.probe_batch()

    def loss(self, theta, batch):
        return -self.inner.loss(theta, batch)


def test_ours_spends_what_it_was_allowed():
    snap = snapshot()
    records = list(PyHessian(PyHessian.Params(steps=5, probes=1)).measure(snap))
    spent = next(r for r in records if r.name == "pyhessian/products").values
    assert spent[2] == 6


def test_its_draws_do_not_depend_on_those_of_others():
    snap = snapshot()
    truth = measured(PyHessian(), snap)
    torch.manual_seed(1)
    records = measured(PyHessian(), snap)
    for name in ("pyhessian/top", "pyhessian/ours/top"):
        assert (records[name].values == truth[name].values).all()
    assert records["pyhessian/trace"].value == truth["pyhessian/trace"].value


def test_its_warning_of_a_cycle_is_silent_and_no_other():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        measured(PyHessian(), snapshot())
        warnings.warn("another", UserWarning, stacklevel=1)
    assert [str(w.message) for w in heard if w.category is UserWarning] == ["another"]


def test_records_say_what_it_cannot_do_rows_and_seconds():
    records = measured(PyHessian(), snapshot(problem(heads=True, dtype=torch.float32)))
    for name, record in records.items():
        assert record.n == 32 and record.mode and record.seconds > 0, name
    assert "magnitude" in records["pyhessian/top"].mode and "no error" in records["pyhessian/top"].mode


def test_a_loss_that_is_not_finite_is_said_in_a_sentence():
    snap = snapshot()
    with pytest.raises(InputError, match="the loss is nan at theta"):
        list(PyHessian().measure(replace(snap, theta=snap.theta * torch.nan)))
