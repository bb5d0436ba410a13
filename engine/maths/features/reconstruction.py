"""How well some features can be predicted from others by ridge regression: fit, choice of the penalty, held-out R².

Letters: X (n, p) are the sources, Y (n, d) the targets, new rows are (N, p) and (N, d). Rows may belong to groups, such
as classes; each group has an intercept of its own, free of penalty, and without groups there is one. Sources are
standardised on the rows of the fit, so the scale of a feature does not matter; constant sources get no weight.
Everything is worked out in float64 from the eigenvalues s² of the smaller of XᵀX and XXᵀ, X = U diag(s) Vᵀ centred: no
penalty is so small that their rounding would show, and fewer rows than features are served as well.

*Source*: leave-one-out residuals of ridge regression, Golub, Heath and Wahba, 1979, with the intercepts in the
leverages; jackknife of a ratio, Quenouille, 1956.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import torch
from torch import Tensor

from modalscape.engine.errors import InputError

LEVELS = tuple(10.0 ** (k / 2) for k in range(8, -9, -1))
"""Penalties λ/n among which one is chosen, largest first: at 10⁴ nothing is left but the mean, at 10⁻⁴ no more than a
ten-thousandth of a feature's variance is added to its own."""
FEWEST = 3
"""Rows that a fit needs: with two, each row left out is predicted by the other."""


@dataclass(frozen=True)
class Ridge:
    """A fitted regression; `model(x)` predicts."""

    mean: Tensor
    """(groups, p), of the sources on the rows of the fit."""
    weight: Tensor
    """(p, d), of the sources in their own units."""
    offset: Tensor
    """(groups, d), the mean of the targets on the rows of the fit."""
    level: float
    """λ/n."""

    def __call__(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the prediction (N, d) for new sources (N, p) in groups (N,) of the fit, float64."""
        groups = _one(x) if groups is None else groups
        return (x.double() - self.mean[groups]) @ self.weight + self.offset[groups]


class Sources:
    """Sources X (n, p), standardised and decomposed once for any number of targets."""

    def __init__(self, x: Tensor, groups: Tensor | None = None) -> None:
        """Decompose finite X; groups (n,) are numbers from 0 on.

        Raises:
            InputError: fewer rows than `FEWEST`.
        """
        if len(x) < FEWEST:
            raise InputError(f"A regression on {len(x)} rows says nothing; give it {FEWEST} rows or more.")
        self._hot = torch.nn.functional.one_hot(_one(x) if groups is None else groups).double()
        self.mean, z = self._centred(x)
        self.scale = z.square().mean(0).sqrt()
        self._z = torch.where(self.scale > 0, z / self.scale, 0.0)
        self._wide = z.shape[1] >= len(z)
        squares, self._vectors = torch.linalg.eigh(self._z @ self._z.T if self._wide else self._z.T @ self._z)
        self._squares = squares.clamp(min=0)
        self._scores = self._vectors * self._squares.sqrt() if self._wide else self._z @ self._vectors

    def left_out(self, y: Tensor, level: float) -> Tensor:
        """Return by how much each row of the targets (n, d) is missed when the fit at λ/n = `level` is without it.

        e/(1 - h), with the residuals e (n, d) of the fit to all rows and the leverages h = 1/n_g + Σ_k u_k² s_k²/(s_k²
        + λ), n_g the rows of the row's group: exact for sources that keep the scale they have on all rows. The only row
        of a group says nothing of the penalty and counts 0.
        """
        return self._left_out(*self._projected(y)[1:], level)

    def fit(self, y: Tensor, levels: Sequence[float] = LEVELS) -> Ridge:
        """Return the regression of the targets (n, d) with the penalty whose left-out rows are missed least.

        One penalty serves all columns; they count by their variance. Of equals the one that comes first is taken.
        """
        offset, centred, inner = self._projected(y)
        missed = [self._left_out(centred, inner, level).square().sum().item() for level in levels]
        level = levels[min(range(len(levels)), key=missed.__getitem__)]
        inverse = 1.0 / (self._squares + level * len(y))[:, None]
        if self._wide:
            weight = self._z.T @ (self._vectors @ (inverse * (self._vectors.T @ centred)))
        else:
            weight = self._vectors @ (inverse * inner)
        weight = torch.where(self.scale[:, None] > 0, weight / self.scale[:, None], 0.0)
        return Ridge(self.mean, weight, offset, level)

    def _projected(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and centred targets, as `_centred` does, and diag(s) Uᵀ Y (r, d)."""
        mean, centred = self._centred(y)
        return mean, centred, self._scores.T @ centred

    def _left_out(self, y: Tensor, inner: Tensor, level: float) -> Tensor:
        inverse = 1.0 / (self._squares + level * len(y))
        leverage = self._hot @ (1.0 / self._hot.sum(0).clamp(min=1)) + self._scores.square() @ inverse
        missed = (y - (self._scores * inverse) @ inner) / (1.0 - leverage)[:, None]
        return torch.where(leverage[:, None] < 1.0 - 1e-9, missed, 0.0)

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of x (n, k) in each group, (groups, k), and x less its group's, 0 where rounding is all."""
        mean = self._hot.T @ x.double() / self._hot.sum(0).clamp(min=1)[:, None]
        rest = x.double() - self._hot @ mean
        return mean, torch.where(rest.abs() > _rounding(x), rest, 0.0)


def explained(y: Tensor, guess: Tensor, centre: Tensor) -> tuple[float, float]:
    """Return held-out R² of a guess at new targets (N, d) and its standard error; nan for targets that are constant.

    R² = 1 - Σ|y - guess|²/Σ|y - centre|² over rows and columns: the mean of the columns' own R², weighted by their
    variances. `centre`, (d,) or (N, d), is the mean on the rows of the fit, so 0 is what one knows without any source,
    and less is worse than that; about the new rows' own mean, as scikit-learn has it, a constant would fall below 0.

    The error is the jackknife over the new rows, in closed form, the fit held as it is: rows are taken to be
    independent, and that other training rows would give another fit is not in it. Of one row it is nan.
    """
    missed = (y.double() - guess.double()).square().sum(1)
    spread = (y.double() - centre.double()).square().sum(1)
    if not len(y) or spread.sum() <= len(y) * _rounding(y).square().sum():
        return nan, nan
    return 1.0 - (missed.sum() / spread.sum()).item(), ratio_error(missed, spread)


def ratio_error(above: Tensor, below: Tensor) -> float:
    """Return the jackknife standard error of Σ above/Σ below, (N,) each; nan for one row, or where a row is all."""
    n, rest = len(above), below.sum() - below
    if n < 2 or not (rest > 0).all():
        return nan
    without = (above.sum() - above) / rest
    return sqrt((n - 1) / n * (without - without.mean()).square().sum().item())


def _rounding(x: Tensor) -> Tensor:
    """Return what rounding in the number format of x (N, k) may have changed in each column, (k,) float64."""
    return 4 * torch.finfo(x.dtype).eps * x.double().abs().amax(0)


def _one(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)
