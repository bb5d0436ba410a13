"""The imbalance probe against loops over rows and modalities."""

import math

import pytest
import torch

from engine.probes.imbalance import Imbalance
from engine.problem import Batch
from tests.probes.snapshots import measured, snapshot
from tests.tiny import CrossEntropy, problem


def objectives(snap, batch, theta=None):
    theta = snap.theta if theta is None else theta
    return snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)


def test_scores_are_those_of_evaluate_and_name_their_protocol():
    snap = snapshot()
    values, records = snap.problem.evaluate(snap.theta), measured(Imbalance(), snap)
    for modality in snap.problem.modalities:
        record = records[f"imbalance/accuracy/{modality}"]
        assert record.value == values[f"accuracy/val/{modality}"] and snap.problem.protocol in record.mode
        assert record.n == 40
    gap = abs(values["accuracy/val/image"] - values["accuracy/val/text"])
    assert records["imbalance/gap"].value == pytest.approx(gap)


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
    tiny._objective = Contrast()
    snap = snapshot(tiny)
    records = measured(Imbalance(Imbalance.Params(rows=32)), snap)
    record = records["imbalance/fisher_trace/image"]
    grads = []
    for piece in snap.problem.probe_batch().chunks(4):
        grads.append(torch.func.grad(lambda theta, b=piece: snap.problem.loss(theta, b))(snap.theta))
    rows = torch.stack(grads)[:, snap.problem.layout.mask("image").bool()]
    assert record.value == pytest.approx(rows.square().sum(1).mean().item()) and "mini-batches of 4" in record.mode
    assert not any(name.startswith(("imbalance/ogm_ratio", "imbalance/shapley")) for name in records)


def test_records_say_rows_and_mode():
    for name, record in measured(Imbalance(), snapshot()).items():
        assert record.n and record.mode, name
