"""Writing together: one commit for many calls, and only the one at fault fails."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from convene_keys.db import commits as db_commits
from convene_keys.db.commits import Statement, queue_of
from convene_keys.db.connections import (
    Batch,
    OwnConnection,
    PostgreSQLConnection,
    SQLiteConnection,
    reading,
)
from convene_keys.db.session import db
from convene_keys.db.statements import CompiledStatement
from convene_keys.models import Base, Organization

COLUMNS = (
    *("name", "slug", "status", "timezone", "plan", "created_at"),
    *("key_makers", "rotate_months"),
)
INSERT = CompiledStatement(insert(Base.metadata.tables["organization"]).inline(), COLUMNS)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def _organization(slug: str, created_at: object = NOON) -> Statement:
    values = {"name": slug, "slug": slug, "status": "live", "timezone": "UTC", "plan": "free"}
    values |= {"key_makers": "managers", "rotate_months": 6}
    return INSERT, {**values, "created_at": created_at}


def _slugs() -> set[str]:
    db.session.rollback()
    return set(db.session.scalars(select(Organization.slug)))


def write_together(statements: list[Statement]) -> None:
    with reading(db.engine) as connection:
        db_commits.write_together(connection, statements)


@pytest.fixture
def commits(app: Flask, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each transaction that is written."""
    made: list[None] = []

    def counted(kind: type[OwnConnection]) -> Callable[[OwnConnection, Batch], None]:
        write = kind.write

        def write_and_count(connection: OwnConnection, batch: Batch) -> None:
            write(connection, batch)
            made.append(None)

        return write_and_count

    for kind in (SQLiteConnection, PostgreSQLConnection):
        monkeypatch.setattr(kind, "write", counted(kind))
    return made


def _all_at_once(app: Flask, writes: list[list[Statement]]) -> list[BaseException]:
    """Let each of `writes` wait in line behind a writer that holds the turn; then let them go."""
    errors: list[BaseException] = []

    def run(statements: list[Statement]) -> None:
        try:
            with app.app_context():
                write_together(statements)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    queue = queue_of(db.engine)
    threads = [threading.Thread(target=run, args=[statements]) for statements in writes]
    with queue.turn:
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(queue.waiting) < number:
                pass
    for thread in threads:
        thread.join(timeout=30)
    return errors


def test_those_who_wait_share_one_commit(app: Flask, commits: list[None]) -> None:
    assert _all_at_once(app, [[_organization(f"o{n}")] for n in range(6)]) == []
    assert _slugs() == {f"o{n}" for n in range(6)}
    assert len(commits) == 1


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (_organization("taken"), IntegrityError),  # the database refuses it
        (_organization("never", "no moment"), AttributeError),  # it never gets that far
    ],
)
def test_only_the_one_at_fault_fails(
    app: Flask, bad: Statement, error: type[Exception], place: int
) -> None:
    write_together([_organization("taken")])
    statements = [_organization(slug) for slug in ("a", "b", "c")]
    statements.insert(place, bad)
    errors = _all_at_once(app, [[statement] for statement in statements])
    assert [type(each) for each in errors] == [error]
    assert _slugs() == {"taken", "a", "b", "c"}
    queue = queue_of(db.engine)
    assert not queue.waiting
    assert not queue.led
    write_together([_organization("later")])


def test_what_one_caller_writes_is_written_whole_or_not_at_all(app: Flask) -> None:
    write_together([_organization("taken")])
    with pytest.raises(IntegrityError):
        write_together([_organization("new"), _organization("taken")])
    assert _slugs() == {"taken"}


def test_it_is_on_disk_when_it_returns(app: Flask) -> None:
    write_together([_organization("there")])
    db.engine.dispose()
    assert _slugs() == {"there"}
