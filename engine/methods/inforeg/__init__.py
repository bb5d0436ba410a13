"""InfoReg: the method, its Fisher windows, and what it reports."""

from modalscape.engine.methods.inforeg.method import InfoReg

__all__ = ["InfoReg"]
