"""What all commands share: their options' types, and one clear line when something is wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import click
from flask.cli import AppGroup
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from convene_keys import clock
from convene_keys.db.session import db
from convene_keys.errors import NotFound, Problem
from convene_keys.models import Organization

Row = TypeVar("Row")

ID = click.IntRange(1, 2**63 - 1)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turns what went wrong into one line on stderr and exit code 1, click's own errors too."""
    try:
        yield
    except Problem as problem:
        raise click.ClickException(problem.detail) from None
    except click.exceptions.NoArgsIsHelpError as error:
        command = error.ctx.command_path if error.ctx else "flask"
        raise click.ClickException(f"A command is missing. See: {command} --help") from None
    except click.UsageError as error:
        raise click.ClickException(" ".join(error.format_message().split())) from None
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        line = (str(reason).splitlines() or [reason.__class__.__name__])[0]
        raise click.ClickException(
            f"The database can’t be used ({line}). Try the command: doctor"
        ) from None


class Command(click.Command):
    """A command that fails with one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> object:
        with _one_line():
            return super().invoke(ctx)


class Group(Command, AppGroup):
    """A group whose commands run within the application and fail with one line."""

    command_class = Command


class Moment(click.ParamType[datetime]):
    """A day, `2026-11-24`, which is the one in UTC, or a moment by RFC 3339.

    With `end_of_day` a day stands for the moment at which the next one begins.
    """

    name = "date"

    def __init__(self, *, end_of_day: bool = False) -> None:
        self._days = timedelta(days=1 if end_of_day else 0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            if len(value) == len("2026-11-24"):
                return clock.midnight(date.fromisoformat(value) + self._days, "UTC")
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        self.fail(
            f"{value!r} is no date. Use one like 2026-11-24 or 2026-11-24T09:30:00Z.", param, ctx
        )


def organization_option(command: Callable[..., object]) -> Callable[..., object]:
    return click.option(
        "--organization", "organization_id", type=ID, required=True, help="The organization's id."
    )(command)


def organization_of(organization_id: int) -> Organization:
    return existing(Organization, organization_id, "organization")


def existing(model: type[Row], row_id: int, noun: str) -> Row:
    """The row with this id, of whichever organization. Raises `NotFound`."""
    row = db.session.get(model, row_id)
    if row is None:
        raise NotFound(f"There is no {noun} {row_id}.")
    return row
