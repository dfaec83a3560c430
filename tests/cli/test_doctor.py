"""`doctor`: a line for each check, what it finds, and with which exit code it ends."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from convene_keys import config, create_app
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Target, record
from convene_keys.cli import doctor
from convene_keys.db.session import db, transaction
from convene_keys.models import Organization
from tests import factories
from tests.cli.conftest import Run, succeeded
from tests.conftest import Clock
from tests.databases import PEPPER, environ

pytestmark = pytest.mark.on_sqlite


def findings(result: Result) -> dict[str, tuple[str, str]]:
    """check -> (verdict, text)"""
    lines = (line.split(maxsplit=1) for line in result.stdout.splitlines())
    parts = ((verdict, *rest.split(": ", 1)) for verdict, rest in lines)
    return {check: (verdict, text) for verdict, check, text in parts}


def failing(result: Result) -> dict[str, str]:
    assert (result.exit_code, result.stderr) == (5, "")
    return {
        check: text for check, (verdict, text) in findings(result).items() if verdict == "failed"
    }


def test_doctor_has_a_line_a_check(app: Flask, run: Run) -> None:
    result = run("doctor")
    assert list(findings(result)) == list(doctor.CHECKS)
    assert {verdict for verdict, _ in findings(result).values()} <= {"ok", "warning"}
    succeeded(result)
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[db.engine.dialect.name]
    assert kind in findings(result)["database"][1]


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
