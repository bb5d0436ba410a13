"""Digits with captions: what the knobs promise."""

import numpy as np
import pytest

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.digits_captions import DIGITS, Params, digits_captions, vocabulary

CLEAN = {"wrong_caption": 0.0, "missing_caption": 0.0}


def captioned(data):
    """Return the digit that each caption names, -1 where there is none."""
    ids = {vocabulary().index(word) + 1: digit for digit, word in enumerate(DIGITS)}
    return np.array([next((ids[i] for i in row if i in ids), -1) for row in data.x["text"]])


@pytest.fixture(scope="module")
def clean():
    return digits_captions(Params(inputs="raw", **CLEAN), Rng(0))


def test_raw_inputs_are_images_and_tokens(clean):
    assert (clean.kind("image"), clean.kind("text")) == ("image", "tokens")
    assert clean.shape("image") == (1, 8, 8) and clean.counts == {"train": 1200, "val": 297, "test": 300}
    assert clean.x["text"].max() < clean.vocabularies["text"] == len(vocabulary()) + 1


def test_flat_inputs_hold_the_same_as_raw_ones(clean):
    flat = digits_captions(Params(inputs="flat", **CLEAN), Rng(0))
    assert (flat.kind("image"), flat.kind("text")) == ("vector", "vector")
    assert (flat.x["image"].reshape(-1, 1, 8, 8) == clean.x["image"]).all() and (flat.y == clean.y).all()
    for bag, row in zip(flat.x["text"][:200], clean.x["text"][:200], strict=True):
        assert set(np.flatnonzero(bag) + 1) == set(row[row > 0])


def test_clean_captions_name_the_digit(clean):
    assert (captioned(clean) == clean.y).all()


def test_captions_tell_rows_of_one_digit_apart(clean):
    distinct = {tuple(row) for row, y in zip(clean.x["text"], clean.y, strict=True) if y == 3}
    assert len(distinct) > 50


def test_bold_captions_go_with_more_ink(clean):
    ink = clean.x["image"].sum((1, 2, 3))
    bold, thin = ((clean.x["text"] == vocabulary().index(word) + 1).any(1) for word in ("bold", "thin"))
    assert ink[bold].min() > ink[thin].max()


def test_wrong_captions_come_at_their_rate():
    data = digits_captions(Params(inputs="raw", wrong_caption=0.3, missing_caption=0.0), Rng(1))
    wrong = (captioned(data) != data.y).mean()
    assert abs(wrong - 0.3) < 4 * np.sqrt(0.21 / len(data.y))


def test_missing_captions_come_at_their_rate_and_are_empty():
    for inputs in ("raw", "flat"):
        data = digits_captions(Params(inputs=inputs, missing_caption=0.4), Rng(1))
        missing = (data.x["text"] == 0).all(1).mean()
        assert abs(missing - 0.4) < 4 * np.sqrt(0.24 / len(data.y))


def test_a_higher_rate_keeps_the_rows_of_a_lower():
    some, more = (
        digits_captions(Params(inputs="raw", wrong_caption=r, missing_caption=0.0), Rng(0)) for r in (0.1, 0.3)
    )
    assert (captioned(more) != more.y)[captioned(some) != some.y].all()


def test_fewer_rows_leave_val_and_test_as_they_are(clean):
    few = digits_captions(Params(inputs="raw", rows=100, **CLEAN), Rng(0))
    assert few.counts == {"train": 100, "val": 297, "test": 300}
    for part in (1, 2):
        assert (few.x["image"][few.split == part] == clean.x["image"][clean.split == part]).all()


def test_rows_follow_the_seed(clean):
    assert (digits_captions(Params(inputs="raw", **CLEAN), Rng(1)).y != clean.y).any()
