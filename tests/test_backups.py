"""Backups made under load, as docs/operations.md says, and what is there after they are restored."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from convene_keys import create_app
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.keys import lifecycle
from convene_keys.models import AuditEvent, Scope, Tool
from tests import factories
from tests.conftest import wait_for
from tests.databases import PEPPER, Postgres, environ
from tests.servers import Load, Server

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.1  # of each client, which leaves the processors to the copying
LITESTREAM = Path(sys.executable).with_name("litestream")


def installation(app: Flask) -> str:
    """Bookings, and a key that may change them."""
    of = factories.organization()
    factories.market_data(of)
    maya = factories.member(of)
    _, token = lifecycle.create(
        Actor.of_member(maya, Origin()),
        name="Claude on laptop",
        tool=Tool.CLAUDE,
        scope=Scope.READ_WRITE,
        expires_in_days=None,
        peppers=[PEPPER],
        created_by_id=maya.id,
    )
    db.session.remove()
    return token


def assert_restored(url: str, token: str, acknowledged: set[str]) -> None:
    """Each call has its event, the key works, the log goes on, and nothing in it can be changed."""
    assert len(acknowledged) >= 50
    app = create_app(environ(url))
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            assert db.session.scalars(text("PRAGMA integrity_check")).all() == ["ok"]
        events = dict(
            db.session.execute(select(AuditEvent.request_id, AuditEvent.id).order_by("id")).all()
        )
        assert acknowledged - events.keys() == set()
        db.session.rollback()

        headers = {"Authorization": f"Bearer {token}"}
        answer = app.test_client().get("/api/v1/admin/bookings/1", headers=headers)
        assert (answer.status_code, answer.json["status"]) == (200, "approved")
        newest = select(AuditEvent.action).where(AuditEvent.id > max(events.values()))
        assert db.session.scalars(newest).all() == ["booking.viewed"]
        for change in ("UPDATE audit_event SET outcome = 'failed'", "DELETE FROM audit_event"):
            if db.engine.dialect.name == "postgresql":
                change = f"SET LOCAL session_replication_role = replica; {change}"
            with pytest.raises(DBAPIError, match="audit events can not be"):
                db.session.execute(text(change))
            db.session.rollback()
        assert app.test_cli_runner().invoke(args=["doctor"]).exit_code == 0
        db.session.remove()
        db.engine.dispose()


def litestream(config: Path, *args: object) -> list[str]:
    command, *rest = (str(arg) for arg in args)
    return [str(LITESTREAM), command, "-config", str(config), *rest]


def test_litestream_brings_back_what_was_acknowledged_before_its_last_copy(
    sqlite_url: str, tmp_path: Path
) -> None:
    config, socket = tmp_path / "litestream.yml", tmp_path / "socket"
    database, restored = tmp_path / "test.db", tmp_path / "restored.db"
    shipped = (ROOT / "deploy" / "litestream.yml").read_text()
    for was, here in {
        "/opt/convene-keys/instance/convene_keys.db": database,
        "/var/backups/convene-keys": tmp_path / "replica",
        "/run/litestream.sock": socket,
    }.items():
        assert shipped.count(was) == 1
        shipped = shipped.replace(was, str(here))
    config.write_text(shipped)
    app = create_app(environ(sqlite_url))
    with app.app_context():
        token = installation(app)
        db.engine.dispose()

    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "litestream.log").open("wb"))
        copying = subprocess.Popen(litestream(config, "replicate"), stdout=log, stderr=log)
        stack.callback(copying.wait)
        stack.callback(copying.kill)
        server = stack.enter_context(Server(sqlite_url, tmp_path / "server.log", workers=1))
        load = stack.enter_context(Load(server.port, token, pause=PAUSE))
        wait_for(socket.exists)
        acknowledged = load.go_on()
        sync = [LITESTREAM, "sync", "-wait", "-socket", socket, database]
        subprocess.run(sync, check=True, capture_output=True, timeout=60)
        load.go_on()
        copying.kill()  # with no chance to finish, like the server
        server.kill()
    assert load.refused == set()

    restore = litestream(config, "restore", "-integrity-check", "full", "-o", restored, database)
    subprocess.run(restore, check=True, capture_output=True, timeout=60)
    assert_restored(f"sqlite:///{restored}", token, acknowledged)


@pytest.fixture
def used(postgres: Postgres, tmp_path: Path) -> Iterator[tuple[str, str, Load]]:
    """A database on the tests' PostgreSQL server that calls keep writing to, and a key of it."""
    name = postgres.create()
    app = create_app(environ(postgres.url(name)))
    with app.app_context():
        token = installation(app)
        db.engine.dispose()
    with (
        Server(postgres.url(name), tmp_path / "server.log", workers=1) as server,
        Load(server.port, token, pause=PAUSE) as load,
    ):
        yield name, token, load
    assert load.refused == set()
    postgres.drop(name)


def test_pg_dump_brings_back_what_was_acknowledged_before_it_began(
    used: tuple[str, str, Load], postgres: Postgres
) -> None:
    name, token, load = used
    acknowledged = load.go_on()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        dump, server = f"{folder}/convene.dump", ("--host", postgres.host, "--username", "postgres")
        postgres.tool("pg_dump", *server, "--format=custom", "--file", dump, name)
        restored = postgres.create("template0")
        into = ("--exit-on-error", "--single-transaction", "--dbname", restored)
        postgres.tool("pg_restore", *server, *into, dump)
    load.go_on()
    assert_restored(postgres.url(restored), token, acknowledged)
    postgres.tool("pg_amcheck", *server, "--install-missing", "--heapallindexed", restored)
    postgres.drop(restored)


def test_pg_basebackup_brings_back_what_was_acknowledged_before_it_began(
    used: tuple[str, str, Load], postgres: Postgres
) -> None:
    name, token, load = used
    acknowledged = load.go_on()
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        copy = Path(folder) / "copy"
        postgres.base_backup(copy)
        load.go_on()
        with Postgres(str(copy)) as restored:
            assert_restored(restored.url(name), token, acknowledged)
            there = ("--host", restored.host, "--username", "postgres")
            restored.tool("pg_amcheck", *there, "--install-missing", "--heapallindexed", name)
