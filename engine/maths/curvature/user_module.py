"""A module of your own as a loss of its flat parameters, made fit for second derivatives on a copy.

    from modalscape.engine.maths.curvature import spectrum
    from modalscape.engine.maths.curvature.user_module import analysed

    model = analysed(net, lambda net, batch: cross_entropy(net(batch["x"]), batch["y"]), loader)
    found = spectrum(model.loss, model.theta, parts=model.layout.slices)

The copy is in evaluation mode, so its dropout is 0; its BatchNorm has the statistics of the rows that are analysed; it
is not compiled and not in half precision. Fused attention and cuDNN's recurrent kernels are avoided while the loss is
evaluated, as in every product. The original's parameters, buffers, gradients and modes, and torch's generators, are
left alone, and it may go on training while the copy is analysed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_
from torch.nn.modules.batchnorm import _BatchNorm

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hessian_spectrum import top_eigenpairs
from modalscape.engine.maths.curvature.matrix_products import GaussNewton, Loss, empirical_fisher, twice_differentiable
from modalscape.engine.maths.progress import tracked

STATISTICS = ("recalibrated", "stored", "batch")
"""What BatchNorm may normalise by: averages over the analysed rows, those the module has, or those of each batch."""

Objective = Callable[[nn.Module, Any], Tensor]
"""The loss (), a mean over the rows, of a module and a batch; the batch may be whatever the objective understands."""


@dataclass(frozen=True)
class Analysed:
    """A copy of a module as functions of its flat parameters."""

    theta: Tensor
    """(P,), the parameters that train; frozen ones are constants, tied ones count once."""
    layout: Layout
    loss: list[tuple[Loss, float]]
    """Each batch's loss of theta and its share of the rows; the functions of `maths.curvature` take it."""
    rows: int
    notes: tuple[str, ...]
    """Sentences about what differs between copy and original."""
    batches: list[tuple[Any, float]]
    host: nn.Module
    """Holds the copy."""

    def gauss_newton(
        self, outputs: Callable[[nn.Module, Any], Any], loss: Callable[[Any, Any], Tensor]
    ) -> list[tuple[GaussNewton, float]]:
        """Return the GGN of `loss(outputs, batch)` at `outputs(module, batch)`: a tensor, or a mapping of tensors."""
        return [
            (GaussNewton(_bound(self, outputs, batch), lambda found, batch=batch: loss(found, batch)), share)
            for batch, share in self.batches
        ]

    def empirical_fisher(self, losses: Objective) -> list[tuple[GaussNewton, float]]:
        """Return the empirical Fisher of `losses(module, batch)`, one number a row (B,)."""
        return [(empirical_fisher(_bound(self, losses, batch)), share) for batch, share in self.batches]


def analysed(
    module: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    *,
    statistics: str = "recalibrated",
    part_of: Callable[[str], str] | None = None,
) -> Analysed:
    """Return a copy of `module` as a loss of its flat parameters on `batches`, such as a loader or `[batch]`.

    The loss is the mean over all rows, also where batches differ in size; a batch has as many rows as its first tensor.
    `part_of` maps a parameter's name to its part; by default the first word of the name.

    Raises:
        InputError: a module that cannot be copied or has nothing to train, no batch, or statistics of each batch with
            more than one: such a loss is no sum over rows.
    """
    if statistics not in STATISTICS:
        raise InputError(f"statistics must be one of {', '.join(STATISTICS)}, not {statistics!r}.")
    with _draws_put_back(module):
        given = _listed(batches)
        host, notes = _copied(module)
        given, more = _one_precision(host, given)
        sizes = [_rows(batch) for batch in given]
        notes += more + _normalised(host, objective, given, sizes, statistics)
    layout = Layout.of(host.module, part_of or (lambda name: name.split(".")[0]))
    if not layout.size:
        raise InputError(f"{type(module).__name__} has no parameter that requires a gradient; unfreeze what to study.")
    theta = layout.pack(dict(host.module.named_parameters())).detach()
    shared = [(batch, size / sum(sizes)) for batch, size in zip(given, sizes, strict=True)]
    found = Analysed(theta, layout, [], sum(sizes), tuple(notes), shared, host)
    found.loss.extend((_bound(found, objective, batch), share) for batch, share in shared)
    return found


def batch_norm_gap(
    module: nn.Module, objective: Objective, batches: Iterable[Any], tolerance: float = 0.2
) -> tuple[dict[str, float], str]:
    """Return λ_max with each of the `STATISTICS`, and a sentence where they differ by more than `tolerance` of it.

    The curvature of a network with BatchNorm depends on what it normalises by, by a factor of 90 where the stored
    averages lag behind. The batches are joined by the objective's own mean only if there is one; with several, the
    statistics of each batch are left out.
    """
    given = _listed(batches)
    kinds = STATISTICS if len(given) == 1 else STATISTICS[:2]
    found = {}
    for kind in kinds:
        model = analysed(module, objective, given, statistics=kind)
        found[kind] = top_eigenpairs(model.loss, model.theta, 1, 1e-2)[0].item()
    least, most = min(found.values()), max(found.values())
    if most - least <= tolerance * abs(found["recalibrated"]):
        return found, ""
    said = ", ".join(f"{value:.4g} ({kind})" for kind, value in found.items())
    return found, f"λ_max depends on the statistics of BatchNorm: {said}; say which one is meant."


class _Host(nn.Module):
    """Lets an objective call any method of a module whose parameters are replaced."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, task: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        return task(self.module, batch)


def _bound(model: Analysed, task: Callable[[nn.Module, Any], Any], batch: Any) -> Callable[[Tensor], Any]:
    """Return `task(module, batch)` as a function of theta; what it draws is the same each time."""

    def value(theta: Tensor) -> Any:
        named = {f"module.{name}": value for name, value in model.layout.unpack(theta).items()}
        with _draws_put_back(model.host):
            return functional_call(model.host, named, (task, batch))

    return value


def _copied(module: nn.Module) -> tuple[_Host, list[str]]:
    """Return a copy in evaluation mode, without gradients and compilation, and what there is to say about it."""
    plain = getattr(module, "_orig_mod", module)
    if any(nn.parameter.is_lazy(p) for p in plain.parameters()):
        raise InputError(f"{type(plain).__name__} has lazy parameters without a shape; run it once on a batch first.")
    try:
        host = _Host(copy.deepcopy(plain)).train(False)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(plain).__name__} cannot be copied: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
    for parent in host.modules():
        for name, child in list(parent.named_children()):
            if hasattr(child, "_orig_mod"):
                setattr(parent, name, child._orig_mod)
    for p in host.parameters():
        p.grad = None
    notes = []
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in host.modules()) and module.training:
        notes.append("dropout is 0")
    fixed = sum(p.numel() for p in host.parameters() if not p.requires_grad)
    return host, notes + ([f"{fixed:,} frozen parameters are constants"] if fixed else [])


def _one_precision(host: _Host, batches: list[Any]) -> tuple[list[Any], list[str]]:
    """Return the batches in the number format of the copy, which becomes float32 if it is coarser or mixed."""
    kinds = {p.dtype for p in host.parameters() if p.requires_grad}
    if any(kind.is_complex for kind in kinds):
        raise InputError("the module has complex parameters; curvature is defined here for real ones.")
    if len(kinds) <= 1 and not kinds & {torch.float16, torch.bfloat16}:
        return batches, []
    host.float()

    def single(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    return [_mapped(batch, single) for batch in batches], ["computed in float32"]


def _normalised(host: _Host, objective: Objective, batches: list[Any], sizes: list[int], statistics: str) -> list[str]:
    """Give the copy's BatchNorm the statistics that were asked for; return what there is to say.

    Recalibrated are cumulative averages over the batches, weighted by rows: each layer's input is normalised by its own
    batch meanwhile, as in training.
    """
    norms = [m for m in host.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or statistics == "stored":
        return ["BatchNorm uses its stored averages"] if norms else []
    if statistics == "batch":
        if len(batches) > 1:
            raise InputError(f"statistics of each batch make {len(batches)} batches no sum over rows; give one batch.")
        replace_all_batch_norm_modules_(host)
        return ["BatchNorm normalises by the batch"]
    momenta, seen = [m.momentum for m in norms], 0
    for m in norms:
        m.reset_running_stats()
        m.train()
    for batch, size in tracked(list(zip(batches, sizes, strict=True)), "batches"):
        seen += size
        for m in norms:
            m.momentum = size / seen
        try:
            with torch.no_grad(), twice_differentiable(_device(host)):
                host(objective, batch)
        except ValueError as error:
            raise InputError(f"BatchNorm cannot be recalibrated on {size} rows: {str(error).rstrip('.')}.") from error
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.train(False)
    return [f"BatchNorm is recalibrated on the {seen:,} rows"]


def _listed(batches: Iterable[Any]) -> list[Any]:
    if isinstance(batches, Tensor | Mapping | tuple | str):
        raise InputError(
            f"batches must be a loader or a list of batches, not one {type(batches).__name__}; put it into a list."
        )
    found = list(batches)
    if not found:
        raise InputError("there is no batch to analyse; give at least one.")
    if len(found) > 1 and all(isinstance(b, Tensor) for b in found) and len({(b.dtype, b.dim()) for b in found}) > 1:
        raise InputError("batches is a list of unlike tensors, which looks like one batch; put it into a list.")
    return found


def _rows(batch: Any) -> int:
    for value in _tensors(batch):
        if value.dim():
            if not len(value):
                raise InputError("a batch has no rows; leave it out.")
            return len(value)
    raise InputError(f"a batch of type {type(batch).__name__} holds no tensor, so its rows cannot be counted.")


def _tensors(value: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    _mapped(value, lambda tensor: found.append(tensor) or tensor)
    yield from found


def _mapped(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of mappings, sequences and dataclasses with `f` of its tensors."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {key: _mapped(inner, f) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_mapped(inner, f) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        return dataclasses.replace(value, **{name: _mapped(getattr(value, name), f) for name in fields})
    return value


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@contextmanager
def _draws_put_back(module: nn.Module) -> Generator[None]:
    """Draw from fixed seeds within, and put torch's generators back afterwards."""
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)):
            generator.manual_seed(0)
        yield
