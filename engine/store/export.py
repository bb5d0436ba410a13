"""A run as tables that any program reads: one file of scalars, one of events, one for each record. Free of torch."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np

from modalscape.engine.core.records import Bars, Curve, Matrix, Record, Scalar, Surface
from modalscape.engine.errors import InputError
from modalscape.engine.store.files import brief
from modalscape.engine.store.schema import Unreadable
from modalscape.engine.store.writer import RunReader

if typing.TYPE_CHECKING:
    import pandas as pd


def export(home: Path | str, to: str, folder: Path | str) -> list[Path]:
    """Write the run in `home` into `folder` as `csv` or `parquet` tables; return the files written.

    `scalars` has the columns name, step, value; `events` has id, step, time (seconds since 1970), kind, detail;
    `records/<name>` has every measurement of that name, one number a row, with step, sample count and mode.

    A record that is damaged is left out, and said when all others are written.

    Raises:
        InputError: `to` is another format, there is no run in `home`, the folder cannot be written, or something could
            not be read.
    """
    if to not in WRITE:
        raise InputError(f"A run is exported to {' or '.join(WRITE)}, not to {to!r}.")
    reader, folder = RunReader(home), Path(folder)
    names = reader.names()
    written, missing = [], []
    tables = {"scalars": lambda: numbers(reader), "events": lambda: events(reader)}
    tables |= {f"records/{file_of(name)}": lambda name=name: _record(reader, name) for name in names["records"]}
    for stem, table in tables.items():
        path = folder / f"{stem}.{to}"
        try:
            made = table()
        except Unreadable as error:
            missing.append(error)
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            WRITE[to](made, path)
        except OSError as error:
            raise InputError(
                f"The tables cannot be written to {folder} ({brief(error)}); give another folder."
            ) from None
        written.append(path)
    if missing:
        raise InputError(f"{len(missing)} of {len(tables)} tables were not written to {folder}: {missing[0]}")
    return written


_CSV = {"index": False, "na_rep": "nan"}


def csv(table: pd.DataFrame) -> str:
    """Return a table as CSV, in which what is no number is `nan`."""
    return table.to_csv(**_CSV)


WRITE: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "csv": lambda table, path: table.to_csv(path, **_CSV),
    "parquet": lambda table, path: table.to_parquet(path, index=False),
}
"""Format to what writes a table in it."""


def file_of(name: str) -> str:
    """Return a record's name as a path below the folder, whatever the name holds."""
    return "/".join(quote(part, safe=" @").replace(".", "%2E") or "%" for part in name.split("/"))


def numbers(reader: RunReader) -> pd.DataFrame:
    """Return every recorded number in full, nothing thinned: name, step, value.

    Raises:
        Unreadable: the run is damaged.
    """
    import pandas as pd

    names = reader.names()["scalars"]
    series = [(name, *reader.scalars(name, points=None)) for name in names]
    return pd.DataFrame(
        {
            "name": np.repeat(np.array(names, dtype=object), [len(steps) for _, steps, _ in series]),
            "step": np.concatenate([np.empty(0, np.int64), *(steps for _, steps, _ in series)]),
            "value": np.concatenate([np.empty(0), *(values for _, _, values in series)]),
        }
    )


def events(reader: RunReader) -> pd.DataFrame:
    """Return the events, one a row: id, step, time (seconds since 1970), kind, detail as JSON.

    Raises:
        Unreadable: the run is damaged.
    """
    import pandas as pd

    rows = [(e.id, e.step, e.time, e.kind, json.dumps(e.detail)) for e in reader.events()]
    return pd.DataFrame(rows, columns=["id", "step", "time", "kind", "detail"])


def _record(reader: RunReader, name: str) -> pd.DataFrame:
    """Return all measurements of one name below each other."""
    import pandas as pd

    tables = []
    for step in reader.history(name):
        record = reader.at(name, step)
        table = pd.DataFrame(COLUMNS[record.kind](record))
        table.insert(0, "step", step)
        tables.append(table.assign(n=record.n, mode=record.mode))
    if not tables:
        raise Unreadable(f"The record {name}", "it stands at no step")
    return pd.concat(tables, ignore_index=True)


def _error(record: Scalar | Curve | Bars | Matrix, shape: int | tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan) if record.error is None else np.broadcast_to(record.error, shape)


def _scalar(record: Scalar) -> dict[str, np.ndarray]:
    return {"value": np.array([record.value]), "error": _error(record, 1)}


def _curve(record: Curve) -> dict[str, np.ndarray]:
    return {"x": record.x, "y": record.y, "error": _error(record, len(record.x))}


def _surface(record: Surface) -> dict[str, np.ndarray]:
    y, x = np.meshgrid(record.y, record.x, indexing="ij")
    return {"x": x.ravel(), "y": y.ravel(), "z": record.z.ravel()}


def _bars(record: Bars) -> dict[str, np.ndarray]:
    return {"label": record.labels, "value": record.values, "error": _error(record, len(record.labels))}


def _matrix(record: Matrix) -> dict[str, np.ndarray]:
    rows, cols = np.meshgrid(record.rows, record.cols, indexing="ij")
    error = _error(record, record.values.shape).ravel()
    return {"row": rows.ravel(), "col": cols.ravel(), "value": record.values.ravel(), "error": error}


COLUMNS: dict[str, Callable[[Record], dict[str, np.ndarray]]] = {
    Scalar.kind: _scalar,
    Curve.kind: _curve,
    Surface.kind: _surface,
    Bars.kind: _bars,
    Matrix.kind: _matrix,
}
"""Kind of record to the columns of its table."""
