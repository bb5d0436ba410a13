"""What comes from files and people is shown as it was written, and nothing in it is rendered, linked or fetched."""

import json

import plotly.graph_objects as go
import pytest

from modalscape.app.runs.status import folder, standing
from modalscape.app.server.routes import Desk
from modalscape.app.text import harmless, literal
from modalscape.engine.store.schema import Unreadable
from tests import poison
from tests.app.test_pages import OF_A_RUN, PAGES, mounted, opened

RUN = "poisoned-run"
MARKDOWN = ("body", "label", "help", "text", "content", "caption")
"""Fields of Streamlit's messages in which it renders Markdown."""
PLAIN = ("bidi_component", "code", "json", "arrow_data_frame", "plotly_chart", "imgs", "html", "logo")
"""Elements that render none."""


def fields(message, name=""):
    """Yield (path, text) of every text in a message of Streamlit's that may be Markdown."""
    for field, value in message.ListFields():
        for one in value if hasattr(value, "add") or isinstance(value, list | tuple) else [value]:
            if isinstance(one, str) and field.name in MARKDOWN:
                yield f"{name}.{field.name}", one
            elif hasattr(one, "ListFields"):
                yield from fields(one, f"{name}.{field.name}")


def nodes(block):
    for node in getattr(block, "children", {}).values():
        yield node
        yield from nodes(node)


def markdown(at):
    """Return (where, text) of all that a page would render as Markdown."""
    found = []
    for node in nodes(at._tree):
        if getattr(node, "proto", None) is not None and node.type not in PLAIN:
            found += fields(node.proto, node.type)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    there = tmp_path_factory.mktemp("poisoned")
    poison.write_poisoned(there / RUN, there)
    return there


@pytest.fixture
def home(trained, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_RUNS", str(trained))
    monkeypatch.setenv("MODALSCAPE_FILES", str(trained))
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")
    return folder() / RUN


@pytest.mark.parametrize("text", [*poison.TEXTS, *poison.MODALITIES, poison.EVENT])
def test_no_sign_of_markdown_is_left_without_its_escape(text):
    made = literal(text)
    assert made.replace("\u2060", "").replace("\\", "") == " ".join(text.split()).replace("\\", "")
    bare = made.replace("\\\\", "")
    for sign in "`*_[]<>$|~&":
        assert bare.count(sign) == bare.count(f"\\{sign}"), (sign, made)
    assert "://" not in made and "www." not in made and ":material" not in made and ":smile:" not in made


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "* a", "1. a", "2) a", "> a", "=== a", "---", "    a", "\t- a"])
def test_a_text_that_would_begin_a_block_does_not(text):
    assert literal(f"{text}\n\n{text}")[0] in "\\a"[: 2 if text.strip() == "a" else 1] or literal(text)[1] == "\\"


@pytest.mark.parametrize("text", ["digits · 27 Nov 12:30:59", "a loss of -1.5, at 3e-4", "x (n = 5): 10 %", "1.5 s"])
def test_plain_words_stay_untouched(text):
    assert literal(text) == text


@pytest.mark.parametrize("page", PAGES)
def test_no_page_renders_what_a_file_or_a_person_wrote(home, page):
    at = opened(page, RUN)
    assert not at.exception
    found = markdown(at)
    assert found
    for where, text in found:
        for written in (*poison.TEXTS, *poison.MODALITIES):
            assert written not in text, (where, text)


def test_a_long_note_of_several_lines_is_left_as_it_is_and_a_change_is_kept(home):
    before = (home / "note.txt").read_text()
    at = opened(PAGES[0], RUN)
    assert (home / "note.txt").read_text() == before
    try:
        next(t for t in at.text_input if t.key.startswith(f"note-{RUN}=")).set_value("mine").run()
        assert not at.exception and (home / "note.txt").read_text() == "mine"
    finally:
        (home / "note.txt").write_text(before)


def test_a_run_that_cannot_be_read_does_not_tell_where_the_server_keeps_it(home, monkeypatch):
    def refuse(handle):
        raise Unreadable((handle.home / "run.db").absolute(), "Permission denied")

    monkeypatch.setattr("modalscape.engine.client.handle.RunHandle._status", refuse)
    now = standing(RUN, home)
    assert (now.state, str(home) in now.error) == ("unreadable", False) and "Permission denied" in now.error


def test_the_walk_sees_the_title_the_note_and_the_error(home):
    seen = {
        page: "\n".join(text for _, text in markdown(opened(page, RUN))) for page in (PAGES[0], PAGES[1], PAGES[-1])
    }
    assert literal(poison.NOTE)[:80] in seen[PAGES[0]]
    assert literal(poison.TITLE)[:80] in seen[PAGES[1]]
    assert literal(poison.TEXTS[2]) in seen[PAGES[-1]]


@pytest.mark.parametrize("page", OF_A_RUN)
def test_no_chart_has_a_link_or_a_style(home, page):
    desk, drawn = Desk(), 0
    for data in mounted(opened(page, RUN)):
        if data.get("kind") != "chart":
            continue
        body = json.loads(desk.pulse(RUN, json.dumps([[data["name"], data["args"], ""]]), False))["charts"][0]
        if body["figure"] is None:
            continue
        drawn += 1
        text = json.dumps(body["figure"], ensure_ascii=False)
        assert "<a" not in text and "<img" not in text and "<b>" not in text, text[:2000]
    assert drawn


def test_only_tags_without_attributes_are_left_in_a_figure():
    name = "<a href='http://x'>y</a> <br> <b onclick=z> <span style='a'>q</span> \\u003ca> &lt;"
    figure = json.loads(harmless(go.Figure(data=[{"type": "bar", "x": [name], "y": [1], "name": "λ<sub>max</sub>"}])))
    bar = figure["data"][0]
    assert bar["name"] == "λ<sub>max</sub>"
    assert bar["x"][0] == (
        "&lt;a href='http://x'>y&lt;/a> <br> &lt;b onclick=z> &lt;span style='a'>q&lt;/span> \\u003ca> &amp;lt;"
    )
