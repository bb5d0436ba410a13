"""What each loss tells each encoder, and how far it can be trusted: moments, precision, opinions, norms, conflicts.

Taken on the probe rows with no method active, so it shows what BOGC-MML would see whether it is on or not. A gradient
at the features is random through the last layer, with a Laplace posterior made from the same rows, scaled to all
training rows; mean² over variance is the evidence, or 1/variance. Precision says how firmly a gradient is determined,
not whether it is useful: see `precision_by_confidence`, where saturated rows can be as precise as they are empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Curve, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.problem import Batch, join
from modalscape.engine.core.step import per_objective
from modalscape.engine.maths.gradients import calibration as maths
from modalscape.engine.maths.gradients.evidence import EVIDENCE, READINGS, SIZES
from modalscape.engine.maths.gradients.laplace import KINDS
from modalscape.engine.maths.gradients.last_layer import Head, linear_heads
from modalscape.engine.maths.progress import tracked
from modalscape.engine.reports import calibration as told, gradients


class Evidence(Probe):
    """Gradient norms, cosines, conflicts, noise by part and layer; precision and weight of every source."""

    name = "evidence"
    title = "Gradient evidence"
    every = 100
    cost = "medium"

    @dataclass(frozen=True)
    class Params:
        """How gradients become evidence; as in the method, and what to spend."""

        rows: int = knob(128, 8, 4096, "Rows of the probe batch that are measured.", log=True)
        pieces: int = knob(8, 2, 64, "Mini-batches that the rows are cut into, for conflict rates and noise.")
        reading: str = knob("trust", help="What opinions are about; our five readings.", choices=tuple(READINGS))
        evidence: str = knob("snr", help="Evidence from mean²/variance, or from 1/variance.", choices=tuple(EVIDENCE))
        power: float = knob(0.5, 0.0, 2.0, "Exponent on it.")
        average: bool = knob(False, help="One precision a coordinate, from the rows' mean variance.")
        by_coordinate: bool = knob(False, help="One evidence a coordinate: mean square over mean variance of the rows.")
        conflict: float = knob(0.0, 0.0, 1.0, "Share of the calibrated gradient that full conflict takes away.")
        size: str = knob("sources", help="Times the number of sources, as is, or the plain norm.", choices=tuple(SIZES))
        samples: int = knob(512, 8, 4096, "Heads drawn for the moments, S.", log=True)
        gamma: float = knob(0.005, 1e-6, 100.0, "Prior variance of the heads' weights.", log=True)
        centre: str = knob("weights", help="Mean of the heads: now's, or a Newton step.", choices=("weights", "newton"))
        form: str = knob("auto", help="Form of the posterior's precision.", choices=("auto", *KINDS))
        full_up_to: int = knob(1500, 2, 20_000, "Weights of a head up to which `auto` keeps the full matrix.", log=True)

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield norms and cosines of any problem, then the evidence where losses have linear heads.

        Problems without such heads end the measurement with the sentence that says so.
        """
        batch = snap.problem.probe_batch().rows(slice(0, self.params.rows))
        yield from self._directions(snap, batch)
        yield from self._evidence(snap, batch)

    def _directions(self, snap: Snapshot, batch: Batch) -> Iterator[Record]:
        """Yield norms and cosines by part and layer, how often mini-batches disagree, and how noisy gradients are."""
        size = -(-len(batch) // self.params.pieces)
        pieces, rows = batch.chunks(size), []
        for piece in tracked(pieces, "gradients"):
            names, grads = _rows(snap, piece)
            rows.append(grads)
        problem = snap.problem
        sizes = [len(piece) for piece in pieces]
        found = gradients.Gradients(problem.layout, names, problem.modalities, torch.stack(rows), sizes)
        for part in (gradients.directions, gradients.layers, gradients.noise):
            yield from part(found)

    def _evidence(self, snap: Snapshot, batch: Batch) -> Iterator[Record]:
        problem, p = snap.problem, self.params
        with torch.no_grad():
            encoded = [problem.encode(snap.theta, piece) for piece in tracked(batch.chunks(problem.micro), "pieces")]
        features = join(encoded)
        heads = linear_heads(lambda f, y: problem.objectives(snap.theta, f, Batch({}, y)), features, batch.y)
        total = sum(len(part) for part in problem.held_out("train"))
        posterior, factors = maths.posteriors(heads, features, batch.y, total / len(batch), p)

        def noise(row: str, like: Tensor) -> Tensor:
            return snap.rng.normal(f"evidence/{row}", snap.step, like)

        drawn, jitters = maths.draws(posterior, p, noise, factors=factors)
        yield Scalar("evidence/jitters", float(jitters), n=len(batch), mode="raised diagonals in Cholesky factors")
        how = f"{p.reading}, {p.evidence}; probe rows, S = {p.samples}, no method active"
        found = maths.calibrated(heads, features, batch.y, drawn, p)
        for modality, what in tracked(found.items(), "modalities"):
            yield from told.summaries("evidence", modality, what, how, p)
            yield from told.maps("evidence", modality, what, how)
            if len(what.sources) > 1:
                yield _row_conflict(modality, what, how)
            for k, source in enumerate(what.sources):
                if heads[source].classes:
                    yield _by_confidence(modality, source, what.precision[k], heads[source], features, batch.y, how)


def _rows(snap: Snapshot, batch: Batch) -> tuple[list[str], Tensor]:
    """Return the losses' names and gradients (K, P) on a batch."""
    theta = snap.theta.detach().requires_grad_()
    losses, _ = snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)
    return list(losses), per_objective(losses, theta)


def _row_conflict(modality: str, found: maths.Found, how: str) -> Scalar:
    """Return the share of rows in which two sources pull the features apart."""
    plain = found.moments.plain.transpose(0, 1)
    against = [bool(maths.smallest_cosine(row) < 0) for row in plain]
    rate, n = sum(against) / len(against), len(against)
    mode = f"share of rows whose gradients at the features have a negative cosine; one standard error; {how}"
    error = (rate * (1 - rate) / n) ** 0.5
    return Scalar(f"evidence/row_conflict/{modality}", rate, error, n=n, mode=mode, display=Display(y="share"))


def _by_confidence(
    modality: str, source: str, precision: Tensor, head: Head, features: dict[str, Tensor], y: Tensor, how: str
) -> Curve:
    """Return median log10 precision against the true class's probability, by tenths of the rows."""
    p = head.outputs(head.joined(features) @ head.weight.T).gather(1, y[:, None])[:, 0]
    logs = precision.log10().median(1).values
    groups = p.argsort().tensor_split(min(10, len(p)))
    x = torch.stack([p[group].mean() for group in groups]).double().cpu().numpy()
    values = torch.stack([logs[group].median() for group in groups]).double().cpu().numpy()
    display = Display(title="Is what is learnt precise?", x="probability of the true class", y="log10 precision")
    name = f"evidence/precision_by_confidence/{modality}/{source}"
    return Curve(name, x, values, n=len(p), mode=f"tenths of the rows; {how}", display=display)
