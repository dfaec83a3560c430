"""Commands within the test's application, and what they say and record."""

import contextvars
from collections.abc import Callable

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import select

from convene_keys.db.session import db
from convene_keys.models import AuditEvent

PASSWORD = "seven lemons under the pier"
NEW_ORGANIZATION = (
    *("organization", "create", "--name", "Pear Tree Markets"),
    *("--admin-name", "Maya", "--admin-email", "maya@example.org", "--password-stdin"),
)
Run = Callable[..., Result]


@pytest.fixture
def run(app: Flask) -> Run:
    runner = app.test_cli_runner()

    def run(*args: object, password: str | None = None) -> Result:
        result = contextvars.Context().run(
            runner.invoke,
            args=[str(arg) for arg in args],
            input=None if password is None else f"{password}\n",
        )
        db.session.rollback()  # so that the test sees what the command changed
        return result

    return run


def succeeded(result: Result) -> str:
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def failed(result: Result) -> str:
    """The one line on stderr of a command that failed with code 1 and said nothing else."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def events() -> list[AuditEvent]:
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def assert_by_system(event: AuditEvent, action: str) -> None:
    assert (event.action, event.actor, event.outcome) == (action, "system", "ok")
    assert (event.ip, event.user_agent, event.member_id, event.key_id) == (None,) * 4
