"""The documents say what catalogue and results say, and point at files that are there."""

import re

import pytest

from modalscape import documentation
from modalscape.documentation import ROOT
from modalscape.engine.runtime import claim_tables

DOCUMENTS = [*sorted(ROOT.glob("[A-Z]*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tables_are_fresh():
    stale = [page.name for page, text in documentation.filled().items() if text != page.read_text()]
    assert not stale, "run `make docs`"


def test_a_table_without_a_place_is_an_error(monkeypatch):
    monkeypatch.setattr(documentation, "PAGES", documentation.PAGES[:1])
    with pytest.raises(ValueError, match="0 places"):
        documentation.filled()


def test_every_result_is_of_a_lesson_as_it_is_and_names_its_seeds():
    for found in claim_tables.results(ROOT / "docs/claims"):
        lesson, (first, last) = claim_tables.lesson_of(found), found["seeds"]
        assert list(found["arms"]) == list(lesson.arms) and found["claim"] == lesson.claim
        assert set(found["further"]) == set(lesson.further)
        assert {arm["n"] for arm in found["arms"].values()} == {last - first + 1} == {10}


def test_the_readme_can_be_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        assert to.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", to.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}"
