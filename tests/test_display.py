"""What a record asks of whoever draws it: checked when it is made, kept as JSON, read from any version."""

import dataclasses

import pytest

from modalscape.engine.core.display import SHAPES, Display
from modalscape.engine.core.records import Scalar
from modalscape.engine.store.schema import said


def test_every_field_has_a_shape():
    assert {field.name for field in dataclasses.fields(Display)} == set(SHAPES)


@pytest.mark.parametrize(
    "wrong",
    [{"title": 5}, {"levels": "high"}, {"hue": -1}, {"spans": [[1.0]]}, {"place": "first"}, {"ylog": 1}],
    ids=str,
)
def test_a_value_of_another_shape_is_refused_where_it_is_made(wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Scalar("a", 1.0, display=Display(**wrong))


def test_a_wish_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="colour"):
        Display(colour="red")


def test_given_fields_go_before_those_of_the_first():
    both = Display(title="a", label="x", levels={"": 1.0}) | Display(label="", place=0)
    assert both == Display(title="a", label="", levels={"": 1.0}, place=0)


def test_what_is_empty_is_not_written_and_what_was_given_comes_back():
    assert Display().to_json() == {}
    shown = Display(y="λ", spans=[], hue=0, checked_error=0, points=["a"])
    assert shown.to_json() == {"y": "λ", "spans": [], "hue": 0, "checked_error": 0, "points": ["a"]}
    assert Display.from_json(shown.to_json()) == shown


def test_what_another_version_wrote_beside_it_is_passed_over():
    about = '{"n": 3, "mode": "m", "seconds": 1.0, "draw": {"y": "loss", "hologram": true, "title": null}}'
    assert said("a", about)["display"] == Display(y="loss")
