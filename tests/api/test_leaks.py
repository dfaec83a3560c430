"""`POST /api/v1/leaks` as a reporter meets it, and the call by which a key burns itself."""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from flask import Flask
from sqlalchemy import select

from convene_keys import clock, config, create_app
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.http.access import Access, declared
from convene_keys.keys import lifecycle, tokens
from convene_keys.keys import queries as key_queries
from convene_keys.models import ApiKey, AuditEvent, Member, Organization
from tests import factories
from tests.conftest import Browser, Clock, new_browser
from tests.databases import environ, hasten
from tests.reporters import (
    SAMPLE,
    SAMPLE_IDENTIFIER,
    SAMPLE_KEY,
    SAMPLE_SIGNATURE,
    KeyServer,
    Reporter,
    public_key,
    signed,
)

PATH, BURN = "/api/v1/leaks", "/api/v1/admin/me/revoke"
JSON = "application/json"
CALLS_A_MINUTE = 20


@pytest.fixture
def github() -> Reporter:
    return Reporter("github")


@pytest.fixture
def server(github: Reporter) -> Iterator[KeyServer]:
    with KeyServer(github) as server:
        yield server


@pytest.fixture
def app(
    database_url: str, server: KeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Flask]:
    """One that takes reports, with an instance folder of its own."""
    load, folder = config.load, tmp_path / "instance"
    monkeypatch.setattr(config, "load", lambda environ: load(environ, folder))
    app = create_app(
        environ(
            database_url, LEAK_REPORT_KEYS_URL=server.url, KEY_RATE_LIMIT=f"{CALLS_A_MINUTE}/minute"
        )
    )
    app.testing = True
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        hasten(db.engine)
        yield app
        db.session.remove()
        db.engine.dispose()


Send = Callable[..., Any]


@pytest.fixture
def send(strict_client: Browser, github: Reporter) -> Send:
    """Send findings as GitHub does."""

    def send(findings: Any, kind: str = JSON, **headers: str) -> Any:
        body = findings if isinstance(findings, bytes) else json.dumps(findings).encode()
        return strict_client.post(
            PATH, data=body, content_type=kind, headers=github.headers(body) | headers
        )

    return send


def entry(token: str, **values: str) -> dict[str, str]:
    url = "https://github.com/octocat/fair/blob/12345600/.env"
    return {"token": token, "type": "convene_api_key", "url": url, "source": "content", **values}


def verdict(token: str, label: str) -> dict[str, str]:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return {"token_hash": digest, "token_type": "convene_api_key", "label": label}


def events() -> list[AuditEvent]:
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def test_reported_key_ends_and_the_reporter_learns_which_were_real(
    app: Flask, send: Send, key: tuple[ApiKey, str]
) -> None:
    row, secret = key
    stranger, header = tokens.mint(), {"Authorization": f"Bearer {secret}"}
    assert new_browser(app).get("/api/v1/admin/me", headers=header).status_code == 200
    answer = send([entry("garbage"), entry(secret), entry(stranger), entry(secret)])
    assert (answer.status_code, answer.mimetype) == (200, JSON)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json == [
        verdict("garbage", "false_positive"),
        verdict(secret, "true_positive"),
        verdict(stranger, "false_positive"),
    ]
    refused = new_browser(app).get("/api/v1/admin/me", headers=header)
    assert (refused.status_code, refused.json["code"]) == (401, "key_revoked")
    reported = events()[2]
    assert reported.action == "key.leak_reported"
    assert reported.request_id == answer.headers["X-Request-Id"]
    assert row.leaked_at is not None
    assert send([entry(secret)]).json == [verdict(secret, "true_positive")]
    assert [each.action for each in events()].count("key.leak_reported") == 1


def test_githubs_published_sample_is_taken(strict_client: Browser, server: KeyServer) -> None:
    server.tell(public_key(SAMPLE_IDENTIFIER, SAMPLE_KEY))
    answer = strict_client.post(
        PATH, data=SAMPLE, content_type=JSON, headers=signed(SAMPLE_IDENTIFIER, SAMPLE_SIGNATURE)
    )
    assert answer.status_code == 200
    assert [one["label"] for one in answer.json] == ["false_positive"]


def test_forged_reports_are_refused_and_end_nothing(
    app: Flask, server: KeyServer, github: Reporter, key: tuple[ApiKey, str]
) -> None:
    row, secret = key
    other, retired, wide = Reporter("other"), Reporter("retired"), Reporter("wide", ec.SECP384R1())
    stranger = Reporter("github")
    retired.current = False
    server.tell(github.public, other.public, retired.public, wide.public)
    body = json.dumps([entry(secret)]).encode()
    good = github.sign(body)
    text = base64.b64encode(good).decode()
    r, s = (number.to_bytes(33) for number in decode_dss_signature(good))
    padded = bytes([0x30, 72, 2, 34]) + b"\0" + r + bytes([2, 34]) + b"\0" + s
    identifier, signature = "Github-Public-Key-Identifier", "Github-Public-Key-Signature"

    def encoded(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    invalid, unknown, missing = "signature_invalid", "signature_key_unknown", "signature_missing"
    forged: list[tuple[str, bytes, Any, str]] = [
        ("a changed body", body.replace(b"content", b"Content"), github.headers(body), invalid),
        ("a space more", body + b" ", github.headers(body), invalid),
        ("other identifier", body, signed("other", text), invalid),
        ("unknown identifier", body, signed("nobody", text), unknown),
        ("identifier in capitals", body, signed("GITHUB", text), unknown),
        ("not current", body, retired.headers(body), unknown),
        ("cut off", body, signed("github", text[:-8]), invalid),
        ("not base64", body, signed("github", "?" + text), invalid),
        ("a space within", body, signed("github", f"{text[:9]} {text[9:]}"), invalid),
        ("raw r and s", body, signed("github", encoded(r[1:] + s[1:])), invalid),
        ("zeros in front", body, signed("github", encoded(padded)), invalid),
        ("all zeros", body, signed("github", encoded(bytes([0x30, 6, 2, 1, 0, 2, 1, 0]))), invalid),
        ("of another's key", body, signed("github", encoded(stranger.sign(body))), invalid),
        ("P-384", body, wide.headers(body), invalid),
        ("SHA-1", body, signed("github", encoded(github.sign(body, hashes.SHA1()))), invalid),  # noqa: S303
        ("no signature", body, {identifier: "github"}, missing),
        ("no identifier", body, {signature: text}, missing),
        ("nothing", body, {}, missing),
        ("empty signature", body, signed("github", ""), missing),
        ("empty identifier", body, signed("", text), missing),
        ("empty body", b"", github.headers(body), invalid),
        ("signature twice", body, [(identifier, "github"), *[(signature, text)] * 2], invalid),
        ("identifier twice", body, [*[(identifier, "github")] * 2, (signature, text)], unknown),
        ("both twice", body, [(identifier, "github"), (signature, text)] * 2, unknown),
    ]
    for how, sent, headers, code in forged:
        answer = new_browser(app).post(PATH, data=sent, content_type=JSON, headers=headers)
        assert (answer.status_code, answer.json["code"]) == (400, code), how
        assert answer.mimetype == "application/problem+json"
    db.session.refresh(row)
    assert (row.revoked_at, row.leaked_at) == (None, None)
    assert events() == []
    good_one = new_browser(app).post(
        PATH, data=body, content_type=JSON, headers=github.headers(body)
    )
    assert good_one.status_code == 200


def test_forger_is_made_to_wait(app: Flask, send: Send, fake_clock: Clock) -> None:
    browser = new_browser(app)
    statuses = [browser.post(PATH, json=[]).status_code for _ in range(62)]
    assert statuses == [400] * 60 + [429] * 2
    assert send([]).status_code == 429
    fake_clock.advance(minutes=1)
    assert send([]).status_code == 200


def test_signed_report_that_is_no_report_is_refused(send: Send, fake_clock: Clock) -> None:
    for _ in range(2):
        for body, status in (
            (b"", 400),
            (b"{", 400),
            (b"{}", 422),
            (b'[{"token": 1, "type": "k"}]', 422),
            (b"[" + b" " * (8 * 1024 * 1024) + b"]", 413),
        ):
            assert send(body).status_code == status, body[:20]
        assert send(b"[]", "text/plain").status_code == 415
        assert send(b"[]").json == []


def test_size_that_is_not_told_is_limited_too(
    strict_client: Browser, github: Reporter, fake_clock: Clock
) -> None:
    body = b"[" + b" " * (8 * 1024 * 1024) + b"]"
    answer = strict_client.post(
        PATH,
        data=body,
        content_type=JSON,
        headers=github.headers(body),
        environ_overrides={
            "CONTENT_LENGTH": "",
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input_terminated": True,
        },
    )
    assert answer.status_code == 413


def test_server_of_public_keys_that_is_down_or_rotates(
    send: Send, server: KeyServer, github: Reporter, strict_client: Browser, fake_clock: Clock
) -> None:
    assert send([]).status_code == 200
    new = Reporter("new")
    server.tell(new.public)
    fake_clock.advance(minutes=2)
    answer = strict_client.post(PATH, data=b"[]", content_type=JSON, headers=new.headers(b"[]"))
    assert answer.status_code == 200, "asked for at once"
    assert send([]).status_code == 400
    server.stop()
    fake_clock.advance(days=9)
    answer = strict_client.post(PATH, data=b"[]", content_type=JSON, headers=new.headers(b"[]"))
    assert answer.status_code == 200


def test_doctor_says_whether_reports_are_taken(
    app: Flask, server: KeyServer, database_url: str
) -> None:
    def said(app: Flask) -> tuple[int, str]:
        result = app.test_cli_runner().invoke(args=["doctor"])
        [line] = [line for line in result.stdout.splitlines() if " leak reports: " in line]
        return result.exit_code, line.split(maxsplit=1)[0] + line.partition(":")[2]

    good, server.body = server.body, b"nonsense"
    assert said(app) == (
        5,
        "failed LEAK_REPORT_KEYS_URL can’t be read (ValidationError): none is taken",
    )
    server.body = good
    assert said(app) == (0, "ok taken when signed with one of 1 public keys")
    unset = create_app(environ(database_url))
    with unset.app_context():
        assert said(unset) == (0, "ok not taken (LEAK_REPORT_KEYS_URL is not set)")
        db.session.remove()
        db.engine.dispose()


def test_reports_are_for_everyone_but_a_key(
    app: Flask, send: Send, key: tuple[ApiKey, str], maya: Member
) -> None:
    assert declared(app, "reports.report") is Access.PUBLIC
    assert send([], Authorization=f"Bearer {key[1]}").status_code == 404
    assert new_browser(app).get(PATH).status_code == 405
    member = new_browser(app)
    member.sign_in(maya)
    assert member.post(PATH, json=[]).json["code"] == "signature_missing"


def test_without_the_setting_there_is_nothing(database_url: str, github: Reporter) -> None:
    there = create_app(environ(database_url))
    with there.app_context():
        browser = new_browser(there)
        nothing = browser.post("/api/v1/nothing", json=[])
        for answer in (
            browser.post(PATH, data=b"[]", content_type=JSON, headers=github.headers(b"[]")),
            browser.post(PATH, json=[]),
            browser.get(PATH),
            browser.options(PATH),
        ):
            assert answer.status_code == 404
            assert answer.json | {"request_id": ""} == nothing.json | {"request_id": ""}
        db.session.remove()
        db.engine.dispose()


@pytest.mark.soak
def test_ten_thousand_findings_take_less_than_a_second(
    app: Flask, send: Send, organization: Organization
) -> None:
    real = [factories.api_key(organization, f"Key {number}")[1] for number in range(200)]
    others = [tokens.mint() for _ in range(5_000)] + [f"garbage {n}" for n in range(4_800)]
    body = json.dumps([entry(one) for one in others + real]).encode()
    assert send([]).status_code == 200  # what is loaded once is
    start = time.process_time()
    answer = send(body)
    seconds = time.process_time() - start
    print(f"10,000 findings, 200 of them real: {seconds:.2f} s of processor time")
    assert [one["label"] for one in answer.json].count("true_positive") == 200
    assert seconds <= 1


# Burning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["read", "read_write"])
def test_key_burns_itself(app: Flask, organization: Organization, maya: Member, scope: str) -> None:
    row, secret = factories.api_key(organization, creator=maya, scope=scope)
    header = {"Authorization": f"Bearer {secret}"}
    answer = new_browser(app).post(BURN, headers=header)
    assert (answer.status_code, answer.json) == (200, {"status": "revoked"})
    assert answer.headers["Cache-Control"] == "no-store"
    [event] = events()
    assert (event.action, event.actor, event.outcome) == ("key.revoked", "key", "ok")
    assert (event.key_id, event.key_name) == (row.id, row.name)
    assert (event.target_type, event.target_id) == ("key", str(row.id))
    assert event.request_id == answer.headers["X-Request-Id"]
    assert row.revoked_at is not None
    assert row.revoked_by_name == row.name
    assert row.last_used_at is not None
    for _ in range(2):
        again = new_browser(app).post(BURN, headers=header)
        assert (again.status_code, again.json["code"]) == (401, "key_revoked")
    assert [each.action for each in events()] == ["key.revoked", "key.refused"]


def test_key_may_always_burn_itself(app: Flask, fake_clock: Clock) -> None:
    draft, live = factories.organization(status="draft"), factories.organization()
    left = factories.member(live, disabled_at=clock.now())
    weak = factories.member(live, "viewer")
    _, wild = factories.api_key(live, "Wild")
    secrets = [
        factories.api_key(draft)[1],
        factories.api_key(live, "Left", creator=left)[1],
        factories.api_key(live, "Weak", creator=weak)[1],
        wild,
    ]
    browser = new_browser(app)
    for _ in range(CALLS_A_MINUTE + 1):
        answer = browser.get("/api/v1/admin/me", headers={"X-API-Key": wild})
    assert answer.status_code == 429
    for secret in secrets:
        answer = browser.post(BURN, headers={"X-API-Key": secret})
        assert (answer.status_code, answer.json) == (200, {"status": "revoked"})
    assert db.session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None))).all() == []


def test_what_is_no_working_key_burns_nothing(
    app: Flask, organization: Organization, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    row, secret = key
    _, expired = factories.api_key(organization, "Expired", expires_at=fake_clock.moment)
    for headers, code in (
        ({}, "key_missing"),
        ({"X-API-Key": "garbage"}, "key_unknown"),
        ({"X-API-Key": tokens.mint()}, "key_unknown"),
        ({"X-API-Key": expired}, "key_expired"),
    ):
        answer = new_browser(app).post(BURN, headers=headers)
        assert (answer.status_code, answer.json["code"]) == (401, code)
    assert new_browser(app).post(f"{BURN}?key={secret}").json["code"] == "key_outside_header"
    assert new_browser(app).post(BURN, data={"key": secret}).json["code"] == "key_outside_header"
    db.session.refresh(row)
    assert row.revoked_at is None


def test_other_methods_than_post_burn_nothing(app: Flask, key: tuple[ApiKey, str]) -> None:
    row, secret = key
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = new_browser(app).open(BURN, method=method, headers={"X-API-Key": secret})
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    db.session.refresh(row)
    assert row.revoked_at is None


def test_burning_at_once_with_a_revoke_is_fine(
    app: Flask, key: tuple[ApiKey, str], maya: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody revokes it after it was looked up; the first time stands, and is the only event."""
    row, secret = key
    plain, first = key_queries.get, Actor.of_member(maya, Origin())

    def get(session: Any, *args: Any, **more: Any) -> ApiKey:
        found = plain(session, *args, **more)
        lifecycle.revoke_in(session, first, found, "First")
        return found

    monkeypatch.setattr(key_queries, "get", get)
    answer = new_browser(app).post(BURN, headers={"X-API-Key": secret})
    assert answer.status_code == 200
    db.session.refresh(row)
    assert (row.revoked_by_name, row.revoke_reason) == ("Maya", "First")
    assert [each.action for each in events()] == ["key.revoked"]
