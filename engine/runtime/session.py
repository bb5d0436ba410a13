"""A run in memory: built from its configuration, advanced step by step, changed by commands, saved and restored.

Nothing here reads a clock or writes a file, so the same commands at the same steps give the same parameters bit for
bit; `loop.py` adds recording, `replay` repeats it without.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalscape.engine import networks
from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, RunSettings, resolved
from modalscape.engine.core import objectives
from modalscape.engine.core.knobs import checked, describe
from modalscape.engine.core.method import Method, Stack
from modalscape.engine.core.optimizer import Optimizer, Settings
from modalscape.engine.core.probe import Probe, Snapshot
from modalscape.engine.core.problem import Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import State, View, looked, train_step
from modalscape.engine.data import npz
from modalscape.engine.data.dataset import Dataset, Source, corrupted, mislabelled, restricted
from modalscape.engine.errors import InputError
from modalscape.engine.registry import named
from modalscape.engine.runtime.other_runs import neighbour
from modalscape.engine.runtime.path_history import kept
from modalscape.engine.store.commands import Command

_LR = next(k for k in describe(Settings) if k["name"] == "lr")


class Training:
    """The state of a run and the ways it may change."""

    def __init__(self, config: RunConfig) -> None:
        """Build problem, optimiser and stack at step 0.

        Raises:
            InputError: the data cannot be used, the device is not there, or two methods conflict.
        """
        self.config = config
        self.values = resolved(config, catalog())
        """Every setting to its value, also those of methods, probes, problem and optimiser."""
        self.settings = RunSettings(**{key: self.values[key] for key in RunSettings.__dataclass_fields__})
        """Those of the run itself."""
        torch.set_num_threads(self.settings.threads)
        self.device = device(config.device)
        self.rng, self._source = Rng(config.seed), Rng(config.data_seed)
        self.data = self._data()
        if len(self.data.modalities) == 1 and "unimodal" not in config.settings:  # the fused loss is its own
            self.values["unimodal"] = "none"
            self.settings = replace(self.settings, unimodal="none")
        self.problem = self._problem()
        self.optimizer = Optimizer(self._params(Settings, "optimizer"), config.horizon)
        self.state = State(0, self.problem.init(), self.optimizer.init())
        self.view: View | None = None
        """The settled view of the last step."""
        self.home: Path | None = None
        """Where the run lives, for measurements that look at its past or at its neighbours."""
        self.obeyed: int | None = 0
        """Commands of the run's log that are obeyed already; None where a checkpoint of an older version is silent."""
        self.stack = Stack()
        self.stack = Stack(self._method(name) for name in config.methods)

    def step(self) -> View:
        """Advance by one step; return the view of what happened."""
        self.state, self.view = train_step(self.state, self.problem, self.optimizer, self.stack, self.rng)
        return self.view

    def toggle(self, method: str, on: bool) -> None:
        """Switch a method on, with fresh state, or off, forgetting it; one that is so already stays as it is.

        Raises:
            InputError: there is no such method.
            MethodConflict: it cannot be on together with another; the stack stays as it was.
        """
        named("modalscape.engine.methods", Method, method)
        if not on:
            self.stack = self.stack.without(method)
        elif method not in self.stack.methods:
            self.stack = self.stack.having(self._method(method))

    def tune(self, method: str, knob: str, value: Any) -> None:
        """Change one knob of a method, on or off, or `optimizer` `lr`.

        Raises:
            InputError: no such knob, a value out of its range, or one that the method cannot use with this problem.
        """
        if method == "optimizer":
            if knob != "lr":
                raise InputError(f"optimizer.{knob} cannot change while a run trains; only optimizer.lr can.")
            self.optimizer = self.optimizer.tuned(checked(_LR, value, "optimizer.lr"))
            self.values["optimizer.lr"] = self.optimizer.settings.lr
            return
        current = self.stack.methods.get(method) or self._method(method, bare=True)
        tuned = current.tuned(knob, value)
        tuned.init(self._fresh_view())  # a value that the method cannot use with this problem is refused here
        self.values[f"{method}.{knob}"] = getattr(tuned.params, knob)
        if method in self.stack.methods:
            self.stack = self.stack.having(tuned)

    def idle(self) -> dict[str, str]:
        """Return method to one sentence, for those that are on and leave training as it is: why, and what would help.

        Pure. A sentence stays the same as long as its reason does, so that whoever asks often can tell what is new.
        """
        view = self._fresh_view()
        found = {name: method.idle(view) for name, method in self.stack.methods.items()}
        return {name: text for name, text in found.items() if text}

    def snapshot(self) -> Snapshot:
        """Return what a probe measures: the same whether the run has just come here or is recreated here."""
        step, theta, problem, home = self.state.step, self.state.theta, self.problem, self.home
        around = {}
        if home is not None:
            around["path"] = partial(kept, home, step, theta)
            around["other"] = lambda run: neighbour(home, run, problem.layout, self.config, theta)
        around |= {"optimizer": self.optimizer, "moments": self.state.moments}
        return Snapshot(step, theta, problem, self.rng, self.stack, self._next_view(), **around)

    def probe(self, name: str, settings: dict[str, Any] | None = None) -> Probe:
        """Return a probe with the run's knobs, some of them replaced by `settings`.

        Raises:
            InputError: no such probe or knob, or a value out of its range.
        """
        kind = named("modalscape.engine.probes", Probe, name)
        known = {k["name"]: k for k in kind.knobs()}
        values = {key: self.values[f"{name}.{key}"] for key in known}
        for key, value in (settings or {}).items():
            if key not in known:
                raise InputError(f"The probe {name} has no knob {key!r}; it has {', '.join(known) or 'none'}.")
            values[key] = checked(known[key], value, f"{name}.{key}")
        return kind(kind.Params(**values))

    def content(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        return {
            "step": self.state.step,
            "theta": self.state.theta,
            "moments": self.state.moments,
            "methods": {name: method.state for name, method in self.stack.methods.items()},
            "settings": self.values,
            "obeyed": self.obeyed,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Go to where a checkpoint was made; settings that are newer than it keep their defaults.

        Raises:
            InputError: it is one of another run, or was never one; training stays where it is.
        """
        before = dict(vars(self))
        try:
            _same_shape(self.state.theta, content["theta"], content["moments"])
            self.values = self.values | content["settings"]
            self.optimizer = self.optimizer.tuned(self.values["optimizer.lr"])
            self.state = State(content["step"], content["theta"], content["moments"])
            self.view = None
            self.stack = Stack(self._method(name, state=state) for name, state in content["methods"].items())
            self.obeyed = content.get("obeyed")
        except (InputError, TypeError, ValueError, KeyError, AttributeError) as error:
            vars(self).update(before)
            raise error if isinstance(error, InputError) else InputError("it is not the state of a run") from None

    def advance(self, until: int, script: Iterable[tuple[int, Command]]) -> None:
        """Repeat a recorded run up to step `until`, obeying the commands of its log at the steps at which they were."""
        waiting = deque(script)
        while self.state.step < until:
            obey_due(self, waiting)
            self.step()
        obey_due(self, waiting)

    def _method(self, name: str, state: dict[str, Any] | None = None, *, bare: bool = False) -> Method:
        kind = named("modalscape.engine.methods", Method, name)
        method = kind(self._params(kind.Params, name), state)
        if state is None and not bare:
            method.state = method.init(self._fresh_view())
        return method

    def _next_view(self) -> View:
        """Return the view of the step that comes next; what begins it where a method cannot go on from here."""
        try:
            return looked(self.state, self.problem, self.optimizer, self.stack, self.rng)[0]
        except InputError:
            return self._fresh_view()

    def _fresh_view(self) -> View:
        """Return what a method sees when it is switched on."""
        step = self.state.step
        rate = self.optimizer.rate(step)
        return View(step, self.state.theta, self.problem.batch(step), self.problem, self.rng, rate)

    def _params(self, kind: type, prefix: str) -> Any:
        return kind(**{key: self.values[f"{prefix}.{key}"] for key in kind.__dataclass_fields__})

    def _data(self) -> Dataset:
        rng = self._source.within("data")
        if self.config.data:
            data = npz.read(Path(self.config.data), rng, self.settings.split)
        else:
            source = named("modalscape.engine.problems", Source, self.config.problem)
            data = source(self._params(source.Params, self.config.problem)).load(rng)
        spoilt = corrupted(mislabelled(data, self.settings.label_noise, rng), self.settings.corrupt, rng)
        return restricted(spoilt, self.settings.modalities)

    def _problem(self) -> Multimodal:
        settings, data = self.settings, self.data
        dtype = getattr(torch, settings.dtype)
        return Multimodal(
            data.name,
            data.title,
            data.batches(),
            lambda: networks.build(data, settings).to(dtype),
            objectives.build(settings, data),
            self.rng,
            source=self._source,
            batch=settings.batch,
            micro=settings.micro,
            probe_rows=settings.probe_rows,
            device=self.device,
        )


def obey_due(training: Training, script: deque[tuple[int, Command]]) -> None:
    """Apply the recorded commands that belong before the next step."""
    while script and script[0][0] <= training.state.step:
        script.popleft()[1].apply(training)
        training.obeyed = (training.obeyed or 0) + 1


def _same_shape(theta: Tensor, other: Tensor, moments: dict[str, Any]) -> None:
    """Check that parameters, and the optimiser's memory of them, are as many and as precise as theta (P,).

    Raises:
        InputError: they are not.
    """
    if other.shape != theta.shape or other.dtype != theta.dtype:
        raise InputError(f"it has {other.numel()} parameters of {other.dtype}, the run {len(theta)} of {theta.dtype}")
    for value in moments["slots"].values():
        if torch.is_tensor(value) and value.shape not in (theta.shape, torch.Size([])):
            raise InputError(f"its optimiser remembers {value.numel()} parameters, the run has {len(theta)}")


def device(name: str) -> torch.device:
    """Return the device of that name; `auto` takes a GPU when there is one.

    Raises:
        InputError: the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise InputError(f"The device {name!r} is not available here; use --device cpu or --device auto.") from None
    if found.type == "meta":
        raise InputError("The device 'meta' holds no numbers; use --device cpu or --device auto.")
    return found


def deterministic() -> None:
    """Ask torch for the same bits on every run of this device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("once", message=".*does not have a deterministic implementation.*")
