"""Nothing from outside shows a traceback: thousands of odd inputs end with a result or with one sentence."""

import pytest

from modalscape.app.runs.status import folder
from tests.fixture_run import write_run
from tests.fuzz import inputs

FEW = {"npz": 60, "configuration": 120, "--set": 100, "--probe": 80, "command": 120, "route": 60}
MANY = {"npz": 2000, "configuration": 2500, "--set": 1500, "--probe": 1000, "command": 2500, "route": 1500}


def check(kind, count, seed, tmp_path, capsys):
    more = {}
    if kind == "route":
        more = {"served": inputs.client(), "home": write_run(folder() / inputs.RUN)}
    line, leaks = inputs.timed(kind, count, seed, tmp_path, **more)
    with capsys.disabled():
        print(f"\n{line}")
    assert not leaks, "\n".join(f"{n} x {where}" for where, n in leaks.most_common(40))


@pytest.mark.parametrize("kind", FEW)
def test_odd_inputs_are_used_or_refused_in_a_sentence(kind, tmp_path, capsys):
    check(kind, FEW[kind], 0, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_ten_thousand_odd_inputs_are_used_or_refused_in_a_sentence(kind, tmp_path, capsys):
    check(kind, MANY[kind], 1, tmp_path, capsys)
