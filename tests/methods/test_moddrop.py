"""ModDrop loses whole modalities at the rate that it says, and what is lost leaves no trace."""

import math

import numpy as np
import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.objectives import InfoNce
from modalscape.engine.core.problem import Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError
from modalscape.engine.methods.moddrop import ModDrop, kept, realised
from modalscape.engine.runtime.session import Training
from tests import tiny

F64 = torch.float64
RESCUES = ("keep", "redraw", "none")


def numbers(rows: int, modalities: int) -> torch.Tensor:
    return torch.rand(rows, modalities + 1, generator=torch.Generator().manual_seed(0))


def stepped(problem=None, step: int = 1, **knobs):
    """The view of the last of some steps, and the method."""
    _, views, stack = tiny.train(problem or tiny.problem(), [ModDrop(ModDrop.Params(**knobs))], step)
    return views[-1], stack.methods["moddrop"]


def lost(view) -> dict[str, torch.Tensor]:
    """Which rows of which modality differ from what was encoded."""
    return {name: (view.features[name] != view.clean_features[name]).any(1) for name in view.clean_features}


@pytest.mark.parametrize("rescue", RESCUES)
@pytest.mark.parametrize(
    "rates", [(0.5, 0.5, 0.5), (0.9, 0.2, 0.6), (0.3, 1.0), (1.0, 0.4), (0.7,), (0.0, 0.8, 1.0, 1.0)]
)
def test_modalities_are_lost_at_the_rate_of_the_closed_form(rescue, rates):
    mask = kept(numbers(40_000, len(rates)), torch.tensor(rates), rescue)
    for m, expected in enumerate(realised(list(rates), rescue)):
        error = math.sqrt(expected * (1 - expected) / len(mask))
        assert float((~mask[:, m]).double().mean()) == pytest.approx(expected, abs=5 * error + 1e-12)
    if rescue != "none":
        assert mask.any(1).all()


def test_realised_rates_are_the_published_ones():
    assert realised([0.5] * 3, "keep")[0] == pytest.approx(0.5 - 0.5**3 / 3)
    assert realised([1.0] * 3, "keep") == pytest.approx([2 / 3] * 3)
    assert realised([0.9] * 3, "redraw")[0] == pytest.approx(0.631, abs=1e-3)
    assert realised([0.5, 0.1], "none") == [0.5, 0.1]


def test_redrawing_has_the_law_of_rejection():
    rates, count = torch.tensor([0.8, 0.5, 0.3]), 60_000
    mask = kept(numbers(count, 3), rates, "redraw")
    plain = kept(numbers(4 * count, 3).flip(0), rates, "none")
    plain = plain[plain.any(1)]
    place = torch.tensor([1, 2, 4])
    for code in range(1, 8):
        one, other = (((m * place).sum(1) == code).double() for m in (mask, plain))
        error = math.sqrt(float(one.var() / len(one) + other.var() / len(other)))
        assert abs(float(one.mean() - other.mean())) < 5 * error


def test_what_is_kept_alone_is_each_as_likely():
    mask = kept(numbers(30_000, 3), torch.ones(3), "keep")
    assert (mask.sum(1) == 1).all()
    assert mask.double().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=5 * math.sqrt(2 / 9 / 30_000))


def test_dropped_features_are_zero_and_kept_ones_are_not_rescaled():
    view, _ = stepped(tiny.problem(batch=96), p=0.5, fill="zero")
    for name, rows in lost(view).items():
        assert 10 < rows.sum() < 80
        assert view.features[name][rows].abs().max() == 0
        assert torch.equal(view.features[name][~rows], view.clean_features[name][~rows])
    assert not (lost(view)["image"] & lost(view)["text"]).any()


def test_rows_are_lost_together_only_where_all_may_vanish():
    view, _ = stepped(tiny.problem(batch=96), p=0.6, rescue="none")
    assert (lost(view)["image"] & lost(view)["text"]).any()


def test_a_lost_modality_has_no_influence_and_no_gradient():
    problem = tiny.problem(heads=True)
    view, method = stepped(problem, rates="image=1.0", p=0.0, fill="zero")
    assert view.raw_grads[0, problem.layout.slices["image"]].abs().max() == 0
    names = [n for n in problem.layout.shapes if n.startswith("encoders.image")]
    for row in view.raw_grads:
        assert all(problem.layout.blocks(row)[name].abs().max() == 0 for name in names)
    assert view.raw_grads[0, problem.layout.slices["text"]].abs().max() > 0


def test_a_batch_is_lost_at_once():
    _, views, _ = tiny.train(tiny.problem(), [ModDrop(ModDrop.Params(p=0.5, per="batch"))], 60)
    states = [tuple(float(rows.double().mean()) for rows in lost(view).values()) for view in views]
    assert set(states) == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)}
    share = np.mean([state != (0.0, 0.0) for state in states])
    assert share == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 60))


def test_masks_are_a_function_of_seed_and_step():
    problem = tiny.problem()
    view, method = stepped(problem, p=0.5)
    again, later, other = (
        method.features(view.clean_features, v)["image"] for v in (view, view.having(step=9), view.having(rng=Rng(8)))
    )
    assert torch.equal(again, view.features["image"])
    assert not torch.equal(again, later) and not torch.equal(again, other)


def test_raising_the_rate_adds_to_what_is_lost():
    low, high = (kept(numbers(500, 3), torch.full((3,), p), "none") for p in (0.3, 0.6))
    assert (high <= low).all() and (high != low).any()


def test_neutral_filling_is_the_same_as_a_neutral_input():
    problem = tiny.problem()
    view, _ = stepped(problem, p=0.5, fill="neutral")
    mask = lost(view)
    assert all(rows.any() for rows in mask.values())
    x = {name: torch.where(mask[name][:, None], 0.0, x) for name, x in view.batch.x.items()}
    theta = view.theta.clone().requires_grad_()
    loss = problem.loss(theta, tiny.Batch(x, view.batch.y))
    torch.testing.assert_close(view.losses["fused"], loss.detach())
    torch.testing.assert_close(view.grad, torch.autograd.grad(loss, theta)[0])


def test_mean_filling_is_the_mean_of_the_batch():
    view, _ = stepped(p=0.5, fill="mean")
    for name, rows in lost(view).items():
        torch.testing.assert_close(
            view.features[name][rows], view.clean_features[name].mean(0).expand(int(rows.sum()), -1)
        )


def test_single_rates_replace_the_common_one():
    view, _ = stepped(tiny.problem(batch=96), p=0.5, rates="text=0")
    assert not lost(view)["text"].any()
    assert lost(view)["image"].any()


@pytest.mark.parametrize("text", ["image", "image=2", "image=x", "=0.5", "image=-1", "image=nan"])
def test_rates_that_cannot_be_read_are_refused(text):
    with pytest.raises(InputError, match="write a name and its number"):
        ModDrop.Params(rates=text)
    with pytest.raises(InputError):
        ModDrop().tuned("rates", text)


def test_rates_of_unknown_modalities_and_endless_draws_are_refused():
    for knobs, sentence in (
        ({"rates": "audio=0.5"}, "the modalities are image, text"),
        ({"p": 1.0, "rescue": "redraw"}, "choose rescue=keep"),
    ):
        with pytest.raises(InputError, match=sentence):
            stepped(**knobs)


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("rescue", RESCUES)
def test_the_report_says_what_was_lost(per, rescue):
    view, method = stepped(tiny.problem(batch=90), step=5, p=0.6, per=per, rescue=rescue)
    records = {record.name: record for record in method.report(view)}
    for name, rows in lost(view).items():
        assert records[f"moddrop/rate/{name}"].value == pytest.approx(float(rows.double().mean()))
        assert records[f"moddrop/rate/{name}"].n == (90 if per == "sample" else 1)
        assert records[f"moddrop/rate_expected/{name}"].value == pytest.approx(realised([0.6, 0.6], rescue)[0])
    left = 2 - sum(rows.double() for rows in lost(view).values())
    assert records["moddrop/left"].values.tolist() == pytest.approx(
        [float((left == k).double().mean()) for k in range(3)]
    )


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_pieces_of_a_batch_draw_for_themselves_and_the_report_knows(per):
    view, method = stepped(tiny.problem(batch=40, micro=12), step=4, p=0.5, per=per)
    records = {record.name: record for record in method.report(view)}
    for name, rows in lost(view).items():
        assert records[f"moddrop/rate/{name}"].value == pytest.approx(float(rows.double().mean()))
    if per == "batch":
        pieces = [torch.stack([rows[a : a + 12] for rows in lost(view).values()], 1) for a in (0, 12)]
        assert all((piece == piece[0]).all() for piece in pieces)


def test_nothing_is_reported_where_nothing_can_be_lost():
    view, method = stepped(p=0.0)
    assert list(method.report(view)) == []
    assert method.features(view.clean_features, view) is view.clean_features


@pytest.mark.parametrize("knobs", [{}, {"rescue": "none"}, {"per": "batch"}, {"fill": "zero"}])
def test_it_trains_under_infonce(knobs):
    parts = {name: tiny.rows(count, count, 0.0, F64) for name, count in (("train", 96), ("val", 40), ("test", 41))}
    problem = Multimodal("tiny", "Tiny", parts, lambda: tiny.Net(False).double(), InfoNce(0.2), Rng(0), batch=16)
    state, views, _ = tiny.train(problem, [ModDrop(ModDrop.Params(p=0.4, **knobs))], 30)
    assert state.theta.isfinite().all()
    assert any(not torch.equal(view.features["text"], view.clean_features["text"]) for view in views)


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("fill", ["zero", "neutral", "mean"])
def test_any_number_of_modalities_trains_and_reports(count, fill, tmp_path):
    draw = np.random.default_rng(0)
    x = {f"m{i}": draw.normal(size=(90, 3 + i)).astype(np.float32) for i in range(count)}
    np.savez(tmp_path / "some.npz", labels=np.arange(90) % 3, **x)
    settings = {"moddrop.p": 0.6, "moddrop.fill": fill, "batch": 20, "width": 8, "unimodal": "heads"}
    config = RunConfig(data=str(tmp_path / "some.npz"), methods=("moddrop",), steps=3, device="cpu", settings=settings)
    run = Training(validated(config, catalog()))
    records = [r for _ in range(3) for r in run.stack.methods["moddrop"].report(run.step())]
    assert run.state.theta.isfinite().all()
    assert len({r.name for r in records if r.name.startswith("moddrop/rate/")}) == count


def test_it_acts_after_the_noise_so_that_what_is_lost_is_silent():
    from modalscape.engine.methods.fanoise.method import FaNoise

    problem = tiny.problem(batch=96)
    _, (view,), stack = tiny.train(problem, [ModDrop(ModDrop.Params(p=0.5, fill="zero")), FaNoise()], 1)
    assert stack.pipeline()["features"] == ["fanoise", "moddrop"]
    assert all((h == 0).all(1).any() for h in view.features.values())


@pytest.mark.slow
def test_it_keeps_the_accuracy_without_a_modality(real_data):
    def scores(methods):
        settings = {"unimodal": "none", "moddrop.p": 0.33, "optimizer.name": "adamw", "optimizer.lr": 1e-3}
        config = RunConfig(
            data=str(real_data / "avdigits.npz"), methods=methods, steps=200, device="cpu", settings=settings
        )
        run = Training(validated(config, catalog()))
        for _ in range(200):
            run.step()
        theta, problem = run.state.theta, run.problem
        (batch,) = problem.held_out("test")
        found = {}
        for name in ("", *problem.modalities):
            x = problem.without(batch, name) if name else batch
            logits = problem.logits(theta, problem.encode(theta, x))["fused"]
            found[name] = float((logits.argmax(1) == batch.y).double().mean())
        return found

    plain, dropped = scores(()), scores(("moddrop",))
    assert dropped.pop("") > plain.pop("") - 0.02
    assert all(dropped[name] > plain[name] + 0.05 for name in plain)
