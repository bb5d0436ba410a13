"""Entry of the server: `streamlit run app/main.py`."""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from modalscape.app import catalog  # noqa: E402  the root has to be on the path first
from modalscape.app.server import live, routes  # noqa: E402
from modalscape.app.server.origin import OwnOrigin  # noqa: E402
from modalscape.engine.client import launch  # noqa: E402


@asynccontextmanager
async def lifespan(app):
    """While the server runs, pages may rely on its routes; what takes a while is done ahead of the first click."""
    live.serving(True)
    launch.keep_warm()
    for ahead in (catalog.titles, routes.plotly_script, _widgets):
        threading.Thread(target=ahead, daemon=True).start()
    yield
    launch.let_go()
    live.serving(False)


def _widgets() -> None:
    """Import what Streamlit imports for its first choice among several."""
    importlib.import_module("pandas")


def allowed_hosts() -> list[str]:
    """Return the host names that the server answers to: those of the configuration, or any if it names none."""
    return list(st.get_option("server.allowedHosts") or ["*"])


app = st.App(
    Path(__file__).with_name("ui.py"),
    routes=routes.routes(),
    middleware=[
        Middleware(routes.SecurityHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts()),
        Middleware(OwnOrigin),
    ],
    lifespan=lifespan,
)
