"""The file convention: what is read, what is made up, and one sentence for every file that cannot be used."""

import json
import pickle

import numpy as np
import pytest

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.npz import carved, read
from modalscape.engine.errors import InputError

N = 60


def good(**changes):
    draw = np.random.default_rng(0)
    arrays = {
        "image": draw.random((N, 1, 4, 4), dtype=np.float32),
        "audio": draw.random((N, 5), dtype=np.float32),
        "labels": np.arange(N) % 3,
        "split": np.repeat([0, 1, 2], N // 3).astype(np.int8),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def saved(folder, **changes):
    path = folder / "set.npz"
    np.savez(path, **good(**changes))
    return path


def described(**content):
    return np.array(json.dumps(content))


def refused(path, *words, split="split"):
    with pytest.raises(InputError) as caught:
        read(path, Rng(0), split)
    text = str(caught.value)
    assert "\n" not in text and text[-1] in ".?", text
    for word in words:
        assert word in text, text


def test_every_numeric_array_with_rows_is_a_modality(tmp_path):
    data = read(saved(tmp_path, speaker=np.arange(N), caption=np.array(["x"] * N)), Rng(0))
    assert data.modalities == ("image", "audio")
    assert (data.kind("image"), data.kind("audio")) == ("image", "vector")
    assert data.classes == 3 and data.class_names == ("0", "1", "2")
    assert data.counts == {"train": 20, "val": 20, "test": 20}


def test_metadata_choose_the_modalities_and_their_order(tmp_path):
    path = saved(
        tmp_path, metadata=described(modalities=["audio", "pitch"], title="Two"), pitch=np.arange(N, dtype=float)
    )
    data = read(path, Rng(0))
    assert data.modalities == ("audio", "pitch") and data.shape("pitch") == (1,) and data.title == "Two"


def test_unlisted_arrays_may_be_anything(tmp_path):
    odd = np.array([{"a": 1}] * 3, object)
    data = read(saved(tmp_path, metadata=described(modalities=["audio"]), odd=odd), Rng(0))
    assert data.modalities == ("audio",)


def test_missing_split_is_stratified_and_follows_the_seed(tmp_path):
    path = saved(tmp_path, split=None)
    first, again, other = (read(path, Rng(seed)).split for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    labels = good()["labels"]
    for part in (1, 2):
        counts = np.bincount(labels[first == part], minlength=3)
        assert counts.sum() == N // 10 and (counts == 2).all()


@pytest.mark.parametrize("absent", [1, 2])
def test_an_absent_part_is_carved_out_of_the_training_rows(absent):
    split = np.where(np.arange(1000) < 500, 0, 3 - absent).astype(np.int8)
    labels = np.arange(1000) % 5
    parts = carved(split, labels, Rng(0))
    taken = parts == absent
    assert taken.sum() == 50 and (split[taken] == 0).all() and (parts[~taken] == split[~taken]).all()
    assert (np.bincount(labels[taken]) == 10).all()


def test_split_chooses_another_array(tmp_path):
    other = np.repeat([2, 0, 1], N // 3).astype(np.int8)
    path = saved(tmp_path, split_speaker=other)
    assert (read(path, Rng(0), "split_speaker").split == other).all()
    refused(path, "split_speakers", "did you mean split_speaker", split="split_speakers")


def test_float_labels_are_targets_and_are_standardised(tmp_path):
    y = np.random.default_rng(1).normal(7.0, 3.0, N)
    data = read(saved(tmp_path, labels=y), Rng(0))
    assert data.regression and data.classes == 1 and data.class_names == ()
    train = data.batches()["train"].y
    assert abs(float(train.mean())) < 1e-6 and abs(float(train.std(correction=0)) - 1.0) < 1e-6


def test_whole_targets_need_the_word_regression(tmp_path):
    y = np.arange(N, dtype=float)
    refused(saved(tmp_path, labels=y), "float64", "regression")
    assert read(
        saved(tmp_path, labels=y, metadata=described(modalities=["audio"], task="regression")), Rng(0)
    ).regression


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[3, 9, 0], [5, 0, 0], [0, 0, 0]] * 20), "tokens"),
        (np.array([[0, 9, 1], [5, 0, 2], [1, 1, 1]] * 20), "vector"),
        (np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]] * 20), "vector"),
        (np.array([[3, 9, 0], [5, 0, 0], [1, 1, 1]] * 20, np.uint8), "vector"),
        (np.array([[3, 200_000, 0], [5, 0, 0], [1, 1, 1]] * 20), "vector"),
        (np.array([[3, -9, 0], [5, 0, 0], [1, 1, 1]] * 20), "vector"),
    ],
    ids=["padded at the ends", "zeros inside", "only 0 and 1", "8 bits", "too large", "negative"],
)
def test_integers_with_padding_at_the_ends_are_tokens(tmp_path, values, kind):
    data = read(saved(tmp_path, text=values), Rng(0))
    assert data.kind("text") == kind
    assert data.x["text"].dtype == (np.int64 if kind == "tokens" else np.float32)
    assert data.vocabularies == ({"text": 10} if kind == "tokens" else {})


def test_metadata_overrule_the_rule_for_tokens(tmp_path):
    padded, holed = np.array([[3, 9, 0]] * N), np.array([[0, 9, 3]] * N)
    about = described(modalities=["padded", "holed"], tokens=["holed"])
    data = read(saved(tmp_path, padded=padded, holed=holed, metadata=about), Rng(0))
    assert (data.kind("padded"), data.kind("holed")) == ("vector", "tokens")


def test_constant_features_become_zero(tmp_path):
    audio = good()["audio"].copy()
    audio[:, 2] = np.where(np.arange(N) < N // 3, 0.1, 5.0)
    parts = read(saved(tmp_path, audio=audio), Rng(0)).batches()
    assert all(bool((parts[part].x["audio"][:, 2] == 0).all()) for part in parts)
    rest = parts["train"].x["audio"][:, [0, 1, 3, 4]]
    assert rest.mean(0).abs().max() < 1e-6 and (rest.std(0, correction=0) - 1).abs().max() < 1e-5


def test_images_are_standardised_by_channel(tmp_path):
    image = np.random.default_rng(0).normal([[[3.0]], [[-1.0]]], 2.0, (N, 2, 4, 4)).astype(np.float32)
    train = read(saved(tmp_path, image=image), Rng(0)).batches()["train"].x["image"]
    assert train.mean((0, 2, 3)).abs().max() < 1e-6
    assert train.mean(0).abs().max() > 0.1


def test_missing_files_and_folders_are_refused(tmp_path):
    refused(tmp_path / "none.npz", "no file", "check the path")
    refused(tmp_path, "is a folder")


def test_files_of_another_sort_are_refused(tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_bytes(b"a,b\n1,2\n")
    refused(path, "not an .npz archive")
    path.write_bytes(pickle.dumps({"labels": 1}))
    refused(path, "not an .npz archive")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path, "single array")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, share):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "damaged or cut short")


def test_a_flipped_byte_is_noticed(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    refused(path, "'image'", "damaged")


BAD = {
    "no labels": ({"labels": None}, ["no array 'labels'"]),
    "no rows": ({"labels": np.zeros(0, int)}, ["no rows"]),
    "one-hot labels": ({"labels": np.eye(N)}, ["one-hot"]),
    "text labels": ({"labels": np.array(["a", "b"] * (N // 2))}, ["class numbers"]),
    "object labels": ({"labels": np.array([0, 1] * (N // 2), object)}, ["Python objects"]),
    "complex labels": ({"labels": np.zeros(N, complex)}, ["complex128"]),
    "negative labels": ({"labels": np.arange(N) % 3 - 1}, ["-1", "from 0"]),
    "float-like labels": ({"labels": (np.arange(N) % 3).astype(float)}, ["store classes as integers"]),
    "labels with NaN": ({"labels": np.where(np.arange(N) == 7, np.nan, 0.5)}, ["not finite", "row 7"]),
    "one class": ({"labels": np.ones(N, int)}, ["two classes"]),
    "constant target": ({"labels": np.full(N, 0.5)}, ["vary"]),
    "labels that are ids": ({"labels": np.arange(N) * 100}, ["number the classes"]),
    "one class in training": ({"labels": (np.arange(N) >= N // 3).astype(int)}, ["training rows", "at least two"]),
    "pickled modality": ({"audio": np.array([[None]] * N, object)}, ["'audio'", "Python objects"]),
    "NaN": ({"audio": np.where(np.arange(5 * N).reshape(N, 5) == 12, np.nan, 1.0)}, ["'audio'", "row 2", "1 values"]),
    "infinity": ({"audio": np.where(np.arange(5 * N).reshape(N, 5) == 12, -np.inf, 1.0)}, ["'audio'", "row 2"]),
    "too large": ({"audio": np.full((N, 2), 1e300)}, ["float32"]),
    "different lengths": ({"audio": np.zeros((N - 1, 5))}, ["'audio'", "59 rows", "60 labels"]),
    "no width": ({"audio": np.zeros((N, 0))}, ["'audio'", "empty"]),
    "five axes": ({"audio": np.zeros((N, 1, 1, 1, 1))}, ["three axes"]),
    "no modalities": ({"image": None, "audio": None}, ["no modality"]),
    "dotted name": ({"a.b": np.zeros((N, 2))}, ["'a.b'", "rename"]),
    "name of a part": ({"shared": np.zeros((N, 2))}, ["'shared'", "rename"]),
    "name of a module's method": ({"type": np.zeros((N, 2))}, ["'type'", "rename"]),
    "metadata that are no JSON": ({"metadata": np.array("{modalities")}, ["no JSON"]),
    "metadata that are a list": ({"metadata": np.array("[1]")}, ["JSON list"]),
    "metadata array": ({"metadata": np.zeros(3)}, ["no JSON"]),
    "modalities no list": ({"metadata": described(modalities="audio")}, ["'audio'", "list"]),
    "no modality listed": ({"metadata": described(modalities=[])}, ["list"]),
    "unknown modality": ({"metadata": described(modalities=["audoi"])}, ["'audoi'", "did you mean audio?"]),
    "labels as modality": ({"metadata": described(modalities=["labels"])}, ["'labels'"]),
    "text as modality": ({"metadata": described(modalities=["w"]), "w": np.array(["x"] * N)}, ["'w'", "real numbers"]),
    "listed, wrong length": ({"metadata": described(modalities=["w"]), "w": np.zeros((3, 2))}, ["'w'", "3 rows"]),
    "listed number": ({"metadata": described(modalities=["w"]), "w": np.array(1.0)}, ["'w'", "1 rows"]),
    "float tokens": ({"metadata": described(modalities=["audio"], tokens=["audio"])}, ["tokens", "float32"]),
    "unknown tokens": ({"metadata": described(modalities=["audio"], tokens=["text"])}, ["'text'", "audio"]),
    "split too short": ({"split": np.zeros(3, int)}, ["'split'", "60 labels"]),
    "split values": ({"split": np.arange(N) % 4}, ["0 (train)"]),
    "text split": ({"split": np.array(["train"] * N)}, ["0 (train)"]),
    "empty training part": ({"split": np.arange(N) % 2 + 1}, ["train part", "no rows"]),
    "too few rows to carve": ({"split": np.where(np.arange(N) < 3, 0, 1)}, ["test part", "no rows"]),
    "few class names": ({"class_names": np.array(["a", "b"])}, ["2 class names for 3"]),
    "class names as objects": ({"class_names": np.array(["a", "b", "c"], object)}, ["'class_names'", "Python objects"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path, case):
    changes, words = BAD[case]
    refused(saved(tmp_path, **changes), str(tmp_path), *words)


def test_real_files_are_read(real_data):
    shapes = {
        "avdigits": {"image": (1, 28, 28), "audio": (1, 32, 32)},
        "wikipedia": {"image": (128,), "text": (10,)},
        "emoji": {"image": (3, 32, 32), "text": (1406,)},
        "mosi": {"text": (100,), "audio": (73,), "video": (100,)},
    }
    for name, wanted in shapes.items():
        data = read(real_data / f"{name}.npz", Rng(0))
        assert {m: data.shape(m) for m in data.modalities} == wanted
        assert not data.vocabularies and len(data.class_names) == data.classes


def test_a_published_split_without_val_gets_one(real_data):
    data = read(real_data / "mosi.npz", Rng(0), "split_official")
    assert data.counts == {"train": 1302, "val": 145, "test": 752}
