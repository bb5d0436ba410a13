"""A batch in pieces: within a limit, weighted by rows, whole where the loss is no mean over rows."""

import pytest
import torch

from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature import batch_chunks
from modalscape.engine.maths.curvature.batch_chunks import cut
from modalscape.engine.maths.curvature.hessian_spectrum import hvp
from modalscape.engine.maths.curvature.matrix_products import Products


def batch(rows: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch({"a": torch.randn(rows, 6, generator=draw, dtype=torch.float64)}, torch.zeros(rows))


def mean(theta, piece):
    return (piece.x["a"] * theta).tanh().square().sum(1).mean()


def whole(theta, piece):
    """A loss that sets rows against each other, as contrastive ones do."""
    return (piece.x["a"] * theta).logsumexp(0).sum()


THETA = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)


def test_ragged_pieces_weigh_as_many_rows_as_they_have():
    rows = batch(50)
    pieces, words = cut(mean, THETA, rows, micro=16)
    assert [len(piece) for piece, _ in pieces] == [16, 16, 16, 2]
    assert sum(share for _, share in pieces) == pytest.approx(1) and words == "in 4 pieces of at most 16 rows"
    v = torch.ones_like(THETA)
    terms = [(lambda theta, piece=piece: mean(theta, piece), share) for piece, share in pieces]
    torch.testing.assert_close(hvp(terms, THETA, v), hvp(lambda theta: mean(theta, rows), THETA, v))


def test_what_is_within_the_limit_stays_whole():
    rows = batch(200)
    assert cut(mean, THETA, rows) == ([(rows, 1.0)], "")


@pytest.mark.parametrize("limit", [3e4, 1e5])
def test_no_piece_is_beyond_the_limit(monkeypatch, limit):
    rows = batch(900)
    monkeypatch.setitem(batch_chunks.LIMIT, "cpu", limit)
    pieces, _ = cut(mean, THETA, rows)
    flows = [Products(lambda theta, piece=piece: mean(theta, piece), THETA).flow for piece, _ in pieces]
    assert len(pieces) > 3 and max(flows) <= limit and max(flows) > limit / 2
    sizes = [len(piece) for piece, _ in pieces]
    assert sum(sizes) == 900 and max(sizes) - min(sizes) <= len(sizes)


def test_a_loss_that_is_no_mean_over_rows_is_not_cut():
    rows = batch(64)
    assert cut(whole, THETA, rows, 16) == ([(rows, 1.0)], "in one piece, since the loss is no mean over rows")


def test_no_rows_are_refused_in_one_sentence():
    with pytest.raises(InputError, match="no rows") as refusal:
        cut(mean, THETA, batch(0))
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_a_loss_that_is_no_number_is_left_to_the_products():
    pieces, _ = cut(lambda theta, piece: mean(theta, piece) * float("nan"), THETA, batch(64), 16)
    assert len(pieces) == 4
