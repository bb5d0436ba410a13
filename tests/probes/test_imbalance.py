"""The imbalance probe against loops over rows and modalities."""

import math
from dataclasses import replace

import pytest
import torch

from modalscape.engine.core.problem import Batch
from modalscape.engine.maths.modalities import imbalance
from modalscape.engine.probes.imbalance import Imbalance
from tests.probes.snapshots import measured, snapshot
from tests.tiny import CrossEntropy, problem


def objectives(snap, batch, theta=None):
    theta = snap.theta if theta is None else theta
    return snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)


def test_scores_are_those_of_evaluate_and_name_their_protocol():
    snap = snapshot(problem(heads=False))
    values, records = snap.problem.evaluate(snap.theta), measured(Imbalance(), snap)
    for modality in snap.problem.modalities:
        record = records[f"imbalance/accuracy/{modality}"]
        score = values[f"accuracy/val/{modality}"]
        assert record.value == pytest.approx(score) and snap.problem.protocol in record.mode and record.n == 40
        assert record.error == pytest.approx((score * (1 - score) / 39) ** 0.5)
        assert record.display.levels["chance"] == records["imbalance/chance"].value
    gap = abs(values["accuracy/val/image"] - values["accuracy/val/text"])
    assert records["imbalance/gap"].value == pytest.approx(gap)
    (batch,) = snap.problem.held_out("val")
    assert records["imbalance/chance"].value == pytest.approx(batch.y.bincount().max().item() / 40)


def test_every_protocol_scores_as_it_says():
    snap = snapshot()
    # Validation rows that lie elsewhere, so that it matters whose mean stands for a modality.
    rows = snap.problem.rows["val"]
    snap.problem.rows["val"] = Batch({m: 3 * x - 2 for m, x in rows.x.items()}, rows.y)
    (val,), train = snap.problem.held_out("val"), snap.problem.probe_batch()
    records = measured(Imbalance(), snap)
    features, known = (snap.problem.encode(snap.theta, batch) for batch in (val, train))

    def fused(features, y=val.y):
        return snap.problem.objectives(snap.theta, features, Batch({}, y))[1]["fused"]

    for m, other in (("image", "text"), ("text", "image")):
        h = features[m]
        nearest = torch.stack([known[m][train.y == c].mean(0) for c in range(3)])
        hot = torch.eye(3, dtype=torch.float64)[train.y]
        expected = {
            "own": objectives(snap, val)[1][m],
            "inputs": objectives(snap, zeroed(val, other))[1]["fused"],
            "zeros": fused({m: h, other: torch.zeros_like(h)}),
            "means": fused({m: h, other: known[other].mean(0).expand_as(h)}),
            "linear": imbalance.ridge(known[m], train.y, hot.shape[1], h),
            "prototypes": -torch.stack([(h - p).norm(dim=1) for p in nearest], 1),
        }
        for key, z in expected.items():
            record = records[f"imbalance/unimodal/{key}/{m}"]
            assert record.value == pytest.approx((z.argmax(1) == val.y).double().mean().item()), key
        table = records["imbalance/protocols"]
        column = table.values[:, table.cols.tolist().index(m)]
        assert column.tolist() == [records[f"imbalance/unimodal/{key}/{m}"].value for key in expected]
        own = imbalance.similarity(h, nearest, torch.ones(3, dtype=torch.bool)).softmax(1)
        expected["prototypes"] = own[range(40), val.y].sum().item()
        features[f"score {m}"] = expected["prototypes"]
    ratio = records["imbalance/prototype_ratio/image"].value
    assert ratio == pytest.approx(features["score image"] / features["score text"])


@pytest.mark.parametrize("heads", [True, False])
def test_ogm_ratio_is_the_ratio_of_true_class_scores(heads):
    snap = snapshot(problem(heads=heads))
    batch, scores = snap.problem.probe_batch(), {}
    for modality, other in (("image", "text"), ("text", "image")):
        logits = objectives(snap, batch)[1][modality] if heads else objectives(snap, zeroed(batch, other))[1]["fused"]
        scores[modality] = sum(z.softmax(0)[y].item() for z, y in zip(logits, batch.y, strict=True))
    records = measured(Imbalance(), snap)
    ratio = records["imbalance/ogm_ratio/image"]
    assert ratio.value == pytest.approx(scores["image"] / scores["text"])
    assert records["imbalance/ogm_ratio/text"].value == pytest.approx(1 / ratio.value)
    assert ("zero" in ratio.mode) or heads


def zeroed(batch: Batch, modality: str) -> Batch:
    return Batch(batch.x | {modality: torch.zeros_like(batch.x[modality])}, batch.y)


def test_gradient_norms_are_those_of_each_encoder():
    snap = snapshot()
    batch = snap.problem.probe_batch()
    grad = torch.func.grad(lambda theta: snap.problem.loss(theta, batch))(snap.theta)
    norms = {m: grad[snap.problem.layout.mask(m).bool()].norm().item() for m in snap.problem.modalities}
    records = measured(Imbalance(), snap)
    assert records["imbalance/grad_norm"].values.tolist() == pytest.approx(list(norms.values()))
    assert records["imbalance/grad_norm_ratio"].value == pytest.approx(math.log(norms["image"] / norms["text"]))


def test_fisher_trace_is_the_mean_over_single_rows():
    snap = snapshot()
    batch = snap.problem.probe_batch()
    squares = {m: [] for m in snap.problem.modalities}
    for i in range(20):
        row = batch.rows(slice(i, i + 1))
        grad = torch.func.grad(lambda theta, row=row: objectives(snap, row, theta)[0]["fused"])(snap.theta)
        for modality, values in squares.items():
            values.append(grad[snap.problem.layout.mask(modality).bool()].square().sum().item())
    records = measured(Imbalance(Imbalance.Params(rows=20)), snap)
    for modality, values in squares.items():
        record = records[f"imbalance/fisher_trace/{modality}"]
        assert record.value == pytest.approx(sum(values) / 20) and record.n == 20 and "single" in record.mode
        assert record.error == pytest.approx((torch.tensor(values).std() / 20**0.5).item(), rel=1e-5)
    assert records["imbalance/fisher_share"].values.sum() == pytest.approx(1)


def test_shapley_shares_add_up_to_what_inputs_bring():
    snap = snapshot()
    (batch,) = snap.problem.held_out("val")
    nothing = zeroed(zeroed(batch, "image"), "text")
    gain = [(objectives(snap, b)[1]["fused"].argmax(1) == batch.y).double().mean().item() for b in (batch, nothing)]
    bars = measured(Imbalance(), snap)["imbalance/shapley"]
    assert bars.values.sum() == pytest.approx(gain[0] - gain[1]) and bars.labels.tolist() == ["image", "text"]
    assert "imbalance/shapley" not in measured(Imbalance(Imbalance.Params(shapley=False)), snap)


class Contrast(CrossEntropy):
    """A loss of pairs of rows: of a single row it is zero, and there are no classes."""

    score = "recall@1"

    def losses(self, logits, features, y):
        table = features["image"] @ features["text"].T
        return {"image-text": torch.nn.functional.cross_entropy(table, torch.arange(len(table)))}

    def scores(self, logits, features, y):
        return {"recall@1": (features["image"] @ features["text"].T).argmax(1).double().mean()}


def test_a_contrastive_loss_has_its_fisher_trace_from_batches():
    tiny = problem()
    tiny.objective = Contrast()
    snap = snapshot(tiny)
    records = measured(Imbalance(Imbalance.Params(rows=32)), snap)
    record = records["imbalance/fisher_trace/image"]
    grads = []
    for piece in snap.problem.probe_batch().chunks(4):
        grads.append(torch.func.grad(lambda theta, b=piece: snap.problem.loss(theta, b))(snap.theta))
    rows = torch.stack(grads)[:, snap.problem.layout.mask("image").bool()]
    assert record.value == pytest.approx(rows.square().sum(1).mean().item()) and "mini-batches of 4" in record.mode
    assert not any(name.startswith(("imbalance/ogm_ratio", "imbalance/shapley")) for name in records)


def test_fisher_traces_of_drawn_labels_are_those_of_a_loop():
    snap = snapshot()
    batch = snap.problem.probe_batch().rows(slice(0, 16))
    records = measured(Imbalance(Imbalance.Params(rows=16)), snap)
    p = objectives(snap, batch)[1]["fused"].softmax(1)
    generator = snap.rng.generator("imbalance/labels", snap.step)
    labels, total = torch.multinomial(p, 1, generator=generator)[:, 0], 0.0
    for i in range(16):
        row = Batch({m: x[i : i + 1] for m, x in batch.x.items()}, labels[i : i + 1])
        grad = torch.func.grad(lambda theta, row=row: objectives(snap, row, theta)[0]["fused"])(snap.theta)
        total += grad[snap.problem.layout.mask("text").bool()].square().sum().item()
    assert records["imbalance/fisher_model_trace/text"].value == pytest.approx(total / 16)
    without = measured(Imbalance(Imbalance.Params(rows=16, model=False)), snap)
    assert not any("fisher_model" in name for name in without)


def test_batch_gradients_are_smaller_than_those_of_rows():
    snap = snapshot()
    records = measured(Imbalance(Imbalance.Params(rows=32)), snap)
    squares = []
    for piece in snap.problem.probe_batch().chunks(16):
        grad = torch.func.grad(lambda theta, b=piece: objectives(snap, b, theta)[0]["fused"])(snap.theta)
        squares.append(grad[snap.problem.layout.mask("image").bool()].square().sum().item())
    found = records["imbalance/fisher_batches/image"].value
    assert found == pytest.approx(sum(squares) / 2) and found < records["imbalance/fisher_trace/image"].value


def test_weights_move_away_from_the_first_ones():
    snap = snapshot(steps=30)
    records, layout = measured(Imbalance(), snap), snap.problem.layout
    for m in snap.problem.modalities:
        where = layout.mask(m).bool()
        size, moved = snap.theta[where].norm(), snap.view.applied_update[where].norm()
        drift = (snap.theta - snap.problem.init())[where].norm()
        assert records[f"imbalance/drift/{m}"].value == pytest.approx(drift.item())
        assert records[f"imbalance/relative_update/{m}"].value == pytest.approx((moved / size).item())
        grad = records["imbalance/grad_norm"].values[list(snap.problem.modalities).index(m)]
        assert records[f"imbalance/learning_speed/{m}"].value == pytest.approx((grad / size.item()) ** 2)
    start = measured(Imbalance(), snapshot(steps=0))
    assert start["imbalance/drift/image"].value == 0 and "imbalance/relative_update/image" not in start


def test_overfitting_is_taken_against_the_first_weights():
    snap = snapshot(steps=80)
    records, losses = measured(Imbalance(), snap), []
    (val,) = snap.problem.held_out("val")
    for theta in (snap.problem.init(), snap.theta):
        losses.append([objectives(snap, b, theta)[0]["image"].item() for b in (snap.problem.probe_batch(), val)])
    before, after = losses
    assert records["imbalance/overfitting/image"].value == pytest.approx(after[1] - after[0])
    growth = (after[1] - after[0]) - (before[1] - before[0])
    ratio = records["imbalance/overfitting_ratio/image"].value
    assert ratio == pytest.approx(abs(growth / (before[1] - after[1])))
    off = measured(Imbalance(Imbalance.Params(overfitting=False)), snap)
    assert not any("overfitting" in name for name in off)


def test_a_regression_has_errors_but_no_accuracies():
    case = problem(heads=False)
    case.rows = {part: Batch(rows.x, rows.y.double()) for part, rows in case.rows.items()}
    case.probe_rows = Batch(case.probe_rows.x, case.probe_rows.y.double())
    case.objective = Real()
    snap = replace(snapshot(problem(heads=False), steps=3), problem=case)
    records = measured(Imbalance(), snap)
    (val,) = case.held_out("val")
    z = objectives(snap, zeroed(val, "text"))[1]["fused"][:, 0]
    assert records["imbalance/error/image"].value == pytest.approx((z - val.y).square().mean().item())
    assert "imbalance/fisher_trace/image" in records
    assert not any(key in name for name in records for key in ("chance", "ogm", "unimodal", "shapley", "model"))


class Real(CrossEntropy):
    """Squared error of the first logit."""

    score = "error"

    def losses(self, logits, features, y):
        return {"fused": 0.5 * (logits["fused"][:, 0] - y).square().mean()}


@pytest.mark.parametrize("few", ["val", "probe"])
def test_a_single_row_is_measured_without_an_error(few):
    snap = snapshot(steps=3)
    case = snap.problem
    if few == "val":
        case.rows = case.rows | {"val": case.rows["val"].rows(slice(0, 1))}
    else:
        case.probe_rows = case.probe_rows.rows(slice(0, 1))
    records = {r.name: r for r in Imbalance().measure(snap)}
    lone = records["imbalance/accuracy/image" if few == "val" else "imbalance/fisher_trace/image"]
    assert lone.n == 1 and math.isfinite(lone.value) and lone.error is None
    assert {"imbalance/shapley_share/text", "imbalance/unimodal/linear/text", "imbalance/agm_ratio/text"} <= set(
        records
    )


def test_weights_that_are_no_numbers_leave_gaps_and_end_nothing():
    snap = snapshot(steps=3)
    records = {r.name: r for r in Imbalance().measure(replace(snap, theta=snap.theta * math.nan))}
    assert math.isnan(records["imbalance/ogm_ratio/image"].value)
    assert "imbalance/grad_norm_ratio" not in records
    assert records["imbalance/shapley_share/image"].n == len(next(snap.problem.held_out("val")))


def test_records_say_rows_and_mode():
    for name, record in measured(Imbalance(), snapshot()).items():
        weights = name.startswith(("imbalance/drift", "imbalance/relative_update"))
        assert record.mode and (record.n is None) == weights, name
