"""ModalImmune: the method, what it remembers, what it collapses and omits, and what it reports."""

from modalscape.engine.methods.modalimmune.method import ModalImmune

__all__ = ["ModalImmune"]
