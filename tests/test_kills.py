"""Kill -9 at any moment, resume: nothing recorded is lost or doubled, and the replay is identical."""

import pytest

from tests.kills import survives


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, seed):
    survives(tmp_path / "run", seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_two_hundred_killed_runs_go_on_as_if_nothing_had_happened(tmp_path, block):
    failed = {}
    for seed in range(100 + 10 * block, 110 + 10 * block):
        try:
            survives(tmp_path / f"run-{seed}", seed)
        except AssertionError as error:
            failed[seed] = str(error)[:300]
    assert not failed
