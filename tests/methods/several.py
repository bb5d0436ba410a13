"""Small real trainings with several modalities, or any number of them, and data files in which something is odd."""

import numpy as np

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.runtime.session import Training

SMALL = {
    "unimodal": "none",
    "batch": 16,
    "hidden": 8,
    "width": 6,
    "dtype": "float64",
    "optimizer.name": "sgd",
    "optimizer.lr": 0.05,
}


def training(*methods, modalities=2, data=None, seed=0, **settings):
    """A training on planted evidence with that many modalities, or on a data file."""
    planted = {
        "planted.unique": ",".join(["1.5"] * modalities),
        "planted.rows": 96,
        "planted.dimensions": 8,
    }
    chosen = SMALL | ({} if data else planted) | {key.replace("__", "."): v for key, v in settings.items()}
    config = RunConfig(
        problem=None if data else "planted",
        data=data,
        methods=methods,
        steps=1000,
        seed=seed,
        device="cpu",
        settings=chosen,
    )
    return Training(validated(config, catalog()))


def data_file(folder, classes=3, dead=(), names=("image", "text"), real=False, lacking=None, rows=90):
    """A file of random rows whose labels show in every modality that is not dead; training may lack a class."""
    draw = np.random.default_rng(0)
    y = draw.integers(classes, size=rows)
    split = np.repeat(np.array([0, 1, 2], np.int8), rows // 3)
    y[(split == 0) & (y == lacking)] = 0
    table = {}
    for name in names:
        x = np.eye(classes)[y] @ draw.standard_normal((classes, 5)) + draw.standard_normal((rows, 5))
        table[name] = (0 * x if name in dead else x).astype(np.float32)
    labels = draw.standard_normal(rows).astype(np.float32) if real else y
    np.savez(folder / "data.npz", labels=labels, split=split, **table)
    return str(folder / "data.npz")
