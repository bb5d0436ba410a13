"""Responses and single logits against their definitions."""

from itertools import permutations

import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities.unimodal import alone, comparable, fused_by, responses
from tests import tiny
from tests.methods.several import training

WIDTH, CLASSES, B = 4, 3, 5


def parts(count):
    draw = torch.Generator().manual_seed(count)
    number = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    names = [f"m{i}" for i in range(count)]
    present = {n: number(B, WIDTH) for n in names}
    absent = {n: number(1, WIDTH) for n in names}
    weight, mixed = number(count * WIDTH, 7), number(7, CLASSES)
    return present, absent, lambda h: torch.tanh(torch.cat([h[n] for n in names], -1) @ weight) @ mixed


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_responses_sum_to_the_fused_logits(count):
    present, absent, fused = parts(count)
    torch.testing.assert_close(sum(responses(present, absent, fused).values()), fused(present))


def test_two_responses_are_the_papers():
    present, absent, fused = parts(2)
    lack = {n: {**present, n: absent[n].expand(B, WIDTH)} for n in present}
    found = responses(present, absent, fused)
    for n, other in (("m0", "m1"), ("m1", "m0")):
        torch.testing.assert_close(found[n], 0.5 * (fused(present) - fused(lack[n]) + fused(lack[other])))


def test_responses_are_mean_contributions_over_all_orders():
    present, absent, fused = parts(3)
    found = {n: torch.zeros(B, CLASSES, dtype=torch.float64) for n in present}
    for order in permutations(present):
        here, value = {n: a.expand(B, WIDTH) for n, a in absent.items()}, 0.0
        for n in order:
            here = {**here, n: present[n]}
            found[n] += (fused(here) - value) / 6
            value = fused(here)
    for n, r in responses(present, absent, fused).items():
        torch.testing.assert_close(r, found[n])


def test_slices_of_a_linear_head_sum_to_its_logits():
    case = training(unimodal="slices", modalities=3)
    logits = case.step().logits
    torch.testing.assert_close(sum(logits[n] for n in case.problem.modalities), logits["fused"])


def test_several_batches_below_each_other_pass_as_one():
    problem = tiny.problem()
    theta, batch = problem.init(), problem.batch(0)
    features = problem.encode(theta, batch)
    fused = fused_by(problem.objectives, theta, batch)
    twice = fused({n: torch.cat([h, 2 * h]) for n, h in features.items()})
    torch.testing.assert_close(twice[:16], fused(features))
    torch.testing.assert_close(twice[16:], fused({n: 2 * h for n, h in features.items()}))


def test_alone_has_no_graph_and_zeroes_the_others():
    present, _, fused = parts(3)
    present = {n: h.requires_grad_() for n, h in present.items()}
    for n, z in alone(list(present), {}, present, fused).items():
        assert not z.requires_grad
        torch.testing.assert_close(z, fused({m: h if m == n else 0 * h for m, h in present.items()}).detach())


def test_what_cannot_be_compared_is_refused_with_a_sentence():
    y, logits = torch.tensor([0]), {"fused": torch.zeros(1, 2)}
    with pytest.raises(InputError, match="OPM compares class probabilities, but this problem has no classes"):
        comparable("OPM", ("a", "b"), y.double(), logits)
    with pytest.raises(InputError, match="OPM balances modalities, but this problem has only 'a'"):
        comparable("OPM", ("a",), y, logits)
    comparable("OPM", ("a", "b"), y, logits)
