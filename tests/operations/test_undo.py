"""Taking back what a key changed: a true restore, and never over what somebody decided since."""

from functools import partial
from typing import Any

import pytest
from flask import Flask

from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import db, transaction
from convene_keys.errors import Conflict, Forbidden, NotFound
from convene_keys.models import ApiKey, AuditEvent, Booking, Member, VendorApplication
from convene_keys.operations import undo
from tests import factories
from tests.conftest import Clock
from tests.web.test_auth import both_at_once

STRANGER = Origin("203.0.113.66", "curl/8", "r6")
COLUMNS = {
    "booking": ("status", "reason", "paid", "decided_at"),
    "application": ("status", "note", "decided_at", "reminded_at"),
}


@pytest.fixture
def thief(key: tuple[ApiKey, str], fake_clock: Clock) -> Any:
    """Acts with Maya's key, a minute later each time; gives the event."""

    def act(operation: str, number: int = 1, **values: Any) -> AuditEvent:
        fake_clock.advance(minutes=1)
        factories.call(key[1], operation, STRANGER, id=number, **values)
        return events()[-1]

    return act


def take_back(member: Member, event: AuditEvent) -> None:
    undo.undo(Actor.of_member(member, Origin()), event.key_id or 0, event.id)


def events() -> list[AuditEvent]:
    db.session.rollback()
    return db.session.query(AuditEvent).order_by(AuditEvent.id).all()


def names(of: set[int]) -> list[str | None]:
    return [event.target_name for event in events() if event.id in of]


def state(of: Member, kind: str, number: int = 1) -> dict[str, Any]:
    db.session.rollback()
    model = {"booking": Booking, "application": VendorApplication}[kind]
    row = db.session.get_one(model, (of.organization_id, number))
    return {name: getattr(row, name) for name in COLUMNS[kind]}


def standing(of: ApiKey) -> list[undo.Change]:
    db.session.rollback()
    return undo.changes(db.session(), of, None, 100)[0]


@pytest.mark.parametrize(
    ("kind", "before", "operation", "values"),
    [
        ("booking", [], "approve_booking", {}),
        ("booking", [("decline_booking", {"reason": "Full"})], "approve_booking", {}),
        ("booking", [], "decline_booking", {"reason": "Ha"}),
        ("booking", [], "cancel_booking", {"reason": "Ha"}),
        ("booking", [("approve_booking", {})], "cancel_booking", {}),
        ("booking", [("approve_booking", {})], "mark_booking_paid", {}),
        (
            "booking",
            [("approve_booking", {}), ("mark_booking_paid", {})],
            "cancel_booking",
            {},
        ),
        (
            "application",
            [("update_vendor_application", {"status": "declined", "note": "No stall left"})],
            "update_vendor_application",
            {"status": "approved", "note": "Ha"},
        ),
        ("application", [], "update_vendor_application", {"status": "waitlisted"}),
        ("application", [], "remind_vendor_application", {}),
    ],
)
def test_everything_is_as_it_was(
    maya: Member, fake_clock: Clock, thief: Any, kind: str, before: Any, operation: str, values: Any
) -> None:
    for name, more in before:
        factories.decide(maya, name, id=1, **more)
    fake_clock.advance(minutes=1)
    was = state(maya, kind)
    event = thief(operation, **values)
    assert state(maya, kind) != was
    take_back(maya, event)
    assert state(maya, kind) == was
    restored = events()[-1]
    assert (restored.action, restored.outcome) == (f"{kind}.restored", "ok")
    assert (restored.member_name, restored.target_id) == ("Maya", "1")
    assert restored.detail["undoes"] == event.id

    count = len(events())
    take_back(maya, event)  # once more
    assert len(events()) == count
    assert state(maya, kind) == was


def test_what_somebody_changed_since_is_not_forced(
    maya: Member, key: tuple[ApiKey, str], thief: Any
) -> None:
    sam = factories.member(maya.organization, "manager", "Sam")
    event = thief("update_vendor_application", status="declined")
    factories.decide(sam, "update_vendor_application", id=1, status="approved")
    factories.decide(
        sam, "update_vendor_application", id=1, status="declined"
    )  # as it was, but by Sam
    with pytest.raises(Conflict, match="Sam"):
        take_back(maya, event)
    assert state(maya, "application")["status"] == "declined"
    [change] = standing(key[0])
    assert change.later
    assert (change.later.member_name, change.undone, change.can_be_undone) == ("Sam", None, False)


def test_changes_of_one_thing_are_undone_from_the_last_one_back(
    maya: Member, key: tuple[ApiKey, str], thief: Any
) -> None:
    first, second = thief("approve_booking"), thief("cancel_booking")
    with pytest.raises(Conflict, match="later"):
        take_back(maya, first)
    take_back(maya, second)
    assert state(maya, "booking")["status"] == "approved"
    take_back(maya, first)
    assert state(maya, "booking")["status"] == "pending"
    assert all(change.undone for change in standing(key[0]))


def test_two_who_undo_a_change_at_once_do_it_once(app: Flask, maya: Member, thief: Any) -> None:
    sam = factories.member(maya.organization, "manager", "Sam")
    actors = [Actor.of_member(who, Origin()) for who in (maya, sam)]
    for number in (1, 2, 3):
        event = thief("approve_booking", number)

        def take(actor: Actor, of: int = event.key_id, event_id: int = event.id) -> bool:
            with app.app_context():
                return undo.undo(actor, of, event_id)

        assert sorted(both_at_once(*(partial(take, actor) for actor in actors))) == [False, True]


def test_all_at_once_leaves_out_what_can_not_be(
    maya: Member, key: tuple[ApiKey, str], thief: Any
) -> None:
    sam = factories.member(maya.organization, "manager", "Sam")
    for number in (1, 2, 3):
        thief("approve_booking", number)
    thief("cancel_booking", 3)
    thief("update_vendor_application", status="approved", note="Ha")
    thief("approve_booking", 1)  # which it was already
    factories.decide(sam, "cancel_booking", id=2)
    undone, left = undo.undo_all(Actor.of_member(maya, Origin()), key[0], None)
    assert names(left) == ["booking 2"]
    assert len(undone) == 4
    assert [state(maya, "booking", n)["status"] for n in (1, 2, 3)] == [
        "pending",
        "cancelled",
        "pending",
    ]
    assert state(maya, "application")["note"] == ""
    assert [event.member_name for event in events()[-4:]] == ["Maya"] * 4
    again, still = undo.undo_all(Actor.of_member(maya, Origin()), key[0], None)
    assert (again, names(still)) == (set(), ["booking 2"])


def test_an_event_that_does_not_say_how_it_was_can_not_be_undone(
    maya: Member, key: tuple[ApiKey, str], thief: Any
) -> None:
    with transaction() as session:  # as they were recorded before
        actor = Actor.of_key(key[0], STRANGER)
        detail = {"before": "pending", "changed": True}
        target = Target("booking", 1, "booking 1")
        record(session, actor, Action.BOOKING_APPROVED, target, detail=detail)
    [change] = standing(key[0])
    assert not change.can_be_undone
    with pytest.raises(Conflict, match="doesn’t say how it was"):
        take_back(maya, change.event)


def test_only_who_may_change_it_undoes_it(maya: Member, thief: Any) -> None:
    event = thief("approve_booking")
    with pytest.raises(NotFound):
        take_back(factories.member(factories.organization("Elsewhere")), event)
    with pytest.raises(Forbidden):
        take_back(factories.member(maya.organization, "viewer", "Noor"), event)
    with pytest.raises(NotFound):  # another key's
        undo.undo(Actor.of_member(maya, Origin()), 10**9, event.id)
    assert state(maya, "booking")["status"] == "approved"
