"""The audit log can't be quietly altered: whatever is done to it behind the product's back shows."""

import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import Table, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from convene_keys import clock, create_app
from convene_keys.audit import seals, verification
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, event, record
from convene_keys.db.session import db, raw_connection, transaction
from convene_keys.models import AuditEvent, AuditSeal, Organization, Outcome
from tests import factories
from tests.cli.conftest import Run, failed, run, succeeded  # noqa: F401  run is a fixture
from tests.conftest import Browser, Clock, wait_for
from tests.databases import AUDIT_KEY, PEPPER, Postgres, environ
from tests.servers import Server

EVENT: Table = AuditEvent.__table__
SEAL: Table = AuditSeal.__table__
KEY = seals.keys([AUDIT_KEY])[0]


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
        self.batches = [[id for id, _ in seals.ENTRY.iter_unpack(row.entries)] for row in rows]
        self.ids = [id for batch in self.batches for id in batch]
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


def field(column: str) -> Callable[[Log], int]:
    def tamper(log: Log) -> int:
        event_id = log.event()
        row = log.row(event_id)
        other: dict[str, Any] = {
            "at": row["at"] + timedelta(microseconds=1),
            "organization_id": log.theirs,
            "actor": "member",
            "key_id": log.key,
            "member_id": log.member,
            "action": "booking.declined",
            "outcome": "denied",
            "detail": {**row["detail"], "before": "approved"},
        }
        return log.change(event_id, **{column: other.get(column, f"{row[column] or ''} x")})

    tamper.__name__ = f"field {column}"
    return tamper


def seal_field(column: str) -> Callable[[Log], int]:
    def tamper(log: Log) -> int:
        batch = log.batch()
        number = log.batches.index(batch) + 1
        seal = next(s for s in log.now[1] if s["batch"] == number)
        value = seal[column]
        if column == "organization_id":
            value = factories.organization().id
        elif isinstance(value, bytes):
            value = bytes([value[0] ^ 1]) + value[1:]
        elif isinstance(value, int):
            value += 1_000
        else:
            value -= timedelta(hours=1)
        db.session.execute(update(SEAL).where(log.of_seal(number)).values({column: value}))
        return batch[0]

    tamper.__name__ = f"seal {column}"
    return tamper


def removed_first(log: Log) -> int:
    return log.delete(log.batch()[0])


def removed_middle(log: Log) -> int:
    return log.delete(log.random.choice(log.batch()[1:-1]))


def removed_last(log: Log) -> int:
    return log.delete(log.batch()[-1])


def batch_missing_but_its_seal(log: Log) -> int:
    return log.delete(*log.batch())


def batch_missing_with_its_seal(log: Log) -> int:
    batch = log.batch(inner=True)
    number = log.batches.index(batch) + 1
    log.delete(*batch)
    db.session.execute(SEAL.delete().where(log.of_seal(number)))
    return log.batches[number - 2][-1] + 1


def seal_removed(log: Log) -> int:
    batch = log.batch(inner=True)
    db.session.execute(SEAL.delete().where(log.of_seal(log.batches.index(batch) + 1)))
    return batch[0]


def last_seal_removed(log: Log) -> int:
    db.session.execute(SEAL.delete().where(log.of_seal(len(log.batches))))
    return log.batches[-1][0]


def removed_from_its_seal_too(log: Log) -> int:
    batch = log.batch()
    number, gone = log.batches.index(batch) + 1, log.random.randrange(len(batch))
    entries = db.session.scalars(select(SEAL.c.entries).where(log.of_seal(number))).one()
    values = {"entries": entries[: 16 * gone] + entries[16 * (gone + 1) :]}
    log.delete(batch[gone])
    db.session.execute(update(SEAL).where(log.of_seal(number)).values(values))
    return min(i for i in batch if i != batch[gone])


def seals_reordered(log: Log) -> int:
    one, two = sorted(log.random.sample(range(1, len(log.batches) + 1), 2))
    for before, after in ((one, 999), (two, one), (999, two)):
        db.session.execute(update(SEAL).where(log.of_seal(before)).values(batch=after))
    return log.batches[one - 1][0]


def another_organizations_seal(log: Log) -> int:
    number = log.random.randrange(1, len(log.batches) + 1)
    (theirs,) = [
        s for s in log.now[1] if (s["organization_id"], s["batch"]) == (log.theirs, number)
    ]
    db.session.execute(
        update(SEAL).where(log.of_seal(number)).values({**theirs, "organization_id": log.mine})
    )
    return log.batches[number - 1][0]


def tail_cut(log: Log) -> int:
    return log.delete(*log.ids[log.random.randrange(len(log.ids)) :], *log.tail)


def tail_cut_with_its_seals(log: Log) -> int:
    number = log.random.randrange(1, len(log.batches))
    log.delete(*[i for batch in log.batches[number:] for i in batch], *log.tail)
    db.session.execute(
        SEAL.delete().where(SEAL.c.organization_id == log.mine, SEAL.c.batch > number)
    )
    return log.batches[number - 1][-1] + 1


def everything_gone(log: Log) -> int:
    db.session.execute(EVENT.delete().where(EVENT.c.organization_id == log.mine))
    db.session.execute(SEAL.delete().where(SEAL.c.organization_id == log.mine))
    return 1


def old_backup(log: Log) -> int:
    log.restore(log.old)
    return log.batches[2][-1] + 1


def fork(log: Log) -> int:
    """An old backup that went on with honest events of another future."""
    log.restore(log.old)
    db.session.commit()
    for _ in range(3):
        start = log.last = log.last + log.random.randrange(1, 50)
        rows = [honest(values_of(log.mine, start * 10 + n), id=start + n) for n in range(9)]
        db.session.execute(insert(EVENT), rows)
        log.last += 9
        db.session.commit()
        seals.seal()
    return next(
        s.first_event_id
        for s in db.session.execute(select(SEAL).where(log.of_seal(log.head[0].batch)))
    )


def batch_of_another_future(log: Log) -> int:
    """What an old backup went on to seal as its next batch, in place of what the log has there."""
    ids = log.batches[3]
    log.restore(log.old)
    rows = [honest(values_of(log.mine, 10**6 + event_id), id=event_id) for event_id in ids]
    db.session.execute(insert(EVENT), rows)
    db.session.commit()
    seals.seal()
    events, sealed = log.rows()

    def is_it(seal: dict[str, Any]) -> bool:
        return (seal["organization_id"], seal["batch"]) == (log.mine, 4)

    kept = [row for row in log.now[0] if row["id"] not in ids]
    others = [seal for seal in log.now[1] if not is_it(seal)]
    log.restore(
        ([*kept, *(row for row in events if row["id"] in ids)], [*others, *filter(is_it, sealed)])
    )
    return log.batches[4][0]


def swapped(log: Log) -> int:
    one, two = sorted(log.random.sample(log.ids, 2))
    for before, after in ((one, 10**9), (two, one), (10**9, two)):
        db.session.execute(update(EVENT).where(EVENT.c.id == before).values(id=after))
    return one


def renumbered(log: Log) -> int:
    event_id, free = log.event(), log.free()
    db.session.execute(update(EVENT).where(EVENT.c.id == event_id).values(id=free))
    return min(event_id, free)


def _insert(row: dict[str, Any]) -> int:
    db.session.execute(insert(EVENT), [row])
    return int(row["id"])


def inserted(log: Log) -> int:
    row = log.row(log.event())
    return _insert({**row, "id": log.free(), "mac": log.random.randbytes(32)})


def inserted_before_all(log: Log) -> int:
    return _insert({**log.row(log.event()), "id": -log.random.randrange(1, 99)})


def copied(log: Log) -> int:
    return _insert({**log.row(log.event()), "id": log.free()})


def copied_to_the_end(log: Log) -> int:
    return _insert({**log.row(log.event()), "id": log.last + 5})


def forged_at_the_end(log: Log) -> int:
    row = log.row(log.event())
    return _insert({**row, "id": log.last + 5, "mac": log.random.randbytes(32)})


def moved_in(log: Log) -> int:
    event_id = log.random.choice([i for i in log.their_ids if i < log.ids[-1]])
    return log.change(event_id, organization_id=log.mine)


def mac_of_another(log: Log) -> int:
    one, two = log.random.sample(log.ids, 2)
    return log.change(one, mac=log.row(two)["mac"])


def mac_changed(log: Log) -> int:
    return log.change(log.event(), mac=log.random.randbytes(32))


def mac_emptied(log: Log) -> int:
    return log.change(log.event(), mac=b"")


def detail_in_another_order(log: Log) -> int:
    event_id = log.event()
    return log.change(event_id, detail=dict(reversed(log.row(event_id)["detail"].items())))


def detail_written_differently(log: Log) -> int:
    event_id = log.event()
    other = log.random.choice(
        [
            '{"before": "pending",  "note": "\\u00e9"}',
            '{"before":"pending","note":"é"}',
            '{"before": "x", "before": "pending", "note": "\\u00e9"}',
        ]
    )
    column = ":other" if db.engine.dialect.name == "sqlite" else "CAST(:other AS json)"
    statement = text(f"UPDATE audit_event SET detail = {column} WHERE id = :id")  # noqa: S608
    db.session.execute(statement, {"other": other, "id": event_id})
    return event_id


def unsealed_changed(log: Log) -> int:
    return log.change(log.random.choice(log.tail), outcome="failed")


KINDS = [
    *(field(column) for column in seals.COLUMNS),
    *(seal_field(column.name) for column in SEAL.columns),
    *(removed_first, removed_middle, removed_last, removed_from_its_seal_too),
    *(batch_missing_but_its_seal, batch_missing_with_its_seal),
    *(seal_removed, last_seal_removed, seals_reordered, another_organizations_seal),
    *(tail_cut, tail_cut_with_its_seals, everything_gone, old_backup, fork),
    *(
        batch_of_another_future,
        swapped,
        renumbered,
        inserted,
        inserted_before_all,
        copied,
        copied_to_the_end,
    ),
    *(forged_at_the_end, moved_in, mac_of_another, mac_changed, mac_emptied),
    *(detail_in_another_order, detail_written_differently, unsealed_changed),
]
# What only a head from elsewhere shows.
NEED_A_HEAD = {tail_cut_with_its_seals, everything_gone, old_backup, fork}


@pytest.fixture
def log(app: Flask) -> Log:
    return Log(1)


def verdict_on(of: int, known: Any = ()) -> verification.Verification:
    return verification.verify(db.session(), of, known)


def _attack(log: Log, places: int) -> None:
    assert verdict_on(log.mine, log.head).problem is None
    assert verdict_on(log.theirs).problem is None
    for tamper in KINDS:
        for place in range(places):
            last, expected = log.last, []
            unguarded(lambda tamper=tamper, found=expected: found.append(tamper(log)))
            verdict = verdict_on(log.mine, log.head)
            where = (tamper.__name__, place, verdict)
            assert verdict.problem is not None, where
            assert [verdict.event_id] == expected, where
            if tamper in NEED_A_HEAD:
                assert verdict_on(log.mine).problem is None, where
            else:
                assert verdict_on(log.mine).problem is not None, where
            unguarded(lambda: log.restore(log.now))
            log.last = last
    verdict = verdict_on(log.mine, log.head)
    assert (verdict.problem, verdict.event_id) == (None, None)
    assert (verdict.sealed, verdict.unsealed) == (len(log.ids), len(log.tail))


def test_each_kind_of_tampering_is_found_and_the_first_bad_event_named(log: Log) -> None:
    assert len(KINDS) > 14
    _attack(log, 2)


@pytest.mark.soak
def test_each_kind_of_tampering_is_found_at_a_hundred_places(app: Flask) -> None:
    for seed in range(10):
        _attack(Log(seed), 10)
        unguarded(lambda: [db.session.execute(table.delete()) for table in (SEAL, EVENT)])


# What is honest is never doubted.


def written(of: int, number: int = 1, **more: Any) -> list[int]:
    with transaction() as session:
        actor = Actor.system(of, Origin("192.0.2.7", "curl/8", "r1"))
        return [record(session, actor, Action.BOOKING_LISTED, **more) for _ in range(number)]


def test_a_mac_covers_every_column_but_the_id() -> None:
    assert {column.name for column in EVENT.columns} == {"id", "mac", *seals.COLUMNS}
    assert {column.name for column in SEAL.columns} == {
        "signature",
        "entries",
        *seals.SIGNED_COLUMNS,
    }


def test_a_mac_stays_what_it_is_for_good(fake_clock: Clock) -> None:
    expected = "b8b37b2bf2fbbdca96f691b514bc54565764343f6ad2b9cdd7a60281449a6ce4"
    assert seals.mac(values_of(1, 7), seals.keys([PEPPER])[0]).hex() == expected


@pytest.mark.parametrize(
    "detail",
    [{}, {"b": 1, "a": [1.5, None, True, {"ü": "“\\\n\0🥕"}]}, {"price": 1e300, "n": 2**60}],
)
def test_whatever_is_recorded_is_read_back_as_it_was_sealed(app: Flask, detail: Any) -> None:
    of = factories.organization()
    key, _ = factories.api_key(of, "“Ünïcode” 🥕\u2028")
    with transaction() as session:
        origin = Origin("2001:db8::1", "Mozilla/5.0 (“é”)", "r" * 32)
        target = Target("booking", 7, 'naïve ["booking", null] 7')
        for actor in (Actor.of_key(key, origin), Actor.of_member(make_member(of), origin)):
            record(session, actor, Action.BOOKING_VIEWED, target, Outcome.DENIED, detail)
    assert seals.seal() == {of.id: 2}
    verdict = verdict_on(of.id)
    assert (verdict.problem, verdict.batches, verdict.sealed, verdict.unsealed) == (None, 1, 2, 0)


def make_member(of: Organization) -> Any:
    return factories.member(of, name="Renée O’Neill")


def test_batches_are_chained_per_organization_and_bounded(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "BATCH_MAX", 10)
    one, two = factories.organization().id, factories.organization().id
    ids = [*written(one, 15), *written(two, 15)]
    assert seals.seal() == {one: 15, two: 15}
    assert seals.seal() == {}
    rows = db.session.scalars(select(AuditSeal).order_by(AuditSeal.last_event_id)).all()
    assert [(s.organization_id, s.batch, s.count) for s in rows] == [
        *((one, 1, 10), (one, 2, 5)),
        *((two, 1, 5), (two, 2, 10)),
    ]
    assert [(s.first_event_id, s.last_event_id) for s in rows] == [
        (ids[a], ids[b]) for a, b in ((0, 9), (10, 14), (15, 19), (20, 29))
    ]
    assert [s.previous for s in rows] == [
        *(bytes(32), rows[0].signature),
        *(bytes(32), rows[2].signature),
    ]


def test_sealing_is_due_when_the_oldest_event_is_old_enough(app: Flask, fake_clock: Clock) -> None:
    of, age = factories.organization().id, timedelta(seconds=30)
    assert not seals.is_due(db.session(), age)
    written(of)
    fake_clock.advance(seconds=29)
    written(of)
    assert not seals.is_due(db.session(), age)
    fake_clock.advance(seconds=1)
    assert seals.is_due(db.session(), age)
    seals.seal()
    assert not seals.is_due(db.session(), age)


def test_another_key_vouches_for_nothing(app: Flask, log: Log, database_url: str) -> None:
    other = create_app(environ(database_url, AUDIT_KEY="another key that is long enough for it"))
    with other.app_context():
        verdict = verdict_on(log.mine)
        assert (verdict.event_id, verdict.problem is None) == (log.ids[0], False)
        db.session.remove()
        db.engine.dispose()


def test_a_new_key_goes_on_where_the_old_one_ended(app: Flask, log: Log, database_url: str) -> None:
    new = "a newer key that is long enough for it"
    with create_app(environ(database_url, AUDIT_KEY=f"{new},{AUDIT_KEY}")).app_context():
        if db.engine.dialect.name == "postgresql":
            db.session.execute(
                text("SELECT setval(pg_get_serial_sequence('audit_event', 'id'), 10000)")
            )
            db.session.commit()
        seals.seal()
        first, *_ = written(log.mine, 3)
        seals.seal()
        assert verdict_on(log.mine, log.head).problem is None
        db.session.remove()
        db.engine.dispose()
    # An app that has not heard of it yet names the first event it can't vouch for.
    assert verdict_on(log.mine).event_id == first


class Failed(Exception):
    pass


# Werkzeug parses code for its routes, which Python 3.11 can't do in two threads at a time (gh-106905).
one_at_a_time = threading.Lock()


def write(database_url: str, worker: int, organization_id: int, events: int, most: int) -> None:
    """Record so many events, at `most` so many in a transaction, of which some fail."""
    choose = random.Random(worker)  # noqa: S311
    with one_at_a_time:
        app = create_app(environ(database_url))
    with app.app_context():
        recorded = 0
        for number in itertools.count():
            size = min(choose.randrange(1, most), events - recorded)
            with suppress(Failed), transaction() as session:
                actor = Actor.system(organization_id, Origin(request_id=f"{worker}-{number}"))
                made = [
                    event(KEY, actor, Action.BOOKING_LISTED, None, Outcome.OK, {"turn": turn})
                    for turn in range(size)
                ]
                raw_connection(session).run(made[0][0], [values for _, values in made])
                if choose.random() < 0.1:  # a change that fails takes its events with it
                    raise Failed
                recorded += size
            if number % 15 == worker:  # as an export does
                seals.seal()
            if recorded == events:
                break
        db.session.remove()
        db.engine.dispose()


@pytest.mark.parametrize(
    ("start", "events", "most"),
    [
        (threading.Thread, 250, 9),
        pytest.param(
            multiprocessing.get_context("spawn").Process, 125_000, 100, marks=pytest.mark.soak
        ),
    ],
    ids=["", "a-million-by-processes"],
)
def test_no_false_alarm_over_what_eight_writers_wrote(
    app: Flask, database_url: str, start: Callable[..., Any], events: int, most: int
) -> None:
    of = [factories.organization().id for _ in range(3)]
    writers = [
        start(target=write, args=(database_url, worker, of[worker % 3], events, most))
        for worker in range(8)
    ]
    db.session.remove()
    stop = seals.start(app, age=timedelta(0), every=0.01)  # without a pause, while they write
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop()
    batches = db.session.scalar(select(func.count()).select_from(AuditSeal)) or 0
    assert batches > 10, "the sealer slept while they wrote"
    seals.seal()
    db.session.remove()
    if start is threading.Thread:
        output = app.test_cli_runner().invoke(args=["audit", "verify"]).output
    else:
        output, memory = _measured(database_url, "audit", "verify")
        _, idle = _measured(database_url, "doctor")
        print(f"verify: {memory} KiB at its most, idle {idle} KiB; {batches} batches")
        assert memory < idle + 30 * 1024
    lines = output.splitlines()
    assert [": fine, " in line for line in lines] == [True] * 3, output
    assert sum(int(line.split("fine, ")[1].split()[0]) for line in lines) == 8 * events


MEASURED = """
import re, sys
from flask.cli import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def _measured(database_url: str, *command: str) -> tuple[str, int]:
    """What a command prints, and the most memory it had, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "--app", "wsgi", *command],
        env={**os.environ, **environ(database_url)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, int(done.stderr.splitlines()[-1])


@pytest.fixture
def postgresql(postgres: Postgres) -> Iterator[Flask]:
    name = postgres.create()
    app = create_app(environ(postgres.url(name)))
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()
    postgres.drop(name)


def test_an_id_that_becomes_visible_late_is_waited_for(
    postgresql: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "PATIENCE", "100ms")
    of = factories.organization().id
    statement = insert(EVENT).returning(EVENT.c.id)
    with db.engine.connect() as slow:
        late = slow.execute(statement, honest(values_of(of, 1))).scalar_one()
        (quick,) = written(of)
        assert quick > late
        with pytest.raises(OperationalError):
            seals.seal()
        db.session.rollback()
        slow.commit()
    assert seals.seal() == {of: 2}
    assert verdict_on(of).problem is None


# The database refuses to change a seal, as it does an event.


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_seal SET count = 0", "DELETE FROM audit_seal", "TRUNCATE audit_seal"],
)
def test_a_seal_stays(app: Flask, log: Log, statement: str) -> None:
    sqlite = db.engine.dialect.name == "sqlite"
    if sqlite:
        statement = statement.replace(
            "TRUNCATE audit_seal", "REPLACE INTO audit_seal SELECT * FROM audit_seal"
        )
    else:
        statement = f"SET LOCAL session_replication_role = replica; {statement}"
    with pytest.raises(DBAPIError, match="audit seals can not be"):
        db.session.execute(text(statement))
    db.session.rollback()
    assert verdict_on(log.mine, log.head).problem is None


def test_events_from_before_the_seals_get_their_mac(app: Flask) -> None:
    of = factories.organization().id
    db.session.rollback()
    downgrade(revision="0001")
    columns = ("at", "organization_id", "actor", "action", "outcome", "detail")
    values = {name: value for name, value in values_of(of, 1).items() if name in columns}
    for row in (values, {**values, "detail": {}}):
        db.session.execute(insert(EVENT).values(row))
    db.session.commit()
    upgrade()
    assert seals.seal() == {of: 2}
    assert verdict_on(of).problem is None
    with pytest.raises(DBAPIError, match="audit events can not be"):
        db.session.execute(text("UPDATE audit_event SET outcome = 'failed'"))
    db.session.rollback()


# Who seals, and what people see of it.


def test_commands_seal_and_verify(run: Run, log: Log, tmp_path: Path) -> None:  # noqa: F811
    one, two = (json.loads(line) for line in succeeded(run("audit", "seal")).splitlines())
    assert (one["organization"], two["organization"]) == (log.mine, log.theirs)
    assert (one["batch"], one["last_event_id"]) == (7, log.tail[-1])
    assert one["count"] == one["sealed"] == len(log.tail)
    assert one["sealed_at"].endswith("Z")
    assert len(bytes.fromhex(one["signature"])) == 32
    alone = succeeded(run("audit", "seal", "--organization", log.theirs))
    assert json.loads(alone) == {**two, "sealed": 0}

    head = tmp_path / "head.jsonl"
    head.write_text(f"{json.dumps(one)}\n{json.dumps(two)}\n")
    fine = succeeded(run("audit", "verify", "--head", head)).splitlines()
    number = len(log.ids) + len(log.tail)
    assert fine[0].startswith(f"organization {log.mine}: fine, {number} events in 7 batches, up to")
    assert fine[1].startswith(f"organization {log.theirs}: fine, ")

    unguarded(lambda: log.restore(log.old))
    assert len(succeeded(run("audit", "verify")).splitlines()) == 2
    result = run("audit", "verify", "--head", head, "--organization", log.mine)
    assert (result.exit_code, result.stderr) == (4, "")
    bad = log.batches[2][-1] + 1
    assert result.stdout.startswith(f"organization {log.mine}: WRONG from event {bad} on: ")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["", "x", "[]", "{}", '{"organization": 1, "batch": "1", "last_event_id": 2}']
)
def test_a_file_that_is_no_head_is_named(run: Run, tmp_path: Path, content: str) -> None:  # noqa: F811
    head = tmp_path / "head.jsonl"
    head.write_text(content)
    assert "holds no head" in failed(run("audit", "verify", "--head", head))


def test_an_organization_that_is_not_there_is_named(run: Run) -> None:  # noqa: F811
    for command in ("seal", "verify"):
        error = failed(run("audit", command, "--organization", 99))
        assert "There is no organization 99" in error


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_every_export_is_sealed(app: Flask, run: Run, client: Browser, form: str) -> None:  # noqa: F811
    member = factories.member(factories.organization())
    client.sign_in(member)
    written(member.organization_id)
    succeeded(run("audit", "export", "--organization", member.organization_id, "--format", form))
    assert verdict_on(member.organization_id).unsealed == 0
    assert client.get(f"/admin/audit_log.{form}").status_code == 200
    verdict = verdict_on(member.organization_id)
    assert (verdict.sealed, verdict.unsealed) == (2, 0)  # the export itself is the second


def test_page_says_up_to_when_it_is_sealed(client: Browser, fake_clock: Clock) -> None:
    member = factories.member(factories.organization(timezone="Europe/Berlin"))
    client.sign_in(member)
    assert "ealed" not in client.get("/admin/audit_log").text
    (event_id,) = written(member.organization_id)
    assert "ealed" not in client.get("/admin/audit_log").text
    fake_clock.advance(minutes=5)
    assert "The newest lines are not sealed yet" in client.get("/admin/audit_log").text
    seals.seal()
    html = " ".join(client.get("/admin/audit_log").text.split())
    assert 'Sealed up to <time datetime="2026-11-24T12:05:00Z"' in html
    assert ">13:05</time>, checked" in html.replace("> 13:05", ">13:05")
    fake_clock.advance(hours=12)
    client.sign_in(member)
    assert "24 Nov 2026</time>, checked" in client.get("/admin/audit_log").text
    unguarded(
        lambda: db.session.execute(
            update(EVENT).where(EVENT.c.id == event_id).values(outcome="failed")
        )
    )
    html = client.get("/admin/audit_log").text
    assert "This log does not fit its seal" in html
    assert f"event {event_id}: it was changed" in html
    assert ", checked" not in html


@pytest.mark.parametrize("kind", ["field", "removed", "seal"])
def test_a_glance_finds_what_was_done_to_the_newest_batch(log: Log, kind: str) -> None:
    def tamper() -> None:
        event_id = log.random.choice(log.batches[-1])
        if kind == "field":
            log.change(event_id, ip="198.51.100.9")
        elif kind == "removed":
            log.delete(event_id)
        else:
            values = {"entries": b"x" * 16}
            db.session.execute(update(SEAL).where(log.of_seal(len(log.batches))).values(values))

    assert verification.glance(db.session(), log.mine).problem is None
    db.session.rollback()
    unguarded(tamper)
    assert verification.glance(db.session(), log.mine).problem is not None
    assert verification.glance(db.session(), log.theirs).problem is None


def test_workers_seal_by_themselves(
    app: Flask, fake_clock: Clock, database_url: str, tmp_path: Path
) -> None:
    of = factories.organization().id
    fake_clock.advance(days=-1)
    written(of, 3)

    def sealed() -> bool:
        db.session.rollback()
        return db.session.scalar(select(func.count()).select_from(AuditSeal)) == 1

    with Server(database_url, tmp_path / "log", workers=1):
        wait_for(sealed)
    assert verdict_on(of).sealed == 3


def test_sealer_outlives_a_failure_and_stops_when_told(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of = factories.organization().id
    written(of)
    db.session.execute(text("ALTER TABLE audit_seal RENAME TO elsewhere"))
    db.session.commit()
    stop = seals.start(app, age=timedelta(0), every=0.01)
    wait_for(lambda: "the audit log could not be sealed" in caplog.text)
    db.session.execute(text("ALTER TABLE elsewhere RENAME TO audit_seal"))
    db.session.commit()
    wait_for(lambda: verdict_on(of).sealed == 1)
    stop()
    assert "sealer" not in {thread.name for thread in threading.enumerate()}
