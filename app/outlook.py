"""When a measurement may be done, in words: from what it took before, its share of the time, the pace of training.

An estimate: it follows the rule of `engine/measuring.py`, takes each measurement to cost what its last one did, and
says so where there was none. Free of Streamlit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

USUAL = {
    "cheap": "usually takes as long as a few training steps",
    "fair": "usually takes as long as some tens of training steps",
    "dear": "usually takes as long as some hundreds of training steps",
}
"""Cost of a probe to what a page says before it has measured."""
SOONEST = 60.0
"""Seconds, at least, that are told of a measurement that waits for its share: the pieces of the others are coarse."""
PIECES = 200
"""Pieces into which the work that waits is cut."""
HELD = "held back by the run's budget; Measure now is not"
LEAST = 0.05
"""Share of its cost that a measurement is taken to have left, however long it has taken."""


@dataclass
class _Work:
    """One measurement under way: seconds of work left as far as is known, and its rank beside the oldest."""

    probe: str
    left: float
    rank: float


def outlook(facts: Mapping[str, Any], *, step: int, state: str) -> dict[str, str]:
    """Return probe to words about its next measurement, as the `facts` of a heartbeat at `step` tell them.

    Nothing where there are none, or they are those of an engine that was started before this dashboard was renewed.
    """
    if "head_start" not in facts:
        return {}
    jobs, costs, resting = facts["jobs"], facts["costs"], state != "running"
    found = {probe: f"the last took {span(cost)}" for probe, cost in costs.items()}
    if state not in ("running", "paused"):
        return found
    for probe, at in facts["next"].items():
        last = f" · the last took {span(costs[probe])}" if probe in costs else ""
        found[probe] = f"{_next(at, facts, step, resting)}{last}"
    ends = expected(facts, resting=resting)
    for job, end in reversed(list(zip(jobs, ends, strict=True))):
        found[job["probe"]] = _under_way(job, end, facts, resting)
    return found


def _next(at: int, facts: Mapping[str, Any], step: int, resting: bool) -> str:
    if step >= at:
        return "due when the run goes on" if resting else "due" if facts["share"] else f"due, {HELD}"
    away = "" if resting or not facts["steps"] else f", in about {span((at - step) * _a_step(facts))}"
    return f"next at step {at:,}{away}"


def _under_way(job: Mapping[str, Any], end: float, facts: Mapping[str, Any], resting: bool) -> str:
    cost, done = facts["costs"].get(job["probe"]), span(job["seconds"])
    over = cost is not None and job["seconds"] > cost
    work = f"{done} of work so far" if cost is None or over else f"{done} of about {span(cost)} of work"
    work += f", the last took {span(cost)}" if over else ""
    words = f"measuring since step {job['step']:,} · {work}"
    slowly = not job["asked"] and not resting and facts["share"] < 1.0
    others = len(facts["jobs"]) - 1
    beside = f" beside {others} other{'s' if others > 1 else ''}" if others else ""
    pace = f" in {facts['share']:.0%} of the time{beside}" if slowly else ""
    if math.isinf(end):
        return f"{words} · {HELD}"
    if cost is None or over:
        why = "its first" if cost is None else "longer than the last"
        return f"{words}{pace} · {why}, so how much is left is not known" + (
            "; Measure now gives it all the time" if slowly else ""
        )
    when = f"done in about {span(max(end, SOONEST))},{pace}" if slowly else f"done in about {span(end)}"
    return f"{words} · {when}"


def expected(facts: Mapping[str, Any], *, resting: bool = False) -> list[float]:
    """Return the seconds after which each measurement under way may be done, in their order; infinite where never.

    Those asked for come first. Of the scheduled ones the oldest has half the time, the least served of the others
    the other half; what falls due meanwhile joins them.
    """
    work = [_Work(job["probe"], _left(job, facts["costs"]), job["rank"]) for job in facts["jobs"]]
    asked = [own for own, job in zip(work, facts["jobs"], strict=True) if job["asked"]]
    scheduled = [own for own, job in zip(work, facts["jobs"], strict=True) if not job["asked"]]
    full = 1.0 if resting else facts["slice"] / (facts["slice"] + _training(facts))
    end, ends = 0.0, {}
    for own in asked:
        end += own.left / full
        ends[id(own)] = end
    share = full if resting else min(facts["share"], full)
    if share <= 0.0:
        return [ends.get(id(own), math.inf) for own in work]
    if not resting and facts["share"] < 1.0:
        owed = facts["spent"] + sum(own.left for own in asked)
        end = max(end, owed / share - facts["trained"] - facts["spent"])
    coming = {} if resting else {p: (at - facts["step"]) * _a_step(facts) for p, at in facts["next"].items()}
    ends |= _shared(scheduled, end, share, coming, facts)
    return [ends[id(own)] for own in work]


def _shared(
    work: list[_Work], end: float, share: float, coming: dict[str, float], facts: Mapping[str, Any]
) -> dict[int, float]:
    """Return id to the seconds after which each is done, when half of the share is the oldest's.

    `coming` is probe to the seconds until it falls due; then it takes its last cost, and falls due again.
    """
    piece = max(sum(own.left for own in work) / PIECES, 1e-3)
    queue, ends, lead = list(work), {}, 0.0
    while len(ends) < len(work):
        for probe, at in coming.items():
            if at <= end and probe in facts["costs"] and all(own.probe != probe for own in queue):
                rank = facts["served"].get(probe, 0.0) + facts["head_start"]
                rank = max(rank, min(own.rank for own in queue))
                queue.append(_Work(probe, facts["costs"][probe], rank))
                every = max(facts["every"].get(probe, 1) * _a_step(facts), 1e-6)
                coming[probe] = at + every * (1 + (end - at) // every)
        others = queue[1:]
        own = min(others, key=lambda own: own.rank) if others and lead > 0.0 else queue[0]
        taken = min(piece, own.left)
        if others:
            oldest = own is queue[0]
            lead += taken if oldest else -taken
            own.rank += 0.0 if oldest else taken
        own.left, end = own.left - taken, end + taken / share
        if own.left <= 1e-9:
            queue.remove(own)
            if any(own is asked for asked in work):
                ends[id(own)] = end
    return ends


def _left(job: Mapping[str, Any], costs: Mapping[str, float]) -> float:
    """Return the seconds of work that a measurement has left; of a first one, as much as it has had."""
    cost = costs.get(job["probe"])
    return max(job["seconds"], 1.0) if cost is None else max(cost - job["seconds"], LEAST * cost)


def _training(facts: Mapping[str, Any]) -> float:
    return facts["trained"] / facts["steps"] if facts["steps"] else facts["slice"]


def _a_step(facts: Mapping[str, Any]) -> float:
    """Return the seconds that a step takes together with the measurements beside it."""
    share = min(facts["share"], 0.9) if facts["jobs"] else 0.0
    return max(_training(facts) / (1.0 - share), 1e-6)


def span(seconds: float) -> str:
    """Return a time in two digits or so.

    >>> span(0.032), span(0.41), span(12.4), span(95), span(5000)
    ('32 ms', '0.4 s', '12 s', '2 min', '1.4 h')
    """
    if seconds == 0:
        return "0 s"
    if seconds < 0.1:
        return f"{max(1000 * seconds, 1):.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
