"""The clock: it can be set back for a while, by one thread, for itself."""

import threading
from datetime import UTC, date, datetime, timedelta

import pytest

from convene_keys import clock


def test_it_is_earlier_inside_and_not_after() -> None:
    before = clock.now()
    with clock.set_back(timedelta(days=3)):
        assert clock.now() - before < timedelta(days=-2)
        with clock.set_back(timedelta(days=1)):
            assert timedelta(days=-2) < clock.now() - before < timedelta()
    assert clock.now() >= before


def test_others_are_not_set_back() -> None:
    seen = []
    before = clock.now()
    with clock.set_back(timedelta(days=3)):
        other = threading.Thread(target=lambda: seen.append(clock.now()))
        other.start()
        other.join()
    assert seen[0] >= before


@pytest.mark.parametrize(
    ("day", "months", "expected"),
    [
        ((2026, 1, 31), 1, (2026, 2, 28)),
        ((2024, 1, 31), 1, (2024, 2, 29)),
        ((2026, 11, 24), 1, (2026, 12, 24)),
        ((2026, 11, 24), 2, (2027, 1, 24)),
        ((2026, 12, 31), 24, (2028, 12, 31)),
        ((2026, 3, 31), -1, (2026, 2, 28)),
        ((2026, 1, 5), -1, (2025, 12, 5)),
        ((2026, 5, 5), 0, (2026, 5, 5)),
    ],
)
def test_months_go_by_the_calendar(
    day: tuple[int, int, int], months: int, expected: tuple[int, int, int]
) -> None:
    moment = datetime(*day, 9, 30, 1, 5, tzinfo=UTC)
    assert clock.months_after(moment, months) == datetime(*expected, 9, 30, 1, 5, tzinfo=UTC)


def test_midnight_is_the_moment_a_day_begins_there() -> None:
    there = clock.midnight(date(2026, 7, 1), "Europe/Berlin")
    assert there == datetime(2026, 6, 30, 22, tzinfo=UTC)
    assert clock.midnight(date.min, "Asia/Tokyo") == datetime.min.replace(tzinfo=UTC)
    assert clock.midnight(date.max, "America/New_York").date() == date.max


def test_a_moment_has_the_day_that_it_is_there() -> None:
    moment = datetime(2026, 6, 30, 22, tzinfo=UTC)
    days = [clock.day_of(moment, zone).day for zone in ("UTC", "Europe/Berlin")]
    assert days == [30, 1]
    assert clock.day_of(datetime.min.replace(tzinfo=UTC), "America/New_York") == date.min
