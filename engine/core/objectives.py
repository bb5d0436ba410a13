"""What is minimised and how success is scored: cross-entropy, squared error, or InfoNCE between modalities."""

from __future__ import annotations

from itertools import combinations

from torch import Tensor
from torch.nn import functional as F

from modalscape.engine.core.names import OBJECTIVES
from modalscape.engine.data.dataset import Dataset
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features.contrastive import info_nce, matching, recall_at, similarity

RECALLS = (1, 5, 10)
"""The k of the recalls that InfoNCE is scored by."""

_PROTOCOLS = {"none": "", "heads": "unimodal heads", "slices": "slices of the fusion head"}


class CrossEntropy:
    """The mean of -log p_y (nats), for the fused logits and each modality's; scored by accuracy (fraction)."""

    score = "accuracy"

    def __init__(self, protocol: str = "") -> None:
        """Say in `protocol` how the modalities' logits arise."""
        self.protocol = protocol

    def losses(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return one loss for each of the logits (B, C)."""
        return {name: F.cross_entropy(z, y) for name, z in logits.items()}

    def outputs(self, logits: dict[str, Tensor], features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits (B, C)."""
        return logits

    def row_losses(self, outputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return each row's losses (B,)."""
        return {name: F.cross_entropy(z, y, reduction="none") for name, z in outputs.items()}

    def scores(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return `accuracy` and `accuracy/<modality>`."""
        return _accuracies(logits, y)


class SquaredError:
    """The mean over rows of ½ ‖z - t‖²: t is the one-hot label, or the standardised target of a regression.

    With one-hot targets the sum runs over the classes, so the curvature does not shrink as classes are added.
    """

    def __init__(self, protocol: str, classes: int, regression: bool) -> None:
        """Prepare for C classes, or for regression."""
        self.protocol, self.classes, self.regression = protocol, classes, regression
        self.score = "error" if regression else "accuracy"

    def losses(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return one loss for each of the logits (B, C), or (B, 1)."""
        return {name: 0.5 * self._squares(z, y).mean() for name, z in logits.items()}

    def outputs(self, logits: dict[str, Tensor], features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits (B, C), or (B, 1)."""
        return logits

    def row_losses(self, outputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return each row's losses (B,)."""
        return {name: 0.5 * self._squares(z, y) for name, z in outputs.items()}

    def scores(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return `error`, the mean of (z - t)², for regression; accuracy for classes; the same for each modality."""
        if not self.regression:
            return _accuracies(logits, y)
        return {_named("error", name): self._squares(z, y).mean() for name, z in logits.items()}

    def _squares(self, z: Tensor, y: Tensor) -> Tensor:
        target = y.unsqueeze(1) if self.regression else F.one_hot(y, self.classes).to(z.dtype)
        return (z - target).square().sum(1)


class InfoNce:
    """Symmetric InfoNCE (nats) for each pair of modalities; scored by recall within the rows at hand.

    A recall is the mean over the pairs and both directions. `accuracy` is recall at 1 under another name, so that every
    run has one.
    """

    score = "recall@1"
    protocol = ""

    def __init__(self, temperature: float, unit: bool = False) -> None:
        """Fix the temperature.

        `unit`: features come at length 1, as `Multimodal.encode` then gives them, and logits are their products as they
        are, so that what a method adds to the features is not normalised away. Without a method both are the same.
        """
        self.temperature, self.unit = temperature, unit

    def losses(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return one loss a pair, `<a>-<b>`."""
        pairs = combinations(features, 2)
        return {f"{a}-{b}": info_nce(features[a], features[b], self.temperature, self.unit) for a, b in pairs}

    def outputs(self, logits: dict[str, Tensor], features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each pair's similarities (B, B) over the temperature: convex in them, and not in the features."""
        pairs = combinations(features, 2)
        return {f"{a}-{b}": similarity(features[a], features[b], self.temperature, self.unit) for a, b in pairs}

    def row_losses(self, outputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return what each row adds as query in both directions (B,); it depends on the other rows too."""
        return {name: matching(table) for name, table in outputs.items()}

    def scores(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return `accuracy`, `recall@k` and `recall@k/<a>-to-<b>`, as fractions."""
        single = {
            f"{a}-to-{b}": recall_at(features[a], features[b], RECALLS) for a in features for b in features if a != b
        }
        means = (sum(single.values()) / len(single)).unbind()
        table = {"accuracy": means[0]} | {f"recall@{k}": value for k, value in zip(RECALLS, means, strict=True)}
        for name, values in single.items():
            table |= {f"recall@{k}/{name}": value for k, value in zip(RECALLS, values.unbind(), strict=True)}
        return table


def build(settings, data: Dataset) -> CrossEntropy | SquaredError | InfoNce:
    """Return the objective that `settings` (`objective`, `unimodal`, `temperature`, `normalise`) ask for.

    Raises:
        InputError: an objective that does not suit the data, or an unknown one.
    """
    name = settings.objective
    if name not in OBJECTIVES:
        raise InputError(f"objective must be one of {', '.join(OBJECTIVES)}, not {name!r}.")
    if name == "auto":
        name = "squared_error" if data.regression else "cross_entropy"
    if name == "info_nce":
        return _contrastive(settings, data)
    protocol = _PROTOCOLS.get(settings.unimodal, "")
    if name == "squared_error":
        return SquaredError(protocol, data.classes, data.regression)
    if data.regression:
        raise InputError(
            f"cross_entropy needs classes, but the labels of {data.name} are real numbers; choose squared_error."
        )
    return CrossEntropy(protocol)


def _contrastive(settings, data: Dataset) -> InfoNce:
    if len(data.modalities) < 2:
        raise InputError(f"info_nce needs two modalities, but {data.name} has one; choose cross_entropy.")
    if settings.unimodal != "none":
        raise InputError(f"info_nce has no logits, so unimodal must be none, not {settings.unimodal!r}.")
    return InfoNce(settings.temperature, settings.normalise == "encoder")


def _accuracies(logits: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    return {_named("accuracy", name): (z.argmax(1) == y).to(z.dtype).mean() for name, z in logits.items()}


def _named(score: str, row: str) -> str:
    return score if row == "fused" else f"{score}/{row}"
