"""A gradient at the features, taken back through the encoders that made them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modalscape.engine.core.step import View


def through_encoders(view: View, incoming: Mapping[str, Tensor]) -> Tensor:
    """Return Jᵀ · incoming (P,): the gradient in theta of Σ ⟨incoming, features⟩, by modality (B, D)."""
    names = [name for name in incoming if view.features[name].requires_grad]
    if names:
        outputs, weights = [view.features[n] for n in names], [incoming[n] for n in names]
        return torch.autograd.grad(outputs, view.theta, weights, retain_graph=True)[0]
    theta, start = view.theta.detach().requires_grad_(), 0
    total = torch.zeros_like(theta, requires_grad=False)
    for piece in view.batch.chunks(view.problem.micro):
        here = slice(start, start + len(piece))
        start = here.stop
        with torch.enable_grad():
            encoded = view.problem.encode(theta, piece)
        kept = {n: (view.features[n][here] != 0) | (view.clean_features[n][here] == 0) for n in incoming}
        names = [n for n in incoming if encoded[n].requires_grad]
        if names:
            weights = [incoming[n][here] * kept[n] for n in names]
            total += torch.autograd.grad([encoded[n] for n in names], theta, weights)[0]
    return total
