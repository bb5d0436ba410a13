"""Does collapsing a modality's features on purpose make a network robust, or does leaving it out do that alone?

The arms of ModalImmune have the data and network of the lesson *When a modality goes missing*, and differ in the dose λ
of the collapse alone; all leave modalities out in the same way. The paper, by a third party's account, sets the
severity of the collapse against the robustness to missing modalities and finds a correlation of 0.81. Severity is
1 - r/r_0, where r is tr Σ/λ_max of the attacked modality's features and r_0 what it was before the attacks began.

*Source*: ModalImmune as reconstructed here, arXiv 2602.16197. Data and doses are ours.
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
    "modalimmune.fill": "neutral",
}


def _arm(dose: float) -> dict[str, Any]:
    return {
        "problem": "digits_captions",
        "methods": ["modalimmune"],
        "probes": {"robustness": 100, "reconstruction": STEPS},
        "steps": STEPS,
        "device": "cpu",
        "settings": _SETTINGS | {"modalimmune.collapse": dose},
    }


class ModalImmuneCollapse(Lesson):
    """The dose of the collapse, apart from the omission."""

    name = "modalimmune_collapse"
    place = 110
    title = "Does the collapse help?"
    words = (
        "ModalImmune does two things to a modality: it leaves it out, and it collapses its features onto few "
        "directions. These arms leave out in the same way and differ in the dose of the collapse. On the Methods page "
        "watch how far the spectra collapse; on Robustness, whether the score with modalities missing follows."
    )
    claim = (
        "The area under accuracy against the share of missing modalities is larger after training with ModalImmune's "
        "collapse than with its omission alone."
    )
    arms = {
        "collapse": _arm(0.02),
        "omission_alone": _arm(0.0),
        "a_quarter": _arm(0.005),
        "five_times": _arm(0.1),
    }
    control = "omission_alone"
    seeds = 5
    scalar = "robustness/area/missing"
    number = "area under accuracy by missing rate"
    expect = "higher"
    further = {
        "severity of the collapse of the attacked modality": last("modalimmune/severity_attacked"),
        "area under accuracy against noise, mean over the modalities": CORRUPTED,
        "accuracy with all modalities": last("robustness/clean"),
        "R² of features from the other modalities' within classes, mean over the modalities": RECONSTRUCTED,
    }
    show = ("methods", "robustness", "spectra")
