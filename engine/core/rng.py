"""Keyed draws: a generator is a function of (seed, purpose, step), so no draw depends on which others were made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rng:
    """Source of generators for one run.

    Two draws share numbers exactly when seed, path, purpose and step agree. Nothing here changes with use, so switching
    a method on cannot shift the draws of another, and no checkpoint holds random state.
    """

    seed: int
    path: str = ""

    def key(self, purpose: str, step: int = 0) -> int:
        """Return the 63-bit number that (seed, path, purpose, step) hash to."""
        text = f"{self.seed}/{self.path}/{purpose}/{step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def generator(self, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh generator on `device`, at the start of the stream that belongs to the key."""
        return torch.Generator(device=device).manual_seed(self.key(purpose, step))

    def normal(self, purpose: str, step: int, like: torch.Tensor) -> torch.Tensor:
        """Return standard normal numbers with the shape, type and device of `like`."""
        generator = self.generator(purpose, step, like.device)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    def within(self, name: str) -> Rng:
        """Return the source for a sub-task, whose draws are independent of this one's."""
        return Rng(self.seed, f"{self.path}/{name}")
