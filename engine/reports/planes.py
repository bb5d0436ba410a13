"""Records of losses on a line or plane, the same wherever it lies: what was measured, on how many rows, how surely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Curve, Surface
from modalscape.engine.maths.landscape.slices import Slice, gaps


def whose(loss: str) -> str:
    """Return in words which of a network's losses has that name: a modality's own or, without a name, the joint one."""
    return f"{loss} loss" if loss else "training loss"


def under(name: str, loss: str) -> str:
    """Return the path of a loss's own record: that of the joint one, and behind it the modality, if it has one."""
    return f"{name}/{loss}" if loss else name


@dataclass(frozen=True)
class Cutting:
    """What the records of all losses on one line or plane have in common."""

    name: str
    """Path of the joint loss's record; a modality's own has the modality behind it."""
    words: str
    """Where it lies, as the rest of a sentence that begins with the loss."""
    n: int
    """Rows that the losses are of."""
    display: Display
    """How it is drawn; a `title` that ends in a colon goes on with the loss."""

    def line(self, loss: str, t: Tensor, values: Tensor, seconds: float, own: Display) -> Curve:
        """Return the losses `values` (N,) at t (N,); `own` is what this loss's drawing has of its own."""
        display = Display(y="loss", label="" if loss else "joint", checked_error=0) | own
        about = self._about(loss, gaps(values), seconds, display)
        return Curve(under(self.name, loss), t.numpy(), values.numpy(), **about)

    def plane(self, loss: str, x: Tensor, y: Tensor, found: Slice, seconds: float, own: Display) -> Surface:
        """Return a slice over x (X,) and y (Y,); `own` is what this loss's drawing has of its own."""
        checked = not math.isnan(found.checked_error)
        how = f"checked error {found.checked_error:.1e}" if checked else f"{found.evaluations} points, not yet checked"
        error = f"; interpolated, {how}" if found.checked_error else ""
        display = Display(evaluations=found.evaluations, checked_error=found.checked_error if checked else None) | own
        about = self._about(loss, f"{error}{gaps(found.z)}", seconds, display)
        return Surface(under(self.name, loss), x.numpy(), y.numpy(), found.z.numpy(), **about)

    def _about(self, loss: str, end: str, seconds: float, display: Display) -> dict[str, Any]:
        title = self.display.title
        title += f" {whose(loss)}" if title.endswith(":") else ""
        mode = f"{whose(loss)}, {self.words}{end}"
        display = display | self.display | Display(title=title)
        return {"n": self.n, "mode": mode, "seconds": seconds, "display": display}
