"""A run as tables: every number is there, whatever the names are."""

import json

import numpy as np
import pandas as pd
import pytest

from modalscape.engine.core.records import KINDS, Bars, Curve, Matrix, Scalar, Surface
from modalscape.engine.errors import InputError
from modalscape.engine.store.export import COLUMNS, export
from modalscape.engine.store.writer import RunWriter, create

READ = {"csv": lambda path: pd.read_csv(path), "parquet": pd.read_parquet}


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "run"
    home.mkdir()
    create(home)
    writer = RunWriter(home)
    for step in range(3000):
        writer.scalars(step, {"loss/fused": 1 / (step + 1), "lr": 0.1})
    writer.scalar(3000, "loss/fused", float("inf"))
    writer.event(5, "note", {"text": 'a "quoted", line'})
    for step in (10, 20):
        writer.record(step, Curve("hessian/spectrum", np.arange(4.0), np.arange(4.0) + step, n=64, mode="hessian"))
    writer.record(10, Surface("landscape/2d", np.arange(3.0), np.arange(2.0), np.arange(6.0).reshape(2, 3)))
    writer.record(10, Bars("imbalance/accuracy", ["image", "text"], [0.5, 0.25]))
    writer.record(10, Matrix("conflict", ["a", "b"], ["c", "d", "e"], np.arange(6.0).reshape(2, 3)))
    writer.record(10, Scalar("hessian/lambda_max", 3.5, 0.5, n=64))
    writer.record(10, Scalar("../../outside", 1.0))
    writer.close()
    return home


def test_every_kind_of_record_has_a_table():
    assert set(COLUMNS) == set(KINDS)


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_every_number_is_exported(home, tmp_path, to):
    folder = tmp_path / "deep" / "tables"
    written = export(home, to, folder)
    assert all(path.is_file() and path.is_relative_to(folder) and ".." not in path.parts for path in written)

    def table(name):
        return READ[to](folder / f"{name}.{to}")

    scalars = table("scalars")
    assert list(scalars.columns) == ["name", "step", "value"]
    loss = scalars[scalars["name"] == "loss/fused"]
    assert loss["step"].tolist() == list(range(3001)) and loss["value"].iloc[-1] == np.inf
    assert loss["value"].tolist()[:-1] == [1 / (step + 1) for step in range(3000)]
    events = table("events")
    assert json.loads(events["detail"][0]) == {"text": 'a "quoted", line'} and events["step"][0] == 5
    spectrum = table("records/hessian/spectrum")
    assert spectrum["step"].tolist() == [10] * 4 + [20] * 4 and spectrum["y"].tolist() == [
        10,
        11,
        12,
        13,
        20,
        21,
        22,
        23,
    ]
    assert set(spectrum["n"]) == {64} and set(spectrum["mode"]) == {"hessian"}
    surface = table("records/landscape/2d")
    assert surface[["x", "y", "z"]].to_numpy().tolist() == [[x, y, 3 * y + x] for y in (0, 1) for x in (0, 1, 2)]
    bars = table("records/imbalance/accuracy")
    assert bars["label"].tolist() == ["image", "text"] and bars["value"].tolist() == [0.5, 0.25]
    matrix = table("records/conflict")
    assert matrix[["row", "col", "value"]].iloc[4].tolist() == ["b", "d", 4.0]
    assert table("records/hessian/lambda_max")[["value", "error"]].to_numpy().tolist() == [[3.5, 0.5]]
    assert len(written) == 2 + 6


def test_a_run_that_recorded_nothing_gives_empty_tables(tmp_path):
    create(tmp_path)
    scalars, events = export(tmp_path, "csv", tmp_path / "tables")
    assert scalars.read_text() == "name,step,value\n" and events.read_text() == "id,step,time,kind,detail\n"


def test_wrong_requests_are_answered_by_a_sentence(home, tmp_path):
    with pytest.raises(InputError, match="csv or parquet, not to 'xlsx'"):
        export(home, "xlsx", tmp_path / "tables")
    with pytest.raises(InputError, match="holds no run"):
        export(tmp_path / "nowhere", "csv", tmp_path / "tables")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another folder"):
        export(home, "csv", tmp_path / "file")
