"""What is trained: data, networks and objective behind one small interface."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.rng import Rng
from modalscape.engine.maths.features.contrastive import normalised

Named = Mapping[str, Tensor]
"""Parameter name to tensor."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set: `x` maps a modality to (B, …), `y` is (B,)."""

    x: dict[str, Tensor]
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, where: Tensor | slice) -> Batch:
        """Return the rows that `where` selects."""
        return Batch({name: value[where] for name, value in self.x.items()}, self.y[where])

    def chunks(self, size: int) -> list[Batch]:
        """Return the batch cut into pieces of at most `size` rows; `size` 0 means one piece."""
        if not 0 < size < len(self):
            return [self]
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]


def join(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return name to the rows of all pieces below each other, (ΣB, …), from name to (B, …) of one piece or more."""
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Return the rows of one batch or more as one."""
    return Batch(join([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))


class Problem(Protocol):
    """What a training step, a method and a probe may ask of a problem."""

    name: str
    title: str
    modalities: tuple[str, ...]
    layout: Layout
    micro: int
    """Rows in one backward pass; 0 for the whole batch. Larger batches are accumulated."""

    def init(self) -> Tensor:
        """Return the first theta (P,), drawn from the run's seed."""

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step: pure in `step`."""

    def probe_batch(self) -> Batch:
        """Return the fixed training rows of every measurement."""

    def held_out(self, part: str) -> Iterator[Batch]:
        """Return the batches of `train`, `val` or `test`, in order."""

    def without(self, batch: Batch, modality: str) -> Batch:
        """Return the batch with one modality at its neutral input (zero: the mean of the training rows)."""

    def encode(self, theta: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return each modality's features (B, D)."""

    def objectives(self, theta: Tensor, features: dict[str, Tensor], batch: Batch) -> tuple[dict, dict]:
        """Return the losses (name to scalar) and the logits (`fused` and modalities to (B, C))."""

    def loss(self, theta: Tensor | Named, batch: Batch) -> Tensor:
        """Return the sum of the losses with no method active; safe under vmap and double backward.

        Parameters come as theta (P,), or named as `layout.joined` gives them.
        """

    def outputs(self, theta: Tensor | Named, batch: Batch) -> dict[str, Tensor]:
        """Return what the loss is convex in, by name: logits (B, C), or similarities (B, B) between modalities."""

    def row_losses(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return each row's loss (B,), whose mean is the loss."""

    def evaluate(self, theta: Tensor, part: str = "val") -> dict[str, float]:
        """Return the scores on a part of the data, such as `accuracy/val` and `accuracy/val/audio`."""


class Network(Protocol):
    """The parts of a multimodal network that a problem needs; an `nn.Module`."""

    encoders: nn.ModuleDict
    """Modality to the module that maps its input (B, …) to features (B, D)."""
    trunk: nn.Module
    """Everything behind the features: `trunk(features) -> logits`, a dict with `fused` and perhaps modalities."""

    def part_of(self, name: str) -> str:
        """Return the modality that owns a parameter, or `shared`."""


class Objective(Protocol):
    """What is minimised and how success is scored."""

    def losses(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return objective name to scalar; the first is the fused one."""

    def outputs(self, logits: dict[str, Tensor], features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the losses are convex in, by name."""

    def row_losses(self, outputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return objective name to each row's loss (B,); the means are the `losses`."""

    def scores(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return score name, such as `accuracy` or `accuracy/audio`, to a scalar tensor."""

    score: str
    """Name of the main score: `accuracy`, `error` or `recall@1`."""


class Functional:
    """A module as a pure function of its parameters.

    The same as `torch.func.functional_call`, without its bookkeeping (tied weights, buffers, checks), which costs more
    than a small network's forward pass. The module's own parameters are put back afterwards.
    """

    def __init__(self, module: nn.Module, prefix: str) -> None:
        self.module = module
        self.slots = [
            (owner._parameters, key, f"{prefix}.{path}.{key}" if path else f"{prefix}.{key}", p)
            for path, owner in module.named_modules()
            for key, p in owner._parameters.items()
            if p is not None and p.requires_grad
        ]

    def __call__(self, named: dict[str, Tensor], value):
        """Return `module(value)` with the parameters that `named` holds for it."""
        for store, key, name, _ in self.slots:
            store[key] = named[name]
        try:
            return self.module(value)
        finally:
            for store, key, _, own in self.slots:
                store[key] = own


class Multimodal:
    """A `Problem` made of a data set in memory, a network and an objective."""

    def __init__(
        self,
        name: str,
        title: str,
        rows: dict[str, Batch],
        build: Callable[[], Network],
        objective: Objective,
        rng: Rng,
        *,
        source: Rng | None = None,
        batch: int,
        micro: int = 0,
        probe_rows: int = 512,
        device: torch.device | str = "cpu",
    ) -> None:
        """Assemble the problem on `device`.

        `rows` maps `train`, `val` and `test` to all their rows, already standardised. `build` makes the network; it is
        called once, under a seed of its own, so that the first theta is a function of the run's seed. `rng` orders the
        batches; the first theta and the rows that are measured come from `source`, where that is another.
        """
        self.name, self.title, self.rng, self.micro = name, title, rng, micro
        self._source = rng if source is None else source
        self.modalities = tuple(rows["train"].x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._source.key("init"))
            net = build()
        self.layout = Layout.of(net, net.part_of)
        dtype = next(iter(net.parameters())).dtype
        self._first = self.layout.pack(dict(net.named_parameters())).detach().to(device)
        net.to(device)
        self.encoders = {name: Functional(net.encoders[name], f"encoders.{name}") for name in self.modalities}
        self.trunk = Functional(net.trunk, "trunk")
        self.objective = objective
        self.rows = {part: _moved(piece, device, dtype) for part, piece in rows.items()}
        self.batch_size = min(batch, len(self.rows["train"]))
        self.probe_rows = self._drawn("probe", min(probe_rows, len(self.rows["train"])))
        self._order: tuple[int, Tensor] | None = None
        self._named: tuple | None = None

    @property
    def score(self) -> str:
        """Name of the main score."""
        return self.objective.score

    @property
    def temperature(self) -> float | None:
        """Temperature of a contrastive objective, None for any other."""
        return getattr(self.objective, "temperature", None)

    def init(self) -> Tensor:
        """Return the first theta (P,)."""
        return self._first.clone()

    def batch(self, step: int) -> Batch:
        """Return the batch of a step: a slice of the epoch's keyed permutation, the ragged tail left out.

        A batch of all rows keeps them in order, so that full-batch training is deterministic descent.
        """
        rows, size = self.rows["train"], self.batch_size
        if size == len(rows):
            return rows
        epoch, place = divmod(step, len(rows) // size)
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(rows), generator=self.rng.generator("order", epoch))
            self._order = (epoch, order.to(rows.y.device))
        return rows.rows(self._order[1][place * size : (place + 1) * size])

    def probe_batch(self) -> Batch:
        """Return the training rows that every measurement uses."""
        return self.probe_rows

    def held_out(self, part: str, size: int = 1024) -> Iterator[Batch]:
        """Return the rows of `train`, `val` or `test` in order, at most `size` at a time."""
        yield from self.rows[part].chunks(size)

    def without(self, batch: Batch, modality: str) -> Batch:
        """Return the batch with one modality's input at zero, the mean of the standardised training rows."""
        return replace(batch, x=batch.x | {modality: torch.zeros_like(batch.x[modality])})

    def encode(self, theta: Tensor | Named, batch: Batch) -> dict[str, Tensor]:
        """Return modality to features (B, D), of length 1 where the objective asks for that."""
        named = self._unpacked(theta)
        features = {name: encoder(named, batch.x[name]) for name, encoder in self.encoders.items()}
        if getattr(self.objective, "unit", False):
            return {name: normalised(h) for name, h in features.items()}
        return features

    def logits(self, theta: Tensor | Named, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `fused` and, where the network has them, modalities to logits (B, C)."""
        return self.trunk(self._unpacked(theta), features)

    def objectives(self, theta: Tensor | Named, features: dict[str, Tensor], batch: Batch) -> tuple[dict, dict]:
        """Return the losses by objective and the logits."""
        logits = self.logits(theta, features)
        return self.objective.losses(logits, features, batch.y), logits

    def loss(self, theta: Tensor | Named, batch: Batch) -> Tensor:
        """Return the sum of all losses, with no method active."""
        losses, _ = self.objectives(theta, self.encode(theta, batch), batch)
        return sum(losses.values())

    def outputs(self, theta: Tensor | Named, batch: Batch) -> dict[str, Tensor]:
        """Return what the loss is convex in, by name."""
        features = self.encode(theta, batch)
        return self.objective.outputs(self.logits(theta, features), features)

    def row_losses(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return each row's loss (B,)."""
        return sum(self.objective.row_losses(outputs, batch.y).values())

    def scores(self, logits: dict[str, Tensor], features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Return the objective's scores, such as `accuracy`, as scalar tensors."""
        return self.objective.scores(logits, features, y)

    @torch.no_grad()
    def evaluate(self, theta: Tensor, part: str = "val") -> dict[str, float]:
        """Return the loss and scores on all rows of a part, fused and for each modality.

        A modality is scored by its own head or slice where the network has one, otherwise with the inputs of all
        other modalities at zero; `protocol` says which.
        """
        batches = list(self.held_out(part))
        features = join([self.encode(theta, batch) for batch in batches])
        y = torch.cat([batch.y for batch in batches])
        logits = self.logits(theta, features)
        losses = list(self.objective.losses(logits, features, y).items())
        values = {f"loss/{part}": losses[0][1]} | {f"loss/{part}/{name}": value for name, value in losses[1:]}
        values |= {_placed(name, part): value for name, value in self.scores(logits, features, y).items()}
        for name in self.modalities:
            key = f"{self.score}/{part}/{name}"
            if key not in values and "fused" in logits and len(self.modalities) > 1:
                alone = self.logits(theta, self._alone(theta, batches, name))
                values[key] = self.scores({"fused": alone["fused"]}, features, y)[self.score]
        table = torch.stack([v.double() for v in values.values()]).tolist()
        return dict(zip(values, table, strict=True))

    @property
    def protocol(self) -> str:
        """How `evaluate` scores one modality."""
        return getattr(self.objective, "protocol", "") or "inputs of the other modalities at zero"

    def _alone(self, theta: Tensor, batches: list[Batch], modality: str) -> dict[str, Tensor]:
        pieces = []
        for batch in batches:
            for other in self.modalities:
                batch = batch if other == modality else self.without(batch, other)
            pieces.append(self.encode(theta, batch))
        return join(pieces)

    def _drawn(self, purpose: str, count: int) -> Batch:
        rows = self.rows["train"]
        order = torch.randperm(len(rows), generator=self._source.generator(purpose))[:count].sort().values
        return rows.rows(order.to(rows.y.device))

    def _unpacked(self, theta: Tensor | Named) -> Named:
        """Return the named parameters; encode and objectives of one pass share one unpacking and one backward `cat`."""
        if not isinstance(theta, Tensor):
            return theta
        mode = (torch.is_grad_enabled(), theta.requires_grad)
        if self._named is None or self._named[0]() is not theta or self._named[1] != mode:
            self._named = (weakref.ref(theta), mode, self.layout.unpack(theta))
        return self._named[2]


def _moved(batch: Batch, device: torch.device | str, dtype: torch.dtype) -> Batch:
    def move(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    return Batch({name: move(value) for name, value in batch.x.items()}, move(batch.y))


def _placed(name: str, part: str) -> str:
    """Return `accuracy/audio` as `accuracy/val/audio`."""
    head, _, tail = name.partition("/")
    return f"{head}/{part}/{tail}" if tail else f"{head}/{part}"
