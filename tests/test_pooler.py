"""PgBouncer in between, which gives each transaction whichever connection is free."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from convene_keys import create_app
from convene_keys.db.session import alone, db
from convene_keys.models import Organization
from tests import factories
from tests.conftest import new_browser
from tests.databases import Postgres, environ
from tests.poolers import CONNECTIONS, Pooler
from tests.servers import Load, Server, Visitor
from tests.test_crashes import CLIENTS, Decisions, assert_sound

UNPREPARED = "?prepare_threshold=none"
EXPORT = "/admin/audit_log.csv"


@pytest.fixture
def name(postgres: Postgres) -> Iterator[str]:
    name = postgres.create()
    yield name
    postgres.drop(name)


@pytest.fixture
def pooler(postgres: Postgres, name: str) -> Iterator[Pooler]:
    with tempfile.TemporaryDirectory(prefix="pooler-") as folder:
        Path(folder).chmod(0o755)  # for the user that it runs as
        with Pooler(postgres, name, Path(folder)) as pooler:
            yield pooler


def test_calls_pages_exports_and_seals_pass_a_pooler(
    pooler: Pooler, postgres: Postgres, name: str, tmp_path: Path
) -> None:
    around = create_app(environ(postgres.url(name)))
    with around.app_context():
        decisions = Decisions(600)
        browser = new_browser(around)
        browser.sign_in(
            factories.member(db.session.get_one(Organization, decisions.organization_id))
        )
        cookie = browser.get_cookie("convene")
        assert cookie is not None
        db.session.remove()
        with (
            Server(pooler.url + UNPREPARED, tmp_path / "server.log") as server,
            Load(server.port, decisions.token, CLIENTS, decisions.calls()) as load,
            Visitor(server.port, Cookie=f"convene={cookie.value}") as visitor,
        ):
            for _ in range(2 * CONNECTIONS):  # a lock that stayed behind would be met again
                load.go_on(50)
                status, page = visitor.get("/admin/audit_log")
                assert (status, "booking" in page) == (200, True)
                assert visitor.get(EXPORT)[0] == 200
        assert load.refused == set()
        decisions.assert_kept(load.acknowledged)
        assert_sound(around)
        db.engine.dispose()


def test_who_is_alone_is_so_behind_a_pooler_and_lets_go(pooler: Pooler) -> None:
    app = create_app(environ(pooler.url + UNPREPARED))
    with app.app_context():
        for _ in range(2 * CONNECTIONS):
            with alone("one") as got, alone("one") as again, alone("other") as other:
                assert (got, again, other) == (True, False, True)
        db.engine.dispose()
