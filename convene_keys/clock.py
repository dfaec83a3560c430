"""The one clock. Callers write `clock.now()`, so a test can put the hands where it wants."""

import calendar
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

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


@contextmanager
def set_back(by: timedelta) -> Iterator[None]:
    """Let it be earlier for a while, for this thread alone: so a demo gets its past."""
    token = _behind.set(by)
    try:
        yield
    finally:
        _behind.reset(token)
