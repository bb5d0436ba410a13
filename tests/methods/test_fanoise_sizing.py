"""FANoise whose amount is set by what it does to a logit, whose energy is another scaling's, and without a new norm."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.needs import Unmet
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.maths.features.contrastive import info_nce, normalised
from modalscape.engine.methods.fanoise.method import FaNoise
from modalscape.engine.runtime.session import Training
from tests import tiny
from tests.methods.several import data_file, training
from tests.methods.test_fanoise import contrastive, drawn, features, scalings, view as plain_view

TAU = 0.3
FORMS = [
    {"scaling": "uniform"},
    {"scaling": "linear"},
    {"scaling": "linear", "matched": True},
    {"scaling": "linear", "route": "free"},
    {"scaling": "sublinear"},
    {"scaling": "sublinear", "matched": True},
    {"scaling": "sublinear", "route": "gram", "basis": "full"},
    {"scaling": "uniform", "energy": "sublinear"},
]


def view(given, step=4):
    made = plain_view(given, step)
    made.problem.temperature = TAU
    return made


def sized(**knobs):
    return FaNoise(FaNoise.Params(sizing="logits", **knobs))


@pytest.mark.parametrize("knobs", FORMS, ids=str)
@pytest.mark.parametrize("m, n", [(12, 5), (4, 7)])
def test_the_noise_of_one_modality_adds_the_wanted_deviation_to_a_logit(m, n, knobs):
    """By draws of whole steps: the mean square of what the noise adds, with its standard error."""
    given, method, target, draws = features(m, n), sized(logit_noise=1.3, **knobs), 1.3, 1500
    keys, length = normalised(given["text"]), given["image"].norm(dim=1, keepdim=True)
    squares = torch.stack(
        [
            ((method.features(given, view(given, step))["image"] - given["image"]) / length @ keys.T / TAU)
            .square()
            .mean()
            for step in range(draws)
        ]
    )
    error = float(squares.std()) / math.sqrt(draws)
    assert error < 0.03 * target**2
    assert abs(float(squares.mean()) - target**2) < 4 * error


@scalings
def test_neither_energy_nor_match_changes_noise_that_is_sized_by_logits(scaling):
    given = features()
    one, *others = (
        sized(scaling=scaling, **knobs).features(given, view(given))["text"]
        for knobs in ({}, {"matched": True}, {"energy": "linear"}, {"alpha": 7.0})
    )
    for other in others:
        torch.testing.assert_close(other, one)


def test_sized_noise_grows_with_the_temperature_and_fades_with_the_schedule():
    given = features()
    method = sized(logit_noise=1.0, warmup=8, anneal="linear", steps=12)
    change = lambda seen: (method.features(given, seen)["image"] - given["image"]).norm()  # noqa: E731
    warm = view(given)
    hot = view(given)
    hot.problem.temperature = 2 * TAU
    assert float(change(hot)) == pytest.approx(2 * float(change(warm)))
    full = sized(logit_noise=0.5).features(given, warm)["image"] - given["image"]
    assert float(change(warm)) == pytest.approx(float(full.norm()))  # half of the dose at step 4 of 8
    assert method.features(given, view(given, 12)) is given
    assert "faded to nothing by step 12" in method.idle(view(given, 12))
    assert method.idle(warm) == ""
    assert "while fanoise.logit_noise is 0.0; change it" in sized(logit_noise=0.0).idle(warm)
    assert sized(alpha=0.0).idle(warm) == ""
    assert sized(logit_noise=0.0).features(given, warm) is given


def test_a_modality_with_nothing_to_compare_with_gets_no_noise():
    given = features()
    given["text"] = torch.zeros_like(given["text"])
    changed = sized().features(given, view(given))
    assert torch.equal(changed["image"], given["image"])
    given["text"] = given["text"] / 0.0
    assert torch.equal(sized().features(given, view(given))["image"], given["image"])


def test_the_report_says_which_dose_the_wanted_noise_took():
    knobs = {"fanoise__sizing": "logits", "fanoise__logit_noise": 1.5, "objective": "info_nce", "width": 4}
    run = training("fanoise", modalities=3, **knobs)
    seen = run.step()
    records = {record.name: record for record in run.stack.methods["fanoise"].report(seen)}
    assert "fanoise/alpha" not in records
    for name, h in seen.clean_features.items():
        assert records[f"fanoise/logit_noise/{name}"].value == pytest.approx(1.5)
        noise = (seen.features[name] - h) / h.norm(dim=1, keepdim=True)
        alpha = records[f"fanoise/alpha/{name}"].value
        form = maths.shape(maths.directions(h / h.norm(dim=1, keepdim=True)), "sublinear")
        wanted = alpha * maths.noise(Rng(0).normal(f"fanoise/{name}", 0, h), form)
        torch.testing.assert_close(noise, wanted)
        assert records[f"fanoise/noise_norm/{name}"].value == pytest.approx(float(noise.square().sum(1).mean().sqrt()))


@pytest.mark.parametrize("knobs", FORMS, ids=str)
def test_the_dose_asks_no_number_of_the_device(knobs, monkeypatch):
    """On tensors without data every question to the host raises."""
    monkeypatch.setattr(Rng, "normal", lambda self, purpose, step, like: torch.randn_like(like))
    with FakeTensorMode():
        given = {name: torch.empty(12, 5, device="meta") for name in ("image", "text")}
        changed = sized(**knobs).features(given, view(given))
        with pytest.raises(DataDependentOutputException):
            bool(changed["text"].isfinite().all())
    assert changed["image"].shape == (12, 5)


def test_logits_that_are_not_there_are_refused_with_a_remedy():
    with pytest.raises(InputError, match="objective info_nce, or set fanoise.sizing to alpha"):
        tiny.started(tiny.problem(), [sized()])
    with pytest.raises(Unmet, match="FANoise needs objective to be info_nce") as refusal:
        training("fanoise", fanoise__sizing="logits")
    assert refusal.value.remedy == {"objective": "info_nce"}
    run = training("fanoise")
    with pytest.raises(InputError, match="compares no modalities"):
        run.tune("fanoise", "sizing", "logits")
    assert run.stack.methods["fanoise"].params.sizing == "alpha"
    on = training("fanoise", objective="info_nce")
    before = on.step().features["vision"] - on.view.clean_features["vision"]
    on.tune("fanoise", "sizing", "logits")
    assert not torch.equal(on.step().features["vision"] - on.view.clean_features["vision"], before)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"sizing": "logits", "order": "before"}, "fanoise.order is before; set it to after"),
        ({"energy": "linear", "matched": True}, "energy of linear noise while fanoise.matched is on"),
        ({"energy": "uniform", "scaling": "linear", "route": "free"}, "while fanoise.route is free"),
    ],
    ids=str,
)
def test_knobs_that_contradict_each_other_are_refused(knobs, words):
    with pytest.raises(InputError, match=words):
        FaNoise.Params(**knobs)
    with pytest.raises(InputError, match="fanoise"):
        training("fanoise", objective="info_nce", **{f"fanoise__{key}": value for key, value in knobs.items()})


@scalings
def test_uniform_noise_of_the_energy_of_another_has_its_length_and_no_shape(scaling):
    given = features(40, 5)
    unit = given["image"] / given["image"].norm(dim=1, keepdim=True)
    method = FaNoise(FaNoise.Params(alpha=0.7, scaling="uniform", energy=scaling))
    noise = method.features(given, plain_view(given))["image"] / given["image"].norm(dim=1, keepdim=True) - unit
    energy = maths.shape(maths.directions(unit), scaling).energy
    torch.testing.assert_close(noise, 0.7 * energy.sqrt() * drawn(unit, scaling="uniform"))


def losses(normalise: str, renormalise: bool = False, order: str = "after"):
    """The InfoNCE loss, its gradient and the step's view of a small run with noise."""
    knobs = {"alpha": 0.8, "renormalise": renormalise, "order": order}
    settings = {f"fanoise__{key}": value for key, value in knobs.items()}
    run = training("fanoise", objective="info_nce", normalise=normalise, temperature=0.3, **settings)
    seen = run.step()
    return next(iter(seen.losses.values())), seen.grad, seen


def test_where_the_encoder_normalises_the_loss_takes_unit_rows_with_noise_as_they_are():
    loss, _, seen = losses("encoder")
    noise = {}
    for name, h in seen.clean_features.items():
        torch.testing.assert_close(h.norm(dim=1), torch.ones(len(h), dtype=h.dtype))
        noise[name] = 0.8 * drawn(h, name, step=0)
        torch.testing.assert_close(seen.features[name], h + noise[name])
    a, b = (seen.clean_features[name] + noise[name] for name in seen.clean_features)
    table = a @ b.T / 0.3
    own = torch.arange(len(a))
    by_hand = 0.5 * (torch.nn.functional.cross_entropy(table, own) + torch.nn.functional.cross_entropy(table.T, own))
    torch.testing.assert_close(loss, by_hand)
    assert float((loss - losses("loss")[0]).abs()) > 0.01


def test_the_gradient_without_a_new_norm_is_that_at_the_noisy_rows():
    """dL/dx is dL/dx̃ along the sphere of the unit rows x: the noise is a constant."""
    given = {name: h.requires_grad_() for name, h in features().items()}
    unit = {name: normalised(h) for name, h in given.items()}
    changed = FaNoise(FaNoise.Params(alpha=0.8)).features(unit, plain_view(unit))
    loss = info_nce(*changed.values(), 0.3, True)
    found = torch.autograd.grad(loss, list(given.values()), retain_graph=True)
    noise = {name: (changed[name] - unit[name]).detach() for name in unit}
    wanted = torch.autograd.grad(
        info_nce(*(unit[name] + noise[name] for name in unit), 0.3, True), list(given.values())
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_new_norm_is_in_the_loss_or_in_the_knob_and_both_are_the_same():
    usual, *others = (losses("loss"), losses("loss", True), losses("encoder", True))
    for loss, grad, _ in others:
        torch.testing.assert_close(loss, usual[0])
        torch.testing.assert_close(grad, usual[1])
    _, _, seen = losses("encoder", True)
    for h in seen.features.values():
        torch.testing.assert_close(h.norm(dim=1), torch.ones(len(h), dtype=h.dtype))


def test_without_a_method_it_does_not_matter_where_rows_are_normalised(tmp_path):
    runs = []
    for normalise in ("loss", "encoder"):
        settings = {"objective": "info_nce", "normalise": normalise, "dtype": "float64", "batch": 16, "width": 6}
        config = RunConfig(data=data_file(tmp_path), device="cpu", settings=settings)
        run = Training(validated(config, catalog()))
        for _ in range(5):
            run.step()
        runs.append(run)
    one, other = runs
    torch.testing.assert_close(one.state.theta, other.state.theta)
    assert one.problem.evaluate(one.state.theta) == pytest.approx(other.problem.evaluate(one.state.theta))
    batch = one.problem.probe_batch()
    outputs = [run.problem.outputs(one.state.theta, batch) for run in runs]
    for name, table in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], table)
    torch.testing.assert_close(
        other.problem.row_losses(outputs[1], batch).mean(), other.problem.loss(one.state.theta, batch)
    )


def test_sized_noise_trains_in_pieces_too():
    problem = contrastive(batch=16, micro=6)
    off, _, _ = tiny.train(contrastive(batch=16, micro=6), [], 20)
    on, views, stack = tiny.train(problem, [sized(logit_noise=0.8)], 20)
    assert on.theta.isfinite().all() and not torch.equal(on.theta, off.theta)
    records = {r.name: r.value for r in stack.methods["fanoise"].report(views[-1]) if "logit_noise" in r.name}
    assert records == pytest.approx({f"fanoise/logit_noise/{name}": 0.8 for name in ("image", "text")})
