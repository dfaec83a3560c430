"""The audit log as CSV and JSON lines."""

import csv
import io
import json
from collections.abc import Iterator

from sqlalchemy import tuple_
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.audit import seals
from convene_keys.audit.log import rfc3339
from convene_keys.audit.queries import Filter, matching
from convene_keys.models import AuditEvent, AuditSeal

COLUMNS = ("id", *seals.COLUMNS)

_EXPORT_BATCH = 1_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def export(session: Session, organization_id: int, wanted: Filter) -> Iterator[AuditEvent]:
    """Every event that fits and was there when it began, oldest first, a batch at a time.

    Each batch is a read of its own, so that a long download holds no snapshot open.
    """
    query = (
        matching(session, organization_id, wanted)
        .where(AuditEvent.at <= clock.now())
        .order_by(AuditEvent.at, AuditEvent.id)
        .limit(_EXPORT_BATCH)
    )
    batch = session.scalars(query).all()
    while batch:
        yield from batch
        last = (batch[-1].at, batch[-1].id)
        session.rollback()
        session.expunge_all()
        batch = session.scalars(query.where(tuple_(AuditEvent.at, AuditEvent.id) > last)).all()


def as_dict(event: AuditEvent) -> dict[str, object]:
    """The event's columns under their contract names; `at` as RFC 3339 in UTC."""
    row = {column: getattr(event, column) for column in COLUMNS}
    row["at"] = rfc3339(event.at)
    return row


def head_line(head: AuditSeal, **more: object) -> str:
    """An organization's head as `audit verify --head` reads it, in a file of such lines."""
    line = {
        "organization": head.organization_id,
        "batch": head.batch,
        "last_event_id": head.last_event_id,
        "count": head.count,
        "sealed_at": rfc3339(head.sealed_at),
        "signature": head.signature.hex(),
    }
    return json.dumps(line | more)


def jsonl_lines(events: Iterator[AuditEvent]) -> Iterator[str]:
    for event in events:
        yield json.dumps(as_dict(event), ensure_ascii=False) + "\n"


def csv_lines(events: Iterator[AuditEvent]) -> Iterator[str]:
    """CSV by RFC 4180, safe to open in a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for event in events:
        row = as_dict(event)
        row["detail"] = json.dumps(row["detail"], ensure_ascii=False)
        writer.writerow([_inert(value) for value in row.values()])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _inert(value: object) -> object:
    """Text that a spreadsheet would run as a formula, with an apostrophe before it (OWASP)."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
