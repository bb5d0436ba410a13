"""What each modality's features tell of the others': held-out R² of ridge regressions between the modalities.

Of each modality's features, those of all others together and those of each single other are the sources of a ridge
regression with intercept. It is fitted on the probe rows, its penalty chosen there by exact leave-one-out, and scored
on rows that nothing was fitted to: 1 is a perfect reconstruction, 0 no better than the features' mean. Features are
clean, with no method active, and each counts by its variance.

R² is free of scale and blind to what is useful. Features that hold the class and nothing else reconstruct each other
perfectly, so R² also rises as features lose everything else: read it beside R² within the classes, where the mean of
each row's class is taken away first (classes of the probe rows), and beside the ranks on the Spectra page. A linear
regression is a lower bound of what could be reconstructed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Matrix, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.problem import Batch, join, join_batches
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features.reconstruction import FEWEST, Sources, explained
from modalscape.engine.maths.progress import tracked

PIECE = 256
"""Rows that are encoded at once."""


class Reconstruction(Probe):
    """Held-out R² of each modality's features from all others' and from each single other's."""

    name = "reconstruction"
    title = "Reconstruction between modalities"
    every = 50
    cost = "low"

    @dataclass(frozen=True)
    class Params:
        """What is scored."""

        part: str = knob(
            "val", help="Rows that are scored; test where val has chosen something.", choices=("val", "test")
        )
        rows: int = knob(512, 1, 100_000, "Rows that are scored at most.", log=True)

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield R² by modality, the matrix of pairs, and R² within the classes where there are classes.

        Raises:
            InputError: one modality, too few rows on either side, or features that are not finite.
        """
        started, names = time.perf_counter(), snap.problem.modalities
        if len(names) < 2:
            raise InputError(
                f"This run trains on {names[0]} alone, so there is nothing from which to reconstruct it; use a run of "
                "several modalities."
            )
        probe, batch = snap.problem.probe_batch(), self._batch(snap)
        if len(probe) < FEWEST:
            raise InputError(f"probe_rows is {len(probe)}, too few to fit a regression; set it to {FEWEST} or more.")
        rows = _Rows(_encoded(snap, probe, "fit"), _encoded(snap, batch, "score"))
        pairs = rows.pairs()
        whole = rows.from_all() if len(names) > 2 else {target: value for (target, _), value in pairs.items()}
        words = f"R² on {self.params.part} rows, ridge regression fitted on {len(probe)} training rows"
        words += ", λ by leave-one-out; error: jackknife over the rows scored, the fit held as it is"
        about: dict[str, Any] = {"n": len(batch), "mode": words, "seconds": time.perf_counter() - started}
        yield from _scalars("r2", whole, about)
        table = [[pairs.get((target, source), (math.nan, math.nan)) for source in names] for target in names]
        values, errors = np.moveaxis(np.array(table), 2, 0)
        display = Display(title="R² of one modality's features from another's", x="from", y="of", signed=True)
        yield Matrix(
            "reconstruction/matrix", np.array(names), np.array(names), values, errors, display=display, **about
        )
        if not probe.y.is_floating_point():
            yield from _within(rows, probe.y, batch.y, words)

    def _batch(self, snap: Snapshot) -> Batch:
        """Return the rows that are scored, drawn once and for all where there are more than wanted.

        Raises:
            InputError: there are none.
        """
        part, pieces = self.params.part, list(snap.problem.held_out(self.params.part))
        count = sum(map(len, pieces))
        if not count:
            raise InputError(
                f"There are no {part} rows to score a reconstruction on; set reconstruction.part to another."
            )
        whole = join_batches(pieces)
        order = torch.randperm(count, generator=snap.rng.generator("reconstruction/rows"))[: self.params.rows]
        return whole.rows(order.sort().values.to(whole.y.device))


@torch.no_grad()
def _encoded(snap: Snapshot, batch: Batch, what: str) -> dict[str, Tensor]:
    """Return modality to clean features (N, D).

    Raises:
        InputError: some are not finite.
    """
    pieces = [snap.problem.encode(snap.theta, piece) for piece in tracked(batch.chunks(PIECE), f"pieces to {what}")]
    features = join(pieces)
    for m, h in features.items():
        if not h.isfinite().all():
            raise InputError(f"The features of {m} are not finite at step {snap.step}; see the loss.")
    return features


@dataclass(frozen=True)
class _Rows:
    """Features on the rows of the fit and on those that are scored, and the groups of both where there are any."""

    fit: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    groups: Tensor | None = None
    new_groups: Tensor | None = None

    def pairs(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Return target and source, each a modality, to R² and its error."""
        found = {}
        for source in tracked(self.fit, "modalities"):
            x = Sources(self.fit[source], self.groups)
            found |= {(m, source): self._scored(x, m, self.new[source]) for m in self.fit if m != source}
        return found

    def from_all(self) -> dict[str, tuple[float, float]]:
        """Return modality to R² from all others together, and its error."""
        found = {}
        for target in tracked(self.fit, "modalities"):
            x, new = (torch.cat([h for m, h in side.items() if m != target], 1) for side in (self.fit, self.new))
            found[target] = self._scored(Sources(x, self.groups), target, new)
        return found

    def _scored(self, x: Sources, target: str, new: Tensor) -> tuple[float, float]:
        model, y = x.fit(self.fit[target]), self.new[target]
        return explained(y, model(new, self.new_groups), model.offset[0 if self.groups is None else self.new_groups])


def _within(rows: _Rows, y: Tensor, new_y: Tensor, words: str) -> Iterator[Record]:
    """Yield R² of what varies within the classes, on the rows whose class is among those of the fit."""
    started = time.perf_counter()
    known = torch.isin(new_y, y)
    if not known.any():
        return
    held = {m: h[known] for m, h in rows.new.items()}
    found = _Rows(rows.fit, held, y, new_y[known]).from_all()
    words += "; about the mean of each row's class, that of the rows of the fit"
    yield from _scalars(
        "within", found, {"n": int(known.sum()), "mode": words, "seconds": time.perf_counter() - started}
    )


def _scalars(key: str, found: Mapping[str, tuple[float, float]], about: dict[str, Any]) -> Iterator[Record]:
    """Yield R² of each modality; none of one whose features are constant."""
    display = Display(y="held-out R²", levels={"the mean": 0.0}, within=[-1.0, 1.0])
    for m, (value, error) in found.items():
        if math.isfinite(value):
            yield Scalar(f"reconstruction/{key}/{m}", value, error, display=display, **about)
