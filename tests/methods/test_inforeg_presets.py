"""InfoReg as it is set by default acts on ordinary runs, and its presets are what the authors' code does."""

import math

import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, read, resolved, validated
from modalscape.engine.errors import InputError
from modalscape.engine.methods.inforeg import fisher as maths
from modalscape.engine.methods.inforeg.method import InfoReg
from modalscape.engine.runtime.session import Training, deterministic
from tests.methods.several import training
from tests.test_defaults import of_old

PAPER = {"inforeg.plain": 2, "inforeg.smoothing": 1}


def ordinary(*methods, problem=None, data=None, **settings) -> Training:
    """A run with default settings."""
    return Training(
        validated(RunConfig(problem, data and str(data), methods, device="cpu", settings=settings), catalog())
    )


# --- the defaults


@pytest.mark.parametrize("source", ["digits_captions", "avdigits", "mfeat"])
def test_by_default_the_window_opens_and_theta_is_another_within_200_steps(source, request):
    deterministic()
    if source == "digits_captions":
        about = {"problem": source}
    else:
        about = {"data": request.getfixturevalue("real_data") / f"{source}.npz"}
    plain, on = ordinary(**about), ordinary("inforeg", **about)
    method, period = on.stack.methods["inforeg"], on.stack.methods["inforeg"].state["epoch"]
    while torch.equal(plain.state.theta, on.state.theta) and on.state.step < 200:
        plain.step(), on.step()
    assert not torch.equal(plain.state.theta, on.state.theta) and float(method.state["pulled"]) > 0
    while on.state.step < period:
        on.step()
    assert method.state["periods"] == 1 and method.state["ever"].tolist() == [1] * len(on.problem.modalities)
    assert on.idle() == {}


def test_the_papers_window_opens_for_a_modality_that_does_not_lead_where_the_default_one_acts_and_closes():
    """What the former defaults did on many runs: the traces fall from the first period on, and nothing is pulled."""
    deterministic()
    plain, paper = ordinary(problem="digits_captions"), ordinary("inforeg", problem="digits_captions", **PAPER)
    default = ordinary("inforeg", problem="digits_captions")
    for _ in range(200):
        plain.step(), paper.step(), default.step()
    assert (
        torch.equal(paper.state.theta, plain.state.theta) and "inforeg.smoothing to 10 from" in paper.idle()["inforeg"]
    )
    traces = paper.stack.methods["inforeg"].state["traces"][-paper.stack.methods["inforeg"].state["periods"] :]
    assert (traces[0] > 2 * traces[2:]).any(0).all()
    state = default.stack.methods["inforeg"].state
    opened = state["opened"][-state["periods"] :]
    assert opened[:5].all() and float(state["pulled"]) >= 5 * state["epoch"]


def test_a_run_of_an_older_version_keeps_the_papers_window(tmp_path):
    assert (InfoReg.Params().plain, InfoReg.Params().smoothing) == (0, 10)
    for number, name in ((1, "first"), (2, "second")):
        config = validated(read(of_old(tmp_path / name, methods=["inforeg"], defaults=number)), catalog())
        assert {key: resolved(config, catalog())[key] for key in PAPER} == PAPER
    chosen = read(of_old(tmp_path / "chosen", methods=["inforeg"], defaults=2, settings={"inforeg.smoothing": 10}))
    assert (chosen.settings["inforeg.smoothing"], chosen.settings["inforeg.plain"]) == (10, 2)


# --- the authors' code


def test_the_presets_are_the_papers_form_and_the_code_with_and_without_its_threshold():
    assert maths.PRESETS["paper"] == {} and "threshold" not in maths.PRESETS["released"]
    assert maths.PRESETS["november"] == maths.PRESETS["released"] | {"threshold": 0.05}
    for preset, threshold in (("paper", 0.3), ("released", 0.3), ("november", 0.05)):
        assert InfoReg(InfoReg.Params(preset=preset, threshold=0.3, smoothing=3))._form().threshold == threshold


def test_novembers_pull_is_that_of_the_code_written_down_again():
    """c·exp(tanh gap)·(w - w⁰), c = 0.95 for the gate and 0.1 for the other, on sums over the batch of slices' scores.

    Traces are Σ_l mean(g_l²) of the gradient with the pull in it, k that of ten-period means with zeros before them.
    """
    run = training("inforeg", unimodal="slices", inforeg__preset="november", inforeg__period=5, inforeg__threshold=1.0)
    names, layout = run.problem.modalities, run.problem.layout
    method = run.stack.methods["inforeg"]
    begun, table, sums, pulls, closed = run.state.theta, [], [0.0, 0.0], set(), 0
    for step in range(150):
        theta = run.state.theta
        view = run.step()
        score = [float(view.logits[m].softmax(-1)[range(len(view.batch)), view.batch.y].sum()) for m in names]
        lead = 0 if score[0] > score[1] else 1
        totals = [sum(row[i] for row in table) for i in (0, 1)]
        gate = totals.index(max(totals))
        means = [sum(([0.0] * 12 + [row[gate] for row in table])[-10 - back :][:10]) / 10 for back in (0, 1)]
        k = (means[0] - means[1]) / means[0] if table else 1.0
        wanted = view.raw_grads[0].clone()
        if k > 0.05:
            where = layout.slices[names[lead]]
            c = 0.95 if lead == gate else 0.1
            wanted[where] += c * math.exp(math.tanh(abs(score[0] - score[1]))) * (theta - begun)[where]
            pulls.add((lead, gate))
        closed += k <= 0.05
        torch.testing.assert_close(view.grads[0], wanted, rtol=1e-9, atol=1e-12)
        blocks = layout.blocks(view.grads.sum(0))
        for i, m in enumerate(names):
            weights = [b for name, b in blocks.items() if name.startswith(f"encoders.{m}.") and b.dim() > 1]
            sums[i] += sum(float(block.square().mean()) for block in weights) / 5
        if step % 5 == 4:
            table, sums, begun = [*table, sums], [0.0, 0.0], run.state.theta
    assert {lead for lead, _ in pulls} == {0, 1} and closed > 20
    found = method.state["traces"][-len(table) :]
    torch.testing.assert_close(found, torch.tensor(table, dtype=torch.float64), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("modalities", [2, 3, 10])
def test_november_trains_with_any_number_of_modalities(modalities):
    run = training(
        "inforeg", modalities=modalities, unimodal="slices", inforeg__preset="november", inforeg__period=4, batch=32
    )
    for _ in range(9):
        view = run.step()
    state = run.stack.methods["inforeg"].state
    assert torch.isfinite(run.state.theta).all() and float(state["pulled"]) > 0
    assert sorted(state["factor"].tolist()) == pytest.approx([0.1] * (modalities - 1) + [0.95])
    assert len(list(run.stack.methods["inforeg"].report(view))) > 10


@pytest.mark.parametrize("unimodal", ["heads", "none"])
def test_november_is_refused_where_the_logits_of_modalities_are_not_slices(unimodal):
    with pytest.raises(InputError, match="needs unimodal to be slices, not .* where inforeg.preset is 'november'"):
        training("inforeg", unimodal=unimodal, inforeg__preset="november")
    run = training("inforeg", unimodal=unimodal)
    with pytest.raises(InputError, match="november is for runs with unimodal=slices; choose preset released here"):
        run.tune("inforeg", "preset", "november")
    run.tune("inforeg", "preset", "released")


def test_slices_add_up_to_the_fused_logits_and_heads_do_not():
    fused = torch.tensor([[1.0, 2.0]])
    part = {"a": torch.tensor([[0.25, 3.0]]), "b": torch.tensor([[0.75, -1.0]])}
    assert maths.sliced(part | {"fused": fused}, ("a", "b"))
    assert not maths.sliced(part | {"fused": fused + 0.1}, ("a", "b"))
    assert not maths.sliced({"fused": fused, "a": fused}, ("a", "b"))
