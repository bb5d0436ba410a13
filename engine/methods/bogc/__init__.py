"""BOGC-MML: the method, and the way of a calibrated gradient through the encoders."""

from engine.methods.bogc.method import Bogc

__all__ = ["Bogc"]
