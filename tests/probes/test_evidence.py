"""The evidence probe against autograd, loops over rows, and the method that uses the same evidence."""

import math

import pytest
import torch
from torch.nn import functional as F

from modalscape.engine.core.probe import Snapshot
from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients import calibration as maths
from modalscape.engine.maths.gradients.last_layer import linear_heads
from modalscape.engine.maths.gradients.noise_scale import noise_scale
from modalscape.engine.methods.bogc import Bogc
from modalscape.engine.probes.evidence import Evidence
from tests.probes.snapshots import measured, snapshot
from tests.tiny import problem, started, train

PARAMS = Evidence.Params(rows=32, pieces=4, samples=64)


def gradients(snap, batch):
    theta = snap.theta.detach().requires_grad_()
    losses, _ = snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)
    return {name: torch.autograd.grad(loss, theta, retain_graph=True)[0] for name, loss in losses.items()}


def test_norms_and_cosines_are_those_of_autograd():
    snap = snapshot()
    grads, layout = gradients(snap, snap.problem.probe_batch()), snap.problem.layout
    records = measured(Evidence(PARAMS), snap)
    table = records["evidence/grad_norm"]
    assert table.rows.tolist() == ["fused", "image", "text"] and table.cols.tolist() == ["image", "text", "shared"]
    for row, grad in zip(table.values, grads.values(), strict=True):
        assert row.tolist() == pytest.approx([float(grad[where].norm()) for where in layout.slices.values()])
    cosine = F.cosine_similarity(grads["fused"], grads["text"], 0)
    assert records["evidence/cosines"].values[0, 2] == pytest.approx(float(cosine))
    where = layout.slices["text"]
    own = F.cosine_similarity(grads["fused"][where], grads["text"][where], 0)
    assert records["evidence/cosine/text"].value == pytest.approx(float(own))


def test_losses_without_a_common_parameter_have_no_cosine():
    table = measured(Evidence(PARAMS), snapshot())["evidence/cosines"].values
    assert math.isnan(table[1, 2]) and math.isnan(table[2, 1])  # heads: no parameter sees both
    assert table[0, 0] == pytest.approx(1) and abs(table[0, 1]) <= 1


def test_the_error_of_a_cosine_is_that_of_leaving_out_each_mini_batch():
    snap = snapshot()
    where, left = snap.problem.layout.slices["image"], []
    pieces = snap.problem.probe_batch().chunks(8)
    for i in range(4):
        grads = [gradients(snap, piece) for j, piece in enumerate(pieces) if j != i]
        one, other = (sum(g[name][where] for g in grads) for name in ("fused", "image"))
        left.append(float(F.cosine_similarity(one, other, 0)))
    mean = sum(left) / 4
    expected = math.sqrt(3 / 4 * sum((value - mean) ** 2 for value in left))
    assert measured(Evidence(PARAMS), snap)["evidence/cosine/image"].error == pytest.approx(expected, rel=1e-3)


def test_layers_have_the_norms_and_cosines_of_their_parameters():
    snap = snapshot()
    grads, layout = gradients(snap, snap.problem.probe_batch()), snap.problem.layout
    records = measured(Evidence(PARAMS), snap)
    table, cosines = records["evidence/layer_norm"], records["evidence/layer_cosine"]
    assert table.cols.tolist() == ["fused", "image", "text"]
    squares = (table.values**2).sum(0)
    assert squares == pytest.approx([float(grad.square().sum()) for grad in grads.values()], rel=1e-4)
    of_layer = {}
    for name in layout.shapes:
        layer = f"{layout.parts[name]}/{layout.layer(name).removesuffix('.bias')}"
        own = [layout.blocks(grads[loss])[name].flatten() for loss in ("fused", "text")]
        of_layer.setdefault(layer, []).append(torch.stack(own))
    assert table.rows.tolist() == list(of_layer)
    for layer, value in zip(cosines.rows, cosines.values[:, cosines.cols.tolist().index("fused, text")], strict=True):
        one, other = torch.cat(of_layer[layer], 1)
        if layer.startswith("text"):
            assert value == pytest.approx(float(F.cosine_similarity(one, other, 0)), rel=1e-3)
        else:
            assert math.isnan(value)


def test_the_noise_scale_is_that_of_the_summed_losses_on_each_part():
    snap = snapshot(steps=2)
    records, where = measured(Evidence(PARAMS), snap), snap.problem.layout.slices["text"]
    pieces = snap.problem.probe_batch().chunks(8)
    vectors = torch.stack([sum(gradients(snap, piece).values())[where] for piece in pieces]).double()
    value, error = noise_scale(vectors @ vectors.T, 8)
    record = records["evidence/noise_scale/text"]
    assert record.value == pytest.approx(value, rel=1e-3) and record.n == 32
    assert record.error == pytest.approx(error, rel=1e-2)
    assert "evidence/noise_scale/network" in records
    bars = records["evidence/noise_by_layer"]
    assert set(bars.labels) <= set(records["evidence/layer_norm"].rows) and (bars.values >= 0).all()
    few = measured(Evidence(Evidence.Params(rows=32, pieces=2, samples=64)), snap)
    assert not any("noise" in name for name in few)


def test_the_conflict_rate_counts_mini_batches_against_each_other():
    snap = snapshot(steps=60)
    records = measured(Evidence(PARAMS), snap)
    for modality in snap.problem.modalities:
        where, against = snap.problem.layout.slices[modality], 0
        for piece in snap.problem.probe_batch().chunks(8):
            grads = gradients(snap, piece)
            against += float(grads["fused"][where] @ grads[modality][where]) < 0
        record = records[f"evidence/conflict_rate/{modality}"]
        assert record.value == against / 4 and record.n == 4
        assert record.error == pytest.approx(math.sqrt(record.value * (1 - record.value) / 4))


def test_maps_and_numbers_describe_the_same_evidence():
    snap = snapshot()
    records = measured(Evidence(PARAMS), snap)
    for modality in snap.problem.modalities:
        shares = records[f"evidence/weight_map/{modality}"]
        assert shares.rows.tolist() == ["fused", modality] and shares.values.shape == (2, 4)
        assert shares.values.sum(0) == pytest.approx(1)
        for k, source in enumerate(shares.rows):
            assert records[f"evidence/weight/{modality}/{source}"].value == pytest.approx(shares.values[k].mean())
        doubt = records[f"evidence/uncertainty_map/{modality}"].values
        assert ((doubt > 0) & (doubt < 1)).all()
        variance, precision = (records[f"evidence/{q}_map/{modality}"].values for q in ("variance", "precision"))
        assert precision == pytest.approx(-variance)
        assert records[f"evidence/conflict_map/{modality}"].values == pytest.approx(0)
    opposed = measured(Evidence(Evidence.Params(rows=32, samples=64, reading="signed")), snap)
    assert opposed["evidence/conflict/image"].value > 0


def test_the_mean_gradient_is_near_the_plain_one_where_the_posterior_is_tight():
    snap = snapshot()
    tight = measured(Evidence(Evidence.Params(rows=32, samples=64, gamma=1e-6)), snap)
    batch = snap.problem.probe_batch()
    h = {m: v.detach().requires_grad_() for m, v in snap.problem.encode(snap.theta, batch).items()}
    losses, _ = snap.problem.objectives(snap.theta, h, batch)
    (grad,) = torch.autograd.grad(losses["fused"], h["image"])
    found = tight["evidence/mean_map/image"].values[0]
    assert found == pytest.approx(grad.sum(0).numpy(), rel=1e-2, abs=1e-4)
    assert tight["evidence/shift/image/fused"].value < 0.01


def test_rows_in_conflict_are_counted_at_the_features():
    snap = snapshot(steps=60)
    batch = snap.problem.probe_batch()
    h = {m: v.detach().requires_grad_() for m, v in snap.problem.encode(snap.theta, batch).items()}
    losses, _ = snap.problem.objectives(snap.theta, h, batch)
    one, other = (torch.autograd.grad(losses[k], h["text"], retain_graph=True)[0] for k in ("fused", "text"))
    record = measured(Evidence(PARAMS), snap)["evidence/row_conflict/text"]
    assert record.value == ((one * other).sum(1) < 0).double().mean() and record.n == 32


def test_precision_by_confidence_covers_all_rows():
    record = measured(Evidence(PARAMS), snapshot())["evidence/precision_by_confidence/image/fused"]
    assert record.n == 32 and len(record.x) == 10 and (record.x[1:] >= record.x[:-1]).all()


def test_it_measures_the_same_with_the_method_on():
    trained = problem(heads=True)
    state, views, stack = train(trained, [Bogc(Bogc.Params(warmup=0.0))], 10)
    rng = started(trained, [])[3]
    on = Snapshot(state.step, state.theta, trained, rng, stack, views[-1])
    off = Snapshot(state.step, state.theta, trained, rng, started(trained, [])[2])
    one, other = measured(Evidence(PARAMS), on), measured(Evidence(PARAMS), off)
    assert one.keys() == other.keys()
    assert all(one[n].value == other[n].value for n in one if one[n].kind == "scalar")


def test_the_posterior_stands_for_all_training_rows():
    snap = snapshot()
    batch = snap.problem.probe_batch()
    features = snap.problem.encode(snap.theta, batch)
    heads = linear_heads(lambda f, y: snap.problem.objectives(snap.theta, f, Batch({}, y)), features, batch.y)
    once, all_rows = (maths.posteriors(heads, features, batch.y, scale, PARAMS)[0] for scale in (1.0, 3.0))
    for name in heads:
        torch.testing.assert_close(all_rows[name]["curvature"]["matrix"], 3 * once[name]["curvature"]["matrix"])
    drawn, _ = maths.draws(all_rows, PARAMS, lambda row, like: snap.rng.normal(f"evidence/{row}", snap.step, like))
    found = maths.calibrated(heads, features, batch.y, drawn, PARAMS)["image"]
    records = measured(Evidence(PARAMS), snap)
    assert records["evidence/precision/image/fused"].value == pytest.approx(
        float(found.precision[0].log10().quantile(0.5))
    )


def test_one_loss_has_no_cosine_but_evidence():
    records = measured(Evidence(PARAMS), snapshot(problem(heads=False)))
    assert "evidence/cosine/image" not in records and "evidence/row_conflict/image" not in records
    assert records["evidence/weight/image/fused"].value == 1


def test_a_problem_without_linear_heads_has_norms_and_says_why_there_is_no_more():
    tiny = problem(heads=True)
    snap = snapshot(tiny)
    squash = tiny.trunk

    class Squashed:
        module = squash.module

        def __call__(self, named, features):
            return squash(named, {name: value**2 for name, value in features.items()})

    tiny.trunk = Squashed()
    seen = []
    with pytest.raises(InputError, match="linear in the features"):
        for record in Evidence(PARAMS).measure(snap):
            seen.append(record)
    assert any(record is not None and record.name == "evidence/grad_norm" for record in seen)


def test_records_say_rows_and_mode():
    for name, record in measured(Evidence(PARAMS), snapshot()).items():
        assert record.n and record.mode, name
