"""Checking the audit log against its seals."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.audit.seals import (
    ENTRY,
    NEWEST,
    NO_SIGNATURE,
    StoredRow,
    StoredRows,
    current_key_age,
    event_rows,
    is_vouched,
    key_age,
    keys_of,
    seal_rows,
    sealed_up_to,
)
from convene_keys.models import AuditEvent

OVERDUE = timedelta(minutes=5)
_GLANCE = 200  # events
_OLDER = (
    "an older key, which no longer counts: by somebody who has it, or by a worker that was not "
    "restarted with the new one"
)


@dataclass(frozen=True)
class Head:
    """An organization's newest seal as it was written down elsewhere."""

    organization: int
    batch: int
    last_event_id: int
    signature: str


@dataclass
class Verification:
    """What was found in an organization's log, up to the first thing that is wrong.

    `event_id` is the first bad event; where events are gone with their seal, the id after the last
    good one. `older_until`: the event up to which older keys count, and since when no further;
    `unchanged`: whether the newest key has sealed nothing yet in a log that has seals.
    """

    organization_id: int
    batches: int = 0
    sealed: int = 0
    unsealed: int = 0
    sealed_at: datetime | None = None
    last_event_id: int = 0
    older_until: tuple[int, datetime] | None = None
    unchanged: bool = False
    event_id: int | None = None
    problem: str | None = None


class _Bad(Exception):
    def __init__(self, event_id: int, problem: str) -> None:
        super().__init__(problem)
        self.event_id, self.problem = event_id, problem


def verify(session: Session, organization_id: int, known: Sequence[Head] = ()) -> Verification:
    """Check every event and seal of an organization in one snapshot, reading them as a stream.

    `known` are heads of this organization; they show what the log alone can't: that it was
    replaced by an older or another copy of itself.
    """
    session.rollback()
    snapshot = {"isolation_level": "REPEATABLE READ"}
    postgresql = session.get_bind().dialect.name == "postgresql"
    connection = session.connection(execution_options=snapshot if postgresql else {})
    found = Verification(organization_id)
    try:
        _verify(connection, found, known, keys_of(session.get_bind()), sealed_up_to(session))
    except _Bad as bad:
        found.event_id, found.problem = bad.event_id, bad.problem
    session.rollback()
    return found


def _verify(
    connection: Connection,
    found: Verification,
    known: Sequence[Head],
    keys: Sequence[bytes],
    mark: int,
) -> None:
    of = found.organization_id
    with seal_rows(connection, NEWEST) as newest:
        ages = [age for seal in newest if (age := key_age(seal, keys)) is not None]
    now = min(ages, default=len(keys))
    with (
        event_rows(connection, "organization_id = :of ORDER BY id", stream=500, of=of) as events,
        seal_rows(connection, "WHERE organization_id = :of ORDER BY batch", of=of) as seals,
    ):
        comparison = _Comparison(found, known, keys, events)
        for seal in seals:
            comparison.check_batch(seal)
        comparison.check_heads()
        comparison.check_unsealed(mark, now)
    copies = (
        select(func.max(AuditEvent.id))
        .where(AuditEvent.organization_id == of)
        .group_by(AuditEvent.mac)
        .having(func.count() > 1)
    )
    copy = connection.scalar(select(func.min(copies.subquery().c[0])))
    if copy is not None:
        raise _Bad(copy, "it is a copy of an earlier event")


class _Comparison:
    """An organization's events beside its seals, each read once and in order."""

    def __init__(
        self, found: Verification, known: Sequence[Head], keys: Sequence[bytes], events: StoredRows
    ) -> None:
        self.found, self.known, self.keys, self.events = found, known, keys, events
        self.ahead = next(events, None)  # the first event that is not checked yet
        self.previous, self.age = NO_SIGNATURE, len(keys)

    @property
    def coming(self) -> int:
        return self.ahead.id if self.ahead else self.found.last_event_id + 1

    def check_batch(self, seal: StoredRow) -> None:
        """Check a seal, and the events that it is about."""
        found, number, coming = self.found, self.found.batches + 1, self.coming
        before, self.age = self.age, _check_seal(seal, coming, self.keys, self.age)
        if self.age < before and found.batches:
            found.older_until = (seal.last_event_id, _moment(seal))
        if seal.batch != number:
            if coming >= seal.first_event_id:  # its events are gone as well
                coming = found.last_event_id + 1
            raise _Bad(coming, f"batch {number} is missing, or its seal")
        if seal.previous != self.previous:
            raise _Bad(coming, f"the seal of batch {number} does not follow the one before it")
        for head in self.known:
            if head.batch == number and head.signature != seal.signature.hex():
                raise _Bad(seal.first_event_id, f"batch {number} is not the one of the head given")
        for event_id, beginning in ENTRY.iter_unpack(seal.entries):
            if self.ahead is None or self.ahead.id > event_id:
                raise _Bad(event_id, "it is missing")
            if self.ahead.id < event_id:
                raise _Bad(self.ahead.id, "it was put in later: no seal has it")
            _check_event(self.ahead, self.keys, self.age, beginning)
            self.ahead = next(self.events, None)
            found.sealed += 1
        found.batches, found.last_event_id = number, seal.last_event_id
        found.sealed_at, self.previous = _moment(seal), seal.signature

    def check_heads(self) -> None:
        """Check that nothing is gone after the last seal that is there."""
        for head in self.known:
            if head.batch > self.found.batches:
                coming = self.found.last_event_id + 1
                if self.ahead is not None and self.ahead.id <= head.last_event_id:
                    coming = self.ahead.id
                raise _Bad(
                    coming, f"what was sealed up to {head.last_event_id} is not there any more"
                )

    def check_unsealed(self, mark: int, now: int) -> None:
        """Check the events after the last seal; the key of the age `now` counts for them."""
        if self.found.batches and self.age > now:
            raise _Bad(
                self.coming, "a newer key counts by now, and nothing here is sealed under it"
            )
        self.found.unchanged = now > 0 and self.found.batches > 0
        while self.ahead is not None:
            if self.ahead.id <= mark:
                raise _Bad(self.ahead.id, "no seal has it, though newer events are sealed")
            _check_event(self.ahead, self.keys, now)
            self.found.unsealed += 1
            self.ahead = next(self.events, None)


def _check_seal(seal: StoredRow, coming: int, keys: Sequence[bytes], oldest: int) -> int:
    """The age of its key, which is at most `oldest`."""
    age = key_age(seal, keys)
    if age is None or hashlib.sha256(seal.entries).digest() != seal.root:
        problem = f"the seal of batch {seal.batch} was changed, or its AUDIT_KEY is not set"
        raise _Bad(coming, problem)
    if age > oldest:
        raise _Bad(coming, f"the seal of batch {seal.batch} was made under {_OLDER}")
    return age


def _check_event(
    event: StoredRow, keys: Sequence[bytes], oldest: int, beginning: bytes | None = None
) -> None:
    if not is_vouched(event, keys[: oldest + 1]):
        if is_vouched(event, keys):
            raise _Bad(event.id, f"it was made under {_OLDER}")
        raise _Bad(event.id, "it was changed, or made under an AUDIT_KEY that is not set")
    if beginning is not None and event.mac[:8] != beginning:
        raise _Bad(event.id, "it is not the event that was sealed under this id")


@dataclass(frozen=True)
class Glance:
    """What the audit page says of the seals. `problem` is in plain words."""

    sealed_at: datetime | None = None
    overdue: bool = False
    problem: str | None = None


def glance(session: Session, organization_id: int) -> Glance:
    """A check that costs the same however long the log is: the newest seal and its last events."""
    connection, keys = session.connection(), keys_of(session.get_bind())
    mine = "WHERE organization_id = :of ORDER BY batch DESC LIMIT 1"
    newest = seal_rows(connection, mine, of=organization_id).first()
    late = (
        select(AuditEvent.id)
        .where(AuditEvent.organization_id == organization_id)
        .where(AuditEvent.at <= clock.now() - OVERDUE)
        .order_by(AuditEvent.at.desc(), AuditEvent.id.desc())
        .limit(1)
    )
    overdue = (session.scalar(late) or 0) > (newest.last_event_id if newest else 0)
    if newest is None:
        return Glance(overdue=overdue)
    try:
        age = _check_seal(newest, newest.first_event_id, keys, current_key_age(session))
        entries = list(ENTRY.iter_unpack(newest.entries[-_GLANCE * ENTRY.size :]))
        wanted = ", ".join(str(event_id) for event_id, _ in entries) or "NULL"  # our own numbers
        found = {event.id: event for event in event_rows(connection, f"id IN ({wanted})")}
        for event_id, beginning in entries:
            if event_id not in found:
                raise _Bad(event_id, "it is missing")
            _check_event(found[event_id], keys, age, beginning)
    except _Bad as bad:
        return Glance(problem=f"event {bad.event_id}: {bad.problem}")
    return Glance(_moment(newest), overdue)


def _moment(seal: StoredRow) -> datetime:
    return datetime.fromisoformat(seal.sealed_at).replace(tzinfo=UTC)
