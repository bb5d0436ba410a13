"""Whether noise climbs where the loss is sharp: tr(HΣ), its alignment with the Hessian, and noise against curvature.

H is the Hessian of the training loss on the probe batch, no method active. Σ is the covariance of noise in the
gradient's units, of two sources: `added`, what the methods that are on add to an update (drawn from them, whatever they
are, and divided by the learning rate), and `batch`, the difference between training batches, which every run has. From
a minimum, one step of plain descent with noise of that covariance lifts the loss by lr²·tr(HΣ)/2, exactly for a
quadratic. The alignment A = P·tr(HΣ)/(tr H·tr Σ) is 1 for isotropic noise and larger where noise follows curvature.

*Source*: tr(HΣ) as an indicator of escape is that of Zhu et al., arXiv 1803.00195; A is tr(HΣ) over its value for
isotropic noise of equal power. We estimate both from drawn vectors and Hessian-vector products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Curve, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.step import gradient, settled
from modalscape.engine.maths.curvature.krylov import Products
from modalscape.engine.maths.curvature.noise_alignment import alignment
from modalscape.engine.maths.progress import Tally
from modalscape.engine.maths.standard_error import mean_and_error

WORDS = {"added": "noise that methods add", "batch": "difference between training batches"}


class Escape(Probe):
    """Escape indicator, alignment and rank correlation of noise with curvature, added and the batches' own."""

    name = "escape"
    title = "Escape from sharp places"
    every = 200
    cost = "high"
    usual = False

    @dataclass(frozen=True)
    class Params:
        """What to spend: three Hessian-vector products a draw."""

        draws: int = knob(8, 2, 500, "Noise vectors of each source, and random signs for the trace.", log=True)
        batches: bool = knob(True, help="Also the batches' own noise: two gradients a draw.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield tr(HΣ), the lift of the loss in a step, A, and noise against curvature layer by layer."""
        draws, batch = self.params.draws, snap.problem.probe_batch()
        rate = snap.view.rate
        sources = {"added": _added(snap, draws)} if snap.stack.pipeline()["update"] and rate.lr > 0 else {}
        count = len(sources) + self.params.batches
        tally = Tally("draws", draws * (1 + count + self.params.batches))
        product = Products(lambda theta: snap.problem.loss(theta, batch), snap.theta, tally=tally)
        found, diagonal = [], torch.zeros_like(snap.theta)
        for i in range(draws):
            signs = snap.rng.normal("escape/signs", i, snap.theta).sign()
            image = signs * product(signs)
            found.append(image.double().sum())
            diagonal += image / draws
        trace, error = (v.item() for v in mean_and_error(torch.stack(found)))
        if self.params.batches:
            sources["batch"] = []
            for i in range(draws):
                sources["batch"].append(_difference(snap, i))
                tally.add()
        layers = _layers(snap, diagonal)
        for source, vectors in sources.items():
            products = [z.double() @ product(z).double() for z in vectors]
            mode = f"{WORDS[source]}, in gradient units; Hessian of the training loss, no method active"
            about = {"n": draws, "mode": f"{mode}; error: one standard error"}
            yield from _records(source, torch.stack(products), torch.stack(vectors), (trace, error), rate.lr, about)
            power = _layers(snap, torch.stack(vectors).square().mean(0))
            yield from _scatter(source, power, layers, list(snap.problem.layout.shapes), about)


def _added(snap: Snapshot, draws: int) -> list[Tensor]:
    """Return noise vectors (P,) in gradient units: differences of two draws, so that what is not random drops out."""
    view = snap.view
    if view.grad is None:
        view = settled(gradient(snap.theta, view, snap.stack))
    still = torch.zeros_like(snap.theta)

    def drawn(i: int) -> Tensor:
        return snap.stack.chain("update", still, view.having(rng=snap.rng.within(f"escape/{i}")))

    return [(drawn(2 * i) - drawn(2 * i + 1)) / (math.sqrt(2) * view.rate.lr) for i in range(draws)]


def _difference(snap: Snapshot, i: int) -> Tensor:
    """Return the difference (P,) of the gradients of two training batches, with the variance of one."""
    theta = snap.theta.detach().requires_grad_()
    one, other = (snap.problem.loss(theta, snap.problem.batch(snap.step + k)) for k in (2 * i, 2 * i + 1))
    return torch.autograd.grad((one - other) / math.sqrt(2), theta)[0]


def _layers(snap: Snapshot, vector: Tensor) -> np.ndarray:
    """Return the mean of a vector (P,) over each tensor of the network."""
    return torch.stack([block.mean() for block in snap.problem.layout.blocks(vector).values()]).double().cpu().numpy()


def _records(
    source: str, products: Tensor, vectors: Tensor, trace: tuple[float, float], lr: float, about: dict
) -> Iterator[Record]:
    value, error = (v.item() for v in mean_and_error(products))
    display = Display(title="Escape indicator tr(HΣ)", y="tr(HΣ)")
    yield Scalar(f"escape/indicator/{source}", value, error, **about, display=display)
    lift = 0.5 * lr**2
    display = Display(title="Lift of the loss by one step's noise", y="lr²·tr(HΣ)/2")
    yield Scalar(f"escape/lift/{source}", lift * value, lift * error, **about, display=display)
    aligned = alignment(products, vectors.square().sum(1), *trace, vectors.shape[1])
    if aligned is not None:
        display = Display(title="Alignment of noise with the Hessian", y="A (1: isotropic)")
        yield Scalar(f"escape/alignment/{source}", *aligned, **about, display=display)


def _scatter(source: str, power: np.ndarray, curvature: np.ndarray, names: list[str], about: dict) -> Iterator[Record]:
    """Yield the standard deviation of noise against the mean diagonal of the Hessian, a point a tensor."""
    if len(power) < 3 or not power.any():
        return
    order = np.argsort(curvature)
    display = Display(
        title="Noise against curvature, layer by layer",
        x="mean diagonal of the Hessian",
        y="standard deviation of the noise",
        points=[names[i] for i in order],
        xlog=True,
        ylog=True,
    )
    yield Curve(f"escape/layers/{source}", curvature[order], np.sqrt(power[order]), **about, display=display)
    if np.ptp(power) > 0 and np.ptp(curvature) > 0:
        rank = float(spearmanr(curvature, power).statistic)
        mode = "Spearman's rank correlation of noise and mean Hessian diagonal over tensors; " + about["mode"]
        display = Display(title="Does noise rise with curvature?", y="rank correlation")
        yield Scalar(f"escape/rank/{source}", rank, n=len(power), mode=mode, display=display)
