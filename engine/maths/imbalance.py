"""How unevenly the modalities of a network learn: scores, gradients and Fisher information, modality by modality.

Pure functions on tensors; in all of them (M,) runs over the modalities and 0 or 1 means balance, as each one says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from engine.knobs import InputError


def true_class_score(logits: Tensor, y: Tensor) -> Tensor:
    """Return the summed probability of the true class, a scalar between 0 and B, from logits (B, C) and labels (B,).

    OGM-GE (Peng et al. 2022), equation 8: s = Σ_i softmax(z_i)[y_i].
    """
    return logits.softmax(-1).gather(-1, y[:, None]).sum()


def ogm_ratio(scores: Tensor) -> Tensor:
    """Return each modality's score over the mean score of the others (M,); 1 is balance, plot its logarithm.

    OGM-GE (Peng et al. 2022), equation 9, for two modalities. For more we take the mean of the others, where
    BalanceBenchmark takes the smallest.

    >>> ogm_ratio(torch.tensor([6.0, 3.0])).tolist()
    [2.0, 0.5]
    """
    _several(scores)
    return scores / ((scores.sum() - scores) / (len(scores) - 1))


def performance_gap(scores: Tensor) -> Tensor:
    """Return by how much each modality is ahead of the weaker ones, on average (M,); 0 for the weakest.

    InfoReg (Huang et al. 2025): Δ_m = mean over {j: s_j < s_m} of s_m - s_j, in the unit of the scores.

    >>> performance_gap(torch.tensor([3.0, 2.0, 1.0])).tolist()
    [1.5, 1.0, 0.0]
    """
    _several(scores)
    ahead = (scores[:, None] - scores).clamp(min=0)
    return ahead.sum(1) / (ahead > 0).sum(1).clamp(min=1)


def gradient_norm_ratio(norms: Tensor) -> Tensor:
    """Return log of each gradient norm over the geometric mean of the others (M,), in nats; 0 is balance.

    For two modalities log(|g_a| / |g_b|) and its negative. A norm of zero gives minus infinity.

    >>> gradient_norm_ratio(torch.tensor([1.0, 1.0])).tolist()
    [0.0, 0.0]
    """
    _several(norms)
    logs = norms.log()
    others = torch.stack([torch.cat([logs[:m], logs[m + 1 :]]).mean() for m in range(len(logs))])
    return torch.where(logs == others, torch.zeros_like(logs), logs - others)


def per_sample_gradients(loss: Callable[..., Tensor], theta: Tensor, rows: Sequence[Tensor], chunk: int = 64) -> Tensor:
    """Return the gradient of each row's loss (B, P), from `loss(theta, *rows)` on batches of one row.

    `rows` are tensors (B, …); each call sees them as (1, …). Memory is B x P numbers, work `chunk` rows at a time.
    """

    def single(theta, *row):
        return loss(theta, *(value[None] for value in row))

    gradient = torch.func.vmap(torch.func.grad(single), (None, *(0 for _ in rows)), chunk_size=chunk)
    return gradient(theta.detach(), *rows)


def mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of samples (B,) and its standard error, float64 scalars.

    Raises:
        InputError: fewer than two samples.
    """
    if len(samples) < 2:
        raise InputError(f"{len(samples)} sample gives no standard error; give at least 2.")
    samples = samples.double()
    return samples.mean(), samples.std() / len(samples) ** 0.5


def fisher_trace(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the trace of the empirical Fisher matrix and its standard error, from per-sample gradients (B, P).

    E |∇ log p(y|x)|² with the labels of the data; give one part's columns for that part's trace. This is a trace of
    squared gradients, not of the Hessian: it vanishes where the data are interpolated.

    >>> [float(v) for v in fisher_trace(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))]
    [25.0, 0.0]
    """
    return mean_and_error(gradients.double().square().sum(-1))


def fisher_trace_of_batches(gradients: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return two estimates of the Fisher trace from mean gradients (N, P) of N mini-batches of `size` rows.

    First mean |g_b|², which papers use and which is |μ|² + tr Σ / size rather than the trace |μ|² + tr Σ; then that
    plus (size - 1) times the variance between batches, which is unbiased for batches drawn independently.
    """
    if len(gradients) < 2:
        raise InputError(f"{len(gradients)} mini-batch gives no variance between batches; give at least 2.")
    gradients = gradients.double()
    plain = gradients.square().sum(-1).mean()
    return plain, plain + (size - 1) * gradients.var(0).sum()


def shapley(value: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Return each player's Shapley share of value(all) - value(none), from the value of every subset (2^M entries).

    φ_m = Σ_S |S|! (M-|S|-1)! / M! [v(S+m) - v(S)].

    Raises:
        InputError: a subset has no value.

    >>> shapley({frozenset(): 0.0, frozenset("a"): 1.0, frozenset("b"): 0.0, frozenset("ab"): 2.0})
    {'a': 1.5, 'b': 0.5}
    """
    players = sorted(frozenset().union(*value))
    count = len(players)
    if len(value) != 2**count:
        raise InputError(f"{len(value)} subsets of {count} modalities have a value; give all {2**count}.")
    shares = {}
    for player in players:
        others = [other for other in players if other != player]
        shares[player] = sum(
            (value[frozenset(subset) | {player}] - value[frozenset(subset)]) / (count * comb(count - 1, size))
            for size in range(count)
            for subset in combinations(others, size)
        )
    return shares


def _several(values: Tensor) -> None:
    if values.dim() != 1 or len(values) < 2:
        raise InputError(f"balance needs at least 2 modalities, not values of shape {tuple(values.shape)}.")
