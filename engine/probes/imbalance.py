"""How unevenly the modalities learn: scores, true-class ratios, gradient norms, Fisher traces, Shapley shares.

Accuracies are taken on the validation rows, all else on the probe batch with no method active; each record's `mode`
names its protocol, since protocols give different numbers. Fisher traces are sums of squared gradients with the data's
labels (the empirical Fisher matrix), not traces of the Hessian, and vanish where the data are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from engine.maths import imbalance
from engine.probe import Bars, Probe, Record, Scalar, Snapshot, knob
from engine.problem import Batch

ZERO = "inputs of the other modalities at zero"


class Imbalance(Probe):
    """Unimodal scores and their gap, OGM ratio, gradient-norm ratio, Fisher trace and Shapley share by modality."""

    name = "imbalance"
    title = "Modality imbalance"
    every = 50
    cost = "fair"

    @dataclass(frozen=True)
    class Params:
        """What to spend."""

        rows: int = knob(64, 2, 4096, "Rows of the probe batch whose single gradients give the Fisher traces.")
        shapley: bool = knob(True, help="Shapley shares of the accuracy, from every subset of up to five modalities.")

    def measure(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield the metrics that the problem has: a regression has no class probabilities, for example."""
        if len(snap.problem.modalities) < 2:
            return
        for metric in (_scores, _ratios, _norms, self._fisher, self._shapley):
            yield None
            yield from metric(snap)

    def _fisher(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield E |∇ loss of a row|² on each modality's parameters.

        Where the loss is no mean over rows (contrastive), the mean squared gradient of mini-batches stands in.
        """
        problem = snap.problem
        batch = problem.probe_batch().rows(slice(0, self.params.rows))
        names = list(batch.x)

        def loss(theta: Tensor, y: Tensor, *x: Tensor) -> Tensor:
            losses = _losses(snap, theta, Batch(dict(zip(names, x, strict=True)), y))
            return losses["fused"] if "fused" in losses else sum(losses.values())

        few = batch.rows(slice(0, 8))
        with torch.no_grad():
            whole = loss(snap.theta, few.y, *few.x.values())
            what = "fused" if "fused" in _losses(snap, snap.theta, few) else "training"
            single = torch.stack([loss(snap.theta, row.y, *row.x.values()) for row in few.chunks(1)])
        if torch.isclose(single.mean(), whole, rtol=1e-3):
            pieces, size = batch.chunks(16), 1
            mode = f"empirical Fisher trace of the {what} loss, single gradients; error: one standard error"
        else:
            pieces, size = batch.chunks(max(2, len(batch) // 8)), max(2, len(batch) // 8)
            mode = f"mean squared gradient of the {what} loss over mini-batches of {size}; error: one standard error"
        squares: dict[str, list[Tensor]] = {}
        for piece in pieces:
            if size == 1:
                grads = imbalance.per_sample_gradients(loss, snap.theta, (piece.y, *piece.x.values()))
            else:
                grads = torch.func.grad(loss)(snap.theta, piece.y, *piece.x.values())[None]
            for part, grad in problem.layout.split(grads).items():
                squares.setdefault(part, []).append(grad.double().square().sum(-1))
            yield None
        traces = {m: imbalance.mean_and_error(torch.cat(squares[m])) for m in problem.modalities if m in squares}
        for modality, (value, error) in traces.items():
            yield Scalar(
                f"imbalance/fisher_trace/{modality}",
                value.item(),
                error.item(),
                n=len(batch),
                mode=mode,
                draw={"y": "Fisher trace", "ylog": True},
            )
        total = sum(value for value, _ in traces.values())
        if traces and total > 0:
            shares = {m: (value / total).item() for m, (value, _) in traces.items()}
            yield _bars("imbalance/fisher_share", shares, len(batch), mode, "Share of the Fisher trace")

    def _shapley(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield each modality's share of the validation accuracy above that without any input."""
        modalities = snap.problem.modalities
        if not self.params.shapley or len(modalities) > 5 or not _classifies(snap):
            return
        value = {}
        for size in range(len(modalities) + 1):
            for present in combinations(modalities, size):
                value[frozenset(present)] = _accuracy(snap, present)
                yield None
        n = sum(len(batch) for batch in snap.problem.held_out("val"))
        mode = "Shapley share of the fused validation accuracy; missing inputs at zero"
        shares = imbalance.shapley(value)
        yield _bars("imbalance/shapley", {m: shares[m] for m in modalities}, n, mode, "Shapley share of accuracy")


@torch.no_grad()
def _scores(snap: Snapshot) -> list[Record]:
    """Return each modality's score on the validation rows, and the strongest's lead over the weakest."""
    problem = snap.problem
    values = problem.evaluate(snap.theta, "val")
    scores = {m: values[f"{problem.score}/val/{m}"] for m in problem.modalities if f"{problem.score}/val/{m}" in values}
    if len(scores) < 2:
        return []
    n = sum(len(batch) for batch in problem.held_out("val"))
    about = {"n": n, "mode": f"validation {problem.score}: {problem.protocol}"}
    records: list[Record] = [
        Scalar(f"imbalance/{problem.score}/{m}", value, **about, draw={"y": problem.score})
        for m, value in scores.items()
    ]
    gap = max(scores.values()) - min(scores.values())
    records.append(Scalar("imbalance/gap", gap, **about, draw={"y": f"gap of {problem.score}"}))
    return records


@torch.no_grad()
def _ratios(snap: Snapshot) -> list[Record]:
    """Return the OGM ratio of each modality and its lead in mean true-class probability."""
    problem, batch = snap.problem, snap.problem.probe_batch()
    if not _classifies(snap):
        return []
    logits, protocol = _logits(snap, batch), problem.protocol
    if not all(m in logits for m in problem.modalities):
        logits = {m: _logits(snap, _only(snap, batch, (m,)))["fused"] for m in problem.modalities}
        protocol = ZERO
    scores = torch.stack([imbalance.true_class_score(logits[m].double(), batch.y) for m in problem.modalities]).cpu()
    about = {"n": len(batch), "mode": f"true-class probability on the probe rows: {protocol}"}
    draw = {"y": "OGM ratio (1: balance)", "ylog": True}
    records: list[Record] = [
        Scalar(f"imbalance/ogm_ratio/{m}", ratio, **about, draw=draw)
        for m, ratio in zip(problem.modalities, imbalance.ogm_ratio(scores).tolist(), strict=True)
    ]
    gaps = imbalance.performance_gap(scores / len(batch)).tolist()
    gaps = dict(zip(problem.modalities, gaps, strict=True))
    records.append(
        _bars("imbalance/performance_gap", gaps, len(batch), about["mode"], "Lead over the weaker modalities")
    )
    return records


def _norms(snap: Snapshot) -> list[Record]:
    """Return the gradient norm of each modality's parameters, and their ratio."""
    problem, batch = snap.problem, snap.problem.probe_batch()
    theta = snap.theta.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(problem.loss(theta, batch), theta)
    pieces = {m: piece.double() for m, piece in problem.layout.split(grad).items() if m in problem.modalities}
    if len(pieces) < 2:
        return []
    norms = {m: torch.linalg.vector_norm(piece).item() for m, piece in pieces.items()}
    rms = {m: norm / len(pieces[m]) ** 0.5 for m, norm in norms.items()}
    n, mode = len(batch), "gradient of the training loss on the probe rows"
    names, sizes = list(norms), torch.tensor(list(norms.values()), dtype=torch.float64)
    if len(names) == 2:
        value, what = imbalance.gradient_norm_ratio(sizes)[0].item(), f"log of |g {names[0]}| / |g {names[1]}|"
    else:
        value, what = (sizes.max().log() - sizes.min().log()).item(), "log of the largest over the smallest norm"
    return [
        Scalar("imbalance/grad_norm_ratio", value, n=n, mode=f"{what}; {mode}", draw={"y": "nats (0: balance)"}),
        _bars("imbalance/grad_norm", norms, n, mode, "Gradient norm"),
        _bars("imbalance/grad_rms", rms, n, mode, "Gradient norm per root parameter"),
    ]


def _bars(name: str, values: dict[str, float], n: int, mode: str, title: str) -> Bars:
    return Bars(name, np.array(list(values)), np.array(list(values.values())), n=n, mode=mode, draw={"title": title})


def _losses(snap: Snapshot, theta: Tensor, batch: Batch) -> dict[str, Tensor]:
    return snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)[0]


def _logits(snap: Snapshot, batch: Batch) -> dict[str, Tensor]:
    return snap.problem.objectives(snap.theta, snap.problem.encode(snap.theta, batch), batch)[1]


def _only(snap: Snapshot, batch: Batch, present: tuple[str, ...]) -> Batch:
    """Return the batch with every modality but those present at its neutral input."""
    for modality in snap.problem.modalities:
        batch = batch if modality in present else snap.problem.without(batch, modality)
    return batch


@torch.no_grad()
def _classifies(snap: Snapshot) -> bool:
    """Whether the problem is scored by accuracy and has class logits."""
    first = snap.problem.probe_batch().rows(slice(0, 2))
    return snap.problem.score == "accuracy" and "fused" in _logits(snap, first)


@torch.no_grad()
def _accuracy(snap: Snapshot, present: tuple[str, ...]) -> float:
    """Return the fused validation accuracy with only some modalities present."""
    right = total = 0
    for batch in snap.problem.held_out("val"):
        logits = _logits(snap, _only(snap, batch, present))["fused"]
        right += (logits.argmax(-1) == batch.y).sum().item()
        total += len(batch)
    return right / total
