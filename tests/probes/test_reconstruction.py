"""The reconstruction probe against regressions done by scikit-learn on the same features, and where it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV

from modalscape.engine.core.method import Stack
from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features.reconstruction import LEVELS
from modalscape.engine.methods.moddrop import ModDrop
from modalscape.engine.probes.reconstruction import Reconstruction
from tests.methods.several import training
from tests.probes.snapshots import measured, snapshot
from tests.tiny import problem


class Fixed:
    """A problem whose encoders pass its inputs on, so that the features are given."""

    def __init__(self, fit: dict, new: dict, y=None, new_y=None) -> None:
        self.modalities = tuple(fit)
        self._fit = Batch(fit, torch.zeros(len(next(iter(fit.values())))) if y is None else y)
        self._new = Batch(new, torch.zeros(len(next(iter(new.values())))) if new_y is None else new_y)

    def probe_batch(self) -> Batch:
        return self._fit

    def held_out(self, part: str):
        yield from self._new.chunks(7)

    def encode(self, theta, batch: Batch) -> dict:
        return batch.x


def drawn(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def found(fit, new, y=None, new_y=None, **settings) -> dict:
    snap = replace(snapshot(steps=0), problem=Fixed(fit, new, y, new_y))
    return {r.name: r for r in Reconstruction(Reconstruction.Params(**settings)).measure(snap)}


def three(rows: int, seed: int) -> dict:
    """Two independent modalities and one that is a linear function of both."""
    a, b = drawn(rows, 4, seed=seed), drawn(rows, 3, seed=seed + 1)
    return {"a": a, "b": b, "c": torch.cat([a @ drawn(4, 2, seed=90), b @ drawn(3, 2, seed=91)], 1)}


def test_each_number_is_that_of_a_regression_by_scikit_learn():
    snap = snapshot()
    records = measured(Reconstruction(), snap)
    (val,) = snap.problem.held_out("val")
    fit, new = (snap.problem.encode(snap.theta, batch) for batch in (snap.problem.probe_batch(), val))
    names = list(fit)
    for i, (target, source) in enumerate([names, names[::-1]]):
        mean, scale = fit[source].mean(0), fit[source].std(0, correction=0)
        theirs = RidgeCV(alphas=[level * len(fit[source]) for level in LEVELS])
        theirs.fit(((fit[source] - mean) / scale).numpy(), fit[target].numpy())
        guess = torch.from_numpy(theirs.predict(((new[source] - mean) / scale).numpy()))
        spread = (new[target] - fit[target].mean(0)).square().sum()
        expected = 1 - ((new[target] - guess).square().sum() / spread).item()
        record = records[f"reconstruction/r2/{target}"]
        assert record.value == pytest.approx(expected) and record.n == 40 and record.error > 0
        assert "fitted on 32 training rows" in record.mode and "val rows" in record.mode
        matrix = records["reconstruction/matrix"]
        assert matrix.values[i, 1 - i] == record.value and matrix.error[i, 1 - i] == record.error
        assert np.isnan(matrix.values[i, i])
    assert list(matrix.rows) == list(matrix.cols) == names


def test_the_matrix_says_who_tells_of_whom():
    """Of c each tells half and both tell all; a and b tell nothing of each other."""
    records = found(three(100, 1), three(80, 5))
    matrix = records["reconstruction/matrix"]
    value = {(t, s): matrix.values[i, j] for i, t in enumerate(matrix.rows) for j, s in enumerate(matrix.cols)}
    assert records["reconstruction/r2/c"].value > 1 - 1e-6
    assert value["c", "a"] + value["c", "b"] == pytest.approx(1, abs=0.15)
    for pair in (("a", "b"), ("b", "a")):
        error = matrix.error[ord(pair[0]) - 97, ord(pair[1]) - 97]
        assert abs(value[pair]) < 4 * error + 0.01
    assert value["a", "c"] > 0.3 and value["b", "c"] > 0.3
    assert not any("within" in name for name in records), "no classes"


def test_within_the_classes_only_what_goes_beyond_the_class_counts():
    """Features of class means and independent noise reconstruct each other until the class is taken away."""
    y, new_y = torch.arange(200) % 4, torch.arange(120) % 4
    means = {m: 5 * drawn(4, 6, seed=30 + i) for i, m in enumerate("ab")}
    shared, new_shared = drawn(200, 1, seed=8), drawn(120, 1, seed=9)
    for part in (0.0, 3.0):
        fit = {m: means[m][y] + drawn(200, 6, seed=1 + i) + part * shared for i, m in enumerate("ab")}
        new = {m: means[m][new_y] + drawn(120, 6, seed=5 + i) + part * new_shared for i, m in enumerate("ab")}
        records = found(fit, new, y, new_y)
        assert records["reconstruction/r2/a"].value > 0.5
        within = records["reconstruction/within/a"]
        truth = part**2 / (part**2 + 1)
        assert within.value == pytest.approx(truth, abs=4 * within.error + 0.05)
        assert within.n == 120 and "class" in within.mode


def test_rows_of_a_class_that_the_fit_has_not_seen_are_left_out_within():
    y, new_y = torch.arange(30) % 2, torch.tensor([0, 1, 2, 2, 1, 0, 0, 5])
    records = found(three(30, 1), three(8, 5), y, new_y)
    assert records["reconstruction/within/a"].n == 5 and records["reconstruction/r2/a"].n == 8
    records = found(three(30, 1), three(8, 5), y, new_y + 2)
    assert not any("within" in name for name in records)


def test_more_features_than_rows_are_served():
    wide = {"a": drawn(20, 300, seed=1), "b": drawn(20, 40, seed=2)}
    records = found(wide, {"a": drawn(50, 300, seed=3), "b": drawn(50, 40, seed=4)})
    for m in wide:
        record = records[f"reconstruction/r2/{m}"]
        assert abs(record.value) < 4 * record.error + 0.05


def test_a_constant_modality_has_no_r2_and_tells_nothing():
    fit, new = ({"a": x["a"], "b": torch.full_like(x["b"], 0.3)} for x in (three(40, 1), three(40, 5)))
    records = found(fit, new)
    assert "reconstruction/r2/b" not in records
    assert records["reconstruction/r2/a"].value == pytest.approx(0, abs=1e-12)
    assert np.isnan(records["reconstruction/matrix"].values[1]).all()


def test_features_are_clean_whatever_method_is_on():
    snap = snapshot()
    off, on = Reconstruction(), replace(snap, stack=Stack([ModDrop(ModDrop.Params(p=0.9))]))
    assert measured(off, snap)["reconstruction/r2/image"].value == measured(off, on)["reconstruction/r2/image"].value


def test_rows_are_limited_and_either_part_is_scored():
    snap = snapshot()
    few = measured(Reconstruction(Reconstruction.Params(rows=10)), snap)
    assert few["reconstruction/r2/image"].n == 10
    values = {
        part: measured(Reconstruction(Reconstruction.Params(part=part)), snap)["reconstruction/r2/image"]
        for part in ("val", "test")
    }
    assert values["val"].value != values["test"].value and "test rows" in values["test"].mode


def refusal(snap, **settings) -> str:
    with pytest.raises(InputError) as caught:
        list(Reconstruction(Reconstruction.Params(**settings)).measure(snap))
    return str(caught.value)


def test_what_cannot_be_measured_is_said_in_a_sentence():
    alone = replace(snapshot(steps=0), problem=Fixed({"audio": drawn(9, 2)}, {"audio": drawn(9, 2)}))
    assert refusal(alone) == (
        "This run trains on audio alone, so there is nothing from which to reconstruct it; use a run of several "
        "modalities."
    )
    empty = problem()
    empty.rows["val"] = empty.rows["val"].rows(slice(0, 0))
    assert refusal(snapshot(empty)) == (
        "There are no val rows to score a reconstruction on; set reconstruction.part to another."
    )
    assert list(Reconstruction(Reconstruction.Params(part="test")).measure(snapshot(empty)))
    few = training(probe_rows=2).snapshot()
    assert refusal(few) == "probe_rows is 2, too few to fit a regression; set it to 3 or more."
    snap = snapshot()
    broken = replace(snap, theta=torch.full_like(snap.theta, torch.nan))
    assert refusal(broken) == "The features of image are not finite at step 20; see the loss."


@pytest.mark.parametrize("modalities", [2, 4])
def test_any_number_of_modalities_of_a_real_run(modalities):
    run = training(modalities=modalities)
    for _ in range(5):
        run.step()
    records = {r.name: r for r in Reconstruction().measure(run.snapshot())}
    names = run.problem.modalities
    assert records["reconstruction/matrix"].values.shape == (modalities, modalities)
    assert {f"reconstruction/{key}/{m}" for key in ("r2", "within") for m in names} <= records.keys()
