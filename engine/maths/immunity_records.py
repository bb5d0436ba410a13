"""The records that show ModalImmune at work: controller, spectra, gate, destructive gradient, hyper-gradients.

Each names in its `mode` the reading that is active. `p` are the method's knobs, `state` is what it remembers, see
`immunity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.maths import collapse
from engine.maths.immunity import AVERAGE, LOOKED, covariances, scales, weights
from engine.records import Bars, Curve, Matrix, Record, Scalar

GATES = {
    "hessian": "Hessian of the mixed loss by Lanczos, error: residual",
    "directional": "directional: the Hessian along the gradient; shown: its ends by Lanczos, error: residual",
    "literal": "literal: empirical Fisher, which is never negative",
}


def records(
    p: Any,
    state: Mapping[str, Any],
    clean: Mapping[str, Tensor],
    change: Sequence[float],
    blocks: tuple[Tensor, Tensor],
    rows: Sequence[str],
) -> Iterator[Record]:
    """Yield all records of a step: its features `clean` (B, D), L_without - L_full in `change` (M,), and the gradients.

    `blocks` (K, w) are the attacked encoder's block of the rows before and after the methods; w = 0 for none.
    """
    names, n = tuple(clean), len(next(iter(clean.values())))
    yield from about_the_controller(p, state, names, change, n)
    yield from about_the_spectra(p, state, clean)
    yield from about_the_gate(p, state, names)
    yield from about_the_push(p, *blocks, rows, n)
    yield from about_the_meta(p, state)


def about_the_controller(
    p: Any, state: Mapping[str, Any], names: Sequence[str], change: Sequence[float], n: int
) -> Iterator[Record]:
    """Yield chances, draws and gains; `change` (M,) is L_without - L_full on `n` rows."""
    chances = collapse.probabilities(state["weights"].tolist(), p.explore, p.controller)
    least, shares = p.explore / len(names), state["drawn"] / state["drawn"].sum().clamp(min=1)
    how, paid = f"{p.controller}, {p.gain} gain", collapse.information_gain(change, 0.0, p.gain == "signed")
    for m, name in enumerate(names):
        draw = {"y": "chance of an attack's aim", "lines": {"γ/M": least}}
        yield Scalar(f"modalimmune/chance/{name}", chances[m], mode=f"{how}; next draw", draw=draw)
        shown = f"{p.controller}; share of the attacks since switched on"
        yield Scalar(f"modalimmune/drawn/{name}", shares[m].item(), n=int(state["drawn"].sum()), mode=shown)
        shown = f"L_without - L_full of this batch, filled with {p.fill}; 0: as good without"
        yield Scalar(f"modalimmune/loss_change/{name}", change[m], n=n, mode=shown, draw={"y": "loss"})
        yield Scalar(f"modalimmune/gain/{name}", paid[m], n=n, mode=f"information gain, {p.gain}, squared loss")
    yield Scalar("modalimmune/entropy", -sum(c * math.log(c) for c in chances), mode=f"of the chances, nats; {how}")
    yield Scalar("modalimmune/reward_scale", state["scale"], mode=f"decayed maximum of the gains, {p.gain}")
    trace = state["trace"][state["trace"][:, 0] >= 0]
    trace = trace[trace[:, 0].argsort()].numpy()
    steps, arms = trace[:, 0], trace[:, 1].astype(int)
    yield Matrix(
        "modalimmune/controller",
        np.array([*names, *(f"drawn: {name}" for name in names)]),
        steps.astype(int).astype(str),
        np.concatenate([trace[:, 2:].T, (arms == np.arange(len(names))[:, None]).astype(float)]),
        n=len(steps),
        mode=f"chance of each modality, and 1 where it was drawn; {how}",
        draw={"title": "Chances and drawn arms", "x": "step", "lines": {"γ/M": least}},
    )


def about_the_spectra(p: Any, state: Mapping[str, Any], clean: Mapping[str, Tensor]) -> Iterator[Record]:
    """Yield scale, floor, ratio, strength, the collapse's terms and the spectrum of each modality's features (B, D)."""
    found, floors, n = (
        scales(covariances(clean)),
        (p.floor * state["reference"]).tolist(),
        len(next(iter(clean.values()))),
    )
    weight, kappa = weights(p, state)
    fade = "fades with the spectrum" if p.adaptive else "not adaptive"
    for m, (name, z) in enumerate(clean.items()):
        yield Scalar(f"modalimmune/scale/{name}", found[m], n=n, mode="root mean square of the centred features")
        how = f"{p.floor:g} of the reference scale; below it the collapse stops"
        yield Scalar(f"modalimmune/floor/{name}", floors[m], mode=how)
        if n < 2:
            continue
        values = collapse.eigenvalues(z.detach())
        ratio, top = collapse.ratio(values).item(), collapse.most(z)
        how = f"r(Σ)/r_max, tr Σ/λ_max of one batch of {n}, biased low; r_max = {top}"
        yield Scalar(f"modalimmune/ratio/{name}", ratio / top, n=n, mode=how)
        rich = state["rich"][m].item()
        if rich > 0:
            how = f"1 - r/r_0 of one batch of {n}; r_0 = {rich:.3g} before the first attack"
            yield Scalar(f"modalimmune/severity/{name}", 1 - ratio / rich, n=n, mode=how)
        strength = collapse.strength(weight, z, ratio, found[m], p.adaptive, floors[m])
        how = f"λ_eff if it were attacked now, {fade}; 0: at its floor"
        yield Scalar(f"modalimmune/strength/{name}", strength, n=n, mode=how)
        pull = z.detach().square().mean().item() / max(found[m], collapse.SMALLEST) ** 2 + p.target**2
        yield Scalar(f"modalimmune/pull/{name}", pull, n=n, mode="mean of z²/s² + η², in expectation over the target")
        yield Scalar(f"modalimmune/penalty/{name}", kappa * ratio, n=n, mode="κ·r(Σ), the other term of the collapse")
        averaged = torch.linalg.eigvalsh(state["covariance"][name].double())
        how = f"r(Σ)/D of the covariance averaged with decay {AVERAGE}"
        share = collapse.ratio(averaged).item() / z.shape[1]
        yield Scalar(f"modalimmune/ratio_averaged/{name}", share, n=n, mode=how)
        yield from _spectrum(name, values, n)


def _spectrum(name: str, values: Tensor, n: int) -> Iterator[Record]:
    fall = np.maximum(values.flip(0).double().cpu().numpy(), 1e-12)
    draw = {"title": f"Eigenvalues of {name}", "x": "rank", "y": "variance", "ylog": True}
    ranks = np.arange(1, len(fall) + 1)
    yield Curve(
        f"modalimmune/spectrum/{name}", ranks, fall, n=n, mode=f"{name}, clean features of one batch", draw=draw
    )
    family = collapse.dimensions(values)
    labels, sizes = np.array(list(family)), np.array(list(family.values()))
    draw = {"title": f"Dimensions of {name}"}
    yield Bars(f"modalimmune/dimensions/{name}", labels, sizes, n=n, mode=f"{name}, one batch", draw=draw)


def about_the_gate(p: Any, state: Mapping[str, Any], names: Sequence[str]) -> Iterator[Record]:
    """Yield the eigenvalue that each modality's gate looks at, its threshold, and the shares of attacks held back."""
    gate, attacks = state["gate"], int(state["drawn"].sum())
    for m, name in enumerate(names):
        if p.gate in GATES and gate["age"][m] >= 0:
            smallest, largest, residual = (gate[key][m].item() for key in LOOKED)
            how = f"{GATES[p.gate]}; block of {name}"
            yield Scalar(f"modalimmune/lambda_min/{name}", smallest, residual, mode=how)
            how = f"-τ = -{p.tau:g}·|λ_max|; the gate {p.gate} closes below"
            yield Scalar(f"modalimmune/threshold/{name}", -p.tau * abs(largest), mode=how)
            how = f"gate {p.gate}; 1: closed to the next attack on {name}"
            shut = collapse.closed(smallest, largest, p.tau)
            if p.gate != "directional":
                yield Scalar(f"modalimmune/closed/{name}", float(shut), mode=how)
    for key, how in (
        ("gate", f"attacks that the gate {p.gate} zeroed"),
        ("floor", "attacks on a modality at its floor"),
    ):
        share = state["counts"][key] / max(attacks, 1)
        yield Scalar(f"modalimmune/held_back/{key}", share, n=attacks, mode=f"share of {how}")


def about_the_push(p: Any, raw: Tensor, grads: Tensor, rows: Sequence[str], n: int) -> Iterator[Record]:
    """Yield the size of the destructive gradient before and after gate and clip, and its angle to the descent."""
    own = rows.index("reg/modalimmune")
    main = grads[[i for i, row in enumerate(rows) if not row.startswith("reg/")]].sum(0)
    before, after = raw[own].norm(), grads[own].norm()
    cosine = (grads[own] @ main) / (after * main.norm()).clamp(min=torch.finfo(raw.dtype).tiny)
    how = f"after gate {p.gate} and clip at {p.clip:g} of the descent"
    yield Scalar("modalimmune/push/before", before.item(), n=n, mode="‖λ_eff∇L_collapse‖, before gate and clip")
    yield Scalar("modalimmune/push/after", after.item(), n=n, mode=how)
    yield Scalar("modalimmune/push/descent", main.norm().item(), n=n, mode="‖descent of the attacked encoder‖")
    yield Scalar("modalimmune/cosine", cosine.item(), n=n, mode="cos(destructive gradient, descent) of the encoder")


def about_the_meta(p: Any, state: Mapping[str, Any]) -> Iterator[Record]:
    """Yield λ, κ, their hyper-gradients with certificates, and the residuals of the last series."""
    kind = "rigorous for G + δI" if p.matrix == "ggn" and p.reading == "ift" else "estimated"
    reading = f"reading {p.reading}, {p.matrix}"
    how = f"{reading}; certificate {kind}"
    now, facts, accepted, counts = weights(p, state), state["meta"], state["accepted"].tolist(), state["counts"]
    for i, name in enumerate(("lambda", "kappa")):
        yield Scalar(f"modalimmune/weights/{name}", now[i], mode=f"as tuned so far, {reading}", draw={"ylog": True})
        yield Scalar(f"modalimmune/accepted/{name}", float(accepted[i]), mode=f"of certain sign, {how}")
        if facts:
            value, error = facts["values"][i].item(), facts["errors"][i].item()
            yield Scalar(f"modalimmune/hypergradient/{name}", value, error, mode=f"by log {name}, {how}")
            yield Scalar(f"modalimmune/certificate/{name}", error, mode=f"bound on its error, {how}")
    yield Scalar("modalimmune/refused/skipped", float(counts["skipped"]), mode=f"of uncertain sign, λ and κ; {how}")
    yield Scalar("modalimmune/refused/diverged", float(counts["diverged"]), mode=f"series that grew, {reading}")
    if not facts:
        return
    for name in ("largest", "margin", "damping", "alpha", "rate", "certificate"):
        yield Scalar(f"modalimmune/series/{name}", facts[name], mode=how)
    norms = facts["norms"].numpy()
    ks = np.arange(len(norms))
    draw = {"title": "Terms of the series", "x": "k", "y": "‖t_k‖, the residual", "ylog": True}
    yield Curve("modalimmune/residual", ks, norms, n=len(norms), mode=f"{how}; straight: geometric", draw=draw)
    if facts["margin"] > 0:
        draw = {"title": "Certified error of the inverse", "x": "terms summed", "y": "bound on ‖v_k - v‖", "ylog": True}
        yield Curve(
            "modalimmune/certified", ks[1:], norms[1:] / facts["margin"], mode=f"‖t_k‖/margin, {how}", draw=draw
        )
