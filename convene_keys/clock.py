"""The one clock. Callers write `clock.now()`, so a test can put the hands where it wants."""

import calendar
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

_behind: ContextVar[timedelta] = ContextVar("behind", default=timedelta())


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC) - _behind.get()


def months_after(moment: datetime, months: int) -> datetime:
    """The same day and time some months on; where the month is shorter, its last day."""
    years, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)


def day_of(moment: datetime, timezone: str) -> date:
    """The day that `moment` belongs to there."""
    try:
        return moment.astimezone(ZoneInfo(timezone)).date()
    except OverflowError:  # the first or the last day that there is
        return moment.date()


def today(timezone: str) -> date:
    """The day it is there."""
    return day_of(now(), timezone)


def midnight(day: date, timezone: str) -> datetime:
    """The moment at which `day` begins there, in UTC."""
    local = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone))
    try:
        return local.astimezone(UTC)
    except OverflowError:  # the first or the last day that there is
        return local.replace(tzinfo=UTC)


@contextmanager
def set_back(by: timedelta) -> Iterator[None]:
    """Let it be earlier for a while, for this thread alone: so a demo gets its past."""
    token = _behind.set(by)
    try:
        yield
    finally:
        _behind.reset(token)
