"""Methods: changes to training that act at the seven points of a step, and the stack that composes them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar

from torch import Tensor

from modalscape.engine.core.knobs import checked, describe, knob
from modalscape.engine.core.names import POINTS
from modalscape.engine.core.needs import Need
from modalscape.engine.core.records import Record
from modalscape.engine.errors import InputError

__all__ = ["POINTS", "Method", "MethodConflict", "Stack", "knob"]

_OTHERS = ("init", "report", "idle")


class MethodConflict(InputError):
    """Two methods that cannot be on together; the text says which and what to do."""


class Method:
    """A change to training. Override the points it acts at; leave the rest.

    Points, with the rule by which several methods combine:

    - `features(features, view) -> features`: dict of (B, D); chained in order.
    - `losses(view) -> scalar`: a term of its own, the row `reg/<method>`.
    - `gradients(grads, view) -> grads`: (K, P), one row per objective; chained in order.
    - `fuse(grads, view) -> grad`: (P,); one owner; without one, the sum of the rows.
    - `around(gradient, view) -> gradient`: a function theta -> view around another; nested.
    - `update(update, view) -> update`: (P,), what is added to theta; chained in order.
    - `commit(view) -> state`: the method's next state; the only place where state changes.

    Every point but `commit` is pure: it reads `self.params`, `self.state` and the view, and may run twice, at other
    parameters, or not at all.
    """

    name: ClassVar[str]
    """Equal to the file's name."""
    title: ClassVar[str]
    """As the papers write it."""
    after: ClassVar[tuple[str, ...]] = ()
    """Methods that act before this one at a shared point."""
    neutral: ClassVar[dict[str, Any]] = {}
    """Knob values at which the method does nothing."""
    silent: ClassVar[dict[str, Any]] = {}
    """Knob values each of which leaves the method without an effect, whatever the other knobs say."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """Settings without which the method cannot act, so that a run is refused before anything is made."""
    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    """Fewest and most modalities that the method acts on; None for any number."""
    reconstructed: ClassVar[bool] = False
    """True where the source's full text is not public and the algorithm is our reading of it."""

    rescaled: ClassVar[str] = ""
    """What becomes of the method where the optimiser divides each gradient by its running size, as Adam does; empty
    where nothing does."""

    judged: ClassVar[str] = ""
    """What it is good for and where it does harm, in one sentence, as `docs/claims.md` shows; empty where nothing was
    measured."""

    shown_by: ClassVar[tuple[str, ...]] = ()
    """Probes whose measurements, too dear for every report, show the method at work."""

    @dataclass(frozen=True)
    class Params:
        """No knobs."""

    halves: bool = False
    """Whether the step takes the gradient of half of its batch as well, for `View.halves`."""

    def __init__(self, params: Any = None, state: dict[str, Any] | None = None) -> None:
        self.params = self.Params() if params is None else params
        self.state: dict[str, Any] = {} if state is None else state

    def __init_subclass__(cls) -> None:
        """Refuse a public function that is no point, so that a misspelt hook is found at import."""
        for name, value in vars(cls).items():
            if inspect.isfunction(value) and not name.startswith("_") and name not in POINTS + _OTHERS:
                raise TypeError(f"{cls.__name__}.{name} is no point of a step; the points are {', '.join(POINTS)}.")

    def init(self, view) -> dict[str, Any]:
        """Return fresh state, whenever the method is switched on; `view` has step, theta, batch, problem, rng, rate."""
        return {}

    def report(self, view) -> Iterator[Record]:
        """Yield what the dashboard plots to show the method at work; `view` is the settled view of a step."""
        yield from ()

    def idle(self, view) -> str:
        """Return one sentence on why the method leaves training as it is and what would change that; empty if it acts.

        Empty too where it is about to act, within `needs.PATIENCE` steps. It is asked when the method goes on or is
        tuned, and while it is on; `view` is as for `init`. Pure, and the text stays the same as long as its
        reason does. Here: knobs at which nothing is done, and the window of the knobs `start` and `stop`, where a
        method has them.
        """
        knobs, name = vars(self.params), self.name
        if self.neutral and all(knobs[key] == value for key, value in self.neutral.items()):
            values = " and ".join(f"{name}.{key} is {value!r}" for key, value in self.neutral.items())
            remedy = "change it" if len(self.neutral) == 1 else "change one of them"
            return f"{self.title} leaves training as it is while {values}; {remedy}."
        for key, value in self.silent.items():
            if knobs[key] == value:
                return f"{self.title} leaves training as it is while {name}.{key} is {value!r}; change it."
        start, stop = knobs.get("start", 0), knobs.get("stop", 0)
        if 0 < stop <= max(start, view.step):
            return f"{self.title} acts no more from step {stop:,} on; set {name}.stop to 0 for no end, or higher."
        if view.step < start:
            return f"{self.title} does not act before step {start:,}; set {name}.start to 0 to begin now."
        return ""

    @classmethod
    def points(cls) -> tuple[str, ...]:
        """Return the points this method acts at, in the order of the step."""
        return tuple(point for point in POINTS if hasattr(cls, point))

    @classmethod
    def knobs(cls) -> list[dict[str, Any]]:
        """Return the knobs as JSON values."""
        return describe(cls.Params)

    def tuned(self, knob_name: str, value: Any) -> Method:
        """Return this method with one knob changed and its state kept.

        Raises:
            InputError: no such knob, or a value out of its range.
        """
        known = {k["name"]: k for k in self.knobs()}
        if knob_name not in known:
            raise InputError(f"{self.name} has no knob {knob_name!r}; it has {', '.join(known) or 'none'}.")
        value = checked(known[knob_name], value, f"{self.name}.{knob_name}")
        return type(self)(dataclasses.replace(self.params, **{knob_name: value}), self.state)


class Stack:
    """The methods that are on, in the order given by `after`, ties by name; listing order is irrelevant."""

    def __init__(self, methods: Iterable[Method] = ()) -> None:
        """Order the methods.

        Raises:
            MethodConflict: two methods own `fuse`, or their orders contradict each other.
        """
        named = {method.name: method for method in methods}
        # Methods that are named but off keep their place, so that switching one on does not reorder the others.
        order = TopologicalSorter({name: m.after for name, m in sorted(named.items())})
        try:
            order.prepare()
        except CycleError as error:
            raise MethodConflict(
                f"{' and '.join(error.args[1])} each ask to act after the other; turn one off."
            ) from None
        names: list[str] = []
        while order.is_active():
            ready = sorted(order.get_ready())
            names += ready
            order.done(*ready)
        self.methods: dict[str, Method] = {name: named[name] for name in names if name in named}
        self._at = {point: [m for m in self.methods.values() if hasattr(m, point)] for point in POINTS}
        owners = self._at["fuse"]
        if len(owners) > 1:
            listed = " and ".join(sorted(m.name for m in owners))
            raise MethodConflict(f"{listed} both replace the gradient; turn one off.")
        self.halves = any(method.halves for method in self.methods.values())
        """Whether a method asks for `View.halves`."""
        self.weighs = bool(self._at["gradients"] or owners)
        """Whether a method looks at the gradients of the losses one by one."""

    def chain(self, point: str, value, view):
        """Return `value` after every method at a chained or nested point has acted on it, in order."""
        for method in self._at[point]:
            value = getattr(method, point)(value, view)
        return value

    def losses(self, view) -> dict[str, Tensor]:
        """Return the terms that methods add, under `reg/<method>`."""
        return {f"reg/{method.name}": method.losses(view) for method in self._at["losses"]}

    def fuse(self, grads: Tensor, view) -> Tensor:
        """Return the one gradient (P,) of the rows (K, P): the owner's, or their sum."""
        for owner in self._at["fuse"]:
            return owner.fuse(grads, view)
        return grads[0] if len(grads) == 1 else grads.sum(0)

    def commit(self, view) -> None:
        """Let each method take its next state. All read the states of before, then all are replaced."""
        states = [(method, method.commit(view)) for method in self._at["commit"]]
        for method, state in states:
            method.state = state

    def having(self, method: Method) -> Stack:
        """Return the stack with `method` added, or in the place of the one of its name."""
        return Stack((self.methods | {method.name: method}).values())

    def without(self, name: str) -> Stack:
        """Return the stack with the method of that name switched off, its state forgotten."""
        return Stack(method for method in self.methods.values() if method.name != name)

    def pipeline(self) -> dict[str, list[str]]:
        """Return point to the names of the methods that act there, in order."""
        return {point: [method.name for method in methods] for point, methods in self._at.items()}
