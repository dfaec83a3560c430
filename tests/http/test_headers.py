"""What every answer carries, whoever made it: pages, errors, files and the API."""

import pytest
from flask import Flask

from convene_keys import create_app
from convene_keys.http.access import Access, access
from convene_keys.http.headers import CLOSED
from tests import factories
from tests.conftest import Browser, new_browser
from tests.databases import environ

pytestmark = pytest.mark.on_sqlite

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
ARGUMENTS = {"filename": "app.css", "path": "nothing"}


def check(answer, name: str) -> None:
    """All of them, once each; no more than that is left to whoever made the answer."""
    for header, value in {
        "Content-Security-Policy": POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }.items():
        assert answer.headers.getlist(header) == [value], (name, header)
    (permissions,) = answer.headers.getlist("Permissions-Policy")
    allowed = [item for item in permissions.split(", ") if not item.endswith("=()")]
    assert allowed == ["clipboard-write=(self)"], name
    assert len(answer.headers.get("X-Request-Id", "")) == 16, name
    assert "Server" not in answer.headers, name


def answers(app: Flask, browser: Browser):
    """One answer of every route and method there is, and of what goes wrong."""
    for rule in app.url_map.iter_rules():
        built = rule.build({name: ARGUMENTS.get(name, 1) for name in rule.arguments})
        assert built is not None
        for method in sorted(rule.methods or ()):
            if rule.endpoint != "auth.logout":
                yield f"{method} {rule}", browser.open(built[1], method=method)
    token = {"Authorization": "Bearer fm_org_none"}
    for method, path, status, more in (
        ("GET", "/nothing", 404, {}),
        ("GET", "/static/nothing.css", 404, {}),
        ("DELETE", "/login", 405, {}),
        ("POST", "/login", 413, {"data": b"a=" + b"x" * 70_000, "content_type": FORM}),
        ("GET", "/login?key=%FF%fm_org_" + "a" * 38, 400, {}),
        ("GET", "/static/app.css", 200, {"headers": {"Accept-Encoding": "gzip"}}),
        ("GET", "/api/v1/admin/me", 401, {"headers": token}),
        ("GET", "/api/nothing", 404, {}),
    ):
        answer = browser.open(path, method=method, **more)
        assert answer.status_code == status, (method, path, answer.status_code)
        yield f"{method} {path}", answer


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("role", ["admin", None])
def test_every_answer_carries_the_headers(app: Flask, client: Browser, role: str | None) -> None:
    if role:
        client.sign_in(factories.member(factories.organization(), role))
    seen = 0
    for name, answer in answers(app, client):
        check(answer, name)
        assert "Strict-Transport-Security" not in answer.headers, name
        public = "/static/" in name or name.endswith(("/api/openapi.json", "/convene-keys.mcpb"))
        kept = public and answer.status_code in (200, 304)
        if not kept:
            assert answer.headers.get("Cache-Control") == "no-store", name
        seen += 1
    assert seen > 100


def test_what_breaks_or_is_away_carries_them_too(own_app: Flask) -> None:
    own_app.add_url_rule("/broken", "broken", access(Access.PUBLIC)(lambda: 1 / 0))
    answer = new_browser(own_app).get("/broken")
    assert answer.status_code == 500
    check(answer, "500")
    assert answer.headers["Cache-Control"] == "no-store"


def test_https_is_asked_for_once_the_site_has_it(sqlite_url: str) -> None:
    app = create_app(environ(sqlite_url, BASE_URL="https://keys.example.org"))
    browser = app.test_client()
    for path in ("/login", "/nothing", "/static/app.css", "/api/v1/admin/me"):
        answer = browser.get(path, base_url="https://keys.example.org", buffered=True)
        assert answer.headers.getlist("Strict-Transport-Security") == [
            "max-age=63072000; includeSubDomains"
        ]
        check(answer, path)


def test_nothing_that_a_browser_could_be_asked_for_is_open() -> None:
    assert {"camera", "geolocation", "microphone", "payment", "usb"} <= set(CLOSED.split())
    assert len(CLOSED.split()) == len(set(CLOSED.split())) > 30
