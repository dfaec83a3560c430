"""Writing together: one commit for many calls, and only the one at fault fails."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask
from sqlalchemy import Engine, event, insert, select
from sqlalchemy.exc import IntegrityError, StatementError

from convene_keys.extensions import Statement, _queue_of, db, write_together
from convene_keys.models import Base, Organization

TABLE = Base.metadata.tables["organization"]
INSERT = insert(TABLE)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def _organization(slug: str, created_at: object = NOON) -> Statement:
    values = {"name": slug, "slug": slug, "status": "live", "timezone": "UTC", "plan": "free"}
    return INSERT, {**values, "created_at": created_at}


def _slugs() -> set[str]:
    db.session.rollback()
    return set(db.session.scalars(select(Organization.slug)))


@pytest.fixture
def commits(app: Flask) -> list[None]:
    """Grows by one with each commit."""
    made: list[None] = []
    event.listen(db.engine, "commit", lambda _: made.append(None))
    return made


def _all_at_once(engine: Engine, writes: list[Callable[[], None]]) -> list[BaseException]:
    """Let each of `writes` wait in line behind a writer that holds the turn; then let them go."""
    errors: list[BaseException] = []

    def run(write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    queue = _queue_of(engine)
    threads = [threading.Thread(target=run, args=[write]) for write in writes]
    with queue.turn:
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(queue.waiting) < number:
                pass
    for thread in threads:
        thread.join(timeout=30)
    return errors


def test_those_who_wait_share_one_commit(app: Flask, commits: list[None]) -> None:
    engine = db.engine
    writes = [lambda n=n: write_together(engine, [_organization(f"o{n}")]) for n in range(6)]
    assert _all_at_once(engine, writes) == []
    assert _slugs() == {f"o{n}" for n in range(6)}
    assert len(commits) == 1


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (_organization("taken"), IntegrityError),  # the database refuses it
        (_organization("never", "no moment"), StatementError),  # it never gets that far
    ],
)
def test_only_the_one_at_fault_fails(
    app: Flask, bad: Statement, error: type[Exception], place: int
) -> None:
    engine = db.engine
    write_together(engine, [_organization("taken")])
    statements = [_organization(slug) for slug in ("a", "b", "c")]
    statements.insert(place, bad)
    writes = [lambda s=s: write_together(engine, [s]) for s in statements]
    errors = _all_at_once(engine, writes)
    assert [type(each) for each in errors] == [error]
    assert _slugs() == {"taken", "a", "b", "c"}
    assert not _queue_of(engine).waiting


def test_what_one_caller_writes_is_written_whole_or_not_at_all(app: Flask) -> None:
    write_together(db.engine, [_organization("taken")])
    with pytest.raises(IntegrityError):
        write_together(db.engine, [_organization("new"), _organization("taken")])
    assert _slugs() == {"taken"}


def test_it_is_on_disk_when_it_returns(app: Flask) -> None:
    write_together(db.engine, [_organization("there")])
    db.engine.dispose()
    assert _slugs() == {"there"}
