"""FANoise puts the noise that the mathematics describes on the features that were asked for, and says what it did."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.objectives import InfoNce
from modalscape.engine.core.problem import Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.maths.features.contrastive import info_nce, normalised
from modalscape.engine.methods.fanoise.method import FaNoise, chosen
from modalscape.engine.runtime.session import Training
from tests import tiny

F64 = torch.float64
scalings = pytest.mark.parametrize("scaling", maths.SCALINGS)
UNIFORM = {"scaling": "uniform", "basis": "full"}


def features(m: int = 12, n: int = 5, names=("image", "text"), dtype=F64) -> dict[str, torch.Tensor]:
    decay = 0.6 ** torch.arange(n, dtype=dtype)
    return {name: 3 * decay * Rng(3).normal(name, 0, torch.empty(m, n, dtype=dtype)) for name in names}


def view(given: dict, step: int = 4, seed: int = 0) -> View:
    class Case:
        modalities, micro = tuple(given), 0

    rows = len(next(iter(given.values())))
    empty = torch.zeros(rows, 1)
    batch = tiny.Batch({name: empty for name in given}, torch.zeros(rows, dtype=torch.int64))
    return View(
        step, torch.zeros(1), batch, Case(), Rng(seed), clean_features=given, losses={"image-text": torch.zeros(())}
    )


def noisy(given: dict, step: int = 4, seed: int = 0, **knobs) -> dict[str, torch.Tensor]:
    return FaNoise(FaNoise.Params(**knobs)).features(given, view(given, step, seed))


def drawn(x: torch.Tensor, name: str = "image", step: int = 4, **knobs) -> torch.Tensor:
    """The noise for α = 1 on units of length, from the definition."""
    form = maths.shape(maths.directions(x), knobs.get("scaling", "sublinear"), matched=knobs.get("matched", False))
    return maths.noise(Rng(0).normal(f"fanoise/{name}", step, x), form)


def contrastive(batch: int = 16, micro: int = 0, dtype=F64) -> Multimodal:
    parts = {name: tiny.rows(count, count, 0.0, dtype) for name, count in (("train", 96), ("val", 40), ("test", 41))}
    build = lambda: tiny.Net(False).to(dtype)  # noqa: E731
    return Multimodal("tiny", "Tiny", parts, build, InfoNce(0.2), Rng(0), batch=batch, micro=micro, probe_rows=32)


def test_without_dose_the_very_features_come_back():
    given = features()
    assert noisy(given, alpha=0.0) is given
    assert noisy(given, alpha=1.0, warmup=10, step=0) is given
    assert noisy(given, alpha=1.0, anneal="linear", steps=5, step=7) is given


@scalings
@pytest.mark.parametrize("matched", [False, True])
def test_after_normalisation_the_noise_is_on_unit_rows(scaling, matched):
    given = features()
    h = given["image"]
    changed = noisy(given, alpha=0.7, scaling=scaling, matched=matched)["image"]
    unit = h / h.norm(dim=1, keepdim=True)
    wanted = unit + 0.7 * drawn(unit, scaling=scaling, matched=matched)
    torch.testing.assert_close(changed / h.norm(dim=1, keepdim=True), wanted)
    torch.testing.assert_close(normalised(changed), normalised(wanted))


@scalings
@pytest.mark.parametrize("relative", [False, True])
def test_before_normalisation_the_noise_is_on_the_features_as_they_are(scaling, relative):
    given = features()
    h = given["image"]
    size = float(h.square().sum(1).mean().sqrt()) if relative else 1.0
    changed = noisy(given, alpha=0.7, scaling=scaling, order="before", relative=relative)["image"]
    torch.testing.assert_close(changed, h + 0.7 * size * drawn(h, scaling=scaling))


@pytest.mark.parametrize("order", ["after", "before"])
def test_renormalised_rows_keep_their_length_and_turn(order):
    given = features()
    plain, kept = (noisy(given, alpha=0.7, order=order, renormalise=r)["image"] for r in (False, True))
    torch.testing.assert_close(kept.norm(dim=1), given["image"].norm(dim=1))
    torch.testing.assert_close(normalised(kept), normalised(plain))


def test_relative_noise_grows_with_the_features():
    given = features()
    large = {name: 8 * h for name, h in given.items()}
    for knobs in ({}, {"order": "before"}):
        torch.testing.assert_close(
            noisy(large, alpha=0.7, **knobs)["text"], 8 * noisy(given, alpha=0.7, **knobs)["text"]
        )


def test_sides_are_the_ones_named():
    three = ("image", "text", "audio")
    assert chosen("all", three) == three
    assert chosen("query", three) == ("image", "text")
    assert chosen("key", three) == ("text", "audio")
    assert chosen("audio,image", three) == ("image", "audio")
    assert chosen("key", ("image",)) == chosen("query", ("image",)) == ("image",)
    assert chosen("key", ("door", "key")) == ("key",)
    for bad in ("imag", "image,imag", "all,image", ""):
        with pytest.raises(InputError, match="the modalities are image, text, audio; name some of them"):
            chosen(bad, three)


@pytest.mark.parametrize("side, touched", [("all", "both"), ("query", "image"), ("key", "text"), ("text", "text")])
def test_only_the_chosen_side_is_touched_and_its_draws_are_its_own(side, touched):
    given, both = features(), noisy(features(), alpha=0.5)
    changed = noisy(given, alpha=0.5, side=side)
    for name in given:
        if touched in ("both", name):
            assert torch.equal(changed[name], both[name])
        else:
            assert changed[name] is given[name]


def test_an_unknown_side_is_refused_when_switched_on():
    problem = tiny.problem()
    with pytest.raises(InputError, match="fanoise.side names 'audio', but the modalities are image, text"):
        tiny.started(problem, [FaNoise(FaNoise.Params(side="audio"))])


@pytest.mark.parametrize("knobs", [{"scaling": "sublinear"}, {"scaling": "linear", "basis": "full"}])
def test_the_free_route_is_refused_for_other_shapes(knobs):
    with pytest.raises(InputError, match="choose the route svd"):
        FaNoise.Params(route="free", **knobs)


@scalings
@pytest.mark.parametrize("m, n", [(12, 5), (4, 7)])
def test_the_gram_route_gives_the_same_features(scaling, m, n):
    given = features(m, n)
    svd, gram = (noisy(given, alpha=0.5, scaling=scaling, route=route)["text"] for route in ("svd", "gram"))
    torch.testing.assert_close(svd, gram, rtol=1e-6, atol=1e-8)


def test_uniform_noise_of_full_rank_takes_no_decomposition(monkeypatch):
    given = features()
    wanted = noisy(given, alpha=0.5, scaling="uniform", basis="thin")["image"]
    x = normalised(given["image"])
    torch.testing.assert_close(normalised(wanted), normalised(x + 0.5 * drawn(x, scaling="uniform")))
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert torch.equal(noisy(given, alpha=0.5, scaling="uniform")["image"], wanted)


def test_the_mean_over_draws_is_the_clean_batch_and_rows_and_sides_are_independent():
    given, draws = features(4, 3), 1500
    noise = [
        torch.cat([noisy(given, step, alpha=0.5, order="before")[name] - given[name] for name in given])
        for step in range(draws)
    ]
    noise = torch.stack(noise)
    flat = noise / noise.std(0)
    # a mean of standardised numbers, and a correlation, have the standard error 1/√draws
    assert flat.mean(0).abs().max() < 5 / math.sqrt(draws)
    rows = torch.einsum("dic,djc->ijc", flat, flat) / draws
    assert rows[~torch.eye(8, dtype=torch.bool)].abs().max() < 5 / math.sqrt(draws)


def test_noise_is_a_function_of_seed_step_modality_and_batch():
    given = features()
    one = noisy(given, alpha=0.5)
    assert torch.equal(one["text"], noisy(given, alpha=0.5)["text"])
    same = {"image": given["image"], "text": given["image"]}
    both = noisy(same, alpha=0.5)
    assert not torch.equal(both["image"], both["text"])
    for other in (noisy(given, step=5, alpha=0.5), noisy(given, seed=1, alpha=0.5)):
        assert not torch.equal(one["text"], other["text"])


@pytest.mark.parametrize("knobs", [{}, {"scaling": "linear", "route": "free"}, {"scaling": "uniform"}])
def test_the_noise_is_a_constant_for_the_gradient(knobs):
    given = {name: h.requires_grad_() for name, h in features().items()}
    changed = noisy(given, alpha=0.7, order="before", **knobs)
    loss = info_nce(changed["image"], changed["text"], 0.2)
    wanted = torch.autograd.grad(loss, list(changed.values()), retain_graph=True)
    for found, want in zip(torch.autograd.grad(loss, list(given.values())), wanted, strict=True):
        assert torch.equal(found, want)


def test_under_infonce_the_gradient_is_that_of_noise_on_unit_rows():
    given = {name: h.requires_grad_() for name, h in features().items()}
    changed = noisy(given, alpha=0.7)
    loss = info_nce(changed["image"], changed["text"], 0.2)
    noise = {name: 0.7 * drawn(normalised(h.detach()), name) for name, h in given.items()}
    wanted = info_nce(*(normalised(h) + noise[name] for name, h in given.items()), 0.2)
    torch.testing.assert_close(loss, wanted)
    grads = (torch.autograd.grad(value, list(given.values())) for value in (loss, wanted))
    for found, want, h in zip(*grads, given.values(), strict=True):
        torch.testing.assert_close(found, want)
        assert (found * h).sum(1).abs().max() < 1e-10  # nothing along the row itself


@pytest.mark.parametrize("knobs", [{}, {"renormalise": True}, {"order": "before", "relative": False}])
def test_gradients_are_right_where_the_noise_does_not_depend_on_the_batch(knobs):
    text = features()["text"]

    def changed(h):
        return noisy({"image": h, "text": text}, alpha=0.7, **UNIFORM, **knobs)["image"]

    assert torch.autograd.gradcheck(changed, features()["image"].requires_grad_())


@pytest.mark.parametrize("build", [tiny.problem, contrastive])
@pytest.mark.parametrize("knobs", [{}, {"scaling": "linear", "matched": True, "route": "free"}, {"order": "before"}])
def test_it_trains_under_cross_entropy_and_infonce(build, knobs):
    method = FaNoise(FaNoise.Params(alpha=0.3, **knobs))
    off, _, _ = tiny.train(build(), [], 20)
    on, views, stack = tiny.train(build(), [method], 20)
    assert on.theta.isfinite().all() and not torch.equal(on.theta, off.theta)
    assert all(v.features[name].shape == v.clean_features[name].shape for v in views for name in v.clean_features)
    assert not stack.methods["fanoise"].state


@pytest.mark.parametrize("build", [tiny.problem, contrastive])
def test_pieces_of_a_batch_get_noise_of_their_own(build):
    problem = build(batch=16, micro=6)
    _, views, stack = tiny.train(problem, [FaNoise(FaNoise.Params(alpha=0.5))], 3)
    seen = views[-1]
    for i, rows in enumerate((slice(0, 6), slice(6, 12), slice(12, 16))):
        clean = {name: h[rows] for name, h in seen.clean_features.items()}
        piece = view(clean, seen.step).having(rng=seen.rng.within(f"piece{i}"))
        wanted = FaNoise(FaNoise.Params(alpha=0.5)).features(clean, piece)
        torch.testing.assert_close(seen.features["text"][rows], wanted["text"])
    records = {r.name: r for r in stack.methods["fanoise"].report(seen)}
    noise = (seen.features["text"] - seen.clean_features["text"])[:6] / seen.clean_features["text"][:6].norm(
        dim=1, keepdim=True
    )
    assert records["fanoise/noise_norm/text"].n == 6
    assert records["fanoise/noise_norm/text"].value == pytest.approx(float(noise.square().sum(1).mean().sqrt()))


@scalings
@pytest.mark.parametrize("route", ["svd", "gram", "free"])
@pytest.mark.parametrize("order", ["after", "before"])
def test_poor_batches_give_finite_features_and_gradients(scaling, route, order):
    if route == "free" and scaling != "linear":
        pytest.skip("refused")
    rows = features(1, 5)["image"].float()
    for h in (rows, rows.repeat(6, 1), torch.zeros(6, 5), torch.cat([rows, torch.zeros(5, 5)])):
        given = {"image": h.clone().requires_grad_(), "text": torch.randn(len(h), 5, generator=Rng(0).generator("x"))}
        for knobs in ({}, {"renormalise": True}, {"matched": True}, {"centre": True}):
            changed = noisy(given, alpha=0.5, scaling=scaling, route=route, order=order, **knobs)
            (grad,) = torch.autograd.grad(changed["image"].square().sum(), given["image"])
            assert changed["image"].isfinite().all() and grad.isfinite().all()


def test_a_dead_row_stays_dead_on_the_sphere():
    given = features()
    given["image"][3] = 0.0
    assert noisy(given, alpha=0.5)["image"][3].abs().max() == 0


def test_features_that_are_not_finite_are_left_for_the_loss_to_show():
    given = features()
    given["image"][2, 1], given["image"][0, 0] = math.nan, math.inf
    given["image"].requires_grad_()
    for knobs in ({}, {"route": "gram"}, {"scaling": "linear", "route": "free"}, {"renormalise": True}):
        changed = noisy(given, alpha=0.5, **knobs)
        assert torch.equal(changed["image"].nan_to_num(7.0), given["image"].nan_to_num(7.0))
        (grad,) = torch.autograd.grad(changed["image"].sum(), given["image"])
        assert torch.equal(grad, torch.ones_like(grad))
        assert torch.equal(changed["text"], noisy(features(), alpha=0.5, **knobs)["text"])
    problem = tiny.problem()
    problem.rows["train"].x["image"][:] = math.nan
    _, views, stack = tiny.train(problem, [FaNoise()], 1)
    assert all(loss.isnan() for loss in views[0].losses.values())
    assert all("image" not in record.name for record in stack.methods["fanoise"].report(views[0]))


ROUTES = [
    {},
    {"scaling": "uniform"},
    {"scaling": "linear", "route": "free"},
    {"scaling": "linear", "route": "free", "matched": True},
    {"route": "gram", "order": "before"},
    {"matched": True, "renormalise": True, "basis": "full"},
]


@pytest.mark.parametrize("knobs", ROUTES, ids=str)
def test_looking_whether_features_are_finite_changes_no_bit(knobs):
    given = {name: h.requires_grad_() for name, h in features(dtype=torch.float32).items()}
    method = FaNoise(FaNoise.Params(alpha=0.7, **knobs))
    asked = method.features(given, view(given))
    for name, h in given.items():
        plain = method._noisy(name, given, view(given))
        assert torch.equal(asked[name], plain)
        weight = Rng(1).normal("weight", 0, h)
        pulls = (torch.autograd.grad((weight * changed).sum(), h)[0] for changed in (asked[name], plain))
        assert torch.equal(*pulls)


@pytest.mark.parametrize("knobs", ROUTES, ids=str)
def test_no_number_is_asked_of_the_device(knobs, monkeypatch):
    """On tensors without data every question to the host raises."""
    monkeypatch.setattr(Rng, "normal", lambda self, purpose, step, like: torch.randn_like(like))
    with FakeTensorMode():
        given = {name: torch.empty(12, 5, device="meta") for name in ("image", "text")}
        changed = noisy(given, alpha=0.7, **knobs)
        with pytest.raises(DataDependentOutputException):
            bool(changed["text"].isfinite().all())
    assert changed["image"].shape == (12, 5)


def test_half_precision_features_keep_their_type():
    given = features(dtype=torch.float32)
    half = {name: h.bfloat16() for name, h in given.items()}
    for knobs in ({}, {"order": "before"}, {"scaling": "uniform"}, {"scaling": "linear", "route": "free"}):
        assert noisy(half, alpha=0.5, **knobs)["image"].dtype == torch.bfloat16


@pytest.mark.parametrize("count", [1, 2, 10])
def test_any_number_of_modalities_trains_and_reports(count, tmp_path):
    draw = np.random.default_rng(0)
    x = {f"m{i}": draw.normal(size=(90, 3 + i)).astype(np.float32) for i in range(count)}
    np.savez(tmp_path / "some.npz", labels=np.arange(90) % 3, **x)
    settings = {"fanoise.alpha": 0.5, "batch": 20, "width": 8}
    config = RunConfig(data=str(tmp_path / "some.npz"), methods=("fanoise",), steps=3, device="cpu", settings=settings)
    run = Training(validated(config, catalog()))
    records = [r for _ in range(3) for r in run.stack.methods["fanoise"].report(run.step())]
    assert run.state.theta.isfinite().all()
    assert len({r.name for r in records if r.name.startswith("fanoise/mean_cosine/")}) == count


def reported(**knobs):
    problem = contrastive(batch=32)
    method = FaNoise(FaNoise.Params(alpha=0.6, **knobs))
    _, views, stack = tiny.train(problem, [method], 3)
    return views[-1], {record.name: record for record in stack.methods["fanoise"].report(views[-1])}


@pytest.mark.parametrize(
    "knobs",
    [{}, {"scaling": "uniform"}, {"scaling": "linear", "route": "free"}, {"order": "before"}, {"matched": True}],
)
def test_the_report_says_what_the_noise_was(knobs):
    seen, records = reported(**knobs)
    for name, h in seen.clean_features.items():
        unit = h.square().sum(1).mean().sqrt() if "order" in knobs else h.norm(dim=1, keepdim=True)
        x, changed = h / unit, seen.features[name] / unit
        get = lambda path, name=name: records[f"fanoise/{path}".replace("*", name)]  # noqa: E731
        spectra = {key: torch.linalg.svdvals(y).numpy() for key, y in {"before": x, "after": changed}.items()}
        spectra["noise"] = torch.linalg.svdvals(changed - x).numpy()
        for key, values in spectra.items():
            np.testing.assert_allclose(get(f"spectrum/*/{key}").y, values, rtol=1e-9)
        scale = get(f"scale/*/{knobs.get('scaling', 'sublinear')}").y
        predicted = np.sqrt(spectra["before"] ** 2 + 32 * 0.36 * scale**2 / 4)
        np.testing.assert_allclose(get("spectrum/*/predicted").y, predicted)
        assert get("noise_norm_expected/*").value == pytest.approx(0.6 * math.sqrt((scale**2).sum() / 4))
        length = float((changed - x).square().sum(1).mean().sqrt())
        assert get("noise_norm/*").value == pytest.approx(length)
        assert length == pytest.approx(get("noise_norm_expected/*").value, rel=0.5)
        delta = 0.6 * math.sqrt((scale**2).sum() / 4) / 2
        assert get("threshold/*").value == pytest.approx(delta * (32 * 4) ** 0.25)
        assert get("edge/*").value == pytest.approx(delta * (math.sqrt(32) + 2))
        assert get("hidden/*").value == pytest.approx(float((spectra["before"] < get("threshold/*").value).mean()))
        cosine = torch.nn.functional.cosine_similarity(h, seen.features[name])
        assert get("mean_cosine/*").value == pytest.approx(float(cosine.mean()))
        assert get("cosine/*/measured").y.sum() == pytest.approx(1.0)
        _, _, right = torch.linalg.svd(x, full_matrices=False)
        snr = spectra["before"] ** 2 / ((changed - x) @ right.T).square().sum(0).numpy()
        shape = knobs.get("scaling", "sublinear")
        np.testing.assert_allclose(get(f"snr/*/{shape}/measured").y, snr, rtol=1e-7)
        expected = 4 * spectra["before"] ** 2 / (32 * 0.36 * scale**2)
        np.testing.assert_allclose(get(f"snr/*/{shape}/predicted").y, expected)
        levels = get("spectrum/*/after").display.levels
        assert set(levels.values()) == {get("threshold/*").value, get("edge/*").value}
        lone = [maths.overlap(theta, delta, 32, 4)[0] ** 0.5 for theta in spectra["before"]]
        np.testing.assert_allclose(get("alignment/*/limit").y, lone)
        assert get("rank/*").value <= 4 and get("rank_noisy/*").value <= 4
        assert get("seconds/*").value > 0
    assert records["fanoise/positive/image-text"].value == pytest.approx(
        float((normalised(seen.clean_features["image"]) * normalised(seen.clean_features["text"])).sum(1).mean())
    )


def test_the_report_tells_the_three_scalings_apart_by_their_slopes():
    given = features(3000, 8)
    method = FaNoise(FaNoise.Params(alpha=0.3, scaling="linear", order="before"))
    records = {record.name: record for record in method.report(view(given))}
    bars = records["fanoise/snr_slope/text"]
    assert bars.labels.tolist() == ["uniform", "linear", "sublinear"]
    assert (bars.error < 0.05).all()
    assert (abs(bars.values - [2, 0, 1]) < 5 * bars.error).all()
    top = records["fanoise/top_1/text"].values
    assert top[0] == pytest.approx(1 / 8) and top[1] > top[2] > top[0]
    assert records["fanoise/top_10/text"].values == pytest.approx([1.0, 1.0, 1.0])


def test_predicted_ratios_have_the_slopes_two_zero_and_one_exactly():
    records = {r.name: r for r in FaNoise(FaNoise.Params(alpha=0.3)).report(view(features(300, 8)))}
    for scaling, expected in (("uniform", 2.0), ("linear", 0.0), ("sublinear", 1.0)):
        line = records[f"fanoise/snr/image/{scaling}/predicted"]
        slopes = np.diff(np.log(line.y)) / np.diff(np.log(line.x))
        np.testing.assert_allclose(slopes, expected, atol=1e-9)


def test_what_belongs_together_asks_for_one_chart_of_each_modality():
    records = list(FaNoise(FaNoise.Params(alpha=0.3)).report(view(features(64, 8))))
    charts = {}
    for record in records:
        if record.display.panel:
            charts.setdefault(record.display.panel, set()).add(record.name)
    assert charts["Singular values: text"] == {
        f"fanoise/spectrum/text/{label}" for label in ("before", "after", "noise", "predicted")
    }
    assert len(charts["Signal to noise by direction: image"]) == 6
    assert charts["Effective rank"] == {
        f"fanoise/{key}/{m}" for key in ("rank", "rank_noisy") for m in ("image", "text")
    }


def test_under_infonce_the_noise_of_a_logit_and_the_softmax_are_reported():
    _, (seen,), stack = tiny.train(contrastive(), [FaNoise(FaNoise.Params(alpha=0.4))], 1, tiny.sgd(0.1))
    records = {record.name: record for record in stack.methods["fanoise"].report(seen)}
    a, b = (normalised(seen.clean_features[name]) for name in ("image", "text"))
    width, tau = a.shape[1], seen.problem.temperature
    form = maths.shape(maths.directions(a), "sublinear")
    wanted = 0.4 / tau * float((b @ form.covariance * b).sum(1).mean().sqrt())
    assert records["fanoise/logit_noise/image"].value == pytest.approx(wanted, rel=1e-5)
    method = FaNoise(FaNoise.Params(alpha=0.4, scaling="uniform"))
    records = {record.name: record for record in method.report(seen)}
    assert records["fanoise/logit_noise/image"].value == pytest.approx(0.4 / (math.sqrt(width) * tau))
    similarity = a @ b.mT / tau
    sure = (similarity.softmax(1).amax(1).mean() + similarity.softmax(0).amax(0).mean()) / 2
    assert records["fanoise/confidence/image-text"].value == pytest.approx(float(sure))


def test_cosines_of_uniform_noise_are_one_over_the_root_of_one_plus_alpha_squared():
    given = features(400, 256)
    for alpha in (0.1, 0.5, 1.0):
        method = FaNoise(FaNoise.Params(alpha=alpha, scaling="uniform"))
        records = {record.name: record for record in method.report(view(given))}
        assert records["fanoise/mean_cosine/image"].value == pytest.approx(1 / math.sqrt(1 + alpha**2), rel=0.01)


def test_without_dose_only_the_pairs_are_reported():
    records = list(FaNoise(FaNoise.Params(alpha=0.0)).report(view(features())))
    assert {record.name.split("/")[1] for record in records} == {
        "positive",
        "negative",
        "alignment",
        "uniformity",
        "gap",
    }


@pytest.mark.slow
def test_noise_lifts_held_out_recall_on_emoji(real_data):
    def recall(methods):
        settings = {"objective": "info_nce", "encoder": "mlp", "hidden": 256, "batch": 256, "optimizer.lr": 1e-3}
        settings |= {"optimizer.name": "adamw", "fanoise.alpha": 1.0, "fanoise.matched": True}
        config = RunConfig(
            data=str(real_data / "emoji.npz"), methods=methods, steps=600, device="cpu", settings=settings
        )
        run = Training(validated(config, catalog()))
        for _ in range(600):
            run.step()
        return run.problem.evaluate(run.state.theta, "test")["recall@10/test"]

    assert recall(("fanoise",)) > recall(()) + 0.02


def test_evaluation_sees_no_noise_and_takes_no_decomposition(monkeypatch):
    problem = tiny.problem(heads=True)
    state, _, _ = tiny.train(problem, [FaNoise(FaNoise.Params(alpha=5.0))], 3)
    expected = tiny.problem(heads=True).evaluate(state.theta)

    def refused(*args, **kwargs):
        raise AssertionError("evaluation must not look for directions")

    monkeypatch.setattr(maths, "directions", refused)
    assert problem.evaluate(state.theta) == expected
    with pytest.raises(AssertionError, match="directions"):
        tiny.train(problem, [FaNoise(FaNoise.Params(alpha=5.0))], 1)


def test_all_three_scalings_are_one_where_the_spectrum_is_flat():
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=F64, generator=torch.Generator().manual_seed(0)))[0]
    given = {"image": 2 * basis, "text": basis}
    found = [noisy(given, alpha=0.3, scaling=scaling, order="before") for scaling in maths.SCALINGS]
    for other in found[1:]:
        for name in given:
            torch.testing.assert_close(other[name], found[0][name])
    assert not torch.equal(found[0]["image"], given["image"])
