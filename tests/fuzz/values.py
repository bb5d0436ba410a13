"""Odd values, texts and changes, drawn from a seed: what a mistaken person or another program might hand over."""

from __future__ import annotations

import json
import math
import random
from typing import Any

DEEP = 5000
"""Brackets within brackets, and digits of a number, beyond what Python's own readers take."""
WORDS = (
    *("", " ", "a", "0", "1", "-1", "1.5", "1e400", "-1e400", "nan", "inf", "-inf", "1_000", "0x10", "²", "١٢", "½"),
    *("true", "None", "null", "[]", "{}", "../..", "/dev/null", "a/b", "a.b", "a=b", "=", ",", ":", "*", "[a]", "?"),
    *(
        "\0",
        "a\0b",
        "\ud800",
        "\udcff",
        "\n",
        "a\nb",
        "\x1b[31m",
        "\u202e",
        "é",
        "🙂",
        "<b>x</b>",
        "$x^2$",
        "%s",
        "{0}",
    ),
    *("image", "text", "gani", "sgd", "cuda:99", "x" * 300, "9" * DEEP, "x" * DEEP),
)
NUMBERS = (0, 1, -1, 2, 7, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308)
STRANGE = (math.nan, math.inf, -math.inf, True, False, None)


def odd(rng: random.Random, depth: int = 3) -> Any:
    """Return a value of any JSON type."""
    kind = rng.randrange(7 if depth else 5)
    if kind < 2:
        return rng.choice(WORDS)
    if kind == 2:
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice(STRANGE)
    if kind == 4:
        return rng.choice(([], {}, [[]], [[1]], {"a": 1}, ["a", "a"], [None], {"": None}))
    if kind == 5:
        return [odd(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {str(rng.choice(WORDS)): odd(rng, depth - 1) for _ in range(rng.randrange(4))}


def changed(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one of its parts replaced, dropped, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        out, key = dict(value), rng.choice(sorted(value))
        what = rng.randrange(8)
        if what == 0:
            del out[key]
        elif what == 1:
            out[rng.choice(WORDS)] = out.pop(key)
        elif what == 2:
            out[rng.choice(WORDS)] = odd(rng)
        else:
            out[key] = changed(rng, out[key])
        return out
    if isinstance(value, list) and value and rng.random() < 0.95:
        out, place = list(value), rng.randrange(len(value))
        what = rng.randrange(6)
        if what == 0:
            del out[place]
        elif what == 1:
            out.insert(place, odd(rng))
        elif what == 2:
            out += out * rng.choice((1, 200))
        else:
            out[place] = changed(rng, out[place])
        return out
    if isinstance(value, str) and rng.random() < 0.5:
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice(WORDS) + value[place + rng.randrange(2) :]
    return odd(rng)


def text(rng: random.Random, value: Any) -> str:
    """Return a JSON text of `value`, now and then damaged or one that no reader takes."""
    what = rng.randrange(20)
    if what == 0:
        return rng.choice(("[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP))
    if what == 1:
        return rng.choice(
            ("9" * DEEP, f'{{"steps": {"9" * DEEP}}}', f'[["series", {{"half": {"1" * DEEP}}}, ""]]', "-")
        )
    if what == 2:
        return rng.choice(WORDS)
    whole = json.dumps(value)
    if what == 3:
        return whole[: rng.randrange(len(whole) + 1)]
    if what == 4:
        place = rng.randrange(len(whole) + 1)
        return whole[:place] + rng.choice(WORDS) + whole[place + rng.randrange(3) :]
    return whole


def bytes_of(rng: random.Random, whole: bytes) -> bytes:
    """Return the bytes of a file, damaged: cut, emptied, flipped, filled with zeros, doubled, or others altogether."""
    what = rng.randrange(7)
    place = rng.randrange(len(whole) + 1)
    if what == 0:
        return whole[:place]
    if what == 1:
        return b""
    if what == 2:
        flipped = bytearray(whole)
        for _ in range(rng.choice((1, 3, 40)) if whole else 0):
            flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if what == 3:
        return whole[:place] + bytes(len(whole) - place)
    if what == 4:
        return whole[:place] + whole
    if what == 5:
        return rng.randbytes(rng.choice((1, 100, 5000)))
    return whole[:place] + rng.randbytes(8) + whole[place:]
