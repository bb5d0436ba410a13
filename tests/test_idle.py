"""Switching a method on does something to theta, or the method says in a sentence why not and what would help."""

import re

import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.method import Method
from modalscape.engine.core.needs import PATIENCE
from modalscape.engine.errors import InputError
from modalscape.engine.registry import discover
from modalscape.engine.runtime.session import Training, deterministic
from tests.methods.several import data_file, training

METHODS = discover("modalscape.engine.methods", Method)
every_method = pytest.mark.parametrize("name", METHODS)
SENTENCE = re.compile(r"[A-Z][^\n]{30,240}\.")


def default(method=None, problem=None, data=None, **settings):
    """A run with default settings."""
    methods = (method,) if method else ()
    config = RunConfig(problem, data and str(data), methods, device="cpu", settings=settings)
    return Training(validated(config, catalog()))


class Plain:
    """The thetas of a run without methods, made as they are asked for."""

    def __init__(self, **source):
        self.run = default(**source)
        self.thetas = [self.run.state.theta]

    def after(self, steps):
        while len(self.thetas) <= steps:
            self.run.step()
            self.thetas.append(self.run.state.theta)
        return self.thetas[steps]


@pytest.fixture(scope="module", params=["digits_captions", "avdigits", "mfeat"])
def source(request):
    deterministic()
    if request.param == "digits_captions":
        found = {"problem": request.param}
    else:
        found = {"data": request.getfixturevalue("real_data") / f"{request.param}.npz"}
    return found, Plain(**found)


@every_method
def test_a_method_acts_within_200_steps_of_a_default_run_or_says_why_not(source, name):
    """The sentence is also right: a method that acts in the end has said nothing, and one that does not has."""
    about, plain = source
    try:
        run = default(name, **about)
    except InputError as refusal:
        assert SENTENCE.fullmatch(str(refusal)) and METHODS[name].title in str(refusal)
        return
    assert run.idle() == {}
    for step in range(1, PATIENCE + 1):
        run.step()
        if not torch.equal(run.state.theta, plain.after(step)):
            assert run.idle() == {}
            return
    assert set(run.idle()) == {name} and SENTENCE.fullmatch(run.idle()[name])


@every_method
def test_a_dose_of_nothing_is_said_and_a_default_one_is_not(name):
    kind = METHODS[name]
    assert training(name, unimodal="heads").idle() == {}
    zero = {f"{name}__{knob}": value for knob, value in kind.neutral.items()}
    text = training(name, unimodal="heads", **zero).idle()[name]
    assert SENTENCE.fullmatch(text) and text.startswith(kind.title) and any(knob in text for knob in kind.neutral)


IDLE = [
    ("agm", {"start": 300}, "does not act before step 300; set agm.start to 0"),
    ("ogm_ge", {"layers": "convolutions"}, "no encoder has one; set ogm_ge.layers to all"),
    ("opm", {"execute": 0.0}, "while opm.execute is 0.0; change it"),
    ("pmr", {"start": 5, "stop": 5}, "acts no more from step 5 on"),
    ("gani", {"virtual_batch": 16}, "lower gani.virtual_batch"),
    ("gani", {"rho": 0.0}, "gani.rho is 0"),
    ("gani", {"warmup": 500}, "averages 500 gradients"),
    ("isotropic_noise", {"virtual_batch": 64}, "lower isotropic_noise.virtual_batch"),
    ("inforeg", {"threshold": 1.0}, "no window ever opens"),
    ("inforeg", {"period": 150, "plain": 2}, "the first 2 periods of 150 steps are left alone"),
    ("inforeg", {"period": 1, "when": "always"}, "nothing to pull back to"),
    ("modalimmune", {"intervene": 0.0}, "while modalimmune.intervene is 0.0"),
    ("modalimmune", {"warmup": 400}, "in its first 400 steps; lower modalimmune.warmup"),
    ("moddrop", {"rates": "vision=0, audio=0"}, "rates of all modalities are 0"),
    ("bogc", {"warmup": 100.0}, "trains plainly for 100 epochs of 6 steps"),
    ("bogc", {"calibrate": "own"}, "set bogc.calibrate to all"),
]


@pytest.mark.parametrize(("name", "knobs", "words"), IDLE, ids=str)
def test_what_keeps_a_method_from_acting_is_named_with_its_remedy(name, knobs, words):
    run = training(name, unimodal="heads", **{f"{name}__{knob}": value for knob, value in knobs.items()})
    text = run.idle()[name]
    assert words in text and SENTENCE.fullmatch(text)
    twin = training(unimodal="heads")
    for _ in range(12):
        run.step(), twin.step()
    assert run.idle() == {name: text}
    if name != "bogc" or "calibrate" not in knobs:  # which averages over heads all the same
        assert torch.equal(run.state.theta, twin.state.theta)


def test_one_source_is_nothing_to_weigh():
    assert "start a run with unimodal set to heads" in training("bogc").idle()["bogc"]


def test_a_modality_alone_is_never_dropped(tmp_path):
    run = training("moddrop", data=data_file(tmp_path, names=("image",)))
    assert "only image; set moddrop.rescue to none" in run.idle()["moddrop"]
    run.tune("moddrop", "rescue", "none")
    assert run.idle() == {}


def test_noise_that_has_ended_says_so_when_it_is_switched_on():
    run = training("fanoise", fanoise__anneal="linear", fanoise__steps=5)
    assert run.idle() == {}
    for _ in range(6):
        run.step()
    assert "faded to nothing by step 5" in run.idle()["fanoise"]
    late = default(problem="planted", **{"planted.rows": 100})
    late.state = type(late.state)(900, late.state.theta, late.state.moments)
    late.toggle("gani", True)
    assert "the last 20% of the run is without; set gani.anneal to none" in late.idle()["gani"]


def test_tuning_a_dose_to_nothing_and_back_is_told_at_once():
    run = training("sam")
    run.tune("sam", "rho", 0.0)
    assert "sam.rho is 0.0; change it" in run.idle()["sam"]
    run.tune("sam", "rho", 0.1)
    assert run.idle() == {}


@every_method
def test_asking_leaves_no_trace(name):
    asked, silent = training(name, unimodal="heads"), training(name, unimodal="heads")
    for _ in range(10):
        asked.idle()
        asked.step(), silent.step()
    asked.idle()
    assert torch.equal(asked.state.theta, silent.state.theta)


def test_a_window_that_opens_is_nothing_to_speak_of():
    run = training("inforeg", unimodal="heads", inforeg__when="always", inforeg__period=4)
    for _ in range(40):
        assert run.idle() == {}
        run.step()


def test_the_state_of_an_older_version_goes_on_and_is_asked():
    """Checkpoints of before do not hold how often InfoReg has pulled."""
    new, old = (training("inforeg", unimodal="heads", inforeg__when="always", inforeg__period=4) for _ in range(2))
    del old.stack.methods["inforeg"].state["pulled"]
    for _ in range(30):
        assert old.idle() == {}
        new.step(), old.step()
    assert torch.equal(new.state.theta, old.state.theta)
