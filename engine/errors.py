"""Sentences to a person whose input cannot be used: what is wrong with which value, what would help. Free of torch."""

from __future__ import annotations

import difflib
from typing import Any

LONGEST = 400
"""Characters of a sentence to a person."""
LISTED = 240
"""Characters of a list of known words at the end of a sentence."""


class InputError(ValueError):
    """Input that a person can mend; its text is one sentence with the offending value and the remedy.

    However long the value is and whatever signs it holds, the text is one line of at most LONGEST printable characters.
    """

    def __init__(self, words: object) -> None:
        super().__init__(sentence(str(words)))


def sentence(words: str) -> str:
    r"""Return words on one line, signs that do not print as escapes, what is longer than LONGEST cut in its middle.

    >>> sentence("a\nb"), len(sentence("x" * 5000))
    ('a b', 400)
    """
    words = " ".join(words[: 8 * LONGEST].split() + ([words[-LONGEST:]] if len(words) > 8 * LONGEST else []))
    words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    half = LONGEST // 2
    return words if len(words) <= LONGEST else f"{words[: half + 20]} … {words[23 - half :]}"


def shown(value: Any, most: int = 80) -> str:
    """Return a value as a sentence echoes it: as Python writes it, cut where it is long.

    >>> shown("a"), len(shown([1] * 1000))
    ("'a'", 80)
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets within brackets
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def nearest(word: str, known, many: str = "") -> str:
    """Return the end of a sentence about an unknown word: the known ones nearest to it, or all when none is near.

    Where there are too many, `many` says where they are listed, after the first few.
    """
    known = sorted(known)
    near = difflib.get_close_matches(word[:LISTED], known, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(near) + "?"
    listed = ", ".join(known)
    if len(listed) > LISTED:
        few = listed[:80].rpartition(", ")[0] or listed[:80]
        more = len(known) - few.count(", ") - 1
        listed = f"{few} and {more} more" + (f"; {many}" if many else "")
    return f"; known are {listed}." if known else "."
