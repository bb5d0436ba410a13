"""Measurements of the cell nuclei of breast tumours in three modalities: their mean, its error, and the worst ones.

Ten properties of the nuclei in a digitised picture (radius, texture, perimeter, area, smoothness, compactness,
concavity, concave points, symmetry, fractal dimension) were measured on every nucleus. A row holds their mean over the
nuclei, the standard error of that mean, and the mean of the three largest; 212 tumours are malignant and 357 benign.
The 569 rows come with scikit-learn (`load_breast_cancer`).

What a linear model reaches: logistic regression on the standardised training rows (scikit-learn's, L2, C = 1), accuracy
on the held-out test rows in %, mean ± standard deviation over seeds 0 to 19, n = 113 rows each (62.8 are benign):

- mean 93.6 ± 2.1, error 88.0 ± 2.6, worst 97.9 ± 0.8, all three side by side 98.0 ± 1.1.
"""

from __future__ import annotations

import numpy as np

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset

CLASSES = ("malignant", "benign")
MODALITIES = ("mean", "error", "worst")
_FIFTHS = np.array([0, 0, 0, 1, 2], np.int8)


def tumours(rng: Rng) -> Dataset:
    """Return the data set: `mean`, `error` and `worst` (569, 10) each, as measured, in the order of the columns.

    Of each class, to within one row, three fifths are for training, one for validation and one for the test; which ones
    is drawn from the seed.
    """
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    y = raw.target.astype(np.int64)
    order = np.random.default_rng(rng.key("tumours")).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    split = np.empty(len(y), np.int8)
    split[order] = np.resize(_FIFTHS, len(y))
    parts = np.split(raw.data.astype(np.float32), len(MODALITIES), axis=1)
    x = {name: np.ascontiguousarray(part) for name, part in zip(MODALITIES, parts, strict=True)}
    return Dataset("tumours", "Tumours", x, y, split, CLASSES)
