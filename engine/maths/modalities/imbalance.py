"""How unevenly the modalities of a network learn: scores, gradients and Fisher information, modality by modality.

Pure functions on tensors; in all of them (M,) runs over the modalities and 0 or 1 means balance, as each one says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb, nan

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.standard_error import mean_and_error


def true_class_score(logits: Tensor, y: Tensor) -> Tensor:
    """Return the summed probability of the true class, a scalar between 0 and B, from logits (B, C) and labels (B,).

    OGM-GE (Peng et al. 2022), equation 8: s = Σ_i softmax(z_i)[y_i].
    """
    return logits.softmax(-1).gather(-1, y[:, None]).sum()


def ogm_ratio(scores: Tensor, against: str = "mean") -> Tensor:
    """Return each modality's score over that of the others (M,): their mean, or the `smallest`; 1 is balance.

    Plot its logarithm. OGM-GE (Peng et al. 2022), equation 9, for two modalities; for more we take the mean of the
    others, BalanceBenchmark the smallest.

    >>> ogm_ratio(torch.tensor([6.0, 3.0])).tolist(), ogm_ratio(torch.tensor([6.0, 3.0, 1.0]), "smallest").tolist()
    ([2.0, 0.5], [6.0, 3.0, 0.3333333432674408])
    """
    _several(scores)
    if against == "mean":
        return scores / ((scores.sum() - scores) / (len(scores) - 1))
    others = scores.repeat(len(scores), 1).masked_fill(torch.eye(len(scores), dtype=torch.bool), torch.inf)
    return scores / others.min(1).values


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


def fisher_trace(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the trace of the empirical Fisher matrix and its standard error, from per-sample gradients (B, P).

    E |∇ log p(y|x)|² with the labels of the data; give one part's columns for that part's trace. This is a trace of
    squared gradients, not of the Hessian: it vanishes where the data are interpolated.

    Raises:
        InputError: fewer than two samples.

    >>> [float(v) for v in fisher_trace(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))]
    [25.0, 0.0]
    """
    if len(gradients) < 2:
        raise InputError(f"{len(gradients)} sample gives no standard error; give at least 2.")
    return mean_and_error(gradients.double().square().sum(-1))


def drawn_labels(logits: Tensor | None, y: Tensor, loss: Tensor | None, generator: torch.Generator) -> Tensor | None:
    """Return a class (B,) for each row, drawn from softmax of logits (B, C): the labels of the Fisher matrix itself.

    None where `loss` is not the mean cross-entropy of the logits with classes y (B,), so that they have no likelihood.
    """
    if logits is None or loss is None or y.is_floating_point():
        return None
    if not torch.isclose(torch.nn.functional.cross_entropy(logits, y), loss, rtol=1e-3):
        return None
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


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


def overfitting_ratio(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return |ΔO/ΔG| between two moments, each the loss on training and on validation rows; nan where ΔG is 0.

    O is validation minus training loss, G how far the validation loss has fallen: the overfitting-to-generalisation
    ratio of Wang et al. (CVPR 2020), low where learning carries over. Gradient blending weighs by ΔG/ΔO².

    >>> round(overfitting_ratio((2.0, 2.0), (0.5, 1.0)), 3)
    0.5
    """
    overfitting = (after[1] - after[0]) - (before[1] - before[0])
    gained = before[1] - after[1]
    return abs(overfitting / gained) if gained else nan


def class_means(h: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean features (C, D) of each class in h (N, D), y (N,), and which classes there are (C,)."""
    hot = torch.nn.functional.one_hot(y, classes).to(h.dtype)
    counts = hot.sum(0)
    return hot.T @ h / counts.clamp(min=1)[:, None], counts > 0


def similarity(h: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Return -‖h - P_c‖ (B, C) for features h (B, D) and prototypes (C, D); -∞ where known (C,) is false.

    A modality's logits without any head, as PMR has them (Fan et al., CVPR 2023).
    """
    distance = torch.cdist(h, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return (-distance).masked_fill(~known, -torch.inf)


def ridge(h: Tensor, y: Tensor, classes: int, new: Tensor, damping: float = 0.01) -> Tensor:
    """Return scores (B, C) of new features (B, D) by a linear probe on h (N, D) with classes y (N,), in closed form.

    Least squares on one-hot labels, intercept free, ‖W‖² weighed by `damping` times the mean of the eigenvalues of the
    features' scatter matrix, so that the scale of the features does not matter.
    """
    mean, h = h.mean(0), h - h.mean(0)
    target = torch.nn.functional.one_hot(y, classes).to(h.dtype)
    scatter = h.T @ h
    level = damping * scatter.diagonal().mean() + torch.finfo(h.dtype).tiny
    weight = torch.linalg.solve(
        scatter + level * torch.eye(len(scatter), dtype=h.dtype, device=h.device), h.T @ (target - target.mean(0))
    )
    return (new - mean) @ weight + target.mean(0)


def _several(values: Tensor) -> None:
    if values.dim() != 1 or len(values) < 2:
        raise InputError(f"balance needs at least 2 modalities, not values of shape {tuple(values.shape)}.")
