"""The collapse acts on the spectrum of what it attacks, against references that attacks do not move at once."""

import dataclasses

import pytest
import torch

from modalscape.engine.core.optimizer import Settings
from modalscape.engine.core.step import train_step
from modalscape.engine.methods.modalimmune import collapse, curvature as looks, memory
from modalscape.engine.methods.modalimmune.method import ModalImmune
from tests import tiny
from tests.methods.immune import FORMER, NOW, built, knobs
from tests.methods.several import training

ADAM = Settings(name="adam", lr=2e-3)


def ended(seed_rows=600, **values):
    """Mean r(Σ), accuracy on held-out rows, and the method's state after 250 steps on three modalities."""
    problem = built("2,1,1", rows=seed_rows)
    method = [ModalImmune(ModalImmune.Params(**values))] if values else []
    state, _, stack = tiny.train(problem, method, 250, ADAM)
    (rows,) = problem.held_out("val")
    features = problem.encode(state.theta, rows)
    ratio = sum(collapse.spectral_ratio(z).item() for z in features.values()) / 3
    right = problem.logits(state.theta, features)["fused"].argmax(1) == rows.y
    return ratio, right.double().mean().item(), stack.methods.get("modalimmune")


def test_the_collapse_narrows_the_spectrum_and_leaves_the_clean_score():
    """Beside omission alone it takes a sixth off r - 1, at five times the default a third; as before, nothing."""
    alone, score, _ = ended(collapse=0.0)
    ratio, with_it, method = ended(collapse=ModalImmune.Params().collapse)
    strong, with_more, _ = ended(collapse=0.1)
    before = {key: FORMER[key] for key in ("ratio", "pull", "fade", "track")}
    former, _, _ = ended(**before, meta_every=0)
    assert strong - 1 < 0.8 * (alone - 1)
    assert ratio - 1 < 0.9 * (alone - 1)
    assert abs(former - alone) < (alone - ratio) / 10
    assert min(with_it, with_more) > score - 0.03
    assert method.state["counts"]["floor"] < method.state["drawn"].sum()


def test_strength_severity_and_richness_are_reported_as_the_collapse_has_them():
    problem = built("1,1,1", batch=32)
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(knobs(collapse=0.2, clip=10.0))], ADAM)
    for _ in range(40):
        state, view = train_step(state, problem, optimizer, stack, rng)
    method = stack.methods["modalimmune"]
    records = {record.name: record.value for record in method.report(view) if record.kind == "scalar"}
    shares = method.state["drawn"] / method.state["drawn"].sum()
    total = 0.0
    for m, (name, z) in enumerate(view.clean_features.items()):
        ratio, richness = collapse.spectral_ratio(z).item(), method.state["richness"][m].item()
        severity = 1 - ratio / method.state["rich"][m].item()
        strength = looks.collapsed(method.params, method.state, z, name, view)[0]
        assert records[f"modalimmune/severity/{name}"] == pytest.approx(severity, rel=1e-5)
        assert records[f"modalimmune/richness/{name}"] == richness
        assert records[f"modalimmune/strength/{name}"] == pytest.approx(strength, rel=1e-4)
        weight, _ = memory.weights(method.params, method.state)
        assert strength == pytest.approx(weight * min((ratio - 1) / max(richness - 1, collapse.LEAST), 1), rel=1e-4)
        total += shares[m].item() * severity
    assert records["modalimmune/severity_attacked"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("track", memory.TRACKS)
def test_the_references_follow_what_is_not_attacked_and_no_other(track):
    """By hand from the features of each step: at 0.9 in the warm-up, then at 0.99, or not at all in attacks."""
    problem, params = (
        built("1,1,1", batch=32, double=True),
        ModalImmune.Params(warmup=3, ramp=0, meta_every=0, track=track),
    )
    state, optimizer, stack, rng = tiny.started(problem, [ModalImmune(params)], ADAM)
    method = stack.methods["modalimmune"]
    scale, rich = method.state["reference"].clone(), method.state["richness"].clone()
    for step in range(12):
        arm, (state, view) = method.state["arm"], train_step(state, problem, optimizer, stack, rng)
        assert (arm < 0) == (step < 3)
        weight = 0.1 if step < 3 else 0.01
        for m, z in enumerate(view.clean_features.values()):
            if m != arm and (arm < 0 or track == "unattacked"):
                scale[m] += weight * (collapse.rms(z) - scale[m])
                rich[m] += weight * (collapse.spectral_ratio(z) - rich[m])
        torch.testing.assert_close(method.state["reference"], scale, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(method.state["richness"], rich, atol=1e-3, rtol=0.02)


def test_a_reference_that_is_no_number_takes_the_first_that_is():
    _, _, stack = tiny.train(built("1,1,1", batch=1), [ModalImmune(ModalImmune.Params(**NOW, meta_every=0))], 2)
    method = stack.methods["modalimmune"]
    assert method.state["richness"].isnan().all()
    features = {name: torch.randn(9, 4, generator=torch.Generator().manual_seed(1)) for name in ("a", "b", "c")}
    state = method.state | {"covariance": {name: torch.zeros(4, 4) for name in features}, "arm": 0, "age": 50}
    changes, _ = memory.watched(dataclasses.replace(method.params, gate="off"), state, features, torch.zeros(3), True)
    assert changes["richness"].isfinite().all()


@pytest.mark.parametrize("size", [{"batch": 1}, {"batch": 8, "micro": 1}], ids=str)
def test_rows_of_one_have_no_spectrum_and_it_says_so(size):
    run = training("modalimmune", modalimmune__share=0.0, **size)
    assert "in batches of one row; raise batch or micro, or modalimmune.share." in run.idle()["modalimmune"]
    twin = training(**size)
    for _ in range(25):
        run.step(), twin.step()
    assert torch.equal(run.state.theta, twin.state.theta)
