"""Tumours: measurements of cell nuclei as three modalities, their mean, its error and the worst; benign or malignant.

Real data that come with scikit-learn. `data.tumours` says what a linear model reaches on each modality, and on all of
them.

*Source*: Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic), UCI Machine Learning
Repository, CC BY 4.0, as held by scikit-learn.
"""

from __future__ import annotations

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset, Source
from modalscape.engine.data.tumours import MODALITIES, tumours


class Tumours(Source):
    """569 breast tumours, ten properties of their nuclei in each modality; the worst ones nearly say it all."""

    name = "tumours"
    title = "Tumours"
    modalities = MODALITIES

    def load(self, rng: Rng) -> Dataset:
        """Return the data set; the split is drawn from the seed."""
        return tumours(rng)
