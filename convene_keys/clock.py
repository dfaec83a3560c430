"""The one clock. Callers write `clock.now()`, so a test can put the hands where it wants."""

from datetime import UTC, datetime


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)
