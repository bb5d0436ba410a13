"""What every method promises by lying in the folder, and what the stack promises to every method."""

import copy
import inspect
import re
from dataclasses import dataclass

import pytest
import torch

from modalscape.engine.core.knobs import checked
from modalscape.engine.core.method import Method, MethodConflict, Stack, knob
from modalscape.engine.core.points import Point
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import train_step
from modalscape.engine.errors import InputError
from modalscape.engine.registry import discover
from tests import tiny

METHODS = discover("modalscape.engine.methods", Method)
SETTINGS = tiny.sgd(0.1, 0.9)
STEPS = 40
TENSORS = ("theta", "clean_features", "features", "logits", "losses", "raw_grads", "grads", "grad", "applied_update")
SECTIONS = ("Acts at", "Remembers", "Composes with", "Source")

REPEATED = {"isotropic_noise": ("gani",)}
"""Method to those whose draws it repeats: a control whose noise has the norm that theirs would have."""


class Everywhere(Method):
    """Acts at the points that few methods use, so that the stack is tested at all of them."""

    name = "everywhere"
    title = "Everywhere"
    neutral = {"dose": 0.0}

    @dataclass(frozen=True)
    class Params:
        dose: float = knob(0.1, 0.0, 1.0, "How much of everything.")

    def init(self, view):
        return {"mean": torch.zeros_like(view.theta), "steps": 0}

    def features(self, features, view):
        if self.params.dose == 0:
            return features
        return {
            name: value + self.params.dose * view.rng.normal(f"everywhere/{name}", view.step, value)
            for name, value in features.items()
        }

    def losses(self, view):
        return self.params.dose * sum((value**2).mean() for value in view.clean_features.values())

    def fuse(self, grads, view):
        rows = [
            row for name, row in zip(view.losses, grads, strict=True) if name != "reg/everywhere" or self.params.dose
        ]
        return torch.stack(rows).sum(0) + self.params.dose * self.state["mean"]

    def commit(self, view):
        return {"mean": self.state["mean"].lerp(view.grad, 0.1), "steps": self.state["steps"] + 1}


def all_together() -> list[Method]:
    """Every method at its default dose, but one owner of `fuse`."""
    methods: list[Method] = []
    for kind in [*METHODS.values(), Everywhere]:
        try:
            Stack([*methods, kind()])
        except MethodConflict:
            continue
        methods.append(kind())
    return methods


ALL = {**METHODS, "everywhere": Everywhere}
every_method = pytest.mark.parametrize("kind", ALL.values(), ids=list(ALL))
problem = tiny.problem


def same(a, b) -> bool:
    """Whether two states are equal to the last bit."""
    if torch.is_tensor(a) or torch.is_tensor(b):
        return torch.is_tensor(a) and torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def leaves(value):
    """The tensors and plain values that a state is made of."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def needs_heads(kind) -> bool:
    """Whether the method refuses a problem without unimodal losses, by the sentence that says what to set."""
    try:
        tiny.started(problem(), [kind()])
    except InputError as refusal:
        assert str(refusal).endswith("set unimodal=heads.")
        return True
    return False


@every_method
@pytest.mark.parametrize("heads", [False, True])
def test_zero_dose_is_off_and_default_dose_is_not(kind, heads):
    if not heads and needs_heads(kind):
        pytest.skip(f"{kind.name} needs unimodal losses")
    off, _, _ = tiny.train(problem(heads=heads), [], STEPS, SETTINGS)
    zero, _, _ = tiny.train(problem(heads=heads), [kind(kind.Params(**kind.neutral))], STEPS, SETTINGS)
    on, _, _ = tiny.train(problem(heads=heads), [kind()], STEPS, SETTINGS)
    assert torch.equal(zero.theta, off.theta)
    assert not torch.equal(on.theta, off.theta)
    assert torch.isfinite(on.theta).all()


@every_method
def test_zero_dose_is_off_beside_all_others(kind):
    others = lambda: [method for method in all_together() if method.name != kind.name]  # noqa: E731
    zero = kind(kind.Params(**kind.neutral))
    try:
        Stack([*others(), zero])
    except MethodConflict:
        pytest.skip(f"{kind.name} and another own fuse")
    off, _, _ = tiny.train(problem(heads=True), others(), STEPS, SETTINGS)
    on, _, _ = tiny.train(problem(heads=True), [*others(), zero], STEPS, SETTINGS)
    assert torch.equal(on.theta, off.theta)


@every_method
def test_only_commit_changes_state(kind):
    case = problem(heads=True)
    state, views, stack = tiny.train(case, [kind()], STEPS, SETTINGS)
    method = stack.methods[kind.name]
    before, theta = copy.deepcopy(method.state), state.theta.clone()
    _, optimizer, _, rng = tiny.started(case, [], SETTINGS)
    stack.commit = lambda view: None
    train_step(state, case, optimizer, stack, rng)
    records = list(method.report(views[-1]))
    assert same(method.state, before)
    assert torch.equal(state.theta, theta)
    assert all(record.name.startswith(f"{kind.name}/") for record in records)
    if "commit" not in kind.points():
        assert not method.state


@every_method
def test_no_point_writes_into_what_it_is_given(kind):
    _, views, stack = tiny.train(problem(heads=True), [kind()], STEPS, SETTINGS)
    view, method = views[-1], stack.methods[kind.name]
    given = {
        "features": (view.clean_features, view),
        "losses": (view,),
        "gradients": (view.raw_grads, view),
        "fuse": (view.grads, view),
        "update": (view.applied_update, view),
        "commit": (view,),
    }
    before = copy.deepcopy([vars(view)[name] for name in TENSORS])
    for point in kind.points():
        if point in given:
            getattr(method, point)(*given[point])
    assert same([vars(view)[name] for name in TENSORS], before)


@every_method
def test_a_hook_may_run_twice(kind):
    case = problem(heads=True)
    state, _, stack = tiny.train(case, [kind()], STEPS, SETTINGS)
    _, optimizer, _, rng = tiny.started(case, [], SETTINGS)
    stack.commit = lambda view: None
    first, second = (train_step(state, case, optimizer, stack, rng)[0].theta for _ in range(2))
    assert torch.equal(first, second)


@every_method
def test_state_holds_no_graph_and_survives_a_checkpoint(kind, tmp_path):
    _, _, stack = tiny.train(problem(heads=True), [kind()], STEPS, SETTINGS)
    state = stack.methods[kind.name].state
    for leaf in leaves(state):
        assert isinstance(leaf, torch.Tensor | int | float | str | bool | None.__class__), type(leaf)
        assert not (torch.is_tensor(leaf) and leaf.requires_grad)
    torch.save(state, tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt", weights_only=True), state)


@pytest.mark.parametrize("kinds", [[kind] for kind in ALL.values()] + ["all"], ids=[*ALL, "all"])
def test_stop_save_load_go_on_equals_never_having_stopped(kinds, tmp_path):
    case = problem(heads=True)
    made = all_together if kinds == "all" else lambda: [kind() for kind in kinds]
    through, _, whole = tiny.train(case, made(), STEPS, SETTINGS)
    half, _, stack = tiny.train(case, made(), STEPS - 13, SETTINGS)
    torch.save({name: method.state for name, method in stack.methods.items()}, tmp_path / "states.pt")
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    again = Stack(type(method)(method.params, states[method.name]) for method in made())
    _, optimizer, _, rng = tiny.started(case, [], SETTINGS)
    for _ in range(13):
        half, _ = train_step(half, case, optimizer, again, rng)
    assert torch.equal(half.theta, through.theta)
    assert all(same(again.methods[name].state, method.state) for name, method in whole.methods.items())


@every_method
def test_draws_do_not_depend_on_other_methods(kind, monkeypatch):
    drawn: dict[tuple[str, str, int], int] = {}
    key_of = Rng.key

    def noted(self, purpose, step=0):
        drawn[self.path, purpose, step] = key_of(self, purpose, step)
        return drawn[self.path, purpose, step]

    monkeypatch.setattr(Rng, "key", noted)

    def draws(methods):
        drawn.clear()
        before = torch.get_rng_state()
        tiny.train(problem(heads=True), methods, STEPS, SETTINGS)
        assert torch.equal(torch.get_rng_state(), before), "draws from torch's global generator"
        return dict(drawn)

    base = draws([])
    alone = {key: value for key, value in draws([kind()]).items() if key not in base}
    others = [method for method in all_together() if method.name != kind.name]
    try:
        together = draws([*others, kind()])
    except MethodConflict:
        together = draws([kind()])
    assert alone.items() <= together.items()
    own = "|".join((kind.name, *REPEATED.get(kind.name, ())))
    assert all(re.match(rf"({own})(/|$)", purpose) for _, purpose, _ in alone), set(alone)


def test_listing_order_is_irrelevant():
    one, _, _ = tiny.train(problem(heads=True), all_together(), STEPS, SETTINGS)
    other, _, _ = tiny.train(problem(heads=True), all_together()[::-1], STEPS, SETTINGS)
    assert torch.equal(one.theta, other.theta)


def test_all_methods_together_stay_finite_in_pieces_too():
    whole, _, _ = tiny.train(problem(heads=True, micro=5), all_together(), STEPS, SETTINGS)
    assert torch.isfinite(whole.theta).all()


@every_method
def test_the_docstring_says_what_it_must(kind):
    if kind is Everywhere:
        pytest.skip("lives in this test only")
    doc = inspect.getmodule(kind).__doc__
    for section in SECTIONS:
        assert f"\n*{section}*: " in doc, f"{kind.name} has no section *{section}*"
    listed = re.search(r"\*Acts at\*: ([^.]*)\.", doc).group(1)
    assert tuple(re.findall(r"\w+", listed)) == kind.points()
    assert "reconstruct" in doc.lower() if kind.reconstructed else True
    assert re.search(r"\d{4}", doc[doc.index("*Source*") :]), "the source has no year or number"


@every_method
def test_knobs_are_in_their_range_and_explained(kind):
    known = {k["name"]: k for k in kind.knobs()}
    assert kind.neutral.keys() <= known.keys() and kind.neutral
    for name, entry in known.items():
        assert checked(entry, entry["default"], name) == entry["default"]
        assert entry["help"].endswith("."), name
        if entry["type"] in ("int", "float"):
            assert None not in (entry["low"], entry["high"]), name
    for name, value in kind.neutral.items():
        assert checked(known[name], value, name) == value
    assert any(known[name]["default"] != value for name, value in kind.neutral.items())


@every_method
def test_tuning_keeps_the_state(kind):
    _, _, stack = tiny.train(problem(heads=True), [kind()], 3, SETTINGS)
    method = stack.methods[kind.name]
    name, value = next(iter(kind.neutral.items()))
    tuned = method.tuned(name, value)
    assert getattr(tuned.params, name) == value
    assert tuned.state is method.state
    with pytest.raises(InputError, match="has no knob 'nonsense'"):
        method.tuned("nonsense", 1)


def test_two_owners_of_fuse_are_refused():
    class Second(Method):
        name, title = "second", "Second"

        def fuse(self, grads, view):
            return grads.sum(0)

    with pytest.raises(MethodConflict, match="everywhere and second both replace the gradient; turn one off."):
        Stack([Everywhere(), Second()])
    assert (
        Stack([Everywhere()]).having(Everywhere(Everywhere.Params(dose=0.2))).methods["everywhere"].params.dose == 0.2
    )


def test_a_misspelt_point_fails_where_it_is_written():
    with pytest.raises(TypeError, match="Wrong.featurs is no point"):

        class Wrong(Method):
            def featurs(self, features, view):
                return features


def test_points_are_the_seven():
    assert tuple(Point) == ("features", "losses", "gradients", "fuse", "around", "update", "commit")
    assert Everywhere.points() == ("features", "losses", "fuse", "commit")
    assert "everywhere" not in METHODS


def test_after_decides_the_order_and_cycles_are_refused():
    class Early(Method):
        name, title, after = "zz", "Early", ()

        def update(self, update, view):
            return update + 1

    class Late(Method):
        name, title, after = "aa", "Late", ("zz",)

        def update(self, update, view):
            return update * 2

    class Loop(Method):
        name, title, after = "zz", "Loop", ("aa",)

    for order in ([Early(), Late()], [Late(), Early()]):
        assert Stack(order).pipeline()["update"] == ["zz", "aa"]
        assert Stack(order).chain("update", 1, None) == 4
    with pytest.raises(MethodConflict, match="ask to act after the other"):
        Stack([Late(), Loop()])


def test_terms_of_methods_are_rows_of_their_own():
    _, (view,), _ = tiny.train(problem(heads=True), [Everywhere()], 1, SETTINGS)
    assert list(view.losses) == ["fused", "image", "text", "reg/everywhere"]
    assert len(view.raw_grads) == 4
    assert view.raw_grads[3].abs().max() > 0
    assert not torch.equal(view.features["image"], view.clean_features["image"])
