"""A network leans on its strongest modality; take that away, and what the others could have said was never learnt.

Digits with captions, flat inputs, a small network, Adam, 400 steps; or any data file with two modalities or more. What
is compared is the area under accuracy against the realised missing rate, on test rows: ModalImmune tunes itself on the
validation rows. What is missing has the features of the neutral input, in training and in the test. The arm `one at a
time` leaves out the attacked modality and no other: with two modalities it is the first arm over again, so read it on
data of three or more.

*Source*: ModalImmune as reconstructed here, arXiv 2602.16197; ModDrop, arXiv 1501.00102, for omission alone, both at
their defaults. Data and network are ours, chosen on seeds of 100 and up.
"""

from __future__ import annotations

from typing import Any

from modalscape.engine.core.lesson import CORRUPTED, RECONSTRUCTED, Lesson, last

STEPS = 400

_SETTINGS: dict[str, Any] = {
    "digits_captions.inputs": "flat",
    "optimizer.name": "adam",
    "width": 16,
    "hidden": 32,
    "evaluate": 50,
    "robustness.part": "test",
    "robustness.rows": 2000,
    "reconstruction.part": "test",
    "unimodal": "none",
}


def _arm(method: str = "", **knobs: Any) -> dict[str, Any]:
    return {
        "problem": "digits_captions",
        "methods": [method] if method else [],
        "probes": {"robustness": 100, "reconstruction": STEPS},
        "steps": STEPS,
        "device": "cpu",
        "settings": _SETTINGS | {f"{method}.{knob}": value for knob, value in knobs.items()},
    }


class ModalImmuneMissing(Lesson):
    """A network that has practised without each of its modalities can do with what is left."""

    name = "modalimmune_missing"
    title = "When a modality goes missing"
    words = (
        "The image says nearly everything here, and a network trained plainly leaves the caption half unheard: without "
        "the image it is right far less often than the caption allows. ModalImmune leaves one modality out at a time "
        "and collapses its features; watch its controller settle on the image, and the score against the missing rate "
        "stay up while the clean one stays. Then start ModDrop, which only leaves out, at random, and compare. Of "
        "three modalities or more ModalImmune leaves out others beside its aim; the arm `one_at_a_time` does not."
    )
    claim = (
        "The area under accuracy against the share of missing modalities is larger after training with ModalImmune "
        "than after plain training."
    )
    arms = {
        "modalimmune": _arm("modalimmune", fill="neutral"),
        "plain": _arm(),
        "moddrop": _arm("moddrop", fill="neutral"),
        "one_at_a_time": _arm("modalimmune", fill="neutral", others=0.0),
    }
    control = "plain"
    seeds = 5
    scalar = "robustness/area/missing"
    number = "area under accuracy by missing rate"
    expect = "higher"
    further = {
        "area under accuracy against noise, mean over the modalities": CORRUPTED,
        "accuracy with all modalities": last("robustness/clean"),
        "accuracy without the one missed most": last("robustness/worst"),
        "accuracy with the subset that serves worst": last("robustness/worst_subset"),
        "mean accuracy over incomplete subsets": last("robustness/incomplete"),
        "share kept of the lead over chance, mean over missing rates": last("robustness/retention/missing"),
        "R² of features from the other modalities' within classes, mean over the modalities": RECONSTRUCTED,
    }
    show = ("robustness", "methods", "live")
