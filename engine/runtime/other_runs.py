"""The runs in the folder beside a run: a measurement may know their parameters, at their last checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from modalscape.engine.client.handle import RUN_ID
from modalscape.engine.config import RunConfig, read
from modalscape.engine.core.layout import Layout
from modalscape.engine.core.probe import Neighbour
from modalscape.engine.errors import InputError
from modalscape.engine.runtime import checkpoint
from modalscape.engine.store.writer import RunReader


def neighbour(home: Path, run: str, layout: Layout, own: RunConfig, like: Tensor) -> Neighbour:
    """Return the run `run` that lies beside the one in `home`, its theta (P,) like `like`.

    Ids come from people and pages, so only the id of a folder directly beside this one is taken, never a path.

    Raises:
        InputError: the id is none, there is no such run, it has no checkpoint, or its network is another.
    """
    folder = Path(home).resolve().parent
    if not RUN_ID.fullmatch(run):
        raise InputError(f"{run!r} is no id of a run; give the name of a run's folder beside this one.")
    there = folder / run
    if there.resolve().parent != folder or not (there / "config.json").is_file():
        raise InputError(f"There is no run {run} beside this one; give the id of one that is.")
    if there.resolve() == Path(home).resolve():
        raise InputError(f"{run} is this run itself; give the id of another.")
    shapes = RunReader(there).meta("layout", None)
    if shapes is not None:
        _same_network(run, {name: tuple(shape) for name, shape in shapes.items()}, layout)
    found = checkpoint.newest_first(there, device=like.device)
    content = next((content for content in found if content["theta"].shape == like.shape), None)
    if shapes is None or content is None:
        raise InputError(f"The run {run} has no checkpoint yet; wait until it has begun.")
    return Neighbour(run, content["step"], content["theta"].to(like), _data(own, read(there)))


def _same_network(run: str, shapes: dict[str, tuple[int, ...]], layout: Layout) -> None:
    """Check that the parameters have the same names, shapes and order.

    Raises:
        InputError: they have not; names the first that differs.
    """
    for name in [*layout.shapes, *shapes]:
        here, there = layout.shapes.get(name), shapes.get(name)
        if here != there:
            raise InputError(
                f"The run {run} has another network: {name} is {_sized(there)} there and {_sized(here)} here; "
                "choose a run of the same network."
            )
    if list(shapes) != list(layout.shapes):
        raise InputError(f"The run {run} packs its parameters in another order; choose a run of the same network.")


def _sized(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "one number"


def _data(own: RunConfig, other: RunConfig) -> str:
    """Return where the other's training rows may not be this run's, in words, or nothing.

    Built-in problems draw their rows from the seed, and a file without a split draws its split.
    """
    if (own.problem, own.data) != (other.problem, other.data):
        what = Path(other.data).name if other.data else other.problem
        return f"trained on other data, {what}"
    return "" if own.data_seed == other.data_seed else f"trained from seed {other.seed}, so perhaps on other rows"
