"""MMPareto: where an encoder's fused and own gradients disagree, it follows the shortest vector between them.

For each encoder, with all its parameters, g is the gradient of the fused loss and u that of its own:

- where cos(g, u) > 0, h = g + u;
- elsewhere h = 2cg + 2(1-c)u, c = (u-g)·u/‖g-u‖² clipped to [floor, 1-floor]. Unclipped, the vector v = cg + (1-c)u
  has v·g = v·u = ‖v‖² > 0, so neither loss rises to first order.

Then, tensor by tensor, h ← γ·h·max(1, ‖g+u‖/‖h‖): the step is γ times as long as the plain sum at least, and where
nothing conflicts it is exactly γ times that sum. Heads keep the plain sum.

*Acts at*: fuse.

*Remembers*: nothing.

*Composes with*: every method but another owner of `fuse`. Needs a loss for each modality beside the fused one: set
`unimodal` to heads (the paper's) or slices. It fuses the rows as other methods leave them, and adds rows `reg/…` as
they are. Adam and RMSprop largely cancel γ, since they divide by the gradient's size: use SGD. Under SAM the direction
is solved anew at each of the two points.

*Source*: Wei and Hu, ICML 2024, arXiv 2405.17730, and the authors' code, whose clip of c at 0.001 is `floor`. We
differ: a tensor whose h is zero stays zero, and any number of modalities is treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import FUSED, Need
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients.angles import cosine
from modalscape.engine.maths.modalities.unimodal import columns, encoder, places


def shortest(g: Tensor, u: Tensor) -> Tensor:
    """Return c (0-d) in [0, 1] for which cg + (1-c)u is shortest, for g and u (n,); 0 where they are equal.

    >>> shortest(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
    tensor(0.9000)
    """
    gap = u - g
    return ((gap @ u) / (gap @ gap).clamp(min=torch.finfo(g.dtype).tiny)).clamp(0, 1)


def weight(g: Tensor, u: Tensor, floor: float) -> Tensor:
    """Return c (0-d): ½ where g·u > 0, else the weight on g of the shortest vector, floor ≤ c ≤ 1 - floor."""
    return torch.where(g @ u > 0, 0.5, shortest(g, u).clamp(floor, 1 - floor))


def lengthened(h: list[Tensor], plain: list[Tensor], gamma: float) -> list[Tensor]:
    """Return γ·h·max(1, ‖plain‖/‖h‖) for each of some tensors h and what it should be no shorter than."""
    length, wanted = torch.stack(torch._foreach_norm(h)), torch.stack(torch._foreach_norm(plain))
    gain = torch.where(length > 0, (wanted / length).clamp(min=1), torch.ones_like(length))
    return torch._foreach_mul(h, (gamma * gain).unbind())


def rows(losses: Iterable[str], modalities: tuple[str, ...]) -> tuple[int, dict[str, int]]:
    """Return the place of the fused loss among the losses, and modality to the place of its own.

    Raises:
        InputError: there is no fused loss, or a modality has none of its own.
    """
    names = list(losses)
    lacking = [name for name in ("fused", *modalities) if name not in names]
    if "fused" in lacking:
        raise InputError(f"MMPareto needs a fused loss, but the losses are {', '.join(names)}; turn it off.")
    if lacking:
        raise InputError(f"MMPareto needs a loss of its own for {', '.join(lacking)}; set unimodal=heads.")
    return names.index("fused"), {name: names.index(name) for name in modalities}


class MMPareto(Method):
    """Pareto integration of each encoder's fused and unimodal gradients."""

    name = "mmpareto"
    title = "MMPareto"
    needs = (FUSED, Need("unimodal", ("heads", "slices")))
    neutral = {"gamma": 1.0, "pareto": False}
    rescaled = "It divides each gradient by its running size, which cancels γ; the direction stays. Use sgd."

    @dataclass(frozen=True)
    class Params:
        """Direction and length of the encoders' steps."""

        gamma: float = knob(1.5, 0.0, 10.0, "Factor on the encoders' gradients; 1 keeps the length of the plain sum.")
        pareto: bool = knob(True, help="Take the shortest vector where gradients conflict; off is always the sum.")
        floor: float = knob(0.001, 0.0, 0.5, "Least weight of either gradient in a conflict.")

    def init(self, view: View) -> dict[str, Any]:
        """Return no state, after a look at whether each modality has a loss of its own.

        Raises:
            InputError: one has none.
        """
        problem, few = view.problem, view.batch.rows(slice(0, 2))
        with torch.no_grad():
            losses, _ = problem.objectives(view.theta, problem.encode(view.theta, few), few)
        rows(losses, problem.modalities)
        return {}

    def fuse(self, grads: Tensor, view: View) -> Tensor:
        """Return the gradient (P,): the sum of the rows (K, P), but on each encoder the vector above."""
        p = self.params
        fused, own = rows(view.losses, view.problem.modalities)
        total = grads.sum(0)
        if p.gamma == 1.0 and not p.pareto:
            return total
        found = total.clone()
        for name, row in own.items():
            where = encoder(view.problem.layout, name)
            if not where:
                continue
            g, u, c = self._pair(grads, where, fused, row)
            plain, sizes = g + u, [w.stop - w.start for w in places(view.problem.layout, name)]
            h = (2 * c * g + 2 * (1 - c) * u).split(sizes)
            taken = torch.cat(lengthened(h, plain.split(sizes), p.gamma))
            others = columns(total[None], where)[0] - plain
            for w, piece in zip(where, (taken + others).split([w.stop - w.start for w in where]), strict=True):
                found[w] = piece
        return found

    def report(self, view: View) -> Iterator[Record]:
        """Yield agreement, weight and length by encoder."""
        fused, own = rows(view.losses, view.problem.modalities)
        for name, row in own.items():
            where = encoder(view.problem.layout, name)
            if not where:
                continue
            g, u, c = self._pair(view.grads, where, fused, row)
            taken = columns(view.grad[None], where)[0]
            tiny = torch.finfo(g.dtype).tiny
            longer = taken.norm() / (g + u).norm().clamp(min=tiny)
            values = torch.stack([cosine(g, u), (g @ u <= 0).to(g.dtype), c, longer]).tolist()
            about = {"n": len(view.batch)}
            how = "cos of the fused and the encoder's own gradient"
            display = Display(panel="Do fused and own gradient agree?", place=1, y="cosine", levels={"": 0.0})
            yield Scalar(f"mmpareto/cosine/{name}", values[0], **about, mode=how, display=display)
            yield Scalar(f"mmpareto/conflict/{name}", values[1], **about, mode="1 where the cosine is not positive")
            display = Display(panel="Weight of the fused gradient", place=2, levels={"agreement: ½": 0.5})
            yield Scalar(f"mmpareto/weight/{name}", values[2], **about, mode="weight c", display=display)
            display = Display(
                panel="Length beside the plain sum", place=3, levels={f"γ = {self.params.gamma:g}": self.params.gamma}
            )
            yield Scalar(
                f"mmpareto/length/{name}", values[3], **about, mode="‖taken‖/‖plain sum‖, encoder", display=display
            )

    def _pair(self, grads: Tensor, where: list[slice], fused: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return an encoder's two gradients (n,), (n,) and the weight (0-d) of the first."""
        both = columns(grads, where)
        g, u = both[fused], both[row]
        c = weight(g, u, self.params.floor) if self.params.pareto else torch.full_like(g[0], 0.5)
        return g, u, c
