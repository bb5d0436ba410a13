"""Which of the forms of `feature_noise` a batch gets, and a draw of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.maths.features.feature_noise import Directions, Mixture, Shape

ROUTES = ("svd", "gram", "free")
"""Ways to the shape of the noise: singular values, the Gram matrix, or neither, for linear noise only."""


@dataclass(frozen=True)
class Design:
    """How noise follows from a batch; the words are those of `feature_noise.directions` and `feature_noise.shape`."""

    scaling: str = "sublinear"
    matched: bool = False
    energy: str = "own"
    full: bool = False
    centre: bool = False
    route: str = "svd"

    def directions(self, x: Tensor) -> Directions:
        """Return the principal directions of x (m, n)."""
        return maths.directions(x, centre=self.centre, gram=self.route == "gram")

    def shape(self, found: Directions, scaling: str) -> Shape:
        """Return the shape that noise of a scaling has along the directions of a batch."""
        return maths.shape(found, scaling, matched=self.matched, full=self.full, energy=self.energy)

    def form(self, x: Tensor) -> Shape | Mixture:
        """Return the form of the noise on x (m, n); without a decomposition where the noise is uniform in all of n."""
        base, (m, n) = maths.centred(x, False), x.shape
        if self.route == "free":
            return maths.mixture(base, centre=self.centre, matched=self.matched)
        if self.scaling == "uniform" and self.energy in ("own", "uniform") and (m >= n or self.full):
            return maths.even(base)
        return self.shape(self.directions(base), self.scaling)


def drawn(form: Shape | Mixture, x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Return noise (m, n) for α = 1 on x (m, n); `draw` gives standard normal numbers like the tensor it is given."""
    base = maths.centred(x, False)
    if isinstance(form, Mixture):
        return maths.mixed(draw(base.new_empty(len(base), len(base))), form)
    return maths.noise(draw(base), form)
