"""ModDrop: modalities are dropped at random while training, so that the network learns to do without any of them.

Modality m stays where δ_m ~ Bernoulli(1 - p_m) is 1, drawn for each sample or once for a batch. What stays is not
divided by 1 - p_m. All could vanish at once, which leaves nothing to learn from; `rescue` says what then:

- `keep`: one modality, each as likely, comes back. With equal p the rate of loss is p - p^M/M.
- `redraw`: δ is drawn given that something is left, by conditional probabilities rather than by trial. The rate is
  (p - p^M)/(1 - p^M).
- `none`: all may vanish; the rate is p.

What stands for a dropped modality, `fill`, is put in at the features: what its encoder makes of the neutral input
(`neutral`: the same as dropping the input, and what evaluation without a modality does), zero (`zero`: δ_m·h_m to the
letter), or the batch's mean feature (`mean`). Compare methods only where training and evaluation fill alike: on one of
our sets the accuracy without a modality was 92 and 96 % with `neutral`, 85 and 89 % with `zero`.

*Acts at*: features.

*Remembers*: nothing.

*Composes with*: everything. FANoise acts before it. A modality's own head sees the replaced features as well. Under
InfoNCE a row that lacks one side of a pair teaches nothing through it: with two modalities it costs that share of the
batch. In an accumulated batch `per` batch means per piece. OGM-GE takes the logits of the dropped features, so it sees
a modality weaker than it is.

*Source*: ModDrop, Neverova et al., arXiv 1501.00102, 2016, for the idea of dropping whole channels by independent
Bernoulli draws; we had its abstract and restatements. The rescue of empty samples, its rates and `fill` are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.knobs import assigned
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import Need
from modalscape.engine.core.records import Bars, Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError


def kept(uniform: Tensor, rates: Tensor, rescue: str) -> Tensor:
    """Return which modalities are kept, (B, M) of bool, from uniform numbers (B, M + 1) and drop rates p (M,).

    `redraw` goes from one modality to the next: while all before were dropped, m is dropped with probability
    p_m(1 - Πp of the later)/(1 - p_m·Πp of the later), else with p_m. The last column chooses what `keep` brings back.
    """
    count = len(rates)
    if rescue == "redraw":
        later = torch.cat([rates[1:].flip(0).cumprod(0).flip(0), rates.new_ones(1)])
        pressed = rates * (1 - later) / (1 - rates * later).clamp(min=torch.finfo(rates.dtype).tiny)
        empty = torch.ones(len(uniform), dtype=torch.bool, device=uniform.device)
        columns = []
        for m in range(count):
            columns.append(uniform[:, m] >= torch.where(empty, pressed[m], rates[m]))
            empty = empty & ~columns[-1]
        return torch.stack(columns, 1)
    found = uniform[:, :count] >= rates
    if rescue == "keep":
        lost = ~found.any(1, keepdim=True)
        place = (uniform[:, count:] * count).long().clamp(max=count - 1)
        found = found | (lost & (place == torch.arange(count, device=uniform.device)))
    return found


def realised(rates: list[float], rescue: str) -> list[float]:
    """Return the rate at which each modality is lost, for drop rates p (M of them) and what happens when all would be.

    With P = Πp: `none` p_m; `keep` p_m - P/M; `redraw` (p_m - P)/(1 - P), 0 where P is 1.

    >>> [round(realised([0.5] * 3, rescue)[0], 4) for rescue in ("none", "keep", "redraw")]
    [0.5, 0.4583, 0.4286]
    """
    every = math.prod(rates)
    if rescue == "keep":
        return [p - every / len(rates) for p in rates]
    if rescue == "redraw" and every < 1.0:
        return [(p - every) / (1.0 - every) for p in rates]
    return [0.0 if rescue == "redraw" else p for p in rates]


class ModDrop(Method):
    """Random loss of whole modalities."""

    name = "moddrop"
    title = "ModDrop"
    needs = (Need("moddrop.rescue", ("keep", "none"), {"moddrop.p": 1.0, "moddrop.rates": ""}),)
    after = ("fanoise",)
    neutral = {"p": 0.0, "rates": ""}

    @dataclass(frozen=True)
    class Params:
        """How often what is dropped, and what takes its place."""

        p: float = knob(0.33, 0.0, 1.0, "Probability that a modality is dropped; 0 is off.")
        rates: str = knob("", help="Rates of single modalities in place of p, such as image=0.5, text=0.1.")
        per: str = knob("sample", help="Each sample draws, or the whole batch at once.", choices=("sample", "batch"))
        rescue: str = knob(
            "keep", help="When all would vanish: keep one, draw again, or nothing.", choices=("keep", "redraw", "none")
        )
        fill: str = knob(
            "neutral",
            help="In place of dropped features: those of a neutral input, zero, or the batch's mean.",
            choices=("neutral", "zero", "mean"),
        )

        def __post_init__(self) -> None:
            """Refuse rates that cannot be read."""
            assigned(self.rates, "moddrop.rates", 0.0, 1.0)

    def init(self, view: View) -> dict:
        """Return no state, after a look at whether the rates suit the problem."""
        self._rates(view.problem.modalities)
        return {}

    def idle(self, view: View) -> str:
        """Return why nothing is ever dropped: as for every method, rates of zero, or a modality that is alone."""
        names = view.problem.modalities
        rates = self._rates(names)
        if any(realised(rates, self.params.rescue)):
            return super().idle(view)
        if not any(rates):
            return "ModDrop drops nothing while the rates of all modalities are 0; raise moddrop.p or moddrop.rates."
        return f"ModDrop never drops the last modality, and there is only {names[0]}; set moddrop.rescue to none."

    def features(self, features: dict[str, Tensor], view: View) -> dict[str, Tensor]:
        """Return modality to features (B, D), some rows of some modalities replaced."""
        rates = self._rates(tuple(features))
        if not any(rates):
            return features
        mask, fills = self._mask(rates, len(view.batch), view), self._fills(features, view)
        return {
            name: torch.where(mask[:, m : m + 1], h, fills[name]) if rates[m] else h
            for m, (name, h) in enumerate(features.items())
        }

    def report(self, view: View) -> Iterator[Record]:
        """Yield how often each modality was lost in this step and is lost on average, and how many were left."""
        p, names, batch, micro = self.params, view.problem.modalities, len(view.batch), view.problem.micro
        rates = self._rates(names)
        if not any(rates):
            return
        pieces = [(view.rng, batch)]
        if 0 < micro < batch:
            starts = range(0, batch, micro)
            pieces = [(view.rng.within(f"piece{i}"), min(micro, batch - s)) for i, s in enumerate(starts)]
        mask = torch.cat([self._mask(rates, rows, view.having(rng=rng)).expand(rows, -1) for rng, rows in pieces])
        draws = batch if p.per == "sample" else len(pieces)
        lost = (~mask).double().mean(0).tolist()
        for name, found, expected in zip(names, lost, realised(rates, p.rescue), strict=True):
            error = math.sqrt(expected * (1 - expected) / draws)
            display = Display(panel="How often each modality is lost", place=1, y="share of rows")
            how = f"lost in this step, per {p.per}"
            yield Scalar(
                f"moddrop/rate/{name}", found, error, n=draws, mode=how, display=display | Display(label="lost")
            )
            display |= Display(label="expected", role="expected")
            yield Scalar(f"moddrop/rate_expected/{name}", expected, mode=f"in expectation, {p.rescue}", display=display)
        counts = torch.bincount(mask.sum(1), minlength=len(names) + 1).double() / batch
        labels = np.array([str(k) for k in range(len(names) + 1)])
        display = Display(panel="Modalities left", place=2, x="modalities", y="share of rows")
        yield Bars(
            "moddrop/left", labels, counts.cpu().numpy(), n=draws, mode=f"this step, per {p.per}", display=display
        )

    def _rates(self, modalities: tuple[str, ...]) -> list[float]:
        own = assigned(self.params.rates, "moddrop.rates", 0.0, 1.0)
        for name in own:
            if name not in modalities:
                raise InputError(f"moddrop.rates names {name!r}, but the modalities are {', '.join(modalities)}.")
        rates = [own.get(name, self.params.p) for name in modalities]
        if self.params.rescue == "redraw" and math.prod(rates) == 1.0:
            raise InputError("moddrop drops everything with rate 1, so drawing again never ends; choose rescue=keep.")
        return rates

    def _mask(self, rates: list[float], batch: int, view: View) -> Tensor:
        """Return which rows keep which modality: (B, M) of bool, or (1, M) for the whole batch at once."""
        device = view.theta.device
        rows = batch if self.params.per == "sample" else 1
        generator = view.rng.generator("moddrop", view.step, device)
        uniform = torch.rand(rows, len(rates) + 1, generator=generator, device=device)
        return kept(uniform, torch.tensor(rates, device=device), self.params.rescue)

    def _fills(self, features: dict[str, Tensor], view: View) -> dict[str, Tensor]:
        """Return modality to what stands for its dropped features, (1, D)."""
        if self.params.fill == "neutral":
            one = view.batch.rows(slice(0, 1))
            for name in features:
                one = view.problem.without(one, name)
            return view.problem.encode(view.theta, one)
        if self.params.fill == "mean":
            return {name: h.mean(0, keepdim=True) for name, h in features.items()}
        return {name: torch.zeros_like(h[:1]) for name, h in features.items()}
