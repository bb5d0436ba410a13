"""The records that show whose gradient goes where: norms and cosines by part and by layer, conflicts, noise scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.layout import Layout
from modalscape.engine.core.records import Bars, Matrix, Record, Scalar
from modalscape.engine.maths.gradients import noise_scale as maths
from modalscape.engine.maths.gradients.calibration import smallest_cosine
from modalscape.engine.maths.modalities.unimodal import columns, encoder

_HOW = "gradient of each loss on the probe rows, no method active"


@dataclass(frozen=True)
class Gradients:
    """Gradients of `names`, the losses, on mini-batches of `sizes` rows: (N, K, P), with the network's layout."""

    layout: Layout
    names: Sequence[str]
    modalities: Sequence[str]
    pieces: Tensor
    sizes: Sequence[int]

    @property
    def rows(self) -> int:
        """Number of rows of all mini-batches."""
        return sum(self.sizes)

    def whole(self, *, without: int | None = None) -> Tensor:
        """Return the gradients (K, P) of the losses on all rows, or on those of all mini-batches but one."""
        share = self.pieces.new_tensor(self.sizes)
        if without is not None:
            share[without] = 0.0
        return torch.einsum("n,nkp->kp", share / share.sum(), self.pieces)

    def layer(self, name: str) -> str:
        """Return the layer that a parameter belongs to, below its part; weights and biases are of one layer."""
        return f"{self.layout.parts[name]}/{self.layout.layer(name).removesuffix('.bias')}"


def directions(found: Gradients) -> Iterator[Record]:
    """Yield norms by loss and part, cosines of the losses, and on each encoder how far they contradict each other."""
    whole, layout = found.whole(), found.layout
    about = {"n": found.rows, "mode": _HOW}
    norms = torch.stack([layout.norms(row) for row in whole]).double().cpu().numpy()
    names, display = np.array(found.names), Display(title="Gradient norm", log=True, x="on", y="of the loss")
    yield Matrix("evidence/grad_norm", names, np.array(list(layout.slices)), norms, **about, display=display)
    by_layer = maths.grams(layout, whole, found.layer)
    display = Display(title="Cosine of two losses' gradients", signed=True)
    mode = f"{_HOW}; empty where two have no parameter in common"
    together = _blank(maths.cosines(sum(by_layer.values())), list(by_layer.values()))
    yield Matrix("evidence/cosines", names, names, together, n=found.rows, mode=mode, display=display)
    for modality in found.modalities:
        yield from _conflict(found, modality, whole)


def _conflict(found: Gradients, modality: str, whole: Tensor) -> Iterator[Record]:
    """Yield the smallest cosine of two losses on an encoder, and the share of mini-batches where it is negative."""
    where = encoder(found.layout, modality)
    cosine = smallest_cosine(columns(whole, where))
    if not torch.isfinite(cosine):
        return
    count = len(found.sizes)
    left = [float(smallest_cosine(columns(found.whole(without=i), where))) for i in range(count)]
    error = maths.jackknife(left)
    mode = "smallest cosine of two losses' gradients on the encoder; one standard error, by jackknife"
    display = Display(y="cosine")
    finite = error if math.isfinite(error) else None
    yield Scalar(f"evidence/cosine/{modality}", float(cosine), finite, n=found.rows, mode=mode, display=display)
    against = [bool(smallest_cosine(columns(piece, where)) < 0) for piece in found.pieces]
    rate = sum(against) / count
    mode = (
        f"share of {count} mini-batches of {found.sizes[0]} with a negative cosine on the encoder; one standard error"
    )
    error = math.sqrt(rate * (1 - rate) / count)
    yield Scalar(f"evidence/conflict_rate/{modality}", rate, error, n=count, mode=mode, display=Display(y="share"))


def layers(found: Gradients) -> Iterator[Record]:
    """Yield, of every layer, the norm of each loss's gradient and the cosine of every two that reach it."""
    by_layer = maths.grams(found.layout, found.whole(), found.layer)
    about = {"n": found.rows, "mode": f"{_HOW}; weights and biases together"}
    labels, names = np.array(list(by_layer)), np.array(found.names)
    norms = torch.stack([gram.diagonal().sqrt() for gram in by_layer.values()]).cpu().numpy()
    display = Display(title="Gradient norm by layer", log=True, x="of the loss")
    yield Matrix("evidence/layer_norm", labels, names, norms, **about, display=display)
    pairs = list(combinations(range(len(names)), 2))
    table = {name: maths.cosines(gram).cpu().numpy() for name, gram in by_layer.items()}
    values = np.array([[cosine[i, j] for i, j in pairs] for cosine in table.values()]).reshape(len(table), len(pairs))
    kept, met = np.isfinite(values).any(1), np.isfinite(values).any(0)
    if kept.any():
        cols = np.array([f"{names[i]}, {names[j]}" for i, j in pairs])
        display = Display(title="Cosine of two losses' gradients by layer", signed=True)
        yield Matrix("evidence/layer_cosine", labels[kept], cols[met], values[kept][:, met], **about, display=display)


def noise(found: Gradients) -> Iterator[Record]:
    """Yield how noisy the training gradient is and whether mini-batches agree: whole, by part, by layer."""
    held = [i for i, size in enumerate(found.sizes) if size == found.sizes[0]]
    if len(held) < maths.LEAST:
        return
    size, layout, rows = found.sizes[0], found.layout, len(held) * found.sizes[0]
    total = found.pieces[held].sum(1)
    by_layer = maths.grams(layout, total, found.layer)
    parts: dict[str, Tensor] = {}
    for name, gram in by_layer.items():
        part = name.partition("/")[0]
        parts[part] = parts[part] + gram if part in parts else gram
    how = f"tr(Σ)/‖G‖² of the training loss from {len(held)} mini-batches of {size}; one standard error, by jackknife"
    display = Display(y="rows", ylog=True)
    for part, gram in {"network": sum(parts.values()), **parts}.items():
        value, error = maths.noise_scale(gram, size)
        if math.isfinite(value):
            known = error if math.isfinite(error) else None
            yield Scalar(f"evidence/noise_scale/{part}", value, known, n=rows, mode=how, display=display)
        value, error = maths.mean_cosine(gram)
        if math.isfinite(value):
            known = error if math.isfinite(error) else None
            mode = (
                f"mean cosine of the gradients of {len(held)} mini-batches of {size}; one standard error, by jackknife"
            )
            yield Scalar(f"evidence/batch_cosine/{part}", value, known, n=rows, mode=mode, display=Display(y="cosine"))
    scales = {name: maths.noise_scale(gram, size) for name, gram in by_layer.items()}
    clear = {name: found for name, found in scales.items() if math.isfinite(found[0])}
    if clear:
        lost = len(scales) - len(clear)
        mode = how + (
            f"; left out: {lost} of {len(scales)} layers, whose mean gradient drowns in its noise" if lost else ""
        )
        values, errors = np.array(list(clear.values())).T
        display = Display(title="Noise scale by layer", y="rows", ylog=True, tall=True)
        yield Bars("evidence/noise_by_layer", np.array(list(clear)), values, errors, n=rows, mode=mode, display=display)


def _blank(cosines: Tensor, by_layer: Sequence[Tensor]) -> np.ndarray:
    """Return cosines (K, K) with nan where no layer has gradients of both."""
    reached = torch.stack([gram.diagonal() > 0 for gram in by_layer])
    both = (reached[:, :, None] & reached[:, None, :]).any(0)
    return torch.where(both, cosines, torch.full_like(cosines, math.nan)).cpu().numpy()
