"""The records that show ModalImmune at work: controller, spectra, gate, destructive gradient, hyper-gradients.

Each names in its `mode` the reading that is active. `p` are the method's knobs, `state` is what it remembers, see
`memory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Matrix, Record, Scalar
from modalscape.engine.maths.standard_error import mean_and_error
from modalscape.engine.methods.modalimmune import collapse
from modalscape.engine.methods.modalimmune.memory import (
    AVERAGE,
    LOOKED,
    by_share,
    covariances,
    richest,
    richness,
    scales,
    share,
    weights,
)

GATES = {
    "hessian": "Hessian of the mixed loss by Lanczos, error: residual",
    "directional": "directional: the Hessian along the gradient; shown: its ends by Lanczos, error: residual",
    "literal": "literal: empirical Fisher, which is never negative",
}
_PANELS: dict[str, Display] = {
    "controller": Display(
        panel="Whom the controller attacks",
        place=1,
        note="Areas: the chance of each modality; a mark where it was drawn. It should settle on the one leant on.",
        x="step",
        y="chance",
    ),
    "loss_change": Display(
        panel="What leaving one out costs",
        place=2,
        note="Where training works, leaving one out costs less and less.",
        y="rise of the loss",
        levels={"": 0.0},
        label="",
    ),
    "ratio": Display(panel="How rich the spectra are", place=3, y="r(Σ)/r_max", label=""),
    "scale": Display(
        panel="Scale of the features above its floor",
        place=4,
        note="Dotted: the floor, at which the collapse stops.",
        y="root mean square",
    ),
    "push": Display(
        panel="Destructive gradient beside the descent", place=5, y="norm on the attacked encoder", ylog=True
    ),
    "gate": Display(
        panel="The gate",
        place=6,
        note="Below -τ an encoder's loss bends down too strongly, and the collapse is held back.",
        y="λ_min/|λ_max|",
        label="",
    ),
    "lambda_min": Display(panel="Smallest eigenvalues and their thresholds", y="eigenvalue", levels={"": 0.0}),
    "held_back": Display(panel="Attacks held back", place=7, y="share of the attacks"),
    "series": Display(
        panel="Residual and certified error of the series",
        place=8,
        note="Straight: the residual shrinks by one factor a term. Dotted: what is certain of the error.",
        x="terms summed, k",
        y="norm",
        ylog=True,
    ),
    "hypergradient": Display(
        panel="Hyper-gradients with their certificates",
        place=9,
        note="The band is a bound, not a standard error: a weight moves only where it keeps clear of 0.",
        y="d(held-out loss)/d log, of ω d logit",
        levels={"": 0.0},
    ),
    "rows": Display(panel="Modalities missing in the loss without", y="missing per row", label=""),
    "steps": Display(
        panel="Certain steps taken, uncertain ones skipped",
        place=10,
        note="Skipping is the usual thing: a bound of few terms settles few signs.",
        y="hyper-gradients so far",
    ),
    "weights": Display(panel="λ, κ and ω as tuned", place=11, ylog=True),
    "spectrum": Display(panel="Eigenvalues of the features", x="rank", y="variance", ylog=True, label=""),
    "dimensions": Display(panel="Effective dimensions", label=""),
    "drawn": Display(panel="Share of the attacks", label=""),
    "severity": Display(panel="How far the spectra have collapsed", y="1 - r/r_0", levels={"": 0.0}, label=""),
    "richness": Display(panel="Reference that the collapse fades against", y="r(Σ)", label=""),
    "strength": Display(panel="Strength of the collapse", y="λ_eff", label=""),
    "closed": Display(panel="Is the gate closed?", y="1: closed", label=""),
}
_SYMBOLS = {"lambda": "λ", "kappa": "κ", "omega": "ω"}


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
        display = Display(y="chance of an attack's aim", levels={"γ/M": least})
        yield Scalar(f"modalimmune/chance/{name}", chances[m], mode=f"{how}; next draw", display=display)
        shown = f"{p.controller}; share of the attacks since switched on"
        attacks = int(state["drawn"].sum())
        yield Scalar(f"modalimmune/drawn/{name}", shares[m].item(), n=attacks, mode=shown, display=_PANELS["drawn"])
        shown = f"L_without - L_full of this batch, filled with {p.fill}; 0: as good without"
        yield Scalar(f"modalimmune/loss_change/{name}", change[m], n=n, mode=shown, display=_PANELS["loss_change"])
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
        mode=f"chance of each modality, at least γ/M = {least:.3g}, and 1 where it was drawn; {how}",
        display=_PANELS["controller"] | Display(stack=len(names)),
    )


def about_the_spectra(p: Any, state: Mapping[str, Any], clean: Mapping[str, Tensor]) -> Iterator[Record]:
    """Yield scale, floor, ratio, strength, the collapse's terms and the spectrum of each modality's features (B, D)."""
    found, floors, n = (
        scales(covariances(clean)),
        (p.floor * state["reference"]).tolist(),
        len(next(iter(clean.values()))),
    )
    weight, kappa = weights(p, state)
    fade = f"fades with r against the {p.fade}" if p.adaptive else "not adaptive"
    severity, attacks = 0.0, state["drawn"] / state["drawn"].sum().clamp(min=1)
    for m, (name, z) in enumerate(clean.items()):
        how, display = "root mean square of the centred features", _PANELS["scale"]
        yield Scalar(f"modalimmune/scale/{name}", found[m], n=n, mode=how, display=display | Display(label=""))
        how = f"{p.floor:g} of the reference scale; below it the collapse stops"
        display = display | Display(label="floor", role="limit")
        yield Scalar(f"modalimmune/floor/{name}", floors[m], mode=how, display=display)
        if n < 2:
            continue
        values = collapse.eigenvalues(z.detach())
        ratio, top = collapse.ratio(values).item(), collapse.most(z)
        how = f"r(Σ)/r_max, tr Σ/λ_max of one batch of {n}, biased low; r_max = {top}"
        display = _PANELS["ratio"] | Display(levels={"rank one": 1 / top})
        yield Scalar(f"modalimmune/ratio/{name}", ratio / top, n=n, mode=how, display=display)
        rich = state["rich"][m].item()
        if rich > 0:
            how = f"1 - r/r_0 of one batch of {n}; r_0 = {rich:.3g} before the first attack"
            yield Scalar(f"modalimmune/severity/{name}", 1 - ratio / rich, n=n, mode=how, display=_PANELS["severity"])
            severity += attacks[m].item() * (1 - ratio / rich)
        if p.fade == "reference":
            how = f"reference of r(Σ), {p.track}; λ_eff is λ where r is as large"
            yield Scalar(
                f"modalimmune/richness/{name}", richness(state)[m].item(), mode=how, display=_PANELS["richness"]
            )
        strength = collapse.strength(weight, z, ratio, found[m], p.adaptive, floors[m], richest(p, state, m))
        how = f"λ_eff if it were attacked now, {fade}; 0: at its floor"
        yield Scalar(f"modalimmune/strength/{name}", strength, n=n, mode=how, display=_PANELS["strength"])
        pull = collapse.expected_pull(z, ratio, found[m], p.target, p.pull)
        how = f"pull to the target, {p.pull}, in expectation over it"
        yield Scalar(f"modalimmune/pull/{name}", pull, n=n, mode=how)
        yield Scalar(f"modalimmune/penalty/{name}", kappa * ratio, n=n, mode="κ·r(Σ), the other term of the collapse")
        averaged = torch.linalg.eigvalsh(state["covariance"][name].double())
        how = f"r(Σ)/D of the covariance averaged with decay {AVERAGE}"
        share = collapse.ratio(averaged).item() / z.shape[1]
        yield Scalar(f"modalimmune/ratio_averaged/{name}", share, n=n, mode=how)
        yield from _spectrum(name, values, n)
    if n > 1 and bool(state["rich"].min() > 0):
        how = "1 - r/r_0, mean over the modalities by their shares of the attacks; to be set beside robustness"
        display = _PANELS["severity"] | Display(label="by share of the attacks")
        yield Scalar("modalimmune/severity_attacked", severity, n=n, mode=how, display=display)


def about_the_rows(p: Any, count: int, kept: Tensor | None) -> Iterator[Record]:
    """Yield how many of `count` modalities a row lacks in L_without: expected, and in `kept` (B, M)."""
    others = count - 1
    chance = p.others - p.others**others / others
    how = f"expected: the attacked one, and each of {others} others at the rate {chance:.3g}; one stays"
    yield Scalar("modalimmune/missing_expected", 1 + others * chance, mode=how, display=_PANELS["rows"])
    if kept is not None:
        mean, error = mean_and_error((~kept).sum(1))
        how, display = "in the rows of this step", _PANELS["rows"]
        yield Scalar("modalimmune/missing", mean.item(), error.item(), n=len(kept), mode=how, display=display)


def _spectrum(name: str, values: Tensor, n: int) -> Iterator[Record]:
    fall = np.maximum(values.flip(0).double().cpu().numpy(), 1e-12)
    ranks, how, display = np.arange(1, len(fall) + 1), f"{name}, clean features of one batch", _PANELS["spectrum"]
    yield Curve(f"modalimmune/spectrum/{name}", ranks, fall, n=n, mode=how, display=display)
    family = collapse.dimensions(values)
    labels, sizes = np.array(list(family)), np.array(list(family.values()))
    how, display = f"{name}, one batch", _PANELS["dimensions"]
    yield Bars(f"modalimmune/dimensions/{name}", labels, sizes, n=n, mode=how, display=display)


def about_the_gate(p: Any, state: Mapping[str, Any], names: Sequence[str]) -> Iterator[Record]:
    """Yield the eigenvalue that each modality's gate looks at, its threshold, and the shares of attacks held back."""
    gate, attacks = state["gate"], int(state["drawn"].sum())
    for m, name in enumerate(names):
        if p.gate in GATES and gate["age"][m] >= 0:
            smallest, largest, residual = (gate[key][m].item() for key in LOOKED)
            how, display = f"{GATES[p.gate]}; block of {name}", _PANELS["lambda_min"]
            yield Scalar(
                f"modalimmune/lambda_min/{name}", smallest, residual, mode=how, display=display | Display(label="λ_min")
            )
            if largest:
                share, error = smallest / abs(largest), residual / abs(largest)
                tau = _PANELS["gate"] | Display(levels={f"-τ = -{p.tau:g}": -p.tau})
                yield Scalar(f"modalimmune/gate/{name}", share, error, mode=GATES[p.gate], display=tau)
            how = f"-τ = -{p.tau:g}·|λ_max|; the gate {p.gate} closes below"
            display = display | Display(label="-τ·|λ_max|", role="limit")
            yield Scalar(f"modalimmune/threshold/{name}", -p.tau * abs(largest), mode=how, display=display)
            how = f"gate {p.gate}; 1: closed to the next attack on {name}"
            shut = collapse.closed(smallest, largest, p.tau)
            if p.gate != "directional":
                yield Scalar(f"modalimmune/closed/{name}", float(shut), mode=how, display=_PANELS["closed"])
    for key, how, label, hue in (
        ("gate", f"attacks that the gate {p.gate} zeroed", "by the gate", 1),
        ("floor", "attacks on a modality at its floor", "at the floor", 3),
    ):
        share, display = state["counts"][key] / max(attacks, 1), _PANELS["held_back"] | Display(label=label, hue=hue)
        yield Scalar(f"modalimmune/held_back/{key}", share, n=attacks, mode=f"share of {how}", display=display)


def about_the_push(p: Any, raw: Tensor, grads: Tensor, rows: Sequence[str], n: int) -> Iterator[Record]:
    """Yield the size of the destructive gradient before and after gate and clip, and its angle to the descent."""
    own = rows.index("reg/modalimmune")
    main = grads[[i for i, row in enumerate(rows) if not row.startswith("reg/")]].sum(0)
    before, after = raw[own].norm(), grads[own].norm()
    cosine = (grads[own] @ main) / (after * main.norm()).clamp(min=torch.finfo(raw.dtype).tiny)
    how = f"after gate {p.gate} and clip at {p.clip:g} of the descent"
    for key, label, value, mode, hue in (
        ("before", "before gate and clip", before, "‖λ_eff∇L_collapse‖, before gate and clip", 3),
        ("after", "as applied", after, how, 0),
        ("descent", "descent", main.norm(), "‖descent of the attacked encoder‖", 1),
    ):
        display = _PANELS["push"] | Display(label=label, hue=hue) | Display(role="limit" if key == "before" else "")
        yield Scalar(f"modalimmune/push/{key}", value.item(), n=n, mode=mode, display=display)
    yield Scalar("modalimmune/cosine", cosine.item(), n=n, mode="cos(destructive gradient, descent) of the encoder")


def about_the_meta(p: Any, state: Mapping[str, Any]) -> Iterator[Record]:
    """Yield λ, κ and, where it is tuned, ω, their hyper-gradients with certificates, and the last series' residuals."""
    kind = "rigorous for G + δI" if p.matrix == "ggn" and p.reading == "ift" else "estimated"
    reading = f"reading {p.reading}, {p.matrix}"
    how = f"{reading}; certificate {kind}"
    now, facts, counts = (*weights(p, state), share(p, state)), state["meta"], state["counts"]
    accepted = (*state["accepted"].tolist(), 0)
    for i, (name, symbol) in enumerate(list(_SYMBOLS.items())[: 3 if by_share(p) else 2]):
        own = Display(label=symbol, hue=3 + i)
        display = {key: _PANELS[key] | own for key in ("weights", "steps", "hypergradient")}
        display["steps"] |= Display(label=f"{symbol} moved")
        yield Scalar(
            f"modalimmune/weights/{name}", now[i], mode=f"as tuned so far, {reading}", display=display["weights"]
        )
        yield Scalar(
            f"modalimmune/accepted/{name}", float(accepted[i]), mode=f"of certain sign, {how}", display=display["steps"]
        )
        if facts and i < len(facts["values"]):
            value, error = facts["values"][i].item(), facts["errors"][i].item()
            about = f"by {'logit' if symbol == 'ω' else 'log'} {symbol}, {how}"
            yield Scalar(
                f"modalimmune/hypergradient/{name}", value, error, mode=about, display=display["hypergradient"]
            )
            yield Scalar(f"modalimmune/certificate/{name}", error, mode=f"bound on its error, {about}")
    for key, about, hue in (
        ("skipped", f"of uncertain sign, all weights; {how}", 1),
        ("diverged", f"series that grew, {reading}", 0),
    ):
        display = _PANELS["steps"] | Display(label=key, hue=hue)
        yield Scalar(f"modalimmune/refused/{key}", float(counts[key]), mode=about, display=display)
    if not facts:
        return
    for name in ("largest", "margin", "damping", "alpha", "rate", "certificate"):
        yield Scalar(f"modalimmune/series/{name}", facts[name], mode=how)
    norms, display = facts["norms"].numpy(), _PANELS["series"] | Display(hue=1)
    ks = np.arange(len(norms))
    about = f"{how}; residual ‖t_k‖"
    yield Curve(
        "modalimmune/residual", ks, norms, n=len(norms), mode=about, display=display | Display(label="residual ‖t_k‖")
    )
    if facts["margin"] > 0:
        display = display | Display(label="bound on ‖v_k - v‖", role="limit", hue=3)
        bound = norms[1:] / facts["margin"]
        yield Curve("modalimmune/certified", ks[1:], bound, mode=f"‖t_k‖/margin, {how}", display=display)
