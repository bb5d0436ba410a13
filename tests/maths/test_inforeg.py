"""InfoReg's pieces against numbers known on paper: leads, windows, Fisher traces."""

import math

import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.maths.modalities.imbalance import performance_gap
from modalscape.engine.maths.modalities.unimodal import encoder
from modalscape.engine.methods.inforeg import fisher as maths
from modalscape.engine.methods.inforeg.method import InfoReg

# --- who leads, and by how much


def test_the_lead_is_the_mean_distance_to_all_that_are_behind():
    torch.testing.assert_close(performance_gap(torch.tensor([0.8, 0.5])), torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(performance_gap(torch.tensor([0.9, 0.6, 0.3])), torch.tensor([0.45, 0.3, 0.0]))
    assert performance_gap(torch.tensor([0.4, 0.4, 0.4])).tolist() == [0.0, 0.0, 0.0]
    order = torch.tensor([2, 0, 1])
    scores = torch.rand(3, dtype=torch.float64)
    assert torch.equal(performance_gap(scores[order]), performance_gap(scores)[order])


def test_the_coefficient_starts_at_one_and_stays_below_e_to_the_beta():
    gap = torch.tensor([0.0, 1e-12, 0.3, 1e9, math.nan], dtype=torch.float64)
    found = maths.coefficient(gap, 0.9)
    assert found[0] == 0 and found[4] == 0
    assert float(found[1]) == pytest.approx(1.0)
    assert float(found[2]) == pytest.approx(math.exp(0.9 * math.tanh(0.3)))
    assert float(found[3]) <= math.exp(0.9)
    assert maths.coefficient(gap[1:4], 0.0).tolist() == [1.0, 1.0, 1.0]
    assert maths.coefficient(gap[1:4], 0.9, margin=0.3).tolist()[:2] == [0.0, 0.0]


def test_every_score_is_larger_for_the_better_modality():
    y = torch.tensor([0, 1])
    good, bad = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
    for kind in maths.SCORES:
        high, low = maths.scores({"good": good, "bad": bad}, y, kind).tolist()
        assert high > low
    assert maths.scores({"a": bad}, y, "mean").tolist() == [0.5]
    assert maths.scores({"a": bad}, y, "sum").tolist() == [1.0]
    assert maths.scores({"a": bad}, y, "log").tolist() == [pytest.approx(-math.log(2))]


# --- when the window is open


PAPER = {"plain": 2, "smoothing": 1}
"""The paper's window: two plain periods, growth from one period to the next."""


def kept(*rows) -> torch.Tensor:
    """A record of traces, (KEPT, M), the last rows of which are these."""
    table = torch.zeros(maths.KEPT, len(rows[-1]) if rows else 2, dtype=torch.float64)
    for place, row in enumerate(rows):
        table[place - len(rows)] = torch.tensor(row, dtype=torch.float64)
    return table


def growth(traces, smoothing=1) -> float:
    return float(maths.growth(kept(*([value] for value in traces)), len(traces), smoothing)[0])


def windows(rows, form) -> list[bool]:
    return maths.windows(kept(*rows), len(rows), form).tolist()


def factors(rows, form) -> list[float]:
    return maths.factors(kept(*rows), len(rows), form).tolist()


def test_growth_of_lists_made_by_hand():
    assert growth([1.0, 2.0]) == 0.5
    assert growth([5.0, 5.0, 5.0]) == 0.0
    assert growth([4.0, 3.0]) == pytest.approx(-1 / 3)
    assert growth([]) == 1.0


@pytest.mark.parametrize("last", [0.0, math.nan, math.inf])
def test_a_trace_without_meaning_opens_no_window(last):
    for form in (InfoReg.Params(plain=0, smoothing=1), InfoReg.Params(plain=0, smoothing=1, gate="strongest")):
        assert math.isnan(growth([1.0, last])) or growth([1.0, last]) < 0
        assert windows([[1.0], [last]], form) == [False]


def test_smoothed_growth_of_a_constant_trace_is_one_over_the_period():
    found = [growth([3.0] * t, 10) for t in range(1, 13)]
    assert found == pytest.approx([1 / t for t in range(1, 11)] + [0.0, 0.0])


def test_smoothing_is_the_difference_of_moving_averages():
    draw = torch.Generator().manual_seed(0)
    traces = torch.rand(15, generator=draw, dtype=torch.float64).tolist()
    now, before = sum(traces[-4:]) / 4, sum(traces[-5:-1]) / 4
    assert growth(traces, 4) == pytest.approx((now - before) / now)


def test_the_window_of_a_peaked_trace_closes_at_the_peak_and_later_when_smoothed():
    traces = [math.exp(-(((t - 15) / 5) ** 2) / 2) for t in range(40)]
    closing = {}
    for smoothing in (1, 10):
        form = InfoReg.Params(smoothing=smoothing, plain=2)
        opened = [windows([[v] for v in traces[:t]], form)[0] if t else False for t in range(40)]
        assert opened[:2] == [False, False] and opened[2]
        closing[smoothing] = max(t for t, is_open in enumerate(opened) if is_open)
        assert all(opened[2 : closing[smoothing] + 1])
    # period t reads the traces of the periods before it: the last clear rise is from 13 to 14
    assert closing == {1: 15, 10: 19}


def test_by_default_the_window_is_open_from_the_start_and_a_falling_trace_closes_it():
    """The paper's rule never opens on a trace that falls from its first period on, as on small data."""
    falling = [[2.0**-t, 1.0] for t in range(20)]
    opened = [windows(falling[:t], InfoReg.Params()) if t else [True, True] for t in range(20)]
    assert maths.windows(kept(), 0, InfoReg.Params()).tolist() == [True, True]
    # halved each time, k = 2^(1-t)/(2 - 2^(1-t)), which is 1/15 after four periods and 1/31 after five; constant, 1/t
    assert [row[0] for row in opened] == [True] * 5 + [False] * 15
    assert [row[1] for row in opened] == [True] * 11 + [False] * 9
    assert not any(any(windows(falling[:t], InfoReg.Params(**PAPER))) for t in range(1, 20))


def test_plain_periods_and_the_three_times_of_regulation():
    rising, paper = [[1.0, 2.0], [2.0, 1.0]], InfoReg.Params(**PAPER)
    assert windows(rising, paper) == [True, False]
    assert windows(rising[:1], paper) == [False, False]
    for when, expected in (("window", [1.0, 0.0]), ("outside", [0.0, 1.0]), ("always", [1.0, 1.0])):
        assert factors(rising, InfoReg.Params(when=when, **PAPER)) == expected
    assert factors([], InfoReg.Params(when="outside", **PAPER)) == [0.0, 0.0]


def test_the_released_form_has_one_gate_and_two_factors():
    form = InfoReg.Params(strength=2.0, **maths.PRESETS["released"], preset="released")
    assert factors([], form) == [1.9, 0.2]
    traces = [[1.0, 4.0], [2.0, 8.0]]
    assert maths.strongest(kept(*traces)).tolist() == [False, True]
    assert factors(traces, form) == [0.2, 1.9]
    fallen = [[1.0, 8.0]] + [[9.0, 8.0]] * 9 + [[20.0, 1.0]]
    assert windows(fallen, form) == windows([[row[0]] for row in fallen], form) * 2


def test_of_equal_traces_the_first_is_the_strongest():
    assert maths.strongest(kept()).tolist() == [True, False]
    assert maths.strongest(kept([1.0, 3.0, 3.0])).tolist() == [False, True, False]


def test_why_nothing_is_pulled_is_said_with_what_helps_and_not_where_something_is():
    state = {"pulled": torch.zeros(()), "periods": 9, "ever": torch.tensor([0, 0])}
    paper, code, always = (InfoReg.Params(**knobs) for knobs in (PAPER, {}, {"when": "always"}))

    def said(form, **changes):
        return maths.closed(state | changes, [False, False], 20, form)

    assert "no prime learning window has opened; set inforeg.plain to 0 and inforeg.smoothing to 10 from" in said(paper)
    assert said(code).endswith("opened; set inforeg.when to always")
    assert said(paper, ever=torch.tensor([0, 1])).startswith("no modality has led in a period in which it could")
    assert said(always) == "no modality leads by enough; lower inforeg.margin"
    assert said(paper, pulled=torch.ones(())) == said(paper, periods=2) == ""
    assert "inforeg.smoothing 10" in maths.history(0, 9, 20, 2) and "smoothing" not in maths.history(0, 9, 20, 0)
    assert maths.history(3, 9, 20, 2).startswith("open in 3 of 9 periods")


# --- the same as tensors, and as numbers one by one


def by_hand(rows, form) -> tuple[list[float], list[float]]:
    """k and factors of each modality from lists of numbers, without a tensor."""
    count = len(rows[-1]) if rows else 2

    def single(column):
        if not rows:
            return 1.0
        padded = [0.0] * (form.smoothing + 1) + [row[column] for row in rows]
        recent = 0.0
        for value in padded[-form.smoothing :]:
            recent += value
        return (padded[-1] - padded[-1 - form.smoothing]) / recent if 0.0 < recent < math.inf else math.nan

    k = [single(column) for column in range(count)]
    totals = [sum(row[column] for row in rows) for column in range(count)]
    leader = totals.index(max(totals))
    if form.gate == "strongest":
        k = [k[leader]] * count
    found = []
    for column, value in enumerate(k):
        is_open = len(rows) >= form.plain and value > form.threshold
        may = {"window": is_open, "always": True, "outside": len(rows) >= form.plain and not is_open}[form.when]
        share = 1.0 if form.preset == "paper" else maths.FACTORS[column != leader]
        found.append(form.strength * share if may else 0.0)
    return k, found


@pytest.mark.parametrize("preset", maths.PRESETS)
@pytest.mark.parametrize("when", ["window", "always", "outside"])
@pytest.mark.parametrize("gate", ["own", "strongest"])
def test_growth_and_factors_are_to_the_last_bit_what_numbers_one_by_one_give(preset, when, gate):
    draw = torch.Generator().manual_seed(3)
    for smoothing in (1, 2, 10, 50):
        knobs = {"when": when, "gate": gate, "smoothing": smoothing, "threshold": 0.1, "strength": 0.7}
        form = InfoReg.Params(preset=preset, plain=3, **knobs)
        for periods in (0, 1, 2, 5, 11, 60):
            rows = torch.rand(periods, 3, generator=draw, dtype=torch.float64).pow(3).tolist()
            k, wanted = by_hand(rows, form)
            table = kept(*rows)
            assert maths.growths(table, periods, form).tolist() == (k if rows else [1.0, 1.0])
            assert maths.factors(table, periods, form).tolist() == wanted


# --- the Fisher trace


def softmax_regression(count=40, width=4, classes=3):
    draw = torch.Generator().manual_seed(1)
    h = torch.randn(count, width, generator=draw, dtype=torch.float64)
    y = torch.randint(classes, (count,), generator=draw)
    theta = torch.randn(classes * (width + 1), generator=draw, dtype=torch.float64)

    def logits(theta, h):
        return h @ theta[: classes * width].view(classes, width).T + theta[classes * width :]

    return h, y, theta, logits, lambda theta, h, y: torch.nn.functional.cross_entropy(logits(theta, h), y)


def test_the_sample_trace_of_softmax_regression_is_known_on_paper():
    h, y, theta, logits, loss = softmax_regression()
    p = logits(theta, h).softmax(-1)
    miss = (p - torch.nn.functional.one_hot(y, 3)).square().sum(1)
    found = maths.sample_squares(loss, theta, (h, y), [[slice(0, 12)], []])
    by_hand = [(miss * h.square().sum(1)).mean(), torch.zeros(()), (miss * (h.square().sum(1) + 1)).mean()]
    torch.testing.assert_close(found, torch.stack(by_hand).double())


def test_the_trace_with_labels_drawn_from_the_model_is_known_on_paper():
    h, _, theta, logits, loss = softmax_regression()
    p = logits(theta, h).softmax(-1)
    found = sum(
        float(p[i, c] * maths.sample_squares(loss, theta, (h[i : i + 1], torch.tensor([c])), [])[-1])
        for i in range(len(h))
        for c in range(3)
    )
    wanted = ((1 - p.square().sum(1)) * (h.square().sum(1) + 1)).sum()
    assert found == pytest.approx(float(wanted))


def test_the_batch_trace_is_the_mean_squared_plus_the_variance_over_the_batch():
    """Batches of 5 drawn with replacement; 4000 of them, within four standard errors."""
    h, y, theta, _, loss = softmax_regression()
    grads = torch.stack([torch.func.grad(loss)(theta, h[i : i + 1], y[i : i + 1]) for i in range(len(h))])
    mean = grads.mean(0)
    spread = (grads - mean).square().sum(1).mean()
    draw = torch.Generator().manual_seed(2)
    picks = torch.randint(len(h), (4000, 5), generator=draw)
    found = torch.stack([maths.squares(grads[pick].mean(0), [])[-1] for pick in picks])
    error = float(found.std() / len(found) ** 0.5)
    assert float(found.mean()) == pytest.approx(float(mean @ mean + spread / 5), abs=4 * error)
    assert float(found.mean()) + 10 * error < float(grads.square().sum(1).mean())


def test_the_codes_trace_weighs_small_layers_as_much_as_large_ones():
    shapes = {"encoders.a.w": (2, 2), "encoders.a.b": (2,), "encoders.b.w": (1, 3), "trunk.w": (1, 2)}
    layout = Layout(shapes, dict(zip(shapes, ("a", "a", "b", "shared"), strict=True)))
    grad = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 3.0, 0.0, 0.0, 2.0, 0.0])
    assert maths.weight_squares(grad, layout, ("a", "b")).tolist() == [1.0, 3.0, 6.0]
    assert maths.squares(grad, [encoder(layout, "a"), encoder(layout, "b")]).tolist() == [166.0, 9.0, 179.0]


def test_an_encoder_is_found_without_its_own_head():
    shapes = {"encoders.a.w": (2,), "trunk.heads.a.w": (3,), "encoders.b.w": (4,)}
    layout = Layout(shapes, dict(zip(shapes, "aab", strict=True)))
    assert encoder(layout, "a") == [slice(0, 2)]
    assert encoder(layout, "b") == [slice(5, 9)]
    assert encoder(layout, "c") == []


def test_orthogonal_gradients_have_no_cosine_and_equal_ones_have_all():
    assert maths.batch_cosine(math.sqrt(3), 3.0, 3.0) == pytest.approx(0.0)
    assert maths.batch_cosine(3.0, 3.0, 3.0) == pytest.approx(1.0)
    assert math.isnan(maths.batch_cosine(1.0, 1.0, 1.0))


def test_open_periods_are_joined_into_stretches_of_steps():
    assert maths.spans([True, False], [0, 5, 10]) == [[0.0, 5.0]]
    assert maths.spans([True, True, False, True], [0, 5, 10, 15, 20]) == [[0.0, 10.0], [15.0, 20.0]]
    assert maths.spans([False], [0, 5]) == []


def test_confidence_is_set_against_accuracy_in_order_of_confidence():
    p = torch.tensor([0.6, 0.9, 0.7, 0.8], dtype=torch.float64)
    logits = torch.stack([p, 1 - p], 1).log()
    sure, right = maths.borne_out(logits, torch.tensor([1, 0, 0, 0]), 2)
    torch.testing.assert_close(sure, torch.tensor([0.65, 0.85], dtype=torch.float64))
    assert right.tolist() == [0.5, 1.0]
    sure, right = maths.borne_out(logits[:1], torch.tensor([1]))
    assert len(sure) == 1 and right.tolist() == [0.0]
