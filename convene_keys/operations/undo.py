"""Taking back what a key changed: how each of its changes stands now, and putting things back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from convene_keys.accounts.authorization import acting
from convene_keys.audit import log as audit_log
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Target
from convene_keys.db.session import db
from convene_keys.errors import Conflict, NotFound
from convene_keys.markets import decisions
from convene_keys.models import (
    ID_MAX,
    ApiKey,
    AuditEvent,
    Booking,
    Outcome,
    Role,
    VendorApplication,
)
from convene_keys.operations.table import OPERATIONS

CHANGES = frozenset(o.action for o in OPERATIONS if o.changes)
AT_ONCE = 1_000
_KINDS: dict[str | None, tuple[type[Any], Action]] = {
    "booking": (Booking, Action.BOOKING_RESTORED),
    "application": (VendorApplication, Action.APPLICATION_RESTORED),
}
_RESTORES = frozenset(action for _, action in _KINDS.values())


@dataclass(frozen=True)
class Change:
    """A key's change, the event that took it back, and the one by which the thing changed since."""

    event: AuditEvent
    undone: AuditEvent | None = None
    later: AuditEvent | None = None

    @property
    def what(self) -> str:
        """`Approved booking 123`"""
        action = Action(self.event.action)
        text = action.done.format(target=self.event.target_name or action.a_subject)
        return text[0].upper() + text[1:]

    @property
    def can_be_undone(self) -> bool:
        return not (self.undone or self.later) and "replaced" in self.event.detail


def changes(
    session: Session, key: ApiKey, since: datetime | None, most: int
) -> tuple[list[Change], bool]:
    """What the key changed, the newest first, at the most so many; and is there more?"""
    wanted = audit_queries.Filter(key=key.id, since=since, outcome=Outcome.OK)
    found = audit_queries.latest(session, key.organization_id, wanted, CHANGES, most + 1)
    changed = [event for event in found[:most] if _changed(event)]
    return _standing(session, key.organization_id, changed), len(found) > most


def undo(actor: Actor, key_id: int, event_id: int) -> bool:
    """Put back what one event of a key changed, recorded under the member's name; is that new?

    Raises `NotFound` when there is no such change, and `Conflict` when the thing was changed since:
    nobody else's decision is overwritten.
    """
    with acting(actor, Role.MANAGER) as session:
        event = _change(session, actor.organization_id, key_id, event_id)
        model, action = _KINDS[event.target_type]
        row = decisions.get_for_update(
            session, model, actor.organization_id, int(event.target_id or 0)
        )
        (change,) = _standing(session, actor.organization_id, [event])  # the row is locked by now
        if change.undone:
            return False
        if not change.can_be_undone:
            raise Conflict(why_not(change))
        decisions.restore(row, event.detail["replaced"])
        target = Target(event.target_type or "", row.id, event.target_name or "")
        detail = {"undoes": event.id, "restored": event.detail["replaced"]}
        audit_log.record(session, actor, action, target, detail=detail)
    return True


def undo_all(actor: Actor, key: ApiKey, since: datetime | None) -> tuple[set[int], set[int]]:
    """Undo what the key changed, the newest first: the events undone now, and those that can't be.

    Each change is a transaction of its own, so that one that can't be undone stops no other.
    """
    key_id = key.id
    found, _ = changes(db.session(), key, since, AT_ONCE)
    undone: set[int] = set()
    left: set[int] = set()
    for event_id in [change.event.id for change in found if not change.undone]:
        try:
            if undo(actor, key_id, event_id):
                undone.add(event_id)
        except Conflict:
            left.add(event_id)
    return undone, left


def why_not(change: Change) -> str:
    """Why a change can't be undone, in a sentence."""
    later, thing = change.later, change.event.target_name
    if later is None:
        return "The log doesn’t say how it was before."
    if later.key_id == change.event.key_id:
        return f"Undo the later change of {thing} first."
    return f"{later.member_name or later.key_name} changed {thing} since."


def _change(session: Session, organization_id: int, key_id: int, event_id: int) -> AuditEvent:
    query = select(AuditEvent).where(
        AuditEvent.organization_id == organization_id,
        AuditEvent.id == event_id,
        AuditEvent.key_id == key_id,
        AuditEvent.action.in_(CHANGES),
        AuditEvent.outcome == Outcome.OK,
    )
    event = session.scalar(query) if event_id <= ID_MAX else None
    if event is None:
        raise NotFound("There is no such change.")
    return event


def _changed(event: AuditEvent) -> bool:
    """Whether it did not only say once more what was so already."""
    return event.detail.get("changed") is not False


def _standing(session: Session, organization_id: int, events: Sequence[AuditEvent]) -> list[Change]:
    """What has become of each of some changes: all that happened to the same things since."""
    if not events:
        return []
    since = (
        select(AuditEvent)
        .where(
            AuditEvent.organization_id == organization_id,
            AuditEvent.action.in_(CHANGES | _RESTORES),
            AuditEvent.outcome == Outcome.OK,
            AuditEvent.at >= min(event.at for event in events),
            AuditEvent.target_id.in_({event.target_id for event in events}),
        )
        .order_by(AuditEvent.id)
    )
    undone: dict[int, AuditEvent] = {}
    effective: dict[tuple[str | None, str | None], list[AuditEvent]] = {}
    for event in session.scalars(since):
        of_thing = effective.setdefault((event.target_type, event.target_id), [])
        if event.action in _RESTORES:
            undone[event.detail["undoes"]] = event
            of_thing[:] = [e for e in of_thing if e.id != event.detail["undoes"]]
        elif _changed(event):
            of_thing.append(event)
    later = {
        event.id: next((e for e in after if e.key_id != event.key_id), after[0])
        for of_thing in effective.values()
        for event, after in ((e, of_thing[n:]) for n, e in enumerate(of_thing, 1))
        if after
    }
    return [Change(event, undone.get(event.id), later.get(event.id)) for event in events]
