"""Who may open what: routes x roles x {own, another organization's, none}, from the app's own map.

A route that is added is covered from then on. One that declares no access fails here, and so does
one with an argument that `OWN` knows no value for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select
from werkzeug.routing import Rule

from convene_keys import clock
from convene_keys.accounts import links
from convene_keys.db.session import db
from convene_keys.http.access import Access, access, declared
from convene_keys.keys import tokens
from convene_keys.models import (
    AuditEvent,
    Booking,
    Market,
    MarketDate,
    Member,
    Organization,
    Role,
    Scope,
    SignInLink,
    Vendor,
    VendorApplication,
)
from convene_keys.operations.table import BY_NAME
from tests import factories
from tests.conftest import Browser, Clock, new_browser

# One number for everything that can be addressed, so that answers about it and about ABSENT differ
# in it alone.
NUMBER, ABSENT = 730_173, 940_094
OWN: dict[str, int | str] = {
    "id": NUMBER,
    "key_id": NUMBER,
    "event_id": NUMBER,
    "member_id": NUMBER,
    "link_id": NUMBER,
    "number": NUMBER,
    "kind": "endless",
    "filename": "app.css",
    "path": "nothing",
}
NUMBERED = {name for name, value in OWN.items() if value == NUMBER}
EVERYONE = ("anonymous", "viewer", "manager", "admin", "read", "read_write")
ROLES = EVERYONE[1:4]
REFUSED = ("anonymous", "viewer", "manager", "read")  # some of what the others may open
ERROR_BODY = re.compile(r'(csrf_token" value|csrf-token" content)="[^"]*"')


@dataclass(frozen=True)
class Route:
    """One rule and method, with the level that its view declares."""

    rule: Rule
    method: str
    level: Access

    def path(self, number: int = NUMBER) -> str:
        unknown = self.rule.arguments - OWN.keys()
        assert not unknown, (
            f"{self.rule} has the argument {', '.join(unknown)}: add a value to OWN in {__file__}"
        )
        values = {n: number if n in NUMBERED else OWN[n] for n in self.rule.arguments}
        built = self.rule.build(values)
        assert built is not None
        return built[1]

    @property
    def numbered(self) -> bool:
        return bool(self.rule.arguments & NUMBERED)

    def __str__(self) -> str:
        return f"{self.method} {self.rule}"


def _routes(app: Flask) -> Iterator[Route]:
    for rule in app.url_map.iter_rules():
        level = declared(app, rule.endpoint)
        methods = set(rule.methods or ())
        if rule.provide_automatic_options:  # Flask answers those itself and calls no view
            methods.discard("OPTIONS")
        if level is not None:
            yield from (Route(rule, method, level) for method in sorted(methods))


@pytest.fixture
def organization(app: Flask) -> Organization:
    """An organization with one thing of each kind, all of the same number."""
    organization = factories.organization()
    key = {"organization_id": organization.id, "id": NUMBER}
    day = {"date": clock.now().date(), "opens": "08:00", "closes": "13:00", "stalls": 20}
    seller = {"name": "Green Acre Farm", "name_folded": "green acre farm", "category": "Produce"}
    rows = [
        [Market(**key, name="Old Harbour", location="Quay 3")],
        [Vendor(**key, **seller, contact_name="Noor", email="noor@example.org")],
        [MarketDate(**key, market_id=NUMBER, status="published", **day)],
        [
            VendorApplication(**key, market_id=NUMBER, vendor_id=NUMBER),
            Booking(**key, market_date_id=NUMBER, vendor_id=NUMBER, amount=4500),
        ],
    ]
    for group in rows:
        db.session.add_all(group)
        db.session.commit()
    factories.member(organization, name="Bystander", id=NUMBER)
    factories.api_key(organization, "Bystander", id=NUMBER)
    guest = factories.member(organization, name="Guest")
    link = {"member_id": guest.id, "digest": bytes(32), "created_at": clock.now()}
    db.session.add(SignInLink(**key, **link, expires_at=clock.now() + links.VALID))
    change = {"action": "booking.approved", "target_type": "booking", "target_id": str(NUMBER)}
    seen = {"at": clock.now(), "actor": "key", "key_id": NUMBER, "outcome": "ok", "mac": bytes(32)}
    db.session.add(AuditEvent(**key, **change, **seen))
    db.session.commit()
    return organization


class Visitor:
    """Somebody who opens routes, each time in a browser of their own."""

    def __init__(self, app: Flask, who: str, organization: Organization) -> None:
        self.who = who
        self._app = app
        self._member: Member | None = None
        self._headers: dict[str, str] = {}
        self._organization = organization
        if who in ROLES:
            self._member = factories.member(organization, who, name=who)
        elif who != "anonymous":
            creator = factories.member(organization, name="Creator")
            _, secret = factories.api_key(organization, f"{who} key", creator=creator, scope=who)
            self._headers = {"Authorization": f"Bearer {secret}"}

    def open(self, route: Route, number: int = NUMBER) -> Any:
        browser: Browser = new_browser(self._app)
        headers = self._headers
        if self._member is not None:
            browser.sign_in(self._member)
        elif headers and route.rule.endpoint == "burning.burn":  # that would be the last call
            _, secret = factories.api_key(self._organization, f"Burned {number}", scope=self.who)
            headers = {"Authorization": f"Bearer {secret}"}
        # What a write takes is up to its own tests; the API's PATCH needs a body to get that far.
        body = {"json": {"status": "approved"}} if route.method == "PATCH" else {}
        if route.rule.endpoint == "forward_auth.verify":
            headers = headers | {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/"}
        return browser.open(route.path(number), method=route.method, headers=headers, **body)


@pytest.fixture(autouse=True)
def _no_csrf(app: Flask) -> None:
    app.config["WTF_CSRF_ENABLED"] = False


def test_every_route_declares_who_may_open_it(app: Flask) -> None:
    silent = [
        str(rule) for rule in app.url_map.iter_rules() if declared(app, rule.endpoint) is None
    ]
    assert silent == [], "declare @access(...) above these views"


def test_every_argument_of_a_route_has_a_value(app: Flask) -> None:
    for route in _routes(app):
        assert route.path().startswith("/")


def _to_sign_in(answer: Any) -> bool:
    location = answer.headers.get("Location", "")
    return answer.status_code == 303 and location.split("?")[0] == "/login"


def _expected(route: Route, who: str, answer: Any) -> bool:
    """Whether the answer is of the kind that the route's level promises this visitor."""
    status = answer.status_code
    if status >= 500:
        return False
    if route.level is Access.OPEN:
        return status not in (401, 403, 404)
    if who in ("read", "read_write"):
        if route.level is not Access.KEY:
            below = route.path().split("/")[1] in ("admin", "login", "setup")
            return status == 403 if below else status in (403, 404)
        # Which tools a key has, and with what it passes a proxy, is up to their own tests.
        if route.rule.endpoint in ("mcp.exchange", "forward_auth.verify"):
            return status not in (401, 403, 404)
        if route.rule.endpoint == "burning.burn":
            return status == 200
        operation = BY_NAME.get(route.rule.endpoint.removeprefix("api."))
        if operation is None:  # what is no operation is not there, for every method
            return status == 404
        denied = operation.scope is Scope.READ_WRITE and who == "read"
        return status == 403 if denied else status not in (401, 403, 404)
    if route.level is Access.KEY:
        return status == 401
    if route.level is Access.PUBLIC:
        return status not in (401, 403)
    if who == "anonymous":
        return _to_sign_in(answer)
    needed = Role.MANAGER if route.level is Access.MAKER else Role(route.level)
    if not Role(who).covers(needed):
        return status == 403
    signs_out = route.rule.endpoint == "auth.logout"
    return status not in (401, 403, 404) and (signs_out or not _to_sign_in(answer))


@pytest.mark.parametrize(
    ("shared", "who"),
    [
        *(("sqlite", who) for who in EVERYONE),
        # Whom the guard lets through; the database has no say in whom it doesn't.
        *(("postgresql", who) for who in ("admin", "read_write")),
        *(pytest.param("postgresql", who, marks=pytest.mark.soak) for who in REFUSED),
    ],
    indirect=["shared"],
)
def test_own_organization(app: Flask, organization: Organization, who: str) -> None:
    visitor = Visitor(app, who, organization)
    wrong = []
    for route in _routes(app):
        answer = visitor.open(route)
        if not _expected(route, who, answer):
            wrong.append(f"{route} ({route.level}) -> {answer.status_code}")
    assert wrong == []


@pytest.mark.parametrize("who", ["admin", "read_write"])
def test_other_organization_and_none_are_alike(
    app: Flask, organization: Organization, who: str
) -> None:
    """What is another organization's answers 404, word for word as what does not exist."""
    stranger = Visitor(app, who, factories.organization("Elsewhere"))
    opened = 0
    for route in _routes(app):
        if not route.numbered:
            continue
        if (route.level is Access.KEY) != (who == "read_write"):
            continue
        answers = []
        for number in (NUMBER, ABSENT):
            answer = stranger.open(route, number)
            body = answer.text.replace(answer.headers["X-Request-Id"], "REQUEST")
            body = ERROR_BODY.sub("", body).replace(str(number), "NUMBER")
            headers = {"X-Request-Id", "Set-Cookie", "Content-Length", "Location", "RateLimit"}
            rest = [pair for pair in answer.headers if pair[0] not in headers]
            answers.append((answer.status_code, body, rest))
        assert answers[0][0] == 404, f"{route} -> {answers[0][0]}"
        assert answers[0] == answers[1], str(route)
        opened += 1
    assert opened > 10


def test_numbers_beyond_every_database_are_not_found(
    app: Flask, organization: Organization
) -> None:
    for who in ("admin", "read_write"):
        visitor = Visitor(app, who, organization)
        for route in _routes(app):
            matching = (route.level is Access.KEY) == (who == "read_write")
            if route.numbered and matching and route.method in ("GET", "POST", "PATCH"):
                for number in (0, 2**31, 2**63, 10**30):
                    assert visitor.open(route, number).status_code == 404, (str(route), number)


# The guard itself ----------------------------------------------------------------------------


def test_view_without_a_declaration_is_nobodys(own_app: Flask) -> None:
    own_app.add_url_rule("/silent", "silent", lambda: "seen")
    admin = factories.member(factories.organization())
    browser = new_browser(own_app)
    assert _to_sign_in(browser.get("/silent"))
    browser.sign_in(admin)
    assert browser.get("/silent").status_code == 403


def test_anonymous_comes_back_to_where_they_wanted(app: Flask) -> None:
    browser = new_browser(app)
    answer = browser.get("/admin/audit_log?key=1&q=a%20b")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/login?next=/admin/audit_log?key%3D1%26q%3Da%2520b"
    assert browser.get("/admin/api_keys").headers["Location"] == "/login?next=/admin/api_keys"
    assert browser.post("/admin/api_keys").headers["Location"] == "/login"


def test_anonymous_htmx_request_moves_the_whole_page(app: Flask) -> None:
    answer = new_browser(app).get("/admin/api_keys", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.text) == (401, "")
    assert answer.headers["HX-Redirect"] == "/login"


def test_redirects_of_routing_stay_redirects(app: Flask, organization: Organization) -> None:
    _, secret = factories.api_key(organization)
    for headers in ({}, {"X-API-Key": secret}):
        answer = new_browser(app).get("/api/v1/admin//me", headers=headers)
        assert answer.status_code == 308
        assert answer.headers["Location"].endswith("/api/v1/admin/me")


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "none"}])
def test_form_with_a_file_is_not_taken(app: Flask, headers: dict[str, str]) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n--b--\r\n'
    answer = new_browser(app).post(
        "/login", data=body, content_type="multipart/form-data; boundary=b", headers=headers
    )
    assert answer.status_code == 415


def test_query_that_is_no_text_is_malformed(app: Flask) -> None:
    for path in ("/login", "/admin/api_keys", "/api/v1/admin/me", "/healthz", "/nothing"):
        answer = new_browser(app).get(path, environ_overrides={"QUERY_STRING": "q=\xff"})
        assert answer.status_code == 400, path


def test_declaration_is_kept_on_the_view() -> None:
    @access(Access.MANAGER)
    def view() -> str:
        return "seen"

    assert view() == "seen"
    assert view.access is Access.MANAGER
    assert [level.value for level in Access][3:] == ["viewer", "manager", "maker", "admin"]


# Clients that were refused with 401 look for a way to sign in (RFC 9728, 8414 and 7591).
PROBES = [
    ("GET", "/.well-known/oauth-protected-resource/mcp"),
    ("GET", "/.well-known/oauth-protected-resource"),
    ("GET", "/.well-known/oauth-authorization-server"),
    ("GET", "/.well-known/openid-configuration"),
    ("POST", "/register"),
]


@pytest.mark.parametrize(("method", "path"), PROBES)
def test_client_that_looks_for_a_sign_in_hears_that_there_is_none(
    client: Browser, organization: Organization, fake_clock: Clock, method: str, path: str
) -> None:
    past = fake_clock() - timedelta(days=1)
    _, working = factories.api_key(organization, "W")
    _, revoked = factories.api_key(organization, "R", revoked_at=past, released_at=past)
    _, orphan = factories.api_key(
        organization, "O", creator=factories.member(organization, disabled_at=past)
    )
    for secret in (None, working, revoked, orphan, tokens.mint()):
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        answer = client.open(path, method=method, headers=headers, json={"redirect_uris": []})
        assert (answer.status_code, answer.mimetype) == (404, "application/problem+json"), secret
        assert answer.json["code"] == "not_found"
        assert "Set-Cookie" not in answer.headers
    recorded = select(AuditEvent.action, AuditEvent.key_name, AuditEvent.outcome).where(
        AuditEvent.id != NUMBER
    )
    assert db.session.execute(recorded.order_by(AuditEvent.id)).all() == [
        ("request.unknown", "W", "failed"),
        ("key.refused", "R", "denied"),
        ("request.unknown", "O", "denied"),
    ]
