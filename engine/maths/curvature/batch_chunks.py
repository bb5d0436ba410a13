"""How a batch is cut into chunks, so that the memory of a product stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.matrix_products import Products

LIMIT = {"cpu": 2.5e8}
"""Bytes that pass through the graph of one chunk at most, where the caller names no size.

0.1 to 0.25 s on one CPU thread, so that whoever waits for a report does not wait long. CNNs of 180,000 and 280,000
parameters on 256 and 1,024 rows took 0.85 of the time of chunks of 6e7, and 1,024 rows at once (7e8) took as long as
those. Elsewhere 4e9, which is not timed.
"""

_TRIED = (4, 8)
"""Rows of the two small graphs from which the size of a larger one is told."""


class Rows(Protocol):
    """A batch: rows that can be counted, selected and cut."""

    def __len__(self) -> int:
        """Return how many rows there are."""

    def rows(self, where: slice) -> Self:
        """Return some of them."""

    def chunks(self, size: int) -> list[Self]:
        """Return them in pieces of at most `size`."""


Piece = TypeVar("Piece", bound=Rows)


def cut(
    loss: Callable[[Tensor, Piece], Tensor], theta: Tensor, batch: Piece, micro: int = 0
) -> tuple[list[tuple[Piece, float]], str]:
    """Return chunks of a batch with their shares of its rows, and a sentence on how it was cut, or nothing.

    `micro` is the most rows of a chunk; 0 leaves the batch whole unless more than LIMIT would then pass through the
    graph of the Hessian of `loss`. A loss that is no mean over rows (contrastive ones are not) leaves it whole, too.

    Raises:
        InputError: a batch without rows; see also `Products`.
    """
    if not len(batch):
        raise InputError("there are no rows to measure curvature on; give the probe batch at least one.")
    pieces = batch.chunks(micro or _within_limit(loss, theta, batch))
    if len(pieces) == 1:
        return [(batch, 1.0)], ""
    shares = [(piece, len(piece) / len(batch)) for piece in pieces]
    with torch.no_grad():
        whole = loss(theta, batch)
        difference = sum(share * loss(theta, piece) for piece, share in shares) - whole
    # nothing compares with nan: the products say in their own words that the loss is not finite
    if difference.abs() > 1e-4 * whole.abs():
        return [(batch, 1.0)], "in one piece, since the loss is no mean over rows"
    return shares, f"in {len(shares)} pieces of at most {len(pieces[0])} rows"


def _within_limit(loss: Callable[[Tensor, Piece], Tensor], theta: Tensor, batch: Piece) -> int:
    """Return the rows of a chunk whose graph is within LIMIT; 0 for all."""
    few, more = _TRIED
    if len(batch) <= 2 * more:
        return 0
    flows = [Products(lambda at, n=n: loss(at, batch.rows(slice(n))), theta).flow for n in _TRIED]
    slope = (flows[1] - flows[0]) / (more - few)
    fixed = flows[0] - few * slope
    limit = LIMIT.get(theta.device.type, 4e9)
    if fixed + slope * len(batch) <= limit:
        return 0
    count = -(-slope * len(batch) // max(limit - fixed, slope * more))
    return int(-(-len(batch) // count))
