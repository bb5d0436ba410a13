"""Tumours: what is in the rows, and the linear baselines that the docstring states."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.tumours import MODALITIES, tumours
from modalscape.engine.problems.tumours import Tumours
from tests.homes import small, trained

STATED = {"mean": 0.936, "error": 0.880, "worst": 0.979, "all": 0.980}
"""The accuracies of `modalscape.engine.data.tumours`, means over seeds 0 to 19; five seeds are within 0.02 of them."""


def linear(data, names):
    """Return the test accuracy of logistic regression on these modalities side by side."""
    parts = data.batches()
    x = {part: np.concatenate([parts[part].x[name].numpy() for name in names], 1) for part in ("train", "test")}
    model = LogisticRegression(max_iter=5000).fit(x["train"], parts["train"].y.numpy())
    return model.score(x["test"], parts["test"].y.numpy())


def test_the_three_modalities_are_the_measurements_as_they_come():
    data, raw = tumours(Rng(0)), load_breast_cancer()
    joined = np.concatenate([data.x[name] for name in MODALITIES], 1)
    assert data.modalities == ("mean", "error", "worst") == Tumours.modalities
    assert np.array_equal(joined, raw.data.astype(np.float32)) and np.array_equal(data.y, raw.target)
    assert data.class_names == tuple(raw.target_names)


def test_the_split_is_stratified_and_drawn_from_the_seed():
    data = tumours(Rng(0))
    assert data.counts == {"train": 342, "val": 114, "test": 113}
    for part in range(3):
        assert np.bincount(data.y[data.split == part])[0] in (42, 128)
    assert np.array_equal(data.split, tumours(Rng(0)).split) and not np.array_equal(data.split, tumours(Rng(1)).split)


@pytest.mark.parametrize("name", [*MODALITIES, "all"])
def test_linear_models_reach_what_the_docstring_says(name):
    names = MODALITIES if name == "all" else (name,)
    found = [linear(tumours(Rng(seed)), names) for seed in range(5)]
    assert abs(np.mean(found) - STATED[name]) < 0.02


def test_a_run_learns_them(tmp_path):
    run = trained(tmp_path / "run", small(problem="tumours", steps=150, settings={"planted.rows": 600}))
    scores = run.training.problem.evaluate(run.training.state.theta, "test")
    assert scores["accuracy/test"] > 0.93
