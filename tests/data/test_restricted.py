"""Training on some of the modalities: the same rows, labels and split, for any data set and any objective."""

import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.probe import Probe
from modalscape.engine.errors import InputError
from modalscape.engine.registry import discover
from modalscape.engine.runtime.session import Training
from tests.methods.several import SMALL, data_file

NAMES = {"digits_captions": ("image", "text"), "planted": ("vision", "audio"), "file": ("image", "text")}


def training(problem, tmp_path, modalities="", **settings):
    source = {"data": data_file(tmp_path)} if problem == "file" else {"problem": problem}
    settings = SMALL | settings | {"modalities": modalities}
    return Training(validated(RunConfig(**source, device="cpu", settings=settings), catalog()))


@pytest.mark.parametrize("problem", NAMES)
@pytest.mark.parametrize("settings", [{}, {"unimodal": "heads"}, {"unimodal": "slices"}, {"fusion": "gated"}])
def test_a_run_on_one_modality_has_the_same_rows_and_nothing_of_the_other(problem, settings, tmp_path):
    whole, (first, second) = training(problem, tmp_path, **settings), NAMES[problem]
    for name in (first, second):
        alone = training(problem, tmp_path, f" {name} ", **settings)
        assert alone.problem.modalities == (name,)
        for part, rows in whole.problem.rows.items():
            assert set(alone.problem.rows[part].x) == {name}
            assert torch.equal(alone.problem.rows[part].x[name], rows.x[name])
            assert torch.equal(alone.problem.rows[part].y, rows.y)
        assert torch.equal(alone.problem.batch(3).y, whole.problem.batch(3).y), "the same batches in the same order"
        for _ in range(3):
            alone.step()
        assert "accuracy/val" in alone.problem.evaluate(alone.state.theta)


def test_noise_on_a_modality_that_is_left_out_changes_nothing(tmp_path):
    noisy, clean = (training("file", tmp_path, "text", corrupt=noise) for noise in ("image=2.0", ""))
    assert torch.equal(noisy.problem.rows["train"].x["text"], clean.problem.rows["train"].x["text"])


@pytest.mark.parametrize("asked", ["text,image", "image,text", "image, text,"])
def test_all_modalities_in_any_order_are_the_whole_data_set(asked, tmp_path):
    whole, named = training("file", tmp_path), training("file", tmp_path, asked)
    assert named.problem.modalities == whole.problem.modalities
    assert torch.equal(named.problem.init(), whole.problem.init())


def test_an_unknown_modality_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="modalities names 'txt', which data does not have; did you mean text"):
        training("file", tmp_path, "txt")
    with pytest.raises(InputError, match="'sonar', which data does not have; known are image, text."):
        training("file", tmp_path, "image,sonar")


@pytest.mark.parametrize("name", sorted(discover("modalscape.engine.probes", Probe)))
def test_every_probe_measures_one_modality_or_refuses_in_a_sentence(name, tmp_path):
    alone = training("file", tmp_path, "image", unimodal="heads", probe_rows=16)
    for _ in range(2):
        alone.step()
    try:
        found = [record for record in alone.probe(name).measure(alone.snapshot()) if record is not None]
        assert found
    except InputError as refusal:
        assert str(refusal).endswith(".") and "\n" not in str(refusal) and 20 < len(str(refusal)) < 200
