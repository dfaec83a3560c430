"""What pages weigh, in bytes: on a first visit, after a click, and with a full database."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import fill
from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.keys import queries as key_queries
from convene_keys.models import Member
from tests import factories
from tests.conftest import Browser, new_browser
from tests.databases import environ
from tests.servers import Server

KB = 1_000
KEYS, EVENTS = 1_000, 100_000
HTMX = {"HX-Request": "true"}
# What Chromium sends beside the address and the cookie.
CHROMIUM = (
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
)


@pytest.fixture
def full(sqlite_url: str) -> Iterator[tuple[Browser, str]]:
    """An admin's browser in front of a full organization, and its database."""
    app = create_app(environ(sqlite_url, BASE_URL="http://localhost"))
    app.config["WTF_CSRF_ENABLED"] = False
    with app.app_context():
        organization = factories.organization()
        maya = factories.member(organization)
        factories.market_data(organization)
        factories.bookings(organization, range(4, 300))
        maya_id = maya.id
        db.session.remove()
        db.engine.dispose()  # nobody else may use it meanwhile
        fill.keys(sqlite_url, 1, KEYS)
        fill.events(sqlite_url, EVENTS)
        browser = new_browser(app)
        browser.sign_in(db.session.get_one(Member, maya_id))
        yield browser, sqlite_url
        db.session.remove()
        db.engine.dispose()


def test_no_page_is_heavy_with_a_full_database(full: tuple[Browser, str]) -> None:
    browser, _ = full
    pages = [
        "/admin/api_keys",
        "/admin/api_keys?status=all&sort=last_used",
        "/admin/api_keys?status=revoked",
        "/admin/api_keys?page=20",
        "/admin/api_keys/1",
        "/admin/api_keys/new",
        "/admin/api_keys/1/revoke",
        "/admin/audit_log",
        "/admin/audit_log?key=1",
        "/admin/audit_log?outcome=denied",
        "/admin/bookings",
        "/admin/applications",
        "/admin/team",
        "/admin/settings/account",
        "/help/keys",
        "/docs/api",
    ]
    weights = {}
    for path in pages:
        answer = browser.get(path)
        assert answer.status_code == 200, path
        weights[path] = len(answer.data)
    older = re.search(r'hx-get="([^"]*before=[^"]*)"', browser.get("/admin/audit_log").text)
    assert older
    path = older[1].replace("&amp;", "&")
    weights["older lines"] = len(browser.get(path).data)
    print(weights)
    assert {path: weight for path, weight in weights.items() if weight > 60 * KB} == {}


def test_a_revoke_answers_with_little(full: tuple[Browser, str]) -> None:
    browser, _ = full
    dialog = browser.get("/admin/api_keys/7/revoke", headers=HTMX)
    answer = browser.post("/admin/api_keys/7/revoke", data={"reason": "x"}, headers=HTMX)
    assert "Revoked just now" in answer.text
    head = sum(len(f"{name}: {value}\r\n") for name, value in answer.headers)
    print(len(dialog.data), len(answer.data), head)
    assert len(answer.data) <= 2 * KB
    assert len(dialog.data) <= 2 * KB


def fetch(server: Server, path: str, cookie: str) -> tuple[int, str]:
    """The bytes that one request and its answer take on the wire, and the answer as text."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{CHROMIUM}"
        f"Cookie: {cookie}\r\nConnection: close\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as wire:
        wire.sendall(request)
        answer = b"".join(iter(lambda: wire.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
    return len(request) + len(answer), answer.decode(errors="replace")


def test_a_first_visit_of_the_key_list_is_light(full: tuple[Browser, str], tmp_path: Path) -> None:
    browser, database_url = full
    cookie = browser.get_cookie("convene")
    assert cookie
    with Server(database_url, tmp_path / "log", workers=1) as server:
        sign_in = f"convene={cookie.value}"
        weight, text = fetch(server, "/admin/api_keys", sign_in)
        assert text.count('<tr id="key-') == key_queries.PAGE_SIZE
        weights = {"the page": weight}
        for path in sorted(set(re.findall(r'(?:href|src)="(/static/[^"#]+)', text))):
            weights[path], _ = fetch(server, path, sign_in)
    print(weights, sum(weights.values()))
    for kind in ("app.css", "app.js", "htmx.min.js", "icons.svg", "favicon.svg", "woff2"):
        assert any(kind in path for path in weights), kind
    assert sum(weights.values()) <= 100 * KB
