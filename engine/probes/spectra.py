"""Singular values of each modality's features and of the weights, beside what random matrices would have.

Features are those of the probe rows, clean and, where methods act at `features`, as these change them: their noise is
drawn anew for these rows, so it is not that of any training step, and noise that follows the singular values follows
those of these rows rather than of a smaller batch. Random-matrix edges are those of i.i.d. noise with the energy of the
change; for noise of another shape, or for dropped rows, they say where noise of that energy would end, no more.

Weights are matrices of (outputs, everything else), compared with i.i.d. matrices of the same variance; no rows enter,
so their records have no number of samples. These are spectra of weights, not of a Hessian.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Curve, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features import feature_noise as noise, singular_values as maths
from modalscape.engine.maths.features.contrastive import normalised
from modalscape.engine.maths.progress import tracked
from modalscape.engine.maths.standard_error import mean_and_error

PIECE = 64
"""Rows that are encoded at once."""

PAIRED = 512
"""Rows that are compared between modalities at most; all their distances are taken."""

PAIRS = {
    "gap": ("gap", "distance between the centroids of unit rows (modality gap)"),
    "positive": ("cosine/pairs", "mean cosine of rows that belong together"),
    "negative": ("cosine/others", "mean cosine of rows that do not"),
    "alignment": ("alignment", "mean squared distance of unit rows that belong together"),
    "uniformity": ("uniformity", "log of mean exp(-2·squared distance) of unit rows, mean of both modalities"),
}
"""Value of `pairing` to the path of its record and what it is."""


class Spectra(Probe):
    """Singular values of features, clean and as methods change them, and of weights; ranks, SNR, modality gap."""

    name = "spectra"
    title = "Singular values"
    every = 50
    cost = "low"

    @dataclass(frozen=True)
    class Params:
        """What is decomposed, and how it is prepared."""

        rows: int = knob(256, 2, 4096, "Rows of the probe batch, as far as it has them.", log=True)
        centre: str = knob(
            "both", help="Whether the mean row is taken away first; or both ways.", choices=("both", "no", "yes")
        )
        unit: bool = knob(False, help="Put rows at length 1 first, as a contrastive loss sees them.")
        draws: int = knob(4, 2, 64, "Draws of i.i.d. noise with which the change by methods is compared.")
        pairs: bool = knob(True, help="Compare modalities: gap, alignment, uniformity, canonical correlations.")
        share: float = knob(0.99, 0.1, 1.0, "Energy that the directions hold whose correlations are taken.")
        weights: bool = knob(True, help="Singular values of each weight matrix.")
        widest: int = knob(512, 2, 4096, "Smaller side up to which a weight matrix is decomposed.", log=True)

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield each modality's spectra, then the pairs of modalities, then the weights.

        Raises:
            InputError: features that are not finite.
        """
        batch = snap.problem.probe_batch().rows(slice(0, self.params.rows))
        clean: dict[str, Tensor] = {}
        for piece in tracked(batch.chunks(PIECE), "pieces"):
            found = _encoded(snap, piece)
            clean = {m: torch.cat([clean[m], h]) if clean else h for m, h in found.items()}
        changed = _changed(snap, batch, clean)
        for modality, h in tracked(clean.items(), "modalities"):
            if not h.isfinite().all():
                raise InputError(f"The features of {modality} are not finite at step {snap.step}; see the loss.")
            other = None if torch.equal(h, changed[modality]) else changed[modality]
            for centre in {"both": (False, True), "no": (False,), "yes": (True,)}[self.params.centre]:
                if len(h) > 1 or not centre:
                    yield from self._spectra(modality, h, other, centre, snap)
        if self.params.pairs:
            yield from self._pairs(snap, batch, clean)
        yield from self._weights(snap)

    def _spectra(
        self, modality: str, h: Tensor, changed: Tensor | None, centre: bool, snap: Snapshot
    ) -> Iterator[Record]:
        """Yield what the features (m, n) of one modality fill, and what is left of it where they are changed."""
        started = time.perf_counter()
        base = f"spectra/{modality}" + ("/centred" if centre else "")
        x = self._framed(h)
        found = maths.decomposed(x, centre=centre)
        m, n = x.shape
        how = f"features, {n} wide" + (", rows at length 1" if self.params.unit else "")
        how += ", mean row taken away" if centre else ", with their mean"
        about = {"n": m, "mode": how, "seconds": time.perf_counter() - started}
        yield _curve(f"{base}/singular", found.values, Display(label="clean"), about)
        # An i.i.d. matrix of the same energy: what the spectrum would be if the features said nothing.
        level = math.sqrt(float(found.values.square().sum()) / ((m - centre) * n))
        yield _curve(
            f"{base}/random",
            level * maths.random_values(m - centre, n)[: len(found.values)],
            Display(label="i.i.d., same energy"),
            about,
        )
        yield from _numbers(base, found.values, about)
        if not centre:
            words = "share of the energy in the mean row; near 1 the features lie in a cone; "
            yield Scalar(f"{base}/mean_share", maths.mean_share(x), **about | {"mode": words + how})
        if changed is not None:
            how = f"{how}, as changed by {_acting(snap)}"
            yield from self._change(base, x, self._framed(changed), found, centre, how, _drawer(snap))

    def _change(
        self, base: str, x: Tensor, changed: Tensor, found: noise.Directions, centre: bool, how: str, display: Callable
    ) -> Iterator[Record]:
        """Yield what methods make of features (m, n) with known directions, and what their change is like."""
        started = time.perf_counter()
        n, rows = x.shape[1], len(x) - centre
        added = noise.centred(changed.double() - x.double(), centre)
        after, along = maths.decomposed(changed, centre=centre), maths.in_noise(found, added)
        delta = math.sqrt(float(added.square().sum()) / (rows * n))
        limits = {"edge": noise.edge(delta, rows, n), "threshold": noise.threshold(delta, rows, n)}
        about = {"n": len(x), "mode": f"{how}; one draw", "seconds": time.perf_counter() - started}
        yield _curve(f"{base}/changed/singular", after.values, Display(label="changed", limits=limits), about)
        yield from _numbers(f"{base}/changed", after.values, about)
        if delta == 0.0:  # all rows moved alike, and the mean is taken away
            return
        words = f"{how}; in quadrature: √(σ² + energy of the change along the direction)"
        total = (found.values.square() + along).sqrt()
        yield _curve(f"{base}/expected", total, Display(label="√(clean² + change²)"), about | {"mode": words})
        told = {"noise_level": delta} | limits
        told["hidden"] = float((found.values < limits["threshold"]).double().mean())
        for key, value in told.items():
            yield Scalar(f"{base}/{key}", value, **about | {"mode": f"{_LIMITS[key]}; {how}; one draw"})
        own = maths.singular_values(added.to(changed.dtype))
        yield _curve(f"{base}/noise", own, Display(label="the change alone"), about)
        started, values = time.perf_counter(), []
        for i in tracked(range(self.params.draws), "draws"):
            values.append(maths.with_noise(x, delta, display(f"{base}/{i}", x), centre=centre))
        mean, error = mean_and_error(torch.stack(values))
        words = f"{how}; {len(values)} draws of i.i.d. noise of the same energy instead; one standard error"
        alike = about | {"mode": words, "seconds": time.perf_counter() - started}
        yield _curve(f"{base}/instead", mean, Display(label="had it been i.i.d. noise"), alike, error)
        kept = maths.kept(found, after)
        place, axes = np.arange(1, len(kept) + 1), Display(x="leading directions", y="share kept", range=[0, 1.02])
        words = about | {"mode": f"{how}; mean squared cosine of clean and changed leading directions; one draw"}
        yield Curve(f"{base}/kept", place, _array(kept), display=axes, **words)
        yield Curve(f"{base}/kept_by_chance", place, place / n, display=axes | Display(label="by chance"), **words)
        held = (found.values > 0) & (along > 0)
        if held.any():
            snr, display = found.values[held].square() / along[held], Display(xlog=True, ylog=True)
            slope, error = noise.slope(found.values[held], snr)
            display |= Display(x="singular value", y="SNR")
            display |= Display(label=f"slope {slope:.2f} ± {error:.2f}" if math.isfinite(slope) else None)
            yield Curve(f"{base}/snr", _array(found.values[held]), _array(snr), display=display, **about)
            if math.isfinite(slope):
                words = "log-log slope of SNR on σ, one standard error; 2 for noise alike in all directions, 0 for ∝ σ"
                yield Scalar(f"{base}/snr_slope", slope, error, **about | {"mode": f"{words}; {how}; one draw"})

    def _pairs(self, snap: Snapshot, batch: Batch, clean: dict[str, Tensor]) -> Iterator[Record]:
        """Yield how the features (m, n) of any two modalities lie to each other."""
        contrasted, spans = _compared(snap, batch), {}
        for modality, h in clean.items():
            spans[modality] = maths.leading(h, self.params.share)
        for a, b in combinations(clean, 2):
            name, x, y = f"{a}-{b}", clean[a][:PAIRED], clean[b][:PAIRED]
            if x.shape == y.shape:
                yield from _placed(name, x, y, name in contrasted)
            started, (p, q) = time.perf_counter(), (spans[m].shape[1] for m in (a, b))
            limit = maths.chance(p, q, len(batch))
            if min(p, q) == 0 or limit >= 1.0:
                continue
            found = maths.canonical(spans[a], spans[b])
            mode = f"{p} of {a} with {q} directions of {b}, which hold {self.params.share:g} of the energy; centred"
            about = {"n": len(batch), "mode": mode, "seconds": time.perf_counter() - started}
            display = Display(x="rank", y="canonical correlation", range=[0, 1.02], limits={"chance": limit})
            yield Curve(
                f"spectra/canonical/{name}", np.arange(1, len(found) + 1), _array(found), display=display, **about
            )
            words = "canonical correlations above the largest of unrelated features"
            count = float((found > limit).sum())
            yield Scalar(f"spectra/shared/{name}", count, **about | {"mode": f"{words}; {mode}"})

    def _weights(self, snap: Snapshot) -> Iterator[Record]:
        """Yield the spectrum of each weight matrix (m, n) beside that of an i.i.d. one."""
        layout = snap.problem.layout
        weights = layout.unpack(snap.theta.detach()) if self.params.weights else {}
        for name, value in tracked(weights.items(), "weights"):
            matrix = value.flatten(1) if value.dim() > 1 else value
            if matrix.dim() < 2 or min(matrix.shape) > self.params.widest or not matrix.isfinite().all():
                continue
            started = time.perf_counter()
            m, n = matrix.shape
            values, deviation = maths.singular_values(matrix), float(matrix.double().std(correction=0))
            where = f"{layout.parts[name]}/{layout.layer(name)}"
            limit = noise.edge(deviation, m, n)
            mode = f"weights {name} as {m} × {n}"
            about = {"mode": mode, "seconds": time.perf_counter() - started}
            display = Display(label="weights", limits={"edge of i.i.d.": limit})
            yield _curve(f"spectra/weights/{where}", values, display, about)
            display = Display(label="i.i.d., same variance")
            yield _curve(f"spectra/weights_random/{where}", deviation * maths.random_values(m, n), display, about)
            told = {
                "stable_rank": (maths.sizes(values)["stable_rank"], maths.SIZES["stable_rank"]),
                "largest": (float(values[0]), "σ₁"),
                "beyond": (
                    float(maths.beyond(values, deviation, m, n)),
                    "singular values beyond the edge of an i.i.d. matrix of the same variance; 0 or 1 is chance",
                ),
            }
            for key, (number, words) in told.items():
                yield Scalar(f"spectra/weights_{key}/{where}", number, seconds=about["seconds"], mode=words)

    def _framed(self, h: Tensor) -> Tensor:
        return normalised(h) if self.params.unit else h


_LIMITS = {
    "noise_level": "δ, root mean square of the entries of the change",
    "edge": "δ(√m + √n), where the spectrum of i.i.d. noise ends",
    "threshold": "δ(mn)^¼, below which i.i.d. noise hides a direction",
    "hidden": "share of the directions whose clean singular value is below the threshold",
}


@torch.no_grad()
def _encoded(snap: Snapshot, batch: Batch) -> dict[str, Tensor]:
    return snap.problem.encode(snap.theta, batch)


@torch.no_grad()
def _changed(snap: Snapshot, batch: Batch, clean: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the features after the methods, piece by piece as training takes a batch apart; hooks are pure."""
    pieces, start = [], 0
    rate = None if snap.view is None else snap.view.rate
    for i, piece in enumerate(batch.chunks(snap.problem.micro)):
        part = {m: h[start : start + len(piece)] for m, h in clean.items()}
        rng = snap.rng.within("spectra").within(f"piece{i}")
        view = View(snap.step, snap.theta, piece, snap.problem, rng, rate, clean_features=part)
        pieces.append(snap.stack.chain("features", part, view))
        start += len(piece)
    return {m: torch.cat([piece[m] for piece in pieces]) for m in clean}


def _drawer(snap: Snapshot) -> Callable[[str, Tensor], Tensor]:
    return lambda name, like: snap.rng.normal(name, snap.step, like.double())


def _acting(snap: Snapshot) -> str:
    return " and ".join(snap.stack.methods[name].title for name in snap.stack.pipeline()["features"])


def _placed(name: str, x: Tensor, y: Tensor, contrasted: bool) -> Iterator[Record]:
    """Yield gap, cosines, alignment and uniformity of two modalities' features (m, n), rows at length 1."""
    started = time.perf_counter()
    values = noise.pairing(normalised(x.double()), normalised(y.double()))
    words = "" if contrasted else "; no loss compares these features by place, so 0 is nothing special"
    about = {"n": len(x), "seconds": time.perf_counter() - started}
    for key, (path, what) in PAIRS.items():
        if values[key].isfinite():
            yield Scalar(f"spectra/{path}/{name}", float(values[key]), mode=what + words, **about)


@torch.no_grad()
def _compared(snap: Snapshot, batch: Batch) -> set[str]:
    """Return the names of the losses, among which those of contrasted pairs are `<a>-<b>`."""
    few = batch.rows(slice(0, 2))
    return set(snap.problem.objectives(snap.theta, snap.problem.encode(snap.theta, few), few)[0])


def _curve(name: str, values: Tensor, display: Display, about: dict, error: Tensor | None = None) -> Curve:
    axes, place = Display(x="direction", y="singular value", ylog=True), np.arange(1, len(values) + 1)
    return Curve(name, place, _array(values), None if error is None else _array(error), display=axes | display, **about)


def _numbers(base: str, values: Tensor, about: dict) -> Iterator[Record]:
    """Yield the ranks of a spectrum and its three largest values."""
    for key, value in maths.sizes(values).items():
        yield Scalar(f"{base}/{key}", value, **about | {"mode": f"{maths.SIZES[key]}; {about['mode']}"})
    for i, value in enumerate(values[:3].tolist()):
        yield Scalar(f"{base}/sigma_{i + 1}", value, **about | {"mode": f"singular value {i + 1}; {about['mode']}"})


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
