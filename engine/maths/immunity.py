"""What ModalImmune remembers from step to step, and the records that show it. See `collapse` for the quantities.

The state is a dict of numbers and tensors. Functions return changes to it and leave it as it is; (M,) runs over the
modalities, in float64 on the CPU, since it is small and is read by every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.knobs import InputError
from engine.maths import collapse
from engine.maths.hypergrad import HyperGradient, certain, certified_step
from engine.records import Bars, Curve, Matrix, Record, Scalar
from engine.rng import Rng

AVERAGE = 0.99
"""Decay of the averaged covariances and of the diagonal Fisher."""
RECENT = 0.9
"""Decay of the reference scales: features grow several times over in a warm-up, and the last of it counts."""
WINDOW = 200
"""Steps of the controller's past that are kept for display."""
RANGES = ((1e-3, 0.5), (1e-3, 1.0))
"""Within which the hyper-gradient moves λ and κ, widened to hold the knob's value."""
LOOKED = ("smallest", "largest", "residual")


def suits(modalities: Sequence[str], losses: Mapping[str, Tensor]) -> None:
    """Refuse a problem from whose fused prediction no modality can be left out.

    Raises:
        InputError: fewer than two modalities, or no fused loss.
    """
    if len(modalities) < 2:
        raise InputError(
            f"ModalImmune leaves one modality of several out, but there is only {modalities[0]!r} here; turn it off."
        )
    if "fused" not in losses:
        raise InputError(
            f"ModalImmune needs a fused prediction to leave a modality out of, but the losses are "
            f"{', '.join(losses)}; turn it off."
        )


def fresh(clean: Mapping[str, Tensor], theta: Tensor) -> dict[str, Any]:
    """Return the state before the first step, for modality to features (B, D) as they are now."""
    count = len(clean)
    zeros = torch.zeros(count, dtype=torch.float64)
    return {
        "age": 0,
        "arm": -1,
        "chance": 1.0,
        "weights": zeros,
        "scale": 0.0,
        "reference": torch.stack([collapse.rms(z).double().cpu() for z in clean.values()]),
        "covariance": {name: torch.zeros_like(z[:1].T @ z[:1]) for name, z in clean.items()},
        "fisher": torch.zeros_like(theta),
        "gate": {key: zeros for key in LOOKED} | {"age": torch.full((count,), -1, dtype=torch.int64)},
        "drawn": torch.zeros(count, dtype=torch.int64),
        "counts": {"floor": 0, "gate": 0, "skipped": 0, "diverged": 0},
        "trace": torch.full((WINDOW, count + 2), -1.0, dtype=torch.float64),
        "offset": torch.zeros(2, dtype=torch.float64),
        "second": torch.zeros(2, dtype=torch.float64),
        "accepted": torch.zeros(2, dtype=torch.int64),
        "tuned": 0,
        "meta": {},
    }


def following(p: Any, state: Mapping[str, Any], rng: Rng, step: int) -> dict[str, Any]:
    """Return the arm that is attacked at `step` (-1: none), the chance at which it was drawn, and the trace of both."""
    chances = collapse.probabilities(state["weights"], p.explore, p.controller)
    first, second = torch.rand(2, generator=rng.generator("modalimmune/arm", step), dtype=torch.float64).tolist()
    ready = first < collapse.readiness(state["age"], p.warmup, p.ramp, p.intervene)
    arm = collapse.drawn(chances, second) if ready else -1
    row = torch.cat([torch.tensor([step, arm], dtype=torch.float64), chances])
    drawn = state["drawn"].clone()
    drawn[arm] += ready
    trace = torch.cat([state["trace"][1:], row[None]])
    return {"arm": arm, "chance": chances[max(arm, 0)].item(), "drawn": drawn, "trace": trace}


def paid(p: Any, state: Mapping[str, Any], arms: Sequence[int], without: Tensor, full: Tensor) -> dict[str, Any]:
    """Return weights and scale after the losses without each of the `arms`, (len(arms),), and with all, 0-d.

    Nothing changes where a loss is not finite, so that one broken batch cannot end the controller.
    """
    gains = collapse.information_gain(without.double().cpu(), full.double().cpu(), p.gain == "signed")
    if not torch.isfinite(gains).all():
        return {}
    found, scale = collapse.rewards(gains, state["scale"])
    pairs = dict(zip(arms, found.tolist(), strict=True))
    weights = collapse.rewarded(state["weights"], pairs, state["chance"], p.explore, p.controller)
    return {"weights": weights, "scale": scale}


def scales(clean: Mapping[str, Tensor]) -> Tensor:
    """Return the root mean square of each modality's centred features, (M,) float64 on the CPU."""
    return torch.stack([collapse.rms(z).double() for z in clean.values()]).cpu()


def watched(state: Mapping[str, Any], clean: Mapping[str, Tensor], found: Tensor) -> dict[str, Any]:
    """Return the averaged covariances, and the reference scales (M,) with `found` in them where there was no attack."""
    changes: dict[str, Any] = {"covariance": dict(state["covariance"])}
    for name, z in clean.items():
        if len(z) > 1:
            zc = collapse.centred(z).to(z.dtype)
            changes["covariance"][name] = state["covariance"][name].lerp(zc.T @ zc / (len(z) - 1), 1 - AVERAGE)
    if state["arm"] < 0 and torch.isfinite(found).all():
        changes["reference"] = state["reference"].lerp(found, 1 - RECENT)
    return changes


def counted(p: Any, state: Mapping[str, Any], found: Tensor, gated: bool) -> dict[str, Any]:
    """Return the counts after an attack that the gate zeroed (`gated`) or that met scales `found` (M,) at the floor."""
    arm, counts = state["arm"], dict(state["counts"])
    counts["floor"] += bool(collapse.spent(found[arm], p.floor * state["reference"][arm]))
    counts["gate"] += gated
    return {"counts": counts}


def due(p: Any, state: Mapping[str, Any]) -> bool:
    """Return whether the gate must look at the next arm's curvature before it is attacked."""
    if state["arm"] < 0 or p.gate in ("off", "soft") or (p.collapse == 0 and p.feedback == 0):
        return False
    age = int(state["gate"]["age"][state["arm"]])
    return age < 0 or state["age"] - age >= p.gate_every


def seen(state: Mapping[str, Any], smallest: float, largest: float, residual: float) -> dict[str, Any]:
    """Return the gate with what was found of the next arm's curvature."""
    gate = {key: value.clone() for key, value in state["gate"].items()}
    for key, value in zip((*LOOKED, "age"), (smallest, largest, residual, state["age"]), strict=True):
        gate[key][state["arm"]] = value
    return {"gate": gate}


def weights(p: Any, state: Mapping[str, Any]) -> tuple[float, float]:
    """Return λ and κ: the knobs times what the hyper-gradients have made of them."""
    factors = state["offset"].exp().tolist()
    return p.collapse * factors[0], p.ratio * factors[1]


def tuned(p: Any, state: Mapping[str, Any], found: HyperGradient) -> dict[str, Any]:
    """Return the state after a hyper-gradient of log λ and log κ: each moves if the certificate settles its sign."""
    sure = certain(found.values, found.errors).cpu() & (not found.series.diverged)
    values, errors = found.values.double().cpu(), found.errors.double().cpu()
    step, second, accepted = certified_step(values, state["second"], state["accepted"], sure, p.meta_lr)
    offset = state["offset"] + step
    for i, (knob, (low, high)) in enumerate(zip((p.collapse, p.ratio), RANGES, strict=True)):
        if knob > 0:
            offset[i] = offset[i].clamp(math.log(min(low, knob) / knob), math.log(max(high, knob) / knob))
    counts = dict(state["counts"])
    counts["skipped"] += int((~sure).sum())
    counts["diverged"] += found.series.diverged
    facts = ("largest", "margin", "damping", "alpha", "rate", "certificate")
    meta = {"values": values, "errors": errors, "norms": found.series.norms} | {k: getattr(found, k) for k in facts}
    changes = {"offset": offset, "second": second, "accepted": accepted, "counts": counts, "meta": meta}
    return changes | {"tuned": state["age"]}


def about_the_controller(
    p: Any, state: Mapping[str, Any], names: Sequence[str], change: Tensor, n: int
) -> Iterator[Record]:
    """Yield chances, draws and gains; `change` (M,) is L_without - L_full on `n` rows."""
    chances = collapse.probabilities(state["weights"], p.explore, p.controller)
    least, shares = p.explore / len(names), state["drawn"] / state["drawn"].sum().clamp(min=1)
    for m, name in enumerate(names):
        draw = {"y": "chance of an attack's aim", "lines": {"γ/M": least}}
        yield Scalar(f"modalimmune/chance/{name}", chances[m].item(), mode=f"{p.controller}, next draw", draw=draw)
        how = "share of the attacks since switched on"
        yield Scalar(f"modalimmune/drawn/{name}", shares[m].item(), n=int(state["drawn"].sum()), mode=how)
        how = "L_without - L_full of this batch; 0: as good without"
        yield Scalar(f"modalimmune/loss_change/{name}", change[m].item(), n=n, mode=how, draw={"y": "loss"})
    yield Scalar("modalimmune/entropy", -torch.xlogy(chances, chances).sum().item(), mode="of the chances, nats")
    yield Scalar("modalimmune/reward_scale", state["scale"], mode="decayed maximum of the gains, squared loss")
    trace = state["trace"][state["trace"][:, 0] >= 0].numpy()
    steps, arms = trace[:, 0], trace[:, 1].astype(int)
    yield Matrix(
        "modalimmune/controller",
        np.array([*names, *(f"drawn: {name}" for name in names)]),
        steps.astype(int).astype(str),
        np.concatenate([trace[:, 2:].T, (arms == np.arange(len(names))[:, None]).astype(float)]),
        n=len(steps),
        mode="chance of each modality, and 1 where it was drawn",
        draw={"title": "Chances and drawn arms", "x": "step"},
    )


def about_the_spectra(p: Any, state: Mapping[str, Any], clean: Mapping[str, Tensor]) -> Iterator[Record]:
    """Yield scale, floor, ratio and terms of each modality, and the spectrum of the next arm, or the first."""
    found = scales(clean).tolist()
    n = len(next(iter(clean.values())))
    floors = (p.floor * state["reference"]).tolist()
    for m, (name, z) in enumerate(clean.items()):
        yield Scalar(f"modalimmune/scale/{name}", found[m], n=n, mode="root mean square of the centred features")
        yield Scalar(f"modalimmune/floor/{name}", floors[m], mode="scale below which the collapse stops")
        if n < 2:
            continue
        top, how = collapse.most(z), "r(Σ)/r_max of one batch, biased low"
        values = collapse.eigenvalues(z.detach())
        yield Scalar(f"modalimmune/ratio/{name}", collapse.ratio(values).item() / top, n=n, mode=how)
        weight, kappa = weights(p, state)
        strength = collapse.strength(weight, z, collapse.ratio(values), p.adaptive, floors[m]).item()
        yield Scalar(
            f"modalimmune/strength/{name}", strength, n=n, mode="λ_eff if it were attacked now; 0: at its floor"
        )
        pull = z.detach().square().mean().item() / max(found[m], collapse.SMALLEST) ** 2 + p.target**2
        yield Scalar(f"modalimmune/pull/{name}", pull, n=n, mode="mean of z²/s² + η², in expectation over the target")
        penalty = kappa * collapse.ratio(values).item()
        yield Scalar(f"modalimmune/penalty/{name}", penalty, n=n, mode="κ·r(Σ), the other term of the collapse")
        averaged = torch.linalg.eigvalsh(state["covariance"][name].double())
        how = f"r(Σ)/D of the covariance averaged with decay {AVERAGE}"
        share = collapse.ratio(averaged).item() / z.shape[1]
        yield Scalar(f"modalimmune/ratio_averaged/{name}", share, n=n, mode=how)
        if m == max(state["arm"], 0):
            fall = values.flip(0).double().cpu().numpy()
            draw = {"title": f"Eigenvalues of {name}", "x": "rank", "y": "variance", "ylog": True}
            yield Curve(
                "modalimmune/spectrum", np.arange(1, len(fall) + 1), np.maximum(fall, 1e-12), n=n, mode=name, draw=draw
            )
            family = collapse.dimensions(values)
            labels, sizes = np.array(list(family)), np.array(list(family.values()))
            yield Bars("modalimmune/dimensions", labels, sizes, n=n, mode=name, draw={"title": f"Dimensions of {name}"})


def about_the_gate(p: Any, state: Mapping[str, Any], names: Sequence[str]) -> Iterator[Record]:
    """Yield the eigenvalue that each modality's gate looks at, its threshold, and the shares of attacks held back."""
    gate, attacks = state["gate"], int(state["drawn"].sum())
    how = {"literal": "empirical Fisher"}.get(p.gate, "Hessian of the mixed loss, Lanczos; error: residual")
    for m, name in enumerate(names):
        if gate["age"][m] >= 0:
            smallest, largest, residual = (gate[key][m].item() for key in LOOKED)
            yield Scalar(f"modalimmune/lambda_min/{name}", smallest, residual, mode=f"{how}, block of {name}")
            yield Scalar(f"modalimmune/threshold/{name}", -p.tau * abs(largest), mode="-τ; the gate closes below")
    for key, how in (("gate", "attacks that the gate zeroed"), ("floor", "attacks on a modality at its floor")):
        share = state["counts"][key] / max(attacks, 1)
        yield Scalar(f"modalimmune/held_back/{key}", share, n=attacks, mode=f"share of {how}")


def about_the_push(raw: Tensor, grads: Tensor, rows: Sequence[str], n: int) -> Iterator[Record]:
    """Yield the size of the destructive gradient before and after gate and clip, and its angle to the descent.

    `raw` and `grads` (K, P) are the rows before and after the methods.
    """
    own = rows.index("reg/modalimmune")
    main = grads[[i for i, row in enumerate(rows) if not row.startswith("reg/")]].sum(0)
    before, after = raw[own].norm(), grads[own].norm()
    main = torch.where(raw[own] != 0, main, torch.zeros_like(main))
    cosine = (grads[own] @ main) / (after * main.norm()).clamp(min=torch.finfo(raw.dtype).tiny)
    yield Scalar("modalimmune/push/before", before.item(), n=n, mode="‖λ_eff∇L_collapse‖, before gate and clip")
    yield Scalar("modalimmune/push/after", after.item(), n=n, mode="after gate and clip")
    yield Scalar("modalimmune/push/descent", main.norm().item(), n=n, mode="‖descent of the attacked encoder‖")
    yield Scalar("modalimmune/cosine", cosine.item(), n=n, mode="cos(destructive gradient, descent) of the encoder")


def about_the_meta(p: Any, state: Mapping[str, Any]) -> Iterator[Record]:
    """Yield λ, κ, their hyper-gradients with certificates, and the residuals of the last series."""
    now, kind = weights(p, state), "rigorous for G + δI" if p.matrix == "ggn" and p.reading == "ift" else "estimated"
    accepted, counts = state["accepted"].tolist(), state["counts"]
    for i, name in enumerate(("lambda", "kappa")):
        yield Scalar(f"modalimmune/weights/{name}", now[i], mode="as tuned so far", draw={"ylog": True})
        if state["meta"]:
            value, error = state["meta"]["values"][i].item(), state["meta"]["errors"][i].item()
            how = f"reading {p.reading}, {p.matrix}; certificate {kind}"
            yield Scalar(f"modalimmune/hypergradient/{name}", value, error, mode=f"by log {name}, {how}")
            yield Scalar(f"modalimmune/certificate/{name}", error, mode=f"bound on its error, {kind}")
            yield Scalar(f"modalimmune/accepted/{name}", float(accepted[i]), mode="hyper-gradients of certain sign")
    yield Scalar("modalimmune/refused/skipped", float(counts["skipped"]), mode="of uncertain sign, λ and κ together")
    yield Scalar("modalimmune/refused/diverged", float(counts["diverged"]), mode="series that grew")
    if not state["meta"]:
        return
    facts = state["meta"]
    for name in ("largest", "margin", "damping", "alpha", "rate", "certificate"):
        yield Scalar(f"modalimmune/series/{name}", facts[name], mode=f"{p.reading}, {p.matrix}, {kind}")
    norms = facts["norms"].numpy()
    draw = {"title": "Terms of the series", "x": "k", "y": "‖t_k‖, the residual", "ylog": True}
    ks = np.arange(len(norms))
    yield Curve(
        "modalimmune/residual", ks, norms, n=len(norms), mode=f"{p.reading}, {p.matrix}; straight: geometric", draw=draw
    )
    if facts["margin"] > 0:
        draw = {"title": "Certified error of the inverse", "x": "terms summed", "y": "bound on ‖v_k - v‖", "ylog": True}
        yield Curve(
            "modalimmune/certified", ks[1:], norms[1:] / facts["margin"], mode=f"‖t_k‖/margin, {kind}", draw=draw
        )
