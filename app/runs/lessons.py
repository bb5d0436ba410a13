"""An arm of a lesson as the dashboard starts it. Free of Streamlit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINUTE = 60
"""Seconds that an arm of a lesson takes at its pace, about."""
REPORTS = 5
"""Reports of the methods of a lesson in a second."""


def watched(config: Mapping[str, Any], catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm of a lesson as it is started here: all usual probes beside its own, at a pace one can follow.

    At that pace the methods report more often, so that their charts move from the start; no number of the run changes.
    """
    usual = {entry["name"]: 0 for entry in catalogue["probes"] if entry["usual"] and not entry["needs"]}
    pace = max(1, round(config.get("steps", 1000) / MINUTE))
    own = {"report": 20} | dict(config["settings"])
    settings = {"pace": pace} | own | {"report": min(own["report"], max(1, round(pace / REPORTS)))}
    return {**config, "probes": usual | dict(config.get("probes", {})), "settings": settings}
