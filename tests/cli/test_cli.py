"""Commands as processes of their own: what they print, where, and with which exit code."""

import json

import pytest

from convene_keys.keys import tokens
from tests.cli.conftest import NEW_ORGANIZATION, PASSWORD
from tests.servers import flask

pytestmark = pytest.mark.on_sqlite


@pytest.mark.slow
def test_a_real_process_sets_up_makes_a_key_and_exports(database_url: str) -> None:
    made = flask(database_url, *NEW_ORGANIZATION, typed=f"{PASSWORD}\n")
    assert (made.returncode, made.stderr) == (0, "")
    number = made.stdout.strip()
    key = flask(database_url, "keys", "create", "--organization", number, "--name", "Lönneberga")
    assert (key.returncode, key.stderr) == (0, "")
    assert tokens.is_well_formed(key.stdout.strip())
    log = flask(database_url, "audit", "export", "--organization", number, "--format", "jsonl")
    assert (log.returncode, log.stderr) == (0, "")
    rows = [json.loads(line) for line in log.stdout.splitlines()]
    assert [row["action"] for row in rows] == ["organization.created", "key.created"]
    assert rows[1]["target_name"] == "Lönneberga"
    assert key.stdout.strip() not in log.stdout


@pytest.mark.slow
def test_a_real_process_fails_with_one_line(sqlite_url: str) -> None:
    for args, settings in (
        (("keys", "revoke", "99"), {}),
        (("keys", "create"), {}),
        (("doctor",), {"TRUSTED_PROXIES": "many"}),
    ):
        result = flask(sqlite_url, *args, **settings)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1, result.stderr
