"""What each modality adds, from how every subset of the modalities scores on the same rows.

A subset is a frozenset of names; `right` says of each subset which rows (N,) it predicts right, as 1.0 and 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from modalscape.engine.maths.modalities.imbalance import shapley


def imbalance_of(shares: Mapping[str, float]) -> float:
    """Return (largest - smallest share)/Σ|share|, from 0 (all alike) to 1 for shares of one sign; nan for all zero.

    Our summary of Shapley shares; 2 would be two shares that cancel.

    >>> imbalance_of({"a": 0.75, "b": 0.25}), imbalance_of({"a": 0.5, "b": 0.0})
    (0.5, 1.0)
    """
    total = sum(abs(share) for share in shares.values())
    return (max(shares.values()) - min(shares.values())) / total if total > 0 else math.nan


def valuation(right: Mapping[frozenset[str], Tensor]) -> dict[str, Tensor]:
    """Return what each modality contributes to each row (N,), from whether each subset predicts the row right (N,).

    Shapley shares of v(S) = |S| where S is right, else 0; the empty set has 0. They add up to M where all modalities
    together are right, else to 0. For two this is the sample-level valuation of Wei et al. (CVPR 2024), φ_a =
    (v_a + v_av - v_v)/2, between -½ and 3/2; for more the extension by Shapley shares is ours.
    """
    return shapley({subset: len(subset) * hits.double() for subset, hits in right.items()})


def utilisation(value: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Return u(m | others) = (v(all) - v(all without m))/v(all), the conditional utilisation rate of each modality.

    Of two, u(a|b) - u(b|a) is their imbalance, 0 for balance (Wu et al., ICML 2022). The paper cuts the flow between
    the branches of one network; here the modality's input is at its neutral value. nan where v(all) is 0.

    >>> utilisation({frozenset("ab"): 0.8, frozenset("a"): 0.6, frozenset("b"): 0.4, frozenset(): 0.1})
    {'a': 0.5, 'b': 0.25000000000000006}
    """
    everything = frozenset().union(*value)
    whole = value[everything]
    return {m: (whole - value[everything - {m}]) / whole if whole else math.nan for m in sorted(everything)}
