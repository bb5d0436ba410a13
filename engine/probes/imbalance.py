"""How unevenly the modalities learn: scores, true-class ratios, gradient norms, Fisher traces, Shapley shares.

Scores and contributions are taken on the validation rows, all else on the probe batch with no method active; each
record's `mode` names its protocol, since protocols give different numbers. A modality that is absent has its input at
zero, the mean of the training rows, unless a protocol says otherwise. Fisher traces are sums of squared gradients, with
the data's labels (the empirical Fisher matrix) or with labels drawn from the network (the Fisher matrix); they are not
traces of the Hessian, and the empirical one vanishes where the data are interpolated.

What needs a second run is not here: the Balance page compares with runs that were trained on one modality alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Bars, Matrix, Probe, Record, Scalar, Snapshot, knob, several
from modalscape.engine.core.problem import Batch, join
from modalscape.engine.maths.modalities import imbalance
from modalscape.engine.maths.modalities.robustness import majority
from modalscape.engine.maths.progress import tracked
from modalscape.engine.maths.standard_error import mean_and_error
from modalscape.engine.reports import contribution
from modalscape.engine.reports.motion import motion

MOST = 8
"""Modalities up to which all subsets are scored."""
PIECE = 64
"""Rows that are encoded at once."""

PROTOCOLS = {
    "inputs": "inputs of the other modalities at zero",
    "zeros": "features of the other modalities at zero",
    "means": "features of the other modalities at their mean over the probe rows",
    "linear": "ridge regression on the modality's features, fitted on the probe rows",
    "prototypes": "nearest class mean of the modality's features on the probe rows",
}
"""Ways to score one modality alone, beside its own head or slice where it has one."""
ROWS = {
    "inputs": "others' inputs 0",
    "zeros": "others' features 0",
    "means": "others' features mean",
    "linear": "linear probe",
    "prototypes": "class means",
}
"""The same as they stand beside a table."""


class Seen:
    """The validation rows and the probe rows as the encoders see them."""

    rows: Batch
    """The validation rows; inputs are not kept."""
    features: dict[str, Tensor]
    """Modality to (N, D), on the validation rows."""
    probe: dict[str, Tensor]
    """Modality to (B, D), on the probe rows."""
    neutral: dict[str, Tensor]
    """Modality to (1, D), what its encoder makes of a neutral input."""

    def __init__(self, snap: Snapshot) -> None:
        """Encode the rows."""
        batches = [piece for batch in snap.problem.held_out("val") for piece in batch.chunks(PIECE)]
        pieces = [*batches, *snap.problem.probe_batch().chunks(PIECE)]
        encoded = [_encoded(snap, piece) for piece in tracked(pieces, "pieces")]
        held_out, probe = encoded[: len(batches)], encoded[len(batches) :]
        one = batches[0].rows(slice(0, 1))
        self.rows = Batch({}, torch.cat([piece.y for piece in batches]))
        self.features, self.probe = join(held_out), join(probe)
        self.neutral = {m: _encoded(snap, snap.problem.without(one, m))[m] for m in snap.problem.modalities}


class Imbalance(Probe):
    """Unimodal scores, OGM and prototype ratios, gradient norms, Fisher traces, Shapley shares and what follows."""

    name = "imbalance"
    title = "Modality imbalance"
    every = 50
    cost = "medium"

    @dataclass(frozen=True)
    class Params:
        """What to spend, and against what a modality is compared."""

        rows: int = knob(64, 2, 4096, "Rows of the probe batch whose single gradients give the Fisher traces.")
        model: bool = knob(True, help="Fisher traces with labels drawn from the network too.")
        shapley: bool = knob(True, help="Shapley shares and valuations, from every subset of up to eight modalities.")
        overfitting: bool = knob(True, help="Training against validation loss, now and at the first weights.")
        others: str = knob("mean", help="Score of several others in the OGM ratio.", choices=("mean", "smallest"))

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield the metrics that the problem has: a regression has no class probabilities, for example."""
        several("Modality imbalance", snap.problem.modalities)
        seen = Seen(snap)
        for metric in (_scores, _protocols, self._ratios, _norms):
            yield from metric(snap, seen)
        yield from self._fisher(snap)
        yield from self._subsets(snap, seen)
        if self.params.overfitting:
            yield from _overfitting(snap, seen)

    def _ratios(self, snap: Snapshot, seen: Seen) -> Iterator[Record]:
        """Yield ratios of true-class probability, by logits and by prototypes, and leads."""
        problem, batch = snap.problem, snap.problem.probe_batch()
        if not _classifies(snap):
            return
        own, words = _alone(snap, seen, seen.probe, batch.y)
        classes = next(iter(own.values())).shape[1]
        scores = _scored(own, batch.y)
        about = {"n": len(batch), "mode": f"true-class probability on the probe rows: {words}"}
        display = Display(y="OGM ratio (1: balance)", ylog=True)
        ratios = imbalance.ogm_ratio(scores, self.params.others).tolist()
        leads = imbalance.performance_gap(scores / len(batch)).tolist()
        for m, ratio, lead in zip(problem.modalities, ratios, leads, strict=True):
            yield Scalar(f"imbalance/ogm_ratio/{m}", ratio, **about, display=display)
            yield Scalar(f"imbalance/lead/{m}", lead, **about, display=Display(y="mean lead over the weaker"))
        values = dict(zip(problem.modalities, leads, strict=True))
        yield _bars("imbalance/performance_gap", values, len(batch), about["mode"], "Lead over the weaker modalities")
        distances = {}
        for m, h in seen.features.items():
            means, known = imbalance.class_means(seen.probe[m], batch.y, classes)
            distances[m] = imbalance.similarity(h, means, known)
        about = {"n": len(seen.rows), "mode": f"true-class probability, validation rows: {PROTOCOLS['prototypes']}"}
        ratios = imbalance.ogm_ratio(_scored(distances, seen.rows.y), self.params.others).tolist()
        for m, ratio in zip(problem.modalities, ratios, strict=True):
            yield Scalar(f"imbalance/prototype_ratio/{m}", ratio, **about, display=Display(y="ratio (1: balance)"))

    def _fisher(self, snap: Snapshot) -> Iterator[Record]:
        """Yield E |∇ loss of a row|² on each modality's parameters, for the data's and for drawn labels.

        Where the loss is no mean over rows (contrastive), the mean squared gradient of mini-batches stands in.
        """
        batch = snap.problem.probe_batch().rows(slice(0, self.params.rows))
        names = list(batch.x)

        def loss(theta: Tensor, y: Tensor, *x: Tensor) -> Tensor:
            losses = _losses(snap, theta, Batch(dict(zip(names, x, strict=True)), y))
            return losses["fused"] if "fused" in losses else sum(losses.values())

        few = batch.rows(slice(0, 8))
        with torch.no_grad():
            whole = loss(snap.theta, few.y, *few.x.values())
            what = "fused" if "fused" in _losses(snap, snap.theta, few) else "training"
            single = torch.stack([loss(snap.theta, row.y, *row.x.values()) for row in few.chunks(1)])
        if not torch.isclose(single.mean(), whole, rtol=1e-3):
            size = max(2, len(batch) // 8)
            mode = f"mean squared gradient of the {what} loss over mini-batches of {size}; error: one standard error"
            grads = []
            for piece in tracked(batch.chunks(size), "gradients"):
                grads.append(torch.func.grad(loss)(snap.theta, piece.y, *piece.x.values())[None])
            squares = [_squares(snap, torch.cat(grads))]
            yield from _traces(snap, "fisher", squares, len(batch), mode)
            return
        labels = {"fisher": (batch.y, f"empirical Fisher trace of the {what} loss, single gradients")}
        drawn = _drawn(snap, batch) if self.params.model else None
        if drawn is not None:
            labels["fisher_model"] = (drawn, "Fisher trace of the fused loss, a label a row drawn from the network")
        for name, (y, mode) in labels.items():
            squares, means = [], []
            for piece in tracked(Batch(batch.x, y).chunks(16), "gradients"):
                grads = imbalance.per_sample_gradients(loss, snap.theta, (piece.y, *piece.x.values()))
                squares.append(_squares(snap, grads))
                means.append(grads.mean(0))
            yield from _traces(snap, name, squares, len(batch), f"{mode}; error: one standard error")
            if name == "fisher" and len(means) > 1 and len(batch) % 16 == 0:
                mode = f"mean squared gradient of the {what} loss over mini-batches of 16 rows (InfoReg, equation 13)"
                for m, of_batches in snap.problem.layout.split(torch.stack(means)).items():
                    if m in snap.problem.modalities:
                        plain, _ = imbalance.fisher_trace_of_batches(of_batches, 16)
                        yield Scalar(f"imbalance/fisher_batches/{m}", plain.item(), n=len(batch), mode=mode)

    def _subsets(self, snap: Snapshot, seen: Seen) -> Iterator[Record]:
        """Yield what each modality adds to the validation accuracy, from the accuracy of every subset."""
        modalities = snap.problem.modalities
        if not self.params.shapley or len(modalities) > MOST or not _classifies(snap):
            return
        right: dict[frozenset[str], Tensor] = {}
        logits: dict[frozenset[str], Tensor] = {}
        subsets = [present for size in range(len(modalities) + 1) for present in combinations(modalities, size)]
        for present in tracked(subsets, "subsets"):
            z = _fused(snap, seen.rows, _only(seen, seen.features, present))
            logits[frozenset(present)] = z.double()
            right[frozenset(present)] = (z.argmax(-1) == seen.rows.y).double().cpu()
        how = "fused accuracy, validation rows; inputs of the missing modalities at zero"
        yield from contribution.about("imbalance", modalities, right, how)
        how = "validation rows; inputs of the missing modalities at zero"
        yield from contribution.strengths("imbalance", modalities, logits, seen.rows.y, how)


def _scores(snap: Snapshot, seen: Seen) -> Iterator[Record]:
    """Yield each modality's score on the validation rows, and the strongest's lead over the weakest."""
    y = seen.rows.y
    own, words = _alone(snap, seen, seen.features, y)
    if not own:
        return
    name, n = "error" if y.is_floating_point() else "accuracy", len(y)
    about = {"n": n, "mode": f"validation {name}: {words}"}
    display = Display(y=name)
    if not y.is_floating_point():
        display |= Display(levels={"chance": majority(y)})
        yield Scalar("imbalance/chance", majority(y), n=n, mode="share of the largest class among the validation rows")
    values = {m: _scored_rows(z, y) for m, z in own.items()}
    for m, rows in values.items():
        value, error = mean_and_error(rows)
        yield Scalar(f"imbalance/{name}/{m}", value.item(), error.item(), **about, display=display)
    means = [rows.mean().item() for rows in values.values()]
    yield Scalar("imbalance/gap", max(means) - min(means), **about, display=Display(y=f"gap of {name}"))


def _protocols(snap: Snapshot, seen: Seen) -> Iterator[Record]:
    """Yield each modality's validation accuracy by every protocol."""
    y, train = seen.rows.y, snap.problem.probe_batch().y
    if not _classifies(snap):
        return
    own, words = _alone(snap, seen, seen.features, y)
    classes = next(iter(own.values())).shape[1]
    zeros = {m: torch.zeros_like(h) for m, h in seen.neutral.items()}
    means = {m: h.mean(0, keepdim=True) for m, h in seen.probe.items()}
    found: dict[str, dict[str, Tensor]] = {"own": own} if words != PROTOCOLS["inputs"] else {}
    fills = {"inputs": seen.neutral, "zeros": zeros, "means": means}
    for key, fill in fills.items():
        found[key] = {
            m: _fused(snap, seen.rows, {o: h if o == m else fill[o].expand_as(h) for o, h in seen.features.items()})
            for m in seen.features
        }
    h = {m: (seen.probe[m].double(), seen.features[m].double()) for m in seen.features}
    found["linear"] = {m: imbalance.ridge(a, train, classes, b) for m, (a, b) in h.items()}
    found["prototypes"] = {
        m: imbalance.similarity(b, *imbalance.class_means(a, train, classes)) for m, (a, b) in h.items()
    }
    table = np.array([[_scored_rows(z, y).mean().item() for z in group.values()] for group in found.values()])
    told = {"own": words} | PROTOCOLS
    for key, row in zip(found, table, strict=True):
        for m, value in zip(seen.features, row.tolist(), strict=True):
            error = (value * (1 - value) / len(y)) ** 0.5
            mode = f"validation accuracy: {told[key]}; one standard error"
            display = Display(y="accuracy", levels={"chance": majority(y)}, label="")
            yield Scalar(f"imbalance/unimodal/{key}/{m}", value, error, n=len(y), mode=mode, display=display)
    labels = np.array([ROWS.get(key, words) for key in found])
    display = Display(title="Accuracy of one modality by protocol")
    mode = "validation accuracy; means, probe and class means from the probe rows"
    names = np.array(list(seen.features))
    yield Matrix("imbalance/protocols", labels, names, table, n=len(y), mode=mode, display=display)


def _norms(snap: Snapshot, seen: Seen) -> Iterator[Record]:
    """Yield gradient norms by modality and their ratio, how far weights have moved, and how fast they move."""
    problem, batch = snap.problem, snap.problem.probe_batch()
    theta = snap.theta.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(problem.loss(theta, batch), theta)
    split = problem.layout.split
    pieces = {m: piece.double() for m, piece in split(grad).items() if m in problem.modalities}
    if len(pieces) < 2:
        return
    norms = {m: torch.linalg.vector_norm(piece).item() for m, piece in pieces.items()}
    rms = {m: norm / len(pieces[m]) ** 0.5 for m, norm in norms.items()}
    n, mode = len(batch), "gradient of the training loss on the probe rows"
    for key, sizes in (("grad_norm", norms), ("grad_rms", rms)):
        value, what = _log_ratio(sizes, "g" if key == "grad_norm" else "g per root parameter")
        if np.isfinite(value):
            display = Display(y="nats (0: balance)", label="norm" if key == "grad_norm" else "norm per root parameter")
            yield Scalar(f"imbalance/{key}_ratio", value, n=n, mode=f"{what}; {mode}", display=display)
    yield _bars("imbalance/grad_norm", norms, n, mode, "Gradient norm")
    yield _bars("imbalance/grad_rms", rms, n, mode, "Gradient norm per root parameter")
    weights, first = split(snap.theta.detach().double()), split(problem.init().to(snap.theta).double())
    moved = None if snap.view is None or snap.view.applied_update is None else split(snap.view.applied_update.double())
    yield from motion("imbalance", weights, first, moved, pieces, n, mode)


def _overfitting(snap: Snapshot, seen: Seen) -> Iterator[Record]:
    """Yield validation minus training loss, and its growth by what was gained, since the run's first weights."""
    problem, probe = snap.problem, snap.problem.probe_batch()
    now = {"train": _loss_at(snap, seen.probe, probe.y), "val": _loss_at(snap, seen.features, seen.rows.y)}
    if not now["val"]:
        return
    first = Snapshot(0, problem.init().to(snap.theta), problem, snap.rng, snap.stack)
    before = Seen(first)
    then = {"train": _loss_at(first, before.probe, probe.y), "val": _loss_at(first, before.features, seen.rows.y)}
    about, unit = {"n": len(seen.rows)}, "squared error" if seen.rows.y.is_floating_point() else "nats"
    for name in now["val"]:
        mode = f"loss on the validation rows minus loss on {len(probe)} training rows"
        value = now["val"][name] - now["train"][name]
        yield Scalar(f"imbalance/overfitting/{name}", value, **about, mode=mode, display=Display(y=unit))
        ratio = imbalance.overfitting_ratio(*((t["train"][name], t["val"][name]) for t in (then, now)))
        if np.isfinite(ratio):
            mode = "|ΔO/ΔG| since the first weights: O validation minus training loss, G the fall of validation loss"
            display = Display(y="OGR", ylog=True)
            yield Scalar(f"imbalance/overfitting_ratio/{name}", ratio, **about, mode=mode, display=display)


def _bars(name: str, values: dict[str, float], n: int, mode: str, title: str) -> Bars:
    return Bars(name, np.array([*values]), np.array([*values.values()]), n=n, mode=mode, display=Display(title=title))


def _log_ratio(sizes: dict[str, float], letter: str) -> tuple[float, str]:
    """Return the log ratio of two norms, or of the largest to the smallest, and what it is in words."""
    values = torch.tensor(list(sizes.values()), dtype=torch.float64)
    if len(sizes) == 2:
        a, b = sizes
        return imbalance.gradient_norm_ratio(values)[0].item(), f"log of |{letter} {a}| / |{letter} {b}|"
    return (values.max().log() - values.min().log()).item(), f"log of the largest over the smallest |{letter}|"


def _squares(snap: Snapshot, grads: Tensor) -> dict[str, Tensor]:
    """Return part to ‖g‖² of each row of grads (N, P)."""
    return {part: g.double().square().sum(-1) for part, g in snap.problem.layout.split(grads).items()}


def _traces(snap: Snapshot, name: str, squares: list[dict[str, Tensor]], n: int, mode: str) -> Iterator[Record]:
    """Yield the mean of squared gradients by modality, and the share of each."""
    joined = {m: torch.cat([piece[m] for piece in squares]) for m in snap.problem.modalities if m in squares[0]}
    traces = {m: mean_and_error(values) for m, values in joined.items()}
    display = Display(y="Fisher trace", ylog=True)
    for m, (value, error) in traces.items():
        yield Scalar(f"imbalance/{name}_trace/{m}", value.item(), error.item(), n=n, mode=mode, display=display)
    total = sum(value for value, _ in traces.values())
    if traces and total > 0:
        shares = {m: (value / total).item() for m, (value, _) in traces.items()}
        yield _bars(f"imbalance/{name}_share", shares, n, mode, "Share of the Fisher trace")


@torch.no_grad()
def _drawn(snap: Snapshot, batch: Batch) -> Tensor | None:
    """Return a label (B,) for each row, drawn from the network's class probabilities; None without a likelihood."""
    losses, logits = snap.problem.objectives(snap.theta, _encoded(snap, batch), batch)
    generator = snap.rng.generator("imbalance/labels", snap.step, batch.y.device)
    return imbalance.drawn_labels(logits.get("fused"), batch.y, losses.get("fused"), generator)


@torch.no_grad()
def _encoded(snap: Snapshot, batch: Batch) -> dict[str, Tensor]:
    return snap.problem.encode(snap.theta, batch)


@torch.no_grad()
def _logits(snap: Snapshot, features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    return snap.problem.objectives(snap.theta, features, Batch({}, y))[1]


@torch.no_grad()
def _loss_at(snap: Snapshot, features: dict[str, Tensor], y: Tensor) -> dict[str, float]:
    return {k: v.item() for k, v in snap.problem.objectives(snap.theta, features, Batch({}, y))[0].items()}


def _losses(snap: Snapshot, theta: Tensor, batch: Batch) -> dict[str, Tensor]:
    return snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)[0]


def _fused(snap: Snapshot, rows: Batch, features: dict[str, Tensor]) -> Tensor:
    return _logits(snap, features, rows.y)["fused"]


def _alone(snap: Snapshot, seen: Seen, features: dict[str, Tensor], y: Tensor) -> tuple[dict[str, Tensor], str]:
    """Return each modality's logits (N, C) and their protocol: its own, else fused ones with others at neutral."""
    logits, names = _logits(snap, features, y), snap.problem.modalities
    if all(m in logits for m in names):
        own = snap.problem.protocol
        return {m: logits[m] for m in names}, own if own != PROTOCOLS["inputs"] else "its own logits"
    if "fused" not in logits:
        return {}, ""
    rows = Batch({}, y)
    return {m: _fused(snap, rows, _only(seen, features, (m,))) for m in names}, PROTOCOLS["inputs"]


def _only(seen: Seen, features: dict[str, Tensor], present: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the features with every modality but those present as its encoder makes them of a neutral input."""
    return {m: h if m in present else seen.neutral[m].expand_as(h) for m, h in features.items()}


def _scored(logits: dict[str, Tensor], y: Tensor) -> Tensor:
    """Return the summed true-class probability of each modality (M,)."""
    return torch.stack([imbalance.true_class_score(z.double(), y) for z in logits.values()]).cpu()


def _scored_rows(z: Tensor, y: Tensor) -> Tensor:
    """Return for each row 1 where it is right and 0 where not, or its squared error."""
    return (z[:, 0] - y).square().double() if y.is_floating_point() else (z.argmax(-1) == y).double()


@torch.no_grad()
def _classifies(snap: Snapshot) -> bool:
    """Whether the problem is scored by accuracy and has class logits."""
    few = snap.problem.probe_batch().rows(slice(0, 2))
    return snap.problem.score == "accuracy" and "fused" in _logits(snap, _encoded(snap, few), few.y)
