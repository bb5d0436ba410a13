"""Whom the server answers, asked of a real dashboard with raw handshakes: its own pages, and no others."""

import base64
import os
import socket
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from modalscape.app.server.origin import address, allowed
from tests.servers import dashboard

STREAM = "/_stcore/stream"
FOREIGN = ("null", "", "file://", "javascript:alert(1)")


def asked(site, path, *headers, method="GET", body=""):
    """Send one request of a client that says exactly these headers; return status and the rest of the answer."""
    host, port = urlsplit(site).netloc.split(":")
    lines = [f"{method} {path} HTTP/1.1", *headers, *([f"Content-Length: {len(body)}"] if body else []), "", body]
    with socket.create_connection((host, int(port)), 20) as s:
        s.sendall("\r\n".join(lines).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            got = s.recv(65536)
            if not got:
                break
            answer += got
        if b" 101 " not in answer.split(b"\r\n")[0]:
            s.shutdown(socket.SHUT_WR)
            while got := s.recv(65536):
                answer += got
    return int(answer.split()[1]), answer.decode(errors="replace")


def handshake(site, *headers):
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13")
    return asked(site, STREAM, *headers, *upgrade)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with dashboard(folder) as (found, _):
        yield found, folder / "dashboard.txt"


def own(site):
    return urlsplit(site).netloc


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_a_page_of_the_server_itself_may_open_a_websocket(site, name):
    port = own(site[0]).split(":")[1]
    assert handshake(site[0], f"Host: {name}:{port}", f"Origin: http://{name.lower()}:{port}")[0] == 101


@pytest.mark.parametrize(
    "origin",
    [
        *FOREIGN,
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "http://localhost:{port}",
        "http://localhost:3000",
        "http://[::1]:{port}",
        "http://0.0.0.0:{port}",
        "https://127.0.0.1:{port}",
        "https://127.0.0.1",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}@evil.example",
        "http://evil.example@127.0.0.1:{port}",
        "http://127.0.0.1:{port}/",
        "ws://127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "http://127.0.0.1:99999999",
        "http://127.0.0.1:{port} http://evil.example",
    ],
)
def test_another_page_may_not(site, origin):
    host = own(site[0])
    status, answer = handshake(site[0], f"Host: {host}", f"Origin: {origin.format(port=host.split(':')[1])}")
    assert status == 403, answer


def test_nor_a_client_without_an_origin_or_with_two(site):
    host = own(site[0])
    assert handshake(site[0], f"Host: {host}")[0] == 403
    assert handshake(site[0], f"Host: {host}", f"Origin: http://{host}", "Origin: http://evil.example")[0] in (400, 403)


def test_nor_one_for_another_host_name(site):
    assert handshake(site[0], "Host: evil.example", "Origin: http://evil.example")[0] in (400, 403)


def test_a_refusal_is_said_once_in_the_log_with_the_remedy(site):
    for _ in range(3):
        status, answer = handshake(site[0], f"Host: {own(site[0])}", "Origin: http://told.example:7")
        assert status == 403 and "its own pages only" in answer
    found = [line for line in site[1].read_text().splitlines() if "told.example" in line]
    assert len(found) == 1 and "server.corsAllowedOrigins" in found[0]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "OPTIONS", "GET"])
@pytest.mark.parametrize("path", ["/_stcore/upload_file/a/b", "/_stcore/health", "/modalscape/pulse"])
def test_a_request_of_another_page_is_refused_by_every_route(site, method, path):
    host = own(site[0])
    for origin in ("http://localhost:3000", "null"):
        head = (f"Host: {host}", f"Origin: {origin}", "Connection: close")
        assert asked(site[0], path, *head, method=method, body="{}" if method in ("PUT", "POST") else "")[0] == 403
    head = (f"Host: {host}", f"Origin: http://{host}", "Connection: close")
    assert asked(site[0], path, *head, method="GET")[0] != 403


def test_a_request_without_an_origin_is_answered_so_that_a_browser_can_open_the_page(site):
    status, answer = asked(site[0], "/", f"Host: {own(site[0])}", "Connection: close")
    assert status == 200 and "x-frame-options: SAMEORIGIN" in answer
    assert "content-security-policy: default-src 'self'" in answer


@contextmanager
def configured(tmp_path, monkeypatch, **options):
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    with dashboard(tmp_path) as (found, _):
        yield found


def test_a_proxy_is_let_in_by_its_forwarded_scheme_or_by_the_configuration(tmp_path, monkeypatch):
    options = {
        "STREAMLIT_SERVER_ALLOWED_HOSTS": "lab.example 127.0.0.1",
        "STREAMLIT_SERVER_CORS_ALLOWED_ORIGINS": "https://class.example",
        "STREAMLIT_BROWSER_SERVER_ADDRESS": "public.example",
        "STREAMLIT_BROWSER_SERVER_PORT": "443",
    }
    with configured(tmp_path, monkeypatch, **options) as found:
        host = f"Host: {own(found)}"
        forwarded = ("Host: lab.example", "Origin: https://lab.example")
        assert handshake(found, *forwarded, "X-Forwarded-Proto: https")[0] == 101
        assert handshake(found, *forwarded)[0] == 403
        assert handshake(found, host, "Origin: https://class.example")[0] == 101
        assert handshake(found, host, "Origin: http://class.example")[0] == 403
        assert handshake(found, host, "Origin: https://class.example:8443")[0] == 403
        assert handshake(found, host, "Origin: https://public.example")[0] == 101
        assert handshake(found, host, "Origin: http://public.example")[0] == 403


@pytest.mark.parametrize(
    ("scheme", "host", "origin", "may"),
    [
        ("http", "[::1]:8501", "http://[::1]:8501", True),
        ("http", "[::1]:8501", "http://[::1]", False),
        ("http", "lab.example", "http://lab.example:80", True),
        ("https", "lab.example:443", "https://lab.example", True),
        ("http", "lab.example", "https://lab.example", False),
        ("http", "lab.example.", "http://lab.example", True),
        ("http", None, "http://lab.example", False),
        ("http", "a:b:c", "http://a:b:c", False),
    ],
)
def test_ports_that_go_without_saying_are_the_schemes_own(scheme, host, origin, may):
    assert allowed(scheme, host, [origin], (), needed=True) is may


def test_an_origin_is_scheme_host_and_port_and_nothing_else():
    for text in (*FOREIGN, "http://a/b", "http://a?b", "http://a#b", "http://u:p@a", " http://a", "http://a:x"):
        assert address(text) is None, text
