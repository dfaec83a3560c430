"""The keys of the audit log: what was sealed stays good, and an old key vouches for nothing new."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Table, insert, select, text

from convene_keys import create_app
from convene_keys.audit import seals, verification
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Target, record
from convene_keys.cli.audit import _line
from convene_keys.db.session import db, transaction
from convene_keys.models import AuditEvent, AuditSeal, Organization
from tests import factories
from tests.audit.test_seals import unguarded
from tests.databases import PEPPER, environ

EVENT: Table = AuditEvent.__table__
SEAL: Table = AuditSeal.__table__
OLD_PEPPER = "an older pepper of more than 32 characters"
# What was written before there was an AUDIT_KEY, over a change of the pepper.
BEFORE = json.loads(
    (Path(__file__).parent.parent / "sealed_before_audit_key.json").read_text("utf-8")
)
BINARY = ("mac", "root", "previous", "signature", "entries")


def before(table: Table) -> list[dict[str, Any]]:
    """The rows of then, as the database takes them."""
    read: dict[str, Any] = dict.fromkeys(("at", "sealed_at"), datetime.fromisoformat)
    read |= dict.fromkeys(BINARY, bytes.fromhex)
    return [
        {name: read[name](value) if name in read else value for name, value in row.items()}
        for row in BEFORE[table.name]
    ]


def load_log_of_before() -> None:
    rows = [{"id": of, "name": f"Market {of}", "slug": f"m{of}"} for of in (1, 2)]
    db.session.execute(insert(Organization), rows)
    for table in (EVENT, SEAL):
        db.session.execute(insert(table), before(table))
    if db.engine.dialect.name == "postgresql":
        last = "SELECT setval(pg_get_serial_sequence('audit_event', 'id'), 99)"
        db.session.execute(text(last))
    db.session.commit()


def found(of: int) -> tuple[str | None, int, int]:
    verdict = verification.verify(db.session(), of)
    return verdict.problem, verdict.sealed, verdict.unsealed


def test_what_was_sealed_before_still_fits(app: Flask, database_url: str) -> None:
    load_log_of_before()
    peppers = {"KEY_PEPPER": f"{PEPPER},{OLD_PEPPER}"}
    for secrets in (peppers, {**peppers, "AUDIT_KEY": NEW}, {"AUDIT_KEY": f"{NEW},{OLD_PEPPER}"}):
        with started(database_url, secrets):
            assert found(1) == (None, 10, 1)
            assert found(2) == (None, 2, 1)


def test_log_of_before_goes_on_under_the_new_key(app: Flask, database_url: str) -> None:
    load_log_of_before()
    with started(database_url, {"KEY_PEPPER": f"{PEPPER},{OLD_PEPPER}", "AUDIT_KEY": NEW}):
        assert seals.is_due(db.session(), timedelta(days=999))
        assert seals.seal() == {1: 1, 2: 1}
        assert seals.seal() == {}
        assert not seals.is_due(db.session(), timedelta(days=999))
        grow(2)
        assert (found(1), found(2)) == ((None, 11, 0), (None, 6, 0))
        batches = [
            (row["organization_id"], row["batch"], row["count"]) for row in rows_now()[SEAL.name]
        ]
        assert sorted(batches) == [
            *((1, 1, 4), (1, 2, 4), (1, 3, 2), (1, 4, 1), (1, 5, 0)),
            *((2, 1, 2), (2, 2, 1), (2, 3, 0), (2, 4, 3)),
        ]


def test_a_mac_and_a_seal_of_before_stay_what_they_were() -> None:
    """Fixed bytes: the forms of the first seals, which logs hold for good."""
    key, older = seals.keys([PEPPER, OLD_PEPPER])
    assert key.hex() == "abc3a9d66f7999189480766c01a9008f36cf3be31b4f7f4e2917b4fc655c1006"
    event, seal = before(EVENT)[-1], before(SEAL)[2]
    values = event | {"detail": json.dumps(event["detail"])}
    assert seals.mac(values, key) == event["mac"]
    assert event["mac"].hex() == "941eee798c46ff56065b9fdf6fee37dc6e3295372369506e0ab541e80e68eda5"
    assert seals.compute_mac("seal", seal, seals.SIGNED_COLUMNS, key) == seal["signature"]
    assert (
        seal["signature"].hex()
        == "d85a221446aae7e3e78fee3cbf55964af35b0e0a1fac723eb9b3dba9eae231b0"
    )
    later = seals.compute_mac("seal of a key", seal, seals.SIGNED_COLUMNS, key)
    assert later.hex() == "84ac5082a9283addf2b3eca179e34bc41d0a6c3175818bcc70887f7f80dc1eb9"
    first = before(SEAL)[0]
    assert seals.compute_mac("seal", first, seals.SIGNED_COLUMNS, older) == first["signature"]


# Who has the old key and may write to the database.

NEW, OLD = "a new secret of at least 32 characters", "an old secret of at least 32 characters"
ROTATIONS = {
    "pepper": ({"KEY_PEPPER": OLD}, {"KEY_PEPPER": f"{NEW},{OLD}"}),
    "first": ({"KEY_PEPPER": OLD}, {"KEY_PEPPER": OLD, "AUDIT_KEY": NEW}),
    "key": ({"AUDIT_KEY": OLD}, {"AUDIT_KEY": f"{NEW},{OLD}"}),
}
# How the seals are made anew, if at all, and whether all of an organization's log is.
WAYS = ((None, False), ("seal", False), ("seal of a key", False), ("seal of a key", True))
Rows = dict[str, list[dict[str, Any]]]
numbers = itertools.count(1)


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
        assert _line(verdict).endswith("; the newest key has sealed nothing yet")
        seals.seal()
        grow(of)
        head = [
            verification.Head(of, h.batch, h.last_event_id, h.signature.hex())
            for h in seals.heads(db.session())
        ]
        verdict = verification.verify(db.session(), of, head)
        assert (verdict.problem, verdict.unchanged) == (None, False)
        assert verdict.older_until == (until, rows_now()[SEAL.name][1]["sealed_at"])
        assert f"; older keys count up to event {until}, since 2" in _line(verdict)
        honest = rows_now()
        for place in range(0, 100, 5):
            put(forge(honest, place, "seal of a key", all_of_it=True)[0])
            assert verification.verify(db.session(), of, head).problem is not None
            assert verification.verify(db.session(), of).unchanged
