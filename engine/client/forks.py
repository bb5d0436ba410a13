"""What a fork is to be: its configuration, from its parent's as that stood at a step. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modalscape.engine.config import RunConfig, read, resolved, settings_known, validated
from modalscape.engine.core.knobs import checked
from modalscape.engine.errors import InputError, nearest, shown
from modalscape.engine.store.commands import Pace, Toggle, Tune, Watch, from_json
from modalscape.engine.store.files import whole
from modalscape.engine.store.home import kept_steps
from modalscape.engine.store.lineage import fork_of, reference, within
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.words import EventKind

NETWORK = (
    *("encoder", "fusion", "width", "hidden", "depth", "activation"),
    *("unimodal", "modalities", "objective", "dtype"),
)
"""Settings by which the network is built."""
DATA = ("split", "label_noise", "corrupt")
"""Settings by which the data are made, beside the knobs of the problem."""


def planned(
    parent: Path,
    step: int,
    catalog: Mapping[str, Any],
    *,
    beside: Path,
    methods: Sequence[str] = (),
    without: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    steps: int | None = None,
) -> RunConfig:
    """Return the configuration of a fork, in the folder `beside`, of the run `parent` at `step`.

    It is the parent's with the settings and methods as they stood at that step, and then with these changes: `methods`
    switched on, others off (`without`), `settings`, another `seed` from that step on, another length in `steps`, over
    which the learning rate is then scheduled too. Otherwise the fork ends where its parent does; one that begins there
    is as long again. A step before the first of a parent that is itself a fork is one of that one's parent.

    Raises:
        InputError: no such step was reached or kept, the parent or its data are gone, or a change that is impossible.
    """
    reachable(parent, step)
    parent = within(parent, step)
    config = validated(read(parent), catalog)
    if config.data and not os.path.isfile(config.data):
        raise InputError(
            f"The data file of {parent.name}, {config.data}, is gone, so the run cannot go on; put it back."
        )
    reader = RunReader(parent, measured=False)
    newest = reader.newest_number()
    config = stood(config, reader, step, newest)
    before = resolved(config, catalog)
    config = replace(config, methods=_switched(config.methods, methods, without, step, catalog))
    config = replace(config, settings=config.settings | _changed(config, dict(settings or {}), before, catalog))
    length = _length(reader.meta("steps", config.steps), step, steps)
    fork = {
        "of": reference(parent, Path(beside) / "fork"),
        "step": step,
        "theta": "",
        "seed": config.data_seed,
        "event": newest,
        "horizon": config.horizon if steps is None else length,
    }
    made = replace(config, seed=config.seed if seed is None else seed, steps=length, fork=fork)
    return validated(made, catalog)


def reachable(parent: Path, step: int) -> None:
    """Check that a run has come to a step, so that its state there can be recreated.

    Raises:
        InputError: it has not; names the nearest step that is kept.
    """
    reader = RunReader(parent, measured=False)
    fork = fork_of(parent)
    kept = kept_steps(parent)
    reached = max(reader.meta("step", 0), fork["step"] if fork and kept else 0)
    if not kept and not reached:
        raise InputError(f"No step of {Path(parent).name} is kept yet, so it cannot be forked; let it train first.")
    if not whole(step) or step > reached:
        near = min(kept, key=lambda known: abs(known - step), default=0) if isinstance(step, int) else kept[-1]
        raise InputError(
            f"{Path(parent).name} has come to step {reached}, so it cannot be forked at step {shown(step)}; the "
            f"nearest step that is kept is {near}."
        )


def stood(config: RunConfig, reader: RunReader, step: int, newest: int) -> RunConfig:
    """Return a run's configuration with methods, settings, pace and probes as its log left them at `step`.

    Of the log those events count that are not after number `newest`.
    """
    methods, settings, probes = set(config.methods), dict(config.settings), dict(config.probes)
    for event in reader.events(kinds=(EventKind.APPLIED,)):
        if event.step > step or event.id > newest:
            continue
        command = from_json(event.detail["command"])
        if isinstance(command, Toggle):
            (methods.add if command.on else methods.discard)(command.method)
        elif isinstance(command, Tune):
            settings[f"{command.method}.{command.knob}"] = command.value
        elif isinstance(command, Pace):
            settings["pace"] = float(command.rate)
        elif isinstance(command, Watch):
            probes.pop(command.probe, None)
            probes |= {command.probe: command.every} if command.on else {}
    return replace(config, methods=tuple(sorted(methods)), settings=settings, probes=probes)


def _switched(
    on: Sequence[str], more: Sequence[str], less: Sequence[str], step: int, catalog: Mapping[str, Any]
) -> tuple[str, ...]:
    known = [entry["name"] for entry in catalog["methods"]]
    for name in (*more, *less):
        if name not in known:
            raise InputError(f"There is no method {shown(name)}{nearest(name, known)}")
    both = sorted(set(more) & set(less))
    if both:
        raise InputError(f"{both[0]} is to be switched on and off at once; give one of the two.")
    off = [name for name in less if name not in on]
    if off:
        raise InputError(f"{off[0]} is not on at step {step}, so it cannot be switched off; leave --without {off[0]}.")
    return tuple(sorted((set(on) | set(more)) - set(less)))


def _changed(
    config: RunConfig, changes: dict[str, Any], before: Mapping[str, Any], catalog: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that are changed, checked.

    Raises:
        InputError: one is unknown, out of its range, or part of what the first steps were trained with.
    """
    known = settings_known(config, catalog)
    problems = {entry["name"] for entry in catalog["problems"]}
    fixed = {**dict.fromkeys(NETWORK, "the network"), **dict.fromkeys(DATA, "the data"), "optimizer.name": "the rule"}
    if before["optimizer.name"] == "rmsprop":  # what it remembers differs with and without momentum
        fixed["optimizer.momentum"] = "what the rule remembers"
    found = {}
    for key, value in changes.items():
        if key not in known:
            raise InputError(f"There is no setting {shown(key)}{nearest(key, known, 'see `catalog`')}")
        value = checked(known[key], value, key)
        what = "the data" if key.partition(".")[0] in problems else fixed.get(key)
        if what and value != before[key]:
            raise InputError(
                f"A fork keeps the network, data and optimiser that its first steps were trained with, and {key} "
                f"changes {what}; leave it, or start a new run."
            )
        if value != before[key]:
            found[key] = value
    return found


def _length(planned: int, step: int, asked: int | None) -> int:
    if asked is not None:
        if asked <= step:
            raise InputError(f"A fork at step {step} ends after it; give --steps of at least {step + 1}, not {asked}.")
        return asked
    return planned if step < planned else step + max(planned, 1)
