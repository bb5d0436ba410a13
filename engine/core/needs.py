"""What a method needs of a run, as its configuration tells it: settings, and a number of modalities. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from modalscape.engine.errors import InputError


@dataclass(frozen=True)
class Need:
    """A setting that has to have one of some values, always or `when` other settings have theirs; the first mends it.

    A setting's name is its whole path, such as `unimodal` or `bogc.calibrate`.
    """

    setting: str
    among: tuple[Any, ...]
    when: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"among": list(self.among)}


PATIENCE = 200
"""Steps for which a method may leave training as it is before it says why."""

FUSED = Need("objective", ("auto", "cross_entropy", "squared_error"))
"""The need of methods that read a fused prediction: a contrastive objective makes none."""


class Unmet(InputError):
    """A method was asked for that cannot act in the run; `remedy` is setting to value that would let it."""

    def __init__(self, text: str, remedy: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.remedy = dict(remedy or {})


def met(methods: Iterable[Mapping[str, Any]], values: Mapping[str, Any], modalities: Sequence[str]) -> None:
    """Refuse methods, entries of the catalogue, that cannot act in a run with these settings and modalities.

    `modalities` is empty where only the data tell them.

    Raises:
        Unmet: says which method, what it needs, and what to set.
    """
    chosen = list(methods)
    owners = sorted(entry["name"] for entry in chosen if "fuse" in entry["points"])
    if len(owners) > 1:
        raise Unmet(f"{' and '.join(owners)} both replace the gradient; turn one off.")
    for entry in chosen:
        for need in entry["needs"]:
            _set(entry, need, values)
        if modalities:
            _enough(entry, modalities)


def _set(entry: Mapping[str, Any], need: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    key, among = need["setting"], need["among"]
    if values[key] in among or any(values[other] != value for other, value in need["when"].items()):
        return
    where = "".join(f" where {other} is {value!r}" for other, value in need["when"].items() if value != "")
    raise Unmet(
        f"{entry['title']} needs {key} to be {' or '.join(map(str, among))}, not {values[key]}{where}; set "
        f"{key}={among[0]} or leave {entry['name']} out.",
        {key: among[0]},
    )


def _enough(entry: Mapping[str, Any], modalities: Sequence[str]) -> None:
    least, most = entry["modalities"]
    if least <= len(modalities) and (most is None or len(modalities) <= most):
        return
    wanted = f"{least} modalities or more" if len(modalities) < least else f"{most} modalities at most"
    raise Unmet(
        f"{entry['title']} needs {wanted}, and this run has {len(modalities)} ({', '.join(modalities)}); change them, "
        f"or leave {entry['name']} out."
    )
