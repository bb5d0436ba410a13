"""FANoise: noise on the features, more where the batch's features are strong, less where they carry fine detail.

A reconstruction. The paper's full text is not public to us; from its abstract and one full summary:

- *the paper's*: X = U·Σ·Vᵀ for a batch X (m, n) of features; X̃ = X + (α/√n)·Z·diag(S)·Vᵀ with Z ~ N(0, 1); S is 1
  (uniform), σ/mean σ (linear) or √σ/mean √σ (sublinear, the one it favours); training only; α about 0.1 to 0.5.
- *our reading*: noise on every modality; on the rows at length 1; no gradient through the singular vectors; V thin;
  α constant; Z drawn in the feature space, which has the same law (see `maths/feature_noise`).
- *our derivation*: energy, signal-to-noise ratios (SNR) and covariances in closed form; `matched`, `energy`, `sizing`;
  the linear variant as mixtures of rows. That one needs no singular values only if the energy is matched.

The linear and sublinear variants carry more energy than the uniform one, so a comparison of shapes needs `matched`, or
`energy`, which gives any scaling the energy of any other. Under InfoNCE at temperature τ what counts is the noise of a
logit, α/(√n·τ) for uniform noise and more for the others (see `maths/logit_noise`): with n = 64 and τ = 0.07, α = 1
gives 1.8, about the best in our trials; α = 0.1 gave the paper about 0.13, with n = 1536 and τ = 0.02. `sizing` logits
sets that number, ours too, and finds α for each modality and batch from the clean rows that it is compared with.

`order` after: the noise is in units of each row's length. InfoNCE then normalises the noisy rows anew, and the gradient
is that of this chain; where the run's `normalise` is encoder, features are unit rows and products are taken of the
noisy rows as they are, as in the paper's analysis, and `renormalise` brings the new norm back. `order` before: on the
features as they are; X̃ - X is a constant for the gradient.

*Acts at*: features.

*Remembers*: nothing.

*Composes with*: every objective. Accumulated batches get noise piece by piece, each from its own singular values, so S
depends on `micro`. GANI sees the larger gradient variance: lower its sigma. A collapse should read clean features,
since noise fills small singular values. ModDrop comes after it, so that a lost modality is lost without noise. A
learnable temperature could undo the noise.

*Source*: FANoise, arXiv 2511.20997 (abstract, and a secondary summary). Spectral predictions: Benaych-Georges and
Nadakuditi, arXiv 1103.2221.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import Need
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.methods.fanoise import logit_noise as logits, report
from modalscape.engine.methods.fanoise.design import ROUTES, Design, drawn


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
        Need("fanoise.energy", ("own",), {"fanoise.route": "free"}),
        Need("fanoise.energy", ("own",), {"fanoise.matched": True}),
        Need("objective", ("info_nce",), {"fanoise.sizing": "logits"}),
        Need("fanoise.order", ("after",), {"fanoise.sizing": "logits"}),
    )
    neutral = {"alpha": 0.0}
    reconstructed = True
    judged = (
        "Keeps contrastive encoders from learning their pairs by heart: recall at 10 rose by 27 points on digits with "
        "captions, 8 on emoji and 4 on wikipedia. Over uniform noise of its energy its shape gained 3 and 2 points on "
        "the last two and lost 0.7 on the first; over uniform noise as strong in the logits, nothing that was decided."
    )

    @dataclass(frozen=True)
    class Params:
        """How much noise, where, and in which units."""

        alpha: float = knob(
            0.1, 0.0, 10.0, "Noise to feature length; under InfoNCE try temperature times twice the root of the width."
        )
        sizing: str = knob(
            "alpha",
            help="What sets the amount of noise: alpha, or what the noise of one modality adds to a logit of InfoNCE.",
            choices=("alpha", "logits"),
        )
        logit_noise: float = knob(
            1.8, 0.0, 20.0, "With sizing `logits`: standard deviation that one modality's noise adds to a logit."
        )
        scaling: str = knob("sublinear", help="How the noise grows with the singular value.", choices=maths.SCALINGS)
        matched: bool = knob(False, help="Give all scalings the energy of the uniform one.")
        energy: str = knob(
            "own",
            help="Whose energy the noise has at the same alpha: that of its own scaling, or of another.",
            choices=("own", *maths.SCALINGS),
        )
        side: str = knob("all", help="Which modalities: all, query, key, or names with commas between.")
        order: str = knob("after", help="After the rows are normalised, or before.", choices=("after", "before"))
        renormalise: bool = knob(
            False, help="Put each row back to its length after the noise; InfoNCE does so itself unless told not to."
        )
        relative: bool = knob(True, help="With `before`: alpha in units of the rows' typical length.")
        basis: str = knob(
            "thin",
            help="With fewer rows than features: noise within the rows' span only, or the smallest scale beyond.",
            choices=("thin", "full"),
        )
        centre: bool = knob(False, help="Take the mean row away before the singular values are taken.")
        route: str = knob("svd", help="By singular values, Gram matrix, or free of both (linear).", choices=ROUTES)
        warmup: int = knob(0, 0, 1_000_000, "Steps over which alpha grows from 0.")
        anneal: str = knob("none", help="How alpha falls to 0 at `steps`.", choices=("none", "linear", "cosine"))
        steps: int = knob(0, 0, 10_000_000, "Step at which alpha has fallen to 0; 0 for never.")

        def __post_init__(self) -> None:
            """Refuse knobs that contradict each other."""
            if self.route == "free" and (self.scaling != "linear" or self.basis != "thin"):
                raise InputError(
                    f"The free route gives linear, thin noise, not {self.scaling}, {self.basis}; choose the route svd."
                )
            if self.energy != "own" and (self.matched or self.route == "free"):
                other = "fanoise.matched is on" if self.matched else "fanoise.route is free"
                raise InputError(
                    f"fanoise.energy asks for the energy of {self.energy} noise while {other}; set it to own."
                )
            if self.sizing == "logits" and self.order != "after":
                raise InputError(
                    f"Noise is sized by logits on rows of length 1, but fanoise.order is {self.order}; set it to after."
                )

    def init(self, view: View) -> dict:
        """Return no state, after a look at whether the problem has the modalities and logits that the knobs name."""
        chosen(self.params.side, view.problem.modalities)
        if self.params.sizing == "logits" and not _temperature(view):
            raise InputError(
                "fanoise.sizing is logits, but this run compares no modalities with each other; start one with "
                "objective info_nce, or set fanoise.sizing to alpha."
            )
        return {}

    def idle(self, view: View) -> str:
        """Return why there is no noise: as for every method, or it has faded."""
        p = self.params
        knob_name = "alpha" if p.sizing == "alpha" else "logit_noise"
        if getattr(p, knob_name) == 0.0:
            return f"FANoise leaves training as it is while fanoise.{knob_name} is 0.0; change it."
        if view.step >= max(p.warmup, 1) and self._dose(view) == 0.0:
            return (
                f"FANoise has faded to nothing by step {p.steps:,}; raise fanoise.steps, or set fanoise.anneal to none."
            )
        return ""

    def features(self, features: dict[str, Tensor], view: View) -> dict[str, Tensor]:
        """Return modality to features (B, D) with noise; where one is not finite, the modality's come back unchanged.

        The loss then shows them. No number is asked of the device here; on CUDA, PyTorch itself asks whether a
        decomposition has converged. Uniform noise in all directions and the matched free route take none.
        """
        if self._dose(view) == 0.0:
            return features
        safe, changed = maths.finite_or_zero(features), dict(features)
        for name in chosen(self.params.side, tuple(features)):
            h = features[name]
            changed[name] = torch.where(h.isfinite().all(), self._noisy(name, safe, view), h)
        return changed

    def report(self, view: View) -> Iterator[Record]:
        """Yield, for the first piece of the batch as encoded: spectra, SNR, alignment, cosines, energy, pairs."""
        rows, size = len(view.batch), view.problem.micro
        if 0 < size < rows:
            view = view.having(rng=view.rng.within("piece0"))
            view = view.having(clean_features={name: h[:size] for name, h in view.clean_features.items()})
        yield from report.pairs(view.clean_features, view.losses, _temperature(view))
        if self._dose(view) == 0.0:
            return
        if self.params.sizing == "alpha":
            yield Scalar("fanoise/alpha", self._dose(view), mode=f"{self.params.scaling}, in units of a row")
        safe = view.having(clean_features=maths.finite_or_zero(view.clean_features))
        for name in chosen(self.params.side, view.problem.modalities):
            if view.clean_features[name].isfinite().all():
                yield from self._seen(name, safe)

    def _dose(self, view: View) -> float:
        """Return α at this step, or the noise of a logit where that is what is set."""
        p = self.params
        return maths.dose(p.alpha if p.sizing == "alpha" else p.logit_noise, view.step, p.warmup, p.anneal, p.steps)

    def _alpha(self, name: str, form: maths.Shape | maths.Mixture, features: dict[str, Tensor], view: View):
        """Return α at this step for the noise of a modality: a number, or of the batch's clean features (0-d)."""
        if self.params.sizing == "alpha":
            return self._dose(view)
        return logits.alpha_for(
            self._dose(view), _temperature(view), logits.spread(form, logits.keys_of(features, name))
        )

    def _noisy(self, name: str, features: dict[str, Tensor], view: View) -> Tensor:
        """Return one modality's features (m, n) with noise; all modalities' are given, finite."""
        h = features[name]
        x, unit = maths.framed(h, self.params.order, self.params.relative)
        form = self._design.form(x)
        alpha = self._alpha(name, form, features, view)
        noisy = h + alpha * unit * drawn(form, x, _drawer(name, view)).to(h.dtype)
        return maths.of_length(noisy, h) if self.params.renormalise else noisy

    @property
    def _design(self) -> Design:
        p = self.params
        return Design(p.scaling, p.matched, p.energy, p.basis == "full", p.centre, p.route)

    def _seen(self, name: str, view: View) -> Iterator[Record]:
        """Yield what the noise of this step did to one modality."""
        p, h, tau = self.params, view.clean_features[name], _temperature(view)
        x, unit = maths.framed(h, p.order, p.relative)
        form = self._design.form(x)
        alpha = float(self._alpha(name, form, view.clean_features, view))
        if p.sizing == "logits":
            yield Scalar(f"fanoise/alpha/{name}", alpha, mode=f"{p.scaling}, for the noise of a logit that is set")
        if tau:
            yield report.logit_noise(name, form, alpha, x, view.clean_features, tau)
        noisy = self._noisy(name, view.clean_features, view) / unit.clamp(min=torch.finfo(h.dtype).tiny)
        yield from report.shown(name, self._design, form, x, noisy, alpha, _drawer(name, view))


def _drawer(name: str, view: View) -> Callable[[Tensor], Tensor]:
    return lambda like: view.rng.normal(f"fanoise/{name}", view.step, like)


def _temperature(view: View) -> float | None:
    return getattr(view.problem, "temperature", None)
