"""BOGC-MML: the method, and the way of a calibrated gradient through the encoders."""

from modalscape.engine.methods.bogc.method import Bogc

__all__ = ["Bogc"]
