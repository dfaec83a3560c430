"""`keys`: made, listed and revoked by a command, which prints the secret alone."""

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from convene_keys.db.session import db, raw_connection
from convene_keys.keys import authentication, tokens
from convene_keys.models import ApiKey
from tests import factories
from tests.cli.conftest import Run, assert_by_system, events, failed, succeeded
from tests.conftest import Clock
from tests.databases import PEPPER

pytestmark = pytest.mark.on_sqlite


def test_keys_create_prints_the_key_alone(run: Run) -> None:
    organization = factories.organization()
    maya = factories.member(organization, "manager", email="Maya@example.org")
    stdout = succeeded(
        run(
            *("keys", "create", "--organization", organization.id, "--name", "Claude on laptop"),
            *("--scope", "read", "--tool", "claude", "--created-by", "maya@EXAMPLE.org"),
        )
    )
    assert stdout.endswith("\n")
    secret = stdout.removesuffix("\n")
    assert tokens.is_well_formed(secret)
    key = authentication.authenticate(raw_connection(db.session()), secret, [PEPPER])
    assert (key.name, key.scope, key.tool) == ("Claude on laptop", "read", "claude")
    assert (key.created_by_id, key.expires_at) == (maya.id, None)
    [event] = events()
    assert_by_system(event, "key.created")
    assert secret not in json.dumps(event.detail)


def test_keys_create_may_read_and_write_unless_told(run: Run) -> None:
    organization = factories.organization()
    succeeded(run("keys", "create", "--organization", organization.id, "--name", "Script"))
    key = db.session.scalars(select(ApiKey)).one()
    assert (key.scope, key.tool, key.created_by_id) == ("read_write", "other", None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--name", "Taken"), "name"),
        (("--name", ""), "name"),
        (("--name", "New", "--scope", "all"), "--scope"),
        (("--name", "New", "--tool", "hammer"), "--tool"),
        (("--name", "New", "--created-by", "nobody@example.org"), "nobody@example.org"),
        (("--name", "New", "--created-by", "stranger@example.org"), "stranger@example.org"),
        (("--name", "New", "--created-by", "viewer@example.org"), "may not make keys"),
        (("--name", "New", "--expires", "1"), "--expires"),
        ((), "--name"),
        (("--name", "New", "more"), "more"),
    ],
)
def test_keys_create_says_in_one_line_what_is_wrong(
    run: Run, options: tuple[str, ...], said: str
) -> None:
    organization = factories.organization()
    factories.api_key(organization, "Taken")
    factories.member(organization, "viewer", email="viewer@example.org")
    factories.member(factories.organization("Other"), email="stranger@example.org")
    assert said in failed(run("keys", "create", "--organization", organization.id, *options))
    assert db.session.scalar(select(func.count(ApiKey.id))) == 1


def test_keys_create_without_the_organization_fails(run: Run) -> None:
    assert "no organization 7" in failed(run("keys", "create", "--organization", 7, "--name", "A"))


def test_keys_list_shows_every_key_of_the_organization_alone(run: Run, fake_clock: Clock) -> None:
    organization = factories.organization()
    used = datetime(2026, 11, 24, 9, 2, tzinfo=UTC)
    claude, secret = factories.api_key(organization, "Claude", last_used_at=used)
    old, _ = factories.api_key(organization, "Old", revoked_at=used, released_at=used)
    factories.api_key(factories.organization("Other"), "Strange")
    listed = json.loads(succeeded(run("keys", "list", "--organization", organization.id, "--json")))
    assert listed == [
        {
            "id": claude.id,
            "name": "Claude",
            "status": "active",
            "created_at": "2026-11-24T12:00:00Z",
            "last_used_at": "2026-11-24T09:02:00Z",
        },
        {
            "id": old.id,
            "name": "Old",
            "status": "revoked",
            "created_at": "2026-11-24T12:00:00Z",
            "last_used_at": None,
        },
    ]
    table = succeeded(run("keys", "list", "--organization", organization.id)).splitlines()
    assert table[0].split("  ")[0] == "ID"
    assert [line.split()[:3] for line in table[1:]] == [
        [str(claude.id), "Claude", "active"],
        [str(old.id), "Old", "revoked"],
    ]
    assert table[2].endswith("never")
    assert secret[20:] not in "".join(table)
    assert "no organization 99" in failed(run("keys", "list", "--organization", 99))


def test_keys_revoke_ends_the_key_silently(run: Run) -> None:
    organization = factories.organization()
    key, _ = factories.api_key(organization)
    assert succeeded(run("keys", "revoke", key.id, "--reason", "Laptop lost")) == ""
    db.session.expire_all()
    assert (key.status, key.revoke_reason) == ("revoked", "Laptop lost")
    first = key.revoked_at
    assert succeeded(run("keys", "revoke", key.id)) == ""
    db.session.expire_all()
    assert (key.revoked_at, key.revoke_reason) == (first, "Laptop lost")
    [event] = events()
    assert_by_system(event, "key.revoked")
    assert (event.organization_id, event.target_id) == (organization.id, str(key.id))


@pytest.mark.parametrize("number", ["99", "0", "-1", "abc", str(2**70)])
def test_keys_revoke_of_no_key_fails(run: Run, number: str) -> None:
    factories.api_key(factories.organization(), id=1)
    failed(run("keys", "revoke", number))
    assert events() == []


def test_keys_revoke_with_a_bad_reason_changes_nothing(run: Run) -> None:
    key, _ = factories.api_key(factories.organization())
    assert "reason" in failed(run("keys", "revoke", key.id, "--reason", "x" * 301))
    db.session.expire_all()
    assert key.works
