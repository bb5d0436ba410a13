"""The router: one page for each file of `pages/`, in the order of their numbers, below one sidebar."""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import streamlit as st

APP = Path(__file__).resolve().parent
ROOT = APP.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from modalscape.app.text import literal  # noqa: E402
from modalscape.app.views import shell  # noqa: E402  the root has to be on the path first
from modalscape.engine.errors import InputError  # noqa: E402


@cache
def declared(path: Path, changed: float) -> dict[str, str]:
    """Return the texts that a page declares at its top, such as `TITLE` and `ICON`, without running it."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.targets[0], ast.Name)
        ):
            found[node.targets[0].id] = node.value.value
    return found


@cache
def settled() -> None:
    """Take what has been imported out of the collector's sight, so that a collection costs milliseconds."""
    gc.collect()
    gc.freeze()


def pages() -> list:
    """Return the pages, the first being the default."""
    out = []
    for path in sorted(shell.PAGES.glob("[0-9]*_*.py")):
        about = declared(path, path.stat().st_mtime)
        name = path.stem.partition("_")[2]
        out.append(st.Page(path, title=about["TITLE"], icon=about.get("ICON"), url_path=name, default=not out))
    return out


@contextmanager
def said() -> Generator[None]:
    """Draw what cannot be read as one sentence, in place of what was to follow."""
    try:
        yield
    except InputError as error:
        st.error(literal(error), icon=":material/error:")


st.set_page_config(page_title="Modalscape", page_icon=APP / "icon.svg", layout="wide")
st.logo((APP / "logo.svg").read_text(), size="large", icon_image=(APP / "icon.svg").read_text())
st.html(APP / "style.css")
settled()
chosen = st.navigation(pages(), position="top")
with said():
    shell.sidebar()
with said():
    chosen.run()
