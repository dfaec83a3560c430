"""`organization`, `member`, `sample-data` and `setup-link`: what they make, print and record."""

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys import clock
from convene_keys.accounts import members, organizations
from convene_keys.audit.log import Origin
from convene_keys.db.session import db
from convene_keys.models import Member, Organization
from tests import factories
from tests.cli.conftest import (
    NEW_ORGANIZATION,
    PASSWORD,
    Run,
    assert_by_system,
    events,
    failed,
    succeeded,
)
from tests.databases import PEPPER

pytestmark = pytest.mark.on_sqlite


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
