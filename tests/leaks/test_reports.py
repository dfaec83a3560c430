"""What a report of leaked keys does: every key in it ends, once, with its event."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, select
from sqlalchemy.exc import DBAPIError

from convene_keys import clock, config
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.errors import Invalid, Malformed
from convene_keys.keys import lifecycle, tokens
from convene_keys.leaks import reports
from convene_keys.leaks.reports import Finding
from convene_keys.models import ApiKey, AuditEvent, Organization
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER

ORIGIN = Origin("192.0.2.7", "GitHub-Hookshot/1", "4bf92f3577b34da6")
URL = "https://github.com/octocat/fair/blob/12345600/.env"


def finding(token: str, **values: str) -> Finding:
    usual = {"type": "convene_api_key", "url": URL, "source": "content"}
    return Finding(token=token, **(usual | values))


def report(*findings: Finding) -> set[str]:
    real = reports.report(findings, ORIGIN, [PEPPER])
    db.session.rollback()
    return real


def reported() -> list[AuditEvent]:
    return [each for each in events() if each.action == "key.leak_reported"]


def events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


@contextmanager
def statements() -> Iterator[list[str]]:
    told: list[str] = []

    def tell(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        told.append(statement)

    event.listen(db.engine, "before_cursor_execute", tell)
    yield told
    event.remove(db.engine, "before_cursor_execute", tell)


def test_leaked_key_is_revoked_at_once_and_recorded(
    organization: Organization, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    row, secret = key
    assert report(finding(secret)) == {secret}
    assert row.leaked_at == row.revoked_at == row.released_at == fake_clock.moment
    assert (row.revoked_by_name, row.revoke_reason) == ("the system", reports.REASON)
    revoked, told = events()
    assert [revoked.action, told.action] == ["key.revoked", "key.leak_reported"]
    for each in (revoked, told):
        assert each.organization_id == organization.id
        assert (each.actor, each.outcome, each.target_type) == ("system", "ok", "key")
        assert (each.target_id, each.target_name) == (str(row.id), row.name)
        assert (each.ip, each.user_agent, each.request_id) == (
            ORIGIN.ip,
            ORIGIN.user_agent,
            ORIGIN.request_id,
        )
    assert told.detail == {"url": URL, "source": "content", "type": "convene_api_key"}


def test_second_report_of_a_key_changes_nothing(key: tuple[ApiKey, str], fake_clock: Clock) -> None:
    row, secret = key
    assert report(finding(secret), finding(secret, url="https://example.org/2")) == {secret}
    first, before = row.leaked_at, len(events())
    fake_clock.advance(days=1)
    assert report(finding(secret)) == {secret}
    assert row.leaked_at == first
    assert len(events()) == before == 2
    assert events()[1].detail["url"] == URL, "the first place counts"


@pytest.mark.parametrize("state", ["revoked", "expired", "draft", "creator gone", "read"])
def test_key_in_any_state_is_taken(app: Flask, fake_clock: Clock, state: str) -> None:
    organization = factories.organization(status="draft" if state == "draft" else "live")
    creator = factories.member(
        organization, disabled_at=clock.now() if state == "creator gone" else None
    )
    row, secret = factories.api_key(
        organization,
        creator=creator,
        expires_at=fake_clock.moment - timedelta(days=1) if state == "expired" else None,
        scope="read" if state == "read" else "read_write",
    )
    if state == "revoked":
        lifecycle.revoke(Actor.of_member(creator, ORIGIN), row.id, "Old")
    before = row.revoked_at
    fake_clock.advance(hours=1)
    assert report(finding(secret)) == {secret}
    assert row.leaked_at == fake_clock.moment
    assert row.revoked_at == (before or fake_clock.moment), "the first time stands"
    assert row.revoke_reason == ("Old" if state == "revoked" else reports.REASON)
    actions = [each.action for each in events()]
    assert actions == ["key.revoked", "key.leak_reported"]


def test_keys_of_several_organizations_and_peppers_end_together(app: Flask) -> None:
    older = "an older pepper of more than 32 characters"
    rows, secrets = [], []
    for number in range(3):
        organization = factories.organization(f"Market {number}")
        for pepper in (PEPPER, older):
            token = tokens.mint()
            digest = {"digest": tokens.digest(token, pepper), "pepper_id": config.pepper_id(pepper)}
            row, _ = factories.api_key(organization, f"Key {pepper[:3]}", token=token)
            for name, value in digest.items():
                setattr(row, name, value)
            db.session.commit()
            rows.append(row)
            secrets.append(token)
    bystander, _ = factories.api_key(factories.organization(), "Bystander")
    real = reports.report([finding(secret) for secret in secrets], ORIGIN, [PEPPER, older])
    assert real == set(secrets)
    told = [(each.target_id, each.organization_id) for each in reported()]
    assert told == [(str(row.id), row.organization_id) for row in rows]
    assert all(row.revoked_at and row.leaked_at for row in rows)
    assert (bystander.revoked_at, bystander.leaked_at) == (None, None)
    assert {each.organization_id for each in events()} == {row.organization_id for row in rows}


def test_what_is_no_key_costs_no_query_and_no_event(key: tuple[ApiKey, str]) -> None:
    _, secret = key
    body = secret[:-1]
    garbage = ["", "x" * 200, secret[:-1], secret + "0", secret.upper(), f" {secret}", "fm_org_é"]
    garbage += [body + ("1" if secret[-1] == "0" else "0")]  # a checksum that is wrong
    with statements() as told:
        real = reports.report([finding(one) for one in garbage], ORIGIN, [PEPPER])
    assert (real, told) == (set(), [])
    assert report(finding(tokens.mint())) == set()
    assert events() == []


def test_list_of_ten_thousand_takes_few_queries(organization: Organization) -> None:
    real = [factories.api_key(organization, f"Key {n}")[1] for n in range(3)]
    others = [tokens.mint() for _ in range(9_000)] + ["garbage"] * 997
    with statements() as told:
        found = reports.report([finding(one) for one in others + real], ORIGIN, [PEPPER])
    assert found == set(real)
    assert len(reported()) == 3
    asked = [one for one in told if "api_key.digest IN" in one]
    assert len(asked) == 10, "9,003 digests, a thousand at once"
    assert len(told) <= 10 + 1 + 3 * 4 + 2


def test_event_and_revocation_are_one(key: tuple[ApiKey, str]) -> None:
    row, secret = key
    with pytest.MonkeyPatch.context() as patch:

        def broken(*_: Any, **__: Any) -> int:
            raise DBAPIError("INSERT", {}, Exception("no"))

        patch.setattr(reports, "record", broken)
        with pytest.raises(DBAPIError):
            reports.report([finding(secret)], ORIGIN, [PEPPER])
    db.session.rollback()
    assert (row.revoked_at, row.leaked_at) == (None, None)
    assert events() == []


def test_key_in_a_reports_url_is_cut_and_so_is_what_is_too_long(key: tuple[ApiKey, str]) -> None:
    row, secret = key
    url = f"https://example.org/?key={secret}&" + "x" * 5_000
    report(finding(secret, url=url, source="s" * 200, type=secret))
    [detail] = [each.detail for each in reported()]
    assert len(detail["url"]) == reports.URL_MAX
    assert detail["url"].startswith(f"https://example.org/?key={row.hint}…&xx")
    assert len(detail["source"]) == reports.SOURCE_MAX
    assert detail["type"] == f"{row.hint}…"


# Reading a report --------------------------------------------------------------------------------


def test_report_is_read_with_more_or_less_than_its_fields() -> None:
    [plain, more] = reports.read(
        b'[{"token":"t","type":"k"},'
        b'{"token":"t","type":"k","url":null,"source":null,"commit":{"id":1}}]'
    )
    assert plain == more == Finding(token="t", type="k")
    assert reports.read(b"[]") == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[", b"\xff", b'[{"token":"\\ud800","type":"k"}]', b"[NaN", b"[" * 5_000],
    ids=range(7),
)
def test_report_that_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        reports.read(body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", ""),
        (b"null", ""),
        (b"[1]", "0"),
        (b'[{"token":"t"}]', "0.type"),
        (b'[{"type":"k"}]', "0.token"),
        (b'[{"token":1,"type":"k"}]', "0.token"),
        (b'[{"token":null,"type":"k"}]', "0.token"),
        (b'[{"token":"t","type":"k","url":1}]', "0.url"),
        (b'[{"token":"t","type":"k","source":["s"]}]', "0.source"),
        (b'[{"token":"' + b"t" * 201 + b'","type":"k"}]', "0.token"),
        (b'[{"token":"t","type":"' + b"k" * 101 + b'"}]', "0.type"),
    ],
)
def test_report_of_another_form_names_the_field(body: bytes, field: str) -> None:
    with pytest.raises(Invalid) as raised:
        reports.read(body)
    assert [error.field for error in raised.value.errors] == [field]


def test_no_more_than_a_few_errors_are_told() -> None:
    with pytest.raises(Invalid) as raised:
        reports.read(b"[" + b",".join([b"1"] * 10_000) + b"]")
    assert len(raised.value.errors) == reports.ERRORS_MAX
