"""The Hessian probe against the dense Hessian of a tiny problem."""

import numpy as np
import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.progress import listening
from modalscape.engine.probes.ggn import Ggn
from modalscape.engine.probes.hessian import Hessian
from tests.probes.snapshots import dense, inside, measured, snapshot
from tests.tiny import problem


@pytest.mark.parametrize("part", ["", "image", "text", "shared"])
def test_numbers_are_those_of_the_dense_hessian(part):
    snap = snapshot()
    matrix = dense(snap)
    if part:
        rows = inside(snap.problem.layout, part)
        matrix = matrix[rows][:, rows]
    truth = torch.linalg.eigvalsh(matrix).flip(0).numpy()
    records = measured(Hessian(Hessian.Params(part_k=5, part_steps=40, probes=8)), snap)
    path = f"hessian/{part}" if part else "hessian"
    top, low, trace = (records[f"{path}/{name}"] for name in ("lambda_max", "lambda_min", "trace"))
    assert abs(top.value - truth[0]) <= top.error < 1e-6
    assert abs(low.value - truth[-1]) <= low.error
    assert abs(trace.value - truth.sum()) <= 3 * trace.error
    bars = records[f"{path}/top"]
    assert bars.labels.tolist() == ["λ1", "λ2", "λ3", "λ4", "λ5"]
    assert (np.abs(bars.values - truth[:5]) <= bars.error).all()


def test_density_counts_the_eigenvalues():
    snap = snapshot()
    curve = measured(Hessian(Hessian.Params(steps=60, parts=False)), snap)["hessian/spectrum"]
    truth = torch.linalg.eigvalsh(dense(snap)).numpy()
    sigma = 0.01 * (truth[-1] - truth[0])
    counted = np.exp(-0.5 * ((curve.x[:, None] - truth) / sigma) ** 2).sum(1)
    off = np.abs(curve.y - np.where(counted > 1e-3, counted, 0))
    assert (off <= 3 * curve.error + 0.02).mean() > 0.97
    assert off.mean() < 0.5 * counted.mean(), "a flat error must not be what covers it"
    lines = np.array(curve.display.lines)
    assert len(lines) >= 10 and np.abs(lines[:, None] - truth).min(1).max() < 1e-3 * truth[-1]


@pytest.mark.parametrize("steps", [8, 12, 40])
def test_shares_of_each_eigenvector_add_up_and_know_their_error(steps):
    snap = snapshot()
    matrix = measured(Hessian(Hessian.Params(k=3, steps=steps)), snap)["hessian/shares"]
    assert matrix.cols.tolist() == ["image", "text", "shared"]
    np.testing.assert_allclose(matrix.values.sum(1), 1)
    vectors = torch.linalg.eigh(dense(snap)).eigenvectors.flip(1).T[:3]
    truth = torch.stack([p.square().sum(-1) for p in snap.problem.layout.split(vectors).values()], 1).numpy()
    assert (np.abs(matrix.values - truth) <= matrix.error + 1e-9).all()
    assert steps < 40 or matrix.error.max() < 1e-3


def test_coupling_is_that_of_the_dense_blocks():
    snap = snapshot()
    matrix, slices = dense(snap), snap.problem.layout.slices
    norms = torch.tensor([[torch.linalg.norm(matrix[a, b]) for b in slices.values()] for a in slices.values()])
    truth = (norms / (norms.diagonal()[:, None] * norms.diagonal()).sqrt()).numpy()
    found = measured(Hessian(Hessian.Params(probes=40)), snap)["hessian/coupling"]
    assert found.rows.tolist() == found.cols.tolist() == ["image", "text", "shared"]
    assert (np.abs(found.values - truth) <= 4 * found.error + 1e-6).all() and found.error.max() < 0.1
    assert 0.01 < truth[0, 1] < 0.99


def test_negative_mass_is_that_of_the_dense_hessian():
    snap = snapshot()
    values = torch.linalg.eigvalsh(dense(snap))
    truth = (values.clamp(max=0).abs().sum() / values.abs().sum()).item()
    found = measured(Hessian(Hessian.Params(steps=300)), snap)["hessian/negative_mass"]
    assert abs(found.value - truth) <= 4 * found.error < 0.5 and 0 < found.value < 1


def test_three_normalisations_of_the_trace_agree():
    snap = snapshot()
    records, size = measured(Hessian(), snap), len(snap.theta)
    trace, mean, scaled = (records[f"hessian/{name}"] for name in ("trace", "trace_mean", "trace_scaled"))
    assert mean.value == pytest.approx(trace.value / size)
    assert scaled.value == pytest.approx(trace.value * snap.theta.square().sum().item() / size)
    blocks = sum(records[f"hessian/{part}/trace"].value for part in snap.problem.layout.slices)
    assert blocks == pytest.approx(trace.value, rel=1e-6), "the whole and its blocks are sampled by the same vectors"


@pytest.mark.parametrize("micro", [7, 32])
def test_pieces_of_the_batch_change_no_number(micro):
    snap = snapshot()
    one, other = (measured(Hessian(Hessian.Params(micro=m)), snap) for m in (0, micro))
    for name in ("hessian/lambda_max", "hessian/trace", "hessian/negative_mass", "hessian/text/lambda_max"):
        assert other[name].value == pytest.approx(one[name].value, rel=1e-6), name
    said = "in 5 pieces of at most 7 rows" if micro == 7 else "; error"
    assert said in other["hessian/trace"].mode


@pytest.mark.parametrize("kind", [Hessian, Ggn])
def test_bad_input_is_refused_in_one_sentence(kind):
    empty, broken = snapshot(), snapshot()
    empty.problem.probe_rows = empty.problem.probe_batch().rows(slice(0))
    broken.theta[0] = float("nan")
    for snap, says in ((empty, "no rows"), (broken, "the loss is nan")):
        with pytest.raises(InputError, match=says) as refusal:
            list(kind().measure(snap))
        assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_concentration_is_the_sum_of_fourth_powers_of_the_top_eigenvector():
    snap = snapshot()
    top = torch.linalg.eigh(dense(snap)).eigenvectors[:, -1]
    found = measured(Hessian(Hessian.Params(parts=False)), snap)["hessian/concentration"]
    assert found.value == pytest.approx(float(top.pow(4).sum()), rel=1e-4)


def test_records_say_rows_matrix_and_seconds():
    for name, record in measured(Hessian(), snapshot()).items():
        assert record.n == 32 and record.mode.startswith("Hessian") and record.seconds > 0, name
        assert record.error is not None and "; error: " in record.mode, name


def test_eigenvalues_are_shown_before_the_trace_is_sampled():
    seen = [record.name for record in Hessian().measure(snapshot())]
    places = [seen.index(f"hessian/{name}") for name in ("lambda_max", "spectrum", "trace", "coupling")]
    assert places == sorted(places) and len(seen) == len(set(seen)) + 1


@pytest.mark.parametrize("steps", [5, 40])
def test_the_largest_eigenvalue_is_shown_first_with_its_error(steps):
    snap, told = snapshot(), []
    first, *others = Hessian(Hessian.Params(steps=steps)).measure(snap)
    assert first.name == "hessian/lambda_max" and "Lanczos steps" in first.mode
    truth = torch.linalg.eigvalsh(dense(snap))
    assert (truth - first.value).abs().min() <= first.error
    last = next(record for record in others if record.name == first.name)
    assert last.value >= first.value - 1e-9 and last.error <= first.error
    with listening(lambda what, done, planned: told.append(done)):
        next(Hessian(Hessian.Params(steps=steps)).measure(snap))
    assert max(told) == min(steps, 6)


def test_parts_can_be_left_out():
    records = measured(Hessian(Hessian.Params(parts=False, k=3)), snapshot())
    assert not [name for name in records if name.split("/")[1] in ("image", "text", "shared", "coupling")]
    assert len(records["hessian/top"].values) == 3


def test_more_eigenvalues_than_steps_or_parameters_are_cut_to_what_there_is():
    records = measured(Hessian(Hessian.Params(k=50, steps=10)), snapshot())
    assert len(records["hessian/top"].values) == 10


def test_float32_agrees_with_float64():
    one, other = (
        measured(Hessian(), snapshot(problem(heads=True, dtype=d), 0)) for d in (torch.float32, torch.float64)
    )
    for name in ("hessian/lambda_max", "hessian/text/lambda_max", "hessian/trace"):
        assert one[name].value == pytest.approx(other[name].value, rel=1e-4)
