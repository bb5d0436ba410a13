"""The robustness probe scores what it says, with the same numbers at every level, and leaves no trace."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from modalscape.engine.core.display import Display
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities import robustness
from modalscape.engine.probes.robustness import Numbers, Robustness, noisy
from tests import tiny
from tests.probes.snapshots import measured, snapshot
from tests.tiny import problem

NAMES = tuple(tiny.WIDTHS)


def found(params=None, **settings):
    snap = snapshot(problem(heads=False, noise=0.0, **settings), steps=150)
    return snap, measured(Robustness(params or Robustness.Params(levels=5, draws=3)), snap)


@torch.no_grad()
def accuracy(snap, change) -> float:
    batch = next(iter(snap.problem.held_out("val")))
    changed = change(batch)
    logits = snap.problem.objectives(snap.theta, snap.problem.encode(snap.theta, changed), batch)[1]["fused"]
    return (logits.argmax(1) == batch.y).double().mean().item()


@pytest.mark.parametrize("fill", ["zero", "neutral", "noise", "shuffle"])
@pytest.mark.parametrize("corruption", ["noise", "drop", "shuffle"])
def test_every_choice_starts_from_the_clean_score(fill, corruption):
    snap, records = found(Robustness.Params(levels=4, draws=2, fill=fill, corruption=corruption))
    clean = accuracy(snap, lambda batch: batch)
    assert records["robustness/clean"].value == pytest.approx(clean)
    assert records["robustness/missing"].y[0] == pytest.approx(clean)
    assert records["robustness/missing"].x[0] == 0.0
    for m in NAMES:
        assert records[f"robustness/severity/{m}"].y[0] == pytest.approx(clean)


def test_subsets_are_the_scores_with_neutral_inputs():
    snap, records = found()
    bars = records["robustness/subsets"]
    values = dict(zip(bars.labels.tolist(), bars.values.tolist(), strict=True))
    assert set(values) == {"image", "text", "image+text"}
    for kept, gone in (NAMES, NAMES[::-1]):
        wanted = accuracy(snap, lambda batch, gone=gone: snap.problem.without(batch, gone))
        assert values[kept] == pytest.approx(wanted)
        assert records[f"robustness/without/{gone}"].value == pytest.approx(wanted)
        share = records[f"robustness/immunity/{gone}"].value
        assert share == pytest.approx(wanted / values["image+text"])
    assert records["robustness/worst"].value == min(values["image"], values["text"])
    assert records["robustness/incomplete"].value == pytest.approx((values["image"] + values["text"]) / 2)
    assert records["robustness/worst_subset"].value == records["robustness/worst"].value
    assert bars.display.levels == {"chance": records["robustness/chance"].value}


def test_the_missing_rate_is_the_realised_one():
    _, records = found()
    curve = records["robustness/missing"]
    assert curve.x[-1] == pytest.approx(0.5)
    assert all(a <= b for a, b in pairwise(curve.x))
    assert curve.x[2] == pytest.approx(robustness.expected_rate(0.5, 2, "keep"), abs=0.1)
    assert curve.error.min() >= 0
    _, none = found(Robustness.Params(levels=5, draws=3, rule="none"))
    assert none["robustness/missing"].x[-1] == 1.0


def test_summaries_belong_to_their_curves():
    _, records = found()
    chance = records["robustness/chance"].value
    for name in ("missing", *NAMES):
        curve = records["robustness/missing" if name == "missing" else f"robustness/severity/{name}"]
        x, y = curve.x.tolist(), curve.y.tolist()
        assert records[f"robustness/area/{name}"].value == pytest.approx(robustness.area(x, y))
        assert records[f"robustness/retention/{name}"].value == pytest.approx(robustness.mean_retention(y, chance))
        assert records[f"robustness/half/{name}"].value == pytest.approx(robustness.half_level(x, y, chance))
        assert curve.display.levels == {"chance": chance}
        assert "one standard error" in curve.mode
        assert curve.n == 40


def test_the_raw_area_is_that_of_published_tables():
    _, records = found()
    curve = records["robustness/missing"]
    raw = records["robustness/raw_area/missing"].value
    assert raw == pytest.approx(np.trapezoid(curve.y, curve.x))
    assert raw == pytest.approx(records["robustness/area/missing"].value * curve.x[-1])


def crossed(snap, **knobs):
    return measured(Robustness(Robustness.Params(levels=3, **knobs)), snap)["robustness/rates/image+text"]


def test_the_corners_of_two_missing_rates_are_the_subsets():
    snap, records = found()
    score = dict(zip(records["robustness/subsets"].labels, records["robustness/subsets"].values, strict=True))
    map_ = records["robustness/rates/image+text"]
    gone = accuracy(snap, lambda batch: snap.problem.without(snap.problem.without(batch, "image"), "text"))
    corners = map_.values[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [score["image+text"], score["image"], score["text"], pytest.approx(gone)]
    assert map_.values[0, 0] == records["robustness/clean"].value
    assert map_.values[-1, 0] == records["robustness/without/image"].value
    assert (
        map_.n == 40 and "3 masks" in map_.mode and map_.display.levels == records["robustness/subsets"].display.levels
    )


def test_the_rates_are_the_realised_ones_and_rise():
    map_ = crossed(found()[0], grid=9, draws=2)
    for rates in (map_.rows.astype(float), map_.cols.astype(float)):
        assert rates[0] == 0 and rates[-1] == 1 and (np.diff(rates) >= 0).all()
        assert np.allclose(rates, np.linspace(0, 1, 9), atol=5 * 0.5 / 80**0.5)
        assert np.allclose(rates * 80, (rates * 80).round(), atol=80 * 5e-4), "a count of 2 masks of 40 rows"
    assert map_.rows.tolist() != map_.cols.tolist(), "each modality has masks of its own"


def test_every_cell_is_the_score_of_features_blanked_by_hand():
    snap, draws = found()[0], 2
    map_ = crossed(snap, grid=4, draws=draws)
    batch = next(iter(snap.problem.held_out("val")))
    batch = batch.rows(torch.randperm(40, generator=snap.rng.generator("robustness/rows")))
    blank = batch
    for m in NAMES:
        blank = snap.problem.without(blank, m)
    clean, blank = (snap.problem.encode(snap.theta, rows) for rows in (batch, blank))
    hits = []
    for draw in range(draws):
        features = {}
        for m, level in zip(NAMES, (1 / 3, 2 / 3), strict=True):
            numbers = torch.rand(40, generator=snap.rng.generator(f"robustness/rate/{m}", draw))
            features[m] = torch.where((numbers < level)[:, None], blank[m], clean[m])
        logits = snap.problem.objectives(snap.theta, features, batch)[1]["fused"]
        hits.append((logits.argmax(1) == batch.y).double().mean().item())
    assert map_.values[1, 2] == pytest.approx(np.mean(hits))


def test_two_networks_of_one_seed_meet_the_same_masks():
    one, other = (snapshot(problem(heads=heads, noise=0.0), steps=steps) for heads, steps in ((False, 20), (True, 3)))
    maps = [crossed(snap, draws=2) for snap in (one, other)]
    assert np.array_equal(maps[0].rows, maps[1].rows) and np.array_equal(maps[0].cols, maps[1].cols)
    assert not np.array_equal(maps[0].values, maps[1].values)
    third = crossed(replace(one, rng=Rng(5)), draws=2)
    assert not np.array_equal(maps[0].rows, third.rows)


def test_with_many_masks_the_map_is_bilinear_between_its_corners():
    map_ = crossed(found()[0], grid=3, draws=100)
    middle = map_.values[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert map_.values[1, 1] == pytest.approx(middle, abs=5 * 0.5 / (100 * 40) ** 0.5)


def test_the_pair_is_named_or_refused_and_may_be_left_out():
    snap = found()[0]
    assert "robustness/rates/image+text" in measured(Robustness(Robustness.Params(levels=3, pair="text, image")), snap)
    assert not [n for n in measured(Robustness(Robustness.Params(levels=3, grid=0)), snap) if "rates" in n]
    for pair in ("image", "image,sound", "image,image"):
        with pytest.raises(InputError, match="give two of image, text with a comma"):
            measured(Robustness(Robustness.Params(pair=pair)), snap)


@torch.no_grad()
def late_fusion(snap, modality: str, levels: list[float]) -> list[float]:
    """Accuracy of the heads' mean log-probabilities as noise on one modality grows, from the definition."""
    batch = next(iter(snap.problem.held_out("val")))
    batch = batch.rows(torch.randperm(len(batch), generator=snap.rng.generator("robustness/rows")))
    noise, curve = snap.rng.normal(f"robustness/noise/{modality}", 0, batch.x[modality]), []
    for level in levels:
        x = batch.x | {modality: batch.x[modality] + 3.0 * level * noise}
        logits = snap.problem.objectives(snap.theta, snap.problem.encode(snap.theta, Batch(x, batch.y)), batch)[1]
        votes = sum(logits[m].log_softmax(-1) for m in NAMES)
        curve.append((votes.argmax(1) == batch.y).double().mean().item())
    return curve


def test_fusion_is_measured_against_late_fusion_of_the_heads():
    snap = snapshot(problem(heads=True, noise=0.0), steps=150)
    records = measured(Robustness(Robustness.Params(levels=5, draws=2)), snap)
    for m in NAMES:
        own = records[f"robustness/severity/{m}"].y.tolist()
        late = late_fusion(snap, m, [0.0, 0.25, 0.5, 0.75, 1.0])
        wanted = robustness.effective_robustness(own, late)
        assert records[f"robustness/effective/{m}"].value == pytest.approx(wanted)
        wanted = sum(1 - p for p in own) / sum(1 - p for p in late)
        assert records[f"robustness/corruption_error/{m}"].value == pytest.approx(wanted)
    _, without = found()
    assert not [name for name in without if "effective" in name or "corruption_error" in name]


def test_the_worst_subset_need_not_be_one_left_out():
    snap = snapshot(problem(heads=False), steps=1)
    probe, names = Robustness(), ("a", "b", "c")
    scores = {"abc": 0.9, "ab": 0.8, "ac": 0.7, "bc": 0.6, "a": 0.5, "b": 0.4, "c": 0.2}

    class Scorer:
        name, chance, display = "accuracy", 0.1, Display()

        def hits(self, features):
            share = scores["".join(m for m in names if features[m])]
            return torch.tensor([1.0] * round(10 * share) + [0.0] * round(10 - 10 * share))

    class Three:
        modalities = names

    batch, there, gone = range(10), dict.fromkeys(names, True), dict.fromkeys(names, False)
    three = snap.__class__(**(vars(snap) | {"problem": Three()}))
    records = {r.name: r for r in probe._subsets(three, batch, there, gone, Scorer())}
    assert records["robustness/worst"].value == pytest.approx(0.6)
    assert records["robustness/worst_subset"].value == pytest.approx(0.2)
    assert "only c there" in records["robustness/worst_subset"].mode
    assert records["robustness/incomplete"].value == pytest.approx(3.2 / 6)
    assert records["robustness/dominance_gap"].value == pytest.approx(0.2)


def test_severity_equals_noise_added_by_hand():
    snap, records = found()
    rows = torch.randperm(40, generator=snap.rng.generator("robustness/rows"))
    whole = next(iter(snap.problem.held_out("val")))
    x = whole.x["image"][rows]
    noise = snap.rng.normal("robustness/noise/image", 0, x)
    batch = Batch({"image": x + 0.5 * 3.0 * noise, "text": whole.x["text"][rows]}, whole.y[rows])
    with torch.no_grad():
        logits = snap.problem.objectives(snap.theta, snap.problem.encode(snap.theta, batch), batch)[1]["fused"]
    wanted = (logits.argmax(1) == batch.y).double().mean().item()
    assert records["robustness/severity/image"].y[2] == pytest.approx(wanted)


def test_strong_noise_costs_score():
    _, records = found(Robustness.Params(levels=5, reach=20.0))
    curves = [records[f"robustness/severity/{m}"].y for m in NAMES]
    assert min(curve[-1] for curve in curves) < curves[0][0] - 0.1


def test_numbers_do_not_depend_on_the_step():
    snap, records = found()
    later = measured(Robustness(Robustness.Params(levels=5, draws=3)), snap.__class__(**(vars(snap) | {"step": 999})))
    assert np.array_equal(records["robustness/missing"].y, later["robustness/missing"].y)


def test_tokens_are_exchanged_and_padding_stays():
    value = torch.tensor([[3, 4, 0, 0], [5, 6, 7, 0]])
    draw = torch.Generator().manual_seed(0)
    numbers = Numbers(torch.randn(2, 4, generator=draw), torch.rand(2, 4, generator=draw), torch.rand(2))
    assert torch.equal(noisy(value, 0.0, 3.0, numbers), value)
    after = noisy(value, 1.0, 3.0, numbers)
    assert (after[value == 0] == 0).all()
    assert after.dtype == value.dtype
    assert set(after.flatten().tolist()) <= set(value.flatten().tolist())


def test_real_targets_are_scored_by_explained_variance():
    case = problem(heads=False)
    case.rows = {part: Batch(rows.x, rows.y.double()) for part, rows in case.rows.items()}
    snap = snapshot(problem(heads=False), steps=3)
    records = measured(
        Robustness(Robustness.Params(levels=3)), snap.__class__(**(vars(snap) | {"problem": _Real(case)}))
    )
    assert records["robustness/chance"].value == 0.0
    assert records["robustness/missing"].display.levels == {"mean": 0.0}
    assert records["robustness/clean"].value < 1.0


class _Real:
    """The tiny problem as a regression on its first logit."""

    def __init__(self, case):
        self._case = case

    def __getattr__(self, name):
        return getattr(self._case, name)

    def objectives(self, theta, features, batch):
        return {}, {"fused": self._case.logits(theta, features)["fused"][:, :1]}


def test_one_modality_or_no_fusion_gives_no_records():
    snap = snapshot(problem(heads=False), steps=3)

    class Unfused(_Real):
        def objectives(self, theta, features, batch):
            return {}, {}

    assert not measured(Robustness(), snap.__class__(**(vars(snap) | {"problem": Unfused(snap.problem)})))


def test_the_score_of_one_row_has_no_known_error():
    snap = snapshot(problem(heads=False), steps=1)
    snap.problem.rows = snap.problem.rows | {"val": snap.problem.rows["val"].rows(slice(0, 1))}
    records = {r.name: r for r in Robustness(Robustness.Params(levels=3, draws=2)).measure(snap)}
    scored = [records[f"robustness/{name}"] for name in ("subsets", "missing", "severity/image", "clean", "worst")]
    assert all(record.n == 1 and record.error is None for record in scored)
