"""`audit export`: which events it gives, in what form, and to whom."""

import csv
import io
import json

import pytest
from flask import Flask

from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import transaction
from convene_keys.models import ApiKey, Organization
from tests import factories
from tests.cli.conftest import Run, failed, succeeded
from tests.conftest import Clock

pytestmark = pytest.mark.on_sqlite


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
