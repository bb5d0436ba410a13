"""BOGC-MML: gradients that would be the same under any plausible head count for more, coordinate by coordinate.

A reconstruction. Only abstracts and two summaries are public, so:

- *the paper's*: gradients of unimodal and fused losses are random through the last layer, with a Laplace posterior; the
  precision of each coordinate is evidence; evidence makes subjective-logic opinions, fused by the reduced Dempster rule
  into an uncertainty-weighted update.
- *our reading*: posterior and Monte-Carlo moments as in BayesAgg-MTL, the rule as in TMC; an encoder's sources are the
  fused loss and its own, met at its features (B, D); heads keep their ordinary gradients. What the hypotheses of an
  opinion are is not public: `reading` offers five answers, `trust` being our best guess (about even odds).
- *our derivation*: evidence by signal to noise, mean² over variance of a coordinate, relative to the median. By
  precision (`relative`, `power`, `raw`) weights depend on the units of the losses, and a fitted loss, whose gradients
  are small, looks certain; raw, all but `sources` and `inverse_variance` become a plain mean: watch their spread.
- *our derivation*: what damps sensitive coordinates and frees insensitive ones, the abstract's purpose. Weights sum to
  1 on each coordinate and cannot; `reading=confident_trust` with `by_coordinate` and `size=norm` can: the update of a
  coordinate goes by its fused confidence, the same for all rows, at the length of the plain sum.
- *our derivation*: `conflict` κ. G is times 1 - κC on each coordinate, C the conflict mass of opinions on up or down.

With g_k the gradients at the features and G = s Σ_k w_k μ_k, the step's gradient is Σ rows + Jᵀ(G - Σ g_k), J from
parameters to features: heads, `reg/…` rows and whatever other methods added to a row stay. Evidence is of the raw
losses. If a method scaled a row on an encoder (OGM-GE), the same scale, found by projection, goes onto that source's
share, so that nothing is undone. Evidence is no proxy for "well learned", or for right labels: saturated rows are
precise about nothing, and by SNR a loss that noise keeps from being fitted weighs more, its gradients being larger.

*Acts at*: fuse, commit.

*Remembers*: each head's curvature, full (n, n) up to `full_up_to` entries, else by Kronecker factors, and its posterior
mean; steps seen, when the posterior was made, jitters; accuracy changes after conflict and after other steps.

*Composes with*: any method but another owner of `fuse`. Needs logits that are linear in the features: concat or sum
fusion. Without unimodal losses there is one source and only the posterior mean acts; set `unimodal`. A batch in pieces
is encoded once more, and feature noise then counts as added, dropped features as cut off.

*Source*: Guo et al., "Bayesian-oriented gradient calibration", arXiv 2505.23071, 2025 (abstracts). BayesAgg-MTL, arXiv
2402.04005; TMC, arXiv 2102.02051. We differ from BayesAgg-MTL: the posterior sees rows encoded anew, not features an
epoch old; the batch is not counted twice unless `per_batch`; draws are centred, and kept until the next posterior
unless `redraw`; heads are drawn around their weights unless `centre` is `newton`; no clipping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import FUSED, Need
from modalscape.engine.core.problem import Batch, Problem, join, join_batches
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients import calibration as maths
from modalscape.engine.maths.gradients.evidence import EVIDENCE, READINGS, SIZES
from modalscape.engine.maths.gradients.laplace import KINDS
from modalscape.engine.maths.gradients.last_layer import Head, linear_heads, reread
from modalscape.engine.maths.modalities.unimodal import columns, encoder
from modalscape.engine.methods.bogc.encoders import through_encoders
from modalscape.engine.reports import calibration as told

_AT_ONCE = 256
"""Rows encoded at a time for a posterior."""

_LOSSES = {"all": (True, False), "fused": (False,), "own": (True,)}
"""Choice of losses to whether they are a modality's own."""


def objectives_of(problem: Problem, theta: Tensor):
    """Return the function from features (B, D) by modality and labels (B,) to losses and logits at theta (P,)."""
    return lambda features, y: problem.objectives(theta, features, Batch({}, y))


def recent_rows(problem: Problem, theta: Tensor, step: int, batches: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return features and labels of the last `batches` batches up to `step` at theta (of the first, near the start)."""
    first = max(step + 1 - batches, 0)
    rows = join_batches([problem.batch(s) for s in range(first, first + batches)])
    with torch.no_grad():
        encoded = [problem.encode(theta.detach(), piece) for piece in rows.chunks(problem.micro or _AT_ONCE)]
    return join(encoded), rows.y


class Bogc(Method):
    """Calibration of each encoder's gradients by the evidence in them."""

    name = "bogc"
    title = "BOGC-MML"
    needs = (
        FUSED,
        Need("fusion", ("concat", "sum")),
        Need("unimodal", ("heads", "slices"), {"bogc.calibrate": "own"}),
    )
    neutral = {"dose": 0.0}
    reconstructed = True
    judged = (
        "Shows whose gradient says what, how surely, and who contradicts whom. As training it gained no accuracy on "
        "four sets; with noise in mosi's text it lost 0.5 points, and the test loss ended 0.03 to 0.07 nats higher "
        "on two."
    )

    @dataclass(frozen=True)
    class Params:
        """How gradients become evidence, and evidence a gradient."""

        dose: float = knob(1.0, 0.0, 1.0, "Share of the calibrated gradient in the encoders' step; 0 is the plain sum.")
        reading: str = knob("trust", help="What opinions are about; our five readings.", choices=tuple(READINGS))
        evidence: str = knob("snr", help="Evidence from mean²/variance, or from 1/variance.", choices=tuple(EVIDENCE))
        power: float = knob(0.5, 0.0, 2.0, "Exponent on it; 0 for posterior means with equal weights.")
        calibrate: str = knob("all", help="Losses whose gradients it joins; others stay.", choices=tuple(_LOSSES))
        average: bool = knob(False, help="One precision a coordinate, from the batch's mean variance.")
        by_coordinate: bool = knob(False, help="One evidence a coordinate: mean square over mean variance of the rows.")
        conflict: float = knob(0.0, 0.0, 1.0, "Share of the calibrated gradient that full conflict takes away.")
        size: str = knob("sources", help="Times the number of sources, as is, or the plain norm.", choices=tuple(SIZES))
        samples: int = knob(256, 8, 4096, "Heads drawn for the moments, S.", log=True)
        gamma: float = knob(0.005, 1e-6, 100.0, "Prior variance of the heads' weights.", log=True)
        centre: str = knob("weights", help="Mean of the heads: now's, or a Newton step.", choices=("weights", "newton"))
        form: str = knob("auto", help="Form of the posterior's precision.", choices=("auto", *KINDS))
        full_up_to: int = knob(1500, 2, 20_000, "Weights of a head up to which `auto` keeps the full matrix.", log=True)
        rows: int = knob(512, 16, 65_536, "Training rows that a posterior sees; scaled to all.", log=True)
        refresh: float = knob(1.0, 0.01, 1000.0, "Epochs between two posteriors.", log=True)
        warmup: float = knob(1.0, 0.0, 1000.0, "Epochs of plain training after switching on.")
        per_batch: bool = knob(False, help="Add the batch's curvature each step, as the ancestor does; costly.")
        redraw: bool = knob(False, help="Draw new heads each step rather than with each posterior; costly.")

    _known: tuple | None = None
    _seconds: float | None = None

    def init(self, view: View) -> dict[str, Any]:
        """Return empty memory; without warm-up, with a posterior.

        Raises:
            InputError: logits are not linear in the features, or no loss is left to calibrate.
        """
        problem = view.problem
        few, y = recent_rows(problem, view.theta, view.step, 1)
        heads = linear_heads(objectives_of(problem, view.theta), {n: v[:2] for n, v in few.items()}, y[:2])
        if not self._chosen(heads, problem.modalities):
            have, wanted = ", ".join(heads), self.params.calibrate
            raise InputError(f"bogc.calibrate={wanted} leaves BOGC-MML no loss: there is only {have}; choose all.")
        rows = sum(len(batch) for batch in problem.held_out("train"))
        state = {
            "rows": rows,
            "seen": 0,
            "made": -1,
            "jitters": 0,
            "posterior": {},
            "changes": maths.no_changes(view.theta),
        }
        return self._refreshed(state, view)

    def idle(self, view: View) -> str:
        """Return why nothing is weighed: as for every method, a long warm-up, or one loss alone."""
        return super().idle(view) or told.unweighed(self.params, self.state, _LOSSES[self.params.calibrate], view)

    def fuse(self, grads: Tensor, view: View) -> Tensor:
        """Return the sum of the rows (P,) with the encoders' share calibrated."""
        total = grads[0] if len(grads) == 1 else grads.sum(0)
        if self.params.dose == 0 or not self.state["posterior"]:
            return total
        finite = torch.isfinite(total.sum())
        if self.params.per_batch and not finite:  # where a matrix is taken apart in each step anyhow
            return total
        incoming = {}
        for name, found in self._calibrated(view).items():
            where = encoder(view.problem.layout, name)
            kept = maths.kept_shares(grads, view.raw_grads, self._rows(found.sources, view), where)
            calibrated = found.factor * found.calibration.parts - found.moments.plain
            incoming[name] = (self.params.dose / len(view.batch)) * torch.einsum("k,kbd->bd", kept, calibrated)
        return total + torch.where(finite, through_encoders(view, incoming), 0.0)

    def commit(self, view: View) -> dict[str, Any]:
        """Return the memory with this step's accuracy, and a new posterior when one is due."""
        conflict = (self._cosines(view) < 0).any()
        right = torch.full_like(view.theta[0], math.nan)
        if "fused" in view.logits and not view.batch.y.is_floating_point():
            right = (view.logits["fused"].argmax(-1) == view.batch.y).double().mean()
        changes = maths.noted_change(self.state["changes"], right, conflict)
        return self._refreshed(self.state | {"seen": self.state["seen"] + 1, "changes": changes}, view)

    def report(self, view: View) -> Iterator[Record]:
        """Yield precision, trust, conflict and direction by encoder, and the reliability of the moments."""
        p, state = self.params, self.state
        for kind, (value, error, n) in maths.mean_changes(state["changes"]).items():
            how = "change of batch accuracy to the next step; conflict: a negative cosine on an encoder"
            display = Display(panel="What a step does to accuracy", place=8, hue=int(kind == "conflict"))
            display |= Display(label="losses in conflict" if kind == "conflict" else "other steps", levels={"": 0.0})
            yield Scalar(f"bogc/accuracy_change/{kind}", value, error, n=n, mode=how, display=display)
        yield Scalar("bogc/jitters", float(state["jitters"]), mode="raised diagonals in Cholesky factors")
        if self._seconds is not None:
            yield Scalar("bogc/posterior_seconds", self._seconds, mode="seconds for the last posterior")
        for name, cosine in zip(view.problem.modalities, self._cosines(view).tolist(), strict=True):
            if math.isfinite(cosine):
                how = "smallest cosine of two losses' gradients on the encoder"
                display = Display(panel="Do the losses agree on the encoder?", place=9, y="cosine", levels={"": 0.0})
                yield Scalar(f"bogc/cosine/{name}", cosine, n=len(view.batch), mode=how, display=display)
        if state["posterior"] and torch.isfinite(view.grad.sum()):
            how = f"{p.reading}, {p.evidence}; at the features, S = {p.samples}"
            for name, found in self._calibrated(view).items():
                yield from told.summaries("bogc", name, found, how, p)
                yield told.precision_map("bogc", name, found, how)

    def _refreshed(self, state: dict[str, Any], view: View) -> dict[str, Any]:
        p, size = self.params, len(view.batch)
        epoch = max(state["rows"] // size, 1)
        since = state["seen"] - state["made"] if state["posterior"] else float("inf")
        if p.dose == 0 or state["seen"] < round(p.warmup * epoch) or since < max(round(p.refresh * epoch), 1):
            return state
        started = time.perf_counter()
        features, y = recent_rows(view.problem, view.theta, view.step, min(epoch, -(-p.rows // size)))
        if not all(torch.isfinite(value).all() for value in features.values()):
            return state
        heads = linear_heads(objectives_of(view.problem, view.theta), features, y)
        heads = self._chosen(heads, view.problem.modalities)
        posterior, factors = maths.posteriors(heads, features, y, state["rows"] / len(y), p)
        state = state | {"posterior": posterior, "made": state["seen"]}
        _, jitters = self._drawn(state, view, None, factors)
        self._seconds = time.perf_counter() - started
        return state | {"jitters": state["jitters"] + jitters}

    def _calibrated(self, view: View) -> dict[str, maths.Found]:
        features = {name: value.detach() for name, value in view.features.items()}
        known = self._chosen(maths.heads_of(self.state["posterior"]), view.problem.modalities)
        heads = reread(known, objectives_of(view.problem, view.theta.detach()), features, view.batch.y)
        seen = (heads, features, view.batch.y) if self.params.per_batch else None
        draws, _ = self._drawn(self.state, view, seen)
        return maths.calibrated(heads, features, view.batch.y, draws, self.params)

    def _drawn(
        self, state: dict[str, Any], view: View, batch: tuple | None, factors: dict[str, Any] | None = None
    ) -> tuple[dict, int]:
        """Return each head's centre and draws, and jitters; kept until the posterior changes."""
        if self._known is not None and self._known[0] is state["posterior"] and not (batch or self.params.redraw):
            return self._known[1]
        key = view.step if self.params.redraw else state["made"]

        def noise(row: str, like: Tensor) -> Tensor:
            return view.rng.normal(f"bogc/{row}", key, like)

        drawn = maths.draws(state["posterior"], self.params, noise, batch, factors or {})
        self._known = (state["posterior"], drawn)
        return drawn

    def _cosines(self, view: View) -> Tensor:
        """Return for each modality the smallest cosine of two losses' gradients on its encoder, (M,)."""
        rows = [i for i, name in enumerate(view.losses) if not name.startswith("reg/")]
        raw = view.raw_grads if len(rows) == len(view.raw_grads) else view.raw_grads[rows]
        pieces = [columns(raw, encoder(view.problem.layout, name)) for name in view.problem.modalities]
        return maths.smallest_cosines(torch.stack([piece @ piece.T for piece in pieces]))

    def _chosen(self, heads: dict[str, Head], modalities: tuple[str, ...]) -> dict[str, Head]:
        wanted = _LOSSES[self.params.calibrate]
        return {name: head for name, head in heads.items() if (name in modalities) in wanted}

    def _rows(self, sources: list[str], view: View) -> list[int]:
        names = list(view.losses)
        return [names.index(source) for source in sources]
