"""The column types of the models."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, TypeDecorator

# SQLite numbers rows itself only where the type is literally INTEGER.
BigId = BigInteger().with_variant(Integer, "sqlite")


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC times, also on SQLite, which keeps them as text without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], object]:
        def to_database(value: datetime | None) -> object:
            if value is None:
                return None
            value = value.astimezone(UTC)
            return value.isoformat(" ", "microseconds")[:26] if as_text else value

        as_text = dialect.name == "sqlite"
        return to_database

    def result_processor(self, dialect: Dialect, _: object) -> Callable[[Any], datetime | None]:
        def from_text(value: str | None) -> datetime | None:
            return None if value is None else datetime.fromisoformat(value + "+00:00")

        def from_moment(value: datetime | None) -> datetime | None:
            return None if value is None else value.astimezone(UTC)

        return from_text if dialect.name == "sqlite" else from_moment


class JSONText(TypeDecorator[str]):
    """JSON that is text already, and is written as it is: what is signed is what is kept."""

    impl = JSON
    cache_ok = True

    def bind_processor(self, _: Dialect) -> None:
        return None
