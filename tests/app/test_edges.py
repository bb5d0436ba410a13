"""The stability line of a method's noise: the formula of what it reported, with the eigenvector's concentration."""

import numpy as np
import pytest

from modalscape.app.charts import registry
from modalscape.app.charts.request import arguments
from modalscape.app.charts.stability_edge import noisy_edges, told, within
from modalscape.app.theme import look
from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Scalar
from modalscape.engine.core.stability import stability_bound
from modalscape.engine.store.writer import RunReader, RunWriter, create

LOOK = look(False, ["image", "text"], ["gani"])
TITLES = {"gani": "GANI"}


@pytest.fixture
def written(tmp_path):
    """A run in which GANI reports from step 100 to step 300, and the Hessian is measured every 100 steps."""
    create(tmp_path)
    writer = RunWriter(tmp_path)
    writer.meta("settings", {"report": 20})
    writer.meta("optimizer", {"name": "sgd", "lr": 0.1, "momentum": 0.0})
    for step in range(0, 501, 20):
        if 100 <= step <= 300:
            edge = {"lr": 0.1, "sigma": 0.01 * step, "momentum": 0.0, "placement": "decoupled"}
            writer.record(step, Scalar("gani/lambda_bound", 1.0, display=Display(edge=edge)))
    for step in range(0, 501, 100):
        writer.record(step, Scalar("hessian/lambda_max", 5.0, 0.1))
        writer.record(step, Scalar("hessian/concentration", 0.25))
    writer.flush()
    writer.close()
    return RunReader(tmp_path)


def test_the_line_is_the_bound_with_the_eigenvectors_share_of_the_noise(written):
    (line,) = noisy_edges(written, range(0, 501, 100), LOOK, TITLES)
    wanted = [stability_bound(0.1, 0.5 * 0.01 * step) for step in (100, 200, 300)]
    np.testing.assert_allclose(line.values, [np.nan, *wanted, np.nan, np.nan])
    assert line.values[1] == pytest.approx(20 / 1.25)
    assert line.label == "stable below, with GANI" and line.colour == LOOK.methods["gani"]


def test_noise_that_was_measured_along_the_gradient_is_taken_as_it_is(written):
    writer = RunWriter(written.path.parent)
    edge = {"lr": 0.1, "sigma": 2.0, "momentum": 0.0, "placement": "decoupled", "along": "gradient"}
    writer.record(500, Scalar("gani/lambda_bound", 1.0, display=Display(edge=edge)))
    writer.close()
    (line,) = noisy_edges(RunReader(written.path.parent), [500], LOOK, TITLES)
    assert line.values.tolist() == [pytest.approx(20 / 5)]
    assert line.label == "stable below, with GANI, by its noise along the gradient"
    assert "deterministic" not in told([line])


def test_lines_far_above_are_told_and_not_drawn(written):
    lines = noisy_edges(written, range(0, 501, 100), LOOK, TITLES)
    (drawn,) = within(lines, 10.0)
    assert np.isfinite(drawn.values).tolist() == [False, False, True, True, False, False]
    assert within(lines, 1.0) == []
    assert "stable below, with GANI: λ = 6.15" in told(lines) and told([]) == ""


def test_the_sharpness_chart_draws_it(written):
    drawing = registry.CHARTS["sharpness"].draw(written, arguments({}), LOOK)
    assert "stable below, with GANI" in [trace.name for trace in drawing.figure.data]
    assert "deterministic gradient" in drawing.caption


def test_a_run_without_noise_or_measurement_has_no_line(tmp_path):
    create(tmp_path)
    writer = RunWriter(tmp_path)
    writer.record(0, Scalar("hessian/lambda_max", 5.0))
    writer.record(0, Scalar("gani/lambda_bound", 1.0))
    writer.flush()
    writer.close()
    assert noisy_edges(RunReader(tmp_path), [0], LOOK, TITLES) == []
