"""Real images of digits with short templated captions: vision and text without a download.

The 1,797 images of 8 x 8 pixels come with scikit-learn (`load_digits`). A caption names the digit and says three things
that can be seen: how bold, how slanted and how wide it is; so pairs can be told apart beyond their class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modalscape.engine.core.knobs import knob
from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_BOLDNESS = ("thin", "plain", "bold")
_SLANT = ("leftward", "upright", "rightward")
_WIDTH = ("narrow", "medium", "wide")
_TEMPLATES = (
    "a {bold} {wide} {slant} {digit}",
    "the digit {digit} written {bold} {wide} and {slant}",
    "{digit} in {bold} strokes {slant} and {wide}",
    "this {slant} {wide} number in {bold} ink is {digit}",
)
_VAL, _TEST, _TRAIN = 297, 300, 1200


@dataclass(frozen=True)
class Params:
    """How clean the data are."""

    inputs: str = knob(
        "flat",
        help="flat: 64 pixels and a bag of words, for small MLPs; raw: an image and a sequence of token ids.",
        choices=("flat", "raw"),
    )
    wrong_caption: float = knob(0.1, 0.0, 0.9, "Share of rows, in every part, whose caption belongs to another digit.")
    missing_caption: float = knob(0.1, 0.0, 1.0, "Share of rows, in every part, without a caption.")
    rows: int = knob(_TRAIN, 50, _TRAIN, "Training rows; val has 297 and test 300, the same for every choice.")


def digits_captions(params: Params, rng: Rng) -> Dataset:
    """Return the data set with modalities `image` and `text`; the split and all noise are drawn from the seed.

    `raw`: image (N, 1, 8, 8) and text (N, L) token ids; `flat`: image (N, 64) and text (N, words), 1 where a word is
    in the caption. Pixels are in 0 … 1. Each rate is the probability that it befalls a row; a missing caption may hide
    a wrong one. The caption's `wrong` digit is drawn among the other nine.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    draw = np.random.default_rng(rng.key("digits_captions"))
    order = draw.permutation(len(raw.target))
    images = (raw.images[order] / 16.0).astype(np.float32)
    y = raw.target[order].astype(np.int64)
    split = np.repeat(np.array([1, 2, 0], np.int8), [_VAL, _TEST, _TRAIN])
    captions = _captions(images, y, params, draw)
    kept = slice(_VAL + _TEST + params.rows)
    images, y, split, captions = images[kept], y[kept], split[kept], captions[kept]
    if params.inputs == "raw":
        x = {"image": images[:, None], "text": captions}
        vocabularies = {"text": len(vocabulary()) + 1}
    else:
        words = np.zeros((len(y), len(vocabulary()) + 1), np.float32)
        np.put_along_axis(words, captions, 1.0, axis=1)
        x = {"image": images.reshape(len(y), -1), "text": words[:, 1:]}
        vocabularies = {}
    return Dataset("digits_captions", "Digits with captions", x, y, split, DIGITS, vocabularies)


def vocabulary() -> tuple[str, ...]:
    """Return the words of all captions; the token id of a word is its place plus one."""
    words = {word for template in _TEMPLATES for word in template.split() if not word.startswith("{")}
    return tuple(sorted(words.union(DIGITS, _BOLDNESS, _SLANT, _WIDTH)))


def _captions(images: np.ndarray, y: np.ndarray, params: Params, draw: np.random.Generator) -> np.ndarray:
    """Return token ids (N, L), 0 as padding; every draw is made whatever the rates, so raising one adds rows to it."""
    ids = {word: i for i, word in enumerate(vocabulary(), start=1)}
    seen = zip(*(_thirds(look) for look in _looks(images)), strict=True)
    which = draw.integers(len(_TEMPLATES), size=len(y))
    named = np.where(_chosen(params.wrong_caption, len(y), draw), (y + draw.integers(1, 10, size=len(y))) % 10, y)
    rows = []
    for template, digit, (bold, slant, wide) in zip(which, named, seen, strict=True):
        text = _TEMPLATES[template].format(
            digit=DIGITS[digit], bold=_BOLDNESS[bold], slant=_SLANT[slant], wide=_WIDTH[wide]
        )
        rows.append([ids[word] for word in text.split()])
    length = max(len(row) for row in rows)
    captions = np.array([row + [0] * (length - len(row)) for row in rows], np.int64)
    captions[_chosen(params.missing_caption, len(y), draw)] = 0
    return captions


def _chosen(share: float, rows: int, draw: np.random.Generator) -> np.ndarray:
    """Return (rows,) of bool, each true with probability `share`; a larger share keeps the rows of a smaller."""
    return draw.random(rows) < share


def _looks(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ink, slant and spread of images (N, 8, 8), each (N,): sums and moments of the brightness."""
    across = np.arange(8.0) - 3.5
    ink = images.sum((1, 2))
    x = (images * across).sum((1, 2)) / ink
    y = (images * across[:, None]).sum((1, 2)) / ink
    dx = across[None, None, :] - x[:, None, None]
    dy = across[None, :, None] - y[:, None, None]
    slant = -(images * dx * dy).sum((1, 2)) / (images * dy**2).sum((1, 2))
    return ink, slant, (images * dx**2).sum((1, 2)) / ink


def _thirds(values: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for each value's third of all values."""
    return np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values)
