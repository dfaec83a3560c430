"""What can be decided of bookings and applications, and put back.

Recording the event is up to the caller, `operations`, through which keys and members go alike.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.errors import Conflict, NotFound
from convene_keys.markets.queries import LISTINGS
from convene_keys.models import ApplicationStatus, Booking, BookingStatus, VendorApplication

Kind = TypeVar("Kind", Booking, VendorApplication)
REMIND_EVERY = timedelta(hours=24)
_DECIDED: dict[type[object], tuple[str, ...]] = {
    Booking: ("status", "reason", "paid", "decided_at"),
    VendorApplication: ("status", "note", "decided_at", "reminded_at"),
}


def get_for_update(session: Session, model: type[Kind], organization_id: int, number: int) -> Kind:
    """The organization's own, to change it; nobody else does meanwhile. Raises `NotFound`."""
    row = session.scalar(
        select(model)
        .where(model.organization_id == organization_id, model.id == number)
        .with_for_update()
    )
    if row is None:
        raise NotFound(f"There is no {LISTINGS[model].noun} {number}.")
    return row


def decide_booking(booking: Booking, status: BookingStatus, reason: str = "") -> bool:
    """Approve, decline or cancel; whether anything changed. Doing it again changes nothing.

    Raises `Conflict` where a booking in its state can't become `status`.
    """
    if booking.status == status:
        return False
    allowed = {
        BookingStatus.APPROVED: {BookingStatus.PENDING, BookingStatus.DECLINED},
        BookingStatus.DECLINED: {BookingStatus.PENDING},
        BookingStatus.CANCELLED: {BookingStatus.PENDING, BookingStatus.APPROVED},
        BookingStatus.PENDING: set[BookingStatus](),
    }[status]
    if booking.status not in allowed:
        raise Conflict(f"Booking {booking.id} is {booking.status}, so it can’t be {status}.")
    booking.status, booking.reason, booking.decided_at = status, reason, clock.now()
    return True


def mark_paid(booking: Booking) -> bool:
    """Mark an approved booking as paid; whether that is new. Raises `Conflict` for any other."""
    if booking.paid:
        return False
    if booking.status != BookingStatus.APPROVED:
        raise Conflict(
            f"Booking {booking.id} is {booking.status}. Only an approved one can be paid."
        )
    booking.paid = True
    return True


def update_application(
    application: VendorApplication, status: ApplicationStatus, note: str | None
) -> bool:
    """Approve, decline or waitlist, with a note for the team; whether anything changed."""
    changed = application.status != status or note not in (None, application.note)
    if application.status != status:
        application.status, application.decided_at = status, clock.now()
    if note is not None:
        application.note = note
    return changed


def remind_application(application: VendorApplication) -> None:
    """Note that the vendor was reminded. Raises `Conflict` when declined or reminded today."""
    if application.status == ApplicationStatus.DECLINED:
        raise Conflict(f"Application {application.id} was declined.")
    now = clock.now()
    if application.reminded_at is not None and now - application.reminded_at < REMIND_EVERY:
        raise Conflict(
            f"Application {application.id} was reminded in the last 24 hours.",
            code="reminded_recently",
        )
    application.reminded_at = now


def state(row: Booking | VendorApplication) -> dict[str, object]:
    """What a decision may change of a row, as JSON."""
    values = {name: getattr(row, name) for name in _DECIDED[type(row)]}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def restore(row: Booking | VendorApplication, state: Mapping[str, Any]) -> None:
    """Put back some of what `state` gave before."""
    for name, value in state.items():
        moment = name.endswith("_at") and value is not None
        setattr(row, name, datetime.fromisoformat(value) if moment else value)
