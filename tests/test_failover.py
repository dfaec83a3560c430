"""Two PostgreSQL servers, one a standby: who is asked, and what happens when the first is lost."""

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from convene_keys import create_app
from convene_keys.db.session import db
from tests.conftest import wait_for
from tests.databases import Postgres, environ
from tests.servers import Load, Server
from tests.test_crashes import Decisions, assert_sound

BACK_WITHIN = 5  # seconds from when the database is there


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that PostgreSQL's own user can reach."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def pair(postgres: Postgres, folder: Path) -> Iterator[tuple[Postgres, Postgres, str]]:
    """A primary and its synchronous standby, and the name of a database on both."""
    name = postgres.create()
    with ExitStack() as stack:
        postgres.base_backup(folder / "a")
        primary = stack.enter_context(Postgres(str(folder / "a")))
        # The standby must be back before a change is acknowledged; by itself it looks every 5 s.
        primary.configure(
            **dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit"), "on"),
            wal_retrieve_retry_interval="200ms",
        )
        primary.base_backup(folder / "b", "--write-recovery-conf")
        standby = stack.enter_context(Postgres(str(folder / "b")))
        primary.configure(synchronous_standby_names="*")
        yield primary, standby, name
    postgres.drop(name)


@pytest.mark.parametrize("restarts", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_service_returns_by_itself_after_restarts_and_a_promotion(
    pair: tuple[Postgres, Postgres, str], tmp_path: Path, restarts: int
) -> None:
    primary, standby, name = pair
    hosts = f"host={standby.host}:5432,{primary.host}:5432&target_session_attrs=read-write"
    url = f"postgresql://postgres@/{name}?{hosts}"
    app = create_app(environ(url))
    with app.app_context():
        decisions = Decisions(1_000 * (restarts + 1))
        waits = []
        with (
            Server(url, tmp_path / "server.log") as server,
            Load(server.port, decisions.token, calls=decisions.calls(), pause=0.05) as load,
        ):
            for come_back in (*[primary.start] * restarts, standby.promote):
                load.go_on()
                load.refused.clear()
                primary.crash()
                wait_for(lambda: load.refused)
                come_back()
                there = time.monotonic()
                load.go_on(1)
                waits.append(time.monotonic() - there)
                assert load.refused == {(503, "5")}
            load.go_on()

        print(f"back after {max(waits):.2f} s at the most, {len(load.acknowledged)} answered calls")
        assert max(waits) < BACK_WITHIN
        decisions.assert_kept(load.acknowledged)
        assert_sound(app)
        db.session.remove()
        db.engine.dispose()


def test_a_standby_alone_is_like_no_database(postgres: Postgres, folder: Path) -> None:
    name = postgres.create()
    postgres.base_backup(folder / "standby", "--write-recovery-conf")
    with Postgres(str(folder / "standby")) as standby:
        app = create_app(environ(f"postgresql://postgres@/{name}?host={standby.host}"))
        assert app.test_client().get("/readyz").status_code == 503
        standby.promote()
        assert app.test_client().get("/readyz").status_code == 200
        with app.app_context():
            db.engine.dispose()
    postgres.drop(name)


def test_a_host_that_does_not_answer_is_passed_over(postgres: Postgres) -> None:
    name = postgres.create()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        hosts = f"127.0.0.1:{silent.getsockname()[1]},{postgres.host}"
        app = create_app(environ(f"postgresql://postgres@/{name}?host={hosts}"))
        began = time.monotonic()
        assert app.test_client().get("/readyz").status_code == 200
        assert time.monotonic() - began < BACK_WITHIN
    with app.app_context():
        db.engine.dispose()
    postgres.drop(name)
