"""The five kinds of record that a measurement leaves, and nothing else.

A record is a frozen value: a path-like name, its arrays, and what a reader needs in order to trust it: the number of
samples, the matrix or mode that was measured, and the seconds it took. This module is free of torch, so that the
dashboard can read what the engine wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from modalscape.engine.core.display import Display


@dataclass(frozen=True)
class Record:
    """What every kind of record carries beside its arrays."""

    kind: ClassVar[str]
    """One word for the class: `scalar`, `curve`, `surface`, `bars`, `matrix`."""
    arrays: ClassVar[tuple[str, ...]]
    """The fields that hold numbers or names, in the order in which they are stored."""

    name: str
    """Path of the record, such as `hessian/spectrum`; the first segment is the probe or method that made it."""
    n: int | None = field(default=None, kw_only=True)
    """Samples used, or None where the record is exact by construction."""
    mode: str = field(default="", kw_only=True)
    """Matrix or protocol measured, such as `hessian`, `ggn`, `others' inputs at their neutral value`."""
    seconds: float | None = field(default=None, kw_only=True)
    """Wall time that the measurement took, in seconds."""
    display: Display = field(default_factory=Display, kw_only=True)
    """How it asks to be drawn."""

    def __post_init__(self) -> None:
        """Hold an error that is nan throughout, such as that of a single sample, as what it is: not known."""
        error = np.asarray(getattr(self, "error", None))
        if error.dtype.kind == "f" and error.size and np.isnan(error).all():
            object.__setattr__(self, "error", None)


@dataclass(frozen=True)
class Scalar(Record):
    """One number; `error` is one standard error or a rigorous bound, as `mode` says, or None where none is known."""

    kind: ClassVar[str] = "scalar"
    arrays: ClassVar[tuple[str, ...]] = ("value", "error")

    value: float
    error: float | None = None


@dataclass(frozen=True)
class Curve(Record):
    """A function sampled at `x` (N,): `y` (N,) and, where it is known, its error (N,)."""

    kind: ClassVar[str] = "curve"
    arrays: ClassVar[tuple[str, ...]] = ("x", "y", "error")

    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None


@dataclass(frozen=True)
class Surface(Record):
    """A function on a grid: `z` (len(y), len(x))."""

    kind: ClassVar[str] = "surface"
    arrays: ClassVar[tuple[str, ...]] = ("x", "y", "z")

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


@dataclass(frozen=True)
class Bars(Record):
    """One value for each of a few named things."""

    kind: ClassVar[str] = "bars"
    arrays: ClassVar[tuple[str, ...]] = ("labels", "values", "error")

    labels: np.ndarray
    values: np.ndarray
    error: np.ndarray | None = None


@dataclass(frozen=True)
class Matrix(Record):
    """One value for each pair of named things: `values` (len(rows), len(cols)), their errors where they are known."""

    kind: ClassVar[str] = "matrix"
    arrays: ClassVar[tuple[str, ...]] = ("rows", "cols", "values", "error")

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    error: np.ndarray | None = None


KINDS: dict[str, type[Record]] = {kind.kind: kind for kind in (Scalar, Curve, Surface, Bars, Matrix)}
