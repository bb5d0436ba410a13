"""The numbers that every step of a run leaves."""

from __future__ import annotations

import torch

from modalscape.engine.core.problem import Problem
from modalscape.engine.core.step import View


class StepScalars:
    """Takes the numbers of a step off the device in one transfer."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._names: tuple[str, ...] = ()
        self._paths: list[str] = []

    def __call__(self, view: View) -> dict[str, float]:
        """Return losses, training scores, norms of gradient and update by part, and the learning rate of a step."""
        scores = self.problem.scores(view.logits, view.features, view.batch.y)
        layout, names = self.problem.layout, (*view.losses, *scores)
        values = torch.stack((*view.losses.values(), *scores.values()))
        table = torch.cat([values, layout.norms(view.grad), layout.norms(view.applied_update)]).tolist()
        if names != self._names:
            self._names = names
            self._paths = (
                [f"loss/{name}" for name in view.losses]
                + [_train(name) for name in scores]
                + [f"{kind}/{part}" for kind in ("grad_norm", "update_norm") for part in layout.slices]
            )
        return dict(zip(self._paths, table, strict=True)) | {"lr": view.rate.lr}


def _train(name: str) -> str:
    head, _, tail = name.partition("/")
    return f"{head}/train/{tail}" if tail else f"{head}/train"
