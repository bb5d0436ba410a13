"""Gaussian noise on a batch of features, shaped by the singular values of the batch, and what random matrices predict.

Letters: X (m, n) is a batch of m rows of n features, σ (r,) its singular values, V (n, r) its right singular vectors,
r = min(m, n); S (r,) is the noise scale of each direction and α the dose. The noise is N = (α/√n)·Z·V·diag(S)·Vᵀ, with
Z (m, n) standard normal. The source draws (m, r) numbers in the basis V. Z·V has the same law, but N then depends
neither on the signs of V nor on its choice within equal singular values, and all three scalings share their draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCALINGS = ("uniform", "linear", "sublinear")
"""How the noise grows with the singular value: not at all, with σ, with √σ."""


def framed(h: Tensor, order: str, relative: bool) -> tuple[Tensor, Tensor]:
    """Return X (m, n), the features h in the units in which α is meant, and the unit: of each row (m, 1), or of all.

    `after`: rows of length 1, in units of their length; `before`: h itself, in units of 1, or if `relative` of the root
    mean square length of the rows, as a constant. Rows of length 0 stay 0.
    """
    tiny = torch.finfo(h.dtype).tiny
    if order == "after":
        unit = h.norm(dim=1, keepdim=True)
    elif relative:
        unit = h.detach().square().sum(1).mean().sqrt()
    else:
        unit = torch.ones_like(h[0, 0])
    return h.detach() / unit.detach().clamp(min=tiny), unit


def finite_or_zero(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the features (m, n) of each modality, or zeros for all of them where one is not finite; asks no host."""
    return {name: torch.where(h.isfinite().all(), h, 0.0) for name, h in features.items()}


def of_length(noisy: Tensor, h: Tensor) -> Tensor:
    """Return the rows of noisy (m, n), each at the length of the same row of h; rows of length 0 stay 0."""
    length = noisy.norm(dim=1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
    return noisy * (h.norm(dim=1, keepdim=True) / length)


@dataclass(frozen=True)
class Directions:
    """Singular values (r,), largest first, and right singular vectors (n, r) of a batch (m, n); without graph."""

    values: Tensor
    basis: Tensor

    @property
    def width(self) -> int:
        """Number of features, n."""
        return len(self.basis)


def directions(x: Tensor, *, centre: bool = False, gram: bool = False) -> Directions:
    """Return the principal directions of finite x (m, n), in single precision at least.

    Never differentiated: the derivative of V has 1/(σᵢ² - σⱼ²) in it. `centre` takes the mean row away first. `gram`
    goes through the eigenvalues of the smaller of XᵀX and XXᵀ, which is faster but loses singular values below about
    3e-4 of the largest in single precision. Values lost in rounding are set to exactly 0; so are their vectors where
    `gram` meets fewer rows than features.
    """
    x = centred(x, centre)
    lost = max(x.shape) * torch.finfo(x.dtype).eps
    if not gram:
        _, values, vectors = torch.linalg.svd(x, full_matrices=False)
        return Directions(_cut(values, lost), vectors.mT)
    m, n = x.shape
    squares, vectors = torch.linalg.eigh(x.mT @ x if m >= n else x @ x.mT)
    values = _cut(squares.clamp(min=0).sqrt().flip(0), math.sqrt(lost))
    vectors = vectors.flip(1)
    if m >= n:
        return Directions(values, vectors)
    safe = values.clamp(min=torch.finfo(x.dtype).tiny)
    return Directions(values, torch.where(values > 0, x.mT @ vectors / safe, 0.0))


def centred(x: Tensor, centre: bool = True) -> Tensor:
    """Return x (m, n) without graph, in single precision at least, and without its mean row if `centre`."""
    x = x.detach()
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x - x.mean(0) if centre else x


def scales(values: Tensor, scaling: str) -> Tensor:
    """Return S (r,) for singular values σ (r,): 1, σ/mean σ or √σ/mean √σ; 0 where all of them vanish.

    >>> scales(torch.tensor([3.0, 1.0]), "linear")
    tensor([1.5000, 0.5000])

    Raises:
        ValueError: another scaling.
    """
    if scaling == "uniform":
        return torch.ones_like(values)
    if scaling not in SCALINGS:
        raise ValueError(f"The scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}.")
    grown = values if scaling == "linear" else values.sqrt()
    return grown / grown.mean().clamp(min=torch.finfo(grown.dtype).tiny)


@dataclass(frozen=True)
class Shape:
    """Where the noise goes: S (r,) along `basis` (n, r) and the scalar `rest` across it."""

    basis: Tensor
    scale: Tensor
    rest: Tensor

    @property
    def energy(self) -> Tensor:
        """Expected squared length of a row of noise for α = 1: (ΣS² + (n - r)·rest²)/n."""
        n, r = self.basis.shape
        return (self.scale.square().sum() + (n - r) * self.rest.square()) / n

    @property
    def covariance(self) -> Tensor:
        """Covariance (n, n) of a row of noise for α = 1: (V·diag(S² - rest²)·Vᵀ + rest²·I)/n."""
        n = len(self.basis)
        inside = (self.basis * (self.scale.square() - self.rest.square())) @ self.basis.mT
        return (inside + self.rest.square() * torch.eye(n, dtype=inside.dtype, device=inside.device)) / n


def shape(found: Directions, scaling: str, *, matched: bool = False, full: bool = False, energy: str = "own") -> Shape:
    """Return the shape of the noise along the directions of a batch.

    `full` fills the features that a batch of fewer rows than features does not reach with the smallest S. `energy` is
    the scaling whose energy it has, its `own` or another's, by one factor on S and rest. `matched` is the same as the
    energy of the uniform one, α²·r/n, or α² if `full`.
    """
    made = _unscaled(found, scaling, full)
    if matched:
        n, r = found.basis.shape
        return _divided(made, (made.energy * (n / (n if full else r))).sqrt())
    if energy in ("own", scaling):
        return made
    wanted = _unscaled(found, energy, full).energy.clamp(min=torch.finfo(made.scale.dtype).tiny)
    return _divided(made, (made.energy / wanted).sqrt())


def _unscaled(found: Directions, scaling: str, full: bool) -> Shape:
    scale = scales(found.values, scaling)
    return Shape(found.basis, scale, scale.min() if full else torch.zeros_like(scale[0]))


def _divided(form: Shape, size: Tensor) -> Shape:
    size = size.clamp(min=torch.finfo(size.dtype).tiny)
    return Shape(form.basis, form.scale / size, form.rest / size)


def even(x: Tensor) -> Shape:
    """Return the shape of uniform noise z/√n in all n directions of x (m, n): rest 1, and no direction of its own."""
    return Shape(x.new_empty(x.shape[1], 0), x.new_empty(0), x.new_ones(()))


def noise(z: Tensor, form: Shape) -> Tensor:
    """Return noise (m, n) for α = 1 from standard normal z (m, n): (1/√n)·(z·V·diag(S)·Vᵀ + rest·z·(I - VVᵀ))."""
    inside = z @ form.basis
    return ((inside * (form.scale - form.rest)) @ form.basis.mT + form.rest * z) / math.sqrt(z.shape[1])


@dataclass(frozen=True)
class Mixture:
    """Linear noise as mixtures of the rows of x (m, n): g·X/size with standard normal g (m, m), for α = 1."""

    rows: Tensor
    size: Tensor


def mixture(x: Tensor, *, centre: bool = False, matched: bool = False) -> Mixture:
    """Return the mixtures of the rows of x (m, n) whose covariance is that of `noise` with linear scales.

    (1/(√n·c))·g·X has the row covariance XᵀX/(n·c²). c is mean σ, for which singular values are still needed, or,
    matched, √(Σσ²/r) = ‖X‖/√r, for which none are.
    """
    x = centred(x, centre)
    m, n = x.shape
    size = x.norm() / math.sqrt(min(m, n)) if matched else torch.linalg.svdvals(x).mean()
    return Mixture(x, math.sqrt(n) * size.clamp(min=torch.finfo(x.dtype).tiny))


def mixed(g: Tensor, form: Mixture) -> Tensor:
    """Return linear noise (m, n) for α = 1 from standard normal g (m, m)."""
    return g @ form.rows / form.size


def dose(alpha: float, step: int, warmup: int, anneal: str, steps: int) -> float:
    """Return α at a step: grows from 0 over `warmup` steps, then falls to 0 at `steps` (0: never), as `anneal` says.

    `none` does not fall, `linear` and `cosine` do.

    >>> dose(1.0, 5, 10, "none", 0), dose(1.0, 75, 50, "linear", 100), dose(1.0, 100, 0, "cosine", 100)
    (0.5, 0.5, 0.0)
    """
    if step < warmup:
        return alpha * step / warmup
    if anneal == "none" or steps <= 0:
        return alpha
    share = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return alpha * (1.0 - share if anneal == "linear" else 0.5 * (1.0 + math.cos(math.pi * share)))


def predicted(values: Tensor, form: Shape, alpha: float, rows: int) -> Tensor:
    """Return √(E‖X̃vᵢ‖²) = √(σᵢ² + m·α²·Sᵢ²/n) (r,) for a batch of m `rows`."""
    return (values.square() + rows * alpha**2 * form.scale.square() / len(form.basis)).sqrt()


def ratio(values: Tensor, form: Shape, alpha: float, rows: int) -> Tensor:
    """Return SNRᵢ = n·σᵢ²/(m·α²·Sᵢ²) (r,): ∝ σ² for uniform noise, constant for linear, ∝ σ for sublinear.

    Nan where σ and S are 0.
    """
    return len(form.basis) * values.square() / (rows * alpha**2 * form.scale.square())


def powers(y: Tensor, basis: Tensor) -> Tensor:
    """Return ‖Y·vᵢ‖² (r,) of y (m, n) along each column of basis (n, r)."""
    return (y @ basis).square().sum(0)


def slope(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the slope of log y over log x and its standard error, from the points at which both are positive.

    Both are nan where fewer than three points or no spread in x are left.
    """
    kept = (x > 0) & (y > 0) & x.isfinite() & y.isfinite()
    a, b = x[kept].double().log(), y[kept].double().log()
    if len(a) < 3 or float(a.max() - a.min()) < 1e-6:
        return math.nan, math.nan
    a, b = a - a.mean(), b - b.mean()
    found = (a @ b) / (a @ a)
    error = ((b - found * a).square().sum() / (len(a) - 2) / (a @ a)).sqrt()
    return float(found), float(error)


def effective_rank(values: Tensor) -> Tensor:
    """Return exp(entropy of σ²/Σσ²) (0-d), from 1 to r; 1 where all vanish."""
    share = values.square() / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp()


def top_shares(form: Shape) -> tuple[Tensor, Tensor]:
    """Return the shares of the noise energy in the first direction and in the first ten (0-d each); 0 without noise."""
    power = form.scale.square()
    total = (form.energy * len(form.basis)).clamp(min=torch.finfo(power.dtype).tiny)
    return power[0] / total, power[:10].sum() / total


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine (m,) of each row of a (m, n) with that of b; 0 where one vanishes."""
    tiny = torch.finfo(a.dtype).tiny
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=tiny)


def alignments(found: Directions, other: Directions) -> Tensor:
    """Return |⟨vᵢ, ṽᵢ⟩| (r,) of the vectors of two batches, place by place."""
    return (found.basis * other.basis).sum(0).abs()


def curves(
    found: Directions,
    shapes: dict[str, Shape],
    noise: dict[str, Tensor],
    scaling: str,
    x: Tensor,
    noisy: Tensor,
    alpha: float,
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Return (group, label) to abscissa and ordinate, on the CPU, of what noise of one `scaling` did to x (m, n).

    `spectrum`: singular values of x `before`, of `noisy` (m, n) `after`, of the `noise`, and the `predicted` ones;
    `scale`: S of every scaling; `snr`: measured and predicted against σ for every scaling; `alignment` of clean and
    noisy vectors, and the `limit` for a lone direction in i.i.d. noise of the same energy; `cosine`: shares of the rows
    by cos(x, x̃), in twenty bins from the smallest on.
    """
    (m, n), form, own = x.shape, shapes[scaling], noise[scaling]
    after = directions(noisy)
    spectra = {
        "before": found.values,
        "after": after.values,
        "noise": torch.linalg.svdvals(own),
        "predicted": predicted(found.values, form, alpha, m),
    }
    place = torch.arange(1, len(found.values) + 1)
    made = {("spectrum", label): (place, values.cpu()) for label, values in spectra.items()}
    made |= {("scale", label): (place, other.scale.cpu()) for label, other in shapes.items()}
    delta = float(alpha * form.energy.sqrt()) / math.sqrt(n)
    lone = [overlap(theta, delta, m, n)[0] ** 0.5 for theta in found.values.tolist()]
    made["alignment", "measured"] = (place, alignments(found, after).cpu())
    made["alignment", "limit"] = (place, torch.tensor(lone))
    for label, other in shapes.items():
        for kind, values in (
            ("measured", found.values.square() / powers(noise[label], found.basis)),
            ("predicted", ratio(found.values, other, alpha, m)),
        ):
            kept = (values > 0) & values.isfinite() & (found.values > 0)
            made["snr", f"{label}/{kind}"] = (found.values[kept].cpu(), values[kept].cpu())
    cosine = cosines(x, noisy).clamp(-1, 1)
    low = min(float(cosine.min()), 1 - 1e-3)
    shares = torch.histc(cosine, 20, low, 1.0) / m
    made["cosine", "measured"] = (torch.linspace(low, 1.0, 41)[1::2], shares.cpu())
    return made


def sizes(found: Directions, form: Shape, noise: Tensor, x: Tensor, noisy: Tensor, alpha: float) -> dict[str, Tensor]:
    """Return the single numbers (0-d each) of what `noise` (m, n) of a shape did to x (m, n), which became `noisy`.

    The random-matrix limits `threshold` and `edge` are those of i.i.d. noise of the same energy; `hidden` is the share
    of the directions below the threshold.
    """
    m, n = x.shape
    length = alpha * form.energy.sqrt()
    limit = length * threshold(1 / math.sqrt(n), m, n)
    return {
        "threshold": limit,
        "edge": length * edge(1 / math.sqrt(n), m, n),
        "hidden": (found.values < limit).to(limit.dtype).mean(),
        "mean_square": form.scale.square().mean(),
        "noise_norm": noise.square().sum(1).mean().sqrt(),
        "noise_norm_expected": length,
        "mean_cosine": cosines(x, noisy).mean(),
        "rank": effective_rank(found.values),
        "rank_noisy": effective_rank(directions(noisy).values),
    }


def threshold(delta: float, m: int, n: int) -> float:
    """Return δ·(mn)^¼, the singular value below which i.i.d. noise of standard deviation δ hides a direction."""
    return delta * (m * n) ** 0.25


def edge(delta: float, m: int, n: int) -> float:
    """Return δ·(√m + √n), where the spectrum of an (m, n) matrix of i.i.d. noise ends."""
    return delta * (math.sqrt(m) + math.sqrt(n))


def observed(theta: float, delta: float, m: int, n: int) -> float:
    """Return the top singular value of a rank-one matrix of singular value θ in noise, in the limit of large m, n.

    √((θ² + δ²m)(θ² + δ²n))/θ above the threshold, the edge below it (Benaych-Georges and Nadakuditi, 2012).
    """
    if theta <= threshold(delta, m, n):
        return edge(delta, m, n)
    return math.sqrt((theta**2 + delta**2 * m) * (theta**2 + delta**2 * n)) / theta


def overlap(theta: float, delta: float, m: int, n: int) -> tuple[float, float]:
    """Return |⟨v, ṽ⟩|² and |⟨u, ũ⟩|² of the top singular vectors of the same matrix with and without noise.

    With t = θ/(δ√n) and c = m/n: 1 - (c + t²)/(t²(t² + 1)) and 1 - c(1 + t²)/(t²(t² + c)); 0 below the threshold.
    """
    if theta <= threshold(delta, m, n):
        return 0.0, 0.0
    s, c = (theta / delta) ** 2 / n, m / n
    return 1 - (c + s) / (s * (s + 1)), 1 - c * (1 + s) / (s * (s + c))


def pairing(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return how unit rows a, b (m, n), paired by place, lie on the sphere; each value is 0-d.

    `positive` and `negative`: mean cosine of pairs and of non-pairs. `alignment`: mean ‖aᵢ - bᵢ‖². `uniformity`: log of
    the mean of exp(-2‖xᵢ - xⱼ‖²) over i ≠ j, averaged over both sides (arXiv 2005.10242). `gap`: ‖mean a - mean b‖, the
    modality gap (arXiv 2203.02053). `negative` and `uniformity` are nan for a single row.
    """
    m = len(a)
    similarity = a @ b.mT
    positive = similarity.diagonal().mean()
    negative = (similarity.sum() - similarity.diagonal().sum()) / (m * (m - 1)) if m > 1 else positive * math.nan
    return {
        "positive": positive,
        "negative": negative,
        "alignment": (a - b).square().sum(1).mean(),
        "uniformity": (_uniformity(a) + _uniformity(b)) / 2,
        "gap": (a.mean(0) - b.mean(0)).norm(),
    }


def _uniformity(side: Tensor) -> Tensor:
    return torch.pdist(side).square().mul(-2).exp().mean().log()


def _cut(values: Tensor, share: float) -> Tensor:
    return torch.where(values > share * values[0], values, 0.0)
