"""FANoise: noise on the features, more where the batch's features are strong, less where they carry fine detail.

A reconstruction. The paper's full text is not public to us; from its abstract and one full summary:

- *the paper's*: X = U·Σ·Vᵀ for a batch X (m, n) of features; X̃ = X + (α/√n)·Z·diag(S)·Vᵀ with Z ~ N(0, 1); S is 1
  (uniform), σ/mean σ (linear) or √σ/mean √σ (sublinear, the one it favours); training only; α about 0.1 to 0.5.
- *our reading*: noise on every modality; on the rows at length 1; no gradient through the singular vectors; V thin;
  α constant; Z drawn in the feature space, which has the same law (see `maths/feature_noise`).
- *our derivation*: energy, signal-to-noise ratios (SNR) and covariances in closed form; the energy match; the linear
  variant as mixtures of rows. That one needs no singular values only if the energy is matched.

The linear and sublinear variants carry more energy than the uniform one, so a comparison of shapes needs `matched`.
Under InfoNCE at temperature τ what counts is the noise of a logit, α/(√n·τ): with n = 64 and τ = 0.07, α = 1 gives 1.8,
about the best in our trials; α = 0.1 gives 0.18, about the 0.13 that it gave the paper, with n = 1536 and τ = 0.02.

`order` after: the noise is in units of each row's length, so a loss that normalises sees the unit rows plus noise,
normalised once more; the gradient is that of this chain. `order` before: on the features as they are; X̃ - X is a
constant for the gradient. A loss that takes the features as they are gets them with the noise, not normalised anew,
unless `renormalise`.

*Acts at*: features.

*Remembers*: nothing.

*Composes with*: every objective. Accumulated batches get noise piece by piece, each from its own singular values, so S
depends on `micro`. GANI sees the larger gradient variance: lower its sigma. Collapse terms should read `view.clean`,
since noise fills small singular values. ModDrop comes after it, so that a lost modality is lost without noise. A
learnable temperature could undo the noise.

*Source*: FANoise, arXiv 2511.20997 (abstract, and a secondary summary). Spectral predictions: Benaych-Georges and
Nadakuditi, arXiv 1103.2221.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from engine.knobs import InputError
from engine.maths import feature_noise as maths
from engine.maths import noise_report
from engine.maths.contrastive import normalised
from engine.method import Method, knob
from engine.needs import Need
from engine.records import Record, Scalar
from engine.step import View


def chosen(side: str, modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modalities that get noise: `all`, `query`, `key`, or those that `side` lists with commas.

    With pairs taken in the problem's order, all but the last modality are a query and all but the first a key; a single
    one is both.

    >>> chosen("key", ("image", "text")), chosen("text, image", ("image", "text"))
    (('text',), ('image', 'text'))

    Raises:
        InputError: a name that is no modality of the problem.
    """
    single = len(modalities) == 1
    named = {"all": modalities, "query": modalities[:-1], "key": modalities[1:]}
    wanted = [name.strip() for name in side.split(",")]
    unknown = [name for name in wanted if name not in modalities]
    if not unknown:
        return tuple(name for name in modalities if name in wanted)
    if side in named:
        return modalities if single else named[side]
    raise InputError(
        f"fanoise.side names {unknown[0]!r}, but the modalities are {', '.join(modalities)}; name some of them, "
        "or all, query or key."
    )


class FaNoise(Method):
    """Feature-adaptive noise."""

    name = "fanoise"
    title = "FANoise"
    needs = (
        Need("fanoise.scaling", ("linear",), {"fanoise.route": "free"}),
        Need("fanoise.basis", ("thin",), {"fanoise.route": "free"}),
    )
    neutral = {"alpha": 0.0}
    reconstructed = True

    @dataclass(frozen=True)
    class Params:
        """How much noise, where, and in which units."""

        alpha: float = knob(
            0.1, 0.0, 10.0, "Noise to feature length; under InfoNCE try temperature times twice the root of the width."
        )
        scaling: str = knob("sublinear", help="How the noise grows with the singular value.", choices=maths.SCALINGS)
        matched: bool = knob(False, help="Give all scalings the energy of the uniform one.")
        side: str = knob("all", help="Which modalities: all, query, key, or names with commas between.")
        order: str = knob("after", help="After the rows are normalised, or before.", choices=("after", "before"))
        renormalise: bool = knob(False, help="Put each row back to its length after the noise.")
        relative: bool = knob(True, help="With `before`: alpha in units of the rows' typical length.")
        basis: str = knob(
            "thin",
            help="With fewer rows than features: noise within the rows' span only, or the smallest scale beyond.",
            choices=("thin", "full"),
        )
        centre: bool = knob(False, help="Take the mean row away before the singular values are taken.")
        route: str = knob(
            "svd",
            help="By singular values, by the Gram matrix, or free of both (linear).",
            choices=("svd", "gram", "free"),
        )
        warmup: int = knob(0, 0, 1_000_000, "Steps over which alpha grows from 0.")
        anneal: str = knob("none", help="How alpha falls to 0 at `steps`.", choices=("none", "linear", "cosine"))
        steps: int = knob(0, 0, 10_000_000, "Step at which alpha has fallen to 0; 0 for never.")

        def __post_init__(self) -> None:
            """Refuse the route without singular values where the noise has another shape than the linear one."""
            if self.route == "free" and (self.scaling != "linear" or self.basis != "thin"):
                raise InputError(
                    f"The free route gives linear, thin noise, not {self.scaling}, {self.basis}; choose the route svd."
                )

    def init(self, view: View) -> dict:
        """Return no state, after a look at whether `side` names modalities of the problem."""
        chosen(self.params.side, view.problem.modalities)
        return {}

    def idle(self, view: View) -> str:
        """Return why there is no noise: as for every method, or it has faded."""
        p = self.params
        if p.alpha > 0.0 and view.step >= max(p.warmup, 1) and self._alpha(view) == 0.0:
            return (
                f"FANoise has faded to nothing by step {p.steps:,}; raise fanoise.steps, or set fanoise.anneal to none."
            )
        return super().idle(view)

    def features(self, features: dict[str, Tensor], view: View) -> dict[str, Tensor]:
        """Return modality to features (B, D) with noise; where one is not finite, the modality's come back unchanged.

        The loss then shows them. Nothing here waits for the device.
        """
        alpha = self._alpha(view)
        if alpha == 0.0:
            return features
        changed = dict(features)
        for name in chosen(self.params.side, tuple(features)):
            h = features[name]
            finite = h.isfinite().all()
            noisy = self._noisy(torch.where(finite, h, 0.0), alpha, _drawer(name, view))
            changed[name] = torch.where(finite, noisy, h)
        return changed

    def report(self, view: View) -> Iterator[Record]:
        """Yield, for the first piece of the batch as encoded: spectra, SNR, alignment, cosines, energy, pairs."""
        alpha, rows, size = self._alpha(view), len(view.batch), view.problem.micro
        if 0 < size < rows:
            view = view.having(rng=view.rng.within("piece0"))
            view = view.having(clean={name: h[:size] for name, h in view.clean.items()})
        yield from _pairs(view)
        if alpha == 0.0:
            return
        yield Scalar("fanoise/alpha", alpha, mode=f"{self.params.scaling}, in units of a row")
        temperature = getattr(view.problem, "temperature", None)
        for name in chosen(self.params.side, view.problem.modalities):
            if temperature:
                value = alpha / (math.sqrt(view.clean[name].shape[1]) * temperature)
                yield Scalar(f"fanoise/logit_noise/{name}", value, mode="α/(√n·τ): noise of a logit, uniform scaling")
            if view.clean[name].isfinite().all():
                yield from self._seen(name, alpha, view)

    def _alpha(self, view: View) -> float:
        p = self.params
        return maths.dose(p.alpha, view.step, p.warmup, p.anneal, p.steps)

    def _noisy(self, h: Tensor, alpha: float, draw: Callable[[Tensor], Tensor]) -> Tensor:
        x, unit = maths.framed(h, self.params.order, self.params.relative)
        noisy = h + alpha * unit * self._drawn(x, draw).to(h.dtype)
        if not self.params.renormalise:
            return noisy
        length = noisy.norm(dim=1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
        return noisy * (h.norm(dim=1, keepdim=True) / length)

    def _drawn(self, x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the noise (m, n) for α = 1 on x (m, n)."""
        p, (m, n) = self.params, x.shape
        base = maths.centred(x, False)
        if p.route == "free":
            return maths.mixed(draw(base.new_empty(m, m)), base, centre=p.centre, matched=p.matched)
        if p.scaling == "uniform" and (m >= n or p.basis == "full"):
            return maths.isotropic(draw(base))
        return maths.noise(draw(base), self._shape(self._directions(base), p.scaling))

    def _directions(self, x: Tensor) -> maths.Directions:
        return maths.directions(x, centre=self.params.centre, gram=self.params.route == "gram")

    def _shape(self, found: maths.Directions, scaling: str) -> maths.Shape:
        p = self.params
        return maths.shape(found, scaling, matched=p.matched, full=p.basis == "full")

    def _seen(self, name: str, alpha: float, view: View) -> Iterator[Record]:
        """Yield what the noise of this step did to one modality."""
        p, h, draw = self.params, view.clean[name], _drawer(name, view)
        x, unit = maths.framed(h, p.order, p.relative)
        noise = {p.scaling: alpha * self._drawn(x, draw)}
        noisy = self._noisy(h, alpha, draw) / unit.clamp(min=torch.finfo(h.dtype).tiny)
        started = time.perf_counter()
        found = self._directions(maths.centred(x, False))
        seconds = time.perf_counter() - started
        shapes = {scaling: self._shape(found, scaling) for scaling in maths.SCALINGS}
        z = draw(found.basis.new_empty(x.shape))
        noise = {key: alpha * maths.noise(z, form) for key, form in shapes.items()} | noise
        yield Scalar(f"fanoise/seconds/{name}", seconds, n=1, mode=f"one decomposition, {p.route}")
        yield from noise_report.measured(name, found, shapes, noise, p.scaling, x, noisy, alpha)
        yield from noise_report.compared(name, found, shapes, noise, len(x))


def _drawer(name: str, view: View) -> Callable[[Tensor], Tensor]:
    return lambda like: view.rng.normal(f"fanoise/{name}", view.step, like)


def _pairs(view: View) -> Iterator[Record]:
    """Yield how the clean features of each contrasted pair lie on the sphere."""
    temperature = getattr(view.problem, "temperature", None)
    for a, b in combinations(view.clean, 2):
        if f"{a}-{b}" in view.losses and view.clean[a].shape == view.clean[b].shape:
            yield from noise_report.pair(f"{a}-{b}", *(normalised(view.clean[m]) for m in (a, b)), temperature)
