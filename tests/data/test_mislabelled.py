"""Wrong labels: as many as asked for, in the training rows of any data set, uniform over the other classes."""

import numpy as np
import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset, mislabelled
from modalscape.engine.errors import InputError
from modalscape.engine.runtime.session import Training
from tests.methods.several import data_file


def dataset(rows: int = 1200, classes: int = 4) -> Dataset:
    split = np.repeat(np.array([0, 1, 2], np.int8), [rows - rows // 5, rows // 10, rows // 10])
    y = np.arange(rows) % classes
    x = {"image": np.zeros((rows, 2), np.float32)}
    return Dataset("some", "Some", x, y, split, tuple(str(c) for c in range(classes)))


def test_the_rate_is_exact_and_in_the_training_rows_alone():
    clean = dataset()
    noisy = mislabelled(clean, 0.25, Rng(0))
    changed = clean.y != noisy.y
    assert changed.sum() == 240 and not changed[clean.split != 0].any()
    assert noisy.x is clean.x and mislabelled(clean, 0.0, Rng(0)) is clean
    assert (clean.y == dataset().y).all()


def test_a_higher_rate_keeps_the_rows_of_a_lower_and_rows_follow_the_seed():
    clean = dataset()
    some, more, other = (mislabelled(clean, *how).y != clean.y for how in ((0.1, Rng(0)), (0.3, Rng(0)), (0.1, Rng(1))))
    assert more[some].all() and (some != other).any()


def test_wrong_labels_are_uniform_over_the_others():
    rows = 60_000
    clean = Dataset("some", "Some", {}, np.zeros(rows, int), np.zeros(rows, np.int8), tuple("abcd"))
    counts = np.bincount(mislabelled(clean, 0.9, Rng(0)).y)
    assert counts[0] == 6000 and np.abs(counts[1:] - 18_000).max() < 4 * np.sqrt(18_000)


@pytest.mark.parametrize("problem", ["digits_captions", "planted", "file"])
def test_a_run_sets_it_for_any_data(problem, tmp_path):
    source = {"data": data_file(tmp_path)} if problem == "file" else {"problem": problem}
    clean, noisy = (
        Training(validated(RunConfig(**source, device="cpu", settings={"label_noise": rate}), catalog())).problem.rows
        for rate in (0.0, 0.3)
    )
    rows = len(clean["train"])
    assert int((clean["train"].y != noisy["train"].y).sum()) == round(0.3 * rows)
    assert all(torch.equal(clean[part].y, noisy[part].y) for part in ("val", "test"))


def test_real_targets_are_refused(tmp_path):
    config = RunConfig(data=data_file(tmp_path, real=True), device="cpu", settings={"label_noise": 0.2})
    with pytest.raises(InputError, match="label_noise is 0.2, but the labels of data are real numbers; set it to 0"):
        Training(validated(config, catalog()))
