"""Sessions and transactions: whole or not at all, in turn, and on what is there by then."""

import os
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import UniqueConstraint, select, text, update
from sqlalchemy.exc import IntegrityError

from convene_keys import create_app
from convene_keys.db.connections import reading
from convene_keys.db.session import (
    alone,
    db,
    is_duplicate,
    raw_connection,
    serialize,
    transaction,
    write,
)
from convene_keys.db.statements import CompiledStatement
from convene_keys.models import ACTIVE_NAME, Member, Organization
from tests import factories
from tests.conftest import wait_for
from tests.databases import environ
from tests.db.conftest import ORGANIZATIONS, SLUGS

(SLUG,) = (each for each in ORGANIZATIONS.constraints if isinstance(each, UniqueConstraint))
on_postgresql = pytest.mark.parametrize("shared", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("shared", ["sqlite"], indirect=True)


def slugs() -> set[str]:
    """As another connection sees them."""
    with db.engine.connect() as connection:
        return set(connection.scalars(select(ORGANIZATIONS.c.slug)))


# A transaction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_a_transaction_is_written_whole_or_not_at_all(app: Flask, own: bool) -> None:
    engine = db.engine if own else None
    with transaction(engine) as session:
        session.add_all(Organization(name=slug, slug=slug) for slug in ("a", "b"))
        assert slugs() == set()
    assert slugs() == {"a", "b"}
    with suppress(ZeroDivisionError), transaction(engine) as session:
        session.add(Organization(name="c", slug="c"))
        session.flush()
        raise ZeroDivisionError
    assert slugs() == {"a", "b"}
    with transaction(engine) as session:  # and the next one begins with nothing
        session.add(Organization(name="d", slug="d"))
    assert slugs() == {"a", "b", "d"}


def test_a_transaction_forgets_what_was_read_before_it(app: Flask) -> None:
    organization = factories.organization("Before")
    assert organization.name == "Before"
    with transaction(db.engine) as elsewhere:
        elsewhere.execute(update(Organization).values(name="After"))
    with transaction():
        assert organization.name == "After"


@on_sqlite
def test_a_transaction_of_sqlite_may_write_from_its_beginning(app: Flask) -> None:
    """A read that turned into a write would fail where somebody wrote between."""
    with closing(sqlite3.connect(str(db.engine.url.database), timeout=0)) as other:
        with transaction() as session:
            session.scalars(select(Organization)).all()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


def test_the_sessions_own_changes_are_seen(app: Flask) -> None:
    with transaction() as session:
        session.add(Organization(name="New", slug="new"))
        assert raw_connection(session).all(SLUGS) == [("new",)]
        with reading(db.engine) as connection:
            assert connection.all(SLUGS) == []


def test_statements_come_after_what_the_session_changed_and_go_with_it(app: Flask) -> None:
    rename = CompiledStatement(update(ORGANIZATIONS).values(name="Renamed"))
    for slug in ("kept", "gone"):
        with suppress(ZeroDivisionError), transaction() as session:
            session.add(Organization(name="New", slug=slug))
            write(session, [(rename, {})])
            if slug == "gone":
                raise ZeroDivisionError
    found = db.session.execute(select(Organization.slug, Organization.name)).all()
    assert [tuple(row) for row in found] == [("kept", "Renamed")]


# What refuses a write ----------------------------------------------------------------------------


def test_a_duplicate_is_known_by_what_refused_it(app: Flask) -> None:
    organization = factories.organization()
    with pytest.raises(IntegrityError) as same_slug, transaction() as session:
        session.add(Organization(name="Other", slug=organization.slug))
    assert is_duplicate(same_slug.value, SLUG)
    assert not is_duplicate(same_slug.value, ACTIVE_NAME)
    factories.api_key(organization, "Till")
    with pytest.raises(IntegrityError) as same_name:
        factories.api_key(organization, "Till")
    db.session.rollback()
    assert is_duplicate(same_name.value, ACTIVE_NAME)
    assert not is_duplicate(same_name.value, SLUG)


def test_a_row_of_what_is_not_there_is_refused_without_telling_what_is_in_it(app: Flask) -> None:
    with pytest.raises(IntegrityError) as refused, transaction() as session:
        session.add(
            Member(
                organization_id=99,
                name="Noor",
                email="noor@example.org",
                email_folded="noor@example.org",
                role="admin",
            )
        )
    assert "noor@" not in str(refused.value), "it would be in the log"
    assert not is_duplicate(refused.value, SLUG)


# One at a time -----------------------------------------------------------------------------------


@on_postgresql
def test_one_transaction_at_a_time_passes_a_name(app: Flask) -> None:
    passed: list[str] = []

    def pass_by(name: str) -> None:
        with app.app_context(), transaction() as session:
            serialize(session, name)
            passed.append(name)

    threads = [threading.Thread(target=pass_by, args=[name]) for name in ("mine", "another")]
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with transaction() as session:
        serialize(session, "mine")
        for thread in threads:
            thread.start()
        wait_for(lambda: session.scalar(waiting) == 1 and passed == ["another"])
    for thread in threads:
        thread.join(timeout=30)
    assert passed == ["another", "mine"]


def test_only_one_is_alone_under_a_name_and_nobody_waits(app: Flask) -> None:
    for _ in range(2):
        with alone("a") as mine, alone("a") as too, alone("b") as other:
            assert (mine, too, other) == (True, False, True)
            with alone("a") as still_not:
                assert not still_not


def test_whoever_fails_is_alone_no_longer(app: Flask) -> None:
    with pytest.raises(ZeroDivisionError), alone("a"):
        raise ZeroDivisionError
    with alone("a") as mine:
        assert mine


def test_nobody_is_kept_out_by_a_process_that_died(app: Flask) -> None:
    def is_free() -> bool:
        with alone("a") as mine:
            return mine

    told, tell = os.pipe()
    end, never = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            db.engine.dispose(close=False)  # its parent's connections are its parent's
            with alone("a") as mine:
                os.write(tell, b"+" if mine else b"-")
                os.close(never)
                os.read(end, 1)  # until its parent says so
                os._exit(0)  # as if it were killed: nothing is tidied up
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(told, 1) == b"+"
    assert not is_free()
    os.close(never)
    assert os.waitpid(child, 0)[1] == 0
    wait_for(is_free)  # PostgreSQL hears of it a moment later
    os.close(told)
    os.close(end)


# SQLite ------------------------------------------------------------------------------------------


def test_a_new_sqlite_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.db"
    app = create_app(environ(f"sqlite:///{path}"))
    with app.app_context():
        with db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE something (id INTEGER)")
        db.engine.dispose()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}
