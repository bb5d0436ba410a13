"""A network leans on its strongest modality; take that away, and what the others could have said was never learnt.

Digits with captions, flat inputs, a small network, Adam, 400 steps; or any data file with two modalities or more. What
is compared is the area under accuracy against the realised missing rate, on test rows: ModalImmune tunes itself on the
validation rows. What is missing has the features of the neutral input, in training and in the test.

*Source*: ModalImmune as reconstructed here, arXiv 2602.16197; ModDrop, arXiv 1501.00102, for omission alone, both at
their defaults. Data and network are ours, chosen on seeds of 100 and up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.lesson import Lesson

STEPS = 400

_SETTINGS: dict[str, Any] = {
    "digits_captions.inputs": "flat",
    "optimizer.name": "adam",
    "width": 16,
    "hidden": 32,
    "evaluate": 50,
    "robustness.part": "test",
    "robustness.rows": 2000,
    "unimodal": "none",
}


def _arm(method: str = "") -> dict[str, Any]:
    return {
        "problem": "digits_captions",
        "methods": [method] if method else [],
        "probes": {"robustness": 100},
        "steps": STEPS,
        "device": "cpu",
        "settings": _SETTINGS | ({f"{method}.fill": "neutral"} if method else {}),
    }


def _corrupted(scalars: Mapping[str, float]) -> float:
    """Return the mean over modalities of the area under accuracy against the severity of noise on one of them."""
    prefix = "robustness/area/"
    found = [value for name, value in scalars.items() if name.startswith(prefix) and name != f"{prefix}missing"]
    return sum(found) / len(found) if found else math.nan


def _last(name: str):
    return lambda scalars: scalars.get(name, math.nan)


class ModalImmuneMissing(Lesson):
    """A network that has practised without each of its modalities can do with what is left."""

    name = "modalimmune_missing"
    title = "When a modality goes missing"
    words = (
        "The image says nearly everything here, and a network trained plainly leaves the caption half unheard: without "
        "the image it is right far less often than the caption allows. ModalImmune leaves one modality out at a time "
        "and collapses its features; watch its controller settle on the image, and the score against the missing rate "
        "stay up while the clean one stays. Then start ModDrop, which only leaves out, at random: it gains as much or "
        "more. Aiming at the image buys resistance to noise on it, paid for with noise on the caption; that is the "
        "controller's doing, for with the collapse at 0 all of it stays as it is."
    )
    claim = (
        "The area under accuracy against the share of missing modalities is larger after training with ModalImmune "
        "than after plain training."
    )
    arms = {"modalimmune": _arm("modalimmune"), "plain": _arm(), "moddrop": _arm("moddrop")}
    control = "plain"
    seeds = 5
    scalar = "robustness/area/missing"
    expect = "higher"
    further = {
        "area under accuracy against noise, mean over the modalities": _corrupted,
        "accuracy with all modalities": _last("robustness/clean"),
        "accuracy without the one missed most": _last("robustness/worst"),
        "share kept of the lead over chance, mean over missing rates": _last("robustness/retention/missing"),
    }
    show = ("robustness", "methods", "live")
