"""The commands: what they print, where, with which exit code, and that every change is recorded."""

import contextvars
import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from convene_keys import clock, config, create_app
from convene_keys.accounts import members, organizations, passwords
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.checkup import findings as checkup_findings
from convene_keys.cli import doctor
from convene_keys.db.session import db, raw_connection, transaction
from convene_keys.keys import authentication, tokens
from convene_keys.models import ApiKey, AuditEvent, Booking, Member, Organization
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER, environ
from tests.servers import flask

pytestmark = pytest.mark.pages

PASSWORD = "seven lemons under the pier"
Run = Callable[..., Result]


@pytest.fixture
def run(app: Flask) -> Run:
    runner = app.test_cli_runner()

    def run(*args: object, password: str | None = None) -> Result:
        result = contextvars.Context().run(
            runner.invoke,
            args=[str(arg) for arg in args],
            input=None if password is None else f"{password}\n",
        )
        db.session.rollback()  # so that the test sees what the command changed
        return result

    return run


def succeeded(result: Result) -> str:
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def failed(result: Result) -> str:
    """The one line on stderr of a command that failed with code 1 and said nothing else."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def events() -> list[AuditEvent]:
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def assert_by_system(event: AuditEvent, action: str) -> None:
    assert (event.action, event.actor, event.outcome) == (action, "system", "ok")
    assert (event.ip, event.user_agent, event.member_id, event.key_id) == (None,) * 4


# organization create, member create ---------------------------------------------------------------

NEW_ORGANIZATION = (
    *("organization", "create", "--name", "Pear Tree Markets"),
    *("--admin-name", "Maya", "--admin-email", "maya@example.org", "--password-stdin"),
)


def test_organization_create_prints_its_id_and_makes_an_admin(run: Run) -> None:
    number = int(succeeded(run(*NEW_ORGANIZATION, password=PASSWORD)))
    organization = db.session.get_one(Organization, number)
    admin = db.session.scalars(select(Member)).one()
    assert (organization.name, organization.slug) == ("Pear Tree Markets", "pear-tree-markets")
    assert (admin.organization_id, admin.role, admin.name) == (number, "admin", "Maya")
    [event] = events()
    assert_by_system(event, "organization.created")
    assert event.organization_id == number


def test_organization_create_takes_a_time_zone(run: Run) -> None:
    run(*NEW_ORGANIZATION, "--timezone", "Europe/Stockholm", password=PASSWORD)
    assert db.session.scalar(select(Organization.timezone)) == "Europe/Stockholm"
    assert "Mars/Base" in failed(
        run(*NEW_ORGANIZATION, "--timezone", "Mars/Base", password=PASSWORD)
    )


def test_organization_create_twice_makes_two_unless_the_email_is_taken(run: Run) -> None:
    succeeded(run(*NEW_ORGANIZATION, password=PASSWORD))
    assert "email" in failed(run(*NEW_ORGANIZATION, password=PASSWORD))
    other = [arg.replace("maya@", "noor@") for arg in NEW_ORGANIZATION]
    succeeded(run(*other, password=PASSWORD))
    assert db.session.scalar(select(func.count(Organization.id))) == 2


@pytest.mark.parametrize("password", ["", "short", "convene keys market", "x" * 300])
def test_organization_create_with_a_weak_password_makes_nothing(run: Run, password: str) -> None:
    assert "password" in failed(run(*NEW_ORGANIZATION, password=password))
    assert db.session.scalar(select(func.count(Organization.id))) == 0
    assert events() == []


def test_organization_create_wants_the_password_on_stdin(run: Run) -> None:
    assert "--password-stdin" in failed(run(*NEW_ORGANIZATION[:-1], password=PASSWORD))


def test_member_create_prints_the_id_of_a_member_who_can_sign_in(run: Run, app: Flask) -> None:
    organization = factories.organization()
    number = int(
        succeeded(
            run(
                *("member", "create", "--organization", organization.id, "--name", "Jo Ito"),
                *("--email", "jo@example.org", "--role", "viewer", "--password-stdin"),
                password=PASSWORD,
            )
        )
    )
    member = db.session.get_one(Member, number)
    assert (member.organization_id, member.name, member.role) == (
        organization.id,
        "Jo Ito",
        "viewer",
    )
    assert member.password_hash
    [event] = events()
    assert_by_system(event, "member.added")
    assert PASSWORD not in str(event.__dict__)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--organization": "99"}, "no organization 99"),
        ({"--organization": "0"}, "--organization"),
        ({"--organization": str(2**63)}, "--organization"),
        ({"--organization": "one"}, "--organization"),
        ({"--role": "boss"}, "--role"),
        ({"--email": "nobody"}, "email"),
        ({"--name": " "}, "name"),
        ({"--name": "a\u202eb"}, "name"),
        ({"--name": "x" * 10_000}, "name"),
    ],
)
def test_member_create_says_in_one_line_what_is_wrong(
    run: Run, change: dict[str, str], said: str
) -> None:
    given = {
        "--organization": str(factories.organization().id),
        "--name": "Jo Ito",
        "--email": "jo@example.org",
        "--role": "viewer",
        **change,
    }
    options = [part for option in given.items() for part in option]
    result = run("member", "create", *options, "--password-stdin", password=PASSWORD)
    assert said in failed(result)
    assert db.session.scalar(select(func.count(Member.id))) == 0


def test_member_link_prints_a_link_for_who_is_locked_out(app: Flask, run: Run) -> None:
    maya = factories.member(factories.organization(), email="Maya@example.org")
    link = succeeded(run("member", "link", " maya@EXAMPLE.org")).removesuffix("\n")
    address, code = link.split("/welcome?code=")
    assert address == app.config["SETTINGS"].base_url
    [event] = events()
    assert_by_system(event, "member.invited")
    assert (event.organization_id, event.target_id) == (maya.organization_id, str(maya.id))
    assert code not in str(event.__dict__)

    newer = succeeded(run("member", "link", "maya@example.org")).split("code=")[1].strip()
    for given, status in ((code, 404), (newer, 200)):
        answer = app.test_client().get("/welcome", query_string={"code": given})
        assert answer.status_code == status
    members.accept(newer, PASSWORD, Origin(), [PEPPER])
    assert (events()[-1].action, events()[-1].target_name) == (
        "member.password_set",
        "whoever hosts Convene Keys",
    )


def test_member_link_is_for_active_members(run: Run) -> None:
    of = factories.organization()
    factories.member(of, name="Gus", email="gus@example.org", disabled_at=clock.now())
    assert "There is no member who signs in with" in failed(run("member", "link", "x@example.org"))
    assert "This member is disabled." in failed(run("member", "link", "gus@example.org"))
    assert "EMAIL" in failed(run("member", "link"))
    assert events() == []


# sample-data, setup-link, demo --------------------------------------------------------------------


def test_sample_data_prints_its_counts_once(run: Run) -> None:
    organization = factories.organization()
    stdout = succeeded(run("sample-data", "--organization", organization.id))
    counts = {
        kind.replace(" ", "_"): int(count)
        for kind, count in (line.split(": ") for line in stdout.splitlines())
    }
    [event] = events()
    assert_by_system(event, "sample_data.made")
    assert event.detail == counts
    assert "markets already" in failed(run("sample-data", "--organization", organization.id))
    assert "no such organization" in failed(run("sample-data", "--organization", 99))


def test_setup_link_is_there_until_there_is_an_organization(app: Flask, run: Run) -> None:
    link = succeeded(run("setup-link")).strip()
    settings = app.config["SETTINGS"]
    address, code = link.split("/setup?code=")
    assert address == settings.base_url
    assert organizations.is_setup_code(code, settings.secret_key, settings.key_peppers[0])
    factories.organization()
    assert succeeded(run("setup-link")) == ""


def test_demo_sets_up_once_and_prints_the_same_sign_in(app: Flask, run: Run) -> None:
    first = succeeded(run("demo"))
    recorded = len(events())
    assert succeeded(run("demo")) == first
    assert len(events()) == recorded
    assert app.config["SETTINGS"].base_url in first
    email, password = first.split(" with ")[1].split(" and the password ")

    admin = db.session.scalars(select(Member).where(Member.email == email)).one()
    assert admin.role == "admin"
    assert passwords.fits(password.strip(), admin.password_hash, [PEPPER])


def test_demo_has_keys_that_were_at_work(run: Run) -> None:
    succeeded(run("demo"))
    made = list(db.session.scalars(select(ApiKey)))
    assert {key.status.value for key in made} == {"active", "expiring", "revoked"}
    used = [key for key in made if key.name != "Test"]  # which the check-up is to find
    assert all(key.last_used_at and key.last_used_ip and key.last_used_user_agent for key in used)
    by_keys = [event for event in events() if event.actor == "key"]
    assert {event.key_id for event in by_keys} == {key.id for key in used}
    found = {
        finding.kind
        for finding in checkup_findings.run(db.session(), made[0].organization_id).findings
    }
    assert found == {"unused", "vague", "endless"}
    assert {event.outcome for event in by_keys} == {"ok", "denied"}
    assert {"key.refused", "request.off_limits", "booking.approved"} <= {e.action for e in by_keys}
    waiting = db.session.get_one(Booking, (made[0].organization_id, 123))
    assert waiting.status == "pending"


def test_demo_has_a_past(run: Run) -> None:
    succeeded(run("demo"))
    for key in db.session.scalars(select(ApiKey).where(ApiKey.last_used_at.is_not(None))):
        calls = [e.at for e in events() if e.key_id == key.id and e.actor == "key"]
        assert key.created_at < min(calls)
        tried_since = key.revoked_at is not None
        assert (max(calls) - key.last_used_at > timedelta(days=1)) == tried_since
        assert len({moment.date() for moment in calls}) > 3
        assert max(calls) <= clock.now()


def test_demo_does_not_print_a_password_that_was_changed(run: Run) -> None:
    succeeded(run("demo"))
    admin = db.session.scalars(select(Member).where(Member.role == "admin")).one()
    admin.password_hash = None
    db.session.commit()
    assert "(the one you set)" in succeeded(run("demo"))


def test_demo_leaves_a_database_in_use_alone(run: Run) -> None:
    factories.organization()
    assert "no demo" in failed(run("demo"))
    assert events() == []


# keys ---------------------------------------------------------------------------------------------


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


# audit export -------------------------------------------------------------------------------------


@pytest.fixture
def logged(app: Flask, fake_clock: Clock) -> tuple[Organization, ApiKey]:
    """An organization with an event at noon of each day from 24 to 27 November; two are a key's."""
    organization = factories.organization()
    key, _ = factories.api_key(organization, "=Claude")
    stranger = factories.organization("Other")
    for number in range(4):
        with transaction() as session:
            actor = Actor.of_key(key, Origin()) if number % 2 else Actor.system(organization.id)
            record(session, actor, Action.BOOKING_LISTED, Target("day", number, f"day {number}"))
            record(session, Actor.system(stranger.id), Action.BOOKING_LISTED)
        fake_clock.advance(days=1)
    return organization, key


def exported(stdout: str) -> list[str]:
    return [json.loads(line)["target_id"] for line in stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "days"),
    [
        ((), "0123"),
        (("--since", "2026-11-25"), "123"),
        (("--until", "2026-11-25"), "01"),
        (("--since", "2026-11-25", "--until", "2026-11-26"), "12"),
        (("--since", "2026-11-25T12:00:00Z"), "123"),
        (("--since", "2026-11-25T12:00:01Z"), "23"),
        (("--since", "2026-11-25T14:00:00+02:00"), "123"),
        (("--until", "2026-11-25T12:00:00Z"), "0"),
        (("--since", "2026-12-24"), ""),
        (("--since", "2026-11-27", "--until", "2026-11-24"), ""),
    ],
)
def test_audit_export_gives_the_days_asked_for_oldest_first(
    run: Run, logged: tuple[Organization, ApiKey], options: tuple[str, ...], days: str
) -> None:
    organization, _ = logged
    command = ("audit", "export", "--organization", organization.id, "--format", "jsonl")
    assert exported(succeeded(run(*command, *options))) == list(days)


def test_audit_export_of_one_key_is_what_it_did(
    run: Run, logged: tuple[Organization, ApiKey]
) -> None:
    organization, key = logged
    command = ("audit", "export", "--organization", organization.id, "--key", key.id)
    assert exported(succeeded(run(*command, "--format", "jsonl"))) == ["1", "3"]


def test_audit_export_as_csv_is_safe_in_a_spreadsheet(
    run: Run, logged: tuple[Organization, ApiKey]
) -> None:
    organization, key = logged
    stdout = succeeded(run("audit", "export", "--organization", organization.id, "--format", "csv"))
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert [row["target_id"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["key_name"] for row in rows] == ["", "'=Claude", "", "'=Claude"]
    assert rows[1]["key_id"] == str(key.id)


def test_audit_export_of_an_empty_log_is_a_header(run: Run) -> None:
    organization = factories.organization()
    stdout = succeeded(run("audit", "export", "--organization", organization.id, "--format", "csv"))
    assert stdout.startswith("id,at,organization_id,")
    assert stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "2026-02-30"), "2026-02-30"),
        (("--until", "2026-13-01"), "2026-13-01"),
        (("--since", "yesterday"), "yesterday"),
        (("--since", "2026-11-24T12:00:00"), "no date"),
        (("--until", "9999-12-31"), "9999-12-31"),
        (("--since", "0001-01-01T00:00:00+05:00"), "no date"),
        (("--format", "xml"), "xml"),
        (("--key", "99"), "no such key"),
        (("--key", "x"), "--key"),
        (("--organization", "99"), "no organization 99"),
    ],
)
def test_audit_export_says_in_one_line_what_is_wrong(
    run: Run, logged: tuple[Organization, ApiKey], options: tuple[str, ...], said: str
) -> None:
    organization, _ = logged
    command = ("audit", "export", "--organization", organization.id, "--format", "csv")
    assert said in failed(run(*command, *options))


def test_audit_export_needs_a_format(run: Run) -> None:
    assert "--format" in failed(
        run("audit", "export", "--organization", factories.organization().id)
    )


def test_audit_export_does_not_find_another_organizations_key(
    run: Run, logged: tuple[Organization, ApiKey]
) -> None:
    _, key = logged
    other = factories.organization("Third")
    command = ("audit", "export", "--organization", other.id, "--format", "csv")
    assert "no such key" in failed(run(*command, "--key", key.id))


# doctor -------------------------------------------------------------------------------------------


def findings(result: Result) -> dict[str, tuple[str, str]]:
    """check -> (verdict, text)"""
    lines = (line.split(maxsplit=1) for line in result.stdout.splitlines())
    parts = ((verdict, *rest.split(": ", 1)) for verdict, rest in lines)
    return {check: (verdict, text) for verdict, check, text in parts}


def test_doctor_has_a_line_a_check(app: Flask, run: Run) -> None:
    result = run("doctor")
    assert list(findings(result)) == list(doctor.CHECKS)
    assert {verdict for verdict, _ in findings(result).values()} <= {"ok", "warning"}
    succeeded(result)
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[db.engine.dialect.name]
    assert kind in findings(result)["database"][1]


def failing(result: Result) -> dict[str, str]:
    assert (result.exit_code, result.stderr) == (5, "")
    return {
        check: text for check, (verdict, text) in findings(result).items() if verdict == "failed"
    }


def test_doctor_finds_tables_that_are_not_up_to_date(run: Run) -> None:
    db.session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    db.session.commit()
    assert "db upgrade" in failing(run("doctor"))["database"]
    db.session.execute(text("DELETE FROM alembic_version"))
    db.session.commit()
    assert "is empty" in failing(run("doctor"))["database"]


def test_doctor_finds_a_database_that_does_not_answer(
    app: Flask, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(*_: object, **__: object) -> None:

        raise OperationalError("SELECT 1", {}, Exception("away"))

    monkeypatch.setattr(db.engine, "connect", away)
    found = failing(run("doctor"))
    assert "does not answer" in found["database"]
    assert set(found) <= {"database", "API keys", "clock"}


@pytest.mark.parametrize("year", [1970, 2025, 2100])
def test_doctor_finds_a_clock_of_another_age(run: Run, fake_clock: Clock, year: int) -> None:
    fake_clock.moment = datetime(year, 1, 1, tzinfo=UTC)
    assert str(year) in failing(run("doctor"))["clock"]


def test_doctor_compares_the_clock_with_the_databases(
    app: Flask, run: Run, fake_clock: Clock
) -> None:
    with db.engine.connect() as connection:
        there = connection.scalar(select(func.current_timestamp()))
    fake_clock.moment = (there if there.tzinfo else there.replace(tzinfo=UTC)) + timedelta(
        seconds=90
    )
    if db.engine.dialect.name == "postgresql":
        assert "seconds off" in failing(run("doctor"))["clock"]
    else:
        succeeded(run("doctor"))


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 6, 23), True),
        ((3, 7, 0), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
    ],
)
def test_doctor_knows_which_sqlite_can_damage_a_database(
    app: Flask, run: Run, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], safe: bool
) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    verdict, said = findings(run("doctor"))["SQLite version"]
    if db.engine.dialect.name == "postgresql":
        assert (verdict, said) == ("ok", "not in use")
    else:
        assert verdict == ("ok" if safe else "warning")


@pytest.mark.parametrize(
    ("setting", "check", "verdict"),
    [
        ({"BASE_URL": "http://keys.example.org"}, "configuration", "failed"),
        ({"BASE_URL": "http://localhost:9000"}, "configuration", "ok"),
        ({"BASE_URL": "https://keys.example.org"}, "configuration", "ok"),
        ({"BASE_URL": "https://keys.example.org"}, "proxy", "warning"),
        ({"BASE_URL": "https://keys.example.org", "TRUSTED_PROXIES": "1"}, "proxy", "ok"),
        ({"BASE_URL": "http://127.0.0.1:8000"}, "proxy", "ok"),
    ],
)
def test_doctor_looks_at_the_configuration(
    sqlite_url: str, setting: dict[str, str], check: str, verdict: str
) -> None:

    app = create_app(environ(sqlite_url, **setting))
    result = app.test_cli_runner().invoke(args=["doctor"])
    assert findings(result)[check][0] == verdict
    assert result.exit_code == (5 if verdict == "failed" else 0)


@pytest.mark.parametrize("name", ["secret_key", "key_pepper", "audit_key", "."])
def test_doctor_finds_secrets_that_others_may_read(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:

    load = config.load
    folder = tmp_path / "instance"
    monkeypatch.setattr("convene_keys.config.load", lambda environ: load(environ, folder))
    app = create_app({"DATABASE_URL": sqlite_url})
    check = app.test_cli_runner()
    before = findings(check.invoke(args=["doctor"]))["secrets"]
    assert before == ("ok", f"kept in {folder}, for their owner alone")
    (folder / name).chmod(0o755)
    assert "chmod" in failing(check.invoke(args=["doctor"]))["secrets"]


def test_doctor_does_not_mind_files_of_secrets_that_are_not_in_use(run: Run) -> None:
    assert findings(run("doctor"))["secrets"] == ("ok", "from the environment")


def test_doctor_says_when_the_log_has_no_key_of_its_own(sqlite_url: str) -> None:
    for audit_key in ("", PEPPER):
        app = create_app({**environ(sqlite_url), "AUDIT_KEY": audit_key})
        verdict, said = findings(app.test_cli_runner().invoke(args=["doctor"]))["secrets"]
        assert (verdict, "Set AUDIT_KEY" in said) == ("warning", True)


def test_doctor_finds_a_key_that_the_log_has_not_seen_being_made(
    app: Flask, run: Run, organization: Organization
) -> None:
    succeeded(run("keys", "create", "--organization", organization.id, "--name", "Honest"))
    assert findings(run("doctor"))["API keys"][0] == "ok"
    row, _ = factories.api_key(organization, "Minted")
    said = failing(run("doctor"))["API keys"]
    assert said == f"1 that the log has not seen being made; the first: {row.id}"
    with transaction() as session:
        target = Target("key", row.id, row.name)
        record(session, Actor.system(organization.id), Action.KEY_CREATED, target)
    assert "API keys" in failing(run("doctor")), "of another hint"


# All ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["organization", "member", "keys", "audit"])
def test_groups_say_in_one_line_that_a_command_is_missing_or_unknown(run: Run, group: str) -> None:
    assert "--help" in failed(run(group))
    assert "nonsense" in failed(run(group, "nonsense"))
    assert succeeded(run(group, "--help")).startswith("Usage: ")


def test_commands_say_in_one_line_that_the_database_has_no_tables(tmp_path: Path) -> None:

    app = create_app(environ(f"sqlite:///{tmp_path}/empty.db"))
    runner = app.test_cli_runner()
    for command in (["setup-link"], ["demo"], ["keys", "list", "--organization", "1"]):
        assert "the command: doctor" in failed(runner.invoke(args=command))


@pytest.mark.slow
def test_a_real_process_sets_up_makes_a_key_and_exports(database_url: str) -> None:
    made = flask(database_url, *NEW_ORGANIZATION, typed=f"{PASSWORD}\n")
    assert (made.returncode, made.stderr) == (0, "")
    number = made.stdout.strip()
    key = flask(database_url, "keys", "create", "--organization", number, "--name", "Lönneberga")
    assert (key.returncode, key.stderr) == (0, "")
    assert tokens.is_well_formed(key.stdout.strip())
    log = flask(database_url, "audit", "export", "--organization", number, "--format", "jsonl")
    assert (log.returncode, log.stderr) == (0, "")
    rows = [json.loads(line) for line in log.stdout.splitlines()]
    assert [row["action"] for row in rows] == ["organization.created", "key.created"]
    assert rows[1]["target_name"] == "Lönneberga"
    assert key.stdout.strip() not in log.stdout


@pytest.mark.slow
def test_a_real_process_fails_with_one_line(sqlite_url: str) -> None:
    for args, settings in (
        (("keys", "revoke", "99"), {}),
        (("keys", "create"), {}),
        (("doctor",), {"TRUSTED_PROXIES": "many"}),
    ):
        result = flask(sqlite_url, *args, **settings)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1, result.stderr
