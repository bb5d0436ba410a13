"""The records of what each modality adds, by `maths.modalities.contribution`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Matrix, Record, Scalar
from modalscape.engine.maths.modalities import contribution
from modalscape.engine.maths.modalities.imbalance import shapley
from modalscape.engine.maths.modalities.unimodal import ratio, score
from modalscape.engine.maths.standard_error import mean_and_error


def about(prefix: str, names: Sequence[str], right: Mapping[frozenset[str], Tensor], how: str) -> Iterator[Record]:
    """Yield Shapley shares of the accuracy, their unevenness, utilisation and valuations; `how` names the protocol."""
    rows, n = shapley(right), len(next(iter(right.values())))
    shares = {m: mean_and_error(rows[m]) for m in names}
    values = np.array([value.item() for value, _ in shares.values()])
    mode = f"Shapley share of the {how}; one standard error"
    display = Display(title="Shapley share of accuracy")
    errors = np.array([error.item() for _, error in shares.values()])
    yield Bars(f"{prefix}/shapley", np.array(names), values, errors, n=n, mode=mode, display=display)
    for m, (value, error) in shares.items():
        display = Display(y="share of accuracy")
        yield Scalar(f"{prefix}/shapley_share/{m}", value.item(), error.item(), n=n, mode=mode, display=display)
    uneven = contribution.imbalance_of(dict(zip(names, values.tolist(), strict=True)))
    if math.isfinite(uneven):
        mode = f"(largest - smallest)/Σ|share|; Shapley shares of the {how}"
        yield Scalar(f"{prefix}/shapley_imbalance", uneven, n=n, mode=mode, display=Display(y="0: balance"))
    used = contribution.utilisation({subset: hits.mean().item() for subset, hits in right.items()})
    for m in names:
        if math.isfinite(used[m]):
            mode, display = f"share of the accuracy that is lost without it; {how}", Display(y="utilisation")
            yield Scalar(f"{prefix}/utilisation/{m}", used[m], n=n, mode=mode, display=display)
    valued, what = contribution.valuation(right), "Shapley share of v(S) = |S| where S is right, else 0"
    for m in names:
        value, error = mean_and_error(valued[m])
        mode, display = f"mean over rows of the {what}; {how}; one standard error", Display(y="valuation")
        yield Scalar(f"{prefix}/valuation/{m}", value.item(), error.item(), n=n, mode=mode, display=display)
    if len(names) == 2:
        levels = np.arange(-0.5, 2.0, 0.5)
        table = np.array([[(valued[m] == level).double().mean().item() for level in levels] for m in names])
        display = Display(title="Rows by what a modality contributes", x="valuation")
        labels = np.array([f"{level:g}" for level in levels])
        mode = f"share of the rows; {what}; {how}"
        yield Matrix(f"{prefix}/valuations", np.array(names), labels, table, n=n, mode=mode, display=display)


def strengths(
    prefix: str, names: Sequence[str], logits: Mapping[frozenset[str], Tensor], y: Tensor, how: str
) -> Iterator[Record]:
    """Yield AGM's r of each modality, exp of its lead in cross-entropy by its share of the fused logits; 1 is balance.

    `logits` has the fused logits (N, C) of every set of modalities; those of none count as 0, as in the paper, whose τ
    needs all steps before and is reported by the method.
    """
    responses = shapley(dict(logits) | {frozenset(): torch.zeros_like(logits[frozenset(names)])})
    scores = torch.stack([score(responses[m], y) for m in names])
    display = Display(y="r (1: balance)", ylog=True)
    for m, value in zip(names, ratio(scores).tolist(), strict=True):
        yield Scalar(f"{prefix}/agm_ratio/{m}", value, n=len(y), mode=f"AGM's strength r; {how}", display=display)
