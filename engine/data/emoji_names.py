"""The emoji with their names: small colour pictures, and the words that Unicode calls them by.

A row is one emoji: its picture, the words of its name as token ids, and Unicode's group of emoji as its class. Words
that stand in one name alone share an id, since nothing can be learnt of them. Near duplicates, such as hearts of many
colours or clock faces, stay on one side of the split, so that what is held out was not seen under another colour.

What linear models reach on the held-out test rows, mean ± standard deviation over seeds 0 to 9, n = 197 to 208 rows;
strengths chosen on the validation rows of each seed:

- accuracy in %, logistic regression (L2) on pixels, on the bag of the name's words, and on both side by side: image
  41.0 ± 4.6, name 52.1 ± 3.6, both 46.4 ± 4.4; the largest class of training 17.6 ± 3.8.
- recall at 10 in %, canonical correlations (30, both sides regularised), ties counted as misses: image to name
  18.3 ± 4.3, name to image 20.6 ± 2.6; chance 5.0.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset
from modalscape.engine.data.emoji_groups import GROUPS, families, spelt, words
from modalscape.engine.data.emoji_pictures import pictures

CLASSES = tuple(GROUPS)
_SHARES = np.array([0.7, 0.15, 0.15])
"""Of each class for training, validation and test, as far as families allow."""
_OTHER = 1
"""Id of all words that are in one name alone; 0 is padding."""


def emoji_names(rng: Rng) -> Dataset:
    """Return the data set: `image` (N, 3, 32, 32) with brightness in 0 … 1, and `name` (N, L) token ids, 0 as padding.

    The split is drawn from the seed, family by family.

    Raises:
        InputError: the font or Pillow is not installed.
    """
    emoji = "".join(one for runs in GROUPS.values() for one in spelt(runs))
    y = np.repeat(np.arange(len(GROUPS)), [len(list(spelt(runs))) for runs in GROUPS.values()])
    split = divided(families(emoji), y, np.random.default_rng(rng.key("emoji_names")))
    image = np.ascontiguousarray(pictures(emoji).transpose(0, 3, 1, 2)) / np.float32(255)
    known = vocabulary()
    x = {"image": image, "name": _tokens(emoji, known)}
    return Dataset("emoji_names", "Emoji and their names", x, y, split, CLASSES, {"name": len(known) + _OTHER + 1})


def vocabulary() -> tuple[str, ...]:
    """Return the words that are in two names or more; the token id of a word is its place plus two."""
    names = (set(words(one)) for runs in GROUPS.values() for one in spelt(runs))
    count = Counter(word for name in names for word in name)
    return tuple(sorted(word for word, times in count.items() if times > 1))


def divided(family: list[int], y: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return the split (N,) int8: each family, in a drawn order, goes where its class lacks most rows.

    `family` has a number for each row, `y` (N,) its class; a family counts to the class of its first row.
    """
    members = {number: np.flatnonzero(np.array(family) == number) for number in set(family)}
    lacking = np.bincount(y)[:, None] * _SHARES
    split = np.empty(len(y), np.int8)
    for number in draw.permutation(sorted(members)):
        rows = members[number]
        part = int(lacking[y[rows[0]]].argmax())
        split[rows] = part
        lacking[y[rows[0]], part] -= len(rows)
    return split


def _tokens(emoji: str, known: tuple[str, ...]) -> np.ndarray:
    ids = {word: place for place, word in enumerate(known, start=_OTHER + 1)}
    names = [[ids.get(word, _OTHER) for word in words(one)] for one in emoji]
    found = np.zeros((len(names), max(map(len, names))), np.int64)
    for row, name in zip(found, names, strict=True):
        row[: len(name)] = name
    return found
