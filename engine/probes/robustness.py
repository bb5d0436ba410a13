"""What is left of the score when modalities are missing or corrupted.

The same random numbers are used at every level and at every step, so curves are smooth and differences between two
steps are the network's. Missing modalities are replaced at the features: by zero, by the features of the neutral input
(zero, the training mean: the fair "no information"), of noise, or of another row (shuffled: nothing looks odd). Curves
with different fill-ins are different measurements; each record's `mode` names its own. The masks are drawn per row and
modality, and the missing rate is the realised one, at most (M - 1)/M where one modality always stays. In the map of two
missing rates each modality is lost by itself, so both may be; its corners are scores of subsets.

Where each modality has a loss of its own, late fusion of those heads under the same corruption is what the fused
prediction is measured against: a network whose fusion adds nothing has an effective robustness of 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Bars, Curve, Matrix, Probe, Record, Scalar, Snapshot, knob, several
from modalscape.engine.core.problem import Batch, join_batches
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities import robustness
from modalscape.engine.maths.progress import tracked

ERROR = "error: one standard error over the rows"
MOST = 5
"""Modalities up to which every subset is scored; beyond, each alone and each left out."""


class Robustness(Probe):
    """Score against missing rate, by modality and of two at once, against corruption severity, and by subset."""

    name = "robustness"
    title = "Robustness"
    every = 100
    cost = "medium"

    @dataclass(frozen=True)
    class Params:
        """What is taken away, how, and how often."""

        part: str = knob(
            "val", help="Rows that are scored; test where val has chosen something.", choices=("val", "test")
        )
        rows: int = knob(512, 2, 100_000, "Rows that are scored at most.", log=True)
        fill: str = knob(
            "neutral",
            help="In place of missing features: zero, or those of the neutral input, of noise, of another row.",
            choices=("zero", "neutral", "noise", "shuffle"),
        )
        rule: str = knob("keep", help="Where all would be missing: keep one, redraw, none.", choices=robustness.RULES)
        draws: int = knob(5, 1, 100, "Masks drawn at each missing rate.")
        levels: int = knob(11, 3, 41, "Levels of each curve, from 0 to 1.")
        corruption: str = knob(
            "noise",
            help="Gaussian noise up to `reach` training deviations, entries set to their mean, or rows exchanged.",
            choices=("noise", "drop", "shuffle"),
        )
        reach: float = knob(3.0, 0.1, 20.0, "Standard deviation of the noise at severity 1, in training deviations.")
        pair: str = knob("", help="Two modalities whose missing rates are crossed, with a comma; empty: the first two.")
        grid: int = knob(6, 0, 41, "Missing rates of each of the two, from 0 to 1; below 2 they are not crossed.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield subsets, the curve over missing rates and one over severities a modality; nothing without a fusion."""
        names, batch = snap.problem.modalities, self._batch(snap)
        scorer = _scorer(snap, batch)
        several("Robustness", names)
        if scorer is None:
            return
        pair = _pair(self.params.pair, names)
        with torch.no_grad():
            clean = snap.problem.encode(snap.theta, batch)
            blank = self._blank(snap, batch, clean)
        about = {"n": len(batch)}
        how = "share of the most frequent class" if scorer.classes else "predicting the mean"
        yield Scalar("robustness/chance", scorer.chance, mode=f"{how}, {self.params.part} rows", **about)
        for part in (self._subsets, self._missing, self._severity):
            yield from part(snap, batch, clean, blank, scorer)
        if self.params.grid > 1:
            yield from self._crossed(snap, batch, clean, blank, scorer, pair)

    def _subsets(self, snap, batch, clean, blank, scorer) -> Iterator[Record]:
        """Yield the score of subsets of the modalities, what each one's absence costs, and the worst case."""
        names = snap.problem.modalities
        sizes = range(1, len(names) + 1) if len(names) <= MOST else (1, len(names) - 1, len(names))
        score, error = {}, {}
        subsets = [frozenset(c) for size in sizes for c in combinations(names, size)]
        for kept in tracked(subsets, "subsets"):
            hits = scorer.hits({m: clean[m] if m in kept else blank[m] for m in names})
            score[kept], error[kept] = robustness.mean_over_rows(hits[None])
        about = {"n": len(batch), "mode": f"{self._mode(scorer)}; {ERROR}"}
        labels = ["+".join(m for m in names if m in kept) for kept in score]
        display = Display(title="Score by the modalities present") | scorer.display
        values, errors = np.array(list(score.values())), np.array(list(error.values()))
        yield Bars("robustness/subsets", np.array(labels), values, errors, display=display, **about)
        whole = frozenset(names)
        for m, share in robustness.immunity(score, names).items():
            kept = whole - {m}
            yield Scalar(f"robustness/without/{m}", score[kept], error[kept], display=scorer.display, **about)
            yield Scalar(
                f"robustness/immunity/{m}", share, display=Display(y="score without / score with all"), **about
            )
        yield Scalar(
            "robustness/clean", score[whole], error[whole], display=scorer.display | Display(label="clean"), **about
        )
        worst = min((whole - {m} for m in names), key=score.__getitem__)
        display = scorer.display | Display(label="worst one left out")
        yield Scalar("robustness/worst", score[worst], error[worst], display=display, **about)
        part = {kept: score[kept] for kept in score if kept != whole}
        least, about["mode"] = min(part, key=part.__getitem__), self._mode(scorer)
        display = scorer.display | Display(label="worst subset")
        how = f"{self._mode(scorer)}; only {'+'.join(m for m in names if m in least)} there; {ERROR}"
        yield Scalar("robustness/worst_subset", part[least], error[least], n=len(batch), mode=how, display=display)
        display = scorer.display | Display(label=f"mean of {len(part)} incomplete")
        yield Scalar("robustness/incomplete", float(np.mean(list(part.values()))), display=display, **about)
        yield Scalar("robustness/dominance_gap", robustness.dominance_gap(score, names), **about)

    def _missing(self, snap, batch, clean, blank, scorer) -> Iterator[Record]:
        """Yield the score against the realised missing rate, its area and how much of it is kept."""
        p, names = self.params, list(clean)
        size = (len(batch), len(names) + 1)
        uniform = _uniform(snap, "robustness/missing", p.draws, size, batch.y.device)
        rates, scores, errors = [], [], []
        for level in tracked(np.linspace(0, 1, p.levels).tolist(), "levels"):
            masks = [robustness.present(numbers, level, p.rule) for numbers in uniform]
            hits = [
                scorer.hits({m: torch.where(mask[:, i : i + 1], clean[m], blank[m]) for i, m in enumerate(names)})
                for mask in masks
            ]
            mean, error = robustness.mean_over_rows(torch.stack(hits))
            rates.append(1 - torch.stack(masks).double().mean().item())
            scores.append(mean)
            errors.append(error)
        mode = f"{self._mode(scorer)}; rule {p.rule}, {p.draws} masks, the same at every step"
        display = Display(title="Missing modalities", x="realised missing rate") | scorer.display
        about = {"n": len(batch), "mode": f"{mode}; {ERROR}"}
        yield Curve("robustness/missing", np.array(rates), np.array(scores), np.array(errors), display=display, **about)
        about["mode"] = f"missing rates 0 to {rates[-1]:.2g}; {mode}"
        yield from _summary("missing", rates, scores, scorer, about)
        raw, display = robustness.area(rates, scores, normalised=False), Display(y=f"{scorer.name} × missing rate")
        about["mode"] += "; not divided by the range, as most tables have it"
        yield Scalar("robustness/raw_area/missing", raw, display=display, **about)

    def _crossed(self, snap, batch, clean, blank, scorer, pair: tuple[str, str]) -> Iterator[Record]:
        """Yield the score by the missing rates of two modalities, each lost by itself, the others always there."""
        p, levels = self.params, np.linspace(0, 1, self.params.grid).tolist()
        hits = []
        for gone in ((), pair[1:], pair[:1], pair):
            hits.append(scorer.hits({m: blank[m] if m in gone else clean[m] for m in clean}))
        corners = torch.stack(hits).view(2, 2, -1)
        uniform = [_uniform(snap, f"robustness/rate/{m}", p.draws, (len(batch),), batch.y.device) for m in pair]
        lost = [[numbers < level for level in levels] for numbers in uniform]
        table, errors = np.empty((2, p.grid, p.grid))
        for i, first in enumerate(tracked(lost[0], "levels")):
            for j, second in enumerate(lost[1]):
                worth = robustness.worth_of_masks(corners, first, second)
                table[i, j], errors[i, j] = robustness.mean_over_rows(worth)
        rates = [np.array([f"{mask.double().mean().item():.3f}" for mask in masks]) for masks in lost]
        rest = ", the others always there" if len(clean) > 2 else ""
        how = f"each of the two lost by itself{rest}, {p.draws} masks of each, the same at every step and level"
        mode = f"{self._mode(scorer)}; {how}; {ERROR}"
        display = Display(title=f"{pair[0]} missing × {pair[1]} missing", z=scorer.name, rates=True) | scorer.display
        display |= Display(x=f"realised missing rate of {pair[1]}", y=f"realised rate of {pair[0]}")
        yield Matrix(
            f"robustness/rates/{'+'.join(pair)}", *rates, table, errors, n=len(batch), mode=mode, display=display
        )

    def _severity(self, snap, batch, clean, blank, scorer) -> Iterator[Record]:
        """Yield the score against the severity of each modality's corruption, the others clean."""
        p, names = self.params, list(clean)
        levels = np.linspace(0, 1, p.levels).tolist()
        found: dict[str, list[tuple[float, float]]] = {m: [] for m in names}
        late: dict[str, list[float]] = {m: [] for m in names}
        for level in tracked(levels, "levels"):
            with torch.no_grad():
                worse = snap.problem.encode(snap.theta, self._corrupted(snap, batch, level))
            for m in names:
                hits, heads = scorer.both(clean | {m: worse[m]})
                found[m].append(robustness.mean_over_rows(hits[None]))
                late[m] += [] if heads is None else [heads.mean().item()]
        reach = f" up to {p.reach:g} training deviations" if p.corruption == "noise" else ""
        mode = f"{p.part} rows, {scorer.name}; {p.corruption}{reach} on the input, the same numbers at every level"
        about = {"n": len(batch), "mode": f"{mode}; {ERROR}"}
        for m in names:
            scores, errors = (list(column) for column in zip(*found[m], strict=True))
            display = Display(title=f"Corrupted {m}", x="severity", label="") | scorer.display
            name = f"robustness/severity/{m}"
            yield Curve(name, np.array(levels), np.array(scores), np.array(errors), display=display, **about)
            yield from _summary(m, levels, scores, scorer, about | {"mode": mode})
            if late[m]:
                yield from _against(m, scores, late[m], scorer, about | {"mode": mode})

    def _mode(self, scorer) -> str:
        return f"{self.params.part} rows, {scorer.name}; missing features: {self.params.fill}"

    def _batch(self, snap: Snapshot) -> Batch:
        """Return the rows that are scored, drawn once and for all where there are more than wanted."""
        whole = join_batches(list(snap.problem.held_out(self.params.part)))
        order = torch.randperm(len(whole), generator=snap.rng.generator("robustness/rows"))[: self.params.rows]
        return whole.rows(order.to(whole.y.device))

    def _blank(self, snap: Snapshot, batch: Batch, clean: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what stands for each modality's features (B, D) where it is missing."""
        fill, problem = self.params.fill, snap.problem
        if fill == "zero":
            return {m: torch.zeros_like(z) for m, z in clean.items()}
        if fill == "shuffle":
            order = self._order(snap, batch)
            return {m: z[order] for m, z in clean.items()}
        empty = batch
        for m in problem.modalities:
            empty = problem.without(empty, m)
        if fill == "noise":
            x = {m: noisy(value, 1.0, 1.0, _numbers(snap, m, value)) for m, value in empty.x.items()}
            empty = Batch(x, batch.y)
        return problem.encode(snap.theta, empty)

    def _corrupted(self, snap: Snapshot, batch: Batch, level: float) -> Batch:
        """Return the batch with every modality corrupted to a severity (0 to 1); at 0 it is the batch."""
        p, x = self.params, {}
        order = self._order(snap, batch)
        for m, value in batch.x.items():
            numbers = _numbers(snap, m, value)
            if p.corruption == "noise":
                x[m] = noisy(value, level, p.reach, numbers)
            elif p.corruption == "drop":
                x[m] = torch.where(numbers.rank < level, torch.zeros_like(value), value)
            else:
                rank = numbers.rows.view(-1, *[1] * (value.dim() - 1))
                x[m] = torch.where(rank < level, value[order], value)
        return Batch(x, batch.y)

    def _order(self, snap: Snapshot, batch: Batch) -> Tensor:
        """Return an order (B,) in which no row stays at its place."""
        cycle = torch.randperm(len(batch), generator=snap.rng.generator("robustness/order"))
        order = torch.empty_like(cycle)
        order[cycle] = cycle.roll(1)
        return order.to(batch.y.device)


def _uniform(snap: Snapshot, purpose: str, draws: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Return uniform numbers (draws, …), the same at every step and for every network of the run's seed."""
    pieces = [
        torch.rand(size, generator=snap.rng.generator(purpose, draw, device), device=device) for draw in range(draws)
    ]
    return torch.stack(pieces)


def _pair(text: str, names: tuple[str, ...]) -> tuple[str, str]:
    """Return the two modalities that `robustness.pair` names, in the problem's order.

    Raises:
        InputError: they are not two of them.
    """
    asked = {name.strip() for name in text.split(",") if name.strip()} or set(names[:2])
    if len(asked) != 2 or not asked <= set(names):
        raise InputError(f"robustness.pair is {text!r}; give two of {', '.join(names)} with a comma between.")
    first, second = (name for name in names if name in asked)
    return first, second


@dataclass(frozen=True)
class Numbers:
    """Random numbers for one modality's input, the same at every level."""

    normal: Tensor
    rank: Tensor
    rows: Tensor


def _numbers(snap: Snapshot, modality: str, value: Tensor) -> Numbers:
    def uniform(purpose: str, shape) -> Tensor:
        generator = snap.rng.generator(f"robustness/{purpose}/{modality}", 0, value.device)
        return torch.rand(shape, generator=generator, device=value.device)

    like = value if value.is_floating_point() else value.float()
    normal = snap.rng.normal(f"robustness/noise/{modality}", 0, like)
    return Numbers(normal, uniform("drop", value.shape), uniform("rows", (len(value),)))


def noisy(value: Tensor, level: float, reach: float, numbers: Numbers) -> Tensor:
    """Return the input with noise of level·reach; of token ids, a share `level` exchanged for ids of other places."""
    if value.is_floating_point():
        return value + level * reach * numbers.normal
    ids = value.flatten()[numbers.normal.flatten().argsort()].view_as(value)
    return torch.where((numbers.rank < level) & (value != 0), ids, value)


class _Scorer:
    """Right or wrong (or, for real targets, one minus the squared error over the variance) of each row."""

    def __init__(self, snap: Snapshot, batch: Batch) -> None:
        self.snap, self.batch = snap, batch
        self.classes = not batch.y.is_floating_point()
        self.name = "accuracy" if self.classes else "explained variance"
        self.chance = robustness.majority(batch.y) if self.classes else 0.0
        self.display = Display(y=self.name, levels={"chance" if self.classes else "mean": self.chance})

    def hits(self, features: dict[str, Tensor]) -> Tensor:
        """Return what the fused prediction is worth in each row, (B,) float64."""
        return self.both(features)[0]

    @torch.no_grad()
    def both(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the same, and what late fusion of the heads is worth, (B,) or None where a modality has no head.

        Late fusion is the mean of the heads' log-probabilities, or of their answers where the targets are real.
        """
        logits = self.snap.problem.objectives(self.snap.theta, features, self.batch)[1]
        heads = [logits[m] for m in features if m in logits]
        if len(heads) < len(features):
            return self._worth(logits["fused"]), None
        late = torch.stack([h.log_softmax(-1) if self.classes else h for h in heads]).mean(0)
        return self._worth(logits["fused"]), self._worth(late)

    def _worth(self, answer: Tensor) -> Tensor:
        y = self.batch.y
        if self.classes:
            return (answer.argmax(-1) == y).double()
        spread = (y - y.mean()).square().mean().clamp(min=torch.finfo(y.dtype).tiny)
        return (1 - (answer[:, 0] - y).square() / spread).double()


@torch.no_grad()
def _scorer(snap: Snapshot, batch: Batch) -> _Scorer | None:
    """Return how rows are scored; None where nothing is fused."""
    few = batch.rows(slice(0, 2))
    logits = snap.problem.objectives(snap.theta, snap.problem.encode(snap.theta, few), few)[1]
    return _Scorer(snap, batch) if "fused" in logits else None


def _summary(
    name: str, levels: list[float], scores: list[float], scorer: _Scorer, about: dict[str, Any]
) -> Iterator[Record]:
    """Yield the normalised area under a curve; the share of a lead over chance that is kept, and where half is."""
    display = scorer.display | Display(y=f"mean {scorer.name}")
    yield Scalar(f"robustness/area/{name}", robustness.area(levels, scores), display=display, **about)
    if scores[0] <= scorer.chance:
        return
    kept = robustness.mean_retention(scores, scorer.chance)
    half = robustness.half_level(levels, scores, scorer.chance)
    display = Display(y="share of the lead over chance", levels={"": 0.0})
    yield Scalar(f"robustness/retention/{name}", kept, display=display, **about)
    about = about | {"mode": f"{about['mode']}; or the last level"}
    yield Scalar(f"robustness/half/{name}", half, display=Display(y="level with half the lead over chance"), **about)


def _against(
    name: str, scores: list[float], late: list[float], scorer: _Scorer, about: dict[str, Any]
) -> Iterator[Record]:
    """Yield how a curve stands to that of late fusion: the lead beyond the clean one, and the errors' quotient."""
    against = f"against late fusion of the run's own heads; {about['mode']}"
    lead = robustness.effective_robustness(scores, late)
    display = Display(y=f"lead in {scorer.name}, sum over {len(scores)} levels", levels={"late fusion": 0.0})
    how = f"Σ (P - β), β late fusion shifted to the same clean score, {against}"
    yield Scalar(f"robustness/effective/{name}", lead, n=about["n"], mode=how, display=display)
    display = Display(y="errors / errors of late fusion", levels={"late fusion": 1.0})
    own, other = ([1 - p for p in curve] for curve in (scores, late))
    for path, relative, how in (
        ("corruption_error", False, "Σerr/Σerr"),
        ("relative_corruption_error", True, "the same of what corruption adds to the clean errors"),
    ):
        value = robustness.corruption_error(own, other, relative)
        if math.isfinite(value):
            yield Scalar(f"robustness/{path}/{name}", value, n=about["n"], mode=f"{how}, {against}", display=display)
