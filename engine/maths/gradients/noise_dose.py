"""The knobs of noise in the update, and how strong it is at a step: schedules and sizes, free of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from modalscape.engine.core.knobs import assigned, checked, knob
from modalscape.engine.core.layout import Layout
from modalscape.engine.core.needs import PATIENCE
from modalscape.engine.errors import InputError, nearest
from modalscape.engine.maths.gradients import noise_ring

BALANCES = ("even", "inverse")
"""Rules for the gains of the modalities, beside numbers."""
_GAIN = {"type": "float", "low": 0.0, "high": 100.0}


@dataclass(frozen=True)
class Dose:
    """The knobs of a noise method; what each means stands in `strength`, `curvature`, `gains` and `kick`."""

    sigma: float = knob(1.0, 0.0, 8.0, "Dose: multiplies the noise whatever the sizing; 0 is off.")
    mode: str = knob(
        "halves",
        help="Shape of the noise: that of the difference of the batch's halves or of recent gradients, or a diagonal "
        "one by the variance, the second moment or the squared mean of gradients.",
        choices=(*noise_ring.MODES, "central", "second", "first"),
    )
    sizing: str = knob(
        "virtual", help="What sets the noise's size.", choices=("virtual", "fixed", "relative", "langevin")
    )
    virtual_batch: int = knob(0, 0, 65536, "Batch size to imitate, in rows; 0 for an eighth of the batch.")
    rho: float = knob(0.25, 0.0, 1.0, "Share of the missing small-batch variance that is put back.")
    vectors: int = knob(
        16, 2, 128, "Vectors that halves and history keep; each is as large as the network's parameters.", log=True
    )
    kappa: str = knob(
        "1", help="Gain on the noise: a number, one a part (image=2, text=0.5), or a rule, even or inverse."
    )
    exclude: str = knob("none", help="Tensors without noise; vectors: biases and gains.", choices=("none", "vectors"))
    beta: float = knob(0.99, 0.0, 0.9999, "Decay of the moving averages.")
    eps: float = knob(1e-12, 0.0, 1e-6, "Floor on c, in squared gradient units; 0 for none.")
    warmup: int = knob(20, 0, 100_000, "Gradients averaged before the first noise.")
    anneal: str = knob("cosine", help="How the noise ends over the run.", choices=("cosine", "cut", "none"))
    rest: float = knob(0.2, 0.0, 1.0, "Last share of the run without noise, unless anneal is none.")
    units: str = knob(
        "gradient",
        help="What the noise is measured in: the gradient, or the optimiser's step, which Adam makes of it.",
        choices=("gradient", "update"),
    )
    clip: float = knob(0.01, 0.0, 100.0, "Largest norm of the noise in one step; 0 for no limit.")
    clip_to: str = knob("weights", help="Unit of `clip`: ‖theta‖, or 1.", choices=("weights", "absolute"))
    placement: str = knob(
        "decoupled",
        help="After the descent, or as if added to the gradient.",
        choices=("decoupled", "through_grad"),
    )

    def __post_init__(self) -> None:
        """Refuse gains that cannot be read."""
        numbers(self.kappa)


class Pace(Protocol):
    """What is needed of the optimiser at one step: learning rate, heavy-ball coefficient, Nesterov, length of run."""

    lr: float
    momentum: float
    nesterov: bool
    horizon: int


def numbers(kappa: str) -> dict[str, float]:
    """Return part to gain for the knob `kappa`, under `""` what holds for parts that are not named; none for a rule.

    >>> numbers("2"), numbers("image=2"), numbers("even")
    ({'': 2.0}, {'image': 2.0}, {})

    Raises:
        InputError: the text is no number, no list of names with numbers, and no rule.
    """
    if kappa in BALANCES:
        return {}
    if "=" in kappa:
        return assigned(kappa, "kappa", 0.0, 100.0)
    try:
        return {"": checked(_GAIN, kappa, "kappa")}
    except InputError:
        raise InputError(
            f"kappa must be a number from 0 to 100, one a part such as image=2, text=0.5, or even or inverse, "
            f"not {kappa!r}."
        ) from None


def suits(kappa: str, layout: Layout) -> None:
    """Refuse gains that name a part which is not there.

    Raises:
        InputError: says which, and which there are.
    """
    for part in numbers(kappa):
        if part and part not in layout.slices:
            raise InputError(f"kappa names {part!r}{nearest(part, layout.slices)}")


def virtual(batch: int, virtual_batch: int, rho: float) -> float:
    """Return σ = √(ρ(B/b - 1)), the strength at which noise of variance c = C/B imitates batches of b rows.

    C/B + (B/b - 1)·C/B = C/b. `virtual_batch` 0 stands for an eighth of the batch, at least one row; b ≥ B gives 0.

    >>> virtual(1024, 128, 0.25) == virtual(1024, 0, 0.25) == 1.75**0.5
    True
    >>> virtual(1, 0, 1.0)
    0.0
    """
    ratio = batch / (virtual_batch or max(batch / 8, 1.0))
    return math.sqrt(rho * max(ratio - 1.0, 0.0))


def annealed(kind: str, step: int, steps: int, rest: float) -> float:
    """Return the factor (0 to 1) on σ at `step` of a run of `steps`; the last `rest` (share of the run) has none.

    `cosine` falls from 1 to 0 until the rest begins, `cut` stays 1 until then, `none` is always 1.
    """
    if kind == "none":
        return 1.0
    share = step / max((1.0 - rest) * steps, 1.0)
    if share >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * share)) if kind == "cosine" else 1.0


def planned(dose: Dose, step: int, batch: int, pace: Pace) -> float:
    """Return σ of a step once enough gradients are known: the factor on √(c + eps), with `sigma` in all sizings.

    `fixed`: sigma. `virtual`: sigma·√(ρ(B/b - 1)). `langevin`: sigma·√(2/lr), so that lr·σ = √(2·lr·T) with T = sigma².
    `relative`: sigma, meant as ‖noise‖/‖gradient‖ (`kick` rescales).
    """
    factor = {
        "fixed": 1.0,
        "relative": 1.0,
        "virtual": virtual(batch, dose.virtual_batch, dose.rho),
        "langevin": math.sqrt(2.0 / pace.lr) if pace.lr > 0 else 0.0,
    }[dose.sizing]
    return dose.sigma * factor * annealed(dose.anneal, step, pace.horizon, dose.rest)


def ready(dose: Dose, seen: Any) -> Any:
    """Return whether `warmup` gradients, and where the shape is a variance two, have been absorbed.

    A bool for a number, a 0-d tensor for a tensor.
    """
    return (seen > dose.warmup) & (seen > (dose.mode in ("central", "history")))


def strength(dose: Dose, seen: int, step: int, batch: int, pace: Pace) -> float:
    """Return the `planned` σ, and zero before the method is `ready`."""
    return planned(dose, step, batch, pace) if ready(dose, seen) else 0.0


def stillness(name: str, dose: Dose, seen: int, batch: int, at: Any) -> str:
    """Return why σ is zero for long, and what would raise it; empty where it is not. `name` is the method's.

    `seen` gradients have been absorbed of batches of `batch` rows; of `at`, step and rate are read.
    """
    if dose.sizing == "virtual" and virtual(batch, dose.virtual_batch, dose.rho) == 0.0:
        if dose.rho == 0.0:
            return f"{name}.rho is 0, so none of the missing variance is put back; raise it"
        rows = dose.virtual_batch or 1
        return (
            f"a batch of {batch:,} has no more rows than the {rows:,} that it should imitate; enlarge the batch, lower "
            f"{name}.virtual_batch, or set {name}.sizing to fixed"
        )
    if dose.mode == "halves" and batch < 2:
        return f"a batch of one row has no halves; set {name}.mode to central"
    if annealed(dose.anneal, at.step, at.rate.horizon, dose.rest) == 0.0:
        return f"the last {dose.rest:.0%} of the run is without; set {name}.anneal to none, or train longer"
    if dose.warmup - seen > PATIENCE:
        return f"it averages {dose.warmup:,} gradients before; lower {name}.warmup"
    return ""
