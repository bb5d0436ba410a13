"""Gains give each modality its share of the noise, and odd problems break neither GANI nor its control."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients import noise_dose, noise_injection as maths
from modalscape.engine.methods.gani import Gani
from modalscape.engine.methods.isotropic_noise import IsotropicNoise
from tests import tiny
from tests.methods.noise import knobs
from tests.methods.several import data_file, training

NOISES = (Gani, IsotropicNoise)
F64 = torch.float64
LAYOUT = Layout({"a": (30, 2), "b": (20,), "c": (10, 2)}, {"a": "image", "b": "text", "c": "shared"})
LOUD = {"gani.warmup": 2, "gani.virtual_batch": 2, "gani.rho": 1.0, "gani.clip": 0.1}


def memory(scale: dict[str, float]) -> dict:
    """Averages after many gradients, whose size in each part is told."""
    like = torch.cat([torch.full((size,), scale[part]) for part, size in zip(scale, LAYOUT.sizes, strict=True)])
    found = maths.fresh(like.double())
    for step in range(50):
        found = maths.absorbed(found, like.double() * (1 + tiny.Rng(3).normal("g", step, like)), 0.9)
    return found


def powers(kappa: str, held: dict, **values) -> dict[str, float]:
    power = maths.weighed(knobs(mode="central", kappa=kappa, **values), held, LAYOUT)
    return {part: float(power[where].sum()) for part, where in LAYOUT.slices.items()}


HELD = memory({"image": 3.0, "text": 0.1, "shared": 1.0})


def test_numbers_multiply_the_standard_deviation_of_their_part():
    plain = powers("1", HELD)
    assert powers("2", HELD) == pytest.approx({part: 4 * value for part, value in plain.items()})
    assert powers("text=3, shared=0", HELD) == pytest.approx(plain | {"text": 9 * plain["text"], "shared": 0.0})


def test_even_gains_give_every_modality_one_ratio_of_noise_to_gradient():
    grad = {part: float(HELD["square"][where].sum()) for part, where in LAYOUT.slices.items()}
    plain, even = powers("1", HELD), powers("even", HELD)
    ratios = [math.sqrt(even[part] / grad[part]) for part in ("image", "text")]
    assert ratios[0] == pytest.approx(ratios[1])
    assert plain["image"] / grad["image"] != pytest.approx(plain["text"] / grad["text"])
    assert sum(even.values()) == pytest.approx(sum(plain.values())) and even["shared"] == plain["shared"]


def test_inverse_gains_are_inverse_to_the_share_of_the_gradient():
    grad = {part: math.sqrt(float(HELD["square"][where].sum())) for part, where in LAYOUT.slices.items()}
    found = maths.gains("inverse", HELD["square"], maths.curvature(HELD, "central"), LAYOUT)
    assert float(found["text"] / found["image"]) == pytest.approx(grad["image"] / grad["text"])
    plain, inverse = powers("1", HELD), powers("inverse", HELD)
    assert sum(inverse.values()) == pytest.approx(sum(plain.values())) and inverse["shared"] == plain["shared"]


@pytest.mark.parametrize("kappa", noise_dose.BALANCES)
def test_a_modality_without_gradient_gets_no_noise_and_spoils_no_gain(kappa):
    held = memory({"image": 3.0, "text": 0.0, "shared": 1.0})
    found = powers(kappa, held, eps=1e-9)
    assert found["text"] == 0.0
    assert found["image"] == pytest.approx(powers("1", held)["image"], rel=1e-6)
    nothing = memory({"image": 0.0, "text": 0.0, "shared": 1.0})
    assert powers(kappa, nothing)["image"] == 0.0 and powers(kappa, nothing)["shared"] > 0


def test_gains_hold_for_the_shared_part_alone():
    layout = Layout({"w": (4, 4)}, {"w": "shared"})
    assert maths.gains("even", torch.ones(16), torch.ones(16), layout) == {}


def test_vectors_can_be_left_without_noise():
    whole, without = powers("1", HELD), powers("1", HELD, exclude="vectors", eps=1e-9)
    assert without["text"] == 0.0
    assert without["image"] == pytest.approx(whole["image"], rel=1e-6)


@pytest.mark.parametrize("method", NOISES)
@pytest.mark.parametrize("kappa", ["image", "image=x", "-1", "nan", "101", "image=2,", "even, text=1", ""])
def test_gains_that_cannot_be_read_are_refused(method, kappa):
    if kappa == "image=2,":
        assert noise_dose.numbers(kappa) == {"image": 2.0}
        return
    with pytest.raises(InputError, match="kappa (must be a number|has)"):
        method.Params(kappa=kappa)


@pytest.mark.parametrize("method", NOISES)
def test_a_gain_on_a_part_that_is_not_there_is_refused(method):
    with pytest.raises(InputError, match="kappa names 'imagine'; did you mean image"):
        tiny.started(tiny.problem(), [method(method.Params(kappa="imagine=2"))])
    tiny.started(tiny.problem(), [method(method.Params(kappa="image=2, shared=0.5"))])


def test_the_control_has_the_power_of_gani_whatever_the_gains():
    for level in ("all", "tensor"):
        values = {"mode": "central", "kappa": "text=5", "exclude": "vectors"}
        power = maths.weighed(knobs(**values), HELD, LAYOUT)
        control = IsotropicNoise(knobs(IsotropicNoise, level=level, **values), HELD)
        ones = SimpleNamespace(normal=lambda name, step, like: torch.ones_like(like))
        at = SimpleNamespace(rng=ones, step=0, grad=power, problem=SimpleNamespace(layout=LAYOUT))
        std = control._even(control.params, HELD, at)
        assert float(std.square().sum()) == pytest.approx(float(power.sum()))


def test_gains_are_reported_and_tighten_the_stability_line():
    settings = tiny.sgd(0.1)
    bounds = {}
    for kappa in ("1", "text=3"):
        _, views, stack = tiny.train(tiny.problem(), [Gani(knobs(kappa=kappa, sigma=1.0))], 5, settings)
        records = {r.name: r for r in stack.methods["gani"].report(views[-1])}
        bounds[kappa] = records["gani/lambda_bound"].value
        assert ("gani/kappa/text" in records) == (kappa != "1")
        assert ("gani/alignment_expected" in records) == (kappa == "1")
    assert records["gani/kappa/text"].value == 3.0 and records["gani/kappa/image"].value == 1.0
    assert bounds["1"] == pytest.approx(10.0) and bounds["text=3"] == pytest.approx(2.0)


@pytest.mark.parametrize("modalities", [2, 10])
@pytest.mark.parametrize("kappa", ["1", "even", "inverse"])
def test_any_number_of_modalities_trains(modalities, kappa):
    run = training("gani", modalities=modalities, **LOUD, **{"gani.kappa": kappa})
    for _ in range(12):
        run.step()
    assert torch.isfinite(run.state.theta).all()
    names = {r.name for r in run.stack.methods["gani"].report(run.view)}
    assert sum(name.startswith("gani/noise_to_gradient/") for name in names) == modalities + 1


def ended(folder, method: str, **settings):
    run = training(method, data=str(folder), **{key.replace("gani", method): v for key, v in LOUD.items()}, **settings)
    for _ in range(12):
        run.step()
    assert torch.isfinite(run.state.theta).all()
    records = list(run.stack.methods[method].report(run.view))
    assert all(np.isfinite(r.value if r.kind == "scalar" else r.values).all() for r in records)
    return run


@pytest.mark.parametrize("method", ["gani", "isotropic_noise"])
def test_one_modality_trains(method, tmp_path):
    assert ended(data_file(tmp_path, names=("image",)), method).stack.methods[method].state["seen"] == 12


@pytest.mark.parametrize("method", ["gani", "isotropic_noise"])
@pytest.mark.parametrize("kappa", ["1", "even", "inverse"])
def test_a_modality_of_zeros_trains(method, kappa, tmp_path):
    run = ended(data_file(tmp_path, dead=("text",)), method, **{f"{method}.kappa": kappa})
    first = run.problem.layout.blocks(run.problem.init())
    last = run.problem.layout.blocks(run.state.theta)
    weights = next(name for name in first if name.startswith("encoders.text") and first[name].dim() == 2)
    # inputs of zero leave the first layer without gradient; the floor eps alone moves it
    moved = float((last[weights] - first[weights]).abs().max())
    assert moved < 1e-4 if method == "gani" else moved > 1e-4


@pytest.mark.parametrize("method", ["gani", "isotropic_noise"])
def test_a_batch_of_one_trains_without_noise_and_may_be_given_some(method, tmp_path):
    path = data_file(tmp_path)
    quiet, plain = ended(path, method, batch=1), training(data=str(path), batch=1)
    for _ in range(12):
        plain.step()
    assert torch.equal(quiet.state.theta, plain.state.theta)  # nothing is smaller than a batch of one
    halves = ended(path, method, batch=1, **{f"{method}.sizing": "fixed"})
    assert torch.equal(halves.state.theta, plain.state.theta)
    assert halves.idle()[method].endswith(f"a batch of one row has no halves; set {method}.mode to central.")
    fixed = ended(path, method, batch=1, **{f"{method}.sizing": "fixed", f"{method}.mode": "central"})
    assert not torch.equal(fixed.state.theta, plain.state.theta)


@pytest.mark.parametrize("method", NOISES)
@pytest.mark.parametrize("sizing", ["virtual", "relative"])
def test_a_broken_gradient_spoils_no_memory(method, sizing):
    broken = lambda step: torch.full((8,), math.nan if step == 6 else 0.1 * step, dtype=F64)  # noqa: E731
    problem = tiny.Quadratic(torch.ones(8, dtype=F64), torch.ones(8, dtype=F64), broken, batch=64)
    state, optimizer, stack, rng = tiny.started(problem, [method(knobs(method, mode="central", sizing=sizing))])
    for step in range(9):
        following, view = tiny.train_step(state, problem, optimizer, stack, rng)
        held = stack.methods[method.name].state
        assert all(torch.isfinite(held[key]).all() for key in ("mean", "square"))
        good = bool(torch.isfinite(view.grad).all())
        assert good == (step != 6)
        state = following if good else tiny.State(step + 1, state.theta, state.moments)  # as a run takes it back
    assert held["nonfinite"] == 1 and held["seen"] == 8
    assert torch.isfinite(state.theta).all()


def test_pieces_of_a_batch_count_as_one_batch():
    whole, pieces = (
        tiny.train(tiny.problem(batch=32, micro=micro), [Gani(Gani.Params(warmup=2, virtual_batch=4))], 8)[2]
        for micro in (0, 8)
    )
    one, other = (stack.methods["gani"].state for stack in (whole, pieces))
    assert one["seen"] == other["seen"] == 8
    torch.testing.assert_close(one["square"], other["square"])
