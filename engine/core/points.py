"""The seven points of a training step at which methods act, in their order. Free of torch."""

from __future__ import annotations

from enum import StrEnum


class Point(StrEnum):
    """A point of a step; `engine/core/method.py` says what a method is given there and gives back."""

    FEATURES = "features"
    LOSSES = "losses"
    GRADIENTS = "gradients"
    FUSE = "fuse"
    AROUND = "around"
    UPDATE = "update"
    COMMIT = "commit"
