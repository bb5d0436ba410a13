"""Planted evidence: the best possible accuracy of each modality, and of all together, is known.

*Source*: generated here, from Gaussian draws of the run's seed.
"""

from __future__ import annotations

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset, Source
from modalscape.engine.data.planted import Params, planted


class Planted(Source):
    """Gaussian evidence with redundancy and unique information as knobs, so that imbalance has a ground truth."""

    name = "planted"
    title = "Planted evidence"
    modalities = ("vision", "audio")
    Params = Params

    def load(self, rng: Rng) -> Dataset:
        """Return the generated rows; `data.planted.bayes_accuracy` says what can be reached on them."""
        return planted(self.params, rng)
