"""The records of how far and how fast the weights of each modality move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Record, Scalar


def motion(
    prefix: str,
    weights: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    moved: Mapping[str, Tensor] | None,
    grads: Mapping[str, Tensor],
    n: int,
    how: str,
) -> Iterator[Record]:
    """Yield the distance from the `first` weights, ‖g‖²/‖w‖², and the last step relative to the weights.

    Modality to vector, each of one length: weights now, at first, what the last step `moved` them by if there was one,
    and the gradient of `n` rows, which `how` names. Weights of length 0 have no relative speed.

    Source of ‖g‖²/‖w‖²: the term of the conditional learning speed, Wu et al., ICML 2022; summed over no steps here.
    """
    for m, grad in grads.items():
        size = torch.linalg.vector_norm(weights[m]).item()
        drift = torch.linalg.vector_norm(weights[m] - first[m]).item()
        display = Display(y="‖w - w₀‖")
        yield Scalar(f"{prefix}/drift/{m}", drift, mode="distance of the weights from the run's first", display=display)
        if size > 0:
            mode = f"‖g‖²/‖w‖², the term of the conditional learning speed; {how}"
            speed = (torch.linalg.vector_norm(grad).item() / size) ** 2
            yield Scalar(
                f"{prefix}/learning_speed/{m}", speed, n=n, mode=mode, display=Display(y="‖g‖²/‖w‖²", ylog=True)
            )
        if moved is not None and size > 0:
            value = torch.linalg.vector_norm(moved[m]).item() / size
            display = Display(y="‖Δw‖/‖w‖", ylog=True)
            yield Scalar(f"{prefix}/relative_update/{m}", value, mode="‖Δw‖/‖w‖ of the last step", display=display)
