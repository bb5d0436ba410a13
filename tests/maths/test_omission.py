"""Which modalities a row loses beside the one that is attacked: at which rates, and that one always stays."""

import math

import pytest
import torch

from modalscape.engine.methods.modalimmune.omission import kept_others

ROWS = 40_000


def uniform(count: int, seed: int = 0, rows: int = ROWS) -> torch.Tensor:
    return torch.rand(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_others_are_lost_at_their_rate_and_one_always_stays(count, p):
    """p - p^(M-1)/(M-1) each, within five standard errors; of two modalities none."""
    attacked = count // 2
    kept = kept_others(uniform(count), attacked, p)
    others = [m for m in range(count) if m != attacked]
    assert not kept[:, attacked].any()
    assert kept.any(1).all()
    wanted = p - p ** (count - 1) / (count - 1)
    error = math.sqrt(wanted * (1 - wanted) / ROWS)
    for m in others:
        assert (~kept[:, m]).double().mean().item() == pytest.approx(wanted, abs=5 * error + 1e-12)
    if p == 1.0:
        assert (kept.sum(1) == 1).all()


def test_the_numbers_of_lost_others_are_binomial_with_the_last_one_saved():
    count, p = 5, 0.5
    lost = (~kept_others(uniform(count, 1), 0, p)).sum(1) - 1
    for k in range(4):
        wanted = math.comb(4, k) * p**k * (1 - p) ** (4 - k) + (p**4 if k == 3 else 0.0)
        error = math.sqrt(wanted * (1 - wanted) / ROWS)
        assert (lost == k).double().mean().item() == pytest.approx(wanted, abs=5 * error)
    assert (lost <= 3).all()


def test_nothing_more_is_lost_at_zero_and_the_attacked_ones_number_does_not_matter():
    numbers = uniform(4, 2, 500)
    assert torch.equal(kept_others(numbers, 1, 0.0), torch.tensor([True, False, True, True]).expand(500, -1))
    other = numbers.clone()
    other[:, 1] = 0.999999
    assert torch.equal(kept_others(numbers, 1, 0.7), kept_others(other, 1, 0.7))


def test_rows_lose_more_as_the_chance_grows_but_for_the_one_that_stays():
    numbers = uniform(5, 3, 2000)
    before = kept_others(numbers, 0, 0.2)
    for p in (0.4, 0.8, 1.0):
        now = kept_others(numbers, 0, p)
        assert (before | ~now).all()
        before = now
