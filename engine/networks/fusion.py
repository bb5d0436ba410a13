"""What lies behind the features: a fusion with its head, and perhaps a head for each modality."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalscape.engine.errors import InputError


class Concat(nn.Module):
    """One linear layer on all features side by side: z = Σ_m h_m W_mᵀ + c."""

    def __init__(self, names: tuple[str, ...], width: int, classes: int) -> None:
        super().__init__()
        self.names, self.width = names, width
        self.head = nn.Linear(len(names) * width, classes)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (B, C) of features (B, D) by modality."""
        return self.head(torch.cat([features[name] for name in self.names], -1))

    def slices(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each modality's share of the logits, h_m W_mᵀ + c/M; they add up to the fused ones."""
        weights = self.head.weight.split(self.width, -1)
        bias = self.head.bias / len(self.names)
        return {name: F.linear(features[name], w, bias) for name, w in zip(self.names, weights, strict=True)}


class Sum(nn.Module):
    """The sum of one linear layer a modality: z = Σ_m (h_m W_mᵀ + c_m)."""

    def __init__(self, names: tuple[str, ...], width: int, classes: int) -> None:
        super().__init__()
        self.names = names
        self.head = nn.ModuleDict({name: nn.Linear(width, classes) for name in names})

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (B, C) of features (B, D) by modality."""
        return sum(self.slices(features).values())

    def slices(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each modality's own term; they add up to the fused logits."""
        return {name: self.head[name](features[name]) for name in self.names}


class Gated(nn.Module):
    """One linear layer on a weighted mean of squashed features, the weights a softmax over modalities by coordinate.

    z = W Σ_m g_m ⊙ tanh(h_m) + c, g = softmax_m(V [h_1 … h_M] + b); arXiv 1702.01992, equation 1 for two modalities,
    where g is a sigmoid. Here with a softmax for any number of them.
    """

    def __init__(self, names: tuple[str, ...], width: int, classes: int) -> None:
        super().__init__()
        self.names, self.width = names, width
        self.gate = nn.Linear(len(names) * width, len(names) * width)
        self.head = nn.Linear(width, classes)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (B, C) of features (B, D) by modality."""
        joined = torch.cat([features[name] for name in self.names], -1)
        shape = (len(joined), len(self.names), self.width)
        gates = torch.softmax(self.gate(joined).view(shape), 1)
        return self.head((gates * joined.tanh().view(shape)).sum(1))


FUSIONS = {"concat": Concat, "sum": Sum, "gated": Gated}
"""Name to fusion. One that has `slices` can be taken apart into a share of the logits for each modality."""


class Trunk(nn.Module):
    """A fusion, and each modality's logits by heads of their own, by slices of the fusion, or not at all."""

    def __init__(self, fusion: nn.Module, names: tuple[str, ...], width: int, classes: int, unimodal: str) -> None:
        """Assemble; `unimodal` is `none`, `heads` or `slices`.

        Raises:
            InputError: slices of a fusion that cannot be taken apart, or another word.
        """
        super().__init__()
        if unimodal not in ("none", "heads", "slices"):
            raise InputError(f"unimodal must be one of none, heads, slices, not {unimodal!r}.")
        if unimodal == "slices" and not hasattr(fusion, "slices"):
            raise InputError(
                "The gated fusion has no slices, since its gates mix the modalities; choose unimodal=heads, or the "
                "concat or sum fusion."
            )
        self.fusion = fusion
        self.sliced = unimodal == "slices"
        self.heads = nn.ModuleDict({n: nn.Linear(width, classes) for n in names} if unimodal == "heads" else {})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `fused` and perhaps each modality's logits (B, C)."""
        logits = {"fused": self.fusion(features)}
        if self.sliced:
            return logits | self.fusion.slices(features)
        return logits | {name: head(features[name]) for name, head in self.heads.items()}


class Pairs(nn.Module):
    """No trunk: the objective compares the features themselves."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return no logits."""
        return {}
