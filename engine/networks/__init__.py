"""Networks: one encoder a modality, a fusion and its heads. LayerNorm or GroupNorm at most, and no dropout.

Everything here is made of operations that `torch.func` can batch and differentiate twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalscape.engine.data.dataset import Dataset
from modalscape.engine.errors import InputError
from modalscape.engine.networks.cnn import Cnn
from modalscape.engine.networks.fusion import FUSIONS, Pairs, Trunk
from modalscape.engine.networks.mlp import Mlp
from modalscape.engine.networks.resnet import ResNet18
from modalscape.engine.networks.sequence import Sequence
from modalscape.engine.networks.tokens import Tokens

FAMILIES = {"mlp": Mlp, "cnn": Cnn, "sequence": Sequence, "tokens": Tokens, "resnet18": ResNet18}
"""Name to family of encoders; each says in `kinds` what inputs it takes, its own first."""

ACTIVATIONS = {"gelu": F.gelu, "tanh": torch.tanh, "relu": torch.relu}
"""Name to nonlinearity of the encoders."""

_AUTO = {family.kinds[0]: family for family in reversed(FAMILIES.values())}


class Network(nn.Module):
    """Encoders by modality and the trunk behind them."""

    def __init__(self, encoders: dict[str, nn.Module], trunk: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.trunk = trunk

    def part_of(self, name: str) -> str:
        """Return the modality whose encoder or own head holds the parameter, or `shared`."""
        where, *rest = name.split(".")
        if where == "encoders":
            return rest[0]
        return rest[1] if rest[0] == "heads" else "shared"

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits (B, C) of the inputs: `fused` and, with unimodal heads or slices, each modality's."""
        return self.trunk({name: encoder(x[name]) for name, encoder in self.encoders.items()})


def build(data: Dataset, settings) -> Network:
    """Return a network for the data; weights are drawn from torch's global generator.

    `settings` has `fusion`, `unimodal`, `encoder`, `width` (features, D), `hidden`, `depth`, `activation` and
    `objective`. The family of an encoder follows from the kind of input; `encoder` other than `auto` puts its family to
    the inputs it can take, and the others keep theirs. InfoNCE compares features, so it has a trunk without parameters.

    Raises:
        InputError: an unknown name, a family that fits no modality, or slices of a fusion that has none.
    """
    if settings.activation not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {settings.activation!r}.")
    encoders = {name: _encoder(data, name, settings) for name in data.modalities}
    if settings.encoder != "auto" and not any(type(e) is _family(settings.encoder) for e in encoders.values()):
        kinds = ", ".join(f"{name} is {_article(data.kind(name))}" for name in data.modalities)
        raise InputError(f"The encoder {settings.encoder!r} takes none of the inputs ({kinds}); choose auto.")
    if settings.objective == "info_nce":
        return Network(encoders, Pairs())
    if settings.fusion not in FUSIONS:
        raise InputError(f"fusion must be one of {', '.join(FUSIONS)}, not {settings.fusion!r}.")
    fusion = FUSIONS[settings.fusion](data.modalities, settings.width, data.classes)
    return Network(encoders, Trunk(fusion, data.modalities, settings.width, data.classes, settings.unimodal))


def _encoder(data: Dataset, name: str, settings) -> nn.Module:
    kind = data.kind(name)
    family = _AUTO[kind]
    if settings.encoder != "auto" and kind in _family(settings.encoder).kinds:
        family = _family(settings.encoder)
    shape = data.shape(name)
    if family is Tokens:
        shape = (data.vocabularies[name], *shape)
    elif family is Mlp:
        shape = (math.prod(shape),)
    return family(shape, settings.width, settings.hidden, settings.depth, ACTIVATIONS[settings.activation])


def _family(name: str) -> type[nn.Module]:
    if name not in FAMILIES:
        raise InputError(f"encoder must be one of auto, {', '.join(FAMILIES)}, not {name!r}.")
    return FAMILIES[name]


def _article(kind: str) -> str:
    return kind if kind == "tokens" else f"an {kind}" if kind == "image" else f"a {kind}"
