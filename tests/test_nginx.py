"""Convene Keys behind real nginx, configured as `deploy/nginx.conf` says."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copy

import pytest

from convene_keys import FORM_MAX
from convene_keys.api import leaks, routes
from convene_keys.mcp.routes import BODY_MAX as MCP_MAX
from tests.proxies import ROOT, Front
from tests.reporters import KeyServer, Reporter
from tests.servers import Server, free_port

Certificate = tuple[Path, ssl.SSLContext]
JSON = ("Content-Type", "application/json")


@pytest.fixture(scope="module")
def reporter() -> Reporter:
    return Reporter("one")


@pytest.fixture(scope="module")
def front(
    sqlite_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    certificate: Certificate,
    reporter: Reporter,
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    copy(sqlite_template, folder / "test.db")
    with ExitStack() as stack:
        keys = stack.enter_context(KeyServer(reporter))
        settings = {"TRUSTED_PROXIES": "1", "LEAK_REPORT_KEYS_URL": keys.url}
        url = f"sqlite:///{folder}/test.db"
        server = stack.enter_context(Server(url, folder / "server.log", workers=1, **settings))
        yield stack.enter_context(Front(folder / "nginx", certificate[0], server.port))


def redirected(front: Front, target: str) -> http.client.HTTPMessage:
    """The headers of the answer over plain HTTP to a request for `target`, sent as it is."""
    with socket.create_connection(("127.0.0.1", front.plain_port), timeout=30) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {front.host}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 301
        return answer.headers


@pytest.mark.parametrize("end", ["%0d%0a", "%0a", "%0D%0A%0D%0A"])
def test_redirect_to_https_has_no_header_from_the_address(front: Front, end: str) -> None:
    target = f"/login{end}Set-Cookie:%20convene=theirs?next=/x{end}Set-Cookie:%20b=c"
    headers = redirected(front, target)
    assert headers["Set-Cookie"] is None
    assert headers["Location"] == f"https://{front.host}{target}"


def test_redirect_goes_nowhere_else(front: Front) -> None:
    for target, kept in (("//evil.example/x", None), ("http://evil.example/x", "/x")):
        assert redirected(front, target)["Location"] == f"https://{front.host}{kept or target}"


def test_http_2_is_spoken(front: Front, certificate: Certificate) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", front.port), timeout=30)
    with context.wrap_socket(plain, server_hostname="localhost") as connection:
        assert connection.selected_alpn_protocol() == "h2"


def test_pages_come_as_they_are_and_files_packed(front: Front) -> None:
    """Debian's own nginx.conf has `gzip on` for all sites."""
    packing = [("Accept-Encoding", "gzip")]
    page = front.ask("GET", "/login", headers=packing)
    assert (page.status, page.headers["Content-Encoding"]) == (200, None)
    file = front.ask("GET", "/static/app.css", headers=packing)
    assert (file.status, file.headers["Content-Encoding"]) == (200, "gzip")


@pytest.mark.parametrize(
    ("path", "most"),
    [("/api/v1/admin/me", routes.BODY_MAX), ("/mcp", MCP_MAX), ("/login", FORM_MAX)],
)
def test_largest_body_that_the_app_takes_comes_through(front: Front, path: str, most: int) -> None:
    kind = JSON if path != "/login" else ("Content-Type", "application/x-www-form-urlencoded")
    fields = b"&".join([b"x=" + b"y" * 10_000] * 6) + b"&z="
    answer = front.ask("POST", path, headers=[kind], body=fields.ljust(most, b"y"))
    assert answer.status in (400, 401), answer.text


def test_largest_leak_report_comes_through(front: Front, reporter: Reporter) -> None:
    finding = {"token": "none", "type": "some", "url": "https://example.org", "source": "commit"}
    body = json.dumps([finding]).encode().ljust(leaks.BODY_MAX)
    headers = [JSON, *reporter.headers(body).items()]
    answer = front.ask("POST", "/api/v1/leaks", headers=headers, body=body)
    assert (answer.status, json.loads(answer.text)[0]["label"]) == (200, "false_positive")


def test_page_that_says_so_while_nobody_answers(tmp_path: Path, certificate: Certificate) -> None:
    with Front(tmp_path / "nginx", certificate[0], free_port()) as front:
        answer = front.ask("GET", "/admin/api_keys")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "30")
        assert answer.text == (ROOT / "deploy" / "away.html").read_text()


def test_no_request_is_sent_on_a_connection_that_may_be_closing(
    tmp_path: Path, certificate: Certificate
) -> None:
    """nginx sends a GET again that a closed connection has lost, but never a POST."""
    served = []

    class Once(BaseHTTPRequestHandler):
        """Keeps a connection, as it says, and closes it when the next request arrives."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            served.append(self.path)
            self.send_response(204)
            self.end_headers()
            self.rfile.peek(1)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Once) as behind:
        threading.Thread(target=behind.serve_forever, args=(0.01,), daemon=True).start()
        with Front(tmp_path / "nginx", certificate[0], behind.server_port) as front:
            paths = [f"/{number}" for number in range(20)]
            statuses = [front.ask("POST", path, body=b"").status for path in paths]
        behind.shutdown()
    assert (statuses, served) == ([204] * 20, paths)


@pytest.mark.soak
def test_no_post_is_lost_after_a_pause(
    front: Front, tmp_path: Path, certificate: Certificate
) -> None:
    """Pauses about as long as gunicorn keeps a connection; each client in a rhythm of its own."""
    count, turns = 48, 14
    with ExitStack() as stack:
        fronts = [
            stack.enter_context(Front(tmp_path / str(number), certificate[0], *front.ports))
            for number in range(6)
        ]

        def visit(number: int) -> Counter[int]:
            statuses: Counter[int] = Counter()
            for turn in range(turns):
                one = fronts[number % len(fronts)]
                statuses[one.ask("POST", "/healthz", body=b"").status] += 1
                time.sleep(2 + (number * turns + turn) % 100 / 100)
            return statuses

        with ThreadPoolExecutor(count) as clients:
            statuses = sum(clients.map(visit, range(count)), Counter())
    assert statuses == {405: count * turns}  # which only the app says
