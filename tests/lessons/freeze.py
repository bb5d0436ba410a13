"""Writes `arms.json` anew: every setting that the training of an arm depends on, as `python -m tests.lessons.freeze`.

To be run when the numbers of lessons are taken anew, and at no other time: a test compares the arms with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, resolved, validated
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.registry import discover

FILE = Path(__file__).with_name("arms.json")
FREE = ("report", "checkpoint", "measure", "observers", "pace", "probe_rows", "threads")
"""Settings that training does not depend on."""


def frozen(arm: dict[str, Any], common: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return what of an arm differs from what is `common`, and every knob of its methods and its problem."""
    config = validated(RunConfig.from_json(arm), known)
    what = config.to_json() | {"probes": sorted(config.probes)}
    owners = {*config.methods, config.problem}
    found = {"": {key: what[key] for key in common[""]}}
    for key, value in sorted(resolved(config, known).items()):
        owner = key.partition(".")[0] if "." in key else ""
        if key not in FREE and (owner in owners or (key in common and value != common[key])):
            found[key] = value
    return found


def main() -> None:
    """Write the file, with the `common` part as it is."""
    known, common = catalog(), json.loads(FILE.read_text())["common"]
    arms = {
        f"{name}/{arm}": json.dumps(frozen(values, common, known))
        for name, lesson in discover("modalscape.engine.lessons", Lesson).items()
        for arm, values in lesson.arms.items()
    }
    lines = ",\n".join(f"{json.dumps(path)}: {text}" for path, text in sorted(arms.items()))
    FILE.write_text(f'{{\n"common": {json.dumps(common)},\n"arms": {{\n{lines}\n}}\n}}\n')


if __name__ == "__main__":
    main()
