"""The spectra probe against plain decompositions of the features and weights, with methods on and off."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalscape.engine.core.method import Stack
from modalscape.engine.core.step import View
from modalscape.engine.errors import InputError
from modalscape.engine.maths.features import singular_values as maths
from modalscape.engine.maths.features.feature_noise import edge, threshold
from modalscape.engine.methods.fanoise.method import FaNoise
from modalscape.engine.methods.moddrop import ModDrop
from modalscape.engine.probes.spectra import Spectra
from tests.probes.snapshots import measured, snapshot
from tests.tiny import problem


def features(snap) -> dict[str, torch.Tensor]:
    return snap.problem.encode(snap.theta, snap.problem.probe_batch())


def values(x: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(x.numpy(), compute_uv=False)


def noisy(*methods, micro: int = 0, **settings):
    """A snapshot with methods at the features, and the features as they change them."""
    snap = snapshot(problem(heads=True, micro=micro))
    snap = replace(snap, stack=Stack(methods or [FaNoise(FaNoise.Params(**{"alpha": 0.5} | settings))]))
    pieces = snap.problem.probe_batch().chunks(micro)
    changed = []
    for i, piece in enumerate(pieces):
        rng = snap.rng.within("spectra").within(f"piece{i}")
        clean = snap.problem.encode(snap.theta, piece)
        view = View(snap.step, snap.theta, piece, snap.problem, rng, clean_features=clean)
        changed.append(snap.stack.chain("features", clean, view))
    return snap, {m: torch.cat([c[m] for c in changed]) for m in changed[0]}


def test_features_have_the_singular_values_of_a_plain_decomposition():
    snap = snapshot()
    records = measured(Spectra(), snap)
    for m, h in features(snap).items():
        assert records[f"spectra/{m}/singular"].y == pytest.approx(values(h), rel=1e-9)
        assert records[f"spectra/{m}/centred/singular"].y == pytest.approx(values(h - h.mean(0)), rel=1e-9)
        assert records[f"spectra/{m}/sigma_1"].value == pytest.approx(values(h)[0])
        share = values(h) ** 2 / (values(h) ** 2).sum()
        rank = np.exp(-(share * np.log(share)).sum())
        assert records[f"spectra/{m}/effective_rank"].value == pytest.approx(rank)
        assert records[f"spectra/{m}/stable_rank"].value == pytest.approx(1 / share[0])
        # An i.i.d. matrix of 32 rows and 4 features has this energy too.
        assert (records[f"spectra/{m}/random"].y ** 2).sum() == pytest.approx((values(h) ** 2).sum(), rel=0.03)
    assert not any("changed" in name or "noise" in name for name in records)


def test_unit_rows_are_measured_on_request():
    snap = snapshot()
    records = measured(Spectra(Spectra.Params(unit=True, centre="no")), snap)
    h = features(snap)["image"]
    expected = values(h / h.norm(dim=1, keepdim=True))
    assert records["spectra/image/singular"].y == pytest.approx(expected, rel=1e-6)
    assert not any("centred" in name for name in records)


@pytest.mark.parametrize("micro", [0, 10])
def test_changed_features_are_those_of_the_stack_piece_by_piece(micro):
    snap, changed = noisy(micro=micro)
    records = measured(Spectra(), snap)
    for m, h in features(snap).items():
        assert records[f"spectra/{m}/changed/singular"].y == pytest.approx(values(changed[m]), rel=1e-9)
        own = values(changed[m] - h)
        assert records[f"spectra/{m}/noise"].y == pytest.approx(own, rel=1e-7, abs=1e-9)
        assert "FANoise" in records[f"spectra/{m}/changed/singular"].mode


def test_edges_are_those_of_the_measured_noise_level():
    snap, changed = noisy()
    records = measured(Spectra(), snap)
    for m, h in features(snap).items():
        added = (changed[m] - h).numpy()
        delta = np.sqrt((added**2).mean())
        assert records[f"spectra/{m}/noise_level"].value == pytest.approx(delta)
        assert records[f"spectra/{m}/edge"].value == pytest.approx(edge(delta, 32, 4))
        limits = records[f"spectra/{m}/changed/singular"].display.limits
        assert limits["threshold"] == pytest.approx(threshold(delta, 32, 4))
        hidden = (values(h) < threshold(delta, 32, 4)).mean()
        assert records[f"spectra/{m}/hidden"].value == hidden
        added = added - added.mean(0)
        centred = records[f"spectra/{m}/centred/noise_level"].value
        assert centred == pytest.approx(np.sqrt((added**2).sum() / (31 * 4)))


@pytest.mark.parametrize("middle", ["", "/centred"])
def test_noise_without_shape_is_drawn_for_comparison(middle):
    snap, changed = noisy()
    records = measured(Spectra(Spectra.Params(draws=3)), snap)
    h, base = features(snap)["image"], f"spectra/image{middle}"
    delta, found = records[f"{base}/noise_level"].value, []
    for i in range(3):
        x = (h + delta * snap.rng.normal(f"{base}/{i}", snap.step, h)).numpy()
        found.append(values(torch.from_numpy(x - x.mean(0) if middle else x)))
    instead = records[f"{base}/instead"]
    assert instead.y == pytest.approx(np.mean(found, 0))
    assert instead.error == pytest.approx(np.std(found, 0, ddof=1) / 3**0.5)
    assert "3 draws" in instead.mode


def test_snr_and_expectation_come_from_the_change_along_each_clean_direction():
    snap, changed = noisy()
    records, h = measured(Spectra(), snap), features(snap)["text"]
    _, sigma, vectors = np.linalg.svd(h.numpy(), full_matrices=False)
    along = (((changed["text"] - h).numpy() @ vectors.T) ** 2).sum(0)
    assert records["spectra/text/expected"].y == pytest.approx(np.sqrt(sigma**2 + along))
    assert records["spectra/text/snr"].x == pytest.approx(sigma)
    assert records["spectra/text/snr"].y == pytest.approx(sigma**2 / along)
    after = np.linalg.svd(changed["text"].numpy(), full_matrices=False)[2]
    expected = [((vectors[:k] @ after[:k].T) ** 2).sum() / k for k in range(1, 5)]
    assert records["spectra/text/kept"].y == pytest.approx(expected)
    assert records["spectra/text/kept"].y[-1] == pytest.approx(1)
    assert records["spectra/text/kept_by_chance"].y == pytest.approx([0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("scaling, slope", [("linear", 0.0), ("sublinear", 1.0), ("uniform", 2.0)])
def test_the_slope_of_snr_tells_the_shapes_of_noise_apart(scaling, slope):
    snap, _ = noisy(scaling=scaling, order="before")
    record = measured(Spectra(), snap)["spectra/image/snr_slope"]
    assert record.value == pytest.approx(slope, abs=4 * record.error + 0.3)


def test_a_method_that_changes_nothing_leaves_no_record_of_a_change():
    snap = snapshot()
    for method in (FaNoise(FaNoise.Params(alpha=0.0)), ModDrop(ModDrop.Params(p=0.0))):
        records = measured(Spectra(), replace(snap, stack=Stack([method])))
        assert not any("changed" in name for name in records)
    one_side = replace(snap, stack=Stack([FaNoise(FaNoise.Params(side="text"))]))
    records = measured(Spectra(), one_side)
    assert "spectra/text/changed/singular" in records and "spectra/image/changed/singular" not in records


def test_several_methods_are_named_in_their_order():
    snap, changed = noisy(ModDrop(ModDrop.Params(fill="zero")), FaNoise())
    record = measured(Spectra(), snap)["spectra/image/changed/singular"]
    assert "FANoise and ModDrop" in record.mode and record.y == pytest.approx(values(changed["image"]), rel=1e-9)


class Fixed:
    """A problem whose features are given; the rest is the tiny problem's."""

    def __init__(self, features):
        self._case, self._features = problem(heads=True), features
        self.encoders, self.trunk = self._case.encoders, self._case.trunk

    def __getattr__(self, name):
        return getattr(self._case, name)

    def encode(self, theta, batch):
        return {m: h[: len(batch)] for m, h in self._features.items()}

    def objectives(self, theta, features, batch):
        return {"fused": sum(h.sum() for h in features.values())}, {}


def fixed(**given):
    return replace(snapshot(), problem=Fixed(given))


def test_a_dead_modality_has_a_spectrum_of_zeros():
    alive = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    records = measured(Spectra(), fixed(image=torch.zeros(32, 4, dtype=torch.float64), text=alive))
    assert not records["spectra/image/singular"].y.any() and records["spectra/image/effective_rank"].value == 0
    assert "spectra/image/condition" not in records and "spectra/canonical/image-text" not in records
    assert records["spectra/text/rank"].value == 4


@pytest.mark.parametrize("rows, width", [(1, 4), (3, 4), (32, 1)])
def test_few_rows_and_few_features_are_measured(rows, width):
    draw = torch.Generator().manual_seed(0)
    snap = fixed(**{m: torch.randn(32, width, dtype=torch.float64, generator=draw) for m in ("image", "text")})
    short = snap.problem._case.probe_batch().rows(slice(0, rows))
    snap.problem.probe_batch = lambda: short
    snap = replace(snap, stack=Stack([FaNoise()]))
    records = measured(Spectra(), snap)
    assert len(records["spectra/image/singular"].y) == min(rows, width) and records["spectra/image/singular"].n == rows
    assert ("spectra/image/centred/singular" in records) == (rows > 1)
    assert all(np.isfinite(getattr(r, f)).all() for r in records.values() for f in ("value", "y") if hasattr(r, f))


def test_features_that_are_not_finite_are_named():
    bad = torch.full((32, 4), torch.nan, dtype=torch.float64)
    with pytest.raises(InputError, match="features of text are not finite"):
        list(Spectra().measure(fixed(image=torch.ones(32, 4, dtype=torch.float64), text=bad)))


def test_identical_modalities_have_no_gap_and_correlate_fully():
    h = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    records = measured(Spectra(), fixed(image=h, text=h))
    assert records["spectra/gap/image-text"].value == pytest.approx(0)
    assert records["spectra/alignment/image-text"].value == pytest.approx(0)
    assert records["spectra/cosine/pairs/image-text"].value == pytest.approx(1)
    assert records["spectra/canonical/image-text"].y == pytest.approx(1)
    assert records["spectra/shared/image-text"].value == 4
    apart = measured(Spectra(), fixed(image=h.abs(), text=-h.abs()))
    unit = (h / h.norm(dim=1, keepdim=True)).abs()
    assert apart["spectra/gap/image-text"].value == pytest.approx(2 * float(unit.mean(0).norm()))
    assert "no loss compares" in records["spectra/gap/image-text"].mode


def test_features_of_different_widths_are_compared_by_correlations_alone():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(32, 4, dtype=torch.float64, generator=draw)
    records = measured(Spectra(), fixed(image=h, text=h[:, :3]))
    assert "spectra/gap/image-text" not in records
    assert records["spectra/canonical/image-text"].y == pytest.approx([1, 1, 1])


def test_weights_have_the_singular_values_of_their_matrices():
    snap = snapshot()
    records = measured(Spectra(), snap)
    named = snap.problem.layout.unpack(snap.theta)
    for path, name in {"image/0": "encoders.image.0.weight", "shared/fused": "trunk.fused.weight"}.items():
        w = named[name]
        curve = records[f"spectra/weights/{path}"]
        assert curve.y == pytest.approx(values(w)) and name in curve.mode
        deviation = float(w.std(correction=0))
        assert curve.display.limits == {"edge of i.i.d.": pytest.approx(edge(deviation, *w.shape))}
        found = (values(w) ** 2).sum() / values(w)[0] ** 2
        assert records[f"spectra/weights_stable_rank/{path}"].value == pytest.approx(found)
        expected = deviation * maths.random_values(*w.shape)
        assert records[f"spectra/weights_random/{path}"].y == pytest.approx(expected.numpy())
    assert sum(name.startswith("spectra/weights/") for name in records) == sum(w.dim() == 2 for w in named.values())
    some = measured(Spectra(Spectra.Params(widest=3)), snap)
    narrow = {n for n in records if n.startswith("spectra/weights/") and len(records[n].x) <= 3}
    assert 0 < len(narrow) < 7 and {n for n in some if n.startswith("spectra/weights/")} == narrow
    assert not any("weights" in name for name in measured(Spectra(Spectra.Params(weights=False)), snap))


def test_records_say_rows_mode_and_seconds():
    snap, _ = noisy()
    for name, record in measured(Spectra(), snap).items():
        assert record.mode and record.seconds is not None and record.n == (None if "/weights" in name else 32), name
