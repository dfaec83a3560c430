"""`GET /auth/verify`: which key passes a proxy with what, what it is told, and what is recorded."""

from datetime import timedelta
from typing import Any
from urllib.parse import quote, unquote

import pytest
from sqlalchemy import select

from convene_keys import clock
from convene_keys.api.forward_auth import URI_MAX
from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.models import ApiKey, AuditEvent, Member, Organization
from convene_keys.operations.table import VERIFY as PATH
from tests import factories
from tests.conftest import Browser, Clock, challenge

FORWARDED = ("X-Forwarded-Method", "X-Forwarded-Uri")
ORIGINAL = ("X-Original-Method", "X-Original-URI")
READING = ("GET", "HEAD", "OPTIONS")
CHANGING = ("POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PURGE", "VERSION-CONTROL")


@pytest.fixture
def reader(organization: Organization, maya: Member) -> tuple[ApiKey, str]:
    return factories.api_key(organization, "Reader", creator=maya, scope="read")


def _ask(
    client: Browser,
    secret: str | None,
    method: str = "GET",
    uri: str = "/",
    pair: tuple[str, str] = FORWARDED,
    **more: Any,
) -> Any:
    headers = dict(zip(pair, (method, uri), strict=True)) | more.pop("headers", {})
    if secret is not None:
        headers["Authorization"] = f"Bearer {secret}"
    return client.get(PATH, headers=headers, **more)


def _events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def _refusal(answer: Any) -> tuple[int, str]:
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert not [name for name, _ in answer.headers if name.startswith("X-Convene-")]
    return answer.status_code, answer.json["code"]


@pytest.mark.parametrize("pair", [FORWARDED, ORIGINAL])
def test_key_that_passes_is_named_to_the_proxy(
    client: Browser, organization: Organization, key: tuple[ApiKey, str], pair: tuple[str, str]
) -> None:
    row, secret = key
    answer = _ask(client, secret, "POST", "/orders?x=1", pair)
    assert (answer.status_code, answer.data) == (204, b"")
    told = {name: value for name, value in answer.headers if name.startswith("X-Convene-")}
    assert told == {
        "X-Convene-Organization": organization.slug,
        "X-Convene-Key-Id": str(row.id),
        "X-Convene-Key-Name": quote(row.name),
        "X-Convene-Scope": "read_write",
    }
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers
    (event,) = _events()
    assert (event.action, event.outcome) == ("proxy.request", "ok")
    assert (event.key_id, event.key_name) == (row.id, row.name)
    assert (event.target_type, event.target_id) == ("request", None)
    assert (event.target_name, event.detail) == ("POST /orders", {})
    assert event.request_id == answer.headers["X-Request-Id"]


def test_name_in_any_script_fits_a_header(client: Browser, organization: Organization) -> None:
    for name in ("Zoë’s 100 % laptop", "市場 🥕", "a/b?c=d&e\\f\"g'", "مفتاح"):
        _, secret = factories.api_key(organization, name)
        told = _ask(client, secret).headers["X-Convene-Key-Name"]
        assert told.isascii()
        assert set(told) <= set(tokens.ALPHABET + "-._~%")
        assert unquote(told, errors="strict") == name


def test_reading_passes_with_any_key_and_changing_with_one_that_may(
    client: Browser, key: tuple[ApiKey, str], reader: tuple[ApiKey, str]
) -> None:
    for method in READING:
        assert _ask(client, key[1], method).status_code == 204
        answer = _ask(client, reader[1], method)
        assert (answer.status_code, answer.headers["X-Convene-Scope"]) == (204, "read")
    for method in CHANGING:
        assert _ask(client, key[1], method).status_code == 204
        assert _refusal(_ask(client, reader[1], method)) == (403, "scope_required")
        event = _events()[-1]
        assert (event.outcome, event.target_name) == ("denied", f"{method} /")
        assert event.detail == {"code": "scope_required"}


def test_key_that_does_not_work_is_refused(
    client: Browser, organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    past = clock.now() - timedelta(days=1)
    _, revoked = factories.api_key(organization, "R", revoked_at=past, released_at=past)
    _, expired = factories.api_key(organization, "E", expires_at=past)
    for secret, code in (
        (None, "key_missing"),
        ("", "key_missing"),
        ("garbage", "key_unknown"),
        (tokens.mint(), "key_unknown"),
        (revoked, "key_revoked"),
        (expired, "key_expired"),
    ):
        answer = _ask(client, secret)
        assert _refusal(answer) == (401, code)
        assert answer.headers["WWW-Authenticate"] == challenge(code)
    assert {event.action for event in _events()} == {"key.refused", "key.expired"}
    gone = factories.member(organization, disabled_at=past)
    _, secret = factories.api_key(organization, "G", creator=gone)
    assert _refusal(_ask(client, secret)) == (403, "creator_inactive")
    elsewhere = factories.organization("Elsewhere", status="draft")
    _, secret = factories.api_key(elsewhere)
    assert _refusal(_ask(client, secret, "POST", "/x")) == (403, "organization_draft")
    event = _events()[-1]
    assert (event.organization_id, event.target_name) == (elsewhere.id, "POST /x")


def test_member_passes_no_proxy(client: Browser, maya: Member) -> None:
    client.sign_in(maya)
    assert _refusal(_ask(client, None)) == (401, "key_missing")


UNCLEAR: list[dict[str, str]] = [
    {},
    {"X-Forwarded-Method": "GET"},
    {"X-Forwarded-Uri": "/"},
    {"X-Forwarded-Method": "", "X-Forwarded-Uri": "/"},
    {"X-Forwarded-Method": "GET", "X-Original-URI": "/"},
    {"X-Original-Method": "GET", "X-Forwarded-Uri": "/"},
    # Of these two the client may have sent either.
    dict(zip(FORWARDED + ORIGINAL, ("GET", "/", "POST", "/"), strict=True)),
    dict(zip(FORWARDED + ORIGINAL, ("GET", "/", "GET", "/other"), strict=True)),
    dict(zip((*FORWARDED, ORIGINAL[0]), ("GET", "/", "GET"), strict=True)),
    dict(zip((*ORIGINAL, FORWARDED[1]), ("GET", "/", "/"), strict=True)),
    # One that was sent twice comes joined.
    dict(zip(FORWARDED, ("GET,POST", "/"), strict=True)),
    dict(zip(FORWARDED, ("GET, GET", "/"), strict=True)),
    *(
        dict(zip(FORWARDED, (method, "/"), strict=True))
        for method in ("get", "Get", "G T", "-", "A" * 17, "G\xc9T", "1", "*")
    ),
    *(
        dict(zip(FORWARDED, ("GET", uri), strict=True))
        for uri in ("reports", "*", "https://reports.example.org/", "?x", "/" * (URI_MAX + 1))
    ),
]


def test_proxy_that_tells_no_one_clear_request_is_refused(
    client: Browser, key: tuple[ApiKey, str]
) -> None:
    for headers in UNCLEAR:
        answer = client.get(PATH, headers=headers | {"X-API-Key": key[1]})
        assert _refusal(answer) == (403, "forwarded_invalid"), headers
    assert _refusal(client.get(PATH)) == (401, "key_missing")
    events = _events()
    assert len(events) == len(UNCLEAR)
    assert {(e.action, e.outcome, e.target_name, str(e.detail)) for e in events} == {
        ("proxy.request", "denied", "an unclear request", "{'code': 'forwarded_invalid'}")
    }


def test_both_pairs_may_say_the_same(client: Browser, key: tuple[ApiKey, str]) -> None:
    headers = dict(zip(ORIGINAL, ("GET", "/a"), strict=True))
    assert _ask(client, key[1], "GET", "/a", headers=headers).status_code == 204


TARGETS = {
    "/": "GET /",
    "/reports?token=hush": "GET /reports",
    "/a?b?hush": "GET /a",
    "/?hush": "GET /",
    "/Z%C3%BCrich%20x": "GET /Zürich x",
    "/a%0d%0ab%00%E2%80%AEc": "GET /a\ufffd\ufffdb\ufffd\ufffdc",
    "/%FF": "GET /\ufffd",
    "//elsewhere.example/x": "GET //elsewhere.example/x",
    "/" + "x" * (URI_MAX - 1): "GET /" + "x" * 195,
}


def test_path_is_recorded_as_it_reads_and_the_query_never(
    client: Browser, key: tuple[ApiKey, str]
) -> None:
    for uri in TARGETS:
        assert _ask(client, key[1], "GET", uri).status_code == 204, uri
    assert [event.target_name for event in _events()] == list(TARGETS.values())


def test_key_in_the_forwarded_address_is_refused_and_never_recorded(
    client: Browser, key: tuple[ApiKey, str]
) -> None:
    secret = key[1]
    other = tokens.mint()
    encoded = "".join(f"%{ord(character):02x}" for character in other)
    for uri in (f"/?k={secret}", f"/{other}", f"/x?k={encoded}", f"/{encoded}", f"/+{other}+?y"):
        assert _refusal(_ask(client, secret, "GET", uri)) == (403, "key_outside_header")
    events = _events()
    hint = f"{tokens.hint(other)}…"
    assert [event.target_name for event in events] == [
        *("GET /", f"GET /{hint}", "GET /x", f"GET /{hint}", f"GET /+{hint}+")
    ]
    for event in events:
        assert event.detail == {"code": "key_outside_header"}
        for kept in (secret, other, encoded):
            assert kept not in str(vars(event))


def test_key_in_the_address_of_the_question_is_refused_unread(
    client: Browser, key: tuple[ApiKey, str]
) -> None:
    answer = _ask(client, key[1], query_string={"k": key[1]})
    assert _refusal(answer) == (400, "key_outside_header")


class Unreadable:
    def read(self, *_: object) -> bytes:
        raise AssertionError("the body is the proxy's own")

    readline = read


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/plain"]
)
def test_body_is_never_read(client: Browser, key: tuple[ApiKey, str], kind: str) -> None:
    for more in ({"CONTENT_LENGTH": "1000000000"}, {"HTTP_TRANSFER_ENCODING": "chunked"}):
        environ = {"wsgi.input": Unreadable(), "CONTENT_TYPE": kind, **more}
        answer = _ask(client, key[1], "POST", "/", environ_overrides=environ)
        assert answer.status_code == 204


def test_only_get_asks(client: Browser, key: tuple[ApiKey, str]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert _refusal(client.open(PATH, method=method)) == (405, "method_not_allowed")
        headers = {"X-API-Key": key[1], "X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/"}
        assert client.open(PATH, method=method, headers=headers).status_code == 404
    assert {event.action for event in _events()} == {"request.unknown"}


def test_what_is_refused_reads_well_in_the_log(
    client: Browser, maya: Member, reader: tuple[ApiKey, str]
) -> None:
    _ask(client, reader[1], "GET", "/reports/<b>?x")
    _ask(client, reader[1], "POST", "/reports")
    client.sign_in(maya)
    text = client.get("/admin/audit_log").text
    assert "went through a proxy: <b><bdi>GET /reports/&lt;b&gt;</bdi></b>" in text
    assert "tried to go through a proxy: <b><bdi>POST /reports</bdi></b>" in text
    assert ">Went through a proxy<" in text
    assert client.get("/admin/audit_log?action=proxy.request").status_code == 200


def test_nobody_passes_whom_the_log_can_not_record(
    client: Browser, key: tuple[ApiKey, str]
) -> None:
    with db.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_event RENAME TO gone")
    answer = _ask(client, key[1])
    assert answer.status_code in (500, 503)
    assert not [name for name, _ in answer.headers if name.startswith("X-Convene-")]
