"""InfoReg's mathematics: who leads, whether the prime learning window is open, how hard the leader is pulled back.

(M,) runs over modalities. *Trace* is a mean squared gradient of one encoder over a period of steps, its Fisher
information as the paper measures it; *drift* is how far the encoder has moved since the period began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.needs import PATIENCE
from modalscape.engine.maths.modalities import imbalance

FACTORS = (0.95, 0.1)
"""Factors on α in the authors' code: of the modality whose trace is the gate (audio), and of the others (video)."""

_CODE = {"score": "sum", "beta": 1.0, "smoothing": 10, "plain": 0, "trace": "weights", "gate": "strongest"}
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "released": _CODE, "november": _CODE | {"threshold": 0.05}}
"""Preset to the knobs that it overrules. All but `paper` also put FACTORS on α."""

WATCHED = 3
"""Periods after the plain ones in which some window should have opened."""
KEPT = 256
"""Periods whose traces are kept; more than the longest `smoothing`."""

TRACES = {
    "batches": "mean squared gradient of the training loss over the last period's batches",
    "samples": "mean squared gradient of single rows of the probe batch, at the last period's end",
    "weights": "mean of squares by weight tensor, summed; mean over the last period's batches, pull included",
}
"""Estimate of the Fisher trace to its description."""

SUMMARY = {
    "drift": "‖w - w⁰‖ at the end of the last period",
    "drift_limit": "‖mean gradient‖/mean α of the last period: where a constant pull would hold the drift",
    "pull_to_gradient": "Σ‖pull‖/Σ‖task gradient‖ over the last period",
    "penalty": "α/2·‖w - w⁰‖² at the end of the last period, mean α",
    "batch_cosine": "mean cosine between gradients of the last period's batches, weighted by their norms",
    "active": "share of the last period's steps with a pull",
}
"""What `summary` returns, to its description."""

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda logits, y: imbalance.true_class_score(logits, y) / len(y),
    "sum": imbalance.true_class_score,
    "log": lambda logits, y: logits.log_softmax(-1).gather(-1, y[:, None]).mean(),
}
"""Score of a modality on a batch, larger for better, from logits (B, C) and classes y (B,): the mean probability of the
true class, the sum over the batch, the mean log-probability (nats)."""


class Form(Protocol):
    """The knobs that decide when and how hard to pull."""

    strength: float
    when: str
    threshold: float
    preset: str
    smoothing: int
    plain: int
    gate: str


def epoch(problem: Any) -> int:
    """Return the steps of one epoch of a problem, 0 where it does not say."""
    rows, size = getattr(problem, "rows", None), getattr(problem, "batch_size", None)
    return max(len(rows["train"]) // size, 1) if rows and size else 0


def objectives(losses: Iterable[str]) -> list[int]:
    """Return the rows of the losses that are objectives; regularisers are named `reg/…`.

    >>> objectives(["fused", "reg/other", "audio"])
    [0, 2]
    """
    return [i for i, name in enumerate(losses) if not name.startswith("reg/")]


def scores(logits: Mapping[str, Tensor], y: Tensor, kind: str) -> Tensor:
    """Return the score of each modality (M,) from its logits (B, C) and the classes y (B,)."""
    return torch.stack([SCORES[kind](value, y) for value in logits.values()])


def sliced(logits: Mapping[str, Tensor], modalities: Sequence[str]) -> bool:
    """Return whether the logits (B, C) of the modalities add up to the fused ones, as slices of a fusion do.

    It asks the device, so it is not for a step.
    """
    if not set(modalities) <= logits.keys():
        return False
    return torch.allclose(sum(logits[name] for name in modalities), logits["fused"], rtol=1e-3, atol=1e-4)


def coefficient(gap: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """Return α = exp(β·tanh Δ) where the lead Δ (M,) exceeds `margin`, else 0; it jumps from 0 to 1 at Δ = 0+.

    InfoReg, equation 16. A lead that is no number gives 0.

    >>> coefficient(torch.tensor([0.0, 1e-9]), 0.9).tolist()
    [0.0, 1.0]
    """
    return torch.where(gap > margin, torch.exp(beta * torch.tanh(gap)), torch.zeros_like(gap))


def deciding(form: Form) -> list[Any]:
    """Return the values of the knobs that `factors` reads, so that a change of one is seen without asking a device."""
    return [getattr(form, key) for key in Form.__annotations__]


def growth(traces: Tensor, periods: int, smoothing: int = 1) -> Tensor:
    """Return k (M,), by what share of itself each last trace exceeds the one before; nan where that has no meaning.

    `traces` (N, M) of finished periods, the newest last, with zeros before the first; N > `smoothing`. InfoReg,
    equation 11: k = (T₁ - T₂)/T₁, here of moving averages over `smoothing` traces, missing ones counted as zero as in
    the authors' code: (T₁ - T_{S+1})/(T₁ + … + T_S). Before the first of all `periods` k is 1, also as in the code.

    >>> growth(torch.tensor([[0.0, 0.0, 0.0], [2.0, 3.0, 4.0], [4.0, 3.0, 2.0]]), 2).tolist()
    [0.5, 0.0, -1.0]
    """
    if not periods:
        return torch.ones_like(traces[-1])
    recent = sum(traces[-smoothing:].unbind())  # one by one, so that the last bit does not depend on the device
    k = (traces[-1] - traces[-1 - smoothing]) / recent
    return torch.where((recent > 0) & (recent < math.inf), k, torch.full_like(k, math.nan))


def strongest(traces: Tensor) -> Tensor:
    """Return for each modality whether its sum of traces (N, M) is the largest, (M,): true for one, first of equals.

    Before there are any traces that is the first modality.
    """
    totals = traces.sum(0)
    return torch.arange(len(totals), device=totals.device) == totals.argmax()


def growths(traces: Tensor, periods: int, form: Form) -> Tensor:
    """Return k of the window of each modality (M,), for traces (N, M): its own, or that of the `strongest`."""
    k = growth(traces, periods, form.smoothing)
    if form.gate == "own":
        return k
    return torch.where(strongest(traces), k, torch.zeros_like(k)).sum().expand_as(k)


def windows(traces: Tensor, periods: int, form: Form) -> Tensor:
    """Return whether each modality's prime learning window is open (M,) after so many finished periods."""
    is_open = growths(traces, periods, form) > form.threshold
    return is_open if periods >= form.plain else torch.zeros_like(is_open)


def factors(traces: Tensor, periods: int, form: Form) -> Tensor:
    """Return what multiplies each modality's α (M,): the dose, 0 where `when` and the window allow no pull.

    In the code's forms (`preset` released, november) also 0.95 for the modality whose trace is the gate, 0.1 for the
    others. Nothing here waits for the device.
    """
    opened = windows(traces, periods, form)
    dose = torch.full_like(traces[-1], form.strength)
    if form.preset != "paper":
        gate, others = (torch.full_like(dose, form.strength * share) for share in FACTORS)
        dose = torch.where(strongest(traces), gate, others)
    if form.when == "always":
        return dose
    may = opened if form.when == "window" else ~opened
    if periods < form.plain:
        may = torch.zeros_like(may)
    return torch.where(may, dose, torch.zeros_like(dose))


def record(rows: Tensor, new: Tensor) -> Tensor:
    """Return the record (N, …) with a new row at its end and its first row gone."""
    return torch.cat([rows[1:], new[None]])


def renewed(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an older version, which kept lists of numbers, with tensors in their place; others as is."""
    if not isinstance(state.get("traces"), list):
        return state
    alpha = state["alpha"]
    empty = unread(alpha)

    def table(key: str) -> Tensor:
        rows = alpha.new_tensor(state[key], dtype=empty[key].dtype).view(-1, len(alpha))
        return torch.cat([empty[key], rows])[-len(empty[key]) :]

    last = {key: value if key == "steps" else alpha.new_tensor(value) for key, value in state["last"].items()}
    ever = alpha.new_tensor(state["ever"], dtype=torch.int64)
    return state | {"traces": table("traces"), "opened": table("opened"), "ever": ever, "last": last}


def unread(like: Tensor) -> dict[str, Any]:
    """Return the record of periods before there are any, on the device of `like` (M,).

    `traces` (KEPT, M) and `opened` (KEPT, M), the newest last; `ever` (M,), the periods in which a window was open.
    """
    shape = (KEPT, len(like))
    return {
        "periods": 0,
        "places": [],
        "traces": like.new_zeros(shape, dtype=torch.float64),
        "opened": like.new_zeros(shape, dtype=torch.bool),
        "ever": like.new_zeros(len(like), dtype=torch.int64),
    }


def closed(state: Mapping[str, Any], opened: Sequence[bool], period: int, form: Form) -> str:
    """Return why no encoder has been pulled and none will be soon, and what would change it; empty where one was.

    `state` has the finished `periods`, how `ever` often each modality's window was open in them, and the steps with a
    pull, `pulled`; `opened` is of the present. It asks the device, so it is not for a step.
    """
    if period < 2:
        return "in a period of one step there is nothing to pull back to; set inforeg.period to more"
    if form.when == "window" and form.threshold >= 1.0:
        return "at inforeg.threshold 1 no window ever opens; lower it"
    if float(state["pulled"]) > 0:
        return ""
    if form.when != "always" and state["periods"] < form.plain and form.plain * period > PATIENCE:
        return f"the first {form.plain} periods of {period:,} steps are left alone; set a shorter inforeg.period"
    if state["periods"] < form.plain + WATCHED:
        return ""
    if form.when == "always":
        return "no modality leads by enough; lower inforeg.margin"
    early = form.when == "window" and (form.plain > 0 or form.smoothing < 10)
    remedy = "inforeg.plain to 0 and inforeg.smoothing to 10 from the start, or " if early else ""
    if form.when == "window" and not any(opened) and not bool((state["ever"] > 0).any()):
        return (
            f"no Fisher trace has grown enough over periods of {period:,} steps, so no prime learning window has "
            f"opened; set {remedy}inforeg.when to always"
        )
    return f"no modality has led in a period in which it could be pulled; set {remedy}inforeg.when to always"


def encoder_squares(vector: Tensor, spans: Sequence[Sequence[slice]]) -> Tensor:
    """Return the squared norm of a vector (P,) on the slices of each encoder: (M,)."""
    zero = vector.new_zeros(())
    return torch.stack([sum((vector[w] @ vector[w] for w in span), zero) for span in spans])


def squares(grad: Tensor, spans: Sequence[Sequence[slice]]) -> Tensor:
    """Return ‖g_m‖² on the slices of each encoder, and of the whole gradient (P,): (M + 1,)."""
    return encoder_squares(grad, [*spans, [slice(None)]])


def weight_squares(grad: Tensor, layout: Layout, modalities: Sequence[str]) -> Tensor:
    """Return Σ_l mean(g_l²) over the weight tensors l of each encoder, and of the whole network: (M + 1,).

    The measure of InfoReg's code: tensors with two axes or more, no biases or norm layers, and a small layer weighs as
    much as a large one.
    """
    blocks = layout.blocks(grad)
    means = {name: block.square().mean() for name, block in blocks.items() if block.dim() > 1}
    zero = grad.new_zeros(())
    table = [sum((v for n, v in means.items() if n.startswith(f"encoders.{m}.")), zero) for m in modalities]
    return torch.stack([*table, sum(means.values(), zero)])


def sample_squares(
    loss: Callable[..., Tensor], theta: Tensor, rows: Sequence[Tensor], spans: Sequence[Sequence[slice]]
) -> Tensor:
    """Return the mean of ‖∇ loss of one row‖² by encoder and of the whole network (M + 1,): InfoReg, equation 7.

    `loss(theta, *rows)` takes tensors of one row (1, …); `rows` are tensors (N, …), of which eight are worked on at a
    time, at a memory of 8 P numbers.
    """
    total = theta.new_zeros(len(spans) + 1)
    for start in range(0, len(rows[0]), 8):
        grads = imbalance.per_sample_gradients(loss, theta, [row[start : start + 8] for row in rows])
        total = total + torch.stack([squares(grad, spans) for grad in grads]).sum(0)
    return total / len(rows[0])


def pulled(grads: Tensor, row: int, alpha: Tensor, drift: Tensor, spans: Sequence[Sequence[slice]]) -> Tensor:
    """Return the rows (K, P) with α_m·drift added to one row on the slices of each encoder.

    The gradient of (α_m/2)‖w_m - w_m⁰‖² with α_m held fixed; InfoReg, equation 12. The sign and size are those of the
    code; the paper's appendix B prints α·η²·Σg, which is not the gradient of equation 12. Where α_m is 0 nothing
    changes, not even if the drift is no number.
    """
    grads = grads.clone()
    for a, where in ((a, where) for a, wheres in zip(alpha, spans, strict=True) for where in wheres):
        grads[row, where] = torch.where(a > 0, grads[row, where] + a * drift[where], grads[row, where])
    return grads


def batch_cosine(total: float, norms: float, squared: float) -> float:
    """Return the mean cosine between the gradients of different batches, each pair weighted by its norms.

    (‖Σg‖² - Σ‖g‖²)/((Σ‖g‖)² - Σ‖g‖²) from `total` ‖Σg‖, `norms` Σ‖g‖ and `squared` Σ‖g‖²; nan for a single gradient.

    >>> batch_cosine(2.0, 2.0, 2.0), abs(batch_cosine(2.0**0.5, 2.0, 2.0)) < 1e-15
    (1.0, True)
    """
    pairs = norms**2 - squared
    return (total**2 - squared) / pairs if pairs > 1e-12 * squared else math.nan


def summary(drift: float, total: float, sums: Sequence[float], steps: int) -> dict[str, float]:
    """Return what one encoder's period of `steps` came to; inf or nan where a quantity has no meaning.

    `drift` is ‖w - w⁰‖ at its end, `total` ‖Σg‖ of the task gradients, `sums` Σ‖g‖², Σ‖g‖, Σ‖pull‖, Σα and the number
    of steps with a pull. `drift_limit` is ‖ḡ‖/ᾱ, where the drift would settle under constant gradient and pull.
    """
    squared, norms, pull, alpha, active = sums
    return {
        "drift": drift,
        "drift_limit": total / alpha if alpha > 0 else math.inf,
        "pull_to_gradient": pull / norms if norms > 0 else math.nan,
        "penalty": 0.5 * alpha / steps * drift**2,
        "batch_cosine": batch_cosine(total, norms, squared),
        "active": active / steps,
    }


def room(lr: float, alpha: float, steps: int, momentum: float = 0.0) -> float:
    """Return steps·lr·α/(1 - μ): the length of a period in time constants of the pull.

    For a constant gradient g and plain descent the drift is -(g/α)(1 - (1 - lr·α)ᵇ) after b steps: it settles at ‖g‖/α
    with the time constant 1/(lr·α), about 1 - μ times that with momentum.
    """
    return steps * lr * alpha / (1.0 - momentum)


def spans(opened: Sequence[bool], edges: Sequence[int]) -> list[list[float]]:
    """Return [from, to] of each stretch of periods in which a window was open; period i goes from edge i to i + 1.

    >>> spans([False, True, True, False, True], [0, 10, 20, 30, 40, 50])
    [[10.0, 30.0], [40.0, 50.0]]
    """
    found: list[list[float]] = []
    for is_open, start, end in zip(opened, edges, edges[1:], strict=False):
        if is_open and found and found[-1][1] == start:
            found[-1][1] = float(end)
        elif is_open:
            found.append([float(start), float(end)])
    return found


def borne_out(logits: Tensor, y: Tensor, tenths: int = 10) -> tuple[Tensor, Tensor]:
    """Return mean confidence and accuracy (up to `tenths`,) of rows in order of confidence, as many rows in each part.

    Confidence is the largest probability of logits (B, C); y (B,) are the classes. On the CPU, in float64.
    """
    sure, guess = logits.detach().double().softmax(-1).max(-1)
    order = sure.argsort()
    right = (guess == y).double()[order].cpu().tensor_split(min(tenths, len(y)))
    parts = sure[order].cpu().tensor_split(min(tenths, len(y)))
    return torch.stack([part.mean() for part in parts]), torch.stack([part.mean() for part in right])


def history(ever: int, periods: int, length: int, plain: int) -> str:
    """Return what there is to say of a window that was open in `ever` of so many periods of `length` steps."""
    if length < 2:
        return "nothing to pull back to in a period of one step: set inforeg.period"
    if ever or periods <= max(plain, 1):
        return f"open in {ever} of {periods} periods of {length} steps; 1: open now"
    remedy = "; or inforeg.plain 0 and inforeg.smoothing 10" if plain else ""
    return f"never open in {periods} periods: no trace grew enough; try periods shorter than {length} steps{remedy}"
