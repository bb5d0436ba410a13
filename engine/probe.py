"""Probes: measurements taken between two steps, on a schedule and within a budget, that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from engine.knobs import describe, knob
from engine.method import Stack
from engine.problem import Problem
from engine.records import Bars, Curve, Matrix, Record, Scalar, Surface
from engine.rng import Rng
from engine.step import View

__all__ = ["Bars", "Budget", "Curve", "Matrix", "Probe", "Record", "Scalar", "Snapshot", "Surface", "knob"]


@dataclass(frozen=True)
class Snapshot:
    """What a probe measures: the run between two steps. A checkpoint is one too."""

    step: int
    theta: Tensor
    """(P,); never changed in place, so a slow measurement may go on while training does."""
    problem: Problem
    rng: Rng
    stack: Stack
    view: View | None = None
    """The settled view of the last step; of a checkpoint, the view that the next step begins with."""


class Probe:
    """A measurement. Override `measure`; it must leave no trace in what it is given."""

    name: ClassVar[str]
    """Equal to the file's name."""
    title: ClassVar[str]
    every: ClassVar[int]
    """Steps between two measurements, unless the run says otherwise."""
    cost: ClassVar[str]
    """`cheap`, `fair` or `dear`."""

    @dataclass(frozen=True)
    class Params:
        """No knobs."""

    def __init__(self, params: Any = None) -> None:
        self.params = self.Params() if params is None else params

    @classmethod
    def knobs(cls) -> list[dict[str, Any]]:
        """Return the knobs as JSON values."""
        return describe(cls.Params)

    def measure(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield records; a yielded None is a breathing point, at which training may go on."""
        raise TypeError(f"The probe {self.name!r} does not say how to measure.")


class Budget:
    """The rule that keeps measurements to a share of wall time.

    A scheduled probe may start, and go on, while what all probes have cost so far is within the share; an overrun is at
    most one breath of it, or what a person asked for, and is paid back before anything scheduled goes on.
    """

    def __init__(self, share: float) -> None:
        """Allow `share` (0 to 1) of wall time; 1 lifts the limit."""
        self.share = share
        self.spent = 0.0
        """Seconds spent on measurements."""

    def allows(self, elapsed: float) -> bool:
        """Return whether a scheduled measurement may go on after `elapsed` seconds of training and measuring."""
        return self.share >= 1.0 or self.spent < self.share * elapsed

    def spend(self, seconds: float) -> None:
        """Book what a measurement cost."""
        self.spent += seconds
