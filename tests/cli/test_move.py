"""`move-database`: everything arrives, every value alike, and the target goes on from there."""

import contextvars
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import Engine, event, inspect, select, text
from sqlalchemy.exc import DBAPIError

from convene_keys import create_app
from convene_keys.db.session import Base, db
from convene_keys.models import AuditEvent
from tests import factories
from tests.databases import Postgres, environ

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def opened(url: str) -> Iterator[Flask]:
    app = create_app(environ(url))
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()


def flask(url: str, *args: object) -> Result:
    """What a command says on the database at `url`."""
    with opened(url) as app:
        invoke = app.test_cli_runner().invoke
        return contextvars.Context().run(invoke, args=[str(arg) for arg in args])


def failed(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def tables(url: str) -> list[str]:
    with opened(url):
        return inspect(db.engine).get_table_names()


@pytest.fixture(scope="module")
def season(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An SQLite installation with a season of sample data and keys at work, and one more key."""
    path = shutil.copy(sqlite_template, tmp_path_factory.mktemp("season") / "keys.db")
    url = f"sqlite:///{path}"
    assert flask(url, "demo").exit_code == 0
    token = flask(url, "keys", "create", "--organization", 1, "--name", "Moves along")
    return path, token.stdout.strip()


@pytest.fixture
def source(season: tuple[Path, str], tmp_path: Path) -> tuple[str, str]:
    """A copy of that, and the key."""
    return f"sqlite:///{shutil.copy(season[0], tmp_path / 'source.db')}", season[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with nothing in it, not even tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/moved/keys.db"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        name = server.create("template0")
        yield server.url(name)
        server.drop(name)


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    with opened(url), db.engine.connect() as connection:
        return {
            table.name: [
                tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))
            ]
            for table in Base.metadata.sorted_tables
        }


def test_everything_arrives_and_the_target_goes_on(source: tuple[str, str], target: str) -> None:
    url, token = source
    before = everything(url)
    moved = flask(url, "move-database", "--to", target)

    assert (moved.exit_code, moved.stderr) == (0, "")
    assert dict(line.split(": ") for line in moved.stdout.splitlines()) == {
        name: str(len(rows)) for name, rows in before.items()
    }
    assert len(before["booking"]) > 100
    assert everything(target) == everything(url) == before
    for command in (("keys", "list", "--json"), ("audit", "export", "--format", "jsonl")):
        listed = flask(target, *command, "--organization", 1)
        assert listed.stdout == flask(url, *command, "--organization", 1).stdout != ""

    last = before["audit_event"][-1][0]
    with opened(target) as app:
        key = {"Authorization": f"Bearer {token}"}
        assert app.test_client().get("/api/v1/admin/bookings/123", headers=key).status_code == 200
        events = db.session.scalars(select(AuditEvent).where(AuditEvent.id > last)).all()
        assert [(e.id, e.action, e.key_name) for e in events] == [
            (last + 1, "booking.viewed", "Moves along")
        ]
        for change in ("UPDATE audit_event SET outcome = 'failed'", "DELETE FROM audit_event"):
            with pytest.raises(DBAPIError, match="audit events can not be"):
                db.session.execute(text(change))
            db.session.rollback()
    assert flask(target, "doctor").exit_code == 0


def test_a_target_with_empty_tables_is_empty(source: tuple[str, str], target: str) -> None:
    with opened(target):
        upgrade()
    assert flask(source[0], "move-database", "--to", target).exit_code == 0
    assert everything(target) == everything(source[0])


def test_new_ids_follow_the_last_that_was_ever_given(sqlite_url: str, target: str) -> None:
    with opened(sqlite_url):
        of = factories.organization()
        gone, _ = factories.api_key(of, id=1000)
        db.session.delete(gone)
        db.session.commit()
    assert flask(sqlite_url, "move-database", "--to", target).exit_code == 0
    with opened(target):
        of = factories.organization()
        assert of.id == 2
        assert factories.api_key(of)[0].id == 1001


def test_a_target_that_is_not_empty_is_refused(source: tuple[str, str], target: str) -> None:
    with opened(target):
        upgrade()
        factories.organization("Already here")
    before = everything(target)
    said = failed(flask(source[0], "move-database", "--to", target))
    assert said == "Error: The target is not empty: it has rows in organization.\n"
    assert everything(target) == before


def test_a_move_that_fails_leaves_nothing(source: tuple[str, str], target: str) -> None:
    path = source[0].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as raw, raw:  # which checks no foreign keys
        raw.execute("UPDATE booking SET vendor_id = 9999 WHERE id = 100")
    said = failed(flask(source[0], "move-database", "--to", target))
    assert "foreign key" in said.lower()
    assert tables(target) == []


BENT = {
    # A row that changes and one that gets lost on the way, done by the target itself.
    ("sqlite", "changed"): "UPDATE booking SET amount = amount + 1 WHERE id = {row}",
    ("sqlite", "lost"): "DELETE FROM booking WHERE id = {row}",
    (
        "postgresql",
        "changed",
    ): "IF NEW.id = {row} THEN NEW.amount = NEW.amount + 1; END IF; RETURN NEW",
    ("postgresql", "lost"): "IF NEW.id = {row} THEN RETURN NULL; END IF; RETURN NEW",
}


@pytest.mark.parametrize("way", ["changed", "lost"])
def test_a_row_that_arrives_otherwise_stops_the_move(
    source: tuple[str, str], target: str, way: str
) -> None:
    # The last one: how many there are depends on the day of the week.
    row = 7 if way == "changed" else everything(source[0])["booking"][-1][1]
    with opened(target):
        upgrade()
        kind = db.engine.dialect.name
        bent = BENT[kind, way].format(row=row)
        with db.engine.begin() as connection:
            if kind == "sqlite":
                trigger = f"AFTER INSERT ON booking BEGIN {bent}; END"
            else:
                connection.exec_driver_sql(
                    "CREATE FUNCTION bend() RETURNS trigger LANGUAGE plpgsql AS "
                    f"$$ BEGIN {bent}; END $$"
                )
                trigger = "BEFORE INSERT ON booking FOR EACH ROW EXECUTE FUNCTION bend()"
            connection.exec_driver_sql(f"CREATE TRIGGER bend {trigger}")
    said = failed(flask(source[0], "move-database", "--to", target))
    assert f"Row {row} of booking is not the same" in said
    assert not any(everything(target).values())


def test_nobody_writes_while_it_runs(source: tuple[str, str], target: str) -> None:
    path = source[0].removeprefix("sqlite:///")
    refused = []

    def while_it_copies(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO booking"):
            with (
                closing(sqlite3.connect(path, timeout=0)) as raw,
                pytest.raises(sqlite3.OperationalError, match="locked"),
            ):
                raw.execute("BEGIN IMMEDIATE")
            refused.append(statement)

    event.listen(Engine, "before_cursor_execute", while_it_copies)
    try:
        assert flask(source[0], "move-database", "--to", target).exit_code == 0
    finally:
        event.remove(Engine, "before_cursor_execute", while_it_copies)
    assert refused


TELL_MEMORY = """
import atexit, pathlib, re, sys
from flask.cli import main
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]))
main()
"""


def memory(url: str, *args: str) -> int:
    """The most that a command's process held, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", TELL_MEMORY, "--app", "wsgi", *args],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ(url)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.soak
def test_memory_does_not_grow_with_the_log(sqlite_url: str, target: str) -> None:
    with opened(sqlite_url):
        of = factories.organization()
        row = {"at": datetime.now(UTC), "organization_id": of.id, "actor": "system"}
        row |= {"action": "sample_data.made", "outcome": "ok", "detail": {"of": "x" * 16_000}}
        db.session.execute(AuditEvent.__table__.insert(), [row] * 3_000)
        db.session.commit()
    with opened(target):
        upgrade()
    idle = memory(target, "doctor")
    assert memory(sqlite_url, "move-database", "--to", target) - idle < 35e6  # of 48 million


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://host/name", "--to: must name an SQLite file or a PostgreSQL database"),
        ("sqlite:///:memory:", "--to: must be a file"),
        ("postgresql://127.0.0.1:1/name", "The database can’t be used (connection failed"),
        ("SELF", "--to is the database that is in use now."),
    ],
)
def test_a_target_of_no_use_is_refused_in_one_line(sqlite_url: str, url: str, said: str) -> None:
    url = url.replace("SELF", sqlite_url)
    assert failed(flask(sqlite_url, "move-database", "--to", url)).startswith(f"Error: {said}")


def test_only_sqlite_that_is_up_to_date_is_moved(
    tmp_path: Path, postgres: Postgres, target: str
) -> None:
    new = f"sqlite:///{tmp_path}/new.db"
    assert "the command: db upgrade" in failed(flask(new, "move-database", "--to", target))
    name = postgres.create()
    said = failed(flask(postgres.url(name), "move-database", "--to", target))
    assert "pg_dump" in said
    postgres.drop(name)
    assert tables(target) == []
