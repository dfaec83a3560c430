"""What a list's address asks for, as it was typed, and how each part of it is read."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Self

from flask_login import current_user

from convene_keys import clock
from convene_keys.errors import Malformed, Problem

TEXT_MAX = 100


@dataclass(frozen=True)
class Filters:
    """The fields of a subclass are the parameters; one that is empty has its default.

    `choices` has all the values of those that take no other; `noun` is what is listed.
    """

    noun: ClassVar[str]
    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    too_long: ClassVar[str] = "Please use at most 100 ordinary characters in a filter."

    @classmethod
    def parse(cls, args: Mapping[str, str]) -> Self:
        """Raises `Malformed` for what the list can't do."""
        given = {f.name: args.get(f.name, "").strip() for f in fields(cls)}
        if any(len(value) > TEXT_MAX or "\0" in value for value in given.values()):
            raise Malformed(cls.too_long)
        for name, choices in cls.choices.items():
            value = given[name]
            if value and value not in choices:
                raise Malformed(f"There is no {name} “{value[:20]}” to list {cls.noun}s by.")
        return cls(**{name: value for name, value in given.items() if value})

    def query(self, **changes: Any) -> dict[str, Any]:
        """The parameters of an address with the same filters, and `changes`."""
        return {name: value for name, value in (asdict(self) | changes).items() if value}


def parse_number(text: str, most: int, otherwise: Problem) -> int | None:
    """The whole number from 0 to `most` that `text` is; None when it is empty.

    Raises `otherwise`. `int` alone would take other scripts' digits too, and time for long ones.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise otherwise
    return int(text)


def parse_day(text: str) -> date | None:
    """The day that `text` is; None when it is empty. Raises `Malformed`."""
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise _no_date(text) from None


def parse_moment(text: str, *, end: bool = False) -> datetime | None:
    """A moment from a day, in the organization's time zone, or from RFC 3339; None when empty.

    As an end, a day counts whole. Raises `Malformed`.
    """
    try:
        if len(text) > len("2026-11-24"):
            found = datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        there = parse_day(text)
        if there is None:
            return None
        return clock.midnight(there + timedelta(days=end), current_user.organization.timezone)
    except (ValueError, OverflowError):
        raise _no_date(text) from None


def _no_date(text: str) -> Malformed:
    message = f"“{text[:40]}” is not a date. Please use one like 2026-11-24."
    return Malformed(message, code="invalid_date")
