"""The probe of the Gauss-Newton matrix and the empirical Fisher against dense matrices of a tiny problem."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from modalscape.engine.probes.ggn import Ggn
from tests.probes.snapshots import measured, snapshot


def gauss_newton(snap):
    """JᵀH_L J (P, P) of all logits."""
    problem, batch, theta = snap.problem, snap.problem.probe_batch(), snap.theta
    names = list(problem.outputs(theta, batch))

    def flat(theta):
        return torch.cat([value.reshape(-1) for value in problem.outputs(theta, batch).values()])

    def loss(values):
        pieces = values.view(len(names), len(batch), -1)
        return problem.row_losses(dict(zip(names, pieces, strict=True)), batch).mean()

    slopes = jacobian(flat, theta)
    return slopes.T @ hessian(loss, flat(theta)) @ slopes


def fisher(snap):
    """The mean over rows of g gᵀ (P, P)."""
    problem, batch, theta = snap.problem, snap.problem.probe_batch(), snap.theta
    g = jacobian(lambda theta: problem.row_losses(problem.outputs(theta, batch), batch), theta)
    return g.T @ g / len(batch)


@pytest.mark.parametrize("micro", [0, 5])
def test_numbers_are_those_of_the_dense_matrices(micro):
    snap = snapshot()
    records = measured(Ggn(Ggn.Params(micro=micro)), snap)
    for path, dense in (("ggn", gauss_newton(snap)), ("ggn/empirical_fisher", fisher(snap))):
        truth = torch.linalg.eigvalsh(dense).flip(0)
        top, trace = records[f"{path}/lambda_max"], records[f"{path}/trace"]
        assert abs(top.value - truth[0].item()) <= top.error < 1e-3 * truth[0]
        assert abs(trace.value - truth.sum().item()) <= 3 * trace.error
        assert trace.error < 0.2 * trace.value
    values = torch.from_numpy(records["ggn/top"].values)
    truth = torch.linalg.eigvalsh(gauss_newton(snap)).flip(0)[:5]
    assert ((values - truth).abs() <= torch.from_numpy(records["ggn/top"].error)).all()


def test_row_losses_are_what_the_loss_is_the_mean_of():
    snap = snapshot()
    problem, batch = snap.problem, snap.problem.probe_batch()
    rows = problem.row_losses(problem.outputs(snap.theta, batch), batch)
    assert rows.shape == (len(batch),)
    torch.testing.assert_close(rows.mean(), problem.loss(snap.theta, batch))


def test_each_record_names_its_matrix():
    records = measured(Ggn(), snapshot())
    assert set(records) == {
        *(f"ggn/{name}" for name in ("lambda_max", "trace", "top", "spectrum")),
        *(f"ggn/empirical_fisher/{name}" for name in ("lambda_max", "trace")),
    }
    for name, record in records.items():
        assert record.mode.startswith("empirical Fisher" if "fisher" in name else "GGN"), name
        assert record.n == 32 and record.seconds > 0 and "error" in record.mode and record.error is not None


def test_the_empirical_fisher_can_be_left_out():
    assert not [n for n in measured(Ggn(Ggn.Params(fisher=False)), snapshot()) if "fisher" in n]
