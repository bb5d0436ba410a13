"""Objectives against loops, sorting and numbers known on paper."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modalscape.engine.core.objectives import build
from modalscape.engine.data.dataset import Dataset
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features.contrastive import info_nce, normalised, recall_at


def settings(**changes):
    usual = {"objective": "auto", "unimodal": "none", "temperature": 0.07, "normalise": "loss"}
    return SimpleNamespace(**(usual | changes))


def dataset(y, modalities=("a", "b")):
    return Dataset(
        "toy", "Toy", {m: np.zeros((len(y), 2), np.float32) for m in modalities}, y, np.zeros(len(y), np.int8)
    )


CLASSES = dataset(np.array([0, 2, 1, 2]))
TARGETS = dataset(np.array([0.5, -1.0, 2.0, 0.0], np.float32))


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_info_nce_is_the_loop():
    a, b, temperature = draws(6, 4), draws(6, 4, seed=1), 0.3
    total = 0.0
    for q, k in ((a, b), (b, a)):
        for i in range(6):
            logits = [float(q[i] @ k[j] / (q[i].norm() * k[j].norm())) / temperature for j in range(6)]
            total -= logits[i] - math.log(sum(map(math.exp, logits)))
    assert abs(float(info_nce(a, b, temperature)) - total / 12) < 1e-10


def test_info_nce_of_collapsed_features_is_the_entropy_of_guessing():
    same = torch.ones(8, 3, dtype=torch.float64)
    assert float(info_nce(same, same, 0.07)) == pytest.approx(math.log(8), abs=1e-12)


def test_info_nce_is_symmetric_and_ignores_length():
    a, b = draws(6, 4), draws(6, 4, seed=1)
    assert float(info_nce(a, b, 0.1)) == pytest.approx(float(info_nce(b, a, 0.1)), abs=1e-12)
    assert float(info_nce(3.0 * a, 0.1 * b, 0.1)) == pytest.approx(float(info_nce(a, b, 0.1)), abs=1e-8)


def test_features_of_length_zero_have_a_finite_gradient():
    a = torch.zeros(3, 4, requires_grad=True)
    info_nce(a, torch.randn(3, 4), 0.07).backward()
    assert bool(torch.isfinite(a.grad).all()) and float(normalised(torch.zeros(4)).norm()) == 0.0


@pytest.mark.parametrize("rows", [7, 20, 1024])
def test_recall_is_what_sorting_gives(rows):
    a, b = draws(20, 3), draws(20, 3) + 2.0 * draws(20, 3, seed=1)
    similarity = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    order = similarity.argsort(1, descending=True)
    for k, got in zip((1, 3, 10), recall_at(a, b, (1, 3, 10), rows), strict=True):
        hits = [i in order[i, :k].tolist() for i in range(20)]
        assert 0 < sum(hits) < 20
        assert float(got) == pytest.approx(sum(hits) / 20, abs=1e-12)


def test_ties_count_as_a_random_order_would():
    a = torch.eye(4, dtype=torch.float64)
    b = a[[0, 0, 2, 3]]
    assert recall_at(a, b, (1, 2)).tolist() == pytest.approx([(1 / 2 + 1 / 4 + 1 + 1) / 4, (1 + 2 / 4 + 1 + 1) / 4])
    collapsed = torch.ones(10, 3)
    assert recall_at(collapsed, collapsed, (1, 5, 10)).tolist() == pytest.approx([0.1, 0.5, 1.0])


def test_squared_error_of_classes_is_half_the_distance_to_one_hot():
    objective = build(settings(objective="squared_error"), CLASSES)
    z, y = draws(4, 3), torch.from_numpy(CLASSES.y)
    expected = sum(0.5 * sum((float(z[i, c]) - (c == int(y[i]))) ** 2 for c in range(3)) for i in range(4)) / 4
    assert float(objective.losses({"fused": z}, {}, y)["fused"]) == pytest.approx(expected, abs=1e-12)
    assert objective.score == "accuracy"


def test_squared_error_of_targets_is_half_the_error():
    objective = build(settings(unimodal="heads"), TARGETS)
    z, y = {"fused": draws(4, 1), "a": draws(4, 1, seed=1)}, torch.from_numpy(TARGETS.y)
    losses, scores = objective.losses(z, {}, y), objective.scores(z, {}, y)
    assert list(losses) == ["fused", "a"] and list(scores) == ["error", "error/a"] and objective.score == "error"
    for name, key in (("fused", "error"), ("a", "error/a")):
        mean = float(((z[name][:, 0] - y) ** 2).mean())
        assert float(scores[key]) == pytest.approx(mean) and float(losses[name]) == pytest.approx(mean / 2)


def test_cross_entropy_has_a_row_and_an_accuracy_for_each_of_the_logits():
    objective = build(settings(unimodal="slices"), CLASSES)
    y = torch.from_numpy(CLASSES.y)
    z = {"fused": 9.0 * torch.eye(3)[y], "a": 9.0 * torch.eye(3)[(y + torch.tensor([0, 0, 0, 1])) % 3]}
    losses, scores = objective.losses(z, {}, y), objective.scores(z, {}, y)
    assert list(losses) == ["fused", "a"] and objective.protocol == "slices of the fusion head"
    assert {name: float(value) for name, value in scores.items()} == {"accuracy": 1.0, "accuracy/a": 0.75}
    assert float(losses["fused"]) == pytest.approx(math.log(1 + 2 * math.exp(-9)), abs=1e-6)


def test_info_nce_has_a_row_for_each_pair_and_recalls_both_ways():
    data = dataset(np.array([0, 1, 0, 1]), ("a", "b", "c"))
    objective = build(settings(objective="info_nce"), data)
    features = {name: draws(4, 3, seed=i) for i, name in enumerate("abc")}
    assert list(objective.losses({}, features, None)) == ["a-b", "a-c", "b-c"]
    scores = objective.scores({}, features, None)
    ways = [f"{p}-to-{q}" for p in "abc" for q in "abc" if p != q]
    assert set(scores) == {"accuracy"} | {
        f"recall@{k}{way}" for k in (1, 5, 10) for way in ["", *(f"/{w}" for w in ways)]
    }
    assert float(scores["recall@1"]) == pytest.approx(sum(float(scores[f"recall@1/{way}"]) for way in ways) / 6)
    assert scores["accuracy"] == scores["recall@1"] and objective.score == "recall@1"


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        ({"objective": "hinge"}, CLASSES, "objective must be one of auto"),
        ({"objective": "cross_entropy"}, TARGETS, "choose squared_error"),
        ({"objective": "info_nce"}, dataset(np.array([0, 1]), ("a",)), "two modalities"),
        ({"objective": "info_nce", "unimodal": "heads"}, CLASSES, "unimodal must be none"),
    ],
)
def test_wrong_choices_are_refused_in_one_sentence(changes, data, words):
    with pytest.raises(InputError, match=words):
        build(settings(**changes), data)
