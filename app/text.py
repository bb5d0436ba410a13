"""Text that comes from files or people, made harmless where it meets Markdown or plotly. Free of Streamlit.

Names, titles, notes and error messages are shown as they were written: nothing in them is rendered, linked or fetched.
"""

from __future__ import annotations

import re

import plotly.graph_objects as go

_JOINER = "\u2060"
"""A word joiner: of no width, it parts what Streamlit looks for in text that is already parsed, where no escape helps:
addresses, icons, emoji and arrows."""
_SPACE = re.compile(r"[\s\x00-\x1f\x7f\u2028\u2029]+")
_PARTED = re.compile(
    r"(?P<start>:)(?=//|material/|(?!\d\d:)[\w+-]+:)"  # addresses, icons and emoji; not the time 12:30:59
    r"|(?P<host>\bwww)(?=\.)"
    r"|(?P<mail>(?<=[\w.+-])@)(?=\w)",
    re.IGNORECASE,
)
_ARROW = re.compile(r"(?<!\S)(?=(?:<->|->|<-|--|>=|<=|~=)(?:\s|$))")
_MARK = re.compile(r"[\\`*_\[\]<>$#|~&]|:(?=[A-Za-z:])")
_LEAD = re.compile(r"[-+=](?=[-+=\s]|$)|(?<=\d)[.)](?=\s|$)")
_NUMBERED = re.compile(r"\d{1,9}[.)](?:\s|$)|[-+=]")

_TAG = re.compile(
    r"\\\\"  # an escaped backslash, so that what follows it is not taken for an escape
    r"|&"
    r"|(?:<|\\u003c)(?!(?:/|\\u002f)?(?:br|sub|extra)(?:>|\\u003e))"
)


def literal(text: object) -> str:
    r"""Return a text as Markdown that reads as it was written, on one line.

    >>> print(literal("![x](y) costs $5"))
    !\[x\](y) costs \$5
    >>> literal("see http://a.b") == "see http:\u2060//a.b"
    True
    """
    folded = _SPACE.sub(" ", str(text)).strip()
    parted = _ARROW.sub(_JOINER, _PARTED.sub(lambda found: found.group() + _JOINER, folded))
    marked = _MARK.sub(r"\\\g<0>", parted)
    if _NUMBERED.match(marked):  # what would begin a list, a rule or an underlined heading
        marked = _LEAD.sub(r"\\\g<0>", marked, count=1)
    return marked


def harmless(figure: go.Figure) -> str:
    """Return a figure as JSON in whose texts no mark-up counts but line breaks, subscripts and hover boxes.

    Plotly would take links and styles from any name; of the tags that are left none has attributes.

    >>> "&lt;a href" in harmless(go.Figure(layout={"title": {"text": "<a href='x'>y</a>"}}))
    True
    """
    return _TAG.sub(_shown, figure.to_json())


def _shown(found: re.Match) -> str:
    return {"\\\\": "\\\\", "&": "&amp;"}.get(found.group(), "&lt;")
