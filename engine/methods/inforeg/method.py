"""InfoReg: while an encoder takes in information fastest, the leading modality is held near where its period began.

Training is cut into periods. The mean squared gradient of each encoder over a period is its Fisher trace; while that
still grows by a share above K from one period to the next, the encoder's *prime learning window* is open. A modality
whose score on the batch is above that of others, by Δ on average, and whose window is open, gets α·(w - w⁰) added to
its encoder's gradient, with α = exp(β·tanh Δ) and w⁰ its weights when the period began. Heads and fusion never do.

The pull is the paper's; the window is by default that of the authors' code, which averages ten periods, counts those
before the first as zero, and so is open from the first step until a trace has stopped growing, of a constant one for
ten periods. The paper's is `plain` 2 and `smoothing` 1: on small data, where a trace falls from its first period on, it
never opens, or opens first for a modality that does not lead.

*Presets*: `released` is the authors' code but for K: scores summed over the batch, so that tanh saturates; traces as in
`weights`, with the pull in them; growth of ten-period averages; no plain periods; one trace as the gate of all windows;
β = 1 with factors 0.95 and 0.1 on α. `november` is the code of November 2025 with its K = 0.05 too, in a run with
`unimodal` slices, which is refused otherwise. What still differs from it: its gate is audio, here the modality with the
largest traces on record; its traces are sums over batches, here means, which leave growth as it is; model, data, rate
and length are the run's. The code of March 2025 had K = 0.04 and heads, and by a slip never held video back.

Equation 8 prints a score that is smaller for better; every later use, and ours, is larger. Periods must be long enough
for the pull, see `inforeg/room`.

*Acts at*: gradients, commit.

*Remembers*: the drift w - w⁰ and the sum of gradients since the period began, (P,) each; sums over the period; the
traces of up to 256 periods and when windows were open; what the last period came to; the factors on α. Nothing of it is
asked of the device in a step.

*Composes with*: every `fuse`; the pull is added to the first, the fused, row after OGM-GE and ModalImmune have acted,
and a `fuse` that weighs rows weighs it too. Traces are of the raw rows without `reg/…`, unimodal losses included. SAM:
the pull is that of the unperturbed weights. Drift counts whatever moved the weights, noise of GANI too. With Adam and
RMSprop the drift still settles near ‖g‖/α, but within few steps: the encoder almost stops. Use SGD or less `strength`.

*Source*: Huang et al., InfoReg, CVPR 2025, arXiv 2503.18595, equations 7 to 16, and the authors' code. We differ: the
score is the mean probability of the true class; traces come from batch gradients (equation 13), which is below the
trace of equation 7 (`samples`) and depends on the batch size; one modality's logits are those of its head or slice, or
else the fused logits with all other features at zero; `strength`, `margin` and `when` are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import FUSED, Need
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.records import Record
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities import imbalance, unimodal
from modalscape.engine.methods.inforeg import fisher as maths, report as told


class InfoReg(Method):
    """Information acquisition regulation."""

    name = "inforeg"
    title = "InfoReg"
    needs = (FUSED, Need("unimodal", ("slices",), {"inforeg.preset": "november"}))
    modalities = (2, None)
    after = ("modalimmune", "ogm_ge")
    neutral = {"strength": 0.0}
    judged = (
        "Lets the weakest modality learn: alone it gained 27 points on planted data and 13 on spoken and written "
        "digits, inside the window and not outside, at no cost to the fused accuracy; the strongest lost 11 on the "
        "digits, of six views the weakest gained nothing, and beside slices' own losses there was nothing to gain."
    )
    rescaled = (
        "It divides each gradient by its running size, the pull included: the drift settles within a few steps and the "
        "encoder almost stops. Use sgd, or less strength."
    )

    @dataclass(frozen=True)
    class Params:
        """How hard, when, and by what measure the leading modality is held back."""

        strength: float = knob(1.0, 0.0, 100.0, "Dose: factor on α; 0 is off.")
        period: int = knob(0, 0, 10_000_000, "Steps of a period; 0 for one epoch.")
        when: str = knob("window", help="When to pull.", choices=("window", "always", "outside"))
        threshold: float = knob(0.04, 0.0, 1.0, "K: growth of the trace above which a window is open; 1 for never.")
        preset: str = knob(
            "paper",
            help="`released`: the authors' code, whatever the knobs below say; `november`: with its K and slices too.",
            choices=tuple(maths.PRESETS),
        )
        beta: float = knob(0.9, 0.0, 5.0, "β: how much α grows with the lead; 0 for α = 1 at any lead.")
        score: str = knob("mean", help="True-class probability that is compared.", choices=("mean", "sum", "log"))
        smoothing: int = knob(10, 1, 50, "Periods averaged before growth is taken, as in the authors' code; paper: 1.")
        plain: int = knob(0, 0, 1000, "First periods, in which no window is open; paper: 2.")
        trace: str = knob(
            "batches",
            help="Squares of batch gradients, of single rows' gradients, or means by weight tensor.",
            choices=("batches", "samples", "weights"),
        )
        gate: str = knob("own", help="Whose trace opens a modality's window.", choices=("own", "strongest"))
        margin: float = knob(0.0, 0.0, 10.0, "Lead up to which nothing is pulled, in units of the score.")
        rows: int = knob(64, 1, 4096, "Rows of the probe batch for the trace of `samples`.")

    _known: tuple | None = None
    _spans: list[list[slice]] | None = None

    def __init__(self, params: Any = None, state: dict[str, Any] | None = None) -> None:
        super().__init__(params, state and maths.renewed(state))

    def init(self, view: View) -> dict[str, Any]:
        """Return the state before the first period.

        Raises:
            InputError: the problem has no classes, one modality, or an epoch of unknown length, or it has no slices
                and the preset is november.
        """
        problem, few = view.problem, view.batch.rows(slice(0, 2))
        with torch.no_grad():
            _, logits = problem.objectives(view.theta, problem.encode(view.theta, few), few)
        unimodal.comparable(self.title, problem.modalities, few.y, logits)
        if self.params.preset == "november" and not maths.sliced(logits, problem.modalities):
            raise InputError("InfoReg's preset november is for runs with unimodal=slices; choose preset released here.")
        epoch = maths.epoch(problem) or self.params.period
        if not epoch:
            raise InputError(f"InfoReg knows no length of an epoch of {problem.title}; set inforeg.period to steps.")
        alpha, form = view.theta.new_zeros(len(problem.modalities)), self._form()
        state = maths.unread(alpha) | _begun(view) | {"epoch": epoch, "kind": form.trace, "alpha": alpha, "last": {}}
        factor = maths.factors(state["traces"], 0, form).to(alpha.dtype)
        return state | {"pulled": alpha.sum(), "factor": factor, "decided": maths.deciding(form)}

    def idle(self, view: View) -> str:
        """Return why no encoder is pulled: as for every method, or no window opens for long."""
        reason = maths.closed({"pulled": 0} | self.state, self._open().tolist(), self._period(), self._form())
        return super().idle(view) or (reason and f"InfoReg pulls no encoder: {reason}.")

    def gradients(self, grads: Tensor, view: View) -> Tensor:
        """Return the rows (K, P) with the pull on the leading encoders in the first row that is no regulariser."""
        row = maths.objectives(view.losses)[0]
        return maths.pulled(grads, row, self._alpha(view), self.state["drift"], self._encoders(view))

    def commit(self, view: View) -> dict[str, Any]:
        """Return the state with this step in it; the last step of a period leaves its trace and begins the next.

        The device is asked nothing, at the end of a period either: which windows are open is a tensor.
        """
        s, encoders, alpha, rows = self.state, self._encoders(view), self._alpha(view), maths.objectives(view.losses)
        # a list of numbers as an index would be copied to the device
        every = view.raw_grads
        kept = every if len(rows) == len(every) else torch.stack([every[row] for row in rows])
        grad = kept[0] if len(rows) == 1 else kept.sum(0)
        measured = own = maths.squares(grad, encoders)
        pull = alpha * maths.encoder_squares(s["drift"], encoders).sqrt()
        if self._form().trace == "weights":
            whole = maths.pulled(grad[None], 0, alpha, s["drift"], encoders)[0]
            measured = maths.weight_squares(whole, view.problem.layout, view.problem.modalities)
        sums = torch.stack([own[:-1], own[:-1].sqrt(), pull, alpha, (alpha > 0).to(alpha.dtype)])
        state = s | {
            "drift": s["drift"] + view.applied_update,
            "total": s["total"] + grad,
            "squares": s["squares"] + measured,
            "sums": s["sums"] + sums,
            "alpha": alpha,
            "pulled": s.get("pulled", 0) + alpha.any().to(alpha.dtype),  # absent from checkpoints of older versions
            "taken": s["taken"] + 1,
            "factor": self._factor(),
            "decided": maths.deciding(self._form()),
        }
        return self._finished(state, view) if state["taken"] >= self._period() else state

    def report(self, view: View) -> Iterator[Record]:
        """Yield who leads and is pulled, whose window is open, and what the last period came to."""
        s, names, form = self.state, view.problem.modalities, self._form()
        alone = _alone(view)
        yield from told.about_the_lead(alone, view.batch.y, set(names) <= view.logits.keys(), s["alpha"], form)
        yield from told.about_the_windows(s, names, self._period(), form)
        if view.rate.optimizer == "sgd":
            value = maths.room(view.rate.lr, self.params.strength, self._period(), view.rate.momentum)
            yield from told.about_the_room(value)
        if s["last"]:
            yield from told.about_the_period(s, names, self._open().tolist(), self._period(), form)

    def _finished(self, state: dict[str, Any], view: View) -> dict[str, Any]:
        """Return the state with the period's trace on record and the next period begun."""
        steps, encoders, problem, kind = state["taken"], self._encoders(view), view.problem, self._form().trace
        squares = state["squares"] / steps
        if kind == "samples":
            few = problem.probe_batch().rows(slice(0, self.params.rows))

            def loss(theta: Tensor, y: Tensor, *x: Tensor) -> Tensor:
                return problem.loss(theta, Batch(dict(zip(few.x, x, strict=True)), y))

            squares = maths.sample_squares(loss, view.theta, (few.y, *few.x.values()), encoders)
        last = {key: maths.encoder_squares(state[key], encoders).sqrt() for key in ("drift", "total")}
        opened = self._open()
        # traces of another kind have another unit, so growth must not be taken across a change
        past = state if state["kind"] == kind else maths.unread(state["alpha"])
        traces, periods = maths.record(past["traces"], squares[:-1].to(past["traces"].dtype)), past["periods"] + 1
        return (
            state
            | _begun(view)
            | {
                "kind": kind,
                "periods": periods,
                "traces": traces,
                "places": [*past["places"], [view.step + 1 - steps, view.step + 1]][-maths.KEPT :],
                "opened": maths.record(past["opened"], opened),
                "ever": past["ever"] + opened,
                "last": last | {"steps": steps, "network": squares[-1], "sums": state["sums"].T.clone()},
                "factor": maths.factors(traces, periods, self._form()).to(state["alpha"].dtype),
            }
        )

    def _form(self) -> Params:
        """Return the knobs with the preset carried out."""
        overruled = maths.PRESETS[self.params.preset]
        return dataclasses.replace(self.params, **overruled) if overruled else self.params

    def _period(self) -> int:
        return self.params.period or self.state["epoch"]

    def _encoders(self, view: View) -> list[list[slice]]:
        if self._spans is None:
            self._spans = [unimodal.encoder(view.problem.layout, name) for name in view.problem.modalities]
        return self._spans

    def _open(self) -> Tensor:
        """Return whether each modality's prime learning window is open in the present period (M,)."""
        return maths.windows(self.state["traces"], self.state["periods"], self._form())

    def _factor(self) -> Tensor:
        """Return what multiplies each modality's α (M,): as the last commit decided, or anew if a knob has changed."""
        s, form = self.state, self._form()
        if s.get("decided") == maths.deciding(form):  # absent from checkpoints of older versions
            return s["factor"]
        return maths.factors(s["traces"], s["periods"], form).to(s["alpha"].dtype)

    def _alpha(self, view: View) -> Tensor:
        """Return the factor of each modality's pull (M,), 0 for none."""
        s, form = self.state, self._form()
        rows = view.raw_grads.untyped_storage()
        # commit asks again for what gradients asked, so the answer is kept with the very rows that it was asked for
        if not self._known or self._known[0] is not s or self._known[1] is not rows:
            gap = imbalance.performance_gap(maths.scores(_alone(view), view.batch.y, form.score))
            alpha = maths.coefficient(gap, form.beta, form.margin) * self._factor()
            self._known = (s, rows, alpha)
        return self._known[2]


def _begun(view: View) -> dict[str, Any]:
    """Return the part of the state that starts anew with each period."""
    count, zero = len(view.problem.modalities), torch.zeros_like(view.theta)
    table = {"squares": zero.new_zeros(count + 1), "sums": zero.new_zeros(5, count)}
    return {"drift": zero, "total": zero, "taken": 0} | table


def _alone(view: View) -> dict[str, Tensor]:
    """Return modality to the logits (B, C) that it gives by itself, without graph."""
    fused = unimodal.fused_by(view.problem.objectives, view.theta, view.batch)
    return unimodal.alone(view.problem.modalities, view.logits, view.features, fused)
