"""What may become of a booking and an application, and when each is decided, paid or reminded."""

import pytest

from convene_keys import clock
from convene_keys.errors import Conflict
from convene_keys.markets import decisions
from convene_keys.models import ApplicationStatus, Booking, BookingStatus, VendorApplication
from tests.conftest import Clock

ALLOWED = {
    ("pending", "approved"),
    ("declined", "approved"),
    ("pending", "declined"),
    ("pending", "cancelled"),
    ("approved", "cancelled"),
}


@pytest.mark.parametrize("before", list(BookingStatus))
@pytest.mark.parametrize("after", list(BookingStatus))
def test_booking_decisions(fake_clock: Clock, before: BookingStatus, after: BookingStatus) -> None:
    booking = Booking(id=7, status=before, reason="because", decided_at=None)
    if before == after:
        assert decisions.decide_booking(booking, after, "new") is False
        assert (booking.reason, booking.decided_at) == ("because", None)
    elif (before, after) in ALLOWED:
        assert decisions.decide_booking(booking, after, "new") is True
        assert (booking.status, booking.reason, booking.decided_at) == (after, "new", clock.now())
    else:
        with pytest.raises(Conflict, match=f"Booking 7 is {before}, so it can’t be {after}"):
            decisions.decide_booking(booking, after, "new")
        assert (booking.status, booking.reason) == (before, "because")


@pytest.mark.parametrize("status", list(BookingStatus))
def test_only_an_approved_booking_can_be_paid(status: BookingStatus) -> None:
    booking = Booking(id=7, status=status, paid=False)
    if status is BookingStatus.APPROVED:
        assert decisions.mark_paid(booking) is True
        assert booking.paid
        assert decisions.mark_paid(booking) is False
    else:
        with pytest.raises(Conflict, match="Only an approved one can be paid"):
            decisions.mark_paid(booking)
        assert booking.paid is False


def test_application_is_decided_and_noted(fake_clock: Clock) -> None:
    application = VendorApplication(id=1, status="pending", note="", decided_at=None)
    assert decisions.update_application(application, ApplicationStatus.WAITLISTED, None)
    assert (application.status, application.note) == ("waitlisted", "")
    first = clock.now()
    fake_clock.advance(hours=1)
    assert decisions.update_application(application, ApplicationStatus.WAITLISTED, "later")
    assert (application.note, application.decided_at) == ("later", first)
    assert not decisions.update_application(application, ApplicationStatus.WAITLISTED, "later")
    assert not decisions.update_application(application, ApplicationStatus.WAITLISTED, None)
    assert decisions.update_application(application, ApplicationStatus.APPROVED, "")
    assert (application.note, application.decided_at) == ("", clock.now())


def test_application_is_reminded_once_in_24_hours(fake_clock: Clock) -> None:
    application = VendorApplication(id=1, status="pending", reminded_at=None)
    decisions.remind_application(application)
    assert application.reminded_at == clock.now()
    fake_clock.advance(hours=23, minutes=59)
    with pytest.raises(Conflict) as info:
        decisions.remind_application(application)
    assert info.value.code == "reminded_recently"
    fake_clock.advance(minutes=1)
    decisions.remind_application(application)
    assert application.reminded_at == clock.now()
    application.status = ApplicationStatus.DECLINED
    fake_clock.advance(days=2)
    with pytest.raises(Conflict, match="was declined"):
        decisions.remind_application(application)
