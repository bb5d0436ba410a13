"""A network leans on its strongest modality; take it away, and what the others could have said was never learnt.

Planted evidence: vision says almost everything, audio enough to be right three times in four by itself. Adam, a small
network, 400 steps.

*Source*: ModalImmune as reconstructed here, arXiv 2602.16197; ModDrop, arXiv 1501.00102, for omission alone. Data,
network and doses are ours.
"""

from __future__ import annotations

from typing import Any

from engine.lesson import Lesson

STEPS = 400

_SETTINGS: dict[str, Any] = {
    "planted.unique": "3.0,1.5",
    "planted.shared": 1.0,
    "optimizer.name": "adam",
    "width": 16,
    "hidden": 32,
    "evaluate": 50,
    "robustness.rows": 1000,
    "budget": 1.0,
}
_ATTACK = {"modalimmune.fill": "neutral", "modalimmune.outer": "train"}
_OMISSION = _ATTACK | {
    "modalimmune.collapse": 0.0,
    "modalimmune.controller": "uniform",
    "modalimmune.omission": "batch",
    "modalimmune.share": 1.0,
}
_STRONG = _ATTACK | {"modalimmune.adaptive": False, "modalimmune.clip": 10.0}


def _arm(methods: tuple[str, ...] = (), settings: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "problem": "planted",
        "methods": list(methods),
        "probes": {"robustness": 100},
        "steps": STEPS,
        "device": "cpu",
        "settings": _SETTINGS | (settings or {}),
    }


class ModalImmuneMissing(Lesson):
    """A network that has practised without its favourite can do without it."""

    name = "modalimmune_missing"
    title = "When a modality goes missing"
    words = (
        "Vision is the stronger modality here, and a network trained plainly hears little beside it: without vision "
        "it does worse than audio alone allows. ModalImmune leaves one modality out at a time and collapses its "
        "features; watch its controller settle on vision, and the score without vision rise while the clean one stays. "
        "Then compare with ModDrop, which only leaves out: all of that gain is there already. What the collapse adds "
        "is resistance to noise on vision, most of all in the strong arm, and it is paid for with noise on audio."
    )
    claim = "Without its strongest modality, a network trained with ModalImmune is right more often than a plain one."
    arms = {
        "modalimmune": _arm(("modalimmune",), _ATTACK),
        "plain": _arm(),
        "moddrop": _arm(("moddrop",), {"moddrop.fill": "neutral"}),
        "omission_only": _arm(("modalimmune",), _OMISSION),
        "strong": _arm(("modalimmune",), _STRONG),
    }
    control = "plain"
    seeds = 5
    scalar = "robustness/worst"
    expect = "higher"
    show = ("robustness", "methods", "live")
