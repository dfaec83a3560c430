"""Sealed logs of tests, and ways to write into one behind the product's back."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, text, update

from convene_keys import clock, create_app
from convene_keys.audit import seals, verification
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import Base, db, transaction
from convene_keys.models import Organization, Outcome
from tests import factories
from tests.databases import AUDIT_KEY, environ

EVENT, SEAL = (Base.metadata.tables[name] for name in ("audit_event", "audit_seal"))
KEY = seals.keys([AUDIT_KEY])[0]
# Secrets of a log whose secret is changed.
NEW, OLD = "a new secret of at least 32 characters", "an old secret of at least 32 characters"
Rows = dict[str, list[dict[str, Any]]]
numbers = itertools.count(1)


def unguarded(act: Callable[[], Any]) -> None:
    """Do `act` with the guards of the database switched off, as somebody who owns it would."""
    connection = db.session.connection()
    if connection.dialect.name == "sqlite":
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        for name in db.session.scalars(text(names)).all():
            db.session.execute(text(f"DROP TRIGGER {name}"))
    else:
        for table in (EVENT, SEAL):
            db.session.execute(text(f"ALTER TABLE {table.name} DISABLE TRIGGER ALL"))
    act()
    db.session.commit()


def values_of(of: int, number: int) -> dict[str, Any]:
    return {
        "at": clock.now() + timedelta(microseconds=number),
        "organization_id": of,
        "actor": "system",
        "key_id": None,
        "key_name": None,
        "member_id": None,
        "member_name": "Noor Ødegård",
        "action": Action.BOOKING_APPROVED,
        "target_type": "booking",
        "target_id": str(number),
        "target_name": f"booking {number}",
        "outcome": Outcome.OK,
        "ip": "192.0.2.7",
        "user_agent": "curl/8",
        "request_id": f"{number:016x}",
        "detail": {"before": "pending", "note": "é"},
    }


def honest(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**values, "mac": seals.mac(values, KEY), **more}


class Log:
    """Two organizations' events in between each other, with gaps in the ids, and their seals."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"seals {seed}")  # noqa: S311
        self.mine, self.theirs = factories.organization().id, factories.organization().id
        self.key = factories.api_key(db.session.get_one(Organization, self.mine))[0].id
        self.member = factories.member(db.session.get_one(Organization, self.mine)).id
        self.last, self.number = 0, 0
        self.kept: list[Any] = []
        for _ in range(3):
            self.grow()
        self.old = self.rows()
        for _ in range(3):
            self.grow()
        self.head = [
            verification.Head(s.organization_id, s.batch, s.last_event_id, s.signature.hex())
            for s in seals.heads(db.session())
            if s.organization_id == self.mine
        ]
        self.grow(seal=False)
        self.now = self.rows()
        rows = db.session.execute(
            select(SEAL.c.entries).where(SEAL.c.organization_id == self.mine).order_by(SEAL.c.batch)
        )
        self.batches: list[list[int]] = [
            [id for id, _ in seals.ENTRY.iter_unpack(row.entries)] for row in rows
        ]
        self.ids: list[int] = [id for batch in self.batches for id in batch]
        self.their_ids = [e["id"] for e in self.now[0] if e["organization_id"] == self.theirs]
        self.tail = [
            e["id"]
            for e in self.now[0]
            if e["organization_id"] == self.mine and e["id"] > self.ids[-1]
        ]
        db.session.rollback()

    def grow(self, *, seal: bool = True) -> None:
        rows = []
        for turn in range(24):
            self.last += self.random.choice([2, 3])
            self.number += 1
            of = self.random.choice([self.mine, self.theirs])
            of = (self.mine, self.theirs)[turn] if turn < 2 else of
            rows.append(honest(values_of(of, self.number), id=self.last))
        db.session.execute(insert(EVENT), rows)
        db.session.commit()
        if seal:
            seals.seal()

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        events = [dict(row._mapping) for row in db.session.execute(select(EVENT))]
        return events, [dict(row._mapping) for row in db.session.execute(select(SEAL))]

    def restore(self, rows: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        for table in (SEAL, EVENT):
            db.session.execute(table.delete())
        db.session.execute(insert(EVENT), rows[0])
        db.session.execute(insert(SEAL), rows[1])

    # What a tampering needs to choose from.

    def event(self) -> int:
        return self.random.choice(self.ids)

    def batch(self, *, inner: bool = False) -> list[int]:
        return self.random.choice(self.batches[1:-1] if inner else self.batches)

    def free(self) -> int:
        """An id that is nobody's, between two that are sealed."""
        taken = {*self.ids, *self.their_ids}
        return self.random.choice([i for i in range(1, self.ids[-1]) if i not in taken])

    def row(self, event_id: int) -> dict[str, Any]:
        return next(dict(e) for e in self.now[0] if e["id"] == event_id)

    def change(self, event_id: int, **values: Any) -> int:
        db.session.execute(update(EVENT).where(EVENT.c.id == event_id).values(values))
        return event_id

    def delete(self, *ids: int) -> int:
        db.session.execute(EVENT.delete().where(EVENT.c.id.in_(ids)))
        return min(ids)

    def of_seal(self, batch: int) -> Any:
        return (SEAL.c.organization_id == self.mine) & (SEAL.c.batch == batch)


def verdict_on(of: int, known: Sequence[verification.Head] = ()) -> verification.Verification:
    return verification.verify(db.session(), of, known)


def found(of: int) -> tuple[str | None, int, int]:
    """What is wrong, and how many events are sealed and how many are not."""
    verdict = verdict_on(of)
    return verdict.problem, verdict.sealed, verdict.unsealed


def written(of: int, number: int = 1, **more: Any) -> list[int]:
    with transaction() as session:
        actor = Actor.system(of, Origin("192.0.2.7", "curl/8", "r1"))
        return [record(session, actor, Action.BOOKING_LISTED, **more) for _ in range(number)]


@contextmanager
def started(database_url: str, secrets: dict[str, str]) -> Iterator[None]:
    """An app with these secrets; with a pepper only, as in an installation from before AUDIT_KEY."""
    with create_app({**environ(database_url), "AUDIT_KEY": "", **secrets}).app_context():
        yield
        db.session.remove()
        db.engine.dispose()


def grow(of: int, *, seal: bool = True) -> None:
    """Three events, with room for others between them."""
    made = []
    with transaction() as session:
        for _ in range(6):
            target = Target("booking", next(numbers), "a booking")
            made.append(record(session, Actor.system(of), Action.BOOKING_APPROVED, target))
    unguarded(lambda: db.session.execute(EVENT.delete().where(EVENT.c.id.in_(made[::2]))))
    if seal:
        seals.seal()


def rows_now() -> Rows:
    tables = (EVENT, SEAL)
    rows = {t.name: [dict(row._mapping) for row in db.session.execute(select(t))] for t in tables}
    db.session.rollback()
    return rows
