"""Where each named parameter lies in the flat vector, and which part of the network owns it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names, shapes and owners of the parameters inside the flat vector theta (P,).

    Parameters of one part lie side by side, so a part is one slice and its norm one pass.
    """

    shapes: dict[str, tuple[int, ...]]
    """Parameter name to shape, in packing order."""
    parts: dict[str, str]
    """Parameter name to the modality that owns it, or `shared`."""

    @classmethod
    def of(cls, net: nn.Module, part_of: Callable[[str], str]) -> Layout:
        """Return the layout of the parameters of `net` that require a gradient, grouped by part.

        Tied parameters are counted once. `part_of` maps a parameter's name to its part.
        """
        named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        order = {part: i for i, part in enumerate(dict.fromkeys(map(part_of, named)))}
        names = sorted(named, key=lambda name: order[part_of(name)])
        return cls({name: tuple(named[name].shape) for name in names}, {name: part_of(name) for name in names})

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter, in packing order."""
        return [torch.Size(shape).numel() for shape in self.shapes.values()]

    @cached_property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Part to the slice of theta that it owns, in packing order.

        Raises:
            ValueError: a hand-made layout in which the parameters of one part do not lie side by side.
        """
        slices: dict[str, slice] = {}
        start = 0
        for name, size in zip(self.shapes, self.sizes, strict=True):
            part = self.parts[name]
            if part in slices and slices[part].stop != start:
                raise ValueError(f"The parameters of part {part!r} must lie side by side in the layout.")
            slices[part] = slice(slices[part].start if part in slices else start, start + size)
            start += size
        return slices

    def pack(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector (P,) of the named tensors."""
        return torch.cat([named[name].reshape(-1) for name in self.shapes])

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the named tensors as views of theta (P,); differentiable, and one `cat` in the backward pass."""
        pieces = theta.split(self.sizes)
        return {name: p.view(shape) for (name, shape), p in zip(self.shapes.items(), pieces, strict=True)}

    def joined(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the named tensors of all parts from part to its slice (n,) of theta.

        A loss of them has a graph of those parts alone whose slices require a gradient.
        """
        named = {}
        for part, block in blocks.items():
            names = [name for name in self.shapes if self.parts[name] == part]
            sizes = [torch.Size(self.shapes[name]).numel() for name in names]
            named |= {name: p.view(self.shapes[name]) for name, p in zip(names, block.split(sizes), strict=True)}
        return {name: named[name] for name in self.shapes}

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return part to its slice of vector (…, P), as views."""
        return {part: vector[..., where] for part, where in self.slices.items()}

    def norms(self, vector: Tensor) -> Tensor:
        """Return the Euclidean norm of each part's slice of vector (P,), (number of parts,)."""
        widths = [where.stop - where.start for where in self.slices.values()]
        return torch.stack(torch._foreach_norm(vector.split(widths)))

    def mask(self, part: str) -> Tensor:
        """Return (P,) of 1.0 where `part` owns the parameter and 0.0 elsewhere."""
        mask = torch.zeros(self.size)
        mask[self.slices[part]] = 1.0
        return mask

    def layer(self, name: str) -> str:
        """Return a parameter's name without what its part already says, as it stands on an axis.

        >>> Layout({"encoders.audio.out.weight": (2, 3)}, {"encoders.audio.out.weight": "audio"}).layer(
        ...     "encoders.audio.out.weight"
        ... )
        'out'
        """
        short = name.removeprefix(f"encoders.{self.parts[name]}.").removeprefix("trunk.")
        return short.removesuffix(".weight").removesuffix(f".{self.parts[name]}")

    def blocks(self, vector: Tensor) -> dict[str, Tensor]:
        """Return parameter name to its share of vector (P,), in the parameter's shape; for displays per layer."""
        return self.unpack(vector)
