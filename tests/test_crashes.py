"""What was answered is there, with its event: among many writers, after a stop, after a kill."""

import itertools
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Self

import pytest
from flask import Flask
from sqlalchemy import make_url, select, text

from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Booking, BookingStatus
from tests import factories
from tests.conftest import wait_for
from tests.databases import Postgres
from tests.servers import Call, Load, Server, flask

CLIENTS = 8
# In one statement, so that both halves show the same moment.
DECIDED_AND_TOLD = text("""
    SELECT 'decided' AS half, CAST(id AS varchar(20)) AS number, status FROM booking
    WHERE status <> 'pending'
    UNION ALL
    SELECT 'told', target_id, substr(action, 9) FROM audit_event
    WHERE action IN ('booking.approved', 'booking.declined', 'booking.cancelled')
    AND outcome = 'ok'
""")


class Decisions:
    """An organization with many bookings, and a key that decides each of them once."""

    def __init__(self, bookings: int) -> None:
        of = factories.organization()
        factories.market_data(of)
        if bookings > 3:
            factories.bookings(of, range(4, bookings + 1))
        self.organization_id, self.token = of.id, factories.api_key(of)[1]
        verbs = itertools.cycle(["approve", "decline", "cancel"])
        self.changes: list[Call] = [
            ("POST", f"bookings/{number}/{next(verbs)}") for number in range(1, bookings + 1)
        ]
        db.session.remove()

    def calls(self) -> Iterator[Call]:
        """Look at a booking, then decide it, and so on."""
        looks = [("GET", path.rpartition("/")[0]) for _, path in self.changes]
        return itertools.chain.from_iterable(zip(looks, self.changes, strict=True))

    def assert_kept(self, acknowledged: dict[str, Call]) -> None:
        """No decision without its event, no event without its decision, nothing answered lost."""
        halves = {"decided": Counter[tuple[str, str]](), "told": Counter[tuple[str, str]]()}
        for half, number, status in db.session.execute(DECIDED_AND_TOLD):
            halves[half][number, status] += 1
        assert halves["decided"] - halves["told"] == Counter()
        assert halves["told"] - halves["decided"] == Counter()
        query = select(AuditEvent.request_id, AuditEvent.target_id)
        events = dict(db.session.execute(query.where(AuditEvent.outcome == "ok")).all())
        about = {request: path.split("/")[1] for request, (_, path) in acknowledged.items()}
        assert about.items() - events.items() == set()
        db.session.rollback()


def assert_sound(app: Flask) -> None:
    """The audit log fits its seals."""
    result = app.test_cli_runner().invoke(args=["audit", "verify"])
    assert ": fine, " in result.output, result.output


@pytest.fixture
def assert_whole(request: pytest.FixtureRequest, database_url: str) -> Callable[[], None]:
    """The database's own check of all its pages, rows and indexes."""

    def check() -> None:
        if db.engine.dialect.name == "sqlite":
            assert db.session.scalars(text("PRAGMA integrity_check")).all() == ["ok"]
            db.session.rollback()
        else:
            server: Postgres = request.getfixturevalue("postgres")
            there = ("--host", server.host, "--username", "postgres")
            name = make_url(database_url).database or ""
            server.tool("pg_amcheck", *there, "--install-missing", "--heapallindexed", name)

    return check


@pytest.mark.parametrize("crashes", [2, pytest.param(50, marks=pytest.mark.soak)])
def test_a_server_that_is_killed_under_load_leaves_nothing_half_done(
    app: Flask, database_url: str, tmp_path: Path, crashes: int, assert_whole: Callable[[], None]
) -> None:
    decisions = Decisions(500 * crashes)
    acknowledged: dict[str, Call] = {}
    calls = decisions.calls()
    choose = random.Random(crashes)  # noqa: S311
    cut_off = 0
    for _ in range(crashes):
        with (
            Server(database_url, tmp_path / "server.log") as server,
            Load(server.port, decisions.token, CLIENTS, calls) as load,
        ):
            load.go_on(choose.randrange(1, 400))
            server.kill()
        assert load.refused == set()
        acknowledged |= load.acknowledged
        cut_off += load.cut_off
        decisions.assert_kept(acknowledged)
        assert_whole()
        assert_sound(app)
    assert cut_off >= crashes, "nothing was under way"
    print(f"{crashes} crashes, {len(acknowledged)} answered calls, {cut_off} cut off")


def test_a_server_that_is_told_to_stop_finishes_what_is_under_way(
    app: Flask, database_url: str, tmp_path: Path
) -> None:
    decisions = Decisions(3)  # fewer than a worker has threads
    headers = {"Authorization": f"Bearer {decisions.token}"}
    with Server(database_url, tmp_path / "server.log") as server, ExitStack() as clients:
        with db.engine.connect().execution_options(sqlite_begin="IMMEDIATE") as somebody_else:
            somebody_else.execute(select(Booking.id).with_for_update())
            asked = []
            for method, path in decisions.changes:
                client = HTTPConnection("127.0.0.1", server.port, timeout=30)
                clients.callback(client.close)
                client.request(method, f"/api/v1/admin/{path}", headers=headers)
                asked.append(client)
            ports = {client.sock.getsockname()[1] for client in asked}
            wait_for(lambda: ports <= server.connections().keys())
            server.stop()
            wait_for(lambda: not server.answers())
            assert server.ended() is None
        answers = [client.getresponse() for client in asked]
        assert [answer.status for answer in answers] == [200] * 3
        wait_for(lambda: server.ended() is not None)
        assert server.ended() == 0
        assert not server.answers()
    decisions.assert_kept(
        {
            answer.headers["X-Request-Id"]: change
            for answer, change in zip(answers, decisions.changes, strict=True)
        }
    )
    assert BookingStatus.PENDING not in db.session.scalars(select(Booking.status)).all()


class Commands(threading.Thread):
    """Commands that write, each a process of its own, one after the other."""

    def __init__(self, database_url: str, organization_id: int) -> None:
        super().__init__(daemon=True)
        self._url, self._of = database_url, organization_id
        self._over = threading.Event()
        self.done: list[subprocess.CompletedProcess[str]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(timeout=60)
        assert not self.is_alive()

    def run(self) -> None:
        for number in itertools.count():
            create = ("keys", "create", "--organization", str(self._of), "--name", f"Key {number}")
            self.done += [flask(self._url, *create), flask(self._url, "audit", "seal")]
            if self._over.is_set():
                return


@pytest.mark.parametrize("shared", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("seconds", "pause"), [(1, 0.05), pytest.param(120, 0, marks=pytest.mark.soak)]
)
def test_sqlite_is_never_locked_to_eight_writers_and_a_command(
    app: Flask, database_url: str, tmp_path: Path, seconds: int, pause: float
) -> None:
    decisions = Decisions(3_000 * seconds)
    with (
        Server(database_url, tmp_path / "server.log") as server,
        Load(server.port, decisions.token, CLIENTS, iter(decisions.changes), pause=pause) as load,
        Commands(database_url, decisions.organization_id) as commands,
    ):
        time.sleep(seconds)
    assert load.refused == set()
    assert [done.stderr for done in commands.done if done.returncode] == []
    assert "locked" not in server.log.read_text()
    decisions.assert_kept(load.acknowledged)
    assert_sound(app)
    print(f"{len(load.acknowledged)} changes, {len(commands.done)} commands in {seconds} s")
