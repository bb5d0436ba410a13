"""What a spectrum holds in memory: little beside its basis, and no more where there are more rows."""

import pytest
import torch

from modalscape.engine.maths.curvature.hessian_spectrum import Products, spectrum
from tests.bench.growth import held, peak
from tests.bench.mid import mid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(held("VmHWM") != held("VmHWM"), reason="this system does not tell its peak memory"),
]
MB = 2**20


def test_a_spectrum_of_fifty_thousand_parameters_takes_no_more_than_128_megabytes():
    case = mid(2000, rest=float("inf"))
    spectrum(case.loss(case.x[:64], case.y[:64]), case.theta, 1, 2, 1)
    _, extra = peak(lambda: spectrum(case.loss(), case.theta, 5, 40, 8, parts=case.layout.slices))
    assert 40 * len(case.theta) * 4 < extra <= 128 * MB


def test_chunks_that_are_not_kept_take_no_memory_for_more_rows():
    case, found = mid(12_000, rest=float("inf")), {}
    v = torch.ones_like(case.theta)
    for rows in (3_000, 12_000):
        pieces = [slice(i, i + 1000) for i in range(0, rows, 1000)]
        loss = [(case.loss(case.x[p], case.y[p]), 1000 / rows) for p in pieces]
        product = Products(loss, case.theta, kept=0)
        found[rows] = peak(lambda product=product: product(v))[1]
    assert found[12_000] < found[3_000] + 16 * MB
    one = [(case.loss(), 1.0)]
    assert peak(lambda: Products(one, case.theta, kept=0)(v))[1] > found[12_000] + 32 * MB, "chunks are what bounds it"
