"""The audit log can't be quietly altered: whatever is done to it behind the product's back shows."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from operator import itemgetter
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import insert, select, text, update

from convene_keys import create_app
from convene_keys.audit import seals, verification
from convene_keys.db.session import db
from tests import factories
from tests.audit.sealed import (
    EVENT,
    NEW,
    OLD,
    SEAL,
    Log,
    Rows,
    found,
    grow,
    honest,
    rows_now,
    started,
    unguarded,
    values_of,
    verdict_on,
    written,
)
from tests.databases import AUDIT_KEY, environ


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


def _attack(log: Log, places: int) -> None:
    assert verdict_on(log.mine, log.head).problem is None
    assert verdict_on(log.theirs).problem is None
    for tamper in KINDS:
        for place in range(places):
            last, expected = log.last, list[int]()
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


# Who has the old key and may write to the database.

ROTATIONS = {
    "pepper": ({"KEY_PEPPER": OLD}, {"KEY_PEPPER": f"{NEW},{OLD}"}),
    "first": ({"KEY_PEPPER": OLD}, {"KEY_PEPPER": OLD, "AUDIT_KEY": NEW}),
    "key": ({"AUDIT_KEY": OLD}, {"AUDIT_KEY": f"{NEW},{OLD}"}),
}
# How the seals are made anew, if at all, and whether all of an organization's log is.
WAYS = ((None, False), ("seal", False), ("seal of a key", False), ("seal of a key", True))


def put(rows: Rows) -> None:
    """In place of what is there, as somebody does it who owns the database."""

    def replace() -> None:
        for table in (SEAL, EVENT):
            db.session.execute(table.delete())
            db.session.execute(insert(table), rows[table.name])

    unguarded(replace)


def forge(rows: Rows, place: int, form: str | None, *, all_of_it: bool = False) -> tuple[Rows, int]:
    """A log that is another at one place, by means of the old key; and whose log it is.

    An event is changed, put in, taken out or added. With a `form`, its batch is sealed anew and the
    seals after it are chained to that. `all_of_it`: whatever that organization has.
    """
    (key,) = seals.keys([OLD])
    events = sorted((dict(event) for event in rows[EVENT.name]), key=itemgetter("id"))
    chosen = events[place % len(events)]
    of = chosen["organization_id"]
    kind = ("change", "insert", "delete", "add")[place % 4]
    if kind == "delete":
        events.remove(chosen)
    else:
        forged = chosen if kind == "change" else dict(chosen)
        if kind != "change":
            forged["id"] = (chosen["id"] if kind == "insert" else events[-1]["id"] + 2) - 1
            events.append(forged)
        forged["target_name"] = "forged"
        forged["mac"] = seals.mac(forged | {"detail": "{}"}, key)
    mine = sorted((e for e in events if e["organization_id"] == of), key=itemgetter("id"))
    for event in mine if all_of_it else ():
        event["mac"] = seals.mac(event | {"detail": "{}"}, key)
    kept = sorted((dict(seal) for seal in rows[SEAL.name]), key=itemgetter("batch"))
    previous, last = bytes(32), 0
    for seal in (seal for seal in kept if form and seal["organization_id"] == of):
        held = [e for e in mine if last < e["id"] <= seal["last_event_id"]]
        last = max(last, seal["last_event_id"])
        entries = b"".join(seals.ENTRY.pack(e["id"], e["mac"][:8]) for e in held)
        if all_of_it or (entries, previous) != (seal["entries"], seal["previous"]):
            seal |= {"entries": entries, "count": len(held), "previous": previous}
            seal["root"] = hashlib.sha256(entries).digest()
            seal["signature"] = seals.compute_mac(str(form), seal, seals.SIGNED_COLUMNS, key)
        previous = seal["signature"]
    return {EVENT.name: events, SEAL.name: kept}, of


@pytest.mark.on_sqlite
@pytest.mark.parametrize("rotation", ROTATIONS)
# Each thing done in each of the ways, thrice.
@pytest.mark.parametrize("places", [48, pytest.param(100, marks=pytest.mark.soak)])
def test_forging_with_the_old_secret_is_found_everywhere(
    app: Flask, database_url: str, rotation: str, places: int
) -> None:
    before, after = ROTATIONS[rotation]
    with started(database_url, before):
        of = [factories.organization().id for _ in range(3)]
        for each in (*of, *of[:2]):  # the third is idle from then on
            grow(each)
        grow(of[0], seal=False)  # waits for its seal while the secret is changed
    with started(database_url, after):
        seals.seal()
        of.append(factories.organization().id)  # which has never known the old secret
        for each in (0, 1, 3, 0, 1, 3, 1):
            grow(of[each])
        honest = rows_now()
        assert [found(each)[0] for each in of] == [None] * 4
        missed = []
        for place in range(places):
            form, all_of_it = WAYS[place // 4 % 4]
            rows, forged = forge(honest, place, form, all_of_it=all_of_it)
            put(rows)
            if found(forged)[0] is None:
                missed.append(place)
        rows, forged = forge(honest, 0, "seal of a key", all_of_it=True)
        put(rows)
        assert verification.glance(db.session(), forged).problem is not None
        put(honest)
        assert [found(each)[0] for each in of] == [None] * 4
    assert missed == []


def told() -> str:
    """What `audit verify` prints."""
    return current_app.test_cli_runner().invoke(args=["audit", "verify"]).output


def test_log_made_anew_as_a_whole_is_found_with_a_head(app: Flask, database_url: str) -> None:
    """With nothing of the new key left, the log alone can only say since when that counts."""
    of = factories.organization().id
    before, after = ROTATIONS["key"]
    with started(database_url, before):
        grow(of)
        until = rows_now()[SEAL.name][0]["last_event_id"]
    with started(database_url, after):
        verdict = verification.verify(db.session(), of)
        assert (verdict.problem, verdict.unchanged, verdict.older_until) == (None, True, None)
        assert told().endswith("; the newest key has sealed nothing yet\n")
        seals.seal()
        grow(of)
        head = [
            verification.Head(of, h.batch, h.last_event_id, h.signature.hex())
            for h in seals.heads(db.session())
        ]
        verdict = verification.verify(db.session(), of, head)
        assert (verdict.problem, verdict.unchanged) == (None, False)
        assert verdict.older_until == (until, rows_now()[SEAL.name][1]["sealed_at"])
        assert f"; older keys count up to event {until}, since 2" in told()
        honest = rows_now()
        for place in range(0, 100, 5):
            put(forge(honest, place, "seal of a key", all_of_it=True)[0])
            assert verification.verify(db.session(), of, head).problem is not None
            assert verification.verify(db.session(), of).unchanged
