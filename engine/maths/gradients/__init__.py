"""Gradients as random quantities: their noise, the evidence in them, noise shaped by them."""
