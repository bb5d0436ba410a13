"""Lessons: a configuration or several, words about what to watch, and the claim that they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from modalscape.engine.errors import InputError


def last(name: str) -> Callable[[Mapping[str, float]], float]:
    """Return a function that gives the last value of a scalar, NaN where a run has none."""
    return lambda scalars: scalars.get(name, math.nan)


def mean_of(start: str, without: str = "") -> Callable[[Mapping[str, float]], float]:
    """Return a function that gives the mean of the scalars whose names begin so, but for one; NaN for none."""

    def mean(scalars: Mapping[str, float]) -> float:
        found = [value for name, value in scalars.items() if name.startswith(start) and name != without]
        return sum(found) / len(found) if found else math.nan

    return mean


CORRUPTED = mean_of("robustness/area/", "robustness/area/missing")
"""The area under accuracy against the severity of noise on one modality, mean over the modalities."""
RECONSTRUCTED = mean_of("reconstruction/within/")
"""Held-out R² of each modality's features from the others', within classes, mean over the modalities."""


class Lesson:
    """A card on Start and a claim that can be tested; override the attributes."""

    name: ClassVar[str]
    """Equal to the file's name."""
    title: ClassVar[str]
    place: ClassVar[int] = 100
    """Where its card stands on Start: small numbers first, ties by name."""
    words: ClassVar[str]
    """Two to four sentences for a student: what to press and what to watch."""
    claim: ClassVar[str]
    """One sentence that the arms can show to be true or false."""
    arms: ClassVar[dict[str, dict[str, Any]]]
    """Arm to the JSON values of a run's configuration; the first is the one that Start offers."""
    control: ClassVar[str]
    """The arm that the first one is compared with."""
    pairs: ClassVar[dict[str, str]] = {}
    """Arm to the arm that it alone is compared with, because it differs from the control in more than it shows."""
    seeds: ClassVar[int] = 3
    scalar: ClassVar[str]
    """Name of the scalar whose last value is compared, unless `statistic` says otherwise."""
    number: ClassVar[str] = ""
    """The statistic in words; empty: the name of the scalar."""
    expect: ClassVar[str]
    """`lower` or `higher`: how the first arm's statistic differs from the control's if the claim holds."""
    further: ClassVar[dict[str, Callable[[Mapping[str, float]], float]]] = {}
    """Words to another number of a run, from the last values of its scalars; printed beside the claim, no verdict.

    Under `best/`, as in `best/accuracy/val`, stand the values at the step of the lowest validation loss, of all scalars
    that were written for just this step: a probe's where it is measured whenever the run is evaluated.
    """
    show: ClassVar[tuple[str, ...]]
    """Pages to open, by name."""

    @classmethod
    def statistic(cls, scalars: Mapping[str, float]) -> float:
        """Return the number that is compared, from the last values of a run's scalars.

        Raises:
            InputError: the run has not written the scalar.
        """
        if cls.scalar not in scalars:
            raise InputError(
                f"The run has no {cls.scalar!r}, which {cls.name} compares; give it the probe that writes it."
            )
        return float(scalars[cls.scalar])
