"""How much of a score is left when modalities are missing or corrupted: masks, areas, retention, subsets.

A curve is a score P_0 … P_T, higher is better, at levels 0 = s_0 < … < s_T (missing rate or severity, 0 to 1). Areas
over different ranges of levels cannot be compared, nor curves whose missing inputs were filled in differently. A model
that ignores a modality is perfectly robust to its corruption: read every curve beside P_0 and the score without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.standard_error import mean_and_error

RULES = ("keep", "redraw", "none")
"""What happens where all modalities of a row would be missing: one stays, the row is drawn anew, or nothing."""


def expected_rate(p: float, count: int, rule: str) -> float:
    """Return the share of missing modalities when each of `count` is lost with probability p.

    `none`: p; `keep`: p - p^M/M; `redraw`: (p - p^M)/(1 - p^M), its limit (M - 1)/M at p = 1.

    >>> [round(expected_rate(0.5, 3, rule), 4) for rule in RULES]
    [0.4583, 0.4286, 0.5]
    """
    _known(rule)
    if rule == "none":
        return p
    if rule == "keep":
        return p - p**count / count
    return (p - p**count) / (1 - p**count) if p < 1 else (count - 1) / count


def present(uniform: Tensor, p: float, rule: str) -> Tensor:
    """Return which modalities are there, (B, M) of bool, from uniform numbers (B, M + 1), each lost with probability p.

    The same numbers serve every p: under `none` and, but for the one that stays, under `keep`, a larger p loses the
    same modalities and more, so that curves over p are smooth. Under `keep` the last column chooses which one stays.
    """
    _known(rule)
    numbers, last = uniform[:, :-1], uniform[:, -1]
    if rule == "redraw":
        return _redrawn(uniform, p)
    kept = numbers >= p
    if rule == "none":
        return kept
    place = (last * numbers.shape[1]).long().clamp(max=numbers.shape[1] - 1)
    saved = torch.nn.functional.one_hot(place, numbers.shape[1]).bool()
    return kept | (saved & ~kept.any(1, keepdim=True))


def worth_of_masks(hits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return what each row is worth, (draws, B), where two modalities are lost, (draws, B) of bool each.

    `hits` (2, 2, B): a row's worth with neither lost, the second, the first, both. Where a row is scored by itself and
    what fills a gap is fixed, these four say it for every mask; in expectation over masks with rates p and q the score
    is then bilinear in p and q between its four corners, so what a map of it shows beside them is chance.

    >>> hits = torch.tensor([[[1.0], [0.5]], [[0.25], [0.0]]])
    >>> worth_of_masks(hits, torch.tensor([[True]]), torch.tensor([[False]])).item()
    0.25
    """
    return hits[first.long(), second.long(), torch.arange(hits.shape[2], device=hits.device)]


def area(levels: Sequence[float], values: Sequence[float], normalised: bool = True) -> float:
    """Return the area under a curve by the trapezium rule; divided by the range of levels if `normalised`.

    AUILC (index of robustness, TFR-Net and CIDer); normalised, a flat curve has its own height. Not normalised it is
    the relative robustness of MultiBench's code, at most 0.9 on its ten levels.

    >>> area([0.0, 0.5, 1.0], [1.0, 0.5, 0.0])
    0.5
    """
    if len(levels) != len(values) or len(levels) < 2:
        raise InputError(f"an area needs at least 2 levels with a value each, not {len(levels)} and {len(values)}.")
    total = sum(
        (b + a) / 2 * (t - s) for a, b, s, t in zip(values[:-1], values[1:], levels[:-1], levels[1:], strict=True)
    )
    return total / (levels[-1] - levels[0]) if normalised else total


def effective_robustness(values: Sequence[float], late_fusion: Sequence[float]) -> float:
    """Return Σ_i (P_i - β_i), β_i = LF_i + (P_0 - LF_0): the lead over late fusion of the same clean score.

    MultiBench, as released: a plain sum over levels, not an area.
    """
    if len(values) != len(late_fusion):
        raise InputError(f"both curves need the same levels, not {len(values)} and {len(late_fusion)} of them.")
    return sum(p - lf - (values[0] - late_fusion[0]) for p, lf in zip(values, late_fusion, strict=True))


def retention(values: Sequence[float], chance: float = 0.0) -> list[float]:
    """Return (P - c)/(P_0 - c) at each level; nan throughout where the clean score is no better than chance c."""
    clean = values[0] - chance
    return [(value - chance) / clean if clean > 0 else math.nan for value in values]


def mean_retention(values: Sequence[float], chance: float = 0.0) -> float:
    """Return the mean retention over the levels above 0."""
    kept = retention(values, chance)[1:]
    return sum(kept) / len(kept)


def half_level(levels: Sequence[float], values: Sequence[float], chance: float = 0.0) -> float:
    """Return the smallest level at which half the clean lead over chance is left, between levels by a straight line.

    The last level where the curve never falls so far; nan where the clean score is no better than chance.

    >>> half_level([0.0, 0.5, 1.0], [1.0, 0.6, 0.2], chance=0.2)
    0.5
    """
    kept = retention(values, chance)
    if math.isnan(kept[0]):
        return math.nan
    for i in range(1, len(kept)):
        if kept[i] <= 0.5:
            step = (kept[i - 1] - 0.5) / (kept[i - 1] - kept[i])
            return levels[i - 1] + step * (levels[i] - levels[i - 1])
    return levels[-1]


def corruption_error(errors: Sequence[float], reference: Sequence[float], relative: bool = False) -> float:
    """Return Σ err/Σ err_ref over levels, the corruption error of ImageNet-C; `relative` subtracts the clean errors.

    nan where the reference has no such errors to divide by.
    """
    own, other = (sum(e - (row[0] if relative else 0.0) for e in row) for row in (errors, reference))
    return own / other if other > 0 else math.nan


def immunity(score: Mapping[frozenset[str], float], names: Sequence[str]) -> dict[str, float]:
    """Return P(all but m)/P(all) for each modality m; nan where P(all) is 0."""
    whole = score[frozenset(names)]
    return {m: score[frozenset(names) - {m}] / whole if whole else math.nan for m in names}


def dominance_gap(score: Mapping[frozenset[str], float], names: Sequence[str]) -> float:
    """Return how unevenly modalities are missed: the largest less the smallest of P(all) - P(all but m)."""
    losses = [score[frozenset(names)] - score[frozenset(names) - {m}] for m in names]
    return max(losses) - min(losses)


def majority(y: Tensor) -> float:
    """Return the share of the most frequent class among y (B,): what a constant answer scores."""
    return (torch.bincount(y).max() / len(y)).item()


def mean_over_rows(hits: Tensor) -> tuple[float, float]:
    """Return the mean of hits (draws, B) and its standard error over rows, a row's draws being averaged first.

    The error of one row is nan.
    """
    mean, error = mean_and_error(hits.double().mean(0))
    return mean.item(), error.item()


def _redrawn(uniform: Tensor, p: float) -> Tensor:
    """Return (B, M) of bool, each column lost with probability p given that not all are.

    One modality after the other: while all before it were lost, it is lost with p(1 - p^r)/(1 - p^(r + 1)) where r are
    still to come, and with p once one is there.
    """
    count = uniform.shape[1] - 1
    empty, columns = torch.ones(len(uniform), dtype=torch.bool, device=uniform.device), []
    for m in range(count):
        later = count - m - 1
        pressed = p * (1 - p**later) / (1 - p ** (later + 1)) if p < 1 else later / (later + 1)
        lost = torch.where(empty, torch.full_like(uniform[:, m], pressed), torch.full_like(uniform[:, m], p))
        columns.append(uniform[:, m] >= lost)
        empty = empty & ~columns[-1]
    return torch.stack(columns, 1)


def _known(rule: str) -> None:
    if rule not in RULES:
        raise InputError(f"the rule must be one of {', '.join(RULES)}, not {rule!r}.")
