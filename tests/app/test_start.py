"""The form of a new run: where each problem's data come from, and which losses a run has unless told otherwise."""

import pytest

from modalscape.app import catalog
from modalscape.engine.config import RunConfig, resolved, validated
from tests.app.test_pages import begins, opened, texts


@pytest.mark.parametrize(
    ("problem", "words"), [("emoji_names", "OpenMoji, the open-source emoji"), ("tumours", "UCI Machine Learning")]
)
def test_the_source_of_a_problem_stands_under_its_summary(problem, words):
    at = opened()
    at.selectbox(key="new-problem").set_value(problem).run()
    assert not at.exception and words in texts(at) and "CC BY" in texts(at)


def test_a_run_from_the_form_has_heads_and_one_under_infonce_has_none_without_an_error(monkeypatch):
    begun = begins(monkeypatch)
    at = opened()
    assert at.selectbox(key="new/digits_captions/unimodal").value == "heads"
    at.button(key="new-start").click().run()
    at.selectbox(key="new/digits_captions/objective").set_value("info_nce").run()
    assert not at.warning and not at.button(key="new-start").disabled
    at.button(key="new-start").click().run()
    found = [validated(RunConfig.from_json(config), catalog.load()) for config in begun]
    assert [resolved(config, catalog.load())["unimodal"] for config in found] == ["heads", "none"]
