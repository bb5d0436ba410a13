"""How much better the network does on rows that it trained on than on rows held out: loss, score, and the gaps.

Both are evaluated at the same parameters with no method active, in pieces of equal size, so that a loss or a recall
that depends on how many rows compete (contrastive learning) is compared like with like. A gap is positive where held-
out rows fare worse. Training labels are those trained on: where a share of them is wrong, a network that does not learn
them by heart has a small or negative gap, and its held-out score is the better judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.problem import Batch, join_batches
from modalscape.engine.maths.progress import Tally

PIECE = 1024
"""Rows that are evaluated at once."""


class Generalization(Probe):
    """Loss and score on training rows and on held-out rows, and their gaps."""

    name = "generalization"
    title = "Generalization gap"
    every = 100
    cost = "medium"

    @dataclass(frozen=True)
    class Params:
        """What is compared."""

        part: str = knob("val", help="Held-out rows; test where val has chosen something.", choices=("val", "test"))
        rows: int = knob(4096, 2, 1_000_000, "Rows of each part at most, drawn once and for all.", log=True)

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield both parts' loss and score, and the two gaps."""
        part, score = self.params.part, snap.problem.score
        whole = {name: _rows(snap, name, self.params.rows) for name in ("train", part)}
        size = min(PIECE, *(len(rows) for rows in whole.values()))
        found, counts, tally = {}, {}, Tally("rows", sum(len(rows) // size * size for rows in whole.values()))
        for name, rows in whole.items():
            pieces = [piece for piece in rows.chunks(size) if len(piece) == size]
            values = []
            for piece in pieces:
                values.append(_evaluated(snap, piece))
                tally.add(size)
            found[name], counts[name] = torch.stack(values).mean(0).tolist(), size * len(pieces)
        words = {"train": "training rows, labels as trained on", part: f"{part} rows"}
        for name, (loss, reached) in found.items():
            about = {"n": counts[name], "mode": f"{words[name]}, no method active"}
            yield Scalar(f"generalization/loss/{name}", loss, **about, display=Display(y="loss"))
            yield Scalar(f"generalization/{score}/{name}", reached, **about, display=Display(y=score))
        sign = 1.0 if score == "error" else -1.0
        gaps = {"loss": found[part][0] - found["train"][0], score: sign * (found[part][1] - found["train"][1])}
        for name, gap in gaps.items():
            mode = f"{name}: how much worse on {part} than on training rows, no method active"
            yield Scalar(f"generalization/gap/{name}", gap, n=counts[part], mode=mode, display=Display(y="gap"))


def _rows(snap: Snapshot, part: str, most: int) -> Batch:
    """Return up to `most` rows of a part in a fixed random order."""
    whole = join_batches(list(snap.problem.held_out(part)))
    order = torch.randperm(len(whole), generator=snap.rng.generator(f"generalization/{part}"))[:most]
    return whole.rows(order.to(whole.y.device))


@torch.no_grad()
def _evaluated(snap: Snapshot, batch: Batch) -> Tensor:
    """Return the first loss and the main score (2,)."""
    problem = snap.problem
    features = problem.encode(snap.theta, batch)
    losses, logits = problem.objectives(snap.theta, features, batch)
    reached = problem.scores(logits, features, batch.y)[problem.score]
    return torch.stack([next(iter(losses.values())), reached.to(snap.theta.dtype)])
