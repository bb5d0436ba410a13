"""Data sets in memory: arrays by modality, labels and a split; and the sources that make them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from modalscape.engine.core.knobs import assigned
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError, nearest

PARTS = ("train", "val", "test")
"""Names of the parts, at the number that `split` uses for each."""

_KINDS = {2: "vector", 3: "sequence", 4: "image"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """All rows of a data set, as they came: nothing is standardised yet."""

    name: str
    title: str
    x: dict[str, np.ndarray]
    """Modality to (N, …): float32, or int64 token ids with 0 as padding.

    (N, F) is a vector, (N, T, F) a sequence with time first, (N, C, H, W) an image or spectrogram with channels first.
    """
    y: np.ndarray
    """(N,): int64 classes 0 … C-1, or float32 targets of a regression."""
    split: np.ndarray
    """(N,) int8: 0 train, 1 val, 2 test."""
    class_names: tuple[str, ...] = ()
    """One a class; empty for regression."""
    vocabularies: dict[str, int] = field(default_factory=dict)
    """Token modality to the number of ids, padding included."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(self.x)

    @property
    def regression(self) -> bool:
        """Whether the labels are real numbers."""
        return self.y.dtype.kind == "f"

    @cached_property
    def classes(self) -> int:
        """Number of classes, C; 1 for regression."""
        return 1 if self.regression else max(len(self.class_names), int(self.y.max()) + 1)

    def kind(self, modality: str) -> str:
        """Return `vector`, `sequence`, `image` or `tokens`."""
        return "tokens" if modality in self.vocabularies else _KINDS[self.x[modality].ndim]

    def shape(self, modality: str) -> tuple[int, ...]:
        """Return the shape of one row's input."""
        return self.x[modality].shape[1:]

    @property
    def counts(self) -> dict[str, int]:
        """Part to its number of rows."""
        return {part: int((self.split == i).sum()) for i, part in enumerate(PARTS)}

    def batches(self) -> dict[str, Batch]:
        """Return part to all its rows as CPU tensors, standardised by the training rows.

        Each feature of a vector or sequence and each channel of an image gets mean 0 and variance 1 over the training
        rows; what is constant there becomes 0 in every part. Token ids stay as they are. Regression targets are
        standardised too, so losses and errors are in units of the training targets' variance.
        """
        train = self.split == 0
        x = {m: v if m in self.vocabularies else standardised(v, train) for m, v in self.x.items()}
        y = standardised(self.y, train) if self.regression else self.y
        parts = {}
        for i, part in enumerate(PARTS):
            where = self.split == i
            parts[part] = Batch({m: torch.from_numpy(v[where]) for m, v in x.items()}, torch.from_numpy(y[where]))
        return parts


def mislabelled(data: Dataset, share: float, rng: Rng) -> Dataset:
    """Return the data set with another class, uniformly drawn, in a share of its training rows; other parts stay right.

    The number of changed rows is the share rounded to whole rows, so a rate is met exactly, and a larger share keeps
    the rows of a smaller.

    Raises:
        InputError: the labels are real numbers.
    """
    if share == 0.0:
        return data
    if data.regression:
        raise InputError(f"label_noise is {share}, but the labels of {data.title} are real numbers; set it to 0.")
    draw = np.random.default_rng(rng.key("label_noise"))
    rows = draw.permutation(np.flatnonzero(data.split == 0))
    rows = rows[: round(share * len(rows))]
    y = data.y.copy()
    y[rows] = (y[rows] + draw.integers(1, data.classes, size=len(rows))) % data.classes
    return replace(data, y=y)


def standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return `values` (N, …) as float32 with mean 0 and variance 1 over the rows that `train` (N,) selects.

    Statistics are taken per feature of (N,), (N, F) and (N, T, F), and per channel of (N, C, H, W). Where the standard
    deviation is below a millionth of the mean, the feature is constant to float32's rounding and becomes 0.
    """
    mean, deviation = _moments(values[train])
    varies = deviation > 1e-6 * np.abs(mean)
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    return ((values - mean) * scale).astype(np.float32)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation, axes kept, per feature of vectors and sequences and per channel of images."""
    axes = {1: 0, 2: 0, 3: (0, 1), 4: (0, 2, 3)}[values.ndim]
    return values.mean(axes, keepdims=True, dtype=np.float64), values.std(axes, keepdims=True, dtype=np.float64)


def corrupted(data: Dataset, noise: str, rng: Rng) -> Dataset:
    """Return the data set with Gaussian noise on the inputs that `noise` names, in training and validation rows.

    `noise` is `audio=1.0`, or several such with commas; the number is the noise's standard deviation in units of each
    feature's own (each channel's, of images) over the training rows. As all inputs are standardised afterwards, they do
    not grow with it: 1.0 leaves half of the variance to the data. A row keeps its noise through the run, a larger
    number scales the same draws, and test rows stay clean.

    Raises:
        InputError: a modality that is not there or is token ids, or what is no number from 0 to 100.
    """
    x, rows = dict(data.x), data.split != PARTS.index("test")
    for name, scale in assigned(noise, "corrupt", 0.0, 100.0).items():
        if name not in x:
            raise InputError(f"corrupt names {name!r}, which {data.title} does not have{nearest(name, x)}")
        if name in data.vocabularies:
            raise InputError(f"corrupt adds noise to numbers, but {name} of {data.title} is token ids; leave it out.")
        values, draw = x[name], np.random.default_rng(rng.key(f"corrupt/{name}"))
        _, deviation = _moments(values[data.split == 0])
        drawn = draw.standard_normal(values.shape, dtype=np.float32)[rows]
        x[name] = values.copy()
        x[name][rows] += (scale * deviation * drawn).astype(values.dtype)
    return replace(data, x=x)


def restricted(data: Dataset, modalities: str) -> Dataset:
    """Return the data set with the modalities that are named, with commas between, in its own order; all if none is.

    Rows, labels and split stay, so what a modality reaches alone can be compared with what it reaches in company.

    Raises:
        InputError: a modality that is not there.
    """
    asked = [name for name in (part.strip() for part in modalities.split(",")) if name]
    for name in asked:
        if name not in data.x:
            raise InputError(f"modalities names {name!r}, which {data.title} does not have{nearest(name, data.x)}")
    if not asked:
        return data
    kept = {name: size for name, size in data.vocabularies.items() if name in asked}
    return replace(data, x={name: x for name, x in data.x.items() if name in asked}, vocabularies=kept)


class Source:
    """One built-in problem: where its data come from. Subclasses live in `engine/problems`, one a file."""

    name: ClassVar[str]
    """Equal to the file's name."""
    title: ClassVar[str]
    modalities: ClassVar[tuple[str, ...]]
    """Modalities at the default knobs."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Settings of a run that suit it, such as `{"objective": "info_nce"}`."""

    @dataclass(frozen=True)
    class Params:
        """No knobs."""

    def __init__(self, params: Any = None) -> None:
        self.params = self.Params() if params is None else params

    def load(self, rng: Rng) -> Dataset:
        """Return the data set, a function of the knobs and the seed."""
        raise TypeError(f"The problem {self.name!r} does not say how to load its data.")
