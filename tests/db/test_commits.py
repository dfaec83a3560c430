"""Writing durably: all or nothing, only the one at fault fails, and what returned is on disk."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from convene_keys.db import commits as db_commits
from convene_keys.db.commits import queue_of
from convene_keys.db.connections import reading
from convene_keys.db.session import db
from convene_keys.db.statements import CompiledStatement, Statement
from convene_keys.models import Base, Organization
from tests.conftest import wait_for

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


def write_durably(statements: list[Statement]) -> None:
    with reading(db.engine) as connection:
        db_commits.write_durably(connection, statements)


@contextmanager
def writing(app: Flask, writes: list[list[Statement]]) -> Iterator[list[BaseException]]:
    """A thread for each of `writes`; what they raised, once they have ended."""
    errors: list[BaseException] = []

    def run(statements: list[Statement]) -> None:
        try:
            with app.app_context():
                write_durably(statements)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=[statements]) for statements in writes]
    for thread in threads:
        thread.start()
    yield errors
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


ON_SQLITE = pytest.mark.parametrize("shared", ["sqlite"], indirect=True)


def on_each_flush(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Have `act` done before anything is written to disk, with the number of times before."""
    flush, number = os.fdatasync, iter(range(10_000))

    def act_and_flush(file: int) -> None:
        act(next(number))
        flush(file)

    monkeypatch.setattr(os, "fdatasync", act_and_flush)


@ON_SQLITE
def test_those_who_wait_for_the_disk_share_one_write_to_it(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[int] = []
    on_each_flush(monkeypatch, flushes.append)
    slugs = {f"o{n}" for n in range(6)}
    disk = queue_of(db.engine).disk
    disk.acquire()
    with writing(app, [[_organization(slug)] for slug in slugs]) as errors:
        wait_for(lambda: _slugs() == slugs)  # they commit while none of them goes on
        assert flushes == []
        disk.release()
    assert (errors, flushes) == ([], [0])
    write_durably([_organization("later")])
    assert flushes == [0, 1]


@ON_SQLITE
def test_whatever_returned_is_there_after_a_loss_of_power(
    app: Flask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy of the files from before each write to disk has what that will surely have written."""
    file, copies, lock = Path(db.engine.url.database or ""), [-1], threading.Lock()
    answered: list[tuple[str, int]] = []  # and the newest write to disk that had ended by then

    def copy(number: int) -> None:
        (tmp_path / f"{number}").mkdir()
        for name in (file.name, f"{file.name}-wal"):
            shutil.copy(file.with_name(name), tmp_path / f"{number}" / name)

    flush, number = os.fdatasync, iter(range(10_000))

    def copy_and_flush(wal: int) -> None:
        this = next(number)
        copy(this)
        flush(wal)
        copies.append(this)

    monkeypatch.setattr(os, "fdatasync", copy_and_flush)

    def call(caller: int) -> None:
        with app.app_context():
            for n in range(10):
                write_durably([_organization(f"o{caller}-{n}"), _organization(f"p{caller}-{n}")])
                with lock:
                    answered.append((f"o{caller}-{n}", max(copies)))

    callers = [threading.Thread(target=call, args=[caller]) for caller in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert len(answered) == 80
    assert len(copies) - 1 < 80, "some shared a write to disk"
    for last in set(copies) - {-1}:
        with closing(sqlite3.connect(tmp_path / f"{last}" / file.name)) as lost_power:
            there = {slug for (slug,) in lost_power.execute("SELECT slug FROM organization")}
        assert {slug for slug, newest in answered if newest <= last} <= there
        assert {slug[1:] for slug in there if slug[0] == "o"} == {
            slug[1:] for slug in there if slug[0] == "p"
        }


@ON_SQLITE
def test_what_the_disk_fails_at_is_written_another_way_or_fails(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    write_durably([_organization("there")])
    file = Path(db.engine.url.database or "")
    assert file.with_name(f"{file.name}-wal").stat().st_size == 0
    db.session.execute(select(Organization.slug))  # who reads keeps the WAL
    db.engine.raw_connection().driver_connection.execute("PRAGMA busy_timeout=0")
    with reading(db.engine) as connection:
        connection.driver.execute("PRAGMA busy_timeout=0")
        with pytest.raises(OperationalError, match="Input/output error"):
            db_commits.write_durably(connection, [_organization("lost")])


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
    write_durably([_organization("taken")])
    statements = [_organization(slug) for slug in ("a", "b", "c")]
    statements.insert(place, bad)
    with writing(app, [[statement] for statement in statements]) as errors:
        pass
    assert [type(each) for each in errors] == [error]
    assert _slugs() == {"taken", "a", "b", "c"}
    write_durably([_organization("later")])


def test_what_one_caller_writes_is_written_whole_or_not_at_all(app: Flask) -> None:
    write_durably([_organization("taken")])
    with pytest.raises(IntegrityError):
        write_durably([_organization("new"), _organization("taken")])
    assert _slugs() == {"taken"}


def test_it_is_on_disk_when_it_returns(app: Flask) -> None:
    write_durably([_organization("there")])
    db.engine.dispose()
    assert _slugs() == {"there"}
