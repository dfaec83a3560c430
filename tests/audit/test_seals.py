"""Sealing: every event gets a mac and its place in a chain, while others write, and stays there."""

import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from convene_keys import create_app
from convene_keys.audit import seals
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, event, record
from convene_keys.db.session import db, transaction
from convene_keys.db.session import write as write_statements
from convene_keys.models import AuditSeal, Organization, Outcome
from tests import factories
from tests.audit.sealed import (
    EVENT,
    KEY,
    SEAL,
    Log,
    honest,
    unguarded,
    values_of,
    verdict_on,
    written,
)
from tests.cli.conftest import Run, failed, run, succeeded  # noqa: F401  run is a fixture
from tests.conftest import Browser, Clock, wait_for
from tests.databases import PEPPER, Postgres, environ
from tests.servers import Server

# What is honest is never doubted.


def test_a_mac_covers_every_column_but_the_id() -> None:
    assert {column.name for column in EVENT.columns} == {"id", "mac", *seals.COLUMNS}
    assert {column.name for column in SEAL.columns} == {
        "signature",
        "entries",
        *seals.SIGNED_COLUMNS,
    }


def test_a_mac_stays_what_it_is_for_good(fake_clock: Clock) -> None:
    expected = "b8b37b2bf2fbbdca96f691b514bc54565764343f6ad2b9cdd7a60281449a6ce4"
    assert seals.mac(values_of(1, 7), seals.keys([PEPPER])[0]).hex() == expected


@pytest.mark.parametrize(
    "detail",
    [{}, {"b": 1, "a": [1.5, None, True, {"ü": "“\\\n\0🥕"}]}, {"price": 1e300, "n": 2**60}],
)
def test_whatever_is_recorded_is_read_back_as_it_was_sealed(app: Flask, detail: Any) -> None:
    of = factories.organization()
    key, _ = factories.api_key(of, "“Ünïcode” 🥕\u2028")
    with transaction() as session:
        origin = Origin("2001:db8::1", "Mozilla/5.0 (“é”)", "r" * 32)
        target = Target("booking", 7, 'naïve ["booking", null] 7')
        for actor in (Actor.of_key(key, origin), Actor.of_member(make_member(of), origin)):
            record(session, actor, Action.BOOKING_VIEWED, target, Outcome.DENIED, detail)
    assert seals.seal() == {of.id: 2}
    verdict = verdict_on(of.id)
    assert (verdict.problem, verdict.batches, verdict.sealed, verdict.unsealed) == (None, 1, 2, 0)


def make_member(of: Organization) -> Any:
    return factories.member(of, name="Renée O’Neill")


def test_batches_are_chained_per_organization_and_bounded(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "BATCH_MAX", 10)
    one, two = factories.organization().id, factories.organization().id
    ids = [*written(one, 15), *written(two, 15)]
    assert seals.seal() == {one: 15, two: 15}
    assert seals.seal() == {}
    rows = db.session.scalars(select(AuditSeal).order_by(AuditSeal.last_event_id)).all()
    assert [(s.organization_id, s.batch, s.count) for s in rows] == [
        *((one, 1, 10), (one, 2, 5)),
        *((two, 1, 5), (two, 2, 10)),
    ]
    assert [(s.first_event_id, s.last_event_id) for s in rows] == [
        (ids[a], ids[b]) for a, b in ((0, 9), (10, 14), (15, 19), (20, 29))
    ]
    assert [s.previous for s in rows] == [
        *(bytes(32), rows[0].signature),
        *(bytes(32), rows[2].signature),
    ]


def test_sealing_is_due_when_the_oldest_event_is_old_enough(app: Flask, fake_clock: Clock) -> None:
    of, age = factories.organization().id, timedelta(seconds=30)
    assert not seals.is_due(db.session(), age)
    written(of)
    fake_clock.advance(seconds=29)
    written(of)
    assert not seals.is_due(db.session(), age)
    fake_clock.advance(seconds=1)
    assert seals.is_due(db.session(), age)
    seals.seal()
    assert not seals.is_due(db.session(), age)


class Failed(Exception):
    pass


# Werkzeug parses code for its routes, which Python 3.11 can't do in two threads at a time (gh-106905).
one_at_a_time = threading.Lock()


def write(database_url: str, worker: int, organization_id: int, events: int, most: int) -> None:
    """Record so many events, at `most` so many in a transaction, of which some fail."""
    choose = random.Random(worker)  # noqa: S311
    with one_at_a_time:
        app = create_app(environ(database_url))
    with app.app_context():
        recorded = 0
        for number in itertools.count():
            size = min(choose.randrange(1, most), events - recorded)
            with suppress(Failed), transaction() as session:
                actor = Actor.system(organization_id, Origin(request_id=f"{worker}-{number}"))
                made = [
                    event(KEY, actor, Action.BOOKING_LISTED, None, Outcome.OK, {"turn": turn})
                    for turn in range(size)
                ]
                write_statements(session, made)
                if choose.random() < 0.1:  # a change that fails takes its events with it
                    raise Failed
                recorded += size
            if number % 15 == worker:  # as an export does
                seals.seal()
            if recorded == events:
                break
        db.session.remove()
        db.engine.dispose()


@pytest.mark.parametrize(
    ("start", "events", "most"),
    [
        (threading.Thread, 250, 9),
        pytest.param(
            multiprocessing.get_context("spawn").Process, 125_000, 100, marks=pytest.mark.soak
        ),
    ],
    ids=["", "a-million-by-processes"],
)
def test_no_false_alarm_over_what_eight_writers_wrote(
    app: Flask, database_url: str, start: Callable[..., Any], events: int, most: int
) -> None:
    of = [factories.organization().id for _ in range(3)]
    writers = [
        start(target=write, args=(database_url, worker, of[worker % 3], events, most))
        for worker in range(8)
    ]
    db.session.remove()
    stop = seals.start(app, age=timedelta(0), every=0.01)  # without a pause, while they write
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop()
    batches = db.session.scalar(select(func.count()).select_from(AuditSeal)) or 0
    assert batches > 10, "the sealer slept while they wrote"
    seals.seal()
    db.session.remove()
    if start is threading.Thread:
        output = app.test_cli_runner().invoke(args=["audit", "verify"]).output
    else:
        output, memory = _measured(database_url, "audit", "verify")
        _, idle = _measured(database_url, "doctor")
        print(f"verify: {memory} KiB at its most, idle {idle} KiB; {batches} batches")
        assert memory < idle + 30 * 1024
    lines = output.splitlines()
    assert [": fine, " in line for line in lines] == [True] * 3, output
    assert sum(int(line.split("fine, ")[1].split()[0]) for line in lines) == 8 * events


MEASURED = """
import re, sys
from flask.cli import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def _measured(database_url: str, *command: str) -> tuple[str, int]:
    """What a command prints, and the most memory it had, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "--app", "wsgi", *command],
        env={**os.environ, **environ(database_url)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, int(done.stderr.splitlines()[-1])


@pytest.fixture
def postgresql(postgres: Postgres) -> Iterator[Flask]:
    name = postgres.create()
    app = create_app(environ(postgres.url(name)))
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()
    postgres.drop(name)


def test_an_id_that_becomes_visible_late_is_waited_for(
    postgresql: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "PATIENCE", "100ms")
    of = factories.organization().id
    statement = insert(EVENT).returning(EVENT.c.id)
    with db.engine.connect() as slow:
        late = slow.execute(statement, honest(values_of(of, 1))).scalar_one()
        (quick,) = written(of)
        assert quick > late
        with pytest.raises(OperationalError):
            seals.seal()
        db.session.rollback()
        slow.commit()
    assert seals.seal() == {of: 2}
    assert verdict_on(of).problem is None


# The database refuses to change a seal, as it does an event.


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_seal SET count = 0", "DELETE FROM audit_seal", "TRUNCATE audit_seal"],
)
def test_a_seal_stays(app: Flask, log: Log, statement: str) -> None:
    sqlite = db.engine.dialect.name == "sqlite"
    if sqlite:
        statement = statement.replace(
            "TRUNCATE audit_seal", "REPLACE INTO audit_seal SELECT * FROM audit_seal"
        )
    else:
        statement = f"SET LOCAL session_replication_role = replica; {statement}"
    with pytest.raises(DBAPIError, match="audit seals can not be"):
        db.session.execute(text(statement))
    db.session.rollback()
    assert verdict_on(log.mine, log.head).problem is None


def test_events_from_before_the_seals_get_their_mac(app: Flask) -> None:
    of = factories.organization().id
    db.session.rollback()
    downgrade(revision="0001")
    columns = ("at", "organization_id", "actor", "action", "outcome", "detail")
    values = {name: value for name, value in values_of(of, 1).items() if name in columns}
    for row in (values, {**values, "detail": {}}):
        db.session.execute(insert(EVENT).values(row))
    db.session.commit()
    upgrade()
    assert seals.seal() == {of: 2}
    assert verdict_on(of).problem is None
    with pytest.raises(DBAPIError, match="audit events can not be"):
        db.session.execute(text("UPDATE audit_event SET outcome = 'failed'"))
    db.session.rollback()


# Who seals, and what people see of it.


def test_commands_seal_and_verify(run: Run, log: Log, tmp_path: Path) -> None:  # noqa: F811
    one, two = (json.loads(line) for line in succeeded(run("audit", "seal")).splitlines())
    assert (one["organization"], two["organization"]) == (log.mine, log.theirs)
    assert (one["batch"], one["last_event_id"]) == (7, log.tail[-1])
    assert one["count"] == one["sealed"] == len(log.tail)
    assert one["sealed_at"].endswith("Z")
    assert len(bytes.fromhex(one["signature"])) == 32
    alone = succeeded(run("audit", "seal", "--organization", log.theirs))
    assert json.loads(alone) == {**two, "sealed": 0}

    head = tmp_path / "head.jsonl"
    head.write_text(f"{json.dumps(one)}\n{json.dumps(two)}\n")
    fine = succeeded(run("audit", "verify", "--head", head)).splitlines()
    number = len(log.ids) + len(log.tail)
    assert fine[0].startswith(f"organization {log.mine}: fine, {number} events in 7 batches, up to")
    assert fine[1].startswith(f"organization {log.theirs}: fine, ")

    unguarded(lambda: log.restore(log.old))
    assert len(succeeded(run("audit", "verify")).splitlines()) == 2
    result = run("audit", "verify", "--head", head, "--organization", log.mine)
    assert (result.exit_code, result.stderr) == (4, "")
    bad = log.batches[2][-1] + 1
    assert result.stdout.startswith(f"organization {log.mine}: WRONG from event {bad} on: ")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["", "x", "[]", "{}", '{"organization": 1, "batch": "1", "last_event_id": 2}']
)
def test_a_file_that_is_no_head_is_named(run: Run, tmp_path: Path, content: str) -> None:  # noqa: F811
    head = tmp_path / "head.jsonl"
    head.write_text(content)
    assert "holds no head" in failed(run("audit", "verify", "--head", head))


def test_an_organization_that_is_not_there_is_named(run: Run) -> None:  # noqa: F811
    for command in ("seal", "verify"):
        error = failed(run("audit", command, "--organization", 99))
        assert "There is no organization 99" in error


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_every_export_is_sealed(app: Flask, run: Run, client: Browser, form: str) -> None:  # noqa: F811
    member = factories.member(factories.organization())
    client.sign_in(member)
    written(member.organization_id)
    succeeded(run("audit", "export", "--organization", member.organization_id, "--format", form))
    assert verdict_on(member.organization_id).unsealed == 0
    assert client.get(f"/admin/audit_log.{form}").status_code == 200
    verdict = verdict_on(member.organization_id)
    assert (verdict.sealed, verdict.unsealed) == (2, 0)  # the export itself is the second


def test_page_says_up_to_when_it_is_sealed(client: Browser, fake_clock: Clock) -> None:
    member = factories.member(factories.organization(timezone="Europe/Berlin"))
    client.sign_in(member)
    assert "ealed" not in client.get("/admin/audit_log").text
    (event_id,) = written(member.organization_id)
    assert "ealed" not in client.get("/admin/audit_log").text
    fake_clock.advance(minutes=5)
    assert "The newest lines are not sealed yet" in client.get("/admin/audit_log").text
    seals.seal()
    html = " ".join(client.get("/admin/audit_log").text.split())
    assert 'Sealed up to <time datetime="2026-11-24T12:05:00Z"' in html
    assert ">13:05</time>, checked" in html.replace("> 13:05", ">13:05")
    fake_clock.advance(hours=12)
    client.sign_in(member)
    assert "24 Nov 2026</time>, checked" in client.get("/admin/audit_log").text
    unguarded(
        lambda: db.session.execute(
            update(EVENT).where(EVENT.c.id == event_id).values(outcome="failed")
        )
    )
    html = client.get("/admin/audit_log").text
    assert "This log does not fit its seal" in html
    assert f"event {event_id}: it was changed" in html
    assert ", checked" not in html


def test_workers_seal_by_themselves(
    app: Flask, fake_clock: Clock, database_url: str, tmp_path: Path
) -> None:
    of = factories.organization().id
    fake_clock.advance(days=-1)
    written(of, 3)

    def sealed() -> bool:
        db.session.rollback()
        return db.session.scalar(select(func.count()).select_from(AuditSeal)) == 1

    with Server(database_url, tmp_path / "log", workers=1):
        wait_for(sealed)
    assert verdict_on(of).sealed == 3


def test_sealer_outlives_a_failure_and_stops_when_told(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of = factories.organization().id
    written(of)
    db.session.execute(text("ALTER TABLE audit_seal RENAME TO elsewhere"))
    db.session.commit()
    stop = seals.start(app, age=timedelta(0), every=0.01)
    wait_for(lambda: "the audit log could not be sealed" in caplog.text)
    db.session.execute(text("ALTER TABLE elsewhere RENAME TO audit_seal"))
    db.session.commit()
    wait_for(lambda: verdict_on(of).sealed == 1)
    stop()
    assert "sealer" not in {thread.name for thread in threading.enumerate()}
