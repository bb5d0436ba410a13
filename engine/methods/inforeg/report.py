"""The records that show InfoReg at work: who leads, whose window is open, and how far the pull lets an encoder go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Record, Scalar
from modalscape.engine.maths.modalities import imbalance
from modalscape.engine.methods.inforeg import fisher as maths
from modalscape.engine.methods.inforeg.fisher import SUMMARY, TRACES, Form

_LEAD = {
    "score": Display(panel="Score of each modality alone", place=3),
    "gap": Display(panel="Lead Δ"),
    "alpha": Display(panel="Pull α", place=4, note="0 where nothing is pulled; 1 or more on the leader."),
}
_DRIFT = Display(
    panel="Drift since the period began",
    place=5,
    ylog=True,
    note="Held back, an encoder's drift stays near the dotted limit ‖ḡ‖/α; without a pull nothing bounds it.",
)
_PERIOD = {
    "drift": _DRIFT | Display(label="drift"),
    "drift_limit": _DRIFT | Display(label="limit", role="limit"),
    "active": Display(panel="Share of steps with a pull", place=6),
    "pull_to_gradient": Display(panel="Pull beside the task's gradient", place=7),
    "batch_cosine": Display(
        panel="Do batches agree?",
        place=8,
        y="cosine",
        levels={"": 0.0},
        note="The paper takes the gradients of different batches as orthogonal, which is a cosine of 0.",
    ),
}
_TRACE = Display(x="step", y="Fisher trace", ylog=True)
_BY_PERIOD = _TRACE | Display(
    panel="Fisher trace by period",
    place=1,
    note="Marked below where the prime learning window is open: the trace still grows.",
)
_SURE = Display(
    panel="Confidence and accuracy, each alone", x="mean of the largest probability", y="share right", points=True
)


def about_the_lead(alone: Mapping[str, Tensor], y: Tensor, own: bool, alpha: Tensor, form: Form) -> Iterator[Record]:
    """Yield score, lead and pull of each modality, and how far its confidence is borne out.

    `alone` has the logits (B, C) of each modality by itself, `own` whether they are its head's or slice's, `alpha` (M,)
    the pull of the last step.
    """
    score = maths.scores(alone, y, form.score)
    protocol = "own logits" if own else "features of the others at zero"
    how = f"{form.score} of the true class's probability; {protocol}"
    found = (("score", score, how), ("gap", imbalance.performance_gap(score), how), ("alpha", alpha, "0: no pull"))
    for path, values, mode in found:
        for name, value in zip(alone, values.tolist(), strict=True):
            yield Scalar(f"inforeg/{path}/{name}", value, n=len(y), mode=mode, display=_LEAD[path])
    for name, logits in alone.items():
        sure, right = maths.borne_out(logits, y)
        display = _SURE | Display(label="")
        yield Curve(f"inforeg/confidence/{name}", sure.numpy(), right.numpy(), n=len(y), mode=protocol, display=display)


def about_the_windows(state: Mapping[str, Any], names: Sequence[str], length: int, form: Form) -> Iterator[Record]:
    """Yield whether each window is open, with words where it never was, and by what share the trace has grown."""
    periods = state["periods"]
    opened = maths.windows(state["traces"], periods, form).tolist()
    growths = maths.growths(state["traces"], periods, form).tolist()
    levels = {f"K = {form.threshold:g}": form.threshold}
    growth = Display(panel="Growth of the trace", place=2, levels=levels, within=[-1.0, 1.0])
    window = Display(panel="Prime learning window", place=10, y="1: open")
    for name, k, is_open, ever in zip(names, growths, opened, state["ever"].tolist(), strict=True):
        words = maths.history(ever, periods, length, form.plain)
        yield Scalar(f"inforeg/window/{name}", float(is_open), n=periods, mode=words, display=window)
        if periods and math.isfinite(k):
            mode = "share of itself by which the last trace exceeds the one before; open above K"
            yield Scalar(f"inforeg/growth/{name}", k, n=periods, mode=mode, display=growth)


def about_the_room(value: float) -> Iterator[Record]:
    """Yield the length of a period in time constants of the pull."""
    short = "; below 0.5 the pull has no room to act: lengthen the period" if value < 0.5 else ""
    display = Display(panel="Room of the pull in a period", place=9, levels={"needed": 0.5})
    yield Scalar("inforeg/room", value, mode=f"period·lr·α/(1-μ) at α = strength{short}", display=display)


def about_the_period(
    state: Mapping[str, Any], names: Sequence[str], opened: Sequence[bool], length: int, form: Form
) -> Iterator[Record]:
    """Yield traces, drift and pull of the last finished period; `opened` says whose window is open in the present."""
    last, mode, count = state["last"], TRACES[state["kind"]], len(state["places"])
    traces, ever = state["traces"][-count:].tolist(), state["ever"].tolist()
    past = [*state["opened"][-count:].tolist(), list(opened)]
    drift, total, sums = (last[key].tolist() for key in ("drift", "total", "sums"))
    steps, everyone = last["steps"], sum(traces[-1])
    starts, ends = zip(*state["places"], strict=True)
    for name, value in zip((*names, "network"), (*traces[-1], float(last["network"])), strict=True):
        yield Scalar(f"inforeg/fisher_trace/{name}", value, n=steps, mode=mode, display=_TRACE)
    for i, name in enumerate(names):
        spans = maths.spans([row[i] for row in past], [*starts, ends[-1], ends[-1] + steps])
        values = np.array([row[i] for row in traces])
        display = _BY_PERIOD | Display(spans=spans, label="")
        words = maths.history(ever[i], state["periods"], length, form.plain).partition(";")[0]
        yield Curve(f"inforeg/traces/{name}", np.array(ends), values, mode=f"{mode}; window {words}", display=display)
        if everyone > 0:
            share = traces[-1][i] / everyone
            yield Scalar(f"inforeg/trace_share/{name}", share, n=steps, mode="share of all encoders' traces")
        for path, value in maths.summary(drift[i], total[i], sums[i], steps).items():
            if math.isfinite(value):
                yield Scalar(
                    f"inforeg/{path}/{name}", value, n=steps, mode=SUMMARY[path], display=_PERIOD.get(path, Display())
                )
    active = np.array([row[-1] / steps for row in sums])
    yield Bars("inforeg/held_back", np.array(names), active, n=steps, mode=SUMMARY["active"])
