"""Schemathesis against the real server: cases by the hundred with every check it has find nothing.

It calls as one of two organizations. The other came first and has the same numbers and more, so
that a wall that is missing shows: in an answer, in what changed, or in the other's log.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Base, Market, Vendor
from convene_keys.operations.reference import describe
from convene_keys.operations.table import OPERATIONS, ROOT
from tests import factories
from tests.servers import Server

pytestmark = pytest.mark.on_sqlite  # what it finds lies in how input is read

ELSEWHERE = "Elsewhere"  # what the other organization calls its market and its vendor
LOG_AND_KEYS = ("audit_event", "audit_seal", "api_key")
# What is said of text with characters that can't be seen, and of text with no other.
UNSEEN = {"Please remove the invisible or control characters.", "Please fill this in."}
FILES = [Path(__file__).with_name(f"schemathesis{end}") for end in (".toml", "_hooks.py")]


class Call(NamedTuple):
    """One case as it was sent, and its answer."""

    who: str  # here, there, or nobody
    mode: str  # positive or negative; empty where one call leads to the next
    operation: str
    status: int
    body: str


def _contents(of: int) -> dict[str, list[str]]:
    """Every row of an organization but those of its log, and of its key, whose last use is kept."""
    contents = {
        table.name: sorted(
            repr(row) for row in db.session.execute(table.select().filter_by(organization_id=of))
        )
        for table in Base.metadata.sorted_tables
        if "organization_id" in table.c and table.name not in LOG_AND_KEYS
    }
    db.session.rollback()
    return contents


def _calls(report: Path) -> Iterator[Call]:
    for line in report.read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for number, interaction in recorder.get("interactions", {}).items():
            case, answer = recorder["cases"][number]["value"], interaction["response"]
            yield Call(
                who=case.get("auth_identity", "nobody"),
                mode=case.get("meta", {}).get("generation", {}).get("mode", ""),
                operation=f"{case['method']} {case['path']}",
                status=answer["status_code"],
                body=base64.b64decode(answer["content"].get("$base64", "")).decode(),
            )


def _is_beyond_the_schema(body: str) -> bool:
    """Whether input was refused for what its description can't say."""
    problem = json.loads(body)
    return problem["code"] == "invalid_cursor" or (
        problem["code"] == "invalid" and {error["message"] for error in problem["errors"]} <= UNSEEN
    )


@pytest.mark.parametrize(
    ("examples", "cases"), [(10, 1_000), pytest.param(90, 2_000, marks=pytest.mark.soak)]
)
def test_schemathesis_finds_nothing(
    app: Flask, database_url: str, tmp_path: Path, examples: int, cases: int
) -> None:
    numbers, users = {}, []
    for name, bookings in (("there", 120), ("here", 80)):
        organization = factories.organization(name)
        factories.market_data(organization)
        factories.bookings(organization, range(4, bookings + 1))
        header = {"name": "Authorization", "value": f"Bearer {factories.api_key(organization)[1]}"}
        users.append({"name": name, "fixedHeaders": [header]})
        numbers[name] = organization.id
    for model in (Market, Vendor):
        db.session.get_one(model, (numbers["there"], 1)).name = ELSEWHERE
    db.session.commit()
    before = {name: _contents(number) for name, number in numbers.items()}

    (tmp_path / "users.json").write_text(json.dumps({"auth": users}))
    for file in FILES:
        text = file.read_text().replace('"BOOKINGS"', str(list(range(1, 101))))
        text = text.replace("MAX_EXAMPLES", str(examples))
        text = text.replace("LONGEST NOTE", "\N{GRINNING FACE}" * 2_000)
        (tmp_path / file.name).write_text(text)
    with Server(database_url, tmp_path / "server.log", workers=1, TRUSTED_PROXIES="1") as server:
        program = Path(sys.executable).with_name("schemathesis")
        done = subprocess.run(
            [program, "run", f"{server.url}/api/openapi.json", "--checks=all"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr

    calls = list(_calls(tmp_path / "report.ndjson"))
    ours = [call for call in calls if call.who == "here"]
    assert len(calls) >= cases
    assert {call.status for call in ours} == {200, 400, 404, 405, 409, 415, 422}
    assert {call.status for call in calls if call.who == "nobody"} == {401}
    for call in ours:
        assert ELSEWHERE not in call.body, call
        if call.mode == "positive" and call.status in (400, 422):
            assert _is_beyond_the_schema(call.body), call
    met = {(call.operation, call.mode, call.status // 100) for call in ours}
    for operation in OPERATIONS:
        name = f"{operation.method} {ROOT}{operation.path}"
        assert (name, "positive", 2) in met
        assert (name, "negative", 4) in met or not describe(operation).inputs

    assert _contents(numbers["there"]) == before["there"]
    assert _contents(numbers["here"]) != before["here"]
    for name, number in numbers.items():  # each call is in the log of the one whose key it was
        events = select(func.count()).where(AuditEvent.organization_id == number)
        assert db.session.scalar(events) == sum(call.who == name for call in calls)
