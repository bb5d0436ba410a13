"""FANoise: the method, how much noise and of which form, and what it reports."""

from modalscape.engine.methods.fanoise.method import FaNoise

__all__ = ["FaNoise"]
