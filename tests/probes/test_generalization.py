"""The gap probe against evaluation of whole parts, and where it must be zero."""

import dataclasses

import numpy as np
import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.probes.generalization import Generalization
from modalscape.engine.runtime.session import Training
from tests.methods.several import data_file, training
from tests.probes.snapshots import measured, snapshot
from tests.tiny import problem


def test_numbers_are_those_of_the_evaluation():
    snap = snapshot()
    records = measured(Generalization(), snap)
    truth = snap.problem.evaluate(snap.theta, "val")
    assert records["generalization/loss/val"].value == pytest.approx(truth["loss/val"])
    assert records["generalization/accuracy/val"].value == pytest.approx(truth["accuracy/val"])
    assert records["generalization/loss/val"].n == 40 and records["generalization/loss/train"].n == 80
    loss, score = (records[f"generalization/gap/{name}"].value for name in ("loss", "accuracy"))
    assert loss == pytest.approx(truth["loss/val"] - records["generalization/loss/train"].value)
    assert score == pytest.approx(records["generalization/accuracy/train"].value - truth["accuracy/val"])
    assert loss != 0 and score != 0


def test_rows_seen_twice_have_no_gap():
    same = problem()
    same.rows["test"] = same.rows["val"] = same.rows["train"]
    for part in ("val", "test"):
        records = measured(Generalization(Generalization.Params(part=part)), snapshot(same))
        assert abs(records["generalization/gap/loss"].value) < 1e-12
        assert records["generalization/gap/accuracy"].value == 0
        assert f"generalization/loss/{part}" in records


def test_an_overfitted_network_has_a_positive_gap(tmp_path):
    run = training(data=data_file(tmp_path), label_noise=0.5, hidden=64)
    for _ in range(300):
        run.step()
    records = {r.name: r.value for r in Generalization().measure(run.snapshot())}
    assert records["generalization/gap/loss"] > 0.2 and records["generalization/gap/accuracy"] > 0.2


@pytest.mark.parametrize("objective, score", [("info_nce", "recall@1"), ("squared_error", "error")])
def test_every_objective_has_its_gap(objective, score, tmp_path):
    path = data_file(tmp_path, real=score == "error")
    settings = {"objective": objective, "batch": 16, "width": 6, "hidden": 8}
    run = Training(validated(RunConfig(data=path, device="cpu", settings=settings), catalog()))
    records = {r.name: r for r in Generalization().measure(run.snapshot())}
    values = {name: record.value for name, record in records.items()}
    assert np.isfinite(list(values.values())).all()
    worse = values[f"generalization/{score}/val"] - values[f"generalization/{score}/train"]
    assert values[f"generalization/gap/{score}"] == pytest.approx(worse if score == "error" else -worse)


def test_both_parts_are_read_in_pieces_of_one_size():
    """In a piece, rows compete for recall: as many here as there."""
    few = problem()
    few.rows["val"] = few.rows["val"].rows(slice(0, 8))
    records = measured(Generalization(), snapshot(few))
    assert records["generalization/loss/val"].n == 8 and records["generalization/loss/train"].n == 96


def test_rows_are_limited_and_the_same_every_time():
    snap = snapshot()
    small = Generalization(Generalization.Params(rows=16))
    records = measured(small, snap)
    assert {record.n for record in records.values()} == {16}
    moved = dataclasses.replace(snap, theta=snap.theta + 0.1 * torch.ones_like(snap.theta))
    assert measured(small, moved)["generalization/loss/val"].value != records["generalization/loss/val"].value
