"""InfoReg's record of periods: what it decides is what numbers on the host decide, and older records go on."""

import math

import pytest
import torch

from modalscape.engine.core.step import train_step
from modalscape.engine.maths.modalities import imbalance
from modalscape.engine.methods.inforeg import fisher as maths
from modalscape.engine.methods.inforeg.method import InfoReg
from tests import tiny
from tests.test_method_contract import same


class OnTheHost(InfoReg):
    """The same regulation with traces, windows and factors as numbers on the host, and no pull where none may act."""

    def init(self, view):
        self.rows, self.sums = [], torch.zeros(len(view.problem.modalities))
        return super().init(view)

    def _numbers(self) -> list[float]:
        """The factor of each modality's α."""
        form, rows = self._form(), self.rows
        count, k = len(self.sums), []
        for column in range(count):
            padded = [0.0] * (form.smoothing + 1) + [row[column] for row in rows]
            recent = 0.0
            for value in padded[-form.smoothing :]:
                recent += value
            k.append((padded[-1] - padded[-1 - form.smoothing]) / recent if 0.0 < recent < math.inf else math.nan)
        k = k if rows else [1.0] * count
        totals = [sum(row[column] for row in rows) for column in range(count)]
        k = [k[totals.index(max(totals))]] * count if form.gate == "strongest" else k
        open_ = [len(rows) >= form.plain and value > form.threshold for value in k]
        outside = [len(rows) >= form.plain and not value for value in open_]
        may = {"window": open_, "always": [True] * count, "outside": outside}[form.when]
        return [form.strength if allowed else 0.0 for allowed in may]

    def gradients(self, grads, view):
        numbers = self._numbers()
        if not any(numbers):
            return grads
        gap = imbalance.performance_gap(
            torch.stack([view.logits[m].softmax(-1)[range(len(view.batch)), view.batch.y].mean() for m in tiny.WIDTHS])
        )
        grads = grads.clone()
        for m, lead, number in zip(tiny.WIDTHS, gap, numbers, strict=True):
            where = view.problem.layout.slices[m]
            if lead > 0 and number:
                alpha = torch.exp(self.params.beta * torch.tanh(lead)) * number
                grads[0, where] += alpha * self.state["drift"][where]
        return grads

    def commit(self, view):
        total = view.raw_grads.sum(0)
        slices = [view.problem.layout.slices[m] for m in tiny.WIDTHS]
        self.sums = self.sums + torch.stack([total[where] @ total[where] for where in slices])
        if self.state["taken"] + 1 == self._period():
            self.rows.append((self.sums / self._period()).tolist())
            self.sums = torch.zeros(len(slices))
        return super().commit(view)


KNOBS = [
    {},
    {"plain": 2, "smoothing": 1},
    {"plain": 2, "smoothing": 1, "when": "outside"},
    {"when": "always"},
    {"when": "outside", "threshold": 0.1},
    {"plain": 2, "smoothing": 3, "gate": "strongest", "strength": 2.5},
]


@pytest.mark.parametrize("settings", [tiny.sgd(0.1, 0.9), tiny.Settings(name="adam", lr=0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_theta_is_to_the_last_bit_what_decisions_on_the_host_give(knobs, settings):
    thetas, pulled = {}, {}
    for kind in (InfoReg, OnTheHost):
        problem = tiny.problem(heads=True, dtype=torch.float32)
        method = kind(InfoReg.Params(period=6, **knobs))
        state, optimizer, stack, rng = tiny.started(problem, [method], settings)
        thetas[kind] = []
        for step in range(120):
            if step in (57, 100):  # in the middle of a period: acts at once
                changed = method.tuned("threshold", 0.3 if step == 57 else 0.04)
                vars(changed).update({key: value for key, value in vars(method).items() if key != "params"})
                method = changed
                stack = stack.having(method)
            state, _ = train_step(state, problem, optimizer, stack, rng)
            thetas[kind].append(state.theta)
        pulled[kind] = float(method.state["pulled"])
    assert all(map(torch.equal, thetas[InfoReg], thetas[OnTheHost]))
    assert 0 < pulled[InfoReg] == pulled[OnTheHost] and (pulled[InfoReg] < 120 or knobs.get("when") == "always")


def of_old(state: dict) -> dict:
    """The state as version 2 of the defaults kept it: lists of numbers, without what the last commit decided."""
    count = len(state["places"])
    lists = {key: state[key][-count:].tolist() if count else [] for key in ("traces", "opened")}
    last = {key: value.tolist() if torch.is_tensor(value) else value for key, value in state["last"].items()}
    new = ("factor", "decided")
    kept = {key: value for key, value in state.items() if key not in new}
    return kept | lists | {"ever": state["ever"].tolist(), "last": last}


@pytest.mark.parametrize("after", [3, 29])
@pytest.mark.parametrize("knobs", [{}, {"plain": 2, "smoothing": 1}, {"preset": "released"}], ids=str)
def test_a_record_of_lists_goes_on_as_one_of_tensors_does(knobs, after):
    problem, settings = tiny.problem(heads=True), tiny.sgd(0.1, 0.9)
    half, _, stack = tiny.train(problem, [InfoReg(InfoReg.Params(period=5, **knobs))], after, settings)
    new = stack.methods["inforeg"]
    old = InfoReg(new.params, of_old(new.state))
    ends = []
    for method in (new, old):
        state, optimizer, _, rng = tiny.started(problem, [], settings)
        state, again = half, tiny.Stack([method])
        view = None
        for _ in range(40):
            state, view = train_step(state, problem, optimizer, again, rng)
        ends.append((state.theta, method.state, [(r.name, r.mode) for r in method.report(view)]))
    assert torch.equal(ends[0][0], ends[1][0]) and same(ends[0][1], ends[1][1]) and ends[0][2] == ends[1][2]


def test_a_state_of_tensors_is_taken_as_it_is():
    _, _, stack = tiny.train(tiny.problem(), [InfoReg(InfoReg.Params(period=5))], 12)
    method = stack.methods["inforeg"]
    assert InfoReg(method.params, method.state).state is method.state


def test_a_row_of_the_record_pushes_the_oldest_out():
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    assert maths.record(rows, torch.tensor([4.0])).tolist() == [[2.0], [3.0], [4.0]]
    assert rows.tolist() == [[1.0], [2.0], [3.0]]


def test_a_drift_that_is_no_number_stays_where_nothing_is_pulled():
    drift = torch.tensor([math.nan, math.inf, 1.0])
    found = maths.pulled(torch.ones(1, 3), 0, torch.tensor([0.0, 2.0]), drift, [[slice(0, 2)], [slice(2, 3)]])
    assert found.tolist() == [[1.0, 1.0, 3.0]]
