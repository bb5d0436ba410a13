"""Curvature at a point, from products with vectors alone: spectra, traces, densities, top eigenpairs.

The names below are for other people's programs too and keep their signatures.
"""

from modalscape.engine.maths.curvature.hessian_spectrum import (
    Spectrum,
    hvp,
    lanczos,
    spectral_density,
    spectrum,
    top_eigenpairs,
    trace,
)

__all__ = ["Spectrum", "hvp", "lanczos", "spectral_density", "spectrum", "top_eigenpairs", "trace"]
