"""What a lesson compares beside its claim is written by the runs of its arms, whatever the data."""

import math

import pytest

from modalscape.engine.catalog import catalog
from modalscape.engine.client.summary import numbers, summary
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.lessons.inforeg_window import InfoRegWindow
from modalscape.engine.lessons.label_noise import LabelNoise
from modalscape.engine.registry import discover
from modalscape.engine.runtime.claims import over_the_run
from modalscape.engine.store.writer import RunReader
from tests.homes import trained

LESSONS = {name: lesson for name, lesson in discover("modalscape.engine.lessons", Lesson).items() if lesson.further}


@pytest.mark.parametrize("name", sorted(LESSONS))
def test_every_further_number_is_found_in_a_run(name, tmp_path):
    lesson = LESSONS[name]
    arm = next(iter(lesson.arms.values()))
    few = {"settings": arm["settings"] | {"probe_rows": 32}, "steps": 4, "probes": dict.fromkeys(arm["probes"], 4)}
    home = tmp_path / "run"
    trained(home, validated(RunConfig.from_json(arm | few), catalog()))
    scalars = numbers(summary(home)) | over_the_run(RunReader(home))
    found = {words: number(scalars) for words, number in lesson.further.items()}
    assert all(math.isfinite(value) for value in found.values()), found
    assert math.isfinite(lesson.statistic(scalars))


def test_the_weakest_modality_counts_whatever_its_name():
    scalars = {"accuracy/val": 0.9, "accuracy/val/image": 0.6, "accuracy/val/sound": 0.4, "accuracy/train": 0.1}
    assert InfoRegWindow.statistic(scalars) == 0.4
    assert {words: number(scalars) for words, number in InfoRegWindow.further.items()} == {
        "fused accuracy": 0.9,
        "accuracy of the strongest modality alone": 0.6,
    }


def test_corruption_is_averaged_over_modalities_and_leaves_missing_ones_out():
    scalars = {"robustness/area/missing": 0.0, "robustness/area/image": 0.5, "robustness/area/text": 0.7}
    by_words = {words.partition(",")[0]: number for words, number in LabelNoise.further.items() if "inputs" in words}
    assert by_words["accuracy on corrupted inputs"](scalars) == pytest.approx(0.6)
