"""A spectrum as the records of a measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Matrix, Record, Scalar
from modalscape.engine.maths.curvature.deflated_trace import Coupling
from modalscape.engine.maths.curvature.hessian_spectrum import Spectrum


@dataclass(frozen=True)
class About:
    """What every record of a spectrum says: `matrix` in words, the `rows` of data it is of, the `seconds` it took."""

    matrix: str
    rows: int
    seconds: float

    def bound(self) -> dict:
        """Return the fields of a record whose error is a bound."""
        return self.fields("Lanczos residual bound")

    def sampled(self, which: str = "one standard error") -> dict:
        """Return the fields of a record whose error comes from random vectors."""
        return self.fields(which)

    def fields(self, error: str) -> dict:
        """Return the fields of a record; `error` says what its error is."""
        return {"n": self.rows, "mode": f"{self.matrix}; error: {error}", "seconds": self.seconds}


def largest(found: Spectrum, path: str, about: About) -> Scalar:
    """Return λ_max under `path`."""
    display = Display(y="λ<sub>max</sub>")
    return Scalar(
        f"{path}/lambda_max", found.values[0].item(), found.residuals[0].item(), **about.bound(), display=display
    )


def eigenvalues(found: Spectrum, path: str, size: int, about: About) -> Iterator[Record]:
    """Yield the records that a spectrum of `size` parameters allows before its trace is known, under `path`.

    λ_max and λ_min; negative mass, largest eigenvalues, density.
    """
    bound, sampled = about.bound(), about.sampled()
    yield largest(found, path, about)
    yield Scalar(
        f"{path}/lambda_min", found.smallest, found.smallest_residual, **bound, display=Display(y="λ<sub>min</sub>")
    )
    yield Scalar(
        f"{path}/negative_mass",
        found.negative_mass,
        found.negative_mass_error,
        **about.sampled("one standard error, and what a quarter fewer Lanczos steps change"),
        display=Display(y="Σ|negative| / Σ|all|"),
    )
    yield Bars(
        f"{path}/top",
        labels(found),
        found.values.numpy(),
        found.residuals.numpy(),
        **bound,
        display=Display(title="Largest eigenvalues", y="eigenvalue"),
    )
    yield _density(found, path, size, sampled)


def traced(found: Spectrum, path: str, size: int, square: float, about: About) -> Iterator[Record]:
    """Yield the trace as it is, per parameter, and times ‖w‖²/n, `square` being ‖w‖² of the `size` parameters.

    The last stays where all weights are scaled and the loss does not change.
    """
    sampled = about.sampled()
    for name, scale, words in (
        ("trace", 1.0, "trace"),
        ("trace_mean", 1 / size, "trace / n"),
        ("trace_scaled", square / size, "trace · ‖w‖² / n"),
    ):
        yield Scalar(
            f"{path}/{name}", found.trace * scale, found.trace_error * scale, **sampled, display=Display(y=words)
        )


def _density(found: Spectrum, path: str, size: int, about: dict) -> Curve:
    """Return the density in units of one eigenvalue under the smoothing kernel: one that stands apart has height 1."""
    density = found.density
    unit = size * density.width * math.sqrt(2 * math.pi)
    y, error = density.total() * unit, density.error * unit
    seen = y > 1e-3
    return Curve(
        f"{path}/spectrum",
        density.grid.numpy(),
        torch.where(seen, y, 0.0).numpy(),
        torch.where(seen, error, 0.0).numpy(),
        **about,
        display=Display(
            title=f"Eigenvalue density of {size:,} parameters",
            x="eigenvalue",
            y="eigenvalues within a smoothing width (one that stands apart: 1)",
            ylog=True,
            lines=density.atoms.tolist(),
        ),
    )


def coupled(found: Coupling, path: str, about: About) -> Matrix:
    """Return the coupling between parts as a record."""
    names = np.array(found.names)
    return Matrix(
        f"{path}/coupling",
        names,
        names,
        found.values.numpy(),
        found.error.numpy(),
        **about.sampled(f"one standard error, at most {found.error.max().item():.2g}"),
        display=Display(title="Coupling ‖H_ab‖ / √(‖H_aa‖ ‖H_bb‖)", x="part", y="part"),
    )


def labels(found: Spectrum) -> np.ndarray:
    """Return the names of the largest eigenvalues."""
    return np.array([f"λ{i + 1}" for i in range(len(found.values))])
