"""Only the dashboard's own pages may talk to the server: the origin of a request has to be the address it was sent to.

Streamlit lets in every page of this machine, whatever its port, and every client that names no origin; a page served by
another program on it could then start and stop runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

import streamlit as st
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from streamlit import config

_PORTS = {"http": 80, "https": 443}
_TOLD = 200
"""Different refusals that are logged; a page that tries for hours fills no disk."""
_log = logging.getLogger("modalscape.origin")

Address = tuple[str, str, int]
"""Scheme, host in small letters, port."""


def address(url: str) -> Address | None:
    """Return where an origin such as `http://localhost:8501` is, or None where the text is no origin.

    >>> address("https://LAB.example"), address("http://[::1]:8501"), address("null"), address("http://a/b")
    (('https', 'lab.example', 443), ('http', '::1', 8501), None, None)
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path or parts.query or parts.fragment:
        return None
    if "@" in parts.netloc or url != url.strip():
        return None
    return parts.scheme, parts.hostname.rstrip("."), _PORTS[parts.scheme] if port is None else port


def trusted() -> frozenset[Address]:
    """Return further addresses of this server, as the configuration names them, for where a proxy changes the host.

    They are those of `server.corsAllowedOrigins`, and `browser.serverAddress` with its port if it was set.
    """
    urls = [origin.rstrip("/") for origin in st.get_option("server.corsAllowedOrigins") or ()]
    if config.is_manually_set("browser.serverAddress"):
        host, port = st.get_option("browser.serverAddress"), st.get_option("browser.serverPort")
        host = f"[{host}]" if ":" in host else host
        urls += [f"{scheme}://{host}:{port}" for scheme in _PORTS]
    return frozenset(found for url in urls if (found := address(url)) is not None)


def allowed(scheme: str, host: str | None, origins: list[str], others: Iterable[Address], *, needed: bool) -> bool:
    """Return whether a request sent to `host` by `scheme` may come from its `origins`, the headers of that name.

    One without an origin may, unless it is `needed`, as a browser always gives it with a websocket.
    """
    if not origins:
        return not needed
    if len(origins) > 1:
        return False
    found = address(origins[0])
    own = address(f"{scheme}://{host or ''}")
    return found is not None and (found == own or found in others)


class OwnOrigin:
    """Middleware that refuses websockets and requests of other pages, with status 403."""

    def __init__(self, app) -> None:
        self.app, self.told = app, set()

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on if it comes from a page of this server."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers, live = Headers(scope=scope), scope["type"] == "websocket"
        scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
        host, origins = headers.get("host"), headers.getlist("origin")
        if allowed(scheme, host, origins, trusted(), needed=live):
            await self.app(scope, receive, send)
            return
        self._say(scheme, host, ", ".join(origins) or "none")
        said = "This server answers its own pages only; see server.corsAllowedOrigins in app/.streamlit/config.toml."
        await PlainTextResponse(said, 403)(scope, receive, send)

    def _say(self, scheme: str, host: str | None, origin: str) -> None:
        known = (scheme, host, origin)
        if known in self.told or len(self.told) >= _TOLD:
            return
        self.told.add(known)
        _log.warning(
            "Refused a request to %s://%.100r from the origin %.100r. If that is this dashboard behind a proxy, have "
            "the proxy pass on Host and X-Forwarded-Proto, or name the origin in server.corsAllowedOrigins.",
            scheme,
            host,
            origin,
        )
