"""Traces of blocks, coupling, negative mass against the dense Hessian; restarts of a full basis."""

from __future__ import annotations

import math

import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.deflated_trace import Complement
from modalscape.engine.maths.curvature.hessian_spectrum import (
    GaussNewton,
    empirical_fisher,
    lanczos,
    spectrum,
    spectrum_in_stages,
    top_eigenpairs,
)
from modalscape.engine.maths.curvature.krylov import Krylov, Space
from tests.maths.nets import exact, problem
from tests.maths.test_products import outputs_and_loss, per_row


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coupled(matrix, layout):
    """The coupling and the norms of the blocks of a dense matrix."""
    blocks = [[torch.linalg.norm(matrix[a, b]) for b in layout.slices.values()] for a in layout.slices.values()]
    norms = torch.tensor(blocks, dtype=torch.float64)
    return norms, norms / (norms.diagonal()[:, None] * norms.diagonal()).sqrt()


@pytest.mark.parametrize("steps", [3, 20])
def test_traces_of_the_blocks_lie_within_three_standard_errors(steps):
    _, layout, theta, loss, _ = problem(24)
    dense, _ = exact(24)
    truth = {part: dense[where, where].trace().item() for part, where in layout.slices.items()}
    scores = []
    for seed in range(20):
        found = spectrum(loss, theta, 1, steps, 6, parts=layout.slices, generator=seeded(seed))
        scores += [(found.traces[part][0] - truth[part]) / found.traces[part][1] for part in truth]
        scores.append((found.trace - sum(truth.values())) / found.trace_error)
    assert max(map(abs, scores)) < 3.7, "eighty draws"
    assert 0.4 < torch.tensor(scores).std() < 1.3, "the standard error must be neither idle nor inflated"


def test_vectors_that_live_on_parts_make_the_trace_less_noisy():
    _, layout, theta, loss, _ = problem(24)
    alone, shared = (spectrum(loss, theta, 1, 3, 100, parts=parts).trace_error for parts in (None, layout.slices))
    assert shared < alone


def test_coupling_is_that_of_the_dense_matrix():
    _, layout, theta, loss, _ = problem(24)
    norms, values = coupled(exact(24)[0], layout)
    scores = []
    for seed in range(20):
        found = spectrum(loss, theta, 1, 20, 8, parts=layout.slices, generator=seeded(seed)).coupling
        assert found.names == tuple(layout.slices)
        assert torch.equal(found.values, found.values.T)
        torch.testing.assert_close(found.values.diagonal(), torch.ones(3, dtype=torch.float64))
        aside = ~torch.eye(3, dtype=torch.bool)
        scores += [
            ((found.values - values) / found.error)[aside], ((found.norms - norms) / found.norms_error).flatten()
        ]  # fmt: skip
        assert (found.values - values).abs().max() < 0.05 and found.error.max() < 0.03
    scores = torch.cat(scores)
    assert 0.4 < scores.std() < 1.6, "a jackknife over eight samples is rough, but neither idle nor inflated"


def test_coupling_approaches_the_truth_as_probes_grow():
    _, layout, theta, loss, _ = problem(24)
    _, values = coupled(exact(24)[0], layout)
    few, many = (spectrum(loss, theta, 1, 3, count, parts=layout.slices).coupling for count in (8, 512))
    assert (many.values - values).abs().max() < 4 * many.error.max() < 0.03
    assert few.error.max() / many.error.max() == pytest.approx(8, rel=0.6)


def test_a_complete_basis_knows_coupling_and_traces_exactly():
    _, layout, theta, loss, _ = problem(1)
    dense, _ = exact(1)
    found = spectrum(loss, theta, 1, 1000, parts=layout.slices)
    norms, values = coupled(dense, layout)
    torch.testing.assert_close(found.coupling.values, values, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.coupling.norms, norms, atol=1e-10, rtol=0)
    assert ((found.coupling.norms - norms).abs() <= found.coupling.norms_error).all()
    for part, where in layout.slices.items():
        assert found.traces[part][0] == pytest.approx(dense[where, where].trace().item(), abs=1e-10)


def test_parts_that_do_not_meet_are_not_coupled():
    curved = torch.linspace(1, 3, 40, dtype=torch.float64)
    found = spectrum(
        lambda w: (curved * w**4).sum(), torch.ones(40, dtype=torch.float64), 1, 5,
        parts={"left": slice(0, 15), "right": slice(15, 40)},
    ).coupling  # fmt: skip
    assert found.values[0, 1] < 4 * found.error[0, 1] + 1e-6 and found.values[0, 0] == pytest.approx(1)


def test_no_coupling_exceeds_one_in_a_positive_matrix():
    theta, outputs, loss = outputs_and_loss("cross_entropy")
    layout = problem()[1]
    for matrix in (GaussNewton(outputs, loss), empirical_fisher(per_row()[1])):
        found = spectrum(matrix, theta, 1, 20, 32, parts=layout.slices).coupling
        assert found.values.max() <= 1 + 1e-9
        assert found.values[0, 2] > 0.2


def test_one_probe_tells_no_error_of_a_coupling():
    _, layout, theta, loss, _ = problem()
    assert spectrum(loss, theta, 1, 10, 1, parts=layout.slices).coupling is None


def test_coupling_and_negative_mass_do_not_depend_on_the_scale_of_the_loss():
    _, layout, theta, loss, _ = problem(dtype=torch.float32)
    theta = problem()[2].float()
    one = spectrum(loss, theta, parts=layout.slices)
    for scale in (1e-7, 1e7):
        other = spectrum(lambda w, c=scale: loss(w) * c, theta, parts=layout.slices)
        torch.testing.assert_close(other.coupling.values, one.coupling.values, atol=1e-3, rtol=0)
        torch.testing.assert_close(other.coupling.error, one.coupling.error, atol=1e-3, rtol=0)
        torch.testing.assert_close(other.coupling.norms / scale, one.coupling.norms, atol=0, rtol=1e-3)
        assert other.negative_mass == pytest.approx(one.negative_mass, abs=1e-3)
        for part, (value, error) in one.traces.items():
            assert other.traces[part][0] / scale == pytest.approx(value, rel=1e-3)
            assert other.traces[part][1] / scale == pytest.approx(error, rel=1e-2)


def test_negative_mass_is_that_of_the_dense_matrix():
    _, _, theta, loss, _ = problem(24)
    values = exact(24)[1]
    truth = (values.clamp(max=0).abs().sum() / values.abs().sum()).item()
    scores = []
    for seed in range(20):
        found = spectrum(loss, theta, 1, 40, 1, generator=seeded(seed))
        scores.append((found.negative_mass - truth) / found.negative_mass_error)
        assert abs(found.negative_mass - truth) < 0.15 and found.negative_mass_error < 0.08
    # A start that hardly touches one of the few large negative eigenvalues cannot know what it misses.
    assert sum(abs(score) > 3 for score in scores) <= 1
    assert 0.5 < torch.tensor(scores).std() < 1.5, "the error must be neither idle nor inflated"
    assert spectrum(loss, theta, 1, 1000).negative_mass == pytest.approx(truth, abs=1e-9)


def test_negative_mass_is_one_for_the_negated_bowl():
    assert spectrum(lambda w: -(w**2).sum(), torch.ones(30), 1, 3).negative_mass == 1
    assert spectrum(lambda w: w.sum(), torch.ones(30), 1, 3).negative_mass == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_basis_that_fills_its_memory_is_restarted(dtype):
    _, _, theta, loss, _ = problem(24, dtype)
    theta = problem(24)[2].to(dtype)
    _, truth = exact(24)
    room = 12 * len(theta) * theta.element_size()
    values, vectors, residuals = top_eigenpairs(loss, theta, 5, 1e-5, memory=room)
    assert (residuals <= 1e-5 * values).all()
    assert ((values - truth[:5]).abs() <= residuals).all()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5, dtype=dtype), atol=1e-4, rtol=0)


def test_residual_bounds_hold_at_once_after_a_restart():
    _, _, theta, loss, _ = problem(24)
    krylov = Krylov(Space(loss, theta, None, seeded(0))).extended(10)
    values, coordinates, _ = krylov.result().ritz()
    krylov.restart(coordinates[:, :6], values[:6])
    for _ in range(4):
        krylov.extended(3)
        run = krylov.result()
        dense = exact(24)[0]
        torch.testing.assert_close(run.basis @ run.basis.T, torch.eye(len(run.basis), dtype=torch.float64))
        torch.testing.assert_close(run.basis @ dense @ run.basis.T, run.matrix)
        values, coordinates, residuals = run.ritz()
        vectors = run.vectors(coordinates)
        left = torch.linalg.vector_norm(vectors @ dense - values[:, None] * vectors, dim=1)
        assert (left <= residuals + 1e-12).all()


def test_fewer_steps_are_taken_where_memory_is_short_and_said():
    _, _, theta, loss, _ = problem()
    row = len(theta) * 8
    found = spectrum(loss, theta, 2, 40, memory=10.5 * row)
    assert found.note.startswith("the basis was kept to 10 of 40 Lanczos vectors")
    assert found.products == 18 and not spectrum(loss, theta, 2, 40).note
    with pytest.raises(InputError, match="does not fit into 0 MB") as refusal:
        spectrum(loss, theta, 5, 40, memory=3 * row)
    assert "\n" not in str(refusal.value)


def test_parts_and_a_mask_are_refused():
    _, layout, theta, loss, _ = problem()
    with pytest.raises(InputError, match="one of the two"):
        spectrum(loss, theta, parts=layout.slices, mask=layout.mask("a"))


def test_a_run_may_end_early_where_nothing_would_change():
    _, _, theta, loss, _ = problem()
    _, truth = exact()
    *_, early = spectrum_in_stages(loss, theta, 3, 100, 8, early=True)
    whole = spectrum(loss, theta, 3, 100, 8)
    assert early.products < whole.products
    assert ((early.values - truth[:3]).abs() <= 1e-4 * truth[:3]).all()
    grid = early.density.grid
    change = (early.density.total() - _at(grid, whole)).abs()
    assert change.mean() < 2 * early.density.error.mean()


def test_the_first_stage_is_the_spectrum_before_its_trace():
    _, layout, theta, loss, _ = problem()
    first, last = spectrum_in_stages(loss, theta, 3, 20, 4, parts=layout.slices)
    assert first.products == 20 and last.products == 20 + 4 * 3
    assert torch.equal(first.values, last.values) and torch.equal(first.density.density, last.density.density)
    assert math.isnan(first.trace) and first.coupling is None and not first.traces
    whole = spectrum(loss, theta, 3, 20, 4, parts=layout.slices)
    glance, *_, same = spectrum_in_stages(loss, theta, 3, 20, 4, parts=layout.slices, glance=2)
    assert len(glance.values) == glance.products == 2 and same.trace == whole.trace
    assert last.trace == whole.trace and torch.equal(last.coupling.values, whole.coupling.values)


def _at(grid, found):
    import numpy as np

    return torch.from_numpy(np.interp(grid, found.density.grid, found.density.total()))


def test_a_single_vector_says_how_wrong_it_may_be():
    _, layout, theta, loss, _ = problem()
    krylov = Krylov(Space(loss, theta, None, seeded(0))).extended(5)
    rest = Complement(krylov, layout.slices)
    rest.probe()
    assert all(error > 0 and math.isfinite(error) for _, error in rest.traces().values())
    assert len(lanczos(loss, theta, 5).basis) == 5
