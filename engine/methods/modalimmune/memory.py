"""What ModalImmune remembers from step to step. See `collapse` for the quantities, `report` for the display.

The state is a dict of numbers and tensors. Functions return changes to it and leave it as it is; (M,) runs over the
modalities, in float64 on the CPU, since it is small and is read by every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.needs import PATIENCE
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hypergradient import HyperGradient, certain, certified_step
from modalscape.engine.methods.modalimmune import collapse
from modalscape.engine.methods.modalimmune.omission import kept_others

AVERAGE = 0.99
"""Decay of the averaged covariances and of the diagonal Fisher."""
RECENT = 0.9
"""Decay of the references in a warm-up, in which features grow several times over, and the last of it counts."""
SLOW = 0.99
"""Decay of the references thereafter, where they follow modalities that are not attacked: they go along with what
training does over hundreds of steps, not with what a few attacks have done."""
TRACKS = ("unattacked", "quiet")
TUNES = ("all", "collapse")
WINDOW = 200
"""Steps of the controller's past that are kept for display."""
RANGES = {"entries": ((1e-3, 0.5), (1e-3, 1.0)), "rows": ((1e-3, 0.5), (1e-1, 10.0))}
"""Pull to the ranges within which the hyper-gradient moves λ and κ, widened to hold the knob's value."""
SHARES = (0.2, 0.7)
"""The same of ω."""
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


def waiting(warmup: int, age: int) -> str:
    """Return that ModalImmune, on for `age` steps, attacks nothing yet, where `warmup` is still long; else nothing."""
    if warmup - age <= PATIENCE:
        return ""
    return f"ModalImmune attacks nothing in its first {warmup:,} steps; lower modalimmune.warmup."


def alone(p: Any, rows: int) -> str:
    """Return that batches of one row have no spectrum to collapse, where nothing else is asked for; else nothing."""
    if rows > 1 or p.share > 0 or p.feedback > 0:
        return ""
    return "ModalImmune has no spectrum to collapse in batches of one row; raise batch or micro, or modalimmune.share."


def kept(p: Any, m: int, view: Any) -> Tensor | None:
    """Return which modalities each row of the view's batch keeps where `m` is left out, (B, M) of bool.

    None: all others. Pieces draw from sources of their own, in `losses` as here.
    """
    count, pieces, device = len(view.problem.modalities), view.batch.chunks(view.problem.micro), view.theta.device
    if p.others == 0.0 or count < 3 or m < 0:
        return None
    sources = [view.rng.within(f"piece{i}") for i in range(len(pieces))] if len(pieces) > 1 else [view.rng]
    uniform = [
        torch.rand(len(piece), count, generator=rng.generator("modalimmune/others", view.step, device), device=device)
        for piece, rng in zip(pieces, sources, strict=True)
    ]
    return kept_others(torch.cat(uniform), m, p.others)


def judging(p: Any, count: int, view: Any) -> list[Tensor | None]:
    """Return for each modality what `kept` does, for `count` rows that judge."""
    names, device = view.problem.modalities, view.theta.device
    if p.others == 0.0 or len(names) < 3:
        return [None] * len(names)
    draw = view.rng.generator("modalimmune/judged", view.step, device)
    uniform = torch.rand(count, len(names), generator=draw, device=device)
    return [kept_others(uniform, m, p.others) for m in range(len(names))]


def judges(params: Any, count: int, view: Any) -> Any:
    """Return `count` rows that judge λ, κ and ω: drawn from the validation rows, or of the next training batch."""
    problem = view.problem
    if params.outer == "train":
        return problem.batch(view.step + 1).rows(slice(0, count))
    rows = next(iter(problem.held_out("val")))
    order = torch.randperm(len(rows), generator=view.rng.generator("modalimmune/outer", view.step))[:count]
    return rows.rows(order.to(rows.y.device))


def fresh(clean: Mapping[str, Tensor], theta: Tensor, apart: Tensor) -> dict[str, Any]:
    """Return the state before the first step, for modality to features (B, D) as they are now; see `Omission.apart`."""
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
        "rich": ratios(clean),
        "richness": ratios(clean),
        "fisher": torch.zeros_like(theta),
        "gate": {key: zeros for key in LOOKED} | {"age": torch.full((count,), -1, dtype=torch.int64)},
        "drawn": torch.zeros(count, dtype=torch.int64),
        "counts": {"floor": 0, "gate": 0, "skipped": 0, "diverged": 0},
        "trace": torch.full((WINDOW, count + 2), -1.0, dtype=torch.float64),
        "offset": torch.zeros(3, dtype=torch.float64),
        "second": torch.zeros(3, dtype=torch.float64),
        "accepted": torch.zeros(3, dtype=torch.int64),
        "apart": apart,
        "tuned": 0,
        "meta": {},
    }


def following(p: Any, state: Mapping[str, Any], rng: Rng, step: int) -> dict[str, Any]:
    """Return the arm that is attacked at `step` (-1: none), the chance at which it was drawn, and the trace of both."""
    chances = collapse.probabilities(state["weights"].tolist(), p.explore, p.controller)
    first, second = torch.rand(2, generator=rng.generator("modalimmune/arm", step), dtype=torch.float64).tolist()
    ready = first < collapse.readiness(state["age"], p.warmup, p.ramp, p.intervene)
    arm = collapse.drawn(chances, second) if ready else -1
    drawn, trace = state["drawn"].clone(), state["trace"].clone()
    drawn[arm] += ready
    trace[step % WINDOW] = torch.tensor([step, arm, *chances], dtype=torch.float64)
    return {"arm": arm, "chance": chances[max(arm, 0)], "drawn": drawn, "trace": trace}


def paid(
    p: Any, state: Mapping[str, Any], arms: Sequence[int], without: Sequence[float], full: float
) -> dict[str, Any]:
    """Return weights and scale after the losses without each of the `arms`, and with all.

    Nothing changes where a loss is not finite, so that one broken batch cannot end the controller.
    """
    gains = collapse.information_gain(without, full, p.gain == "signed")
    if not all(map(math.isfinite, (full, *gains))):
        return {}
    found, scale = collapse.rewards(gains, state["scale"])
    pairs = dict(zip(arms, found, strict=True))
    weights = collapse.rewarded(state["weights"].tolist(), pairs, state["chance"], p.explore, p.controller)
    return {"weights": torch.tensor(weights, dtype=torch.float64), "scale": scale}


def covariances(clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the covariance ZᵀZ/B (D, D) of each modality's features (B, D), without graph."""
    centred = {name: collapse.centred(z.detach()) for name, z in clean.items()}
    return {name: zc.T @ zc / len(zc) for name, zc in centred.items()}


def scales(found: Mapping[str, Tensor]) -> list[float]:
    """Return the root mean square of each modality's centred features, from ZᵀZ/B (D, D)."""
    traces = torch.stack([c.trace() for c in found.values()]).tolist()
    return [math.sqrt(t / len(c)) for t, c in zip(traces, found.values(), strict=True)]


def sizes(found: Mapping[str, Tensor]) -> tuple[list[float], Tensor]:
    """Return the same, and r(Σ) of each by `collapse.largest`, (M,) float64 on the CPU; one transfer."""
    pairs = torch.stack([torch.stack([c.trace(), collapse.largest(c)]) for c in found.values()]).cpu().double()
    traces, tops = pairs.unbind(1)
    widths = torch.tensor([len(c) for c in found.values()], dtype=torch.float64)
    return (traces / widths).sqrt().tolist(), traces / tops.clamp(min=torch.finfo(torch.float64).tiny)


def ratios(clean: Mapping[str, Tensor]) -> Tensor:
    """Return r(Σ) of each modality's features in one batch, (M,) float64 on the CPU; nan for a batch of one."""
    found = [
        collapse.ratio(collapse.eigenvalues(z.detach())).item() if len(z) > 1 else math.nan for z in clean.values()
    ]
    return torch.tensor(found, dtype=torch.float64)


def watched(
    p: Any, state: Mapping[str, Any], clean: Mapping[str, Tensor], row: Tensor, sound: bool
) -> tuple[dict[str, Any], list[float]]:
    """Return a step's changes to age, averages and references, and each modality's scale in it.

    `row` (P,) is the gradient of the fused loss, `sound` whether that loss is a number. The references, of scale and,
    where the collapse fades against it, of richness, follow the modalities that are not attacked (`track` unattacked)
    or steps without any attack (quiet); the ratios count before there may be one. Nothing but the age does where a
    number is not finite.
    """
    found, rows, arm = covariances(clean), len(next(iter(clean.values()))), state["arm"]
    now, rich = sizes(found) if p.fade == "reference" else (scales(found), None)
    changes = {"age": state["age"] + 1}
    if not (sound and all(map(math.isfinite, now))):
        return changes, now
    if rows > 1:
        changes["covariance"] = {
            name: average.lerp((found[name] * (rows / (rows - 1))).to(average), 1 - AVERAGE)
            for name, average in state["covariance"].items()
        }
    if p.gate == "soft":
        changes["fisher"] = state["fisher"].lerp(row.square(), 1 - AVERAGE)
    quiet, slow = p.track == "quiet", state["age"] >= p.warmup + p.ramp
    follows = torch.full((len(now),), arm < 0) if quiet else torch.arange(len(now)) != arm
    weight = 1 - (SLOW if slow and not quiet else RECENT)
    reference, seen = state["reference"], torch.tensor(now, dtype=torch.float64)
    changes["reference"] = torch.where(follows, reference.lerp(seen, weight), reference)
    if rich is not None and rows > 1:
        was = richness(state)
        was = torch.where(was.isfinite(), was, rich)
        changes["richness"] = torch.where(follows, was.lerp(rich, weight), was)
    if state["age"] < p.warmup:
        changes["rich"] = state["rich"].lerp(ratios(clean), 1 - RECENT)
    return changes, now


def richness(state: Mapping[str, Any]) -> Tensor:
    """Return the reference of r(Σ) of each modality, (M,); that of before the first attack in older states."""
    return state.get("richness", state["rich"])


def richest(p: Any, state: Mapping[str, Any], m: int) -> float | None:
    """Return the r(Σ) at which modality m's collapse has full strength; None: the largest that a batch can have."""
    return richness(state)[m].item() if p.fade == "reference" else None


def counted(p: Any, state: Mapping[str, Any], now: Sequence[float], gated: bool) -> dict[str, Any]:
    """Return the counts after an attack that the gate zeroed (`gated`) or that met scales `now` (M,) at the floor."""
    arm, counts = state["arm"], dict(state["counts"])
    counts["floor"] += collapse.spent(now[arm], p.floor * state["reference"][arm].item())
    counts["gate"] += gated
    return {"counts": counts}


def due(p: Any, state: Mapping[str, Any], able: Sequence[bool]) -> int:
    """Return the modality whose curvature the gate must look at before the next step; -1 for none.

    The next arm, where it has never been looked at; otherwise, `gate_every` steps after the last look at any, the one
    whose look is oldest. `able` says which own parameters.
    """
    if state["arm"] < 0 or p.gate in ("off", "soft") or (p.collapse == 0 and p.feedback == 0):
        return -1
    ages = state["gate"]["age"].tolist()
    if ages[state["arm"]] < 0 and able[state["arm"]]:
        return state["arm"]
    if not any(able) or state["age"] - max(ages) < p.gate_every:
        return -1
    return min((m for m in range(len(ages)) if able[m]), key=ages.__getitem__)


def seen(state: Mapping[str, Any], m: int, smallest: float, largest: float, residual: float) -> dict[str, Any]:
    """Return the gate with what was found of the curvature of modality m's encoder."""
    gate = {key: value.clone() for key, value in state["gate"].items()}
    for key, value in zip((*LOOKED, "age"), (smallest, largest, residual, state["age"]), strict=True):
        gate[key][m] = value
    return {"gate": gate}


def mask(
    p: Any, state: Mapping[str, Any], m: int, where: slice, push: Tensor, lr: float, along: Callable[[Tensor], float]
) -> Tensor | float:
    """Return what the gate leaves of a destructive gradient (…, n) on m's block: a factor, or one for each entry.

    `along` returns the curvature along a direction (n,). A gradient that is not finite meets no gate.
    """
    if p.gate == "soft":
        return collapse.soft_mask(state["fisher"][where], p.soft_tau)
    smallest, largest = (state["gate"][key][m].item() for key in ("smallest", "largest"))
    if p.gate == "directional":
        return float(not (torch.isfinite(push).all() and collapse.too_steep(along(push), largest, p.tau, lr)))
    return float(p.gate == "off" or not collapse.closed(smallest, largest, p.tau))


def softened(p: Any, state: Mapping[str, Any], where: slice, mixed: Tensor) -> Tensor:
    """Return gradients (…, P) of the collapse as an open gate leaves them on a block; the soft one takes its part."""
    left = mixed.clone()
    if p.gate == "soft":
        left[:, where] *= collapse.soft_mask(state["fisher"][where], p.soft_tau)
    return left


def weights(p: Any, state: Mapping[str, Any]) -> tuple[float, float]:
    """Return λ and κ: the knobs times what the hyper-gradients have made of them."""
    factors = state["offset"][:2].exp().tolist()
    return p.collapse * factors[0], p.ratio * factors[1]


def share(p: Any, state: Mapping[str, Any]) -> float:
    """Return ω: the knob, its logit moved by what the hyper-gradients have made of it; 0 and 1 stay."""
    moved = _wide(state["offset"])[2].item()
    return p.share if moved == 0.0 or not 0.0 < p.share < 1.0 else 1 / (1 + math.exp(-_logit(p.share) - moved))


def by_share(p: Any) -> bool:
    """Return whether hyper-gradients move ω."""
    return p.tunes == "all" and 0.0 < p.share < 1.0


def tuned(p: Any, state: Mapping[str, Any], found: HyperGradient) -> dict[str, Any]:
    """Return the state after a hyper-gradient of log λ, log κ, and perhaps logit ω.

    Each moves if the certificate settles its sign; one with no derivative to be certain of counts as skipped.
    """
    count, sure = len(found.values), certain(found.values, found.errors).cpu() & (not found.series.diverged)
    values, errors = found.values.double().cpu(), found.errors.double().cpu()
    offset, second, accepted = (_wide(state[key]).clone() for key in ("offset", "second", "accepted"))
    step, second[:count], accepted[:count] = certified_step(values, second[:count], accepted[:count], sure, p.meta_lr)
    offset[:count] += step
    for i, (knob, (low, high)) in enumerate(zip((p.collapse, p.ratio), RANGES[p.pull], strict=True)):
        if knob > 0:
            offset[i] = offset[i].clamp(math.log(min(low, knob) / knob), math.log(max(high, knob) / knob))
    if by_share(p):
        low, high = (_logit(pick(end, p.share)) for pick, end in zip((min, max), SHARES, strict=True))
        offset[2] = offset[2].clamp(low - _logit(p.share), high - _logit(p.share))
    counts = dict(state["counts"])
    counts["skipped"] += int((~sure).sum())
    counts["diverged"] += found.series.diverged
    facts = ("largest", "margin", "damping", "alpha", "rate", "certificate")
    meta = {"values": values, "errors": errors, "norms": found.series.norms} | {k: getattr(found, k) for k in facts}
    changes = {"offset": offset, "second": second, "accepted": accepted, "counts": counts, "meta": meta}
    return changes | {"tuned": state["age"]}


def _wide(values: Tensor) -> Tensor:
    """Return what is remembered of λ, κ and ω, (3,); states of older versions have none of ω."""
    return torch.cat([values, values.new_zeros(3 - len(values))])


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
