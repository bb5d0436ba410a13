"""Probes: measurements of a run between two of its steps, that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from modalscape.engine.core.knobs import describe, knob
from modalscape.engine.core.method import Stack
from modalscape.engine.core.optimizer import Optimizer
from modalscape.engine.core.problem import Problem
from modalscape.engine.core.records import Bars, Curve, Matrix, Record, Scalar, Surface
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.evaluate import Losses

__all__ = ["Bars", "Curve", "Matrix", "Probe", "Record", "Scalar", "Snapshot", "Surface", "knob"]


@dataclass(frozen=True)
class Neighbour:
    """Another run of the same network, at its last checkpoint."""

    run: str
    """Its id."""
    step: int
    theta: Tensor
    """(P,)"""
    words: str = ""
    """Where its training rows may not be this run's, in words, or nothing."""


def _nobody(run: str) -> Neighbour:
    """Refuse to find a neighbour.

    Raises:
        InputError: always.
    """
    raise InputError(f"This run has no folder, so {run!r} cannot lie beside it; measure a run that has one.")


@dataclass(frozen=True)
class Snapshot:
    """What a probe measures: the run between two steps. A checkpoint is one too."""

    step: int
    theta: Tensor
    """(P,); never changed in place."""
    problem: Problem
    rng: Rng
    stack: Stack
    view: View | None = None
    """The settled view of the step that comes next, taken at `theta`."""
    path: Callable[[], list[tuple[int, Tensor]]] = list
    """Returns the past as the run kept it: (step, theta (P,)), oldest first, without the present."""
    other: Callable[[str], Neighbour] = _nobody
    """Returns the run of an id that lies beside this one, or raises an `InputError`."""
    optimizer: Optimizer | None = None
    moments: dict[str, Any] = field(default_factory=dict)
    """The optimiser's memory at `theta`."""

    def losses(self) -> tuple[tuple[str, ...], Losses]:
        """Return names and a function from theta (P,) to the losses (L,) on the probe rows, from one forward pass.

        The joint loss comes first, under the empty name, then each unimodal loss under its modality.
        """
        problem, batch = self.problem, self.problem.probe_batch()

        def named(theta: Tensor) -> dict[str, Tensor]:
            return problem.objectives(theta, problem.encode(theta, batch), batch)[0]

        with torch.no_grad():
            own = [name for name in named(self.theta) if name in problem.modalities]

        def losses(theta: Tensor) -> Tensor:
            found = named(theta)
            return torch.stack([sum(found.values()), *(found[name] for name in own)])

        return ("", *own), losses


def several(title: str, modalities: Sequence[str]) -> None:
    """Refuse a problem of one modality, for the measurement of that title.

    Raises:
        InputError: there are fewer than two.
    """
    if len(modalities) < 2:
        raise InputError(f"{title} compares modalities, but this run trains on {modalities[0]} alone; use one of more.")


class Probe:
    """A measurement. Override `measure`; it must leave no trace in what it is given."""

    name: ClassVar[str]
    """Equal to the file's name."""
    title: ClassVar[str]
    every: ClassVar[int]
    """Steps between two measurements, unless the run says otherwise."""
    cost: ClassVar[str]
    """`low`, `medium` or `high`."""
    usual: ClassVar[bool] = True
    """Whether runs started from the dashboard are measured with it unless told otherwise."""
    needs: ClassVar[str] = ""
    """The knob without which nothing can be measured, if there is one."""

    @dataclass(frozen=True)
    class Params:
        """No knobs."""

    def __init__(self, params: Any = None) -> None:
        self.params = self.Params() if params is None else params

    @classmethod
    def knobs(cls) -> list[dict[str, Any]]:
        """Return the knobs as JSON values."""
        return describe(cls.Params)

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield records; of a picture that grows finer, several under one name, the coarse ones first."""
        raise TypeError(f"The probe {self.name!r} does not say how to measure.")
