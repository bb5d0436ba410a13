"""How far measurements have come, in words: what is done of what is planned, the time left, what the last one took.

Free of Streamlit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

USUAL = {
    "low": "usually takes well under a second",
    "medium": "usually takes a second or two",
    "high": "usually takes some seconds to a minute",
}
"""Cost of a probe to what a page says before it has measured."""


def progress(observers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return probe to words: of a measurement under way how far it is, else what the last one took.

    `observers` are what the observers of a run said last, as `RunReader.observing` returns it.
    """
    told = [facts.get("observing", {}) for facts in observers]
    found = {probe: f"the last took {span(cost)}" for said in told for probe, cost in said.get("costs", {}).items()}
    for said in told:
        found |= {probe: "waits for its turn" for probe in said.get("waiting", ())}
        # The one at work comes first, so it is told last: of a probe that is measured twice it counts.
        found |= {job["probe"]: _under_way(job, i == 0) for i, job in reversed(list(enumerate(said.get("jobs", ()))))}
    return found


def activity(observers: Iterable[Mapping[str, Any]]) -> str:
    """Return what observers are at, in a few words, or nothing."""
    at_work = [facts.get("observing", {}).get("jobs", [])[:1] for facts in observers]
    return ", ".join(f"measuring {job['probe']}{_counted(job)}" for jobs in at_work for job in jobs)


def busy(observers: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the probes that are being measured or wait to be, as they were asked for."""
    told = [facts.get("observing", {}) for facts in observers]
    under_way = {job["probe"] for said in told for job in said.get("jobs", ())}
    return tuple(sorted(under_way | {probe for said in told for probe in said.get("waiting", ())}))


def _under_way(job: Mapping[str, Any], at_work: bool) -> str:
    if job["step"] < 0:
        return "about to begin"
    words = f"measuring step {job['step']:,}{_counted(job)}"
    if not at_work:
        return f"{words} · held while another is measured"
    left = job.get("left")
    return f"{words} · about {span(left)} left" if left else words


def _counted(job: Mapping[str, Any]) -> str:
    return f": {job['done']:,} of {job['planned']:,} {job['what']}" if job.get("planned") else ""


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
