"""Directions through parameter space in which a loss is cut: random, downhill, most curved, along the way it came.

Random directions are filter-normalised (Li et al. 2018): each output row of a weight matrix moves by a multiple of its
own length, so that a step of 1 doubles it in size. This makes slices invariant to rescaling whole layers of a ReLU
network, but not to rescaling single neurons. All other directions have unit length: a step is a distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.krylov import Krylov, Loss, Space
from modalscape.engine.maths.progress import Tally

Parts = str | tuple[str, str] | None
"""One part's parameters, the first part's for the first direction and the second's for the second, or all."""


def filter_normalised(
    direction: Tensor, theta: Tensor, layout: Layout, axes: Mapping[str, int] | None = None
) -> Tensor:
    """Return the direction (P,) with each output slice scaled to the length of that slice of theta (P,).

    Vectors and scalars (biases, scales of a normalisation) do not move. The output axis of a tensor is 0 (linear,
    convolution, embedding, recurrent and attention weights), unless `axes` maps its name to another: 1 for a transposed
    convolution. A slice whose direction is zero stays zero; no constant is added to a length.
    """
    pieces = []
    weights = layout.unpack(theta)
    for name, d in layout.unpack(direction).items():
        if d.dim() < 2:
            pieces.append(torch.zeros_like(d).reshape(-1))
            continue
        out = (axes or {}).get(name, 0)
        inner = [i for i in range(d.dim()) if i != out]
        length = torch.linalg.vector_norm(d, dim=inner, keepdim=True)
        wanted = torch.linalg.vector_norm(weights[name], dim=inner, keepdim=True)
        pieces.append((d * torch.where(length > 0, wanted / length, 0)).reshape(-1))
    return torch.cat(pieces)


def direction_pair(
    theta: Tensor,
    layout: Layout,
    generator: torch.Generator,
    part: Parts = None,
    axes: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return two random filter-normalised directions (P,).

    Gaussian, made orthogonal first and normalised afterwards, so each keeps the lengths that make slices comparable;
    what remains of their cosine is about 1/√P. `part` keeps both to one part's parameters, a pair (a, b) the first to a
    and the second to b. The draw depends on the generator alone, so slices at different steps use one plane. A part
    that the layout does not have, or one without weight matrices, is refused by an `InputError`.
    """
    first, second = pair_of(part)
    d1 = _drawn(theta, layout, generator, first)
    d2 = _drawn(theta, layout, generator, second)
    d2 = d2 - (d1 @ d2) / (d1 @ d1) * d1
    return filter_normalised(d1, theta, layout, axes), filter_normalised(d2, theta, layout, axes)


def downhill_pair(
    grad: Tensor, theta: Tensor, layout: Layout, generator: torch.Generator, part: Parts = None
) -> tuple[Tensor, Tensor]:
    """Return the direction of steepest descent and a random one across it, (P,) each, of unit length.

    The random one is filter-normalised in shape: made orthogonal to the gradient (P,) first, normalised afterwards. For
    a pair of parts (a, b), steepest descent in a's and in b's parameters.

    Raises:
        InputError: an unknown part, or one whose gradient vanishes.
    """
    first, second = pair_of(part)
    d1 = -_unit(_within(grad, layout, first), f"the gradient of {first or 'the network'} vanishes")
    if isinstance(part, tuple):
        return d1, -_unit(_within(grad, layout, second), f"the gradient of {second} vanishes")
    d2 = _drawn(theta, layout, generator, second)
    d2 = filter_normalised(d2 - (d1 @ d2) * d1, theta, layout)
    return d1, _unit(d2, "every weight row is zero")


@dataclass(frozen=True)
class Curved:
    """Eigenvectors of a Hessian, (2, P) of unit length, with eigenvalues (2,) and their residual bounds (2,)."""

    directions: Tensor
    values: Tensor
    residuals: Tensor


def curved_pair(
    loss: Loss,
    theta: Tensor,
    layout: Layout,
    generator: torch.Generator,
    reference: Tensor,
    part: Parts = None,
    *,
    tol: float = 1e-2,
    most: int = 100,
) -> Curved:
    """Return the top two eigenvectors (largest algebraic).

    Of the block of one part, or for a pair (a, b) the top eigenvector of a's block and that of b's. The sign of an
    eigenvector is arbitrary: each is turned to the side of `reference` (P,), a fixed vector, so that slices at
    different steps are not mirror images. Where the two eigenvalues nearly agree, the vectors may still turn within
    their plane from one measurement to the next; the plane itself stays.

    The Lanczos basis grows until every residual is below `tol` times its eigenvalue at two looks in a row, or to
    `most` vectors: then the residuals say how far it came. An unknown part is refused by an `InputError`.
    """
    first, second = pair_of(part)
    blocks = [(first, 1), (second, 1)] if isinstance(part, tuple) else [(first, 2)]
    found, tally = [], Tally("products", 0)
    for name, k in blocks:
        mask = None if name is None else layout.mask(_known(name, layout)).to(theta.device)
        space = Space(loss, theta, mask, generator, tally)
        tally.plan(min(max(most, k), space.n))
        krylov, settled = Krylov(space), 0
        while settled < 2 and not krylov.complete and krylov.size < max(most, k):
            krylov.extended(1)
            if krylov.size < k + 5:
                continue
            values, _, residuals = krylov.result().ritz()
            settled = settled + 1 if (residuals[:k] <= tol * values[:k].abs()).all() else 0
        tally.finish()
        run = krylov.result()
        values, coordinates, residuals = run.ritz()
        if len(values) < k:
            raise InputError(f"{name or 'the network'} has {space.n} parameter; a plane needs two directions.")
        found.append((values[:k], space.embed(run.vectors(coordinates[:, :k])), residuals[:k]))
    values, vectors, residuals = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    sides = torch.where(vectors @ reference.to(vectors) < 0, -1.0, 1.0).to(vectors)
    return Curved((vectors * sides[:, None]).to(theta), values, residuals)


@dataclass(frozen=True)
class Principal:
    """The plane of a path: `directions` (2, P) of unit length, `coordinates` (N, 2) in it, all about the last point.

    `shares` are the principal components' shares of the sum of squared distances from the last point: (N - 1,) largest
    first, or (2,) for a pair of parts. `off_plane` (N,) is how much of each point's distance from the last one lies
    outside the plane (0 to 1).
    """

    directions: Tensor
    coordinates: Tensor
    shares: Tensor
    off_plane: Tensor


def principal_pair(path: Tensor, layout: Layout, part: Parts = None) -> Principal:
    """Return the plane through the last point of a path (N, P) that holds most of the squared distances from it.

    The last point is subtracted, not the mean, so the plane contains it. Signs: the first point lies to the right, and
    the point farthest from the horizontal axis above it. For a pair of parts (a, b), the first component of the path in
    a's parameters and the first of that in b's. Shares of a path near 1 prove nothing: a random walk has 81 % + 9 %.

    Raises:
        InputError: fewer than three points, an unknown part, or a path that lies on a line.
    """
    if len(path) < 3:
        raise InputError(f"the path has {len(path)} points and a plane needs three; let the run train further.")
    first, second = pair_of(part)
    steps = path - path[-1]
    # The path seldom has more than 64 points, so the components come from its Gram matrix.
    values, d = _components(_within(steps, layout, first), 2)
    if isinstance(part, tuple):
        other, e = _components(_within(steps, layout, second), 1)
        values, d = torch.cat([values[:1], other[:1]]), torch.cat([d[:1], e])
    if len(d) < 2:
        raise InputError("the path lies on a line, so there is no plane through it; let the run train further.")
    coordinates = _products(steps, d)
    turned = torch.stack([coordinates[0, 0], coordinates[coordinates[:, 1].abs().argmax(), 1]]) < 0
    sides = torch.where(turned, -1.0, 1.0).to(coordinates)
    coordinates, d = coordinates * sides, d * sides[:, None].to(d)
    distance = torch.linalg.vector_norm(steps, dim=1, dtype=torch.float64)
    within = coordinates.norm(dim=1)
    off = (distance**2 - within**2).clamp(min=0).sqrt() / distance.clamp(min=torch.finfo(torch.float64).tiny)
    return Principal(d, coordinates, values / distance.square().sum(), torch.where(distance > 0, off, 0.0))


def _components(steps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the squared singular values (N - 1,) of steps (N, P), largest first, and up to `count` unit vectors."""
    held = steps[:-1]
    values, vectors = torch.linalg.eigh(_products(held, held))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    # Float32 steps carry errors of about 1e-7 of their length: what lies below its square is no component.
    real = int((values[:count] > 1e-10 * values[0]).sum()) if values[0] > 0 else 0
    d = vectors[:, :real].T.to(held) @ held
    return values, torch.linalg.qr(d.double().T).Q.T.to(held) if real else d


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' (N, M) of a (N, P) and b (M, P), summed in float64 without a second copy of either."""
    return sum(x.double() @ y.double().T for x, y in zip(a.split(1 << 16, 1), b.split(1 << 16, 1), strict=True))


def pair_of(part: Parts) -> tuple[str | None, str | None]:
    """Return the part of the first and of the second direction; None for all parameters."""
    return part if isinstance(part, tuple) else (part, part)


def _known(part: str, layout: Layout) -> str:
    if part not in layout.slices:
        raise InputError(f"{part!r} is no part of the network; its parts are {', '.join(layout.slices)}.")
    return part


def _within(vector: Tensor, layout: Layout, part: str | None) -> Tensor:
    return vector if part is None else vector * layout.mask(_known(part, layout)).to(vector)


def _unit(vector: Tensor, why: str) -> Tensor:
    length = torch.linalg.vector_norm(vector)
    if not length > 0:
        raise InputError(f"{why}, so there is no direction to cut along; choose random directions.")
    return vector / length


def _drawn(theta: Tensor, layout: Layout, generator: torch.Generator, part: str | None) -> Tensor:
    """Return a Gaussian vector (P,) on the weight matrices of a part; one draw whatever the part and precision."""
    if part is not None:
        _known(part, layout)
    draw = torch.randn(len(theta), generator=generator, device=generator.device, dtype=torch.float32).to(theta)
    pieces = [
        d if d.dim() >= 2 and part in (None, layout.parts[name]) else torch.zeros_like(d)
        for name, d in layout.unpack(draw).items()
    ]
    draw = torch.cat([d.reshape(-1) for d in pieces])
    if not draw.any():
        raise InputError(f"{part or 'the network'} has no weight matrix; filter-normalised directions need one.")
    return draw
