"""The keys of the audit log: what was sealed before there was an AUDIT_KEY stays good."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import Table, insert, text

from convene_keys.audit import seals
from convene_keys.db.session import db
from convene_keys.models import Organization
from tests.audit.sealed import EVENT, NEW, SEAL, found, grow, rows_now, started
from tests.databases import PEPPER

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
