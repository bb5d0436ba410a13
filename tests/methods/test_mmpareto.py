"""MMPareto sums where gradients agree, and takes the shortest vector between them where they do not."""

import pytest
import torch

from modalscape.engine.core.method import Method, MethodConflict, Stack
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities.unimodal import places
from modalscape.engine.methods.mmpareto import MMPareto, lengthened, shortest, weight
from tests import tiny
from tests.methods.several import training


def pair(seed, n=30, conflict=True):
    draw = torch.Generator().manual_seed(seed)
    g, u = torch.randn(2, n, generator=draw, dtype=torch.float64) * torch.tensor([[1.0], [3.0]])
    return (g, u if (g @ u < 0) == conflict else -u)


def at(problem, params=None, rows=None):
    """The method, and the view of the first step, with other gradient rows if given."""
    _, (view,), stack = tiny.train(problem, [MMPareto(params)], 1)
    if rows is not None:
        view = view.having(grads=rows, raw_grads=rows)
    return stack.methods["mmpareto"], view


def drawn(problem, seed=0, count=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, problem.layout.size, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_the_interior_solution_agrees_with_both_gradients_alike(seed):
    g, u = pair(seed)
    c = weight(g, u, 0.001)
    assert 0.001 < c < 0.999
    v = c * g + (1 - c) * u
    torch.testing.assert_close(v @ g, v @ v)
    torch.testing.assert_close(v @ u, v @ v)
    assert v @ v > 0


@pytest.mark.parametrize("conflict", [False, True])
def test_no_weight_gives_a_shorter_vector(conflict):
    g, u = pair(3, conflict=conflict)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    lengths = (grid[:, None] * g + (1 - grid)[:, None] * u).norm(dim=1)
    assert float(shortest(g, u)) == pytest.approx(float(grid[lengths.argmin()]), abs=5e-4)


def test_agreeing_gradients_weigh_the_same_and_lone_ones_keep_the_floor():
    g, u = pair(0, conflict=False)
    assert weight(g, u, 0.001) == 0.5
    g, u = pair(0)
    assert float(weight(g, 1e-6 * u, 0.001)) == 0.001
    assert float(weight(1e-6 * g, u, 0.001)) == 0.999
    assert float(weight(g, -g, 0.001)) == pytest.approx(0.5)
    assert torch.isfinite(weight(0 * g, 0 * g, 0.001))


def test_without_conflict_encoders_get_exactly_one_and_a_half_of_the_plain_sum():
    problem = tiny.problem(heads=True)
    rows = drawn(problem)
    for row, name in enumerate(tiny.WIDTHS, 1):
        for where in places(problem.layout, name):
            rows[row, where] = 0.7 * rows[0, where]
            rows[3 - row, where] = 0.0
    method, view = at(problem, rows=rows)
    found, plain = method.fuse(rows, view), rows.sum(0)
    inside = torch.zeros(problem.layout.size, dtype=torch.bool)
    for name in tiny.WIDTHS:
        for where in places(problem.layout, name):
            inside[where] = True
    assert torch.equal(found[inside], 1.5 * plain[inside])
    assert torch.equal(found[~inside], plain[~inside])
    assert inside.any() and (~inside).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_step_equals_loops_over_encoders_and_tensors(seed):
    problem = tiny.problem(heads=True)
    rows = drawn(problem, seed, count=4)
    method, view = at(problem, rows=rows)
    view = view.having(losses=view.losses | {"reg/other": torch.zeros(())})
    blocks = [problem.layout.unpack(row) for row in rows]
    expected = {name: sum(b[name] for b in blocks) for name in blocks[0]}
    for row, modality in enumerate(tiny.WIDTHS, 1):
        names = [n for n in expected if n.startswith(f"encoders.{modality}.")]
        dot = sum((blocks[0][n] * blocks[row][n]).sum() for n in names)
        own = sum((blocks[row][n] ** 2).sum() for n in names)
        gap = sum(((blocks[row][n] - blocks[0][n]) ** 2).sum() for n in names)
        c = 0.5 if dot > 0 else min(max(float((own - dot) / gap), 0.001), 0.999)
        for n in names:
            h = 2 * c * blocks[0][n] + 2 * (1 - c) * blocks[row][n]
            plain = blocks[0][n] + blocks[row][n]
            h = 1.5 * h * max(1.0, float(plain.norm() / h.norm()))
            expected[n] = h + blocks[3 - row][n] + blocks[3][n]
    torch.testing.assert_close(method.fuse(rows, view), problem.layout.pack(expected), rtol=0, atol=1e-12)


def test_these_rows_conflict_in_some_encoders_and_agree_in_others():
    problem = tiny.problem(heads=True)
    where = {name: places(problem.layout, name) for name in tiny.WIDTHS}
    seen = set()
    for seed in range(4):
        rows = drawn(problem, seed, count=4)
        for row, name in enumerate(tiny.WIDTHS, 1):
            seen.add(bool(sum(rows[0, w] @ rows[row, w] for w in where[name]) > 0))
    assert seen == {True, False}


def test_no_tensor_is_shorter_than_gamma_times_the_plain_sum_and_zero_stays_zero():
    g, u = pair(1, 12)
    h, plain = [0.1 * g[:4], 9 * g[4:8], 0 * g[8:]], [(g + u)[:4], (g + u)[4:8], (g + u)[8:]]
    found = lengthened(h, plain, 1.5)
    assert float(found[0].norm()) == pytest.approx(1.5 * float(plain[0].norm()))
    torch.testing.assert_close(found[1], 1.5 * h[1])
    assert found[2].abs().max() == 0


def test_opposite_gradients_stand_still():
    problem = tiny.problem(heads=True)
    rows = drawn(problem)
    rows[1] = rows[2] = -rows[0]
    method, view = at(problem, rows=rows)
    for name, row in (("image", 2), ("text", 1)):
        for where in places(problem.layout, name):
            torch.testing.assert_close(method.fuse(rows, view)[where], rows[row, where], rtol=0, atol=1e-14)


def test_without_the_pareto_step_the_sum_is_only_lengthened():
    problem = tiny.problem(heads=True)
    rows = drawn(problem)
    method, view = at(problem, MMPareto.Params(gamma=2.0, pareto=False), rows)
    slices = [w for name in tiny.WIDTHS for w in places(problem.layout, name)]
    own = {w: row for row, name in enumerate(tiny.WIDTHS, 1) for w in map(str, places(problem.layout, name))}
    found = method.fuse(rows, view)
    for w in slices:
        row = own[str(w)]
        torch.testing.assert_close(found[w], 2.0 * (rows[0, w] + rows[row, w]) + rows[3 - row, w])


def test_regularisers_are_added_as_they_are():
    problem = tiny.problem(heads=True)
    rows = drawn(problem)
    method, view = at(problem, rows=rows)
    extra = torch.ones_like(rows[:1])
    more = method.fuse(torch.cat([rows, extra]), view.having(losses=view.losses | {"reg/other": torch.zeros(())}))
    torch.testing.assert_close(more, method.fuse(rows, view) + 1)


def test_without_unimodal_losses_it_is_refused_with_the_setting_to_change():
    with pytest.raises(InputError, match="a loss of its own for image, text; set unimodal=heads.$"):
        tiny.started(tiny.problem(heads=False), [MMPareto()])
    case = training()
    with pytest.raises(InputError, match="set unimodal=heads"):
        case.toggle("mmpareto", True)
    assert not case.stack.methods


@pytest.mark.parametrize("unimodal", ["heads", "slices"])
def test_heads_and_slices_serve(unimodal):
    case = training("mmpareto", unimodal=unimodal, modalities=3)
    names = {r.name for r in case.stack.methods["mmpareto"].report(case.step())}
    assert {f"mmpareto/cosine/{m}" for m in case.problem.modalities} <= names


def test_a_second_owner_of_fuse_is_refused():
    class Other(Method):
        name, title = "other", "Other"

        def fuse(self, grads, view):
            return grads.sum(0)

    with pytest.raises(MethodConflict, match="mmpareto and other both replace the gradient; turn one off."):
        Stack([MMPareto(), Other()])


def test_pieces_give_the_same_gradient():
    _, (whole,), _ = tiny.train(tiny.problem(heads=True), [MMPareto()], 1)
    _, (pieces,), _ = tiny.train(tiny.problem(heads=True, micro=5), [MMPareto()], 1)
    torch.testing.assert_close(pieces.grad, whole.grad)


def test_the_report_says_what_was_done():
    problem = tiny.problem(heads=True)
    method, view = at(problem)
    values = {r.name.removeprefix("mmpareto/"): r.value for r in method.report(view)}
    for row, name in enumerate(tiny.WIDTHS, 1):
        g, u = (torch.cat([view.grads[i, w] for w in places(problem.layout, name)]) for i in (0, row))
        assert values[f"cosine/{name}"] == pytest.approx(float(g @ u / g.norm() / u.norm()))
        assert values[f"conflict/{name}"] == float(g @ u <= 0)
        assert values[f"weight/{name}"] == pytest.approx(float(weight(g, u, 0.001)))
        assert values[f"length/{name}"] >= 1.5 - 1e-9
