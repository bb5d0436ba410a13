"""One number against another: which points, in which order, and what is said of them."""

import json

import numpy as np
import pytest

from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.runs.status import folder
from modalscape.app.server.routes import Desk
from modalscape.app.theme import look
from modalscape.engine.core.records import Scalar
from modalscape.engine.store.writer import RunReader, RunWriter, create
from tests.app.test_pages import RUN, mounted, opened, texts
from tests.fixture_run import write_run

PLAIN = look(False, ["image", "text"], [])


def drawn(home, x, y, names=("a/x", "a/y")):
    home.mkdir()
    create(home)
    writer = RunWriter(home)
    for name, values in zip(("a/x", "a/y"), (x, y), strict=True):
        for step, value in values.items():
            writer.record(step, Scalar(name, value))
    writer.close()
    return CHARTS["against"].draw(
        RunReader(home), checked("against", {"names": list(names), "as": "x", "y": "y"}), PLAIN
    )


def test_each_point_has_the_newest_x_that_was_known(tmp_path):
    found = drawn(tmp_path / "run", {10: 1.0, 20: 2.0, 35: 3.0}, {5: 9.0, 15: 0.3, 30: 0.2, 40: 0.1})
    (trace,) = found.figure.data
    assert np.allclose(trace.x, [1, 2, 3]) and np.allclose(trace.y, [0.3, 0.2, 0.1])
    assert list(trace.customdata) == [15, 30, 40]
    assert "ρ = -1.00, n = 3 steps of one run" in found.caption


@pytest.mark.parametrize("y", [{}, {15: 0.3, 30: 0.2}])
def test_it_waits_for_three_points(tmp_path, y):
    found = drawn(tmp_path / "run", {10: 1.0, 20: 2.0}, y)
    assert found.figure is None and ("2 of at least 3 points" in found.empty) == bool(y)


def test_what_does_not_change_has_no_correlation(tmp_path):
    found = drawn(tmp_path / "run", {0: 1.0}, {10: 0.3, 20: 0.2, 30: 0.1})
    assert found.figure is not None and "does not change" in found.caption


def test_the_page_draws_it_for_a_run_with_a_collapse_and_no_other(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")
    home = write_run(folder() / RUN)
    assert "follow the collapse" not in texts(opened("55_robustness.py", RUN))
    writer = RunWriter(home)
    for step in range(0, 400, 50):
        writer.record(step, Scalar("modalimmune/severity_attacked", step / 400))
    writer.close()
    at = opened("55_robustness.py", RUN)
    assert not at.exception and "follow the collapse" in texts(at)
    (chart,) = [data for data in mounted(at) if data.get("name") == "against"]
    answer = json.loads(Desk().pulse(RUN, json.dumps([["against", chart["args"], ""]]), False))["charts"][0]
    assert answer["figure"] is not None
