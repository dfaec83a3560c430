"""What all commands share: one clear line on stderr when something is wrong."""

from pathlib import Path

import pytest

from convene_keys import create_app
from tests.cli.conftest import Run, failed, succeeded
from tests.databases import environ

pytestmark = pytest.mark.on_sqlite


@pytest.mark.parametrize("group", ["organization", "member", "keys", "audit"])
def test_groups_say_in_one_line_that_a_command_is_missing_or_unknown(run: Run, group: str) -> None:
    assert "--help" in failed(run(group))
    assert "nonsense" in failed(run(group, "nonsense"))
    assert succeeded(run(group, "--help")).startswith("Usage: ")


def test_commands_say_in_one_line_that_the_database_has_no_tables(tmp_path: Path) -> None:

    app = create_app(environ(f"sqlite:///{tmp_path}/empty.db"))
    runner = app.test_cli_runner()
    for command in (["setup-link"], ["demo"], ["keys", "list", "--organization", "1"]):
        assert "the command: doctor" in failed(runner.invoke(args=command))
