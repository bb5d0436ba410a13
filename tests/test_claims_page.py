"""The pages of claims say what the kept results say."""

from tests import claims


def test_the_tables_are_made_from_the_results():
    assert claims.README.read_text() == claims.readme(), "run `python -m tests.claims`"
    assert claims.PAGE.read_text() == claims.page(), "run `python -m tests.claims`"


def test_every_result_is_of_a_lesson_as_it_is_and_names_its_seeds():
    for found in claims.results():
        lesson, (first, last) = claims.lesson_of(found), found["seeds"]
        assert list(found["arms"]) == list(lesson.arms) and found["claim"] == lesson.claim
        assert set(found["further"]) == set(lesson.further)
        assert {arm["n"] for arm in found["arms"].values()} == {last - first + 1} == {10}
