"""Planted evidence: the stated Bayes accuracies are those of the rows."""

from dataclasses import replace

import numpy as np
import pytest

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.planted import NAMES, Params, bayes_accuracy, planted
from modalscape.engine.errors import InputError


def fitted_accuracy(x, y, train, classes):
    """Accuracy on the rows outside `train` of least squares on one-hot targets: the Bayes rule, were rows unlimited."""
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.linalg.lstsq(inputs[train], np.eye(classes)[y[train]], rcond=1e-6)[0]
    return float(((inputs[~train] @ weights).argmax(1) == y[~train]).mean())


@pytest.mark.parametrize("params", [Params(), Params("2,1,0.5", 0.0, 3), Params("1,1", 2.0, 6), Params("0,2", 0.7, 2)])
def test_bayes_accuracy_is_reached_and_not_passed(params):
    params = replace(params, rows=40_000)
    data = planted(params, Rng(3))
    train = data.split == 0
    inputs = data.x | {"fused": np.concatenate(list(data.x.values()), axis=1)}
    for name, best in bayes_accuracy(params).items():
        error = np.sqrt(best * (1 - best) / 2000)
        got = fitted_accuracy(inputs[name].astype(float), data.y, train, params.classes)
        assert abs(got - best) < 3.5 * error, (name, got, best, error)


@pytest.mark.parametrize(("strength", "classes"), [(0.0, 5), (0.8, 2), (1.5, 4), (3.0, 20)])
def test_the_integral_agrees_with_sampling(strength, classes):
    draw = np.random.default_rng(0)
    scores = draw.standard_normal((400_000, classes))
    scores[:, 0] += strength
    sampled = (scores.argmax(1) == 0).mean()
    best = bayes_accuracy(Params(f"{strength},0", 0.0, classes))[NAMES[0]]
    assert abs(best - sampled) < 4 * np.sqrt(best * (1 - best) / 400_000)


def test_nothing_known_is_chance_and_all_known_is_certain():
    assert bayes_accuracy(Params("0,0", 0.0, 8))["fused"] == pytest.approx(1 / 8, abs=1e-12)
    assert bayes_accuracy(Params("10,10", 10.0, 2))["fused"] == pytest.approx(1.0, abs=1e-12)


def test_redundant_evidence_adds_nothing_and_unique_evidence_adds():
    redundant = bayes_accuracy(Params("0,0", 2.0))
    assert redundant["fused"] == redundant["vision"] == redundant["audio"]
    unique = bayes_accuracy(Params("2,2", 0.0))
    assert unique["fused"] > unique["vision"] + 0.05


def test_the_number_of_strengths_is_the_number_of_modalities():
    data = planted(Params(",".join(["1"] * 10), rows=50), Rng(0))
    assert data.modalities == NAMES and set(bayes_accuracy(Params("1,1,1"))) == {*NAMES[:3], "fused"}


def test_rows_follow_the_seed():
    first, again, other = (planted(Params(), Rng(seed)).x["vision"] for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("unique", ["", "1", "a,b", "1,-1", "1,nan", "1,11", ",".join(["1"] * 11)])
def test_bad_strengths_are_refused_in_one_sentence(unique):
    with pytest.raises(InputError, match="two to ten numbers"):
        planted(Params(unique), Rng(0))


def test_too_few_dimensions_are_refused():
    with pytest.raises(InputError, match="at least twice the 4 classes, 8, not 7"):
        planted(Params(dimensions=7), Rng(0))
