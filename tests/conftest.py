"""What all tests share: an empty database of either kind for each test, and ways to act on it."""

import contextvars
import gc
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade

from convene_keys import clock, create_app
from convene_keys.accounts import passwords
from convene_keys.db.session import db
from convene_keys.models import ApiKey, Member, Organization
from tests import compiled, factories
from tests.databases import EmptiedPostgres, EmptiedSQLite, Postgres, environ, hasten

compiled.once()
passwords.COST = 4  # bcrypt at full cost takes 240 ms; its own test restores it

# Files of tests that start the product itself, other servers or programs.
SLOW = {
    "test_access",
    "test_attack",
    "test_audit_keys",
    "test_backups",
    "test_bridge",
    "test_bundle",
    "test_config",
    "test_crashes",
    "test_deploy",
    "test_docs",
    "test_failover",
    "test_makefile",
    "test_move",
    "test_nginx",
    "test_official_client",
    "test_outbox",
    "test_proxies",
    "test_request_body",
    "test_revocation",
    "test_rotation",
    "test_scanner",
    "test_schemathesis",
    "test_seals",
    "test_smtp",
    "test_traffic",
    "test_verification",
    "test_weight",
    "test_worst_input",
    "test_migrations",
}
SERVERS = {"redis", "served"}  # fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what `on_sqlite` marks to SQLite in each run, and to both databases in `make soak`.

    What starts servers or browsers is slow: `make test-quick` leaves it out. Coverage is counted
    on SQLite alone, and not where a browser asks another process: counting takes half as long
    again as the test.
    """
    for item in items:
        browser = "browser" in item.path.parts
        if browser or item.path.stem in SLOW or SERVERS.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)
        given = getattr(item, "callspec", None)
        postgresql = given is not None and "postgresql" in given.params.values()
        if postgresql and item.get_closest_marker("on_sqlite"):
            item.add_marker(pytest.mark.soak)
        if browser or postgresql:
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish() -> None:
    """Leave what is here by now to no collection of garbage: a tenth of all time went into it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and nothing in it, made by the migrations."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    app = create_app(environ(f"sqlite:///{path}"))
    with app.app_context():
        upgrade()
        with db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        db.engine.dispose()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server of this session, whose template has the schema."""
    # Not in pytest's own folder: started by root, the server runs as another user, who loses the
    # way in whenever a pytest process starts and closes that folder to others again.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder, Postgres(folder) as server:
        app = create_app(environ(server.url("template_convene")))
        with app.app_context():
            upgrade()
            db.engine.dispose()
        yield server


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A database of the test's own."""
    shutil.copy(sqlite_template, tmp_path / "test.db")
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of the test's own."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def own_database_url(request: pytest.FixtureRequest) -> str:
    """An empty, migrated database of the test's own, to break or to bring to another state."""
    url: str = request.getfixturevalue(request.param.replace("postgresql", "postgres") + "_url")
    return url


# What tests change of an application without putting something else in its place.
CHANGED_IN_PLACE = ("config", "before_request_funcs", "after_request_funcs")


class Shared:
    """A database that one test after the other gets, emptied, and an application that is open on it.

    Making both takes longer than most tests.
    """

    def __init__(self, database: EmptiedSQLite | EmptiedPostgres) -> None:
        self.database = database
        self._app: Flask | None = None

    def close(self) -> None:
        if self._app is not None:
            with self._app.app_context():
                db.engine.dispose()
        self.database.close()

    @contextmanager
    def app(self) -> Iterator[Flask]:
        """The application, which afterwards is as it was."""
        if self._app is None:
            self._app = create_app(environ(self.database.url))
            self._app.testing = True
            self._app.config["PROPAGATE_EXCEPTIONS"] = False
            with self._app.app_context():
                hasten(db.engine)
        app, attributes = self._app, dict(vars(self._app))
        contents = {name: deepcopy(attributes[name]) for name in CHANGED_IN_PLACE}
        try:
            yield app
        finally:
            vars(app).clear()
            vars(app).update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                attributes[name].update(content)
            app.extensions["limits"].__init__(app.config["SETTINGS"])  # counts afresh


@pytest.fixture(scope="session")
def shared_sqlite(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    file = tmp_path_factory.mktemp("shared") / "test.db"
    with closing(Shared(EmptiedSQLite(file, sqlite_template))) as shared:
        yield shared


@pytest.fixture(scope="session")
def shared_postgres(postgres: Postgres) -> Iterator[Shared]:
    with closing(Shared(EmptiedPostgres(postgres))) as shared:
        yield shared


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest) -> Shared:
    """Of either kind, and empty: every test that needs a database runs on both."""
    kind = request.param.replace("postgresql", "postgres")
    shared: Shared = request.getfixturevalue(f"shared_{kind}")
    shared.database.empty()
    return shared


@pytest.fixture
def database_url(shared: Shared) -> str:
    """An empty, migrated database; not for what changes more of it than rows."""
    return shared.database.url


@pytest.fixture
def app(shared: Shared) -> Iterator[Flask]:
    with shared.app() as app, app.app_context():
        yield app
        db.session.remove()
        kept = db.engine.pool.checkedout()
        db.engine.dispose()  # the next test begins with connections of its own
        assert kept == 0, "a request kept its connection"


@pytest.fixture
def own_app(own_database_url: str) -> Iterator[Flask]:
    """An application and a database of the test's own, for what can't be taken back: a route, a table."""
    app = create_app(environ(own_database_url))
    app.testing = True
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        hasten(db.engine)
        yield app
        db.session.remove()
        db.engine.dispose()


class Browser(FlaskClient):
    """A client whose requests see nothing of the test's own application context."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("buffered", True)
        response = contextvars.Context().run(super().open, *args, **kwargs)
        db.session.rollback()  # so that the test sees what the request changed
        return response

    def sign_in(self, member: Member) -> None:
        """Give this browser the cookie of a new session of `member`, signed in just now."""
        _, token = factories.session(member)
        with self.session_transaction() as cookie:
            cookie.update(_user_id=token, _fresh=True)


@pytest.fixture
def client(app: Flask) -> Browser:
    """A browser that is not signed in; forms need no CSRF token (see `strict_client`)."""
    app.config["WTF_CSRF_ENABLED"] = False
    return new_browser(app)


@pytest.fixture
def strict_client(app: Flask) -> Browser:
    """A browser whose forms need their CSRF token, as in real life."""
    return new_browser(app)


def new_browser(app: Flask) -> Browser:
    """Another browser of the same app, with cookies of its own."""
    app.test_client_class = Browser
    browser = app.test_client()
    assert isinstance(browser, Browser)
    return browser


class Clock:
    """The product's clock with its hands in the test's."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, **delta: float) -> None:
        self.moment += timedelta(**delta)


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands at noon of 24 November 2026 until a test moves it."""
    fake_clock = Clock(datetime(2026, 11, 24, 12, 0, tzinfo=UTC))
    monkeypatch.setattr(clock, "now", fake_clock)
    return fake_clock


@pytest.fixture
def organization(app: Flask, fake_clock: Clock) -> Organization:
    """An organization with market data, at noon."""
    organization = factories.organization()
    factories.market_data(organization)
    return organization


@pytest.fixture
def maya(organization: Organization) -> Member:
    """Its admin."""
    return factories.member(organization)


@pytest.fixture
def key(organization: Organization, maya: Member) -> tuple[ApiKey, str]:
    """Maya's key for Claude and its secret."""
    return factories.api_key(organization, creator=maya, tool="claude")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of localhost that nobody knows yet, and what a server needs to show it."""
    folder = tmp_path_factory.mktemp("tls")
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return folder / "cert.pem", context


def challenge(code: str) -> str:
    """How a 401 with this code asks for a key: with an error once there was one (RFC 6750, 3.1)."""
    return "Bearer" if code == "key_missing" else 'Bearer error="invalid_token"'


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    """Poll until `condition` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
