"""What modalities add, against the formulas written out and their identities."""

import itertools
import math

import pytest
import torch

from modalscape.engine.maths.modalities import contribution
from modalscape.engine.reports import contribution as reported


def subsets(names):
    return [frozenset(s) for size in range(len(names) + 1) for s in itertools.combinations(names, size)]


def drawn(names, rows=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {s: torch.randint(2, (rows,), generator=draw).double() for s in subsets(names)}


def test_the_valuation_of_two_is_that_of_wei_et_al():
    for a, v, both in itertools.product((0.0, 1.0), repeat=3):
        right = {s: torch.tensor([hit]) for s, hit in zip(subsets("av"), (1.0, a, v, both), strict=True)}
        found = contribution.valuation(right)
        assert found["a"].item() == (a + 2 * both - v) / 2 and found["v"].item() == (v + 2 * both - a) / 2
        assert found["a"].item() in (-0.5, 0, 0.5, 1, 1.5)
        assert found["a"] + found["v"] == 2 * both


def test_valuations_of_three_add_up_to_three_where_all_are_right():
    right = drawn("abc")
    total = sum(contribution.valuation(right).values())
    torch.testing.assert_close(total, 3 * right[frozenset("abc")])


def test_utilisation_is_what_is_lost_without_a_modality():
    value = {frozenset(): 0.1, frozenset("a"): 0.6, frozenset("b"): 0.3, frozenset("ab"): 0.9}
    found = contribution.utilisation(value)
    assert found["a"] == pytest.approx((0.9 - 0.3) / 0.9) and found["b"] == pytest.approx((0.9 - 0.6) / 0.9)
    assert math.isnan(contribution.utilisation(value | {frozenset("ab"): 0.0})["a"])


def test_unevenness_is_free_of_scale_and_nan_for_nothing():
    assert contribution.imbalance_of({"a": 3.0, "b": 1.0}) == contribution.imbalance_of({"a": 0.75, "b": 0.25}) == 0.5
    assert contribution.imbalance_of({"a": 0.3, "b": 0.3}) == 0 and math.isnan(contribution.imbalance_of({"a": 0.0}))


@pytest.mark.parametrize("names", ["av", "abc"])
def test_records_agree_with_each_other(names):
    right = drawn(names)
    records = {r.name: r for r in reported.about("x", tuple(names), right, "by hand")}
    accuracy = {s: hits.mean().item() for s, hits in right.items()}
    everything = frozenset(names)
    bars = records["x/shapley"]
    assert bars.labels.tolist() == list(names)
    assert bars.values.sum() == pytest.approx(accuracy[everything] - accuracy[frozenset()])
    for i, m in enumerate(names):
        share = records[f"x/shapley_share/{m}"]
        assert share.value == bars.values[i] and share.error == bars.error[i]
        used = (accuracy[everything] - accuracy[everything - {m}]) / accuracy[everything]
        assert records[f"x/utilisation/{m}"].value == pytest.approx(used)
        assert records[f"x/valuation/{m}"].n == 40 and "by hand" in records[f"x/valuation/{m}"].mode
    assert ("x/valuations" in records) == (len(names) == 2)
    if len(names) == 2:
        table = records["x/valuations"]
        assert table.values.sum(1) == pytest.approx([1, 1])
        means = table.values @ [float(c) for c in table.cols]
        assert means == pytest.approx([records[f"x/valuation/{m}"].value for m in names])


def test_agms_strength_is_the_lead_in_cross_entropy_of_responses_that_sum_to_the_logits():
    draw = torch.Generator().manual_seed(0)
    both, a, v = (torch.randn(7, 4, dtype=torch.float64, generator=draw) for _ in range(3))
    y = torch.randint(4, (7,), generator=draw)
    logits = {
        frozenset("av"): both,
        frozenset("a"): a,
        frozenset("v"): v,
        frozenset(): 9 * both,
    }  # without any, AGM has 0
    found = {r.name: r.value for r in reported.strengths("imbalance", ["a", "v"], logits, y, "how")}
    own, other = (
        torch.nn.functional.cross_entropy((both - second + first) / 2, y) for first, second in ((a, v), (v, a))
    )
    assert found["imbalance/agm_ratio/a"] == pytest.approx(math.exp(other - own))
    assert found["imbalance/agm_ratio/a"] * found["imbalance/agm_ratio/v"] == pytest.approx(1)
