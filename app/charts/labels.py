"""Names of records as a chart needs them: which ones match, in what order, under what label and in what colour."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from datetime import datetime
from os.path import commonprefix

from modalscape.app.theme import METHOD_HUES, Look
from modalscape.engine.core.display import Display

_FORK = re.compile(r"(.+)-fork-(\d{1,12})-([0-9a-f]{4})")


def matching(known, patterns) -> list[str]:
    """Return the known names that match one of the patterns, patterns in order, names sorted within.

    A name matches itself, whatever signs are in it.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys([pattern] if pattern in known else sorted(fnmatch.filter(known, pattern)))
    return list(found)


def ranked(names: list[str], look: Look) -> list[str]:
    """Return the names in the order in which a legend reads well: joint, then modalities as the run lists them, shared.

    Training comes before held-out.
    """
    modalities = list(look.modalities)

    def place(name: str) -> tuple:
        parts = name.split("/")
        own = [modalities.index(p) for p in parts if p in modalities]
        return ("val" in parts, "shared" in parts, own or [-1], names.index(name))

    return sorted(names, key=place)


def labels(names: list[str], titles: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return short labels: the first segments go where all share them; `val` and `train` become words.

    Methods take their `titles`.

    >>> labels(["accuracy/train", "accuracy/val/audio"])
    {'accuracy/train': 'training', 'accuracy/val/audio': 'audio, held out'}
    >>> labels(["spectra/rank/audio/out", "spectra/rank/audio/conv"])
    {'spectra/rank/audio/out': 'out', 'spectra/rank/audio/conv': 'conv'}
    """
    ends = {n.split("/")[-1] for n in names}
    if len(names) > 1 and len(ends) == 1 and len({n.split("/")[0] for n in names}) == 1:
        return {name: part_of(name, "whole").replace("/", ", ") for name in names}
    spoken = {"val": "held out", "train": "training", "test": "test", "reg": "term of"} | dict(titles or {})
    split = [n.split("/") for n in names]
    common = len(commonprefix(split)) if len(names) > 1 else min(1, len(split[0]) - 1)
    out = {}
    for name in names:
        parts = name.split("/")
        parts = parts[common:] or (["joint"] if common > 1 else parts)
        words = [spoken.get(p, p.replace("_", " ")) for p in parts]
        split = [w for w in words if w in ("held out", "training", "test")]
        rest = [w for w in words if w not in split]
        out[name] = ", ".join([" ".join(rest), *split] if rest else split) or name
    return out


def named(
    names: list[str], asked: Mapping[str, Display], look: Look, titles: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the words of each name in a legend: the part and the label that its record asks for, else `labels`.

    The part goes where the title of the record's panel says it.
    """
    words = labels(names, titles) if names else {}
    parts = {name: next((s for s in reversed(name.split("/")) if s in look.modalities), "") for name in names}
    for name in names:
        label = asked[name].label if name in asked else None
        if label is not None:
            titled = label and parts[name] in asked[name].panel.replace(":", " ").split()
            part = "" if titled else parts[name]
            words[name] = ", ".join(word for word in (part, label) if word) or words[name]
    return words


def colours(names: list[str], look: Look) -> dict[str, str]:
    """Return a colour for each name: its modality's or method's, else ink, muted for training, then further hues."""
    out, plain = {}, 0
    for name in names:
        colour = look.part(name)
        if colour == look.ink:
            if "train" in name.split("/"):
                colour = look.muted
            elif name in ("loss/val", "error/val"):
                colour = look.ink
            else:
                colour = look.ink if plain == 0 else METHOD_HUES[(plain - 1) % len(METHOD_HUES)][look.dark]
                plain += 1
        out[name] = colour
    return out


def part_of(name: str, whole: str) -> str:
    """Return the part that a record is about: what stands between its first and last segment, or `whole`.

    >>> part_of("hessian/audio/spectrum", "whole"), part_of("hessian/spectrum", "whole")
    ('audio', 'whole')
    """
    return "/".join(name.split("/")[1:-1]) or whole


def spoken(run: str) -> str:
    """Return a run's id as a person would say it: what, day and time; of a fork also the step and four letters.

    >>> spoken("planted-261128-050112-ab12-fork-1200-0f3c")
    'step 1,200 of planted · 28 Nov 05:01:12 · 0f3c'
    """
    forked = _FORK.fullmatch(run)
    if forked:
        return f"step {int(forked[2]):,} of {spoken(forked[1])} · {forked[3]}"
    stem, _, tail = run.rpartition("-")
    what, _, stamp = stem.rpartition("-")
    what, _, day = what.rpartition("-")
    try:
        when = datetime.strptime(day + stamp, "%y%m%d%H%M%S")
    except ValueError:
        return run
    return f"{what} · {when:%d %b %H:%M:%S}"
